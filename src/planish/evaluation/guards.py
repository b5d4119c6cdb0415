"""Guards: some images are asked again, of models that do not answer the same twice; and many draws judge those."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from planish.attacks import Attack, DistanceAttack, Within, flat_images
from planish.attacks.ascents import Untargeted
from planish.core.arguments import logits_of
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.footprint import images_at_a_time
from planish.core.losses import margin
from planish.core.modes import Counted, dtype_of
from planish.core.randomness import keyed_draws
from planish.core.threat import ThreatModel
from planish.core.words import number_of
from planish.evaluation.exact import exact_logits
from planish.records.statistics import Estimate
from planish.search.step_rules import Steepest

if TYPE_CHECKING:
    from planish.evaluation.blocks import Judged

ONE_IN, MOST = 64, 64
"""One image of so many is asked again, two at least and so many at most: five forwards each."""


class Averaged(nn.Module):
    """A random model's mean logits over so many draws; gradients are those of the mean (EOT, Athalye et al. 2018)."""

    def __init__(self, model: nn.Module, draws: int) -> None:
        super().__init__()
        self.model, self.draws = model, draws

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean logits, (N, K)."""
        return torch.stack([self.model(x) for _ in range(self.draws)]).mean(0)


def draws_of(eot: object) -> int:
    """Return how many draws judge an image. Raises BadInput: 1, or as many as can show that an image is robust."""
    if not isinstance(eot, int | np.integer) or isinstance(eot, bool) or not (eot == 1 or eot >= 4):
        raise BadInput(f"eot must be 1, or at least 4 draws to tell a robust image from a broken one, got {eot!r}")
    return int(eot)


class Verdict(NamedTuple):
    """What fresh forwards say of images: margin (N,), 0 or more iff broken; predicted (N,); wrong (N,) of the draws.

    exact: (N,) which were so near to 0 that a float64 forward decided.
    """

    margin: Tensor
    predicted: Tensor
    wrong: Tensor
    exact: Tensor

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, labels: Tensor, chunk: int | None, draws: int = 1) -> Self:
        """Judge images by so many fresh forwards each.

        An image is broken unless the 95 % interval of its share of wrong draws (Wilson) lies below one half; its margin
        is the draws' smallest of those that together would break it. A single draw's margins near 0 are decided in
        float64.
        """
        if draws > 1:
            return cls.from_logits(torch.stack([logits_of(model, x, chunk) for _ in range(draws)]), labels)
        logits, exact = exact_logits(model, x, labels, logits_of(model, x, chunk))
        return cls.from_logits(logits[None], labels)._replace(exact=exact)

    @classmethod
    def from_logits(cls, logits: Tensor, labels: Tensor) -> Self:
        """Judge images by the logits of their draws, (draws, N, K)."""
        margins = torch.stack([margin(drawn, labels) for drawn in logits]).sort(0, descending=True).values
        verdict = _narrowed(margins[_breaking(len(logits)) - 1])
        exact = torch.zeros_like(labels, dtype=torch.bool)
        return cls(verdict, logits.argmax(2).mode(0).values, (margins >= 0).sum(0), exact)


def _breaking(draws: int) -> int:
    """Return how many wrong draws break an image."""
    return next(wrong for wrong in range(1, draws + 1) if draws == 1 or Estimate.from_counts(wrong, draws).high >= 0.5)


def _narrowed(margins: Tensor) -> Tensor:
    """Return margins in float32; what is negative stays so."""
    narrow = margins.to(torch.float32)
    return torch.where((margins < 0) & (narrow == 0), -torch.finfo(torch.float32).tiny, narrow)


class Told(NamedTuple):
    """What some images that were asked again have shown, in sentences, and the single-image forwards that it cost."""

    warnings: list[str]
    forwards: int

    def entered(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        """Return a record's meta with the warnings and the forwards added to its own."""
        warnings = list(dict.fromkeys([*meta.get("warnings", []), *self.warnings]))
        before = meta.get("guards", {}).get("forwards", 0)
        return {**meta, "warnings": warnings, "guards": {"forwards": self.forwards + before}}


@dataclass(frozen=True)
class Again:
    """What is kept from before the attacks: a copy of the model, and some images (rows) with their logits."""

    copy: nn.Module | None
    rows: Tensor
    logits: Tensor

    @classmethod
    def begun(cls, copy: nn.Module | None, images: "Judged") -> Self:
        """Choose the images, evenly spread over those with clean logits."""
        whole = len(images.labels)
        count = min(max(-(-whole // ONE_IN), 2), MOST, whole)
        rows = torch.arange(count, device=images.labels.device) * whole // count
        return cls(copy, rows, images.clean_logits[rows])

    def told_before(self, counted: Counted, images: "Judged") -> Told:
        """Ask once more, in another batch and order: return that the model is random or looks at the batch, if so."""
        x = images.select(self.rows).x
        again = _backwards(counted, x)
        apart = int(_differ(counted, again, self.logits).sum())
        if not apart:
            return Told([], len(x))
        if bool(_differ(counted, again, _backwards(counted, x)).any()):
            warning = (
                f"The model is random: asked twice about {number_of(len(x), 'clean image')}, it answers otherwise on "
                f"{apart}. One draw decides here; "
                "eot=20 (--eot 20) averages gradients over 20 draws and judges by all of them."
            )
        else:
            warning = (
                f"The model looks at the whole batch: asked about {number_of(len(x), 'clean image')} in another batch, "
                f"it answers otherwise on {apart}. Numbers depend on how images are cut into batches; judge each image "
                "alone."
            )
        return Told([warning], 2 * len(x))

    def told_after(self, counted: Counted, images: "Judged", threat: ThreatModel, seed: int) -> Told:
        """Ask the model and the copy from before the attacks: return that it remembers what it was asked, if so."""
        some = images.select(self.rows)
        x = some.x
        near = threat.of(some.indices).corner(x, keyed_draws(x, some.indices, seed))
        clean, moved = _backwards(counted, x), _backwards(counted, near)
        changed, forwards = _differ(counted, clean, self.logits), 2 * len(x)
        if self.copy is not None:
            forwards += 2 * len(x)
            own = Counted(self.copy)
            changed |= _differ(counted, moved, _backwards(own, near)) | _differ(counted, clean, _backwards(own, x))
        if not bool(changed.any()):
            unknown = "The model cannot be copied: whether it remembers what it was asked is not known."
            return Told([unknown] if self.copy is None else [], forwards)
        warning = (
            f"The model remembers: after the attacks it answers otherwise on {int(changed.sum())} of "
            f"{number_of(len(x))} than before them, or than a copy from before. Its numbers are those of a memory: "
            "attack a new copy of it."
        )
        return Told([warning], forwards)


def stuck_facts(
    attack: Attack | DistanceAttack, counted: Counted, stuck: Iterable[Batch], chunk: int | None = None
) -> dict[str, Any]:
    """Return how many images an attack in a ball left at their start, and the indices of those without a gradient.

    stuck: these images, in batches, which go through the model in chunks. Without: the gradient of what the attack
    climbs is exactly 0 at the clean image. "vanished": that of the margin, which does not underflow, is not. A forward
    and a backward each.
    """
    facts: dict[str, Any] = {}
    for batch in stuck:
        size = images_at_a_time(counted, batch.x, chunk)
        for at in range(0, len(batch.x), size):
            for name, value in _stuck(attack, counted, batch.select(slice(at, at + size))).items():
                facts[name] = facts[name] + value if name in facts else value
    return facts


def _stuck(attack: Attack | DistanceAttack, counted: Counted, some: Batch) -> dict[str, Any]:
    flat = flat_images(attack, counted, some)
    if flat is None:
        return {}
    facts: dict[str, Any] = {} if isinstance(attack, DistanceAttack | Within) else {"stuck": len(some.x)}
    if bool(flat.any()):
        some = some.select(flat)
        still_flat = flat_images(Untargeted(Steepest(1.0), 1, margin), counted, some)
        assert still_flat is not None
        facts |= {"no_gradient": some.indices.tolist(), "vanished": int((~still_flat).sum())}
    return facts


def copied(model: nn.Module) -> nn.Module | None:
    """Return a copy of the model as it is now; None where it cannot be copied."""
    try:
        return deepcopy(model)
    except Exception:
        return None


def _backwards(model: nn.Module, x: Tensor) -> Tensor:
    return logits_of(model, x.flip(0), len(x)).flip(0)


def _differ(model: nn.Module, one: Tensor, other: Tensor) -> Tensor:
    """Return on which images (N,) two answers differ by more than rounding in the model's dtype allows."""
    largest = torch.where(other.isfinite(), other, 0.0).abs().amax()
    slack = torch.finfo(dtype_of(model) or one.dtype).eps ** 0.5 * largest
    near: Tensor = ((one - other).abs() <= slack) | (one == other) | (one.isnan() & other.isnan())
    return ~near.all(1)
