"""Where an adversary may move: a ball of pixels round the image, inside the box of valid images."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from planish.core.batch import per_image, pixels
from planish.core.errors import BadInput, spelled
from planish.core.knapsack import cut_to, filled

SLACK = 1e-6
OFF_LEVEL = 1e-3
"""A pixel so near to a level, as a share of the way to the next, is on it."""


def parse_radius(value: str | float) -> float:
    """Return a radius in pixels of [0, 1] from a number or a text such as "8/255". Raises BadInput."""
    try:
        if isinstance(value, str):
            top, slash, bottom = value.partition("/")
            radius = float(top) / (float(bottom) if slash else 1.0)
        else:
            radius = float(value)
    except (ValueError, TypeError, ZeroDivisionError):
        raise BadInput(f"radius '{value}' is not a number; write for instance 8/255 or 0.03") from None
    if not (math.isfinite(radius) and radius >= 0):
        raise BadInput(f"radius {value} must be finite and not negative")
    return radius


@dataclass(frozen=True)
class ThreatModel(ABC):
    """A norm ball of the given radius (pixels of [0, 1]; a number or "8/255") inside the box [low, high].

    Shapes: images and perturbations are (N, ...); everything is per example.
    levels: adversarial images have so many levels from low to high, 256 in files of 8 bits; None = any.
    """

    name: ClassVar[str]
    least: ClassVar[float] = 0.0  # the smallest radius at which anything may change
    radius: float
    low: float = 0.0
    high: float = 1.0
    levels: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", parse_radius(self.radius))
        if 0 < self.radius < self.least:
            raise BadInput(f"{self.name} radius {self.radius:g} changes no pixel value: give how many may, such as 10")
        if self.levels is not None and not self.levels >= 2:
            raise BadInput(f"levels must be at least 2, got {self.levels}; images of 8 bits have 256")

    @abstractmethod
    def norm(self, delta: Tensor) -> Tensor:
        """Return the norm of each perturbation, (N,)."""

    @abstractmethod
    def dual_norm(self, gradient: Tensor) -> Tensor:
        """Return max <gradient, d> over the unit ball, (N,): how fast a linear loss can rise."""

    @abstractmethod
    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the unit-norm maximiser of <gradient, d> per example; 0 where the gradient is 0."""

    @abstractmethod
    def project_(self, x_adv: Tensor, x: Tensor, radius: Tensor | None = None) -> Tensor:
        """Do as `project` does, in x_adv's own memory, and return it."""

    @abstractmethod
    def sample(self, x: Tensor, uniform: Tensor) -> Tensor:
        """Return a random point of the ball, clipped to the box, from (N, D + 1) uniform numbers."""

    @abstractmethod
    def corner(self, x: Tensor, uniform: Tensor) -> Tensor:
        """Return a random point of the ball's surface (a corner for Linf), clipped to the box."""

    def project(self, x_adv: Tensor, x: Tensor, radius: Tensor | None = None) -> Tensor:
        """Return a point near x_adv that lies in the ball round x and in the box; feasible points stay.

        radius: (N,), one for each image in place of the threat's own.
        """
        return self.project_(x_adv.clone(), x, radius)

    def step(
        self,
        x_adv: Tensor,
        x: Tensor,
        direction: Tensor,
        length: float | Tensor | None = None,
        radius: Tensor | None = None,
    ) -> Tensor:
        """Return x_adv + length * steepest(direction), projected into the ball round x and into the box.

        length: in pixels, a number or (N,); the radius unless given. radius: as for `project`.
        """
        way = self.steepest(direction)
        if isinstance(length, Tensor):
            length = per_image(length, way).to(way.dtype)
        way.mul_(self.radius if length is None else length)
        return self.project_(way.add_(x_adv), x, radius)

    @property
    def facts(self) -> dict[str, Any]:
        """What a record says of the threat, JSON-able: its norm, its radius, and levels if it has some."""
        return {"norm": self.name, "radius": self.radius} | ({} if self.levels is None else {"levels": self.levels})

    @property
    def plain(self) -> "ThreatModel":
        """The threat that treats all images and pixels alike: itself; the norm with radius 0 where radii differ."""
        return self

    def among(self, indices: Tensor) -> Self:
        """Return the threat of a test set whose images have these indices, (N,): itself, where it is the same for all.

        Raises BadInput for one of another number of images.
        """
        return self

    def of(self, indices: Tensor) -> Self:
        """Return the threat of the images of its set that have these indices, (n,): itself, where all have the same."""
        return self

    def select(self, rows: Tensor) -> Self:
        """Return the threat of some rows of its batch: itself, where it is the same for all."""
        return self

    def moves(self, count: int) -> Tensor:
        """Return which of its so many images may change at all, (count,): none whose radius is 0."""
        return torch.full((count,), self.radius > 0, device="cpu")

    def check(self, x: Tensor) -> None:
        """Raise BadInput for images (N, ...) that the threat does not fit: with levels, images that have others."""
        if self.levels is not None and not bool(self._on_levels(x).all()):
            raise BadInput(f"the images have not {self.levels} levels; give them as their files hold them, not resized")

    def shared(self, step: Tensor) -> Tensor:
        """Return a step (N, ...) with each image's and pixel's share of the radius, where these have their own."""
        return step

    def presented(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return what the model is shown for an iterate in ball and box: itself, or with levels the nearest of those.

        Where that lies outside the ball, each pixel is rounded towards the clean image, which stays inside. A pixel
        whose level does not change stays as it is to the last bit.
        """
        if self.levels is None:
            return x_adv
        most, width = self.levels - 1, self.high - self.low
        clean, moves = ((x - self.low) * (most / width)).round(), (x_adv - x) * (most / width)
        nearest, inward = (
            torch.where(change == 0, x, self.low + width * ((clean + change) / most))
            for change in (moves.round(), moves.sign() * (moves.abs() + OFF_LEVEL).floor())
        )
        return torch.where(per_image(self._in_ball(nearest - x), x), nearest, inward)

    def scaled(self, factor: float) -> Self:
        """Return the same threat with the radius times the factor."""
        return replace(self, radius=radius if (radius := self.radius * factor) >= self.least else 0.0)

    def farthest(self, x: Tensor) -> Tensor:
        """Return the distance of each image to the farthest corner of the box, (N,): no image is farther away."""
        return self.norm(torch.maximum(x - self.low, self.high - x))

    def feasible(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return which examples lie in the ball and in the box, up to a rounding slack of 1e-6, and on levels, (N,)."""
        least, largest = x_adv.amin(pixels(x_adv)), x_adv.amax(pixels(x_adv))
        inside = (least >= self.low - SLACK) & (largest <= self.high + SLACK) & self._in_ball(x_adv - x)
        return inside if self.levels is None else inside & self._on_levels(x_adv)

    def _in_ball(self, delta: Tensor) -> Tensor:
        return self.norm(delta) <= self.radius * (1 + SLACK) + SLACK

    def _on_levels(self, x: Tensor) -> Tensor:
        """Return which images (N, ...) have these levels, up to rounding, (N,)."""
        assert self.levels is not None
        place = (x - self.low) * ((self.levels - 1) / (self.high - self.low))
        return (place - place.round()).abs().amax(pixels(x)) <= OFF_LEVEL


def _uniform_like(x: Tensor, uniform: Tensor) -> Tensor:
    return uniform[:, 1:].reshape(x.shape).to(x.dtype)


def _gaussian_like(x: Tensor, uniform: Tensor) -> Tensor:
    """Return Gaussian numbers of variance 1/2."""
    return torch.erfinv((2 * _uniform_like(x, uniform) - 1).clamp(-1 + SLACK, 1 - SLACK))


@spelled()
@dataclass(frozen=True)
class Linf(ThreatModel):
    """Each pixel may move by up to the radius."""

    name: ClassVar[str] = "Linf"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.radius > self.high - self.low:
            raise BadInput(
                f"Linf radius {self.radius:g} is larger than the pixel range [{self.low:g}, {self.high:g}]; "
                f"radii are in pixels of [0, 1]: write {self.radius:g}/255 for {self.radius:g} grey levels"
            )

    def scaled(self, factor: float) -> Self:
        """Return the same threat with the radius times the factor, at most the box."""
        return replace(self, radius=min(self.radius * factor, self.high - self.low))

    def norm(self, delta: Tensor) -> Tensor:
        return delta.abs().amax(pixels(delta))

    def dual_norm(self, gradient: Tensor) -> Tensor:
        return gradient.flatten(1).abs().sum(1)

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project_(self, x_adv: Tensor, x: Tensor, radius: Tensor | None = None) -> Tensor:
        reach = self.radius if radius is None else per_image(radius, x)
        return x_adv.clamp_(x - reach, x + reach).clamp_(self.low, self.high)

    def sample(self, x: Tensor, uniform: Tensor) -> Tensor:
        return (x + self.radius * (2 * _uniform_like(x, uniform) - 1)).clamp(self.low, self.high)

    def corner(self, x: Tensor, uniform: Tensor) -> Tensor:
        signs = torch.where(_uniform_like(x, uniform) < 0.5, -self.radius, self.radius)
        return (x + signs).clamp(self.low, self.high)


@spelled()
@dataclass(frozen=True)
class L2(ThreatModel):
    """The image may move by up to the radius in Euclidean length."""

    name: ClassVar[str] = "L2"

    def norm(self, delta: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return length

    def dual_norm(self, gradient: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        return length

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return gradient / ||gradient||, scaled by the largest entry first: squares of tiny ones vanish."""
        largest = gradient.abs().amax(pixels(gradient)).clamp(min=torch.finfo(gradient.dtype).tiny)
        scaled = gradient / per_image(largest, gradient)
        return scaled / per_image(self._safe_norm(scaled), gradient)

    def project_(self, x_adv: Tensor, x: Tensor, radius: Tensor | None = None) -> Tensor:
        """Scale back to the ball, then clip to the box.

        Differs: not the Euclidean projection on the intersection, but a feasible point: clipping to a box
        that holds x only shortens the perturbation.
        """
        delta = x_adv.sub_(x)
        reach = self.radius if radius is None else radius
        shrink = (reach / self._safe_norm(delta)).clamp(max=1.0)
        return delta.mul_(per_image(shrink, delta)).add_(x).clamp_(self.low, self.high)

    def sample(self, x: Tensor, uniform: Tensor) -> Tensor:
        length = self.radius * uniform[:, 0] ** (1.0 / x.shape[1:].numel())
        return self._along(x, uniform, length.to(x.dtype))

    def corner(self, x: Tensor, uniform: Tensor) -> Tensor:
        return self._along(x, uniform, torch.full_like(uniform[:, 0], self.radius, dtype=x.dtype))

    def _along(self, x: Tensor, uniform: Tensor, length: Tensor) -> Tensor:
        gaussian = _gaussian_like(x, uniform)
        return self.steepest(gaussian).mul_(per_image(length, x)).add_(x).clamp_(self.low, self.high)

    def _safe_norm(self, delta: Tensor) -> Tensor:
        return self.norm(delta).clamp(min=torch.finfo(delta.dtype).tiny)


@spelled()
@dataclass(frozen=True)
class L1(ThreatModel):
    """The absolute changes of all pixels may add up to the radius: a few pixels far, or many a little."""

    name: ClassVar[str] = "L1"

    def norm(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().sum(1, dtype=torch.float64).to(delta.dtype)

    def dual_norm(self, gradient: Tensor) -> Tensor:
        return gradient.flatten(1).abs().amax(1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the sign of the largest entry, at its place; the first of several."""
        flat = gradient.flatten(1)
        at = flat.abs().argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, at, flat.gather(1, at).sign()).view(gradient.shape)

    def step(
        self,
        x_adv: Tensor,
        x: Tensor,
        direction: Tensor,
        length: float | Tensor | None = None,
        radius: Tensor | None = None,
    ) -> Tensor:
        """Go length / radius of the way to the point of ball and box that is farthest along the direction.

        There the pixels of the largest entries have gone to the side of the box, one after the other, until the radius
        was spent (Croce and Hein 2021, Mind the box, section 2). Steepest steps of one pixel would end at the box.
        """
        reach, flat = self._reach(x, radius), direction.flatten(1)
        used = filled(self._room(flat, x.flatten(1)), flat.abs(), torch.ones_like(flat), reach)
        farthest = x + (flat.sign() * used).view(x.shape)
        step = reach if length is None else torch.as_tensor(length, device=x.device).reshape(-1, 1)
        share = (step / reach.clamp(min=torch.finfo(x.dtype).tiny)).clamp(max=1).to(x.dtype)
        return self.project_(x_adv + per_image(share.expand(len(x), 1), x) * (farthest - x_adv), x, radius)

    def project_(self, x_adv: Tensor, x: Tensor, radius: Tensor | None = None) -> Tensor:
        """Return the nearest point, in Euclidean length, of ball and box: exact, by sorting.

        With one cut for an image, each pixel keeps max(|delta| - cut, 0), at most its room to the side of the box
        (Croce and Hein 2021, section 2).
        """
        delta, reach = (x_adv - x).flatten(1), self._reach(x, radius)
        size, room = delta.abs(), self._room(delta, x.flatten(1))
        kept = torch.minimum((size - cut_to(size, room, reach)).clamp(min=0), room)
        total = kept.sum(1, keepdim=True, dtype=torch.float64).clamp(min=torch.finfo(x.dtype).tiny)
        kept = kept * (reach / total).clamp(max=1).to(x.dtype)
        moved = x + (delta.sign() * kept).view(x.shape)
        inward = torch.nextafter(moved, x)  # else all of a thousand pixels may be rounded outwards
        moved = torch.where((moved - x).abs() > kept.view(x.shape), inward, moved)
        return x_adv.copy_(moved.clamp_(self.low, self.high))

    def sample(self, x: Tensor, uniform: Tensor) -> Tensor:
        signed = (2 * _uniform_like(x, uniform) - 1).clamp(-1 + SLACK, 1 - SLACK)
        laplace = -signed.sign() * torch.log1p(-signed.abs())
        length = self.radius * uniform[:, 0] ** (1.0 / x.shape[1:].numel())
        scale = length.to(x.dtype) / self.norm(laplace).clamp(min=torch.finfo(x.dtype).tiny)
        return (x + laplace * per_image(scale, x)).clamp(self.low, self.high)

    def corner(self, x: Tensor, uniform: Tensor) -> Tensor:
        """Return Gaussian noise projected on ball and box: some pixels far, most not at all."""
        return self.project_(x + math.sqrt(2) * _gaussian_like(x, uniform), x)

    def _reach(self, x: Tensor, radius: Tensor | None) -> Tensor:
        return x.new_full((len(x), 1), self.radius) if radius is None else radius[:, None].to(x.dtype)

    def _room(self, direction: Tensor, x: Tensor) -> Tensor:
        """Return how far each pixel (N, D) can go in the direction, 0 where that is 0."""
        room = torch.where(direction > 0, self.high - x, x - self.low).clamp(min=0)
        return torch.where(direction == 0, 0.0, room)


@spelled()
@dataclass(frozen=True)
class L0(ThreatModel):
    """So many image values may change, each to anything in the box; a pixel of three channels has three values."""

    name: ClassVar[str] = "L0"
    least: ClassVar[float] = 1.0

    def norm(self, delta: Tensor) -> Tensor:
        return (delta != 0).flatten(1).sum(1).to(delta.dtype)

    def steepest(self, gradient: Tensor) -> Tensor:
        raise BadInput("L0 has no steepest way, so that this attack does not know it; use sigma-zero, or noise")

    dual_norm = steepest

    def project_(self, x_adv: Tensor, x: Tensor, radius: Tensor | None = None) -> Tensor:
        """Keep the largest changes, clipped to the box, and undo the others."""
        delta = (x_adv.clamp_(self.low, self.high) - x).flatten(1)
        return x_adv.copy_(torch.where(self._chosen(delta.abs(), radius).view(x.shape), x_adv, x))

    def sample(self, x: Tensor, uniform: Tensor) -> Tensor:
        return self._changed(x, uniform, self.low + (self.high - self.low) * self._fraction(x, uniform))

    def corner(self, x: Tensor, uniform: Tensor) -> Tensor:
        """Return the image with so many of its values, drawn at random, set to a side of the box."""
        return self._changed(x, uniform, torch.where(self._fraction(x, uniform) < 0.5, self.low, self.high))

    def _changed(self, x: Tensor, uniform: Tensor, value: Tensor) -> Tensor:
        return torch.where(self._chosen(uniform[:, 1:], None).view(x.shape), value, x)

    def _fraction(self, x: Tensor, uniform: Tensor) -> Tensor:
        """Return other uniform numbers, from the last bits of these: the first ones choose the places."""
        return (4096 * _uniform_like(x, uniform)).frac()

    def _chosen(self, size: Tensor, radius: Tensor | None) -> Tensor:
        """Return the places (N, D) of the largest numbers, as many as the radius, rounded down."""
        rank = size.argsort(dim=1, descending=True, stable=True).argsort(1)
        return rank < (self.radius if radius is None else radius[:, None]) // 1
