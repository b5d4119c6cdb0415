"""A radius for each image or for each pixel: a norm whose pixels have weights."""

import hashlib
import math
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from planish.core.errors import BadInput
from planish.core.threat import SLACK, ThreatModel
from planish.core.threat_texts import parse_threat
from planish.core.words import number_of

NORMS = ("Linf", "L2")


@dataclass(frozen=True)
class Weighted(ThreatModel):
    """The ball ||delta / weights|| <= radius of another norm; a pixel of weight 0 stays as it is.

    base: Linf or L2. weights: (1 or N, 1 or C, 1 or H, 1 or W) from 0 to 1. indices: (N,) of the images that the N
    rows of the weights belong to; None = not known yet, see `among`.
    """

    base: ThreatModel = field(kw_only=True)
    weights: Tensor = field(kw_only=True, repr=False, compare=False)
    indices: Tensor | None = field(default=None, kw_only=True, repr=False, compare=False)

    @classmethod
    def of_radii(cls, norm: str, radii: Tensor) -> "Weighted":
        """Return the threat with these radii in pixels of [0, 1]: (N,) of images, else what broadcasts with them.

        Row i of (N, ...) belongs to the i-th image. (H, W) and (C, H, W) are of the pixels of all images, such as a
        mask times a radius. Raises BadInput.
        """
        if radii.dtype == torch.bool:
            raise BadInput("a mask says which pixels may change and not how far: give the mask times a radius")
        right = bool((radii.isfinite() & (radii >= 0)).all())
        if not (right and 1 <= radii.ndim <= 4 and radii.numel()):
            shapes = "(N,) for images or (H, W), (C, H, W), (N, C, H, W) for pixels"
            raise BadInput(f"radii must be finite and not negative, {shapes}, got {radii.dtype} {tuple(radii.shape)}")
        radii = radii.detach().double()
        radii = radii.view(-1, 1, 1, 1) if radii.ndim == 1 else radii.reshape((1,) * (4 - radii.ndim) + radii.shape)
        largest = float(radii.max())
        if (base := parse_threat(norm, largest)).name not in NORMS:
            raise BadInput(f"a radius for each image or pixel is for {' and '.join(NORMS)}, not for {base.name}")
        return cls(largest, base=base, weights=(radii / (largest or 1.0)).float())

    def __post_init__(self) -> None:
        super().__post_init__()
        own = replace(self.base, radius=self.radius, low=self.low, high=self.high, levels=self.levels)
        object.__setattr__(self, "base", own)
        object.__setattr__(self, "name", own.name)

    @property
    def facts(self) -> dict[str, Any]:
        """What a record says: the largest radius, the least, and a digest of all."""
        radii = self.radius * self.weights
        digest = hashlib.sha256(repr(tuple(radii.shape)).encode() + radii.cpu().contiguous().numpy().tobytes())
        return super().facts | {"radii": {"least": float(radii.min()), "digest": digest.hexdigest()}}

    @property
    def plain(self) -> ThreatModel:
        """The other norm with the radius 0: a search for the nearest image does not end early."""
        return replace(self.base, radius=0.0)

    def among(self, indices: Tensor) -> Self:
        known = None if self.indices is None else self.indices.to(indices.device)
        own = replace(self, weights=self.weights.to(indices.device), indices=known)
        if len(self.weights) == 1 or known is not None:
            return own
        if len(self.weights) != len(indices):
            raise BadInput(f"there are radii for {number_of(len(self.weights))}, and {number_of(len(indices))}")
        if len(set(indices.tolist())) != len(indices):
            raise BadInput("two images have the same index, so that whose radius is whose is not known: number them")
        return replace(own, indices=indices)

    def of(self, indices: Tensor) -> Self:
        if len(self.weights) == 1:
            return self
        assert self.indices is not None
        order = self.indices.argsort()
        return self.select(order[torch.searchsorted(self.indices[order], indices.to(order.device))])

    def select(self, rows: Tensor) -> Self:
        if len(self.weights) == 1:
            return self
        assert self.indices is not None
        rows = rows.to(self.weights.device)
        return replace(self, weights=self.weights[rows], indices=self.indices[rows])

    def moves(self, count: int) -> Tensor:
        return ((self.radius * self.weights).flatten(1).amax(1) > 0).expand(count)

    def check(self, x: Tensor) -> None:
        """Raise BadInput unless the weights broadcast with the images."""
        super().check(x)
        shape = tuple(self.weights.shape)
        if not all(own in (1, size) for own, size in zip(shape[1:], x.shape[1:], strict=True)):
            raise BadInput(f"radii of shape {shape} do not fit images of shape {tuple(x.shape[1:])}")

    def scaled(self, factor: float) -> Self:
        return replace(self, radius=self.base.scaled(factor).radius)

    def shared(self, step: Tensor) -> Tensor:
        return self._like(step) * step

    def norm(self, delta: Tensor) -> Tensor:
        weights = self._like(delta)
        held = torch.where(delta.abs() > SLACK, torch.inf, 0.0)
        return self.base.norm(torch.where(weights > 0, delta / weights, held))

    def _in_ball(self, delta: Tensor) -> Tensor:
        """Return which perturbations lie in the ball, (N,). The slack is in pixels: a small weight would magnify it."""
        return self.norm(delta.sign() * (delta.abs() - SLACK).clamp(min=0)) <= self.radius * (1 + SLACK)

    def dual_norm(self, gradient: Tensor) -> Tensor:
        return self.base.dual_norm(self._like(gradient) * gradient)

    def steepest(self, gradient: Tensor) -> Tensor:
        weights = self._like(gradient)
        return weights * self.base.steepest(weights * gradient)

    def project_(self, x_adv: Tensor, x: Tensor, radius: Tensor | None = None) -> Tensor:
        weights, free = self._like(x), self._free
        ratio = torch.where(weights > 0, x_adv.sub_(x) / weights, 0.0)
        inside = weights * free.project_(ratio, torch.zeros_like(x), radius)
        return x_adv.copy_(inside.add_(x).clamp_(self.low, self.high))

    def sample(self, x: Tensor, uniform: Tensor) -> Tensor:
        return self._moved(x, self._free.sample(torch.zeros_like(x), uniform))

    def corner(self, x: Tensor, uniform: Tensor) -> Tensor:
        return self._moved(x, self._free.corner(torch.zeros_like(x), uniform))

    def _moved(self, x: Tensor, delta: Tensor) -> Tensor:
        return (x + self._like(x) * delta).clamp(self.low, self.high)

    @property
    def _free(self) -> ThreatModel:
        """The other norm's ball without a box."""
        return replace(self.base, low=-math.inf, high=math.inf, levels=None)

    def _like(self, x: Tensor) -> Tensor:
        """Return weights that broadcast with images (N, C, H, W), or with K of each image one after the other."""
        weights = self.weights.to(x)
        return weights if len(weights) in (1, len(x)) else weights.repeat_interleave(len(x) // len(weights), 0)
