"""Batch norms in evaluation mode, computed as what they then are: constant affine maps."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Forward = Callable[[Tensor], Tensor]
FEW = 16
"""Channels that are few, and pixels that are a long row."""
EXACT = ({torch.float32}, {torch.float64})
"""In another dtype PyTorch rounds once, and a map twice."""


@contextmanager
def affine(modules: list[nn.Module]) -> Iterator[None]:
    """Batch norms in evaluation mode as constant affine maps, but for those with a forward of their own.

    PyTorch's backward of a batch norm keeps its input and sums over it, for parameters that want no gradient here.
    """
    with replaced_forward({} if any(map(runs_as_a_copy, modules)) else _affine_maps(modules)):
        yield


@contextmanager
def replaced_forward(forwards: Mapping[_BatchNorm, Forward]) -> Iterator[None]:
    """Modules compute by these. Set past the modules' own `__setattr__`, which looks for parameters first."""
    own = {module: vars(module)["forward"] for module in forwards if "forward" in vars(module)}
    for module, forward in forwards.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module in forwards:
            del vars(module)["forward"]
        for module, forward in own.items():
            vars(module)["forward"] = forward


def scale_and_shift(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return what a batch norm multiplies by and adds, (C,) each, rounded as PyTorch's own kernel on a CPU does."""
    scale = torch.rsqrt(variance + eps) if weight is None else torch.rsqrt(variance + eps) * weight
    return scale, -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)


def along(values: Tensor, dimensions: int) -> Tensor:
    """Return one number for each channel in a shape that broadcasts with images of so many dimensions."""
    return values if values.ndim == dimensions else values.view([1, -1, *[1] * (dimensions - 2)])


class _Constants(NamedTuple):
    """What a batch norm normalises by, each (C,)."""

    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None


class _AffineMap(NamedTuple):
    """What a batch norm of this weight and this running mean computes, scale x + shift.

    scale, shift: (1, C, 1, 1), of statistics that had been written so often. laid_out: both as images of a shape and
    its strides meet them.
    """

    module: _BatchNorm
    weight: Tensor | None
    mean: Tensor
    written: int
    scale: Tensor
    shift: Tensor
    laid_out: dict[tuple[torch.Size, tuple[int, ...]], tuple[Tensor, Tensor]]

    def forward(self, x: Tensor) -> Tensor:
        """Return scale x + shift; what the module itself makes of it where the map is not its own or not of x's dtype.

        `functional_call` lends a module other parameters, and a model may adapt its statistics in its forward.
        """
        module = self.module
        own = module._parameters.get("weight") is self.weight and module._buffers["running_mean"] is self.mean
        own = own and _written(self.mean, module._buffers["running_var"]) == self.written
        if not own or module.training or x.dtype != self.scale.dtype:
            return _BatchNorm.forward(module, x)
        layout = x.shape[1:], x.stride()
        scale, shift = self.laid_out.get(layout) or _laid_out(self.scale, self.shift, x)
        if not torch.is_inference_mode_enabled():  # which makes tensors that no gradient passes
            self.laid_out[layout] = scale, shift
        return torch.addcmul(shift, x, scale)


def _laid_out(scale: Tensor, shift: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and shift as a CPU meets images like x fastest: to the bit the same map.

    Channel by channel it takes many pixels at a time if no more than one of both is a single number for a channel.
    Where channels lie side by side it takes all of a pixel at a time, which is a row's if they are few.
    """
    scale, shift = along(scale, x.ndim), along(shift, x.ndim)
    if x.is_contiguous():
        return scale, shift.expand(1, *x.shape[1:]).contiguous()
    few = x.ndim == 4 and x.shape[1] <= FEW <= x.shape[3]
    if not few or not x.is_contiguous(memory_format=torch.channels_last):
        return scale, shift
    over, last = (1, -1, 1, x.shape[3]), torch.channels_last
    return scale.expand(over).contiguous(memory_format=last), shift.expand(over).contiguous(memory_format=last)


@torch.no_grad()
def _affine_maps(modules: list[nn.Module]) -> dict[_BatchNorm, Forward]:
    """Return the maps of the batch norms that are constant. Those of a kind are computed in one go, which is faster."""
    kinds: dict[tuple[Any, ...], list[tuple[_BatchNorm, _Constants]]] = {}
    for module in modules:
        if isinstance(module, _BatchNorm) and (parts := _constants(module)) is not None:
            dtypes = [part if part is None else part.dtype for part in parts]
            kinds.setdefault((module.eps, parts.mean.device, *dtypes), []).append((module, parts))
    exact = [alike for (_, _, *dtypes), alike in kinds.items() if {*dtypes} - {None} in EXACT]
    return {known.module: known.forward for alike in exact for known in _maps_of_a_kind(alike)}


def _maps_of_a_kind(alike: list[tuple[_BatchNorm, _Constants]]) -> Iterator[_AffineMap]:
    each = zip(*(parts for _, parts in alike), strict=True)
    mean, variance, weight, bias = (None if values[0] is None else torch.cat(values) for values in each)
    assert mean is not None and variance is not None
    sizes = [parts.mean.numel() for _, parts in alike]
    values = scale_and_shift(mean, variance, weight, bias, alike[0][0].eps)
    scales, shifts = (along(flat, 4).split_with_sizes(sizes, 1) for flat in values)
    for (module, parts), scale, shift in zip(alike, scales, shifts, strict=True):
        yield _AffineMap(module, parts.weight, parts.mean, _written(parts.mean, parts.variance), scale, shift, {})


def _constants(module: _BatchNorm) -> _Constants | None:
    """Return the parts of a batch norm that is a constant map; None if it is not."""
    own, buffers = module._parameters, module._buffers
    replaced = "forward" in vars(module) or type(module).forward is not _BatchNorm.forward
    if module.training or replaced or "weight" not in own or "bias" not in own:  # else computed anew by each reading
        return None
    mean, variance = buffers.get("running_mean"), buffers.get("running_var")
    if mean is None or variance is None or mean.is_inference() or variance.is_inference():  # which count no writes
        return None
    return _Constants(mean, variance, own["weight"], own["bias"])


def _written(mean: Tensor, variance: Tensor | None) -> int:
    return mean._version if variance is None else mean._version + variance._version


def runs_as_a_copy(module: nn.Module) -> bool:
    """Return whether compiled code or replicas run in its place, which would not see a replaced forward."""
    compiled = "_orig_mod" in module._modules or module._compiled_call_impl is not None
    return compiled or isinstance(module, nn.DataParallel)
