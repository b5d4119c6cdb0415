"""What an attack is, how it is called on images, and how attacks are combined and run: `Worst` alone combines them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn

from planish.core.arguments import (
    Images,
    Labels,
    distance_threat_of,
    judged_batch,
    logits_of,
    model_of,
    seed_of,
    threat_of,
)
from planish.core.batch import Batch
from planish.core.errors import spelled
from planish.core.footprint import images_at_a_time
from planish.core.losses import margin
from planish.core.modes import Counted, Precision, Spent, attacked, autocast
from planish.core.randomness import drawn_seed, seeded
from planish.core.threat import Linf, ThreatModel
from planish.search.ascent import (
    Adversarials,
    AttackResult,
    DistanceResult,
    Nearest,
    Score,
    enter,
    evaluated,
    owned,
    with_logits,
)
from planish.search.objectives import Objective, loss_of, nearest_classes, objective_of

Report = Callable[[int, int], None]
"""Told after each chunk: how many images are broken so far, and how many searches of one image are left at most."""
CLOSE = 2.0**-7
"""A score this near to 0, relative to the largest logit, may be bfloat16's rounding: two units in its last place."""


class Attack(ABC):
    """A frozen dataclass of hyper-parameters. Every image is attacked alone: a batch is the same as its halves.

    The model's parameters, gradients, buffers and modes and the global random state stay as they are; the noise of an
    image depends on the generator's next draw and on the image's index, never on its neighbours.
    """

    @abstractmethod
    def search(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Adversarials:
        """Return the best adversarial image of each, never worse than the clean one. batch.logits are used if given."""

    def objective(self, model: nn.Module, batch: Batch) -> Objective | None:
        """Return what the attack climbs for a batch with its clean logits; None if it asks for no gradient, as here."""
        return None

    def goal(self, batch: Batch) -> tuple[Score, Tensor]:
        """Return the score and the targets (N,), -1 = none, for a batch with its clean logits: here the margin."""
        labels = batch.labels
        return lambda logits: margin(logits, labels), torch.full_like(labels, -1)

    def assembled(self, classes: int) -> "Attack":
        """Return the attack as it is run against so many classes: attacks of others as their parts."""
        return self

    @torch.inference_mode(False)
    @spelled(threat=Linf, x=Batch)
    def __call__(
        self,
        model: nn.Module,
        x: Images,
        labels: Labels = None,
        threat: ThreatModel | str | None = None,
        *,
        seed: int = 0,
    ) -> AttackResult:
        """Attack the images.

        model: maps images in [0, 1] to logits; it is judged in evaluation mode and stays as it is.
        x: (N, C, H, W) in [0, 1], a tensor or a NumPy array; or, with labels None, what holds both: a Batch, a pair
        (x, labels), a Dataset or a DataLoader of pairs. labels: (N,) whole numbers from 0 to K - 1.
        threat: such as planish.Linf("8/255"), the text "Linf:8/255", or a pair ("Linf", radii), of images or pixels.
        seed: of the attack's random numbers. Raises BadInput.
        """
        threat, generator, network = threat_of(threat, own_radii=True), seeded(seed_of(seed)), Counted(model_of(model))
        batch = judged_batch(network, x, labels, threat)
        found = run(self, network, batch, threat.among(batch.indices), generator=generator)
        logits = logits_of(network, found.x_adv)
        score, _ = self.assembled(logits.shape[1]).goal(batch)
        return AttackResult(found.x_adv, score(logits) >= 0, margin(logits, batch.labels), found.passes)


class DistanceAttack(ABC):
    """Searches for the nearest adversarial image instead of one in a ball; in all else like an `Attack`."""

    @abstractmethod
    def distances(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Nearest:
        """Return the nearest adversarial image found for each.

        threat: its norm and its box; an image is left alone once one within threat.radius is found, so that with radius
        0 all are searched to the end. batch.logits are used if given. Raises BadInput for a norm it does not know.
        """

    def objective(self, model: nn.Module, batch: Batch) -> Objective | None:
        """Return what the attack climbs, here the margin; None if it asks for no gradient."""
        return objective_of(model, loss_of(margin, batch.labels))

    def assembled(self, classes: int) -> "DistanceAttack":
        """Return the attack as it is run against so many classes."""
        return self

    @torch.inference_mode(False)
    @spelled(threat=Linf, x=Batch)
    def __call__(
        self,
        model: nn.Module,
        x: Images,
        labels: Labels = None,
        threat: ThreatModel | str | None = None,
        *,
        seed: int = 0,
    ) -> DistanceResult:
        """Search the nearest adversarial image of each.

        threat: "Linf" or "L2" searches to the end; one with a radius, such as "L2:0.5", leaves an image alone once an
        adversarial one within the radius is found; none with levels. The rest as for an `Attack`. Raises BadInput.
        """
        threat, seed, network = distance_threat_of(threat), seed_of(seed), Counted(model_of(model))
        batch = judged_batch(network, x, labels, threat)
        found = searched(self, network, batch, threat, seed=seed)
        reach = threat.radius if threat.radius > 0 else torch.finfo(found.distance.dtype).max
        return DistanceResult(found.x_adv, found.distance, found.distance <= reach, found.passes)


@dataclass(frozen=True)
class Within(Attack):
    """A distance attack as an attack in a ball: it succeeds where it finds an image within the radius.

    It measures all pixels alike: with a radius for each it counts what it finds where that is in the ball.
    """

    attack: DistanceAttack

    def assembled(self, classes: int) -> "Within":
        return Within(self.attack.assembled(classes))

    def objective(self, model: nn.Module, batch: Batch) -> Objective | None:
        return self.attack.objective(model, batch)

    def search(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Adversarials:
        """Return what was found within the radius, and the clean image of the rest."""
        with attacked(model):
            batch = with_logits(model, batch)
            best = untouched(self, batch)
            found = self.attack.distances(model, batch, threat.plain, generator=generator)
            best.passes.add_(found.passes)
            x_adv = threat.presented(found.x_adv, batch.x)
            within = threat.feasible(x_adv, batch.x) & found.distance.isfinite() & (best.score < 0)
            rows = within.nonzero().squeeze(1)
            if len(rows):
                with torch.no_grad():
                    score = margin(model(x_adv[rows]), batch.labels[rows])
                best.passes[rows] += 1
                hit, score = rows[score > best.score[rows]], score[score > best.score[rows]]
                best.x_adv[hit], best.score[hit] = x_adv[hit], score.to(best.score.dtype)
                best.component[hit], best.step[hit] = 0, found.step[hit]
        return best


@dataclass(frozen=True)
class Worst(Attack):
    """Each attack on the images that the ones before it have not broken; the largest score of each image is kept.

    Restarts, targets and whole suites are this one thing. All attacks must have the same goal.
    """

    attacks: tuple[Attack, ...]

    def assembled(self, classes: int) -> "Worst":
        return Worst(tuple(attack.assembled(classes) for attack in self.attacks))

    def search(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Adversarials:
        return run(self, model, batch, threat, generator=generator)

    def goal(self, batch: Batch) -> tuple[Score, Tensor]:
        return self.attacks[0].goal(batch)


class Recipe(Attack):
    """An attack that is made of others: a published name for what `parts` returns."""

    @abstractmethod
    def parts(self, classes: int) -> Attack:
        """Return the attack that this is, against so many classes."""

    def assembled(self, classes: int) -> Attack:
        return self.parts(classes).assembled(classes)

    def search(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Adversarials:
        with attacked(model):
            batch = with_logits(model, batch)
            return self.assembled(batch.clean_logits.shape[1]).search(model, batch, threat, generator=generator)

    def goal(self, batch: Batch) -> tuple[Score, Tensor]:
        return self.assembled(batch.clean_logits.shape[1]).goal(batch)


@dataclass(frozen=True)
class ByDistance(Attack):
    """Not an attack but a stage of one: the targets of what follows come in order of their linearised distance.

    Melamed, Yehudai, Shamir: MALT powers up adversarial attacks (2024). candidates: at most so many classes, those of
    the largest clean logits, are looked at: one backward each, and one forward.
    """

    candidates: int = 20

    def search(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Adversarials:
        """Return the clean images: it moves none."""
        return untouched(self, with_logits(model, batch))


@dataclass(frozen=True)
class Progress:
    """How far a run has come: the best so far, which component is at work, how many of its images it has visited.

    order: (N, R) the classes by distance as the batch has them. spent: what all of it has cost, where whoever keeps it
    counts that.
    """

    best: Adversarials
    component: int = 0
    visited: int = 0
    order: Tensor | None = None
    spent: Spent = field(default_factory=Spent)


def components_of(attack: Attack) -> Iterator[Attack]:
    """Yield the attacks that a nested `Worst` holds, in order; any other attack is its own component."""
    if isinstance(attack, Worst):
        for part in attack.attacks:
            yield from components_of(part)
    else:
        yield attack


def flat_images(attack: Attack | DistanceAttack, model: nn.Module, batch: Batch) -> Tensor | None:
    """Return for which clean images (N,) the gradient of all that an attack climbs is exactly 0.

    None if it asks for no gradient. batch: with clean logits. Parts of a kind are asked once: a forward and a backward.
    """
    parts = components_of(attack) if isinstance(attack, Attack) else [attack]
    kinds = {(type(part), str(getattr(part, "loss", ""))): part for part in parts}
    with attacked(model):
        climbed = [part.objective(model, batch) for part in kinds.values()]
        flat = [(evaluated(one, batch.x)[2] == 0).flatten(1).all(1) for one in climbed if one is not None]
    return torch.stack(flat).all(0) if flat else None


def untouched(attack: Attack, batch: Batch) -> Adversarials:
    """Return the clean images as what an attack begins with, from the batch's clean logits: copies of its own."""
    score, target = attack.goal(batch)
    judged, none = score(batch.clean_logits).clone(), torch.full_like(batch.labels, -1)
    return Adversarials(batch.x.detach().clone(), judged, target.clone(), none, none + 1, none + 1)


def run(
    attack: Attack,
    model: nn.Module,
    batch: Batch,
    threat: ThreatModel,
    *,
    generator: Generator,
    chunk: int | None = None,
    precision: Precision = "float32",
    report: Report | None = None,
    earlier: Progress | None = None,
    keep: Callable[[Progress], None] | None = None,
) -> Adversarials:
    """Attack a batch of any size in chunks, component by component, survivors refilled into full chunks before each.

    Images whose goal is reached, already at the clean image, or whose radius is 0, are not attacked. The outcome does
    not depend on `chunk`.
    precision: "bf16" searches under autocast and scores what was found in float32 before anything is decided; images
    on which rounding may have decided are searched again in float32.
    keep: told after each chunk how far it has come; earlier: that, to go on from there with the same outcome.
    """
    with attacked(model):
        batch = with_logits(model, batch, chunk)
        chunk = images_at_a_time(model, batch.x, chunk)
        attack = attack.assembled(batch.clean_logits.shape[1])
        progress = earlier or Progress(untouched(attack, batch), order=batch.order)
        best, components, batch = progress.best, tuple(components_of(attack)), batch._replace(order=progress.order)
        moves = threat.of(batch.indices).moves(len(batch.labels)).to(batch.x.device)
        for number, component in enumerate(components):
            seed = drawn_seed(generator)
            if number < progress.component:
                continue
            rows = (moves & ((best.score < 0) | (best.component == number))).nonzero().squeeze(1)
            if isinstance(component, ByDistance):
                batch = _ordered(model, batch, threat, rows, best, component, chunk)
                continue
            for start in range(progress.visited if number == progress.component else 0, len(rows), chunk):
                part = rows[start : start + chunk]
                some = batch if len(part) == len(batch.x) else batch.select(part)
                with autocast(batch.x, precision):
                    found = component.search(model, some, threat.of(some.indices), generator=seeded(seed))
                if precision != "float32":
                    found = _settled(found, component, model, some, threat.of(some.indices), seed)
                enter(best, part, found, number)
                if report is not None:
                    robust, later = int((best.score < 0).sum()), len(components) - number - 1
                    report(len(best.score) - robust, len(rows) - start - len(part) + later * robust)
                if keep is not None:
                    keep(Progress(best, number, start + len(part), batch.order))
    return best


def searched(
    attack: DistanceAttack,
    model: nn.Module,
    batch: Batch,
    threat: ThreatModel,
    *,
    seed: int = 0,
    chunk: int | None = None,
) -> Nearest:
    """Run a distance attack on a batch of any size in chunks. The outcome does not depend on `chunk`."""
    noise, chunk = drawn_seed(seeded(seed)), images_at_a_time(model, batch.x, chunk)
    with attacked(model):
        parts = [
            attack.distances(model, batch.select(slice(at, at + chunk)), threat, generator=seeded(noise))
            for at in range(0, max(len(batch.x), 1), chunk)
        ]
    return Nearest(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _ordered(
    model: nn.Module,
    batch: Batch,
    threat: ThreatModel,
    standing: Tensor,
    best: Adversarials,
    component: ByDistance,
    chunk: int,
) -> Batch:
    """Return the batch with the targets of the rows that still stand in order of distance, and count the passes."""
    count = min(component.candidates, batch.clean_logits.shape[1] - 1)
    order = batch.labels.new_full((len(batch.x), count), -1)
    for rows in torch.split(standing, chunk) if len(standing) else ():
        some = batch.select(rows)
        order[rows] = nearest_classes(model, some, threat.of(some.indices), count).classes
        best.passes[rows] += 1 + count
    return batch._replace(order=order)


def _settled(
    found: Adversarials, component: Attack, model: nn.Module, batch: Batch, threat: ThreatModel, seed: int
) -> Adversarials:
    """Return what a fast search found with its score in float32, and close calls as a search in float32 has them.

    A fast search ends at what it takes for a success, and looks past what it takes for a failure.
    """
    score, _ = component.goal(batch)
    with torch.no_grad():
        logits = model(found.x_adv)
    exact = score(logits).to(found.score.dtype)
    doubtful = (exact < 0) & ((found.score >= 0) | (exact > -CLOSE * logits.abs().amax(1)))
    found = found._replace(score=exact, passes=found.passes + 1)
    rows = doubtful.nonzero().squeeze(1)
    if len(rows):
        found = owned(found)
        again = component.search(model, batch.select(rows), threat.select(rows), generator=seeded(seed))
        enter(found, rows, again, 0)
    return found
