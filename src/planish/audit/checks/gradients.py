"""Do the gradients tell an attack anything: are they there, are they right, do they agree with each other nearby."""

import torch
from torch import Tensor

from planish.attacks.ascents import Untargeted
from planish.audit.check import Seen, Unknown, check, count_text, fact, mean, mean_of, named, share
from planish.audit.evidence import PGD_STEP, Evidence
from planish.core.arguments import logits_of
from planish.core.batch import Batch
from planish.core.losses import cross_entropy, margin
from planish.core.modes import attacked
from planish.core.randomness import keyed_draws
from planish.core.words import number_of
from planish.search.slopes import FAITHFUL, slopes, typical
from planish.search.step_rules import Steepest

PROBED, DIRECTIONS = 8, 64
"""Images, and directions from each."""
ROUNDED = 20
"""The direction of the gradient of a cross entropy below so many roundings is chance."""
SMALLEST = 1e-10
NEARBY, NEIGHBOURS = 0.1, 10
"""Radius of a small neighbourhood, in radii of the threat, and the points drawn in it."""
LARGEST_GAP, SMALLEST_GAP = 50.0, 1e-2
"""Between the two largest logits; beyond these cross entropy loses its gradient to rounding."""
USUAL_GAP = 5.0


@check((6,), unit="", fail_at=FAITHFUL, worse="below", needs="graph")
def gradient(evidence: Evidence) -> Seen | Unknown:
    """The gradient is there, and is the slope that finite differences measure, also where attacks pass and stop."""
    first = evidence.setup.select(slice(0, PROBED))
    leaf = first.x.clone().requires_grad_()
    with attacked(evidence.given), torch.enable_grad():
        output = evidence.model(leaf)
    advice = (
        "Gradients are cut off or altered on the way back; attack through that part with its backward pass replaced by "
        "the identity (BPDA), and count black-box attacks."
    )
    if not output.requires_grad:
        return fact(0.0, "The way back from the logits ends before the image: there is no gradient.", advice)
    with attacked(evidence.given):
        (raw,) = torch.autograd.grad(margin(output, first.labels).sum(), leaf, materialize_grads=True)
    strange = int((~raw.flatten(1).isfinite().all(1)).sum())
    if strange:
        return fact(0.0, f"The gradient of {count_text(strange, len(raw))} is not a number.", advice)
    model, threat, seed = evidence.model, evidence.threat, evidence.seed
    found = {place: slopes(model, batch, threat, seed, DIRECTIONS) for place, batch in _path(evidence).items()}
    medians = {place: value for place, values in found.items() if (value := typical(values)) is not None}
    if not medians:
        reason = "Gradients and finite differences are 0, or lost to rounding, at most of the images tried."
        return Unknown(reason, "See the checks zero-gradients and precision; audit the model in float32.")
    worst = min(medians, key=lambda place: medians[place])
    told = {place: [value for value in found[place] if value is not None] for place in medians}
    meaning = (
        f"Along {DIRECTIONS} random directions the slopes that gradients predict and those that finite differences "
        f"measure agree to {medians[worst]:.3f} of 1, median of {number_of(len(told[worst]))} {worst}."
    )
    return fact(medians[worst], meaning, advice, agreements=told)


def _path(evidence: Evidence) -> dict[str, Batch]:
    """Return a few images as they are, and those of them that the suite moved half-way and where it stopped."""
    first = evidence.setup_rows[:PROBED]
    ends, x = evidence.judged.x_adv, evidence.images.x
    moved = evidence.setup_rows[(ends != x).flatten(1).any(1)[evidence.setup_rows]]
    last = moved[evidence.suite_broken[moved].long().argsort(stable=True)[:PROBED]]  # robust ones first
    at_end = evidence.images.select(last)._replace(x=ends[last])
    half_way = at_end._replace(x=torch.lerp(x[last], ends[last], 0.5))
    places = {"as they are": evidence.images.select(first), "half-way": half_way, "where attacks stop": at_end}
    return {place: batch for place, batch in places.items() if len(batch.x)}


@check((7,), warn_at=0.0, fail_at=1.0, needs="graph", correct="any")
def zero_gradients(evidence: Evidence) -> Seen:
    """No image has a gradient that is exactly zero, by cross entropy or by margin."""
    by_loss = [evidence.gradients(evidence.setup).gradient, evidence.setup_gradients.gradient]
    zero = [(value.flatten(1) == 0).all(1) for value in by_loss]
    return share(
        zero[0] | zero[1],
        len(zero[0]),
        "The gradient of {of} is exactly 0.",
        "Gradients say nothing there; use scale-free losses, gradients smoothed over noise, and black-box attacks.",
        by_cross_entropy=int(zero[0].sum()),
        by_margin=int(zero[1].sum()),
    )


@check((8,), warn_at=1.0, needs="gradients")
def tiny_gradients(evidence: Evidence) -> Seen:
    """Gradients of cross entropy are not lost to rounding where those of the margin are fine."""
    of_loss, of_margin = evidence.gradients(evidence.setup).gradient, evidence.setup_gradients.gradient
    tiny = (of_loss.flatten(1).abs().amax(1) < SMALLEST) & (of_margin.flatten(1).abs().amax(1) > 0)
    return share(
        tiny,
        len(tiny),
        f"The gradient of cross entropy is below {SMALLEST:g} on {{of}}.",
        "Attack the margin or a scale-free loss; figures of attacks on cross entropy are too high for this model.",
    )


@check((16,), unit="", warn_at=0.75, fail_at=0.3, worse="below", needs="gradients", correct="sampled")
def gradient_cosine(evidence: Evidence) -> Seen | Unknown:
    """Gradients at an image, at noise round it and at its FGSM image point the same way."""
    batch, told = evidence.correct_sample, _told(evidence)
    if not told.any():
        return Unknown("Cross entropy is lost to rounding at every image.", "See the check tiny-gradients.")
    noisy = evidence.threat.sample(batch.x, keyed_draws(batch.x, batch.indices, evidence.seed))
    clean = evidence.clean_gradients.gradient
    around = [evidence.gradients(batch._replace(x=noisy)).gradient, evidence.fgsm_gradients.gradient]
    cosines = [torch.cosine_similarity(clean.flatten(1), other.flatten(1)).nan_to_num()[told] for other in around]
    by_noise, by_step = (float(cosine.mean()) for cosine in cosines)
    return mean(
        min(cosines, key=lambda cosine: float(cosine.mean())),
        f"The gradient has a cosine of {by_noise:.2f} with the one at a random point of the ball and of {by_step:.2f} "
        f"with the one at the FGSM image, {mean_of(cosines[0])}.",
        "The loss bends within the ball: one gradient step says little; use many steps, restarts, black boxes.",
        worse=-1,
        random_point=by_noise,
        fgsm_image=by_step,
    )


def _told(evidence: Evidence) -> Tensor:
    """Return at which correct images (n,) cross entropy is more than what the arithmetic rounds.

    A network that is sure of its class has p_y = 1 up to rounding: the direction of its gradient is then chance.
    """
    return evidence.clean_gradients.values > ROUNDED * torch.finfo(evidence.arithmetic).eps


@check((28,), unit="", warn_at=0.1, needs="logits", correct="sampled")
def loss_stability(evidence: Evidence) -> Seen:
    """Small noise changes the margin by little."""
    batch, near = evidence.correct_sample, evidence.threat.scaled(NEARBY)
    here = margin(evidence.logits[evidence.correct_rows], batch.labels)
    changes = []
    for number in range(NEIGHBOURS):
        x = near.sample(batch.x, keyed_draws(batch.x, batch.indices, evidence.seed + number))
        changes.append((margin(logits_of(evidence.model, x), batch.labels) - here).abs())
    relative = torch.stack(changes).mean(0) / here.abs().mean()
    return mean(
        relative,
        f"Noise of a tenth of the radius changes the margin by {100 * float(relative.mean()):.1f} % of its size, "
        f"{mean_of(relative)}.",
        "The loss is rough: gradients at a point are not those of its surroundings; average them over noise.",
    )


@check((29,), unit="logits", warn_at=LARGEST_GAP)
def logit_scale(evidence: Evidence) -> Seen:
    """Logits are neither so large nor so small that cross entropy loses its gradient."""
    top = evidence.logits.topk(2, dim=1).values
    gap = float((top[:, 0] - top[:, 1]).mean())
    extreme = not SMALLEST_GAP <= gap <= LARGEST_GAP
    found: dict[str, int] = {}
    if extreme and gap > 0 and not evidence.black_box and len(evidence.correct_rows):
        found = {"broken_as_they_are": int(evidence.trace.broken_by(evidence.plan.steps).sum())}

        def rescaled(logits: Tensor, labels: Tensor) -> Tensor:
            return cross_entropy(USUAL_GAP / gap * logits, labels)

        attack = Untargeted(Steepest(PGD_STEP), evidence.plan.steps, rescaled)
        found["broken_rescaled"] = int(evidence.broken_by("pgd-rescaled", attack, evidence.correct_rows).sum())
    judged = gap if gap >= SMALLEST_GAP else LARGEST_GAP / max(gap / SMALLEST_GAP, 1e-6)
    told = f"; PGD breaks {number_of(found['broken_as_they_are'])}" if found else ""
    told += f", with logits rescaled {found['broken_rescaled']}" if found else ""
    return fact(
        judged,
        f"The two largest logits are {gap:.3g} apart on average" + told + ".",
        "Attack the margin or a scale-free loss, or rescale the logits first.",
        gap=gap,
        **found,
    )


COMPONENTS = named(gradient, zero_gradients, tiny_gradients, gradient_cosine, loss_stability, logit_scale)
