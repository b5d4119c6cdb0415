"""Is the model fit to be judged at all, and what must a reader know beside the verdicts. Few passes, always made."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from planish.audit.check import Seen, Unknown, check, count_text, fact, named, share
from planish.audit.evidence import Evidence, are_probabilities
from planish.core.arguments import logits_of
from planish.core.footprint import CHUNK
from planish.core.losses import margin
from planish.core.modes import Counted, evaluating, fixed_statistics, left_in_training
from planish.core.randomness import keyed_draws, reproducible
from planish.core.words import number_of, radius_text
from planish.records.statistics import Estimate

REPEATS = 5
TINY_NOISE = 1e-4
"""In pixels of [0, 1]: less than a tenth of a grey level."""
DRAWS = 10
SAME = 1e-4
"""How far apart normalised logits are that count as the same."""
STILL_TRAINING = (
    "Evaluation mode does not settle what the model says: let batch norm use its running averages, draw nothing, and "
    "call no train() in a forward."
)
MACHINERY = ("torch/autograd/__init__.py", "torch/_functorch/eager_transforms.py", "torch/optim/")
"""Files of PyTorch whose functions a plain forward has no use for."""
CALLED = {"grad", "backward", "vjp", "jvp", "step", "_vjp_with_argnums", "grad_impl", "grad_and_value_impl"}
OTHER_SCALES = {"0..255": (0.0, 1 / 255), "-1..1": (0.5, 0.5), "ImageNet's mean and deviation": (0.45, 0.226)}
BETTER = 10.0
"""Points of clean accuracy that another scale of the input must bring."""
COMPARED = 1000
"""Images at most whose distances to other classes are measured."""


@check((1,), unit="", fail_at=SAME)
def deterministic(evidence: Evidence) -> Seen:
    """Five passes over the same images give the same logits."""
    x = evidence.setup.x
    passes = [logits_of(evidence.model, x) for _ in range(REPEATS)]
    apart = max(float(_apart(passes[0], other)) for other in passes[1:])
    changed = max(int((passes[0].argmax(1) != other.argmax(1)).sum()) for other in passes[1:])
    return fact(
        apart,
        f"Between {REPEATS} passes over {number_of(len(x))} the normalised logits differ by up to {apart:.2g}, and "
        f"{number_of(changed)} changed class.",
        "The model is random: an attack must average over its draws (expectation over transformation), and a verdict "
        "must rest on many draws; switch the randomness off and audit again.",
        changed_class=changed,
    )


@check((2,), unit="", warn_at=0.0, fail_at=1.0)
def evaluation_mode(evidence: Evidence) -> Seen | Unknown:
    """Training mode changes no output; evaluation mode stays, and in it an image's logits are those of it alone."""
    x = evidence.setup.x
    if len(x) < 2:
        return Unknown("One image cannot be put into a batch with others.", "Audit with at least 2 images.")
    with fixed_statistics(evidence.given):
        handed_over = _raw(evidence, x)
    with evaluating(evidence.given):
        judged, together = _raw(evidence, x), _raw(evidence, x[:8])
        alone = torch.cat([_raw(evidence, one) for one in torch.split(x[:8], 1)])
        back = left_in_training(evidence.given)
    left = left_in_training(evidence.given)
    of_mode, of_batch = float(_apart(judged, handed_over)), float(_apart(alone, together))
    is_random = float(_apart(*(logits_of(evidence.model, x[:8]) for _ in range(2)))) > SAME
    helpless = back > 0 or (of_mode > SAME if is_random else of_batch > SAME)
    return fact(
        2.0 if helpless else float(of_mode > SAME),
        f"{left} of its modules came in training mode, which changes the normalised logits by {of_mode:.2g}. "
        f"All was judged in evaluation mode; in it the company of other images in a batch changes them by "
        f"{of_batch:.2g}"
        + (f", and a forward puts {number_of(back, 'module')} back into training mode." if back else "."),
        STILL_TRAINING if helpless else "Call .eval() where you use the model: only there it is as it was judged here.",
        training_modules=left,
        changed_by_mode=of_mode,
        changed_by_batch=of_batch,
        back_in_training=back,
    )


@check((3,), unit="", fail_at=0.0)
def logits(evidence: Evidence) -> Seen:
    """The output is logits, not probabilities."""
    with evaluating(evidence.given):
        output = _raw(evidence, evidence.setup.x)
    probabilities = are_probabilities(evidence.given, output)
    largest = float(output.sum(1).sub(1).abs().amax())
    return fact(
        float(probabilities),
        f"Outputs lie in [{float(output.amin()):.3g}, {float(output.amax()):.3g}], and their sums are up to "
        f"{largest:.3g} away from 1" + (": they are probabilities." if probabilities else "."),
        "Leave the softmax out: it hides gradients where the model is certain; its logarithm was attacked here.",
    )


@check((4,), unit="classes")
def classes(evidence: Evidence) -> Seen:
    """How many classes there are; with fewer than four some losses are undefined, and others take their place."""
    count = evidence.classes
    few = "so that the DLR loss is undefined and margins take its place" if count < 4 else "enough for every loss"
    return fact(float(count), f"The model has {count} classes, {few}.")


@check((5,), unit="calls", fail_at=0.0)
def plain_forward(evidence: Evidence) -> Seen:
    """The forward pass computes no gradients, optimises nothing, and runs no layer where gradients are off."""
    called, layers = list[str](), {*evidence.given.modules()}

    def watch(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_name in CALLED and any(part in code.co_filename for part in MACHINERY):
            called.append(code.co_name)
        elif event == "call" and code is nn.Module._call_impl.__code__ and not torch.is_grad_enabled():
            called.extend(["a layer without gradients"] if frame.f_locals["self"] in layers else [])

    x = evidence.setup.x[:2]
    with evaluating(evidence.given), torch.enable_grad():
        evidence.model(x.clone().requires_grad_())  # unwatched: a compiled model is compiled now
        with _watched(watch):
            evidence.model(x.clone().requires_grad_())
    names = sorted(set(called))
    return fact(
        float(len(called)),
        f"One forward makes {number_of(len(called), 'call')} of gradients, optimisers or layers without gradients"
        + (f" ({', '.join(names)})." if names else "."),
        "The model optimises or searches while it classifies; attack it with an attack that knows this step, or judge "
        "it without.",
        called=names,
    )


@contextmanager
def _watched(watch: Callable[[FrameType, str, Any], None]) -> Iterator[None]:
    before: Any = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield
    finally:
        if before is None or callable(before):
            sys.setprofile(before)
        else:  # cProfile's, which Python 3.11 names but does not take back
            sys.setprofile(None)
            before.enable()


@check((9,), unit="", warn_at=0.0, fail_at=1.0)
def input_scale(evidence: Evidence) -> Seen:
    """Images are in [0, 1], the model expects them there, and the radius is on their scale."""
    x, labels, threat = evidence.images.x[evidence.rows], evidence.images.labels[evidence.rows], evidence.threat
    own = _accuracy(evidence, x, labels)
    others = {
        name: _accuracy(evidence, (x - mean) / deviation, labels) for name, (mean, deviation) in OTHER_SCALES.items()
    }
    best = max(others, key=lambda name: others[name])
    problems = []
    commonest = 100 * int(labels.bincount().amax()) / len(labels)  # what a constant answer can reach by chance
    wrong_scale = len(x) >= 20 and others[best] > max(own, commonest) + BETTER
    if wrong_scale:
        problems.append(f"on {best} its accuracy would be {others[best]:.1f} % instead of {own:.1f} %")
    if float(x.amax()) <= 2 / 255:
        problems.append(f"no pixel is above {float(x.amax()):.2g}: the images were divided by 255 twice")
    if 0 < threat.radius < 1e-4 or threat.radius > float(threat.farthest(x).amax()) / 2:
        problems.append(f"a radius of {radius_text(threat.radius)} is not one of images in [0, 1]")
    meaning = (
        f"Pixels lie in [{float(x.amin()):.2g}, {float(x.amax()):.2g}] and the radius is {radius_text(threat.radius)}; "
        + ("; ".join(problems) or f"no other scale of the input gives more than {own:.1f} % clean accuracy")
    )
    return fact(
        2.0 if wrong_scale else float(bool(problems)),
        f"{meaning}.",
        "Put the normalisation inside the model and give the radius in pixels of [0, 1], for instance 8/255.",
        accuracy=own,
        accuracy_on=others,
    )


@check((10,), fail_at=50.0)
def smooth_input(evidence: Evidence) -> Seen | Unknown:
    """Noise that nobody can see changes the logits at least a little: nothing is rounded on the way."""
    if torch.finfo(evidence.arithmetic).eps > TINY_NOISE:
        return Unknown("The model's own dtype rounds away noise that nobody sees.", "Nothing is to be done.")
    x, indices = evidence.setup.x, evidence.setup.indices
    noise = 2 * keyed_draws(x, indices, evidence.seed)[:, 1:].reshape(x.shape).to(x.dtype) - 1
    moved = (x + TINY_NOISE * noise).clamp(evidence.threat.low, evidence.threat.high)
    same = (logits_of(evidence.model, x) == logits_of(evidence.model, moved)).all(1)
    return share(
        same,
        len(x),
        f"The logits of {{of}} stay exactly the same under noise of {TINY_NOISE:g}.",
        "Something rounds: the input, an activation or the output; attack through it with its backward pass replaced "
        "by the identity (BPDA).",
    )


@check((31,), fail_at=0.0)
def single_draw(evidence: Evidence) -> Seen:
    """Verdicts on adversarial images do not change when the images are judged again."""
    batch = evidence.setup
    x_adv = evidence.judged.x_adv[evidence.setup_rows]
    draws = torch.stack([margin(logits_of(evidence.model, x_adv, 63), batch.labels) >= 0 for _ in range(DRAWS)])
    hits = int((draws.any(0) & ~draws.all(0)).sum())
    return fact(
        100 * hits / len(x_adv),
        f"The verdict on {count_text(hits, len(x_adv))} as the suite left them changes between {DRAWS} draws.",
        "A single draw decides nothing here: attack the expectation over the model's randomness and report it.",
        hits=hits,
        images=len(x_adv),
    )


@check((33,), unit="points")
def sample_size(evidence: Evidence) -> Seen:
    """How far the number of images lets the accuracy be off."""
    share = Estimate.of(evidence.suite_robust.cpu().numpy())
    half = 50 * (share.high - share.low)
    more = "; 1,000 or more, drawn at random, are usual" if share.total < 1000 else ""
    return fact(
        half,
        f"Of {number_of(share.total)} the suite's accuracy is uncertain by {half:.1f} points{more}.",
    )


@check((34,))
def radius_and_classes(evidence: Evidence) -> Seen | Unknown:
    """How many images have one of another class within twice the radius."""
    some = evidence.images.select(evidence.drawn(evidence.every, COMPARED))
    if bool((some.labels == some.labels[0]).all()):
        return Unknown("All images are of one class.", "Audit images of several classes.")
    nearest = []
    for x, label in zip(some.x, some.labels, strict=True):
        others = some.x[some.labels != label]
        nearest.append(min(evidence.threat.norm(part - x).amin() for part in torch.split(others, CHUNK)))
    near = int((torch.stack(nearest) < 2 * evidence.threat.radius).sum())
    least = float(torch.stack(nearest).amin())
    return fact(
        100 * near / len(nearest),
        f"{count_text(near, len(nearest))} have an image of another class within twice the radius; the nearest is "
        f"{least:.3g} away: where balls overlap nobody can be right in both.",
        least_distance=least,
    )


@check((35,))
def clean_accuracy(evidence: Evidence) -> Seen:
    """Clean accuracy, and classes that are predicted but never the label."""
    labels, predicted = evidence.images.labels, evidence.logits.argmax(1)
    right = int(evidence.correct.sum())
    absent = ~torch.isin(predicted, labels)
    tied = int((margin(evidence.logits, labels) == 0).sum())
    return fact(
        100 * right / len(labels),
        f"{count_text(right, len(labels))} are right when clean; {int(absent.sum())} are put into classes that no "
        f"image has, and {tied} are ties; both count as wrong, as an abstention would.",
        absent_classes=int(absent.sum()),
        ties=tied,
    )


@torch.no_grad()
def _raw(evidence: Evidence, x: Tensor) -> Tensor:
    """Return what the model returns, in the mode it is in, with the same draws each time, and count it."""
    evidence.model.forwards += len(x)
    with reproducible(evidence.seed):
        logits: Tensor = Counted(evidence.given)(x)
    return logits


def _apart(first: Tensor, second: Tensor) -> Tensor:
    """Return the largest distance of the logits after each is brought to length 1."""
    units = [
        part / part.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) for part in (first, second)
    ]
    apart: Tensor = (units[0] - units[1]).norm(dim=1).amax()
    return apart


def _accuracy(evidence: Evidence, x: Tensor, labels: Tensor) -> float:
    return 100 * float((logits_of(evidence.model, x).argmax(1) == labels).float().mean())


COMPONENTS = named(
    *(deterministic, evaluation_mode, logits, classes, plain_forward, input_scale, smooth_input, single_draw),
    *(sample_size, radius_and_classes, clean_accuracy),
)
