"""The geometry of a model measured beside the checks, for the figures of an audit; it judges nothing."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from planish.attacks import searched
from planish.attacks.closest import Closest
from planish.audit.evidence import PGD_STEP, Evidence
from planish.audit.measures.bounds import estimated_bounds, violations
from planish.audit.measures.chunks import in_chunks
from planish.audit.measures.highest import highest
from planish.audit.measures.linearity import local_linearity, one_step, random_point
from planish.audit.measures.surfaces import along_weights, filter_normalised, loss_plane, rademacher
from planish.audit.proof import Proof, proof
from planish.core.arguments import logits_of
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import cross_entropy, margin
from planish.core.modes import attacked, full_precision
from planish.evaluation.distances import checked
from planish.records.audit import Finding
from planish.records.geometry import (
    REACH,
    Array,
    ByRadius,
    DistanceBounds,
    Effort,
    Geometry,
    Linearity,
    Pictures,
    Planes,
    Weights,
)
from planish.search.objectives import loss_of, objective_of
from planish.search.step_rules import Steepest

BLIND = "a black box has no gradients"
FLAT = "no image has a gradient that is of any use"
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
        notes.append(f"{BLIND if evidence.black_box else FLAT}: {WITHOUT}")
    elif not len(evidence.correct_rows):
        notes.append("no image is classified correctly: nothing is measured round any")
    rows = evidence.drawn(evidence.correct_rows, evidence.plan.measured if seen else 0)
    measured = _searched(evidence, rows) if len(rows) else {}
    distance = _known(evidence)
    if len(rows):
        distance[rows] = torch.fmin(distance[rows], measured.pop("nearest"))
        proven = _proven(evidence, rows, distance[rows], notes)
        distance[rows] = torch.fmin(distance[rows], _reached(evidence, rows, proven.x_adv))
        measured |= _described(evidence, rows, distance[rows], proven, notes)
    pairs = _adversarial_pairs(evidence)
    return Geometry(
        distance.cpu().numpy(),
        rows.cpu().numpy(),
        by_radius=_by_radius(evidence, findings),
        planes=_planes(evidence, pairs),
        pictures=_pictures(evidence, pairs, notes),
        notes=tuple(notes),
        passes=evidence.passes - before,
        **measured,
    )


def _known(evidence: Evidence) -> Tensor:
    """Return the distance of each image (N,) that the audit broke, 0 where it was wrong when clean, else NaN."""
    images, record = evidence.images, evidence.judged.evaluation
    broken = torch.from_numpy(record.correct() & ~record.survivors()).to(evidence.correct.device)
    away = evidence.threat.norm(evidence.judged.x_adv - images.x).float()
    distance = torch.where(evidence.correct, torch.where(broken, away, torch.nan), 0.0)
    for row, x_adv in evidence.adversarial.items():
        own = evidence.threat.norm((x_adv - images.x[row])[None]).float()
        distance[row] = torch.fmin(distance[row], own[0])
    return distance


def _searched(evidence: Evidence, rows: Tensor) -> dict[str, Any]:
    """Return the parts that search round images, and with them may break some."""
    batch = evidence.images.select(rows)
    return {
        "linearity": _linearity(evidence, batch, rows),
        "effort": _effort(evidence, batch, rows),
        "nearest": _nearest(evidence, batch, rows),
    }


def _described(evidence: Evidence, rows: Tensor, distance: Tensor, proven: Proof, notes: list[str]) -> dict[str, Any]:
    """Return the parts that search for nothing."""
    batch = evidence.images.select(rows)
    return {"bounds": _bounds(evidence, batch, distance, proven, notes), "weights": _weights(evidence, batch, notes)}


def _linearity(evidence: Evidence, batch: Batch, rows: Tensor) -> Linearity:
    """Return the errors; the gradient step's point lies in the ball, and so gamma is no smaller than its error."""
    steps = evidence.plan.steps
    found = in_chunks(
        lambda part: local_linearity(evidence.model, part, evidence.threat, steps=steps, seed=evidence.seed), batch
    )
    evidence.record("linearity-error", rows, found.x_worst)
    step = in_chunks(lambda part: one_step(evidence.model, part, evidence.threat), batch)
    return Linearity(_array(torch.maximum(found.gamma, step.error)), _array(step.error), steps)


def _effort(evidence: Evidence, batch: Batch, rows: Tensor) -> Effort:
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
    return Effort(np.array(steps), _array(restarts), _array(left), len(rows))


def _reached(evidence: Evidence, rows: Tensor, x_adv: Tensor) -> Tensor:
    """Return how far away the images x_adv (n, ...) are that are misclassified, (n,), NaN = is not."""
    batch = evidence.images.select(rows)
    wrong = margin(logits_of(evidence.model, x_adv), batch.labels) >= 0
    return torch.where(wrong, evidence.threat.norm(x_adv - batch.x).float(), torch.nan)


def _nearest(evidence: Evidence, batch: Batch, rows: Tensor) -> Tensor:
    """Return the distance of the nearest misclassified image that is found for each, (n,), NaN = none."""
    attack, ball = Closest(evidence.plan.curve_steps, AIMED), replace(evidence.threat, radius=0.0)
    found = searched(attack, evidence.model, batch, ball, seed=evidence.seed)
    evidence.record("closest", rows, found.x_adv)
    distance, _ = checked(evidence.model, batch, ball, "closest", found, len(batch.x) + 1)
    return torch.where(distance.isfinite(), distance, torch.nan).float()


def _bounds(
    evidence: Evidence, batch: Batch, distance: Tensor, proven: Proof, notes: list[str]
) -> DistanceBounds | None:
    """Return L- and C-bounds; curvature by finite differences over the radius, which see what ReLUs do."""
    try:
        found = estimated_bounds(
            evidence.model,
            batch,
            evidence.threat,
            steps=LANCZOS,
            seed=evidence.seed,
            way="finite-difference",
            length=evidence.threat.radius or None,
        )
    except BadInput as error:
        notes.append(f"bounds are not shown: {error}")
        return None
    known = torch.where(distance.isnan(), torch.inf, distance)
    by_l, by_c = (violations(bound, known) for bound in (found.by_lipschitz, found.by_curvature))
    arrays = _array(found.by_lipschitz), _array(found.by_curvature)
    constants = float(found.lipschitz), float(found.curvature)
    refuted = by_l.refuted, by_c.refuted, by_l.compared
    return DistanceBounds(*arrays, *constants, *refuted, _array(proven.distance), proven.how)


def _proven(evidence: Evidence, rows: Tensor, distance: Tensor, notes: list[str]) -> Proof:
    """Return certificates where the network is simple enough for any; images found with them count as broken."""
    batch = evidence.images.select(rows)
    nothing = Proof(torch.full_like(distance, torch.nan), "", batch.x)
    known = torch.where(distance.isnan(), torch.inf, distance)
    try:
        found = proof(evidence.given, batch, evidence.threat, known) or nothing
        evidence.record("proof", rows, found.x_adv)
        return found
    except BadInput as error:
        notes.append(f"no distance is proven: {error}")
        return nothing


def _by_radius(evidence: Evidence, findings: Sequence[Finding]) -> ByRadius | None:
    """Return what the check radius-curve measured, if it did, and the clean images at radius 0."""
    seen = next((finding.evidence for finding in findings if finding.check == "radius-curve"), {})
    if "multiples" not in seen:
        return None
    radii = [0.0, *(evidence.threat.scaled(factor).radius for factor in seen["multiples"])]
    standing = [len(evidence.correct_rows), *seen["standing"]]
    return ByRadius(np.array(radii, np.float32), np.array(standing), int(seen["images"]), evidence.plan.curve_steps)


def _adversarial_pairs(evidence: Evidence) -> AdversarialPairs:
    """Return a few broken and robust images, drawn by their indices, and what attacks made of them."""
    robust, most = evidence.robust & evidence.correct, evidence.plan.pictured
    broken = evidence.correct & ~robust
    rows = torch.cat([evidence.drawn(mask.nonzero().squeeze(1), most) for mask in (broken, robust)]).sort().values
    return AdversarialPairs(
        rows, torch.stack([_attacked(evidence, row) for row in rows.tolist()]) if len(rows) else evidence.images.x[:0]
    )


def _attacked(evidence: Evidence, row: int) -> Tensor:
    """Return what broke an image; of a robust one, PGD's best iterate, or what the suite left."""
    if row in evidence.adversarial:
        return evidence.adversarial[row]
    place = (evidence.correct_rows == row).nonzero()
    robust = bool(evidence.suite_robust[row])
    if robust and len(place) and not evidence.black_box and evidence.has_gradients:
        return evidence.trace.x_adv[int(place)]
    return evidence.judged.x_adv[row]


def _planes(evidence: Evidence, pairs: AdversarialPairs) -> Planes | None:
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
    return Planes(_array(pairs.rows[chosen]), *(_array(part) for part in (*lengths, loss.transpose(1, 2))))


def _pictures(evidence: Evidence, pairs: AdversarialPairs, notes: list[str]) -> Pictures | None:
    x = evidence.images.x[pairs.rows]
    if x.shape[1] not in (1, 3):
        notes.append(f"images of {x.shape[1]} channels are not shown: a page shows 1 or 3")
        return None
    if not len(x):
        return None
    predicted = (evidence.logits[pairs.rows], logits_of(evidence.model, pairs.x_adv))
    return Pictures(
        _array(pairs.rows), _array(x), _array(pairs.x_adv), *(_array(logits.argmax(1)) for logits in predicted)
    )


def _weights(evidence: Evidence, batch: Batch, notes: list[str]) -> Weights | None:
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
    return Weights(_array(shares), _array(lines[:, 0]), _array(lines[:, 1]), len(some.x), WEIGHT_STEPS)


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
