"""An attack at work on a test set, block by block; what it finds is judged again by a fresh float32 forward."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn

from planish.attacks import Progress, run
from planish.attacks.suites import Stage
from planish.core.batch import Batch
from planish.core.footprint import at_a_time, images_at_a_time
from planish.core.modes import Counted, Precision, Spending, Spent
from planish.core.randomness import keyed_draws, seeded
from planish.core.threat import ThreatModel
from planish.core.words import number_of, radius_text
from planish.evaluation.blocks import Block, Faced, Judged
from planish.evaluation.guards import Averaged, Verdict, stuck_facts
from planish.evaluation.stages import ImageShare, sloped
from planish.records.evaluation import Evaluation
from planish.records.origin import describe_attack
from planish.registry import called_once
from planish.search.ascent import Adversarials
from planish.search.slopes import slopes

DIRECTIONS = 32
"""Of each image whose slopes are measured."""


class Update(NamedTuple):
    """How an evaluation stands after a chunk: the attack's name; of how many images how many were wrong from the start
    and how many are broken so far; how many searches of one image the attack has left at most, each of its starts and
    targets being one; and single-image passes spent so far."""

    attack: str
    images: int
    wrong: int
    broken: int
    left: int
    passes: int


OnChunk = Callable[[Update], None]
OnBlock = Callable[[Block], None]


class Unfinished(Protocol):
    """Keeps the progress of a column that is at work, so that a killed evaluation goes on from its last chunk."""

    def load(self, key: str, device: torch.device) -> Progress | None:
        """Return what was kept last under this key, if that is what was kept last."""
        ...

    def keep(self, key: str, progress: Progress) -> None:
        """Keep the progress, in place of any other."""
        ...

    def finished(self, key: str) -> tuple[Faced, Spent] | None:
        """Return what `finish` kept last, if that was under this key."""
        ...

    def finish(self, key: str, faced: Faced, spent: Spent) -> None:
        """Keep what came to the images of the blocks that are done, and what that has cost."""
        ...


@dataclass(frozen=True)
class Search:
    """How attacks are run: images at a time, arithmetic of the search, draws; who is told of progress, who keeps it.

    share: which part of a test set the images are, where they are not all of it. on_block: told of each block of
    images that an attack is done with.
    """

    chunk: int | None = None
    precision: Precision = "float32"
    draws: int = 1
    on_chunk: OnChunk | None = None
    unfinished: Unfinished | None = None
    share: ImageShare | None = None
    on_block: OnBlock | None = None


@dataclass(frozen=True)
class AtWork:
    """An attack at work on a test set; spending: what it costs."""

    counted: Counted
    images: Judged
    threat: ThreatModel
    stage: Stage
    evaluation: Evaluation
    search: Search
    spending: Spending

    def finished(self) -> Faced | None:
        """Return what came to the blocks that a killed run was done with, None without any, and count on from there."""
        kept = None if self.search.unfinished is None else self.search.unfinished.finished(self.key())
        if kept is None:
            return None
        faced, spent = kept
        self.spending.take_up(spent)
        return faced

    def finish(self, faced: Faced) -> None:
        """Keep what came to the blocks that are done."""
        if self.search.unfinished is not None:
            self.search.unfinished.finish(self.key(), faced, self.spending.so_far())

    def block(self, rows: Tensor, before: Faced | None, count: int) -> tuple[Faced, Block]:
        """Attack these images, after those before, of `count` in all. Return what came of it, and those that stood."""
        search, batch, done = self.search, self.images.select(rows), 0 if before is None else len(before.margin)
        broken = 0 if before is None else int((before.margin >= 0).sum())
        threat, (model, chunk) = self.threat.of(batch.indices), self._asked(batch.x)
        with at_a_time(chunk):
            found = run(
                self.stage.attack,
                model,
                batch,
                threat,
                generator=_generator(self.evaluation, self.stage.drawn_as or self.stage.name),
                chunk=chunk,
                precision=search.precision,
                report=search.on_chunk and partial(self._update, search.on_chunk, broken, count - done - len(rows)),
                **self._kept(f"{self.key()} {done} {len(rows)}", batch.x.device),
            )
        verdict = verified(self.counted, batch, found, threat, self.stage.name, search.chunk, search.draws)
        known = (self.evaluation.survivors(), self.evaluation.clean_predicted)
        standing, clean = (torch.from_numpy(values).to(rows.device)[rows] for values in known)
        faced = Faced.of(verdict, found, threat.norm(found.x_adv - batch.x))
        left = Block(rows, batch, found.x_adv, verdict.margin >= 0, verdict.predicted, clean)
        return faced, left if bool(standing.all()) else left.select(standing)

    def _asked(self, x: Tensor) -> tuple[nn.Module, int | None]:
        """Return the model that is attacked, and how many images go through it: the graphs of all draws are kept."""
        search = self.search
        if search.draws == 1:
            return self.counted, search.chunk
        return Averaged(self.counted, search.draws), images_at_a_time(self.counted, x, search.chunk, search.draws)

    def _update(self, on_chunk: OnChunk, before: int, later: int, broken: int, left: int) -> None:
        """Tell how the whole evaluation stands. before: images broken in other blocks. later: images in later ones."""
        correct, standing = int(self.evaluation.correct().sum()), int(self.evaluation.survivors().sum())
        images, passes = len(self.evaluation.labels), self.counted.forwards + self.counted.backwards
        broken += correct - standing + before
        on_chunk(Update(self.stage.name, images, images - correct, broken, left + later, passes))

    def _kept(self, key: str, device: torch.device) -> dict[str, Any]:
        """Return the arguments of `run` that keep a block's progress and take it up again, with what it has cost."""
        if (unfinished := self.search.unfinished) is None:
            return {}
        if (earlier := unfinished.load(key, device)) is not None:
            self.spending.take_up(earlier.spent)

        def keep(progress: Progress) -> None:
            unfinished.keep(key, replace(progress, spent=self.spending.so_far()))

        return {"earlier": earlier, "keep": keep}

    def key(self) -> str:
        """Say what is at work."""
        facts = [self.evaluation.meta[key] for key in ("model", "data", "threat", "seed")]
        attack = describe_attack(self.stage.attack)
        text = repr([facts, self.stage.name, attack, self.evaluation.names, self.search.precision])
        return hashlib.sha256(text.encode()).hexdigest()

    def facts(self, rows: Tensor, faced: Faced) -> dict[str, Any]:
        """Return the meta of a column: the attack, how it was run, and the images on which it came to nothing."""
        stage, search = self.stage, self.search
        facts: dict[str, Any] = {"attack": describe_attack(stage.attack), "precision": search.precision}
        if stage.chooses:
            facts["sampled"] = True
        if stage.because:
            facts["because"] = list(stage.because)
        if stage.bound is not None:
            facts["bound"] = stage.bound
        if bool(faced.exact.any()):
            facts["float64"] = self.images.indices[rows[faced.exact.to(rows.device)]].tolist()
        if search.draws > 1:
            indices = self.images.indices[rows].tolist()
            facts["eot"] = {"draws": search.draws, "indices": indices, "wrong": faced.wrong.tolist()}
        if stage.slopes and search.draws == 1:
            facts["slopes"] = self._slopes()
        stuck = rows[((faced.margin < 0) & (faced.step <= 0) & (faced.passes > 0)).to(rows.device)]
        batches = map(self.images.select, self.images.blocks(stuck))
        return facts | stuck_facts(stage.attack, self.counted, batches, search.chunk)

    def _slopes(self) -> dict[str, Any]:
        """Return how far logits change as gradients say: at some clean images, and at a random point of each ball."""
        rows = sloped(self.evaluation, self.stage, self.search.share).to(self.images.labels.device)
        batch, seed, chunk = self.images.select(rows), self.evaluation.meta["seed"], self.search.chunk
        batch = batch.select(self.threat.of(batch.indices).moves(len(rows)).to(rows.device))
        noisy = self.threat.of(batch.indices).sample(batch.x, keyed_draws(batch.x, batch.indices, seed))
        places = {"clean": batch, "noisy": batch._replace(x=noisy)} if len(batch.x) else {}
        found = {name: slopes(self.counted, at, self.threat, seed, DIRECTIONS, chunk) for name, at in places.items()}
        return {"indices": batch.indices.tolist(), "clean": [], "noisy": [], **found}


def _generator(evaluation: Evaluation, name: str) -> Generator:
    """Return a generator that depends on the seed and the attack's first name, not on the attacks before it."""
    first = called_once("suites", name)
    return seeded(evaluation.meta["seed"], int.from_bytes(hashlib.sha256(first.encode()).digest()[:6]))


def verified(
    model: nn.Module, batch: Batch, found: Adversarials, threat: ThreatModel, name: str, chunk: int | None, draws: int
) -> Verdict:
    """Judge what an attack returned by fresh forwards, in batches cut otherwise than the attack's.

    Raises RuntimeError if an image lies outside the ball or the box: an attack that cheats is an error, never clipped.
    """
    feasible = threat.feasible(found.x_adv, batch.x)
    if not bool(feasible.all()):
        worst = float(threat.norm(found.x_adv - batch.x).max())
        raise RuntimeError(
            f"{name} left the {threat.name} ball of radius {radius_text(threat.radius)} or the box on "
            f"{number_of(int((~feasible).sum()))} (largest distance {worst:g})"
        )
    return Verdict.of(model, found.x_adv, batch.labels, max(1, images_at_a_time(model, batch.x, chunk) - 1), draws)
