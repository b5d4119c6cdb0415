"""Models whose cross entropy is a known function of the pixels, and what their oracles share."""

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.losses import cross_entropy
from planish.core.threat import ThreatModel
from planish.methods import Memory, Method, StepContext, TrainingLoss


class Losing(nn.Module):
    """Two classes; the cross entropy of class 0 is height(x) + offset, which must be above 0."""

    def __init__(self, height: nn.Module, offset: float) -> None:
        super().__init__()
        self.height, self.offset = height, offset

    def forward(self, x: Tensor) -> Tensor:
        loss = self.height(x).flatten() + self.offset
        return torch.stack([-loss, (-torch.expm1(-loss)).log()], 1)


def losing(batch: Batch) -> Batch:
    """The images in float64, all of class 0."""
    return batch._replace(x=batch.x.double(), labels=torch.zeros_like(batch.labels))


def call(
    method: Method,
    model: nn.Module,
    batch: Batch,
    threat: ThreatModel,
    *,
    progress: float = 1.0,
    step: int = 0,
    memory: Memory | None = None,
    x_adv: Tensor | None = None,
) -> TrainingLoss:
    """The method's loss, with noise from seed 0."""
    remembered = {} if memory is None else memory
    return method(
        model, batch, threat, StepContext(torch.Generator().manual_seed(0), progress, step, remembered, None, x_adv)
    )


def uniform(generator: torch.Generator, x: Tensor) -> Tensor:
    """The uniform numbers that a method draws for images; the first of each row is for the length in L2."""
    return torch.rand(len(x), x[0].numel() + 1, generator=generator)


def gradient_at(model: nn.Module, x: Tensor, labels: Tensor, *, differentiable: bool = True) -> Tensor:
    """The gradient of the batch's summed cross entropy, flattened."""
    leaf = x.detach().requires_grad_()
    total = cross_entropy(model(leaf), labels).sum()
    return torch.autograd.grad(total, leaf, create_graph=differentiable)[0].flatten(1)


def agree(model: nn.Module, found: Tensor, expected: Tensor, rtol: float = 1e-6) -> None:
    """Both losses, and their gradients with respect to every parameter, are the same."""
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    parameters = list(model.parameters())
    pairs = zip(torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=rtol, atol=1e-10 + rtol * float(other.abs().max()))
