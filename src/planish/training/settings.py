"""How a training run is optimised: its settings, the learning rate from start to end, weights moved against it."""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from planish.core.errors import BadInput, at_least, between, of_their_kinds, spelled
from planish.core.modes import Precision

Schedule = Literal["triangular", "onecycle", "piecewise", "cosine", "constant"]
Optimizer = Literal["sgd", "adamw"]
LARGEST = 1e9
"""What no setting exceeds."""


@spelled()
@dataclass(frozen=True)
class Settings:
    """How to optimise: SGD with Nesterov-free momentum, or AdamW.

    learning_rate: the peak. schedule: "triangular" (0 -> peak at 40 % -> 0, per step), "onecycle" (cosine up
    to 30 %, then down), "piecewise" (times drop_factor at each of `drops`, shares of the training), "cosine" or
    "constant". weight_decay: on every parameter, or with decay_norms False on matrices and kernels only. ema: decay of
    the weight average, 0 = off; it warms up as min(ema, (1 + t) / (10 + t)) and covers buffers.
    weight_perturbation: gamma of AWP (Wu, Xia and Wang 2020), 0 = off, 0.005 to 0.01 are usual: the loss is taken at
    weights moved against it, after weight_perturbation_from of the training; costs one forward and backward more, or
    the whole step again for methods whose search is not apart from their loss. accumulate: batches per step. clip:
    largest gradient norm, 0 = off. precision: "bf16" runs forwards in bfloat16; what is minimised
    stays in float32. channels_last: the layout of images and kernels, but for models that it would make crash
    (`models.corrupts_memory`). compile: torch.compile, for first-order methods. optimizer: "adamw" (Loshchilov and
    Hutter 2019) takes momentum as its first beta, 0.999 as its second, and wants a learning_rate near 0.001.
    batch_size and learning_rate are those of a step over all processes, however many train together. batch_norm: with
    several of them each normalises by its own images, or by those of all of them, "synchronized" (on GPUs, for methods
    with first derivatives only).
    save_minutes: a run folder is saved at the end of each epoch, and after so many minutes within one; 0 = after every
    step. It changes no result.
    """

    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 0.2
    schedule: Schedule = "triangular"
    drops: tuple[float, ...] = (0.5, 0.75)
    drop_factor: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_norms: bool = True
    ema: float = 0.0
    weight_perturbation: float = 0.0
    weight_perturbation_from: float = 0.05
    accumulate: int = 1
    clip: float = 0.0
    precision: Precision = "float32"
    channels_last: bool = True
    compile: bool = False
    optimizer: Optimizer = "sgd"
    save_minutes: float = 10.0
    batch_norm: Literal["local", "synchronized"] = "local"

    def __post_init__(self) -> None:
        for least, names in (
            (1, "epochs batch_size accumulate"),
            (0, "learning_rate drop_factor weight_decay weight_perturbation save_minutes"),
        ):
            between(least, LARGEST, **{f"settings.{name}": getattr(self, name) for name in names.split()})
        at_least(0, **{"settings.clip": self.clip})
        of_their_kinds(self, "settings.")
        for drop in self.drops:
            between(0, 1, **{"settings.drops": drop})
        for name in ("ema", "momentum", "weight_perturbation_from"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"settings.{name} must be in [0, 1), got {getattr(self, name)}")


def learning_rate(settings: Settings, share: float) -> float:
    """Return the learning rate after this share of the training."""
    peak = settings.learning_rate
    if settings.schedule == "triangular":
        return peak * (share / 0.4 if share < 0.4 else (1 - share) / 0.6)
    if settings.schedule == "onecycle":
        if share < 0.3:
            return _cosine(peak / 25, peak, share / 0.3)
        return _cosine(peak, peak / 2.5e5, (share - 0.3) / 0.7)
    if settings.schedule == "piecewise":
        return peak * settings.drop_factor ** sum(share >= drop for drop in settings.drops)
    return _cosine(peak, 0.0, share) if settings.schedule == "cosine" else peak


def optimizer_of(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Return the optimizer of the model's trained parameters. Raises BadInput if there are none."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise BadInput("every parameter of the model is frozen: leave requires_grad on where it is to be trained")
    matrices = [parameter for parameter in trained if settings.decay_norms or parameter.ndim > 1]
    others = [] if settings.decay_norms else [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    if settings.optimizer == "adamw":
        return eager(torch.optim.AdamW)(groups, lr=settings.learning_rate, betas=(settings.momentum, 0.999))
    return eager(torch.optim.SGD)(groups, lr=settings.learning_rate, momentum=settings.momentum)


def eager(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """Return the optimizer without the decorators that load PyTorch's compiler, as long as importing PyTorch takes.

    They matter where the optimizer's own step is compiled, and the training loop's never is.
    """
    bare = {name: inspect.unwrap(getattr(kind, name)) for name in ("add_param_group", "step", "zero_grad")}
    return type(kind.__name__, (kind,), bare | {"step": torch.no_grad()(bare["step"])})


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def steepest_weights(model: nn.Module, gradients: Sequence[Tensor], strength: float) -> list[Tensor]:
    """Return gamma ||w|| g / ||g|| for each of `perturbable` (AWP, Wu, Xia and Wang 2020, eq. 8 and 10); 0 where g is.

    Norms are over a whole kernel or matrix, as in the authors' code, and not over each filter.
    """
    tiny = torch.finfo(torch.float32).tiny
    return [
        strength * weight.detach().norm() / gradient.norm().clamp(min=tiny) * gradient
        for weight, gradient in zip(perturbable(model), gradients, strict=True)
    ]


def perturbable(model: nn.Module) -> list[nn.Parameter]:
    """Return the kernels and matrices that are trained: what is perturbed. Biases and norms are not."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim > 1]


@contextmanager
def perturbed_weights(model: nn.Module, steps: Sequence[Tensor]) -> Iterator[None]:
    """The weights moved by these steps; afterwards they are exactly what they were, and gradients stay."""
    weights = perturbable(model)
    own = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, step in zip(weights, steps, strict=True):
            weight.add_(step)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, own, strict=True):
                weight.copy_(value)
