"""Do attacks that ask for no gradient of the model break what its gradients do not."""

import torch
from torch import Tensor

from planish.attacks import Attack
from planish.attacks.ascents import Smoothed
from planish.attacks.boundary import Boundary
from planish.attacks.closest import Closest
from planish.attacks.random_search import Noise, Square
from planish.attacks.transfer import Transfer
from planish.audit.check import Seen, Unknown, check, share
from planish.audit.evidence import Evidence
from planish.records.evaluation import Column

NOISE_STAGES, SQUARE_STAGES = ("noise",), ("random-search", "square")
CHECK_STAGE = "check"
"""The stage of the planish suite whose first part is noise, its second Square."""
NEARER = 0.95
NOTHING_ROBUST = "no robust image was left, so nothing is overstated"


@check((23,), warn_at=0.0, fail_at=0.1)
def random_noise(evidence: Evidence) -> Seen:
    """Random points of the ball break nothing that gradients missed."""
    by_suite = _broken_in_suite(evidence, NOISE_STAGES, part=0)
    return _blind(evidence, "noise", Noise(evidence.plan.noise), by_suite, len(evidence.images.x))


@check((24,), warn_at=0.0, fail_at=0.2)
def random_search(evidence: Evidence) -> Seen:
    """Square, which asks for logits alone, breaks nothing that gradients missed."""
    by_suite = _broken_in_suite(evidence, SQUARE_STAGES, part=1)
    return _blind(evidence, "square", Square(evidence.plan.queries), by_suite, evidence.plan.survivors)


def _blind(evidence: Evidence, name: str, attack: Attack, by_suite: Tensor, most: int) -> Seen:
    """Return what share of all images a black box broke, in the suite or now, while gradients had missed them."""
    rows = evidence.drawn(evidence.robust.nonzero().squeeze(1), most)
    found = torch.zeros_like(by_suite)
    found[rows] = evidence.broken_by(name, attack, rows)
    tried = f"{len(rows)} robust images were tried" if len(rows) else NOTHING_ROBUST
    return share(
        found | by_suite,
        len(found),
        f"{name.capitalize()} breaks {{of}} that gradients had not broken; {tried}.",
        "Gradients are masked: a search that knows nothing must not beat one that knows the gradient; the figure is "
        "too high, run a long black-box attack.",
        indices=evidence.ids(found | by_suite),
        tried=len(rows),
    )


def _broken_in_suite(evidence: Evidence, stages: tuple[str, ...], part: int) -> Tensor:
    """Return which images (N,) a black box broke in the suite, after gradients; none where it has no gradients."""
    record, device = evidence.judged.evaluation, evidence.correct.device
    found = torch.zeros_like(evidence.correct)
    if evidence.black_box:
        return found
    for column in record.columns:
        stage = column.name.removeprefix(f"{evidence.suite_name}/")
        broken = torch.from_numpy(record.broken_by(column.name)).to(device)
        if stage in stages:
            found |= broken
        elif stage == CHECK_STAGE:
            found |= broken & _by_part(column, part).to(device)
    return found


def _by_part(column: Column, part: int) -> Tensor:
    return torch.from_numpy(column.component == part)


@check((25,), warn_at=0.0, level="thorough", needs="gradients", correct="sampled")
def hard_labels(evidence: Evidence) -> Seen:
    """An attack that sees labels alone finds no image much nearer than gradients do."""
    rows = evidence.drawn(evidence.correct_rows, evidence.plan.walked)
    batch, ball = evidence.images.select(rows), evidence.threat.scaled(0.0)
    white, black = (
        attack.distances(evidence.model, batch, ball, generator=evidence.generator("hard-labels"))
        for attack in (Closest(evidence.plan.steps), Boundary(evidence.plan.walk))
    )
    nearer = black.distance < NEARER * white.distance
    within = nearer & (black.distance <= evidence.threat.radius)
    evidence.record("boundary", rows[within], black.x_adv[within])
    return share(
        nearer,
        len(rows),
        "The boundary attack finds {of} more than 5 % nearer than gradients do.",
        "Distances by gradients are too large for this model; measure them with boundary, and distrust its gradients.",
        white=_finite(white.distance),
        black=_finite(black.distance),
    )


@check((26,), warn_at=0.2, fail_at=1.0)
def transferred(evidence: Evidence) -> Seen | Unknown:
    """Images made on other models break nothing that the model's own gradients missed."""
    if not evidence.surrogates:
        return Unknown("No other model was given.", "Audit with --surrogates, for instance an undefended model.")
    attack = Transfer(evidence.plan.curve_steps, surrogates=tuple(evidence.surrogates))
    rows = evidence.robust.nonzero().squeeze(1)
    broken = evidence.broken_by("transfer", attack, rows)
    return share(
        broken,
        len(evidence.images.x),
        f"Images made on {len(evidence.surrogates)} other models break {{of}} that the suite left.",
        "The model's own gradients mislead: make adversarial images on other models too, and count them.",
        indices=evidence.ids(rows[broken]),
    )


@check((30,), fail_at=0.5, level="thorough", needs="graph")
def smoothed_gradient(evidence: Evidence) -> Seen:
    """Gradients averaged over noise break nothing that the plain ones missed."""
    rows = evidence.robust.nonzero().squeeze(1)
    broken = evidence.broken_by("smoothed", Smoothed(evidence.plan.steps), rows)
    return share(
        broken,
        len(evidence.images.x),
        "Gradients averaged over noise break {of} that the suite left.",
        "Plain gradients are masked by something rough; attack with smoothed gradients or a smooth backward pass.",
        indices=evidence.ids(rows[broken]),
    )


def _finite(values: Tensor) -> list[float | None]:
    return [float(value) if value.isfinite() else None for value in values]


COMPONENTS = {
    "noise": random_noise,
    "random-search": random_search,
    "hard-labels": hard_labels,
    "transfer": transferred,
    "smoothed-gradient": smoothed_gradient,
}
