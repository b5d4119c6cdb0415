"""Free adversarial training against two replays by hand, and what it carries from batch to batch."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.modes import Counted, batch_norms
from planish.core.threat import L2, Linf, ThreatModel
from planish.methods import Memory, StepContext
from planish.methods.free import DELTA, Free
from planish.training.loop import State, fit, start
from planish.training.settings import Settings

RADIUS = 0.125
PLAIN = Settings(epochs=1, batch_size=8, learning_rate=0.1, schedule="constant", momentum=0.0, weight_decay=0.0)


class Listed:
    """These batches every epoch."""

    def __init__(self, *batches: Batch) -> None:
        self.batches = batches
        self.identities = None

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        yield from self.batches[skip:]


def trained(model: nn.Module, method: Free, *batches: Batch, settings: Settings = PLAIN) -> State:
    state = start(model, settings)
    *_, _ = fit(state, method, Linf(RADIUS), Listed(*batches), settings, seed=0)
    return state


def by_hand(model: nn.Module, batches: list[Batch], replays: int) -> Tensor:
    """Algorithm 1 with the box: weights and perturbation move by the gradient of the same loss."""
    delta = torch.zeros_like(batches[0].x)
    for batch in batches:
        for _ in range(replays):
            x_adv = (batch.x + delta).clamp(0, 1).requires_grad_()
            F.cross_entropy(model(x_adv), batch.labels).backward()
            up = (x_adv + RADIUS * x_adv.grad.sign() - batch.x).detach()  # type: ignore[union-attr]
            delta = (batch.x + up.clamp(-RADIUS, RADIUS)).clamp(0, 1) - batch.x
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad  # type: ignore[operator]
                    parameter.grad = None
    return delta


def test_two_batches_of_two_replays_by_hand(normed: nn.Module, images: Batch):
    """A new batch starts with the old one's perturbation."""
    other = images._replace(x=images.x.flip(0, 3))
    slow = deepcopy(normed)
    delta = by_hand(slow, [images, other], 2)
    state = trained(normed, Free(replays=2), images, other)
    for name, value in state.model.state_dict().items():
        torch.testing.assert_close(value, slow.state_dict()[name], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(state.memory[DELTA], delta, rtol=1e-9, atol=1e-10)
    assert state.step == 4 and all(norm.num_batches_tracked == 4 for norm in batch_norms(normed))


def test_a_replay_is_one_forward_and_one_backward(normed: nn.Module, images: Batch):
    counted = Counted(normed)
    trained(counted, Free(replays=3), images)
    assert counted.forwards == counted.backwards == 3 * len(images.x)


def move(model: nn.Module, batch: Batch, memory: Memory, threat: ThreatModel, share: float = 1.0) -> Tensor:
    context = StepContext(torch.Generator(), memory=memory)
    Free(step_in_radii=share)(model, batch, threat, context).total.backward()
    return memory[DELTA].clone()


@pytest.mark.parametrize("threat", [Linf(RADIUS), L2(0.5)], ids=["Linf", "L2"])
def test_the_step_and_the_ball(threat: ThreatModel, smooth: nn.Module, batch: Batch):
    grey = batch._replace(x=torch.full((8, 1, 8, 8), 0.5).double())
    memory: Memory = {}
    half = move(smooth, grey, memory, threat, 0.5)
    torch.testing.assert_close(threat.norm(half), torch.full((8,), 0.5 * threat.radius).double())
    for _ in range(3):
        delta = move(smooth, grey, memory, threat)
        torch.testing.assert_close(threat.norm(delta), torch.full((8,), threat.radius).double())


def test_batches_of_other_sizes_use_and_move_the_first_places(smooth: nn.Module, images: Batch):
    memory: Memory = {}
    small = move(smooth, images.select(slice(3)), memory, Linf(RADIUS))
    assert small.shape == (3, 1, 8, 8)
    large = move(smooth, images, memory, Linf(RADIUS))
    fresh = move(smooth, images.select(slice(3, None)), {}, Linf(RADIUS))
    assert torch.equal(large[3:], fresh)
    again = move(smooth, images.select(slice(5)), memory, Linf(RADIUS))
    assert torch.equal(again[5:], large[5:])
    oblong = Batch(
        torch.rand(2, 1, 8, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1]), torch.arange(2)
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(96, 4))
    assert move(network, oblong, memory, Linf(RADIUS)).shape == (2, 1, 8, 12)


def test_only_the_backward_of_the_training_step_moves_it(normed: nn.Module, images: Batch):
    """Weight perturbation takes the gradient twice; the images move once, by half a radius."""
    settings = replace(PLAIN, weight_perturbation=0.1, weight_perturbation_from=0.0)
    inside = images._replace(x=images.x * 0.5 + 0.25)
    counted = Counted(normed)
    delta = trained(counted, Free(replays=1, step_in_radii=0.5), inside, settings=settings).memory[DELTA]
    assert counted.forwards == 2 * len(images.x)
    torch.testing.assert_close(delta.abs(), torch.full_like(delta, RADIUS / 2))
