"""The geometry of a model measured beside the checks, for the figures of an audit; it judges nothing."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from planish.attacks import searched
from planish.attacks.closest import Closest
from planish.audit.evidence import PGD_STEP, Evidence
from planish.audit.measures.affine import AFFINE
from planish.audit.measures.bounds import estimated_bounds, violations
from planish.audit.measures.certificates import linear_distance, relu_distance
from planish.audit.measures.linearity import local_linearity, one_step, random_point
from planish.audit.measures.surfaces import along_weights, filter_normalised, loss_plane, rademacher
from planish.core.arguments import logits_of
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.footprint import in_chunks
from planish.core.losses import cross_entropy, margin
from planish.core.modes import attacked, evaluating, full_precision
from planish.core.threat import Linf, ThreatModel
from planish.evaluation.distances import checked
from planish.models import Normalized
from planish.records import geometry as record
from planish.records.audit import Finding
from planish.records.geometry import REACH, Array, Geometry
from planish.search.ascent import highest
from planish.search.objectives import loss_of, objective_of
from planish.search.slopes import arithmetic
from planish.search.step_rules import Steepest

WITHOUT = (
    "local linearity, bounds, nearest images, accuracy by radius and by steps and restarts, and the weights' landscape"
    " are not shown"
)
AIMED = 2
"""Classes that the search of the nearest image goes toward."""
LANCZOS = 10
MOVES = 11
DIRECTIONS = 2
WEIGHT_STEPS = 10
STEPS = (1, 2, 5, 10, 20, 50, 100)
UNITS = 150
"""ReLUs of a network for which integer programs are tried."""
IMAGES = 8
SECONDS = 5.0
"""For each image; what is proven by then holds."""
BEYOND = 1.001
"""How much farther than the boundary, where two classes tie, the images lie that were found with a proof."""


class Proof(NamedTuple):
    """Certificates (N,): no image that is nearer is misclassified; NaN = not attempted. how: in words.

    x_adv: (N, ...) in the box, a little beyond the nearest images found with the proof; the image where there is none.
    """

    distance: Tensor
    how: str
    x_adv: Tensor


class AdversarialPairs(NamedTuple):
    """Images (Q,) by their rows, and what was made of them, (Q, ...): adversarial, or as near to it as attacks came."""

    rows: Tensor
    x_adv: Tensor


def geometry(evidence: Evidence, findings: Sequence[Finding]) -> Geometry:
    """Return what the plan grants; images that its searches break within the radius are entered in the evidence.

    findings: of the checks, for what they have measured already.
    """
    before, notes = evidence.passes, list[str]()
    seen = not evidence.black_box and evidence.has_gradients
    if not seen:
        why = "a black box has no gradients" if evidence.black_box else "no image has a gradient that is of any use"
        notes.append(f"{why}: {WITHOUT}")
    elif not len(evidence.correct_rows):
        notes.append("no image is classified correctly: nothing is measured round any")
    rows = evidence.drawn(evidence.correct_rows, evidence.plan.measured if seen else 0)
    batch, distance, measured = evidence.images.select(rows), _known(evidence), dict[str, Any]()
    if len(rows):
        measured = {"linearity": _linearity(evidence, batch, rows), "effort": _effort(evidence, batch, rows)}
        distance[rows] = torch.fmin(distance[rows], _nearest(evidence, batch, rows))
        proven = _proven(evidence, batch, rows, distance[rows], notes)
        wrong = margin(logits_of(evidence.model, proven.x_adv), batch.labels) >= 0
        away = torch.where(wrong, evidence.threat.norm(proven.x_adv - batch.x).float(), torch.nan)
        distance[rows] = torch.fmin(distance[rows], away)
        measured["bounds"] = _bounds(evidence, batch, distance[rows], proven, notes)
        measured["weights"] = _weights(evidence, batch, notes)
    pairs = _adversarial_pairs(evidence)
    measured |= {"by_radius": _by_radius(evidence, findings), "planes": _planes(evidence, pairs)}
    measured["pictures"] = _pictures(evidence, pairs, notes)
    passes = evidence.passes - before
    return Geometry(_array(distance), _array(rows), notes=tuple(notes), passes=passes, **measured)


def _known(evidence: Evidence) -> Tensor:
    """Return the distance of each image (N,) that the audit broke, 0 where it was wrong when clean, else NaN."""
    images = evidence.images
    away = evidence.threat.norm(evidence.judged.x_adv - images.x).float()
    distance = torch.where(evidence.correct, torch.where(evidence.suite_broken, away, torch.nan), 0.0)
    for row, x_adv in evidence.adversarial.items():
        own = evidence.threat.norm((x_adv - images.x[row])[None]).float()
        distance[row] = torch.fmin(distance[row], own[0])
    return distance


def _linearity(evidence: Evidence, batch: Batch, rows: Tensor) -> record.Linearity:
    """Return the errors; the gradient step's point lies in the ball, and so gamma is no smaller than its error."""
    steps = evidence.plan.steps
    ascent = partial(local_linearity, threat=evidence.threat, steps=steps, seed=evidence.seed)
    found = in_chunks(ascent, evidence.model, batch)
    evidence.record("linearity-error", rows, found.x_worst)
    step = in_chunks(partial(one_step, threat=evidence.threat), evidence.model, batch)
    return record.Linearity(_array(torch.maximum(found.gamma, step.error)), _array(step.error), steps)


def _effort(evidence: Evidence, batch: Batch, rows: Tensor) -> record.Effort:
    """Return what PGD leaves after each of the steps and restarts; its first start was traced already."""
    most = evidence.plan.curve_steps
    steps = [count for count in STEPS if count <= most]
    places = torch.searchsorted(evidence.correct_rows, rows)
    starts = [evidence.trace.margins[:, places]]
    for restart in range(1, evidence.plan.restarts):
        again = evidence.traced(batch, most, f"trace-{restart}")
        evidence.record("pgd-restarts", rows, again.x_adv)
        starts.append(again.margins)
    broken = torch.stack([torch.stack([(start[: count + 1] >= 0).any(0) for count in steps]) for start in starts])
    left = 1 - broken.int().cummax(0).values.float().mean(2)
    restarts = torch.arange(1, len(starts) + 1, device="cpu")
    return record.Effort(np.array(steps), _array(restarts), _array(left), len(rows))


def _nearest(evidence: Evidence, batch: Batch, rows: Tensor) -> Tensor:
    """Return the distance of the nearest misclassified image that is found for each, (n,), NaN = none."""
    attack, ball = Closest(evidence.plan.curve_steps, AIMED), replace(evidence.threat, radius=0.0)
    found = searched(attack, evidence.model, batch, ball, seed=evidence.seed)
    evidence.record("closest", rows, found.x_adv)
    distance, _ = checked(evidence.model, batch, ball, "closest", found, len(batch.x) + 1)
    return torch.where(distance.isfinite(), distance, torch.nan).float()


def _bounds(
    evidence: Evidence, batch: Batch, distance: Tensor, proven: Proof, notes: list[str]
) -> record.DistanceBounds | None:
    """Return L- and C-bounds; curvature by finite differences over the radius, which see what ReLUs do."""
    curved: dict[str, Any] = {"way": "finite-difference", "length": evidence.threat.radius or None, "steps": LANCZOS}
    try:
        found = estimated_bounds(evidence.model, batch, evidence.threat, seed=evidence.seed, **curved)
    except BadInput as error:
        notes.append(f"bounds are not shown: {error}")
        return None
    known = torch.where(distance.isnan(), torch.inf, distance)
    by_l, by_c = (violations(bound, known) for bound in (found.by_lipschitz, found.by_curvature))
    arrays = _array(found.by_lipschitz), _array(found.by_curvature)
    counts = by_l.refuted, by_c.refuted, by_l.compared
    constants = float(found.lipschitz), float(found.curvature)
    return record.DistanceBounds(*arrays, *constants, *counts, _array(proven.distance), proven.how)


def _proven(evidence: Evidence, batch: Batch, rows: Tensor, distance: Tensor, notes: list[str]) -> Proof:
    """Return certificates where the network is simple enough for any; images found with them count as broken."""
    nothing = Proof(torch.full_like(distance, torch.nan), "", batch.x)
    known = torch.where(distance.isnan(), torch.inf, distance)
    try:
        found = proof(evidence.given, batch, evidence.threat, known) or nothing
        evidence.record("proof", rows, found.x_adv)
        return found
    except BadInput as error:
        notes.append(f"no distance is proven: {error}")
        return nothing


def _by_radius(evidence: Evidence, findings: Sequence[Finding]) -> record.ByRadius | None:
    """Return what the check radius-curve measured, if it did, and the clean images at radius 0."""
    seen = next((finding.evidence for finding in findings if finding.check == "radius-curve"), {})
    if "multiples" not in seen:
        return None
    radii = np.array([0.0, *(evidence.threat.scaled(factor).radius for factor in seen["multiples"])], np.float32)
    robust = np.array([len(evidence.correct_rows), *seen["standing"]])
    return record.ByRadius(radii, robust, int(seen["images"]), evidence.plan.curve_steps)


def _adversarial_pairs(evidence: Evidence) -> AdversarialPairs:
    """Return a few broken and robust images, drawn by their indices, and what attacks made of them."""
    robust, most = evidence.robust & evidence.correct, evidence.plan.pictured
    broken = evidence.correct & ~robust
    rows = torch.cat([evidence.drawn(mask.nonzero().squeeze(1), most) for mask in (broken, robust)]).sort().values
    images = [_attacked(evidence, row) for row in rows.tolist()]
    return AdversarialPairs(rows, torch.stack(images) if images else evidence.images.x[:0])


def _attacked(evidence: Evidence, row: int) -> Tensor:
    """Return what broke an image; of a robust one, PGD's best iterate, or what the suite left."""
    if row in evidence.adversarial:
        return evidence.adversarial[row]
    place = (evidence.correct_rows == row).nonzero()
    if evidence.suite_robust[row] and len(place) and not evidence.black_box and evidence.has_gradients:
        return evidence.trace.x_adv[int(place)]
    return evidence.judged.x_adv[row]


def _planes(evidence: Evidence, pairs: AdversarialPairs) -> record.Planes | None:
    """Return the loss round one broken and one robust image, as far as attacks moved them."""
    moves = pairs.x_adv - evidence.images.x[pairs.rows]
    moved = evidence.threat.norm(moves) > 0
    robust = evidence.robust[pairs.rows]
    some = [int(mask.nonzero()[0]) for mask in (moved & ~robust, moved & robust) if mask.any()]
    if not some:
        return None
    chosen = torch.tensor(some, device=pairs.rows.device)
    batch, first = evidence.images.select(pairs.rows[chosen])._replace(logits=None), moves[chosen]
    second = rademacher(batch, evidence.threat, evidence.seed)
    shares = _spaced(REACH, evidence.plan.points)
    loss = loss_plane(evidence.model, batch, first, second, shares.tolist(), shares.tolist())
    lengths = [evidence.threat.norm(move).float().cpu()[:, None] * shares for move in (first, second)]
    return record.Planes(_array(pairs.rows[chosen]), *(_array(part) for part in (*lengths, loss.transpose(1, 2))))


def _pictures(evidence: Evidence, pairs: AdversarialPairs, notes: list[str]) -> record.Pictures | None:
    x = evidence.images.x[pairs.rows]
    if x.shape[1] not in (1, 3):
        notes.append(f"images of {x.shape[1]} channels are not shown: a page shows 1 or 3")
        return None
    if not len(x):
        return None
    predicted = (logits.argmax(1) for logits in (evidence.logits[pairs.rows], logits_of(evidence.model, pairs.x_adv)))
    return record.Pictures(*(_array(part) for part in (pairs.rows, x, pairs.x_adv, *predicted)))


def _weights(evidence: Evidence, batch: Batch, notes: list[str]) -> record.Weights | None:
    """Return the mean loss along a few directions in the weights (Li et al. 2018; Wu, Xia and Wang 2020)."""
    some = batch.select(slice(0, evidence.plan.moved))._replace(logits=None)
    if not len(some.x):
        return None
    directions = [filter_normalised(evidence.model, evidence.seed + one) for one in range(DIRECTIONS)]
    if not directions[0]:
        notes.append("the model has no weights to move: their landscape is not shown")
        return None
    shares = _spaced(1.0, MOVES)
    try:
        loss = partial(_moved_loss, evidence, some)
        lines = torch.stack([along_weights(evidence.model, way, shares.tolist(), loss) for way in directions])
    except RuntimeError as error:
        notes.append(f"the weights' landscape is not shown: {str(error).splitlines()[0]}")
        return None
    return record.Weights(_array(shares), _array(lines[:, 0]), _array(lines[:, 1]), len(some.x), WEIGHT_STEPS)


def _moved_loss(evidence: Evidence, batch: Batch, moved: nn.Module) -> Tensor:
    """Return the mean loss, clean and under PGD, of a model whose weights were moved: (2,)."""
    objective = objective_of(moved, loss_of(cross_entropy, batch.labels))
    start = random_point(batch, evidence.threat, evidence.seed)
    with attacked(moved), full_precision(batch.x):
        with torch.no_grad():
            clean, _ = objective(batch.x)
        worst = highest(objective, batch.x, evidence.threat, Steepest(PGD_STEP), WEIGHT_STEPS, start=start)
    return torch.stack([clean.mean(), worst.value.mean()]).cpu()


def _spaced(reach: float, points: int) -> Tensor:
    """Return so many numbers, an odd count, from -reach to reach, the middle one exactly 0."""
    half = points // 2
    return torch.arange(-half, half + 1, device="cpu") * (reach / half)


def _array(values: Tensor) -> Array:
    return (values.float() if values.is_floating_point() else values).cpu().numpy()


def proof(model: nn.Module, batch: Batch, threat: ThreatModel, found: Tensor) -> Proof | None:
    """Return certificates of the images' distances in the box; None for a network of other layers, or too large.

    Exact for affine networks; for a few images of a small ReLU network in Linf by integer programming within SECONDS
    each, which needs SciPy. found: (N,) distances of misclassified images that are known, inf = none. Raises BadInput.
    """
    units = relu_units(model, batch.x)
    if units is None:
        return None
    if units == 0:
        exact = linear_distance(model, batch, threat)
        return Proof(exact.distance, "exact: the network is affine", _beyond(exact.x_adv, batch.x, threat))
    if units > UNITS or not isinstance(threat, Linf):
        return None
    few, distance = batch.select(slice(0, IMAGES)), torch.full_like(found, torch.nan, dtype=torch.float64)
    far = Linf(threat.high - threat.low, threat.low, threat.high)
    solved = relu_distance(model, few, far, seconds=SECONDS, found=found[:IMAGES])
    distance[:IMAGES] = solved.lower
    how = f"integer programs of at most {SECONDS:g} s, {int(solved.proven.sum())} of {len(few.x)} finished and so exact"
    x_adv = torch.cat([_beyond(solved.x_adv, few.x, threat), batch.x[IMAGES:]])
    return Proof(distance, how, x_adv)


def _beyond(x_adv: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    return (x + BEYOND * (x_adv - x)).clamp(threat.low, threat.high).to(x.dtype)


def relu_units(model: nn.Module, x: Tensor) -> int | None:
    """Return how many ReLUs an image (1, ...) passes; None if other layers than affine ones and ReLU are met.

    None of a model in half precision too: proofs are of real numbers, and it rounds every one of its own.
    """
    if arithmetic(model, x) not in (torch.float32, torch.float64):
        return None
    leaves = [module for module in model.modules() if not any(module.children())]
    known = (*AFFINE, nn.ReLU), (nn.Sequential, Normalized)
    if not all(isinstance(module, known[any(module.children())]) for module in model.modules()):
        return None
    counts: list[int] = []
    with evaluating(model), ExitStack() as hooks, torch.no_grad():
        for module in leaves:
            if isinstance(module, nn.ReLU):
                hooks.enter_context(module.register_forward_hook(lambda _, __, out: counts.append(out[0].numel())))
        model(x[:1])
    return sum(counts)
