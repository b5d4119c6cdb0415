from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import Linf, ThreatModel
from planish.methods import Method, StepContext, TrainingLoss
from planish.methods.adversarial import PGDAT, RSFGSM
from planish.methods.gradient_penalty import GradientPenalty
from planish.methods.llr import LLR
from planish.methods.seat import SEAT
from planish.methods.standard import Standard
from planish.methods.trades import TRADES
from planish.models import corrupts_memory
from planish.training.loop import EpochRecord, fit, start
from planish.training.settings import Settings, learning_rate
from planish.training.state import State

THREAT = Linf(0.05)
PLAIN = Settings(epochs=1, batch_size=4, learning_rate=0.1, schedule="constant", momentum=0.0, weight_decay=0.0)


@dataclass
class Fixed:
    """The same images in the same batches at every epoch."""

    whole: Batch
    size: int

    @property
    def identities(self) -> int:
        return len(self.whole.x)

    def __len__(self) -> int:
        return len(self.whole.x) // self.size

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        for first in range(skip * self.size, len(self) * self.size, self.size):
            yield self.whole.select(slice(first, first + self.size))


def train(
    model: nn.Module, batch: Batch, settings: Settings, *, method: Method | None = None, size: int = 4, seed: int = 0
) -> tuple[State, list[EpochRecord]]:
    state = start(model, settings)
    return state, list(fit(state, method or Standard(), THREAT, Fixed(batch, size), settings, seed=seed))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def rates(schedule: str, steps: int) -> list[float]:
    settings = replace(PLAIN, learning_rate=0.4, schedule=schedule)  # type: ignore[arg-type]
    return [learning_rate(settings, step / steps) for step in range(steps)]


def test_triangular_and_piecewise_and_constant():
    found = rates("triangular", 10)
    assert found == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4 * 5 / 6, 0.4 * 4 / 6, 0.2, 0.4 * 2 / 6, 0.4 / 6])
    assert rates("piecewise", 8) == pytest.approx([0.4] * 4 + [0.04] * 2 + [0.004] * 2)
    assert rates("constant", 3) == [0.4] * 3


def test_drops_are_where_they_are_said_to_be():
    settings = replace(PLAIN, learning_rate=0.1, schedule="piecewise", drops=(0.3, 0.6, 0.8), drop_factor=0.2)
    found = [learning_rate(settings, step / 10) for step in range(10)]
    assert found == pytest.approx([0.1] * 3 + [0.02] * 3 + [0.004] * 2 + [0.0008] * 2)
    with pytest.raises(BadInput, match=r"settings\.drop_factor must be from 0"):
        replace(PLAIN, drop_factor=-1.0)


@pytest.mark.parametrize("schedule", ["onecycle", "cosine"])
def test_schedules_are_torchs(schedule: str):
    """To within the one step by which torch places its corners."""
    steps = 2000
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    if schedule == "onecycle":
        theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=steps)
    else:
        theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(schedule, steps) == pytest.approx(expected, abs=0.4 * 3.2 / 600)
    assert rates("onecycle", 10)[0] == pytest.approx(0.4 / 25) and rates("onecycle", 10)[3] == 0.4


def test_the_schedule_runs_over_steps(linear: nn.Module, batch: Batch):
    """Two epochs of two steps, by hand: the first step is at the foot of the triangle."""
    settings = replace(PLAIN, epochs=2, learning_rate=0.4, schedule="triangular")
    twin, by_hand = deepcopy(linear), [0.0, 0.25, 1 / 3, 1 / 6]
    for step, rate in enumerate(by_hand):
        part = batch.select(slice(0, 4) if step % 2 == 0 else slice(4, 8))
        loss = nn.functional.cross_entropy(twin(part.x), part.labels)
        for p, gradient in zip(twin.parameters(), torch.autograd.grad(loss, list(twin.parameters())), strict=True):
            p.data -= rate * gradient
    _, records = train(linear, batch, settings)
    torch.testing.assert_close(weights(linear), weights(twin))
    assert [record.learning_rate for record in records] == pytest.approx([0.25, 1 / 6])


def test_one_step_by_hand(linear: nn.Module, batch: Batch):
    """SGD with momentum, decay on everything, the gradient clipped."""
    settings = replace(PLAIN, epochs=3, momentum=0.9, weight_decay=0.01, clip=0.05)
    twin = deepcopy(linear)
    velocity = [torch.zeros_like(p) for p in twin.parameters()]
    for _ in range(3):
        loss = nn.functional.cross_entropy(twin(batch.x), batch.labels)
        gradients = torch.autograd.grad(loss, list(twin.parameters()))
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        assert norm > 0.05
        for p, g, v in zip(twin.parameters(), gradients, velocity, strict=True):
            v.mul_(0.9).add_(g * 0.05 / (norm + 1e-6) + 0.01 * p.detach())
            p.data -= 0.1 * v
    train(linear, batch, settings, size=8)
    torch.testing.assert_close(weights(linear), weights(twin))


@pytest.mark.parametrize("decay_norms", [True, False])
def test_weight_decay_may_spare_norms_and_biases(model: nn.Module, batch: Batch, decay_norms: bool):
    """With the loss's gradient gone, a parameter shrinks iff it is decayed."""
    for parameter in model.parameters():
        parameter.data.fill_(0.5)
    settings = replace(PLAIN, weight_decay=0.1, decay_norms=decay_norms)
    state = start(model, settings)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    for parameter in model.parameters():
        decayed = decay_norms or parameter.ndim > 1
        assert torch.allclose(parameter, torch.full_like(parameter, 0.495 if decayed else 0.5))


def test_the_average_follows_by_hand(model: nn.Module, batch: Batch):
    """min(ema, (1 + t) / (10 + t)) of the old average, parameters and running statistics alike."""
    settings = replace(PLAIN, epochs=30, ema=0.7)
    state = start(model, settings)
    assert state.average is not None and state.deployed is state.average
    expected = {name: value.clone().double() for name, value in model.state_dict().items()}
    for record in fit(state, Standard(), THREAT, Fixed(batch, 8), settings, seed=0):
        decay = min(0.7, (1 + record.epoch) / (10 + record.epoch))
        for name, value in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value
    assert (1 + 30) / (10 + 30) > 0.7  # past the warm-up
    for name, value in state.average.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-4, atol=1e-6, msg=name)
    assert state.average.state_dict()["1.num_batches_tracked"] == 30
    assert not torch.allclose(weights(state.average), weights(model), atol=1e-3)
    assert all(parameter.grad is None for parameter in state.average.parameters())


def test_the_average_can_be_trained_on(model: nn.Module, batch: Batch):
    """Its parameters had been frozen, so that a network that was trained with an average was refused by `fit`."""
    next(model.parameters()).requires_grad_(False)
    settings = replace(PLAIN, ema=0.7)
    state = start(model, settings)
    [*_] = fit(state, Standard(), THREAT, Fixed(batch, 8), settings, seed=0)
    flags = [parameter.requires_grad for parameter in state.deployed.parameters()]
    assert flags == [parameter.requires_grad for parameter in model.parameters()] and flags.count(False) == 1
    before = weights(state.deployed)
    [*_] = fit(start(state.deployed, PLAIN), Standard(), THREAT, Fixed(batch, 8), PLAIN, seed=0)
    assert not torch.equal(weights(state.deployed), before)


def test_without_an_average_the_model_itself_is_deployed(model: nn.Module):
    state = start(model, PLAIN)
    assert state.average is None and state.deployed is model


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_is_one_large_batch(smooth: nn.Module, batch: Batch, accumulate: int):
    batch = batch._replace(x=batch.x.double())
    settings = replace(PLAIN, epochs=3, momentum=0.9, weight_decay=0.01)
    twin = deepcopy(smooth)
    train(smooth, batch, replace(settings, accumulate=accumulate), size=8 // accumulate)
    train(twin, batch, settings, size=8)
    torch.testing.assert_close(weights(smooth), weights(twin), rtol=1e-10, atol=1e-12)


def test_accumulation_starts_afresh_at_every_epoch(linear: nn.Module, batch: Batch):
    """Three batches an epoch, two to a step: each epoch is a step of two and a step of one, not one of one first."""
    settings = replace(PLAIN, epochs=2, accumulate=2)
    twin, part = deepcopy(linear), batch.select(slice(0, 6))
    for _ in range(2):
        for rows in (slice(0, 4), slice(4, 6)):
            loss = nn.functional.cross_entropy(twin(part.x[rows]), part.labels[rows])
            for parameter, gradient in zip(
                twin.parameters(), torch.autograd.grad(loss, list(twin.parameters())), strict=True
            ):
                parameter.data -= 0.1 * gradient
    train(linear, part, settings, size=2)
    torch.testing.assert_close(weights(linear), weights(twin))


def test_metrics_are_means_over_the_batches(linear: nn.Module, batch: Batch):
    twin = deepcopy(linear)
    state, records = train(linear, batch, replace(PLAIN, learning_rate=0.0, epochs=2))
    loss = nn.functional.cross_entropy(twin(batch.x), batch.labels).item()
    accuracy = (twin(batch.x).argmax(1) == batch.labels).float().mean().item()
    for number, record in enumerate(records, 1):
        assert record.epoch == number and record.seconds > 0
        assert record.metrics == pytest.approx({"loss": loss, "train_accuracy": accuracy, "cross_entropy": loss})
        assert state.history[number - 1] == {"epoch": number, **record.metrics, "epochs_done": number}
    assert state.epoch == 2 and state.step == 4


def test_noise_depends_on_seed_and_step_alone(linear: nn.Module, batch: Batch):
    def trained(seed: int, around: int) -> Tensor:
        model = deepcopy(linear)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(around)
            train(model, batch, replace(PLAIN, epochs=2), method=RSFGSM(), seed=seed)
        return weights(model)

    assert torch.equal(trained(0, 1), trained(0, 2))
    assert not torch.equal(trained(0, 1), trained(1, 1))


def test_progress_runs_from_0_to_nearly_1(linear: nn.Module, batch: Batch):
    seen: list[float] = []

    class Watched(Standard):
        def __call__(self, model: nn.Module, batch: Batch, threat: ThreatModel, context: StepContext) -> TrainingLoss:
            seen.append(context.progress)
            return super().__call__(model, batch, threat, context)

    train(linear, batch, replace(PLAIN, epochs=2), method=Watched(), size=2)
    assert seen == [step / 8 for step in range(8)]


@pytest.mark.parametrize(
    "method", [Standard(), PGDAT(2), TRADES(steps=2), LLR(warmup=0.0), SEAT(), GradientPenalty()], ids=repr
)
def test_bf16_trains_every_method(model: nn.Module, batch: Batch, method: Method):
    twin = deepcopy(model)
    settings = replace(PLAIN, epochs=2, precision="bf16")
    _, records = train(model, batch, settings, method=method, size=8)
    _, wide = train(twin, batch, replace(settings, precision="float32"), method=method, size=8)
    assert all(value.dtype in (torch.float32, torch.int64) for value in model.state_dict().values())
    for one, other in zip(records, wide, strict=True):
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=0.1)
    if method == Standard():
        assert not torch.equal(weights(model), weights(twin))  # bf16 was on


@pytest.mark.parametrize("method", [LLR(), GradientPenalty(slope="double-backward")], ids=repr)
def test_second_order_methods_are_not_compiled(linear: nn.Module, batch: Batch, method: Method):
    before = weights(linear).clone()
    with pytest.raises(BadInput, match="compile=false"):
        train(linear, batch, replace(PLAIN, compile=True), method=method)
    assert torch.equal(weights(linear), before)


def test_a_loss_that_is_no_number_stops_the_run(linear: nn.Module, batch: Batch):
    with torch.no_grad():
        linear[1].bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="nan in epoch 1; lower the learning rate"):
        train(linear, batch, PLAIN)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 0}, {"accumulate": 0}, {"ema": 1.0}, {"ema": -0.1}])
def test_bad_settings(wrong: dict[str, float]):
    with pytest.raises(BadInput, match=f"settings.{next(iter(wrong))}"):
        Settings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_format(model: nn.Module, batch: Batch, channels_last: bool):
    seen = []
    model.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    batch = batch._replace(x=batch.x.expand(8, 2, 8, 8).contiguous())
    model[0] = nn.Conv2d(2, 4, 3, padding=1)  # type: ignore[index]
    train(model, batch, replace(PLAIN, channels_last=channels_last))
    assert set(seen) == {channels_last}


def test_a_layer_that_would_corrupt_memory_is_trained_in_its_own_layout(batch: Batch):
    """PyTorch aborts in the weight gradient of a narrow strided 1x1 convolution whose images lie channels last."""
    seen: list[bool] = []
    narrow = nn.Conv2d(2, 4, 1, 2, bias=False)
    narrow.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].is_contiguous()))
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), narrow, nn.Flatten(), nn.Linear(64, 4))
    train(model, batch, PLAIN)
    assert corrupts_memory(narrow) and len(seen) > 1 and all(seen)
    assert not any(map(corrupts_memory, (nn.Conv2d(16, 4, 1, 2), nn.Conv2d(2, 4, 3, 2), nn.Conv2d(2, 4, 1), model)))
    assert corrupts_memory(nn.Conv2d(32, 4, 1, 2, groups=4))


def test_synchronized_batch_norm_has_no_second_derivative(model: nn.Module, batch: Batch):
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(deepcopy(model))
    for method in (LLR(), GradientPenalty(slope="double-backward")):
        with pytest.raises(BadInput, match="synchronized batch norm has no second derivative"):
            train(synchronized, batch, PLAIN, method=method)


class Dropping(nn.Module):
    """A network that draws from the global random state, as dropout does."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


def test_dropout_depends_on_the_seed_and_the_step_alone():
    """Two trainings with one seed differed where the model has dropout, and a resumed one from one that was not."""
    generator = torch.Generator().manual_seed(0)
    batch = Batch(torch.rand(12, 1, 4, 4, generator=generator), torch.arange(12) % 3)
    settings = replace(PLAIN, epochs=2, weight_perturbation=0.01, weight_perturbation_from=0.0)
    found = []
    for state in range(2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        trained, _ = train(Dropping(), batch, settings, method=RSFGSM())
        assert torch.equal(torch.get_rng_state(), before)
        found.append(weights(trained.model))
    other, _ = train(Dropping(), batch, settings, method=RSFGSM(), seed=1)
    assert torch.equal(*found) and not torch.equal(found[0], weights(other.model))
    half = start(Dropping(), settings)
    steps = fit(half, RSFGSM(), THREAT, Fixed(batch, 4), settings, seed=0)
    next(steps)
    torch.rand(7)  # whatever else the process draws in between
    list(steps)
    assert torch.equal(weights(half.model), found[0])


def test_dropout_is_drawn_anew_in_every_step():
    seen: list[Tensor] = []
    model = Dropping()
    model.net[3].register_forward_hook(lambda module, given, out: seen.append(out.detach() == 0))
    x = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    train(model, Batch(x, torch.arange(4) % 3), replace(PLAIN, epochs=2, learning_rate=0.0))
    assert len(seen) == 2 and not torch.equal(*seen)
