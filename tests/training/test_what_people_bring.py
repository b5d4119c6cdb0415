"""Models, batches and settings that people bring to training: each right, or one clear line."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import planish as pl
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import L2, Linf
from planish.core.weighted import Weighted
from planish.methods import CURE, LLR, PGDAT, RSFGSM, TRADES, Method, Plain, Standard, StepContext
from planish.training.cost import training_cost
from planish.training.loop import EpochRecord, fit, start
from planish.training.settings import Settings
from planish.training.state import State, go_on, moments, restore_moments, to_go_on

THREAT = Linf(0.1)
X = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(9) % 3
BATCH = Batch(X, LABELS)


class Sizes:
    """The nine images in batches of these sizes."""

    identities = None

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        rows = torch.arange(9).split(list(self.sizes))
        yield from (Batch(X[part], LABELS[part], part) for part in rows[skip:])


def settings(**more: Any) -> Settings:
    return Settings(**{"epochs": 2, "learning_rate": 0.1, "schedule": "constant", **more})


def trained(
    model: nn.Module, own: Settings, *sizes: int, method: Method | None = None
) -> tuple[State, list[EpochRecord]]:
    state = start(model, own)
    return state, list(fit(state, method or RSFGSM(), THREAT, Sizes(*(sizes or (5, 4))), own, seed=0))


def dense(*norms: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), *norms, nn.ReLU(), nn.Linear(6, 3))


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


@pytest.mark.parametrize("method", [Standard(), RSFGSM(), TRADES(steps=1), LLR()], ids=lambda one: type(one).__name__)
def test_a_last_batch_of_one_with_batch_norm_is_trained_on(method: Method):
    """It has one value of each channel, by which nothing can be normalised: the running averages stand in."""
    model = dense(nn.BatchNorm1d(6))
    state, records = trained(model, settings(), 4, 4, 1, method=method)
    assert len(records) == 2 and state.step == 6
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm1d))
    assert norm.training and norm.num_batches_tracked is not None
    two, _ = trained(dense(nn.BatchNorm1d(6)), settings(), 4, 5, method=method)
    assert len(two.history) == 2


def test_single_images_with_batch_norm_are_one_line():
    with pytest.raises(BadInput, match=r"settings\.batch_size to 2 or more"):
        trained(dense(nn.BatchNorm1d(6)), settings(batch_size=1), *[1] * 9)


def test_single_images_that_batch_norm_can_normalise_are_trained_on_as_ever():
    """A map of 2 x 2 values of each channel: its own statistics, not the running ones."""
    model = convolutional()
    state, _ = trained(model, settings(epochs=1), *[1] * 9)
    assert state.step == 9 and int(model[1].num_batches_tracked) == 9  # type: ignore[index, union-attr]


class Tied(nn.Module):
    """Two names of one weight, as language models and autoencoders have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.second(self.first(x.flatten(1)).relu()).relu())
        return out


def test_the_average_of_tied_weights_moves_once():
    model = Tied()
    before = deepcopy(model)
    state, _ = trained(model, settings(epochs=1, ema=0.5), 9)
    assert isinstance(state.average, Tied) and state.average.second.weight is state.average.first.weight
    decay = min(0.5, 2 / 11)
    for name in ("first", "last"):
        start_at, end, mean = (getattr(each, name).weight for each in (before, model, state.average))
        torch.testing.assert_close(mean, torch.lerp(start_at, end, 1 - decay))


class Counting(nn.Module):
    """A model that keeps more than tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.body = 0, dense()

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        out: Tensor = self.body(x)
        return out

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": self.seen}

    def set_extra_state(self, state: Any) -> None:
        self.seen = state["seen"]


def test_a_model_with_extra_state_is_averaged():
    state, _ = trained(Counting(), settings(ema=0.5))
    assert isinstance(state.average, Counting) and isinstance(state.model, Counting)
    assert state.average.seen == state.model.seen > 0


def test_a_fully_frozen_model_is_one_line():
    with pytest.raises(BadInput, match="every parameter of the model is frozen"):
        start(dense().requires_grad_(False), settings())


class Decaying(nn.Module):
    """Has a large weight that does nothing, and overflows when it decays fast."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.large = dense(), nn.Parameter(torch.full((2, 2), 1e30))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + 0 * self.large.sum()
        return out


@pytest.mark.parametrize("method", [Standard(), TRADES(steps=1)], ids=lambda one: type(one).__name__)
def test_weights_that_overflow_at_the_last_step_stop_the_run(method: Method):
    """The loss that the step was taken from was finite; what it leads to is not."""
    own = settings(epochs=1, learning_rate=1e9, weight_decay=1e9)
    state = start(Decaying(), own)
    with pytest.raises(FloatingPointError, match="the weights are not finite in epoch 1; lower the learning rate"):
        list(fit(state, method, THREAT, Sizes(9), own, seed=0))
    assert state.epoch == 0 and not state.history


METHODS = [Standard(), RSFGSM(), PGDAT(steps=2, batch_norm="eval"), TRADES(steps=1), CURE(), LLR()]


@pytest.mark.parametrize("method", METHODS, ids=lambda one: type(one).__name__)
def test_a_batch_norm_that_its_owner_froze_does_not_move(method: Method):
    model = convolutional().append(nn.Unflatten(1, (3, 1, 1))).append(nn.BatchNorm2d(3)).append(nn.Flatten())
    frozen, free = model[1], model[6]
    frozen.eval()
    before = deepcopy(frozen.state_dict())
    mean = free.running_mean.clone()  # type: ignore[operator, union-attr]
    trained(model, settings(weight_perturbation=0.01, weight_perturbation_from=0.0, ema=0.9), method=method)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(frozen.state_dict()[name], before[name]), name
    assert not frozen.training and free.training and not torch.equal(free.running_mean, mean)  # type: ignore[arg-type]


def test_what_rests_stays_so_when_the_caller_evaluates_between_epochs():
    model = convolutional()
    model[1].eval()  # type: ignore[index, operator]
    own = settings()
    state = start(model, own)
    for _ in fit(state, RSFGSM(), THREAT, Sizes(9), own, seed=0):
        model.eval()
    assert int(model[1].num_batches_tracked) == 0  # type: ignore[index, union-attr]


def test_a_model_that_is_in_evaluation_mode_as_a_whole_is_trained_as_a_whole():
    model = convolutional().eval()
    trained(model, settings(epochs=1))
    assert int(model[1].num_batches_tracked) == 2  # type: ignore[index, union-attr]


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)], ids=["Linf", "L2"])
def test_adamw_is_pytorchs(threat: Any):
    """Two steps on the method's own loss by hand."""
    own = settings(optimizer="adamw", epochs=2, learning_rate=0.01, weight_decay=0.1)
    model, by_hand = dense(), dense()
    state = start(model, own)
    list(fit(state, Standard(), threat, Sizes(9), own, seed=0))
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=0.01, betas=(0.9, 0.999), weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        batch = Batch(X, LABELS, torch.arange(9))
        Standard()(by_hand, batch, threat, StepContext(torch.Generator())).total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for one, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_state_goes_on_within_an_epoch_bit_for_bit(optimizer: Any):
    own = settings(optimizer=optimizer, ema=0.9, learning_rate=0.01)
    whole, _ = trained(convolutional(), own, 3, 3, 3)
    saved: list[dict[str, Any]] = []
    state = start(convolutional(), own)
    keep = lambda: saved.append(deepcopy(to_go_on(state)))  # noqa: E731
    list(fit(state, RSFGSM(), THREAT, Sizes(3, 3, 3), own, seed=0, after_step=keep))
    assert [one["index"] for one in saved] == [1, 2, 3, 1, 2, 3]
    for one in saved[:-1]:
        again = start(convolutional(), own)
        go_on(again, one)
        list(fit(again, RSFGSM(), THREAT, Sizes(3, 3, 3), own, seed=0))
        assert again.history == whole.history
        for here, there in zip(again.deployed.parameters(), whole.deployed.parameters(), strict=True):
            assert torch.equal(here, there)


def test_adamw_forgets_and_recalls():
    own = settings(optimizer="adamw", epochs=1)
    state, _ = trained(dense(), own)
    kept = deepcopy(moments(state.optimizer))
    fresh = start(dense(), own)
    restore_moments(fresh.optimizer, kept)
    again = moments(fresh.optimizer)
    assert len(again) == 4
    for one, other in zip(kept, again, strict=True):
        assert isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    restore_moments(fresh.optimizer, [None] * 4)
    assert moments(fresh.optimizer) == [None] * 4


class Noisy(Dataset[tuple[Tensor, int]]):
    """Images with noise of PyTorch's global generator, as augmentation in a data set draws it."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return (X[row] + 0.1 * torch.rand(X[row].shape)).clamp(0, 1), int(LABELS[row])


@pytest.mark.parametrize("method", [RSFGSM(), Standard()], ids=lambda one: type(one).__name__)
def test_a_data_loader_is_trained_on_and_its_draws_are_of_the_seed(method: Method):
    own, states = settings(), []
    for before in (0, 1):
        torch.manual_seed(before)
        state = start(dense_of(3), own)
        list(fit(state, method, THREAT, DataLoader(Noisy(), batch_size=4, shuffle=True), own, seed=0))
        states.append(state)
    assert states[0].step == 6 and states[0].history == states[1].history
    pairs = zip(*(state.model.parameters() for state in states), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    other = start(dense_of(3), own)
    list(fit(other, method, THREAT, DataLoader(Noisy(), batch_size=4, shuffle=True), own, seed=1))
    assert other.history != states[0].history


def dense_of(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def test_a_data_loader_goes_on_within_an_epoch_bit_for_bit():
    own, saved = settings(), []
    loader = DataLoader(Noisy(), batch_size=4, shuffle=True)
    state = start(dense_of(3), own)
    list(fit(state, RSFGSM(), THREAT, loader, own, seed=0, after_step=lambda: saved.append(deepcopy(to_go_on(state)))))
    again = start(dense_of(3), own)
    go_on(again, saved[1])
    list(fit(again, RSFGSM(), THREAT, loader, own, seed=0))
    assert again.history == state.history
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), state.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([X], "a loader must yield pairs of images and labels, not a Tensor"),
        ([(255 * X, LABELS)], r"pixels lie in .* not in \[0, 1\]"),
        ([(X, LABELS), (X / 0, LABELS)], r"pixels lie in .* not in \[0, 1\]"),  # issue: later ones were trained on
        ([((255 * X).to(torch.uint8), LABELS)], "divide by 255"),
        ([(X, LABELS.float())], "labels must be whole numbers"),
    ],
)
def test_a_loader_of_something_else_is_one_line(batches: Any, message: str):
    own = settings()
    with pytest.raises(BadInput, match=message):
        list(fit(start(dense_of(3), own), RSFGSM(), THREAT, batches, own, seed=0))


def test_a_data_loader_is_evaluated():
    loader = DataLoader(TensorDataset(X, LABELS), batch_size=4)
    model = dense_of(3).eval()
    found = pl.evaluate(model, loader, threat=THREAT, attacks="pgd-5-1")
    whole = pl.evaluate(model, X, LABELS, threat=THREAT, attacks="pgd-5-1")
    assert np.array_equal(found.survivors(), whole.survivors()) and len(found.labels) == 9


def test_a_run_whose_only_step_has_a_rate_of_0_is_one_line():
    with pytest.raises(BadInput, match="starts at a learning rate of 0, and this run has one step in all"):
        trained(dense(), settings(epochs=1, schedule="triangular"), 9)
    before = deepcopy(dense())
    for own in (settings(epochs=1), settings(epochs=2, schedule="triangular")):
        state, _ = trained(dense(), own, 9)
        pairs = zip(state.model.parameters(), before.parameters(), strict=True)
        assert not all(torch.equal(one, other) for one, other in pairs)


class Bare(Plain):
    """A method that returns a plain number."""

    def __call__(self, *given: Any) -> float:
        return 0.5


def test_a_method_that_returns_no_training_loss_is_one_line():
    """It was an AttributeError, said to be planish's mistake."""
    own: Any = Bare()
    for act in (lambda: trained(dense(), settings(), method=own), lambda: training_cost(own, dense(), BATCH, THREAT)):
        with pytest.raises(BadInput, match=r"the method Bare returns a float; it must return a planish.methods.Trai"):
            act()


def test_one_class_is_told(tmp_path: Path):
    """Issue: of a folder round the right one, images/cat and images/dog, the model's one logit was said to be wrong."""
    for name in ("cat", "dog"):
        (tmp_path / "pets" / "images" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "pets" / "images" / name / "a.png")
    told = r"^pets has one class, 'images', and a model tells two or more apart: add others, or name the folder whose"
    with pytest.raises(BadInput, match=told):
        pl.train("small-cnn", str(tmp_path / "pets"), threat=THREAT, epochs=1)
    with pytest.raises(BadInput, match="has one class, '0'"):
        pl.train("small-cnn", (X, torch.zeros(9, dtype=torch.int64)), threat=THREAT, epochs=1)


class Shorter:
    """A loader whose length counts more batches than it yields."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([(X[:4], LABELS[:4])] * 2)


def test_a_loader_that_yields_fewer_batches_than_it_says_is_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(BadInput, match="the loader says that it has 3 batches and yields 2"):
        pl.train(model, Shorter(), method="standard", threat=THREAT, epochs=1)


def test_fit_takes_a_threat_as_a_text_and_no_radius_of_each_image() -> None:
    def trained(threat: Any) -> Tensor:
        torch.manual_seed(0)
        model, own = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), Settings(epochs=1, batch_size=4)
        list(fit(start(model, own), RSFGSM(), threat, (X, LABELS), own, seed=0))
        return torch.cat([part.detach().flatten() for part in model.parameters()])

    assert torch.equal(trained("Linf:0.1"), trained(THREAT))
    with pytest.raises(BadInput, match="give one number here"):
        trained(Weighted.of_radii("Linf", torch.full((9,), 0.1)))
