"""One training step: a method bound to its model, and the gradient of a batch, alone or with other processes."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.modes import (
    Precision,
    autocast,
    dtype_of,
    evaluating,
    every_module,
    fixed_statistics,
    plain_logits,
)
from planish.core.randomness import reproducible, twin
from planish.core.threat import ThreatModel
from planish.methods import Method, StepContext, TrainingLoss, returned
from planish.models import corrupts_memory
from planish.training.processes import Group, Part
from planish.training.settings import Settings, perturbable, perturbed_weights, steepest_weights


class PlainLogits(nn.Module):
    """A model as methods see it: its logits are plain, whatever it wraps them in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return plain_logits(self.model(x))


def check_trainable(model: nn.Module, x: Tensor, method: Method, precision: Precision = "float32") -> None:
    """Try a forward and a backward on images x (N, C, H, W), in evaluation mode: nothing of the model changes.

    Raises BadInput unless the weights get a gradient, and the images too where the method follows it, and the images
    stay as they are.
    """
    leaf, weights = x.clone().requires_grad_(), [own for own in model.parameters() if own.requires_grad]
    images = leaf.clone()  # no leaf, so that a model that writes into them gets as far as its logits
    before = images._version
    try:
        with evaluating(model), reproducible(0), torch.enable_grad(), autocast(x, precision):
            logits = PlainLogits(model)(images)
        images_reached, weights_reached = _reached(logits, leaf, weights)
    except RuntimeError as error:
        raise BadInput(_untrainable(model, x, error)) from error
    if images._version != before:
        raise BadInput(
            "the model writes into the images that it is given, which training goes on with: begin its forward with "
            "x = x.clone()"
        )
    if weights and not weights_reached:
        raise BadInput(
            "the model's logits have no gradient: leave out what cuts them off in its forward, such as detach() and "
            "torch.no_grad()"
        )
    if not (getattr(method, "clean", True) or images_reached):
        raise BadInput(
            f"no gradient reaches the images, and {type(method).__name__} follows it: leave out what cuts it off in "
            "the model's forward, such as detach() and torch.no_grad() around what is done to images first"
        )


def _reached(logits: Tensor, images: Tensor, weights: list[nn.Parameter]) -> tuple[bool, bool]:
    """Say whether the logits' gradient reaches the images, and any of the weights."""
    if not logits.requires_grad:
        return False, False
    first, *rest = torch.autograd.grad(logits.sum(), [images, *weights], allow_unused=True)
    return first is not None, any(given is not None for given in rest)


def _untrainable(model: nn.Module, x: Tensor, error: RuntimeError) -> str:
    """Word what a model raises where it is trained, and not where it is judged."""
    own = dtype_of(model) or x.dtype
    if own != x.dtype:
        return (
            f"the model's weights are {own} and the images {x.dtype}: train it in {x.dtype}, model.to({x.dtype}); "
            'for speed set settings.precision = "bf16"'
        )
    return f"the model raises {type(error).__name__} on {x.dtype} images, with a gradient: {error}".partition("\n")[0]


class Bound(nn.Module):
    """A method bound to its model: forward(batch) is the training loss.

    The one module that is wrapped for several processes: the inner ascent and every extra pass happen inside its
    forward, so that there is one forward and one backward to wait for.
    """

    def __init__(self, model: nn.Module, method: Method, threat: ThreatModel, precision: Precision) -> None:
        super().__init__()
        self.model, self.method, self.threat, self.precision = PlainLogits(model), method, threat, precision

    def forward(self, x: Tensor, labels: Tensor, indices: Tensor, context: StepContext) -> TrainingLoss:
        """Return the method's loss of the batch."""
        with autocast(x, self.precision):
            return returned(self.method, self.method(self.model, Batch(x, labels, indices), self.threat, context))


def lies_channels_last(model: nn.Module, settings: Settings) -> bool:
    """Say whether the model's kernels and images are laid out with channels last."""
    return settings.channels_last and not any(map(corrupts_memory, every_module(model)))


@dataclass(frozen=True)
class Stepper:
    """Adds gradients to the weights. module: the bound method, wrapped for the group."""

    bound: Bound
    module: nn.Module
    settings: Settings
    group: Group

    @classmethod
    def of(cls, model: nn.Module, method: Method, threat: ThreatModel, settings: Settings, group: Group) -> "Stepper":
        """Return it for a model, which is compiled if the settings say so."""
        own: Any = torch.compile(model) if settings.compile else model
        bound = Bound(own, method, threat, settings.precision)
        return cls(bound, group.wrapped(bound), settings, group)

    def backward(self, part: Part, context: StepContext, together: int, last: bool) -> TrainingLoss:
        """Add the gradient of a batch, one of so many together in a step; after the last one it is that of all
        processes. Raises RuntimeError for trained parameters that no loss depends on, in several processes."""
        batch = part.batch
        if lies_channels_last(self.bound.model, self.settings):
            batch = batch._replace(x=batch.x.contiguous(memory_format=torch.channels_last))
        own = nullcontext() if last else self.group.alone(self.module)
        with self._weights_against(part, batch, context) as context, own:
            loss: TrainingLoss = self.module(*batch[:3], context)
            (loss.total / (together * part.divisor)).backward()  # type: ignore[no-untyped-call]
        return loss

    @contextmanager
    def _weights_against(self, part: Part, batch: Batch, context: StepContext) -> Iterator[StepContext]:
        """The weights where the batch is worse off, if that is asked for, and the adversarial images found then."""
        model, settings = self.bound.model, self.settings
        if settings.weight_perturbation == 0 or context.progress < settings.weight_perturbation_from:
            yield context
            return
        again = twin(context.generator)
        with fixed_statistics(model):
            loss = self.bound(*batch[:3], context)
        gradients = torch.autograd.grad(loss.total, perturbable(model), materialize_grads=True)
        steps = steepest_weights(model, [part.mean(each) for each in gradients], settings.weight_perturbation)
        with perturbed_weights(model, steps):
            yield replace(context, generator=again, x_adv=loss.x_adv)
