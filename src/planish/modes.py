"""What batch norm, dropout and parameters do inside a block; every module's own state is put back exactly."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Precision = Literal["float32", "bf16"]
Statistics = dict[nn.Module, tuple[Tensor, Tensor]]
"""Mean and biased variance of the nominal batch, by batch-norm module."""

Forward = Callable[[_BatchNorm, Tensor], Tensor]


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the model's batch-norm modules."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode; afterwards each has its own mode back, frozen batch norms included."""
    with _evaluating(model, list(model.modules())):
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter wants a gradient: inner loops then neither compute nor store any."""
    with _frozen(list(model.modules())):
        yield


@contextmanager
def attacked(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen parameters: how an attack sees a model."""
    modules = list(model.modules())
    with _evaluating(model, modules), _frozen(modules):
        yield


@contextmanager
def fixed_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norm uses the batch's statistics as its mode says, but leaves the running averages alone."""
    tracking = [(module, module.track_running_stats) for module in batch_norms(model) if module.training]
    for module, _ in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module, tracked in tracking:
            module.track_running_stats = tracked


@contextmanager
def collecting(model: nn.Module) -> Iterator[Statistics]:
    """Batch norms in training mode keep their batch's mean and variance, differentiable, for `reusing`.

    Running averages are updated as usual. Batch norms in evaluation mode are left alone.
    """
    statistics: Statistics = {}

    def forward(module: _BatchNorm, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
        statistics[module] = mean, variance
        _update_running(module, mean.detach(), variance.detach(), x.numel() // x.shape[1])
        return _normalized(module, x, mean, variance)

    with _replaced_forward([module for module in batch_norms(model) if module.training], forward):
        yield statistics


@contextmanager
def reusing(model: nn.Module, statistics: Statistics) -> Iterator[None]:
    """Batch norms normalise with the collected statistics instead of their own batch's; nothing is updated.

    The network then treats each example alone (LLR, Qin et al. 2019, appendix E).
    """

    def forward(module: _BatchNorm, x: Tensor) -> Tensor:
        return _normalized(module, x, *statistics[module])

    with _replaced_forward([module for module in batch_norms(model) if module in statistics], forward):
        yield


def detached(statistics: Statistics) -> Statistics:
    """Return the statistics as constants."""
    return {module: (mean.detach(), variance.detach()) for module, (mean, variance) in statistics.items()}


def autocast(x: Tensor, precision: Precision) -> AbstractContextManager[object]:
    """Forwards in bfloat16 where that is asked for. No cache of cast weights: it would outlive a frozen block."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False)


def full_precision(x: Tensor) -> AbstractContextManager[None]:
    """Autocast off: linearity errors are small differences of large numbers and need float32."""
    return torch.autocast(x.device.type, enabled=False)


@contextmanager
def _evaluating(model: nn.Module, modules: list[nn.Module]) -> Iterator[None]:
    modes = [module.training for module in modules]
    if any(modes):
        model.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, modes, strict=True):
            if module.training != training:
                module.training = training


@contextmanager
def _frozen(modules: list[nn.Module]) -> Iterator[None]:
    own = (parameter for module in modules for parameter in module._parameters.values())
    wanting = [parameter for parameter in own if parameter is not None and parameter.requires_grad]
    for parameter in wanting:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)


@contextmanager
def _replaced_forward(modules: list[_BatchNorm], forward: Forward) -> Iterator[None]:
    own = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = partial(forward, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module, before in zip(modules, own, strict=True):
            del module.forward
            if before is not None:
                module.forward = before  # type: ignore[method-assign]


def _normalized(module: _BatchNorm, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Normalise with these statistics: by the fused kernel where they are constants, which it demands."""
    if not mean.requires_grad:
        return F.batch_norm(x, mean, variance, module.weight, module.bias, eps=module.eps)
    scale = torch.rsqrt(variance + module.eps)
    if module.affine:
        scale = scale * module.weight
    shift = -mean * scale
    if module.affine:
        shift = shift + module.bias
    shape = [1, -1, *[1] * (x.ndim - 2)]
    return torch.addcmul(shift.view(shape), x, scale.view(shape))


@torch.no_grad()
def _update_running(module: _BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    if not module.track_running_stats or module.running_mean is None or module.running_var is None:
        return
    assert module.num_batches_tracked is not None
    module.num_batches_tracked.add_(1)
    weight = module.momentum if module.momentum is not None else 1.0 / float(module.num_batches_tracked)
    module.running_mean.lerp_(mean.to(module.running_mean), weight)
    module.running_var.lerp_((variance * (count / max(count - 1, 1))).to(module.running_var), weight)
