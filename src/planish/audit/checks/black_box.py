"""Do attacks that ask for no gradient of the model break what its gradients do not."""

import torch
from torch import Tensor

from planish.attacks import Attack
from planish.attacks.ascents import Smoothed
from planish.attacks.boundary import Boundary
from planish.attacks.closest import Closest
from planish.attacks.random_search import Noise, Square
from planish.attacks.transfer import Transfer
from planish.audit.check import Seen, Unknown, check, named, share
from planish.audit.evidence import Evidence
from planish.core.words import number_of

NOISE_STAGES, SQUARE_STAGES = ("noise",), ("random-search", "square")
CHECK_STAGE = "check"
"""The stage of planish-suite whose first part is noise, its second Square."""
NEARER = 0.95


@check((23,), warn_at=0.0, fail_at=0.1)
def noise(evidence: Evidence) -> Seen:
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
    tried = (
        f"{len(rows)} robust images were tried" if len(rows) else "no robust image was left, so nothing is overstated"
    )
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
    record = evidence.judged.evaluation
    found = torch.zeros_like(evidence.correct)
    if evidence.black_box:
        return found
    for column in record.columns:
        stage = column.name.removeprefix(f"{evidence.suite_name}/")
        if stage in stages or stage == CHECK_STAGE:
            broken = record.broken_by(column.name)
            found |= evidence.mask(broken if stage in stages else broken & (column.component == part))
    return found


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
        return Unknown("No other model was given.", "Give other models as surrogates, for instance an undefended one.")
    others = number_of(len(evidence.surrogates), "other model")
    attack = Transfer(evidence.plan.curve_steps, surrogates=tuple(evidence.surrogates))
    return _left(
        evidence,
        "transfer",
        attack,
        f"Images made on {others} break {{of}} that the suite left.",
        "The model's own gradients mislead: make adversarial images on other models too, and count them.",
    )


@check((30,), fail_at=0.5, level="thorough", needs="graph")
def smoothed_gradient(evidence: Evidence) -> Seen:
    """Gradients averaged over noise break nothing that the plain ones missed."""
    return _left(
        evidence,
        "smoothed",
        Smoothed(evidence.plan.steps),
        "Gradients averaged over noise break {of} that the suite left.",
        "Plain gradients are masked by something rough; attack with smoothed gradients or a smooth backward pass.",
    )


def _finite(values: Tensor) -> list[float | None]:
    return [float(value) if value.isfinite() else None for value in values]


def _left(evidence: Evidence, name: str, attack: Attack, meaning: str, advice: str) -> Seen:
    """Return what share of all images an attack breaks that were robust until now."""
    rows = evidence.robust.nonzero().squeeze(1)
    broken = evidence.broken_by(name, attack, rows)
    return share(broken, len(evidence.images.x), meaning, advice, indices=evidence.ids(rows[broken]))


COMPONENTS = named(noise, random_search, hard_labels, smoothed_gradient) | {"transfer": transferred}
