"""torch.compile: the same numbers, for methods that take first derivatives only."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.randomness import seeded
from planish.core.threat import Linf
from planish.methods import Method, StepContext
from planish.methods.adversarial import PGDAT
from planish.methods.llr import LLR
from planish.methods.seat import SEAT
from planish.training.loop import fit, start
from planish.training.settings import Settings

THREAT = Linf(0.1)


@pytest.fixture(autouse=True)
def nothing_compiled_yet() -> None:
    """PyTorch stops compiling after eight graphs of one function, and other tests have made some."""
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("method", [PGDAT(2), SEAT()], ids=["pgd", "seat"])
def test_a_compiled_model_gives_the_same_loss_gradients_and_statistics(
    method: Method, model: nn.Module, batch: Batch
) -> None:
    """Inner passes freeze parameters and statistics: a graph traced for one state must not serve the other.

    Traced and differentiated ahead of time as always, but run by eager kernels: no minutes in a C++ compiler.
    """
    eager, compiled = deepcopy(model), deepcopy(model)
    losses = [
        _steps(method, eager, eager, batch),
        _steps(method, torch.compile(compiled, backend="aot_eager"), compiled, batch),
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for one, other in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)
    for one, other in zip(eager.buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(one, other)


def _steps(method: Method, called: nn.Module, owner: nn.Module, batch: Batch) -> list[float]:
    losses = []
    for step in range(2):
        owner.zero_grad()
        loss = method(called, batch, THREAT, StepContext(seeded(0, step), 0.5))
        loss.total.backward()
        losses.append(loss.total.item())
    return losses


def test_a_method_that_differentiates_a_gradient_refuses_to_be_compiled(model: nn.Module) -> None:
    settings = Settings(epochs=1, batch_size=4, compile=True)
    with pytest.raises(BadInput, match="compile=false"):
        next(fit(start(model, settings), LLR(), THREAT, [], settings, seed=0))
