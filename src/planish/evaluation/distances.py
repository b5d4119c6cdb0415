"""How far away the nearest adversarial image is: distance attacks on a test set."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from planish.attacks import DistanceAttack, searched
from planish.core.arguments import (
    Images,
    Labels,
    batch_of,
    distance_threat_of,
    logits_of,
    model_of,
    seed_of,
)
from planish.core.batch import Batch, ImageSet
from planish.core.errors import BadInput, Unlike, spelled
from planish.core.footprint import images_at_a_time
from planish.core.losses import margin
from planish.core.modes import Counted
from planish.core.threat import ThreatModel
from planish.core.words import another
from planish.evaluation.blocks import Judged
from planish.evaluation.guards import Again, Verdict, copied, stuck_facts
from planish.evaluation.naming import Attacks, distance_attacks
from planish.records.distances import SCHEMA_VERSION, DistanceColumn, Distances
from planish.records.origin import describe_attack, origin, same_attack, same_fact
from planish.search.ascent import Nearest

NEAR = {"Linf": 8 / 255, "L2": 0.5, "L1": 12.0, "L0": 24.0}
"""How far from an image a model's memory of it is looked for."""
FARTHER = (0.0, 1e-4, 1e-3, 1e-2)
"""By how much of its distance an image may be moved away where a fresh forward finds it on the wrong side."""


@spelled()
def minimum_distance(
    model: nn.Module,
    x: Images,
    labels: Labels = None,
    norm: str | ThreatModel = "Linf",
    attack: Attacks = "closest",
    *,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
) -> Distances:
    """Measure how far away the nearest adversarial image is that a distance attack finds.

    model, x, labels: as for `planish.evaluate`.
    norm: "Linf", "L2", "L1" or "L0"; a threat with a radius leaves an image alone once one within it is found.
    attack: names with commas, attack objects, a list or a dict of them; see `planish.list("attacks")`.
    Raises BadInput.
    """
    network = model_of(model)
    *_, last = measure(network, batch_of(x, labels, network), distance_threat_of(norm), attack, seed=seed, about=about)
    return last


def measure(
    model: nn.Module,
    images: ImageSet,
    threat: ThreatModel,
    attacks: Attacks,
    *,
    seed: int = 0,
    chunk: int | None = None,
    about: Mapping[str, Any] | None = None,
    earlier: Distances | None = None,
) -> Iterator[Distances]:
    """Yield the record after each attack. Each attacks every correct image; what it returns is judged afresh.

    threat: the norm and the box; with a radius above 0 an image is left alone once one within it is found. images and
    model as in `evaluate`. earlier: a record of the same model, data, norm and seed, whose attacks are not run again;
    one of another attack by the same name is refused.
    Raises BadInput at once for images, outputs, norms or an earlier record that do not fit.
    """
    counted, threat = Counted(model_of(model)), distance_threat_of(threat)
    copy = copied(counted.model)
    judged = Judged.begun(counted, images, None, threat, chunk)
    wanted = distance_attacks(attacks, judged.clean_logits.shape[1], norm=threat.name)
    if not wanted:
        raise BadInput('no attack is named; give one such as "closest"')
    record = _begun(counted, judged, threat, {**(about or {}), "seed": seed_of(seed)})
    if earlier is not None:
        record = _continued(record, earlier, wanted)
    left = {name: attack for name, attack in wanted.items() if name not in record.names}
    return _steps(counted, judged, threat, left, record, Again.begun(copy, judged), seed, chunk)


def _continued(fresh: Distances, earlier: Distances, wanted: Mapping[str, DistanceAttack]) -> Distances:
    for key in ("model", "data", "norm", "radius", "seed"):
        if not same_fact(key, earlier.meta, fresh.meta):
            raise Unlike(f"the earlier distances are of {another(key)}; choose another folder")
    classes = int(fresh.meta["model"]["classes"])
    for column in earlier.columns:
        known, attack = column.meta.get("attack"), wanted.get(column.name)
        if attack is not None and not same_attack(known, attack.assembled(classes), column.name):
            raise Unlike(f"the earlier distances are by another attack named '{column.name}'; choose another folder")
    return replace(earlier, meta={**earlier.meta, **fresh.meta})


def _steps(
    counted: Counted,
    images: Judged,
    threat: ThreatModel,
    left: Mapping[str, DistanceAttack],
    record: Distances,
    again: Again,
    seed: int,
    chunk: int | None,
) -> Iterator[Distances]:
    same = False
    if left:
        told = again.told_before(counted, images)
        record, same = replace(record, meta=told.entered(record.meta)), not told.warnings
    for place, (name, attack) in enumerate(left.items(), 1):
        own = attack.assembled(int(record.meta["model"]["classes"]))
        column = _measured(counted, images, threat, name, own, seed, chunk)
        record = replace(record, columns=(*record.columns, column))
        if place == len(left) and same:
            near = replace(threat, radius=NEAR.get(threat.name, 0.0))
            record = replace(record, meta=again.told_after(counted, images, near, seed).entered(record.meta))
        if place == len(left) and "shard" in record.meta:
            record = replace(record, meta={**record.meta, "shard": {**record.meta["shard"], "left": []}})
        yield record


def _begun(counted: Counted, images: Judged, threat: ThreatModel, about: dict[str, Any]) -> Distances:
    facts = {"schema_version": SCHEMA_VERSION, "norm": threat.name, "radius": threat.radius}
    meta = origin(counted.model, images.clean_logits, images.facts, about, **facts)
    clean = Verdict.from_logits(images.clean_logits[None], images.labels).margin.cpu().numpy()
    return Distances(images.indices.cpu().numpy(), images.labels.cpu().numpy(), clean, (), meta)


@torch.inference_mode(False)
def _measured(
    counted: Counted,
    images: Judged,
    threat: ThreatModel,
    name: str,
    attack: DistanceAttack,
    seed: int,
    chunk: int | None,
) -> DistanceColumn:
    correct = (margin(images.clean_logits, images.labels) < 0).nonzero().squeeze(1)
    forwards, backwards, began = counted.forwards, counted.backwards, time.perf_counter()
    whole = torch.zeros(len(images.labels), device=correct.device)
    passes, fragile, stuck = torch.zeros_like(images.labels), 0, list[Tensor]()
    for rows in images.blocks(correct):
        batch = images.select(rows)
        found = searched(attack, counted, batch, threat, seed=seed, chunk=chunk)
        distance, moved = checked(counted, batch, threat, name, found, chunk)
        whole[rows], passes[rows], fragile = distance.to(torch.float32), found.passes, fragile + moved
        stuck.append(rows[found.distance.isinf()])
    spent = {"forwards": counted.forwards - forwards, "backwards": counted.backwards - backwards}
    seconds = time.perf_counter() - began
    facts = {"attack": describe_attack(attack)}
    facts |= stuck_facts(attack, counted, map(images.select, images.blocks(torch.cat(stuck))), chunk)
    return DistanceColumn(
        name=name,
        distance=whole.cpu().numpy(),
        passes=passes.cpu().numpy(),
        fragile=fragile,
        **spent,
        seconds=seconds,
        meta=facts,
    )


def checked(
    model: nn.Module, batch: Batch, threat: ThreatModel, name: str, found: Nearest, chunk: int | None
) -> tuple[Tensor, int]:
    """Return the distances of what a fresh forward finds misclassified, inf for the rest, and how many were fragile.

    A bisected image lies so near the boundary that rounding, which depends on the batch, may put it on either side:
    it is moved away from the clean image by up to 1 % of its distance before it counts as not found, and its new
    distance is what counts. Raises RuntimeError if an image left the box: an attack that cheats is an error.
    """
    low, high = found.x_adv.flatten(1).amin(1), found.x_adv.flatten(1).amax(1)
    if not bool(((low >= threat.low) & (high <= threat.high)).all()):
        raise RuntimeError(f"{name} left the box [{threat.low:g}, {threat.high:g}]")
    open_, size = found.distance.isfinite(), max(1, images_at_a_time(model, batch.x, chunk) - 1)
    distance, fragile = torch.full_like(found.distance, torch.inf), 0
    for farther in FARTHER:
        rows = open_.nonzero().squeeze(1)
        x, labels = batch.x[rows], batch.labels[rows]
        x_adv = found.x_adv[rows] if farther == 0 else x + (1 + farther) * (found.x_adv[rows] - x)
        x_adv = x_adv.clamp(threat.low, threat.high)
        wrong = margin(logits_of(model, x_adv, size), labels) >= 0 if len(rows) else rows > 0
        distance[rows[wrong]] = threat.norm(x_adv - x)[wrong]
        open_[rows[wrong]] = False
        fragile = fragile or int(open_.sum())
    return distance, fragile
