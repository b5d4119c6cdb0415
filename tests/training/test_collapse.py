"""The guard: what it sees on known losses, when it calls, what it does then, and that it costs little."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import cross_entropy, margin
from planish.core.modes import Counted
from planish.core.randomness import seeded
from planish.core.threat import L2, Linf, ThreatModel
from planish.data import load
from planish.data.batches import Batches
from planish.methods import Method
from planish.methods.adversarial import FGSMAT, NFGSM, PGDAT, RSFGSM
from planish.methods.standard import Standard
from planish.models.preact_resnet import preact_resnet18
from planish.models.small_cnn import small_cnn
from planish.registry import components
from planish.runs.config import DataOptions, Experiment, Named, ThreatOptions
from planish.runs.train import train_into
from planish.training.collapse import CollapseMonitor, Guard, MonitorState, probe, withstanding
from planish.training.loop import EpochRecord, fit, start, strengthened
from planish.training.settings import Settings
from planish.training.state import State, go_on, to_go_on

PLAIN = Settings(epochs=3, batch_size=2, learning_rate=0.05, schedule="constant", momentum=0.9, ema=0.9)
GUARD = Guard(every=2, images=4, probe_every=4, probe_images=4, probe_steps=2)
THREAT = Linf(0.05)
CALM = {"linearity_error": 0.1, "gradient_cosine": 0.9, "falling": 0.0, "one_step": 0.5}
NONLINEAR = {"linearity_error": 0.5, "gradient_cosine": 0.2, "falling": 0.4, "one_step": 0.5}


@dataclass
class Fixed:
    """The same eight images in four batches, epoch after epoch."""

    whole: Batch
    identities: int = 200

    def __len__(self) -> int:
        return 4

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        for index in range(skip, 4):
            yield self.whole.select(slice(2 * index, 2 * index + 2))


def run(
    model: nn.Module, batch: Batch, method: Method, guard: Guard = GUARD, settings: Settings = PLAIN
) -> tuple[State, list[EpochRecord]]:
    state = start(deepcopy(model), settings)
    return state, list(fit(state, method, THREAT, Fixed(batch), settings, seed=0, guard=guard))


def alarms_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Let the guard call at these probes, once each, whatever it sees."""
    due, own = list(steps), CollapseMonitor.collapsed

    def called(*given: Any) -> bool:
        place = given[-1]
        own(*given)
        return bool(due) and place["step"] == due[0] and bool(due.pop(0))

    monkeypatch.setattr(CollapseMonitor, "collapsed", called)


def same(one: State, other: State) -> bool:
    pairs = zip(one.deployed.state_dict().values(), other.deployed.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.5)], ids=["Linf", "L2"])
def test_a_probe_by_hand(threat: ThreatModel, model: nn.Module, batch: Batch):
    model.eval()

    def at(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        value = cross_entropy(model(x), batch.labels)
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    value, gradient = at(batch.x)
    x_adv = threat.project(batch.x + threat.radius * threat.steepest(gradient), batch.x)
    there, turned = at(x_adv)
    seen = probe(model, batch, threat)
    error = [abs(there[i] - value[i] - ((x_adv[i] - batch.x[i]) * gradient[i]).sum()) for i in range(8)]
    cosine = [nn.functional.cosine_similarity(gradient[i].flatten(), turned[i].flatten(), 0) for i in range(8)]
    torch.testing.assert_close(seen.linearity_error, torch.stack(error).mean())
    torch.testing.assert_close(seen.gradient_cosine, torch.stack(cosine).mean())
    assert seen.falling == (there < value).float().mean()
    assert seen.one_step == (margin(model(x_adv), batch.labels) < 0).float().mean()


def test_a_probe_at_what_the_method_made(model: nn.Module, batch: Batch):
    """Images from downhill: their loss falls."""
    model.eval()
    x = batch.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(model(x), batch.labels).sum(), x)
    assert probe(model, batch, THREAT, batch.x - 1e-3 * gradient.sign()).falling == 1
    assert probe(model, batch, THREAT, batch.x + 1e-3 * gradient.sign()).falling == 0


def test_a_probe_changes_nothing(model: nn.Module, batch: Batch):
    before = deepcopy(model.state_dict())
    probe(model, batch, THREAT)
    withstanding(model, batch, THREAT, 2, seeded(0))
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_who_withstands_pgd_on_two_linear_classes():
    """Margins of -0.3 and -0.05 at the images, and a full step raises both by radius * 2."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    model[1].weight.data = torch.tensor([[1.0], [-1.0]])
    batch = Batch(
        torch.tensor([0.65, 0.525])[:, None, None, None] - 0.5, torch.zeros(2, dtype=torch.int64), torch.arange(2)
    )
    for radius, share in ((0.01, 1.0), (0.1, 0.5), (0.2, 0.0)):
        assert withstanding(model, batch, Linf(radius, low=-1.0), 5, seeded(0)) == share


@pytest.mark.parametrize(
    ("before", "seen", "alarm"),
    [
        ([CALM], CALM, False),
        ([CALM], NONLINEAR, False),
        ([NONLINEAR], NONLINEAR, True),
        ([NONLINEAR, CALM], NONLINEAR, False),
        ([], NONLINEAR, False),
        ([{**CALM, "robust": 0.4}], {**CALM, "robust": 0.15}, True),
        ([{**CALM, "robust": 0.4}], {**CALM, "robust": 0.25}, False),
        ([{**CALM, "robust": 0.4}, CALM], {**CALM, "robust": 0.05, "one_step": 0.25}, False),
        ([{**CALM, "robust": 0.12}], {**CALM, "robust": 0.0}, False),
    ],
    ids=[
        "calm",
        "nonlinear once",
        "nonlinear twice",
        "not in a row",
        "first",
        "lost",
        "not half",
        "a weak step",
        "never had",
    ],
)
def test_what_is_a_collapse(before: list[dict[str, float]], seen: dict[str, float], alarm: bool):
    assert MonitorState(probes=before).collapsed(seen, gap=0.25, classes=10) is alarm


def test_what_is_a_jump():
    state = MonitorState(probes=[CALM] * 3)
    assert state.jumped(NONLINEAR) and state.jumped({**CALM, "gradient_cosine": 0.44})
    assert not state.jumped({**CALM, "gradient_cosine": 0.46}) and not MonitorState().jumped(NONLINEAR)


def test_without_an_alarm_training_is_as_without_a_guard(model: nn.Module, batch: Batch):
    (guarded, records), (plain, _) = run(model, batch, PGDAT(2)), run(model, batch, PGDAT(2), Guard())
    assert same(guarded, plain) and not plain.snapshots and not plain.monitor.probes
    assert [probe["step"] for probe in guarded.monitor.probes] == [2, 4, 6, 8, 10, 12]
    assert [record.metrics["guard_gradient_cosine"] for record in records] == pytest.approx(
        [sum(guarded.monitor.probes[i]["gradient_cosine"] for i in (2 * e, 2 * e + 1)) / 2 for e in range(3)]
    )
    assert [record.epoch for record in records] == [1, 2, 3] and not any(record.alarms for record in records)


def test_going_back_over_an_epoch(monkeypatch: pytest.MonkeyPatch, model: nn.Module, batch: Batch):
    """An alarm at step 6, in the second epoch: snapshots are of steps 0 and 4, so all starts over, strengthened."""
    plain, _ = run(model, batch, RSFGSM().strengthened() or RSFGSM(), Guard())
    alarms_at(monkeypatch, 6)
    state, records = run(model, batch, RSFGSM())
    assert [record.epoch for record in records] == [1, 1, 2, 3]
    assert same(state, plain) and state.step == 12 and state.monitor.escalations == 1
    assert [entry["epoch"] for entry in state.history] == [1, 2, 3]
    assert [entry["epochs_done"] for entry in state.history] == [2.5, 3.5, 4.5], "with the six steps undone"
    (alarm,) = state.monitor.alarms
    assert (alarm["step"], alarm["epoch"], alarm["went_back"]) == (6, 2, 1.0)
    assert state.history[1]["alarms"] == [alarm] and "alarms" not in state.history[0]
    assert [record.alarms for record in records] == [(), (), (alarm,), ()]


def test_going_back_within_a_run(monkeypatch: pytest.MonkeyPatch, model: nn.Module, batch: Batch):
    """By hand: RS-FGSM up to step 4, where the older of two snapshots is, and N-FGSM from there on."""
    alarms_at(monkeypatch, 10)
    state, _ = run(model, batch, RSFGSM())
    monkeypatch.undo()
    by_hand = start(deepcopy(model), PLAIN)
    records = fit(by_hand, RSFGSM(), THREAT, Fixed(batch), PLAIN, seed=0)
    next(records)
    *_, last = fit(by_hand, RSFGSM().strengthened() or RSFGSM(), THREAT, Fixed(batch), PLAIN, seed=0)
    assert last.epoch == 3 and same(state, by_hand)


def test_a_method_that_has_nothing_to_strengthen_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, batch: Batch
):
    alarms_at(monkeypatch, 4, 6, 8)
    state, _ = run(model, batch, Standard())
    assert [(alarm["step"], alarm["went_back"]) for alarm in state.monitor.alarms] == [(4, 0.0)]
    assert same(state, run(model, batch, Standard(), Guard())[0])


def test_strengthened_as_often_as_it_can_be():
    assert strengthened(FGSMAT(), 2) == NFGSM(2.0) and strengthened(PGDAT(), 3) == PGDAT()


def test_probes_wait_for_the_end_of_a_step(model: nn.Module, batch: Batch):
    settings = replace(PLAIN, accumulate=4)
    state, _ = run(model, batch, RSFGSM(), Guard(every=6), settings)
    assert [probe["step"] for probe in state.monitor.probes] == [8, 12]


@pytest.mark.parametrize("after", [1, 2])
def test_a_stopped_guarded_run_goes_on_bit_for_bit(
    after: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
):
    """Also where the alarm comes after the stop and leads back before it."""
    experiment = Experiment(
        data=DataOptions("digits", limit=32),
        model=Named("small-cnn", {"width": 2}),
        method=Named("rs-fgsm"),
        threat=ThreatOptions("Linf", 0.1),
        settings=replace(PLAIN, epochs=4, batch_size=8),
        guard=GUARD,
    )
    for name in ("whole", "stopped"):
        alarms_at(monkeypatch, 10)
        for record in train_into(experiment, tmp_path / name):
            if name == "stopped" and record.epoch == after:
                break
        if name == "stopped":
            list(train_into(experiment, tmp_path / name, resume=True))
        monkeypatch.undo()
    whole, stopped = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped
    assert '"alarms"' in (tmp_path / "stopped" / "metrics.jsonl").read_text()


def test_what_a_checkpoint_calls_it(model: nn.Module, batch: Batch):
    """Looks and a watch, as in every version; a checkpoint of an earlier one has a hardness in place of escalations."""
    state, _ = run(model, batch, RSFGSM())
    saved = to_go_on(state)
    assert saved["looks"] == saved["watch"]["looks"] == state.monitor.probes and len(state.monitor.probes) == 6
    assert saved["watch"].keys() == {"looks", "alarms", "escalations", "undone"}
    again = start(deepcopy(model), PLAIN)
    go_on(again, {**saved, "watch": {"looks": saved["looks"], "alarms": [CALM], "hardness": 2}})
    assert again.monitor == MonitorState(state.monitor.probes, [CALM], 2)


@pytest.mark.parametrize("method", [Standard(), FGSMAT()], ids=["standard", "fgsm"])
def test_it_costs_less_than_three_hundredths(method: Method):
    """Passes over 100 steps of 128 images, a backward with parameter gradients counted twice."""
    spent = []
    for every in (0, 25):
        images = Batches(load("digits", "train", 1280), 128)
        counted = Counted(small_cnn(classes=10, channels=1, width=1))
        settings = replace(PLAIN, epochs=10, batch_size=128)
        guard = Guard(every=every)
        *_, _ = fit(start(counted, settings), method, Linf(0.1), images, settings, seed=0, guard=guard)
        updates = 100 * 128
        spent.append(counted.forwards + counted.backwards + updates)
    assert spent[0] < spent[1] < 1.03 * spent[0]


@pytest.mark.parametrize("name", sorted(components("methods")))
def test_no_alarm_where_nothing_collapses(name: str):
    method: Method = components("methods")[name]()
    settings = Settings(epochs=6, batch_size=64, learning_rate=0.05)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small_cnn(classes=10, channels=1, width=8, activation="softplus")
    images = Batches(load("digits", "train", 320), 64)
    records = list(fit(start(model, settings), method, Linf(0.1), images, settings, seed=0, guard=Guard(every=5)))
    assert len(records) == 6 and not any(record.alarms for record in records)
    assert all("guard_falling" in record.metrics for record in records)


def test_a_collapse_is_seen_within_fifty_steps():
    """FGSM at a radius that a deep network cannot learn from one step at: the loss bends at once."""
    settings = Settings(epochs=8, batch_size=64, learning_rate=0.1, schedule="constant")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = preact_resnet18(classes=10, channels=1, width=4)
    images = Batches(load("digits", "train", 512), 64)
    records = list(fit(start(model, settings), _Stubborn(), Linf(0.5), images, settings, seed=0, guard=Guard(every=10)))
    alarm = next(alarm for record in records for alarm in record.alarms)
    assert alarm["step"] <= 50 and alarm["falling"] >= 0.2


class _Stubborn(FGSMAT):
    def strengthened(self) -> None:
        return None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"every": -1}, "guard.every must be at least 0, got -1"),
        ({"probe_steps": 0}, "guard.probe_steps must be at least 1, got 0"),
        ({"gap": 1.0}, "guard.gap must be between 0 and 1, got 1.0"),
    ],
)
def test_bad_input(given: dict[str, Any], message: str):
    with pytest.raises(BadInput, match=message):
        Guard(**given)
