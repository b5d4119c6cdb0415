"""The gradient of a model that gives none: differences along patterns of signs that move every pixel at once."""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from planish.core.randomness import keyed
from planish.core.threat import ThreatModel
from planish.search.measured import LEVELS, evenly

Values = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) -> (T, N), of T functions."""


def patterns_of(x: Tensor, queries: int) -> int:
    """Return how many patterns tell a gradient at images (N, C, H, W) by so many forwards, two for each, at most."""
    return _power_of_two(_cells(x, queries)[1])


@torch.no_grad()
def along_patterns(values: Values, x: Tensor, threat: ThreatModel, reach: float, queries: int, seed: int) -> Tensor:
    """Return the gradients (T, N, C, H, W) of T functions at x (N, C, H, W), along the rows of a Hadamard matrix.

    A pattern moves every pixel up or down, and its opposite the other way: a difference of two forwards. Of a linear
    model they tell the gradient exactly, at the box's edge too, where pixels move to one side alone; of another model
    its mean over the patterns, so that steps and roundings are smoothed away. Large images are measured in squares of
    pixels. Each pixel's signs are turned at random, alike for all images, so that no pattern is one that images have.

    threat: with one radius for all. reach: how long a pattern is, in radii; a pixel is moved by a step of 8-bit images
    at least, as models that round theirs would not notice less. queries: forwards for an image, at most, if a square
    for each channel takes no more; it takes two for each of `patterns_of`.
    """
    cells, count = _cells(x, queries)
    turned = 1 - 2 * (keyed(torch.zeros(1, dtype=torch.int64, device=x.device), seed, count)[0] < 0.5).to(x.dtype)
    length = max(reach * evenly(threat, x), (threat.high - threat.low) / LEVELS)
    up, down = ((x + side * length).clamp(threat.low, threat.high) for side in (1, -1))
    found, patterns = torch.zeros((), device=x.device), _power_of_two(count)
    for pattern in range(patterns):
        signs = turned * _signs(pattern, count, x)
        upward = signs[cells] > 0
        change = values(torch.where(upward, up, down)) - values(torch.where(upward, down, up))
        found = found + change.nan_to_num(0.0, 0.0, 0.0).unsqueeze(-1) * signs
    moved = torch.zeros_like(x[:, 0, 0, :1]).expand(-1, count).index_add(1, cells.flatten(), (up - down).flatten(1))
    return (found / patterns / moved).nan_to_num(0.0, 0.0, 0.0)[..., cells]


def _cells(x: Tensor, queries: int) -> tuple[Tensor, int]:
    """Return the number (C, H, W) of the square that each pixel is in, and how many there are."""
    _, channels, height, width = x.shape
    for side in itertools.count(1):
        rows, columns = math.ceil(height / side), math.ceil(width / side)
        count = channels * rows * columns
        if 2 * _power_of_two(count) <= max(queries, 2 * _power_of_two(channels)):
            break
    channel, row, column = (torch.arange(size, device=x.device) for size in x.shape[1:])
    return (channel[:, None, None] * rows + row[:, None] // side) * columns + column // side, count


def _signs(pattern: int, count: int, like: Tensor) -> Tensor:
    """Return a row of Sylvester's Hadamard matrix, as far as (count,): the parity of common bits."""
    bits = torch.arange(count, device=like.device) & pattern
    for shift in (16, 8, 4, 2, 1):
        bits = bits ^ (bits >> shift)
    return (1 - 2 * (bits & 1)).to(like.dtype)


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
