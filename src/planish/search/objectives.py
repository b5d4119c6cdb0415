"""What is ascended: terms of the logits at x_adv, bound once to the clean batch and its caches."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from planish.core.losses import Loss, divergence

Term = Callable[[Tensor, Tensor], Tensor]
"""(x_adv (N, ...), logits (N, K)) -> (N,)."""
Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x_adv (N, ...) -> values (N,), logits (N, K): one forward."""
InnerGradient = Literal["official", "exact"]
AbsOver = Literal["example", "batch"]


def objective_of(model: nn.Module, term: Term) -> Objective:
    """Return the objective that makes one forward of the model and applies the term."""

    def objective(x_adv: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(x_adv)
        return term(x_adv, logits), logits

    return objective


def loss_of(loss: Loss, labels: Tensor) -> Term:
    """Return the loss at x_adv."""
    return lambda x_adv, logits: loss(logits, labels)


def divergence_from(clean_logits: Tensor) -> Term:
    """Return KL(p(x) || p(x_adv)) (TRADES, Zhang et al. 2019)."""
    return lambda x_adv, logits: divergence(logits, clean_logits)


def plus(first: Term, weight: float, second: Term) -> Term:
    """Return first + weight * second, on the same forward."""
    return lambda x_adv, logits: first(x_adv, logits) + weight * second(x_adv, logits)


def inner(delta: Tensor, gradient: Tensor) -> Tensor:
    """Return <delta, gradient> per example, (N,)."""
    return (delta * gradient).flatten(1).sum(1)


def linearity_error(
    loss: Loss,
    labels: Tensor,
    x: Tensor,
    value: Tensor,
    gradient: Tensor,
    *,
    inner_gradient: InnerGradient = "exact",
    abs_over: AbsOver = "example",
) -> Term:
    """Return |l(x_adv) - l(x) - <x_adv - x, grad l(x)>| (Qin et al. 2019, eq. 5; Li and Yu 2022, eq. 4).

    value (N,) and gradient (N, ...) are l and its gradient at x. inner_gradient: "official" holds the inner
    product constant while ascending, as the authors' code does; "exact" differentiates it. abs_over: "batch"
    takes the absolute value of the batch's mean, as SEAT's published code does (signed errors cancel),
    written per example so that the mean over the batch is that value.
    """

    def term(x_adv: Tensor, logits: Tensor) -> Tensor:
        delta = x_adv - x
        slope = inner(delta.detach() if inner_gradient == "official" else delta, gradient)
        error = loss(logits, labels) - value - slope
        return error * error.detach().mean().sign() if abs_over == "batch" else error.abs()

    return term
