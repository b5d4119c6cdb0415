"""Uniform numbers for a batch: from a generator (training), or keyed by each image's identity (attacks).

Keyed draws make an attack's outcome for an image independent of the batch that the image came in:
attacking a batch equals attacking its halves, survivors can be refilled into full batches, and runs resume.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from planish.core.share import OwnRows

_GOLDEN, _MIX_1, _MIX_2 = -7046029254386353131, -4658895280553007687, -7723592293110705685


def draws(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return (N, D + 1) uniform numbers in [0, 1) for images of D values, from the generator, as `uniform` does."""
    return uniform(generator, len(x), math.prod(x.shape[1:]) + 1)


def uniform(generator: torch.Generator, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return uniform numbers in [0, 1), on the generator's device. shape: (N, ...), a row for each image of the batch.

    Where several processes share a batch, an image gets the row that it has in the whole batch.
    """
    if isinstance(generator, OwnRows):
        return generator.uniform(*shape, dtype=dtype)
    return torch.rand(shape, generator=generator, device=generator.device, dtype=dtype)


def twin(generator: torch.Generator) -> torch.Generator:
    """Return a generator that draws what this one would draw from here on."""
    other = type(generator)(generator.device)
    other.set_state(generator.get_state())
    if isinstance(generator, OwnRows) and isinstance(other, OwnRows):
        other.rows, other.whole = generator.rows, generator.whole
    return other


def keyed_draws(x: Tensor, indices: Tensor, seed: int) -> Tensor:
    """Return (N, D + 1) uniform numbers in [0, 1); row i depends on the seed and on indices[i] alone.

    A counter-based generator (SplitMix64: Steele, Lea, Flood 2014) over (seed, index, position).
    """
    return keyed(indices.to(x.device), seed, math.prod(x.shape[1:]) + 1)


def keyed(indices: Tensor, seed: int, count: int) -> Tensor:
    """Return (N, count) uniform numbers in [0, 1); row i depends on the seed and on indices[i] alone."""
    position = torch.arange(1, count + 1, device=indices.device)  # from 0, seed and index 0 would draw a plain 0
    key = _stirred(_mixed(indices * _GOLDEN + seed)[:, None] + position * _GOLDEN)
    return _shifted(key, 40).to(torch.float32).mul_(2.0**-24)  # 24 bits, which the last step of `_mixed` leaves alone


def drawn_seed(generator: torch.Generator) -> int:
    """Return a seed drawn from the generator."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def seeded(seed: int, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator that depends on the seed and the key (an epoch, a step, ...) alone."""
    digest = hashlib.sha256(repr((int(seed), *key)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7]))


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """The global random states, those of every GPU too, start from the seed, and are put back afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        _seed(seed)
        yield


@contextmanager
def initialised(seed: int) -> Iterator[None]:
    """New modules lie on the CPU with weights drawn from the seed; the global random states stay as they are."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield


def _seed(seed: int) -> None:
    """Seed every device that there is. torch.manual_seed writes down a traceback for each kind that there is not."""
    torch.default_generator.manual_seed(seed)
    torch.mps.manual_seed(seed)
    for kind in (torch.cuda, torch.xpu):
        if kind.is_available():
            kind.manual_seed_all(seed)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """Shift right without carrying the sign, which is what torch's >> does."""
    return (value >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _stirred(value: Tensor) -> Tensor:
    """Scramble all but the low bits in place."""
    for bits, factor in ((30, _MIX_1), (27, _MIX_2)):
        value.bitwise_xor_(_shifted(value, bits)).mul_(factor)
    return value


def _mixed(value: Tensor) -> Tensor:
    """Scramble in place."""
    return _stirred(value).bitwise_xor_(_shifted(value, 31))
