"""How these tests run attacks and watch them."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from planish.attacks import DistanceAttack
from planish.core.batch import Batch
from planish.core.losses import margin
from planish.core.modes import evaluating
from planish.core.randomness import seeded
from planish.core.threat import L2, Linf, ThreatModel
from planish.search.ascent import Nearest

by_norm = pytest.mark.parametrize("threat", [L2(0.0), Linf(0.0)], ids=lambda threat: threat.name)
ORDER, SIZES = torch.tensor([6, 1, 0, 3, 7, 2, 5, 4]), (3, 1, 4)


class L3(L2):
    """A norm that no attack knows."""

    name = "L3"


def nearest(attack: DistanceAttack, model: nn.Module, batch: Batch, threat: ThreatModel, seed: int = 0) -> Nearest:
    return attack.distances(model, batch, threat, generator=seeded(seed))


def wrong(model: nn.Module, x: Tensor, batch: Batch) -> Tensor:
    """Which of the images (N, ...) the model, in evaluation mode, gives another class than the batch's label."""
    with evaluating(model), torch.no_grad():
        return margin(model(x), batch.labels) >= 0


def same(found: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether two results are equal bit for bit."""
    return all(torch.equal(one, two) for one, two in zip(found, other, strict=True))


def in_parts(search: Callable[[Batch], Any], batch: Batch, order: Tensor = ORDER, sizes: Sequence[int] = SIZES) -> Any:
    """What a search finds when the images come in another order, in cuts of these sizes; in their own order again."""
    cuts = [search(batch.select(rows)) for rows in order.split(list(sizes))]
    return type(cuts[0])(*(torch.cat(part)[order.argsort()] for part in zip(*cuts, strict=True)))


def asked(network: nn.Module, call: Callable[[], Any]) -> list[Tensor]:
    """Return every batch at which the network is asked while `call` runs."""
    seen: list[Tensor] = []
    handle = network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    call()
    handle.remove()
    return seen


@contextmanager
def left_alone(model: nn.Module) -> Iterator[None]:
    """Assert that the block leaves the model and the global random states as they are."""
    before, tensors = condition(model), {name: value.clone() for name, value in model.state_dict().items()}
    yield
    assert condition(model) == before
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())


def condition(model: nn.Module) -> list[object]:
    """All but the tensors that an attack must leave alone, the global random states included."""
    modes = [module.training for module in model.modules()]
    gradients = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    wishes = [p.requires_grad for p in model.parameters()]
    randomness = [torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()]
    return [modes, gradients, wishes, randomness]
