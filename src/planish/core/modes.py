"""A model inside a block: what batch norm, dropout and parameters do, all put back exactly; and its passes, counted."""

import itertools
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from planish.core.affine import EXACT, affine, along, replaced_forward, runs_as_a_copy, scale_and_shift
from planish.core.errors import BadInput
from planish.core.losses import wide

Precision = Literal["float32", "bf16"]
Statistics = dict[nn.Module, tuple[Tensor, Tensor]]
"""Mean and biased variance of the nominal batch, by batch-norm module."""

_ATTACKED: ContextVar[tuple[nn.Module, ...]] = ContextVar("models that are attacked at present", default=())


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the model's batch-norm modules."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def every_module(model: nn.Module) -> list[nn.Module]:
    """Return what `model.modules()` yields, in another order: its nested generators cost more than a small step."""
    found, known = [model], {model}
    for module in found:
        for child in module._modules.values():
            if child is not None and child not in known:
                known.add(child)
                found.append(child)
    return found


def left_in_training(model: nn.Module) -> int:
    """Return how many modules are in training mode, those apart whose mode says nothing: of torch.export."""
    modules = every_module(model)
    settled = {part for module in modules if _is_exported(module) for part in module.modules()}
    return sum(trains(module) for module in modules if module not in settled)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, inference mode left; afterwards each has its own mode back."""
    with torch.inference_mode(False), _evaluating(model, every_module(model)):
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter wants a gradient: inner loops then neither compute nor store any."""
    with _frozen(every_module(model)):
        yield


@contextmanager
def attacked(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, frozen parameters, no inference mode: how an attack sees a model. Its weights do not change.

    Batch norms are then constant affine maps, and are computed as such: a gradient costs a tenth less on a CPU, and
    their inputs are not kept for it. Values are those of the batch norms, to the last bits at most. Within a block of
    the same model, as of an attack that is a part of another, nothing is left to do.
    """
    before = _ATTACKED.get()
    with torch.inference_mode(False):
        if model in before:
            yield
            return
        modules = every_module(model)
        with _evaluating(model, modules), _frozen(modules), affine(modules):
            token = _ATTACKED.set((*before, model))
            try:
                yield
            finally:
                _ATTACKED.reset(token)


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

    Running averages are updated as usual. Batch norms in evaluation mode are left alone. Raises BadInput for a kind
    that does more than normalise.
    """
    statistics: Statistics = {}
    norms = [module for module in batch_norms(model) if module.training]
    for module in norms:
        if type(module).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
            raise BadInput(
                f"this method holds the statistics of batch norms, and {type(module).__name__} has a forward of its "
                "own: use plain batch norm, or a method that leaves them alone"
            )

    def forward(module: _BatchNorm, x: Tensor) -> Tensor:
        statistics[module] = _of_its_batch(module, x)
        return _normalized(module, x, *statistics[module])

    with replaced_forward({module: partial(forward, module) for module in norms}):
        yield statistics


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Batch norms in training mode, but for those with a forward of their own, computed by what differentiates twice.

    The same values up to rounding. The second derivative of PyTorch's kernel takes three times as long, and leaves
    gradients in a layout of memory that slows down all that follows.
    """

    def forward(module: _BatchNorm, x: Tensor) -> Tensor:
        if {x.dtype} not in EXACT or x.numel() <= x.shape[1]:  # of one value each, which PyTorch refuses
            return _BatchNorm.forward(module, x)
        return _normalized(module, x, *_of_its_batch(module, x))

    norms = [module for module in batch_norms(model) if module.training and "forward" not in vars(module)]
    plain = [] if runs_as_a_copy(model) else [norm for norm in norms if type(norm).forward is _BatchNorm.forward]
    with replaced_forward({module: partial(forward, module) for module in plain}):
        yield


@contextmanager
def reusing(model: nn.Module, statistics: Statistics) -> Iterator[None]:
    """Batch norms normalise with the collected statistics instead of their own batch's; nothing is updated.

    The network then treats each example alone (LLR, Qin et al. 2019, appendix E).
    """

    def forward(module: _BatchNorm, x: Tensor) -> Tensor:
        return _normalized(module, x, *statistics[module])

    norms = [module for module in batch_norms(model) if module in statistics]
    with replaced_forward({module: partial(forward, module) for module in norms}):
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
    modes = [trains(module) for module in modules]
    if any(modes):
        _turn_to_evaluation(model, modules)
    try:
        yield
    finally:
        for module, training in zip(modules, modes, strict=True):
            if trains(module) != training:
                module.training = training


def trains(module: nn.Module) -> bool:
    """Say whether a module is in training mode; one that `torch.jit.freeze` made has none."""
    return getattr(module, "training", False)


def _turn_to_evaluation(model: nn.Module, modules: list[nn.Module]) -> None:
    """Do as model.eval() does, also where it holds modules of torch.export, which refuse to change their mode."""
    if not any(map(_is_exported, modules)):
        model.eval()
        return
    for module in modules:
        module.training = False


def _is_exported(module: nn.Module) -> bool:
    """Return whether torch.export made it: what it and its parts compute was settled then, whatever their mode says."""
    return isinstance(module, torch.fx.GraphModule) and "eval" in vars(module)


@contextmanager
def _frozen(modules: list[nn.Module]) -> Iterator[None]:
    wanting = [own for part in modules for own in part._parameters.values() if own is not None and own.requires_grad]
    for parameter in wanting:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad = True


def _normalized(module: _BatchNorm, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Normalise with these statistics: by the fused kernel where they are constants, which it demands."""
    if not mean.requires_grad:
        return F.batch_norm(x, mean, variance, module.weight, module.bias, eps=module.eps)
    scale, shift = scale_and_shift(mean, variance, module.weight, module.bias, module.eps)
    return torch.addcmul(along(shift, x.ndim), x, along(scale, x.ndim))


class _Moments(torch.autograd.Function):
    """Mean and biased variance of each channel; a backward is one pass over x, where PyTorch's takes several."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        over = [0, *range(2, x.ndim)]
        mean = x.mean(over)
        return mean, (x - along(mean, x.ndim)).square_().mean(over)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[0])

    @staticmethod
    def backward(ctx: Any, of_mean: Tensor, of_variance: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        slope = of_variance * (2 / count)
        return torch.addcmul(along(of_mean / count - slope * mean, x.ndim), x, along(slope, x.ndim))


def _of_its_batch(module: _BatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the batch's mean and variance, differentiable, and let the running averages follow them."""
    mean, variance = _Moments.apply(x)  # type: ignore[no-untyped-call]
    _update_running(module, mean.detach(), variance.detach(), x.numel() // x.shape[1])
    return mean, variance


@torch.no_grad()
def _update_running(module: _BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    if not module.track_running_stats or module.running_mean is None or module.running_var is None:
        return
    assert module.num_batches_tracked is not None
    module.num_batches_tracked.add_(1)
    weight = module.momentum if module.momentum is not None else 1.0 / float(module.num_batches_tracked)
    unbiased = variance * (count / max(count - 1, 1))
    # by .data, as PyTorch's kernel writes: graphs of earlier passes keep these tensors, and never read them
    module.running_mean.data.lerp_(mean.to(module.running_mean), weight)
    module.running_var.data.lerp_(unbiased.to(module.running_var), weight)


def dtype_of(model: nn.Module) -> torch.dtype | None:
    """Return the floating dtype of the model's first parameter, or buffer; None where it has neither."""
    values = itertools.chain(model.parameters(), model.buffers())
    return next((value.dtype for value in values if value.is_floating_point()), None)


def plain_logits(output: object) -> Tensor:
    """Return the logits of a model's output: a tensor, or a mapping or an object with `logits`. Raises BadInput."""
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        remedy = "wrap it in a module that returns model(x)[0]" if isinstance(output, tuple | list) else "wrap it"
        raise BadInput(
            f"the model returns a {type(output).__name__}; it must return logits (N, classes) as a tensor, or as "
            f"`logits` of a mapping or an object: {remedy}"
        )
    return logits


class Counted(nn.Module):
    """How planish asks a model: its passes are counted, and its logits are plain whatever it wraps them in.

    The model gets a copy of the images, which it may write into, in the dtype of its own weights; its logits come in
    float32 or wider, those of one image as (1, K) also where the model squeezes them. Those without a graph are copies:
    a model may keep them and write into them when it is asked again, or make them in inference mode, and then autograd
    would refuse them.
    forwards, backwards: number of single images so far. No host sync; a backward counts when it reaches the logits.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype_of(model)
        self.forwards = self.backwards = 0

    @property
    def given(self) -> nn.Module:
        """The model as it was handed over, whoever counts its passes besides."""
        return self.model.given if isinstance(self.model, Counted) else self.model

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits = plain_logits(self.model(x.clone() if self.dtype in (None, x.dtype) else x.to(self.dtype)))
        if logits.ndim == 1 and len(x) == 1 < len(logits):
            logits = logits[None]
        self.forwards += len(x)
        widened = wide(logits) if logits.is_floating_point() else logits
        if logits.requires_grad:
            logits.register_hook(self._count)  # type: ignore[no-untyped-call]
            return widened
        return widened.clone() if widened is logits else widened

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


class Spent(NamedTuple):
    """What a search has cost: forwards and backwards of single images, and seconds."""

    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0


class Spending:
    """What a model is asked and how long it takes, from now on, on top of what was spent before."""

    def __init__(self, counted: Counted) -> None:
        self.counted = counted
        self.take_up(Spent())

    def take_up(self, before: Spent) -> None:
        """Count on from what a search had cost that now goes on."""
        self.before, self.began = before, self._now()

    def so_far(self) -> Spent:
        """Return what has been spent."""
        before, began, now = self.before, self.began, self._now()
        forwards, backwards = now.forwards - began.forwards, now.backwards - began.backwards
        seconds = now.seconds - began.seconds
        return Spent(before.forwards + forwards, before.backwards + backwards, before.seconds + seconds)

    def _now(self) -> Spent:
        return Spent(self.counted.forwards, self.counted.backwards, time.perf_counter())
