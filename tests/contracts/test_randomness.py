import pytest
import torch
from torch import nn

from planish.core.randomness import drawn_seed, draws, initialised, keyed_draws, reproducible, seeded
from planish.core.threat import L2

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mixed(value: int) -> int:
    """SplitMix64's finaliser in whole numbers of Python."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


def twin(index: int, seed: int, position: int) -> float:
    key = mixed(index * GOLDEN + seed & MASK) + (position + 1) * GOLDEN
    return (mixed(key & MASK) >> 40) / 2**24


def test_keyed_draws_agree_with_whole_numbers():
    indices = torch.tensor([0, 1, 49_999, 2**40 + 3])
    for seed in (0, 5, 2**62 - 1):
        found = keyed_draws(torch.zeros(4, 2, 3), indices, seed)
        expected = [[twin(index, seed, position) for position in range(7)] for index in indices.tolist()]
        assert found.tolist() == expected


def test_the_first_draw_of_the_first_seed_is_not_nothing():
    """Seed 0, index 0 and position 0 once gave exactly 0, and L2's uniform point was then the image itself."""
    x = torch.full((1, 8), 0.5)
    first = keyed_draws(x, torch.tensor([0]), 0)
    assert first.min() > 0
    assert (L2(0.25).sample(x, first) != x).all()


def test_a_row_depends_on_seed_and_index_alone():
    x, indices = torch.zeros(40, 3, 5), torch.randperm(1000, generator=seeded(0))[:40]
    whole, order = keyed_draws(x, indices, 9), torch.randperm(40, generator=seeded(1))
    assert torch.equal(keyed_draws(x[order], indices[order], 9), whole[order])
    assert torch.equal(keyed_draws(x[3:4], indices[3:4], 9), whole[3:4])
    other = keyed_draws(x, indices, 10)
    assert len(whole.unique(dim=0)) == 40 and (whole != other).all(1).float().mean() > 0.9


def test_keyed_draws_are_uniform_and_uncorrelated():
    values = keyed_draws(torch.zeros(3000, 9), torch.arange(3000), 4).double()
    assert values.min() >= 0 and values.max() < 1
    shares = values.flatten().sort().values
    assert (shares - torch.linspace(0, 1, len(shares))).abs().max() < 1.63 / len(shares) ** 0.5
    correlation = torch.corrcoef(values.T).fill_diagonal_(0)
    assert correlation.abs().max() < 4.5 / 3000**0.5
    assert torch.corrcoef(torch.stack([values[1:, 0], values[:-1, 0]]))[0, 1].abs() < 4 / 3000**0.5


def test_draws_come_from_the_generator_alone():
    before = torch.get_rng_state()
    x = torch.zeros(5, 2, 2)
    first, again, other = (draws(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (5, 5) and torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_separates_keys():
    keys = [(0,), (0, 0), (0, 1), (1, 0), (1, 23), (12, 3), (123,), (0, 1, 0)]
    seeds = [drawn_seed(seeded(*key)) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert seeds == [drawn_seed(seeded(*key)) for key in keys]


def test_the_states_of_every_gpu_are_put_back_without_a_warning(monkeypatch: pytest.MonkeyPatch):
    """PyTorch's own default warns where there are several."""
    states, seeds = {0: torch.tensor([1]), 1: torch.tensor([2])}, list[int]()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({device: state}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    before = torch.get_rng_state()
    with reproducible(3):
        one = torch.rand(2)
        states.update({0: torch.tensor([7]), 1: torch.tensor([7])})
    assert states == {0: torch.tensor([1]), 1: torch.tensor([2])} and torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, torch.rand(2, generator=torch.Generator().manual_seed(3)))


def test_no_traceback_is_written_down_for_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch):
    """A millisecond of every training step: torch.manual_seed keeps one for CUDA, XPU and MTIA each."""
    monkeypatch.setattr("traceback.format_stack", lambda *_: pytest.fail("a traceback is written"))
    with reproducible(3):
        one = torch.rand(2)
    assert torch.equal(one, torch.rand(2, generator=torch.Generator().manual_seed(3)))


def test_new_weights_touch_no_gpu_and_lie_on_the_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs were seeded"))
    before = torch.get_rng_state()
    with torch.device("meta"), initialised(3):
        one = nn.Linear(3, 2)
    assert torch.equal(torch.get_rng_state(), before)
    with initialised(3):
        other = nn.Linear(3, 2)
    assert one.weight.device.type == "cpu" and torch.equal(one.weight, other.weight)
