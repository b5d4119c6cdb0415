"""Random search, points of the ball or square windows: it needs logits alone, so it sees through masked gradients."""

import math
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from planish.attacks import Attack
from planish.core.batch import Batch
from planish.core.errors import BadInput, at_least
from planish.core.modes import attacked
from planish.core.randomness import drawn_seed, keyed, keyed_draws
from planish.core.threat import ThreatModel
from planish.search.ascent import Adversarials, as_component, guess, with_logits

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Candidates after which the windows' area is halved once more (Andriushchenko et al. 2020, section 4)."""
RESCALED = 10000
TILES = 5


@dataclass(frozen=True)
class Noise(Attack):
    """Random points on the surface of the ball, `samples` forwards an image: a check of other attacks. noise-SAMPLES.

    samples: at least 1.

    Corners for Linf (Athalye, Carlini, Wagner 2018: random search must not beat a gradient).
    """

    samples: int = 30

    def __post_init__(self) -> None:
        at_least(1, samples=self.samples)

    def search(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Adversarials:
        """Return the first adversarial sample of each image, or else the one of the largest margin."""
        seed = drawn_seed(generator)

        def propose(batch: Batch, x_adv: Tensor, query: int) -> Tensor:
            own = threat.of(batch.indices)
            return own.presented(own.corner(batch.x, keyed_draws(batch.x, batch.indices, seed + query)), batch.x)

        with attacked(model):
            batch = with_logits(model, batch)
            return as_component(guess(propose, model, batch, self.samples), self.goal(batch)[1])


@dataclass(frozen=True)
class Square(Attack):
    """Square: random square windows are repainted, improvements kept (Andriushchenko et al. 2020). square-QUERIES.

    queries: forwards of an image that holds out, at least 1; the start is the first. `step` is the number of the query
        that found x_adv, from 1.
    p_init: share of the image that the first windows cover, in (0, 1]; it is halved after 10, 50, 200, 500, 1000, 2000,
        4000, 6000 and 8000 candidates.
    rescaled: it is halved after the same shares of `queries` instead, these being of 10000.

    Black box: it asks for logits alone. Algorithm 1 from vertical stripes with the updates of Algorithm 2 (Linf), or
    from a tiling of bumps with those of Algorithm 3 and eq. 2 (L2; in L1 with 1 / (j + 1)^4, and lengths and masses in
    L1: Croce and Hein 2021, Mind the box, section 4). A candidate is kept where it raises the margin; an image leaves
    with its first misclassified one. On oblong images a window's side is at most the shorter side of the image; in L2
    and L1 it is odd and at least 3, where there is room.

    Differs: in L2 the two bumps of a window have the same length, as in public code and not in eq. 2. From public code:
    each image draws its own windows, at any place (there the last is never drawn, so that an edge of the image keeps
    its start), and in L2 a channel keeps its own mass, as in Algorithm 3 (there each gets that of all). In L1 a
    channel's mass is multiplied by the number of channels, as there: what is too much the projection cuts off.
    """

    queries: int = 5000
    _: KW_ONLY
    p_init: float = 0.8
    rescaled: bool = False

    def __post_init__(self) -> None:
        at_least(1, queries=self.queries)
        if not 0 < self.p_init <= 1:
            raise BadInput(f"p_init must be above 0 and at most 1, got {self.p_init}")

    def search(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Adversarials:
        """Return the first misclassified candidate of each image, or else the best. Raises BadInput for other norms."""
        if threat.name not in SEARCHES:
            raise BadInput(f"Square knows the norms {', '.join(SEARCHES)}, not {threat.name}")
        seed, kind = drawn_seed(generator), SEARCHES[threat.name]

        def propose(batch: Batch, x_adv: Tensor, query: int) -> Tensor:
            own = threat.of(batch.indices)
            if query == 0:
                return own.presented(kind(own).start(batch, seed), batch.x)
            moved = kind(own).candidate(batch, x_adv, self.share(query - 1), seed + query)
            return own.presented(moved, batch.x)

        with attacked(model):
            batch = with_logits(model, batch)
            return as_component(guess(propose, model, batch, self.queries), self.goal(batch)[1])

    def share(self, candidate: int) -> float:
        """Return the share of the image that the window of a candidate covers; candidates count from 0."""
        passed = int(candidate / self.queries * RESCALED) if self.rescaled else candidate
        return self.p_init * 0.5 ** sum(passed > halving for halving in HALVINGS)


class _Stripes(NamedTuple):
    """Linf: every pixel at the radius, by one sign per channel in a window (Algorithm 2)."""

    threat: ThreatModel

    def start(self, batch: Batch, seed: int) -> Tensor:
        """Return the images with vertical stripes one pixel wide."""
        images, channels, _, width = batch.x.shape
        signs = _signs(keyed(batch.indices, seed, channels * width)).reshape(images, channels, 1, width)
        return self._painted(batch.x, signs)

    def candidate(self, batch: Batch, x_adv: Tensor, share: float, seed: int) -> Tensor:
        """Return the current images with one window each repainted."""
        uniform = keyed(batch.indices, seed, 2 + batch.x.shape[1])
        window = _Window.drawn(uniform[:, :2], max(_side(share, batch.x), 1), batch.x)
        return torch.where(window.inside, self._painted(batch.x, _signs(uniform[:, 2:])[:, :, None, None]), x_adv)

    def _painted(self, x: Tensor, signs: Tensor) -> Tensor:
        return self.threat.project_(x + self.threat.radius * signs.to(x.dtype), x)


@dataclass(frozen=True)
class _Bumps:
    """L2: windows of two opposite bumps, paid for by what a second window gives up (Algorithm 3)."""

    threat: ThreatModel
    order: ClassVar[int] = 2

    def start(self, batch: Batch, seed: int) -> Tensor:
        """Return the images under a tiling of windows: 5 x 5 on square images whose side 5 divides."""
        images, channels, height, width = batch.x.shape
        side = max(min(height, width) // TILES, 1)
        rows, columns = height // side, width // side
        uniform = keyed(batch.indices, seed, rows * columns * (1 + channels))
        uniform = uniform.reshape(images, rows, columns, 1 + channels)
        bumps = _bumps(side, batch.x.dtype, batch.x.device, self.order)
        tiles = torch.stack([bumps, bumps.T])[(uniform[..., 0] < 0.5).long()]
        tiles = tiles[:, :, :, None] * _signs(uniform[..., 1:]).to(batch.x)[..., None, None]
        delta = tiles.permute(0, 3, 1, 4, 2, 5).reshape(images, channels, rows * side, columns * side)
        top, left = (height - rows * side) // 2, (width - columns * side) // 2
        edges = (left, width - columns * side - left, top, height - rows * side - top)
        return self.begun(batch.x, F.pad(delta, edges))

    def begun(self, x: Tensor, delta: Tensor) -> Tensor:
        """Return the images under a tiling, as far as the radius goes."""
        return self.threat.step(x, x, delta)

    def candidate(self, batch: Batch, x_adv: Tensor, share: float, seed: int) -> Tensor:
        """Return the current images with new bumps in one window and nothing in the other."""
        x, channels = batch.x, batch.x.shape[1]
        uniform = keyed(batch.indices, seed, 5 + channels)
        least, room = max(_side(share, x), 3), min(x.shape[-2:])
        side = min(least + 1 - least % 2, room - 1 + room % 2)
        first, second = (_Window.drawn(uniform[:, at : at + 2], side, x) for at in (0, 2))
        bumps = first.filled(_bumps(side, x.dtype, x.device, self.order), uniform[:, 4] < 0.5)
        delta = x_adv - x
        own = torch.where(first.inside, delta, 0.0)
        direction = _signs(uniform[:, 5:]).to(x)[:, :, None, None] * bumps + own / _length(own, self.order)
        given_up = _length(torch.where(first.inside | second.inside, delta, 0.0), self.order)
        length = self.length(delta, given_up)
        moved = torch.where(second.inside, 0.0, delta)
        moved = torch.where(first.inside, direction * (length / _length(direction, self.order)), moved)
        return self.threat.project(x + moved, x)

    def length(self, delta: Tensor, given_up: Tensor) -> Tensor:
        """Return how long new bumps are: what windows of these lengths (N, C, 1, 1) held, and their share of what is
        left of the radius."""
        spare = (self.threat.radius**2 - self.threat.norm(delta) ** 2).clamp(min=0) / delta.shape[1]
        return (given_up**2 + spare[:, None, None, None]).sqrt()


class _SharpBumps(_Bumps):
    """L1: the same, with bumps that fall off faster (Croce and Hein 2021)."""

    order: ClassVar[int] = 1

    def begun(self, x: Tensor, delta: Tensor) -> Tensor:
        return self.threat.project(x + delta, x)

    def length(self, delta: Tensor, given_up: Tensor) -> Tensor:
        spare = (self.threat.radius - self.threat.norm(delta)).clamp(min=0)
        return given_up * delta.shape[1] + spare[:, None, None, None]


class _Window(NamedTuple):
    """A square window per image: where the image's rows (N, 1, H, 1) and columns (N, 1, 1, W) lie in it, from 0."""

    row: Tensor
    column: Tensor
    side: int

    @classmethod
    def drawn(cls, uniform: Tensor, side: int, x: Tensor) -> "_Window":
        """Return windows at uniformly distributed places, from (N, 2) uniform numbers."""
        at = [
            torch.arange(length, device=x.device)
            - (draw * (length - side + 1)).long().clamp(max=length - side)[:, None]
            for draw, length in zip(uniform.T, x.shape[-2:], strict=True)
        ]
        return cls(at[0][:, None, :, None], at[1][:, None, None, :], side)

    @property
    def inside(self) -> Tensor:
        """Which pixels lie in the window, (N, 1, H, W)."""
        rows, columns = ((at >= 0) & (at < self.side) for at in (self.row, self.column))
        return rows & columns

    def filled(self, pattern: Tensor, turned: Tensor) -> Tensor:
        """Return the pattern (side, side) in the windows, transposed where `turned` (N,), 0 around: (N, 1, H, W)."""
        turned = turned[:, None, None, None]
        row, column = torch.where(turned, self.column, self.row), torch.where(turned, self.row, self.column)
        return torch.where(self.inside, pattern[row.clamp(0, self.side - 1), column.clamp(0, self.side - 1)], 0.0)


def _side(share: float, x: Tensor) -> int:
    """Return the side of a square with this share of the image's pixels, at most the image's shorter side."""
    height, width = x.shape[-2:]
    return min(round(math.sqrt(share * height * width)), height, width)


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0)


def _length(delta: Tensor, order: int) -> Tensor:
    """Return the length of each channel in this norm, (N, C, 1, 1), or the least positive number."""
    length: Tensor = torch.linalg.vector_norm(delta.contiguous().flatten(2), ord=order, dim=2)
    return length.clamp(min=torch.finfo(delta.dtype).tiny)[:, :, None, None]


@lru_cache(maxsize=32)
def _bumps(side: int, dtype: torch.dtype, device: torch.device, order: int = 2) -> Tensor:
    """Return a bump beside the negative of another of the same length, (side, side), together of length 1."""
    half = side // 2
    bumps = torch.cat([_bump(half, side, order), -_bump(side - half, side, order)])
    return _unit(bumps, order).to(device, dtype)


def _bump(height: int, width: int, order: int) -> Tensor:
    """Return eq. 2, (height, width), of length 1: at d pixels from the middle (Chebyshev) sum_{j=d}^n 1 / (j + 1)^2.

    order: of the norm; in L1 the power is 4.
    """
    row, column = ((torch.arange(length, device="cpu") - length // 2).abs() for length in (height, width))
    terms = torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64, device="cpu") ** (-4 // order)
    bump = terms.flip(0).cumsum(0).flip(0)[torch.maximum(row[:, None], column[None])]
    return _unit(bump, order)


def _unit(bump: Tensor, order: int) -> Tensor:
    return bump / (bump.square().sum().sqrt() if order == 2 else bump.abs().sum())


SEARCHES: dict[str, type[_Stripes] | type[_Bumps]] = {"Linf": _Stripes, "L2": _Bumps, "L1": _SharpBumps}
COMPONENTS = {"noise": Noise, "square": Square}
