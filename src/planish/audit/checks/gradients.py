"""Do the gradients tell an attack anything: are they there, are they right, do they agree with each other nearby."""

import torch
from torch import Tensor

from planish.attacks.ascents import Untargeted
from planish.audit.check import Seen, Unknown, check, count_text, fact, mean, named, share
from planish.audit.evidence import PGD_STEP, Evidence
from planish.core.arguments import logits_of
from planish.core.batch import per_image
from planish.core.losses import cross_entropy, margin
from planish.core.modes import attacked
from planish.core.randomness import keyed_draws
from planish.search.objectives import inner, probe_length
from planish.search.step_rules import Steepest

PROBED, DIRECTIONS = 8, 64
SMALLEST = 1e-10
NEARBY, NEIGHBOURS = 0.1, 10
"""Radius of a small neighbourhood, in radii of the threat, and the points drawn in it."""
LARGEST_GAP, SMALLEST_GAP = 50.0, 1e-2
"""Between the two largest logits; beyond these cross entropy loses its gradient to rounding."""
USUAL_GAP = 5.0


@check((6,), unit="", fail_at=0.9, worse="below", needs="graph")
def gradient(evidence: Evidence) -> Seen | Unknown:
    """The gradient is there, and is the slope that finite differences measure."""
    batch = evidence.setup.select(slice(0, PROBED))
    exact = evidence.setup_gradients.gradient[:PROBED]
    leaf = batch.x[:1].clone().requires_grad_()
    with attacked(evidence.given), torch.enable_grad():
        output = evidence.model(leaf)
    advice = (
        "Gradients are cut off or altered on the way back; attack through that part with its backward pass replaced by "
        "the identity (BPDA), and count black-box attacks."
    )
    if not output.requires_grad:
        return fact(0.0, "The way back from the logits ends before the image: there is no gradient.", advice)
    strange = int((~exact.flatten(1).isfinite().all(1)).sum())
    if strange:
        return fact(0.0, f"The gradient of {count_text(strange, len(exact))} is not a number.", advice)
    slopes, predicted = _slopes(evidence, exact)
    told = (slopes.abs().amax(1) > 0) | (predicted.abs().amax(1) > 0)
    if not told.any():
        return Unknown("Gradients and finite differences are 0 at every image tried.", "See the check zero-gradients.")
    agreement = torch.cosine_similarity(slopes, predicted)[told]
    value = float(agreement.mean())
    meaning = (
        f"Along {DIRECTIONS} random directions the slopes that gradients predict and those that finite differences "
        f"measure have a cosine of {value:.3f} on {len(agreement)} images."
    )
    return fact(value, meaning, advice, cosines=agreement.tolist())


def _slopes(evidence: Evidence, exact: Tensor) -> tuple[Tensor, Tensor]:
    """Return slopes of the margin along random directions, measured and predicted, each (images, directions)."""
    batch = evidence.setup.select(slice(0, PROBED))
    length = probe_length(batch.x)
    measured, predicted = [], []
    for number in range(DIRECTIONS):
        noise = 2 * keyed_draws(batch.x, batch.indices, evidence.seed + number)[:, 1:].reshape(batch.x.shape) - 1
        step = noise * per_image(length / noise.flatten(1).norm(dim=1), noise)
        ahead, behind = (margin(logits_of(evidence.model, x), batch.labels) for x in (batch.x + step, batch.x - step))
        measured.append((ahead - behind) / 2)
        predicted.append(inner(step, exact))
    return torch.stack(measured, 1), torch.stack(predicted, 1)


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
def gradient_cosine(evidence: Evidence) -> Seen:
    """Gradients at an image, at noise round it and at its FGSM image point the same way."""
    batch = evidence.correct_sample
    noisy = evidence.threat.sample(batch.x, keyed_draws(batch.x, batch.indices, evidence.seed))
    clean = evidence.clean_gradients.gradient
    around = [evidence.gradients(batch._replace(x=noisy)).gradient, evidence.fgsm_gradients.gradient]
    cosines = [torch.cosine_similarity(clean.flatten(1), other.flatten(1)).nan_to_num() for other in around]
    by_noise, by_step = (float(cosine.mean()) for cosine in cosines)
    return mean(
        min(cosines, key=lambda cosine: float(cosine.mean())),
        f"The gradient has a cosine of {by_noise:.2f} with the one at a random point of the ball and of {by_step:.2f} "
        f"with the one at the FGSM image, means of {len(batch.x)} images.",
        "The loss bends within the ball: one gradient step says little; use many steps, restarts, black boxes.",
        worse=-1,
        random_point=by_noise,
        fgsm_image=by_step,
    )


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
        f"Noise of a tenth of the radius changes the margin by {100 * float(relative.mean()):.1f} % of its size, mean "
        f"of {len(relative)} images.",
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
    counts = "; PGD breaks {broken_as_they_are} images, with logits rescaled {broken_rescaled}"
    told = counts.format(**found) if found else ""
    return fact(
        judged,
        f"The two largest logits are {gap:.3g} apart on average" + told + ".",
        "Attack the margin or a scale-free loss, or rescale the logits first.",
        gap=gap,
        **found,
    )


COMPONENTS = named(gradient, zero_gradients, tiny_gradients, gradient_cosine, loss_stability, logit_scale)
