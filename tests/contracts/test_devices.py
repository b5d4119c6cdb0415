"""What a GPU would show and a CPU can rule out: devices that do not agree, and hosts that wait in every step."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from far import FAR, Far, elsewhere, near, sent, sent_model
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from planish.attacks import ByDistance, Worst, run
from planish.attacks.closest import Closest
from planish.attacks.gradient import APGDT, PGD
from planish.attacks.random_search import Square
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import cross_entropy, margin
from planish.core.randomness import draws, seeded
from planish.core.threat import L2, Linf, ThreatModel
from planish.data.batches import Augmentation, Batches
from planish.data.images import Images
from planish.evaluation import distances
from planish.evaluation.evaluate import evaluate_steps
from planish.methods import Memory, StepContext, TrainingLoss
from planish.models import build
from planish.registry import components
from planish.runs.beside import IMAGES
from planish.runs.config import DataOptions, Experiment, Named
from planish.runs.judge import EvaluationConfig, evaluate_into, load_model, verify
from planish.runs.run import WEIGHTS
from planish.runs.train import train_into
from planish.search.ascent import LOOK, LOOK_ACCELERATED, ascend, search
from planish.search.objectives import loss_of, objective_of
from planish.search.step_rules import COSINE_MOMENTUM, Adam, AutoPGD, Momentum, Steepest, StepRule
from planish.training.collapse import Guard
from planish.training.loop import fit, start
from planish.training.settings import Settings

BOTH = pytest.mark.parametrize("threat", [Linf(0.1), L2(0.6)], ids=["Linf", "L2"])
RULES = [Steepest(0.25), Momentum(0.25), COSINE_MOMENTUM, Adam(0.25), AutoPGD()]
SOLVES = {"nuat": ["_linalg_svd"] * 3}
"""Methods whose host must wait: a singular value decomposition asks whether it has converged."""
TINY = {"vgg": ("vgg-11", {"width": 2}), "resnet": ("resnet-18", {"width": 2, "denoise": "softmax"})} | {
    name: (name, {"width": 2}) for name in ("small-cnn", "preact-resnet-18")
}


@pytest.fixture
def few(batch: Batch) -> Batch:
    return batch.select(slice(0, 4))


@pytest.fixture
def as_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU too, a search looks for arrivals as rarely as on an accelerator."""
    monkeypatch.setitem(LOOK, "cpu", LOOK_ACCELERATED)


MISTAKES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a tensor of the default device": lambda x, labels: x + torch.zeros(len(x), 1, 1, 1),
    "rows of the default device": lambda x, labels: x[torch.arange(2)],
    "far rows of a near tensor": lambda x, labels: torch.rand(4)[labels],
    "noise of another device": lambda x, labels: torch.rand(3, generator=seeded(0), device=x.device),
    "a far generator for the CPU": lambda x, labels: torch.rand(3, generator=seeded(0, device=x.device)),
    "autocast of the CPU": lambda x, labels: torch.autocast("cpu", enabled=False),
    "a near target": lambda x, labels: cross_entropy(x.flatten(1), labels.cpu()),
    "no cpu() before numpy()": lambda x, labels: x.numpy(),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_the_far_device_sees_a_mistake(mistake: str, few: Batch):
    far = sent(few)
    told = "tensors of both devices|cannot draw on|the images are elsewhere|numpy.. is not supported"
    with elsewhere(), pytest.raises((AssertionError, RuntimeError), match=told):
        MISTAKES[mistake](far.x, far.labels)


WAITS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: (x > 0.5).nonzero(),
    "mask": lambda x: x[x > 0.5],
    "written mask": lambda x: x.clone().__setitem__(x > 0.5, 0.0),
    "sent over": lambda x: x + torch.tensor(0.5, device=x.device),
    "isfinite().all()": lambda x: 1 if x.isfinite().all() else 0,
}


@pytest.mark.parametrize("wait", sorted(WAITS))
def test_the_far_device_sees_a_host_that_waits(wait: str, few: Batch):
    x = sent(few).x
    with elsewhere() as watched:
        (x * 2).relu().sum(1).clamp(0, 1)
        assert watched.waits == []
        WAITS[wait](x)
    assert watched.waits


def test_the_far_device_computes_what_the_cpu_does(few: Batch, model: nn.Module):
    far = sent_model(model)
    with elsewhere():
        logits = far(sent(few).x)
        cross_entropy(logits, Far(few.labels)).sum().backward()
    assert logits.device == FAR and torch.equal(logits.near, model(few.x))
    cross_entropy(model(few.x), few.labels).sum().backward()
    assert all(torch.equal(p.grad, q.grad.near) for p, q in zip(model.parameters(), far.parameters(), strict=True))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@BOTH
def test_no_host_waits_in_an_ascent(rule: StepRule, threat: ThreatModel, few: Batch, model: nn.Module):
    model.eval()
    batch, network = sent(few), sent_model(model)
    for steps in (2, 6):
        objective = objective_of(network, loss_of(cross_entropy, batch.labels))
        with elsewhere() as watched:
            begin = threat.sample(batch.x, draws(batch.x, seeded(0, device=FAR)))
            x_adv = ascend(objective, batch.x, threat, rule, steps, start=begin)
        assert watched.waits == []
    begin = threat.sample(few.x, draws(few.x, seeded(0)))
    objective = objective_of(model, loss_of(cross_entropy, few.labels))
    assert torch.equal(x_adv.near, ascend(objective, few.x, threat, rule, 6, start=begin))


@pytest.mark.parametrize("steps", [4, 8, 12])
def test_the_host_of_a_search_waits_at_every_fourth_iterate(steps: int, few: Batch, model: nn.Module):
    batch, network = sent(few), sent_model(model.eval())

    def aim(rows: Tensor) -> Any:
        labels = batch.labels[rows]
        return objective_of(network, loss_of(margin, labels)), lambda logits: margin(logits, labels) - 100

    with elsewhere() as watched:
        search(aim, batch.x, Linf(0.1), Steepest(0.25), steps)
    assert watched.waits == ["nonzero"] * (steps // LOOK_ACCELERATED)


@pytest.mark.parametrize("name", sorted(components("methods")))
def test_every_method_trains_without_a_wait(name: str, few: Batch, model: nn.Module):
    method, network = components("methods")[name](), sent_model(model)

    def steps(model: nn.Module, batch: Batch, device: torch.device | str) -> TrainingLoss:
        memory: Memory = {}
        for step in (0, 1):
            context = StepContext(seeded(step, device=device), 1.0, step, memory, identities=200)
            loss = method(model, batch, Linf(0.1), context)
            loss.total.backward()
        return loss

    with elsewhere() as watched:
        found = steps(network, sent(few), FAR)
    expected = steps(model, few, "cpu")
    assert watched.waits == SOLVES.get(name, [])
    assert torch.equal(found.total.near, expected.total)
    for one, other in zip(network.parameters(), model.parameters(), strict=True):
        assert one.grad is not None and torch.equal(one.grad.near, other.grad)
    assert all(isinstance(value, Far) for value in (found.logits, *found.terms.values()))


@pytest.mark.parametrize("case", sorted(TINY))
def test_models_stay_on_their_device(case: str):
    name, options = TINY[case]
    model = build(name, classes=4, channels=3, **options).eval()
    x = torch.rand(2, 3, 32, 32, generator=seeded(0))
    with elsewhere() as watched, torch.no_grad():
        logits = sent_model(model)(Far(x))
    assert watched.waits == []
    torch.testing.assert_close(logits.near, model(x).detach(), rtol=1e-4, atol=1e-5)


def test_training_stays_on_its_device(few: Batch, model: nn.Module):
    images = Images.numbered((few.x.repeat(3, 1, 1, 1) * 255).to(torch.uint8), few.labels.repeat(3), list("abcd"), "t")
    settings = Settings(
        epochs=2, batch_size=4, learning_rate=0.05, ema=0.9, clip=1.0, accumulate=2, weight_perturbation=0.01
    )
    guard = Guard(every=2, images=4, probe_every=2, probe_images=2, probe_steps=2)

    def trained(model: nn.Module, device: torch.device | str, held_out: Batch) -> tuple[nn.Module, list[Any]]:
        state = start(model, settings)
        batches = Batches(images, 4, Augmentation(crop=1, flip=True, cutout=2), device)
        method = components("methods")["n-fgsm"]()
        records = fit(state, method, Linf(0.1), batches, settings, seed=0, guard=guard, held_out=held_out)
        metrics = [record.metrics for record in records]
        state.restore(state.saved())
        return state.deployed, metrics

    with elsewhere():
        network, found = trained(sent_model(model), FAR, sent(few))
        weights = {name: value.cpu() for name, value in network.state_dict().items()}
    deployed, expected = trained(deepcopy(model), "cpu", few)
    assert found == [pytest.approx(one, rel=1e-3, abs=1e-5) for one in expected]
    for name, value in deployed.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)


@BOTH
def test_an_evaluation_stays_on_its_device(threat: ThreatModel, as_rarely: None, few: Batch, model: nn.Module):
    model.eval()
    attacks = {"pgd": PGD(2, 2), "ordered": Worst((ByDistance(2), APGDT(3, 2))), "square": Square(6)}
    with elsewhere():
        *_, found = evaluate_steps(sent_model(model), sent(few), threat=threat, attacks=attacks)
    *_, expected = evaluate_steps(model, few, threat=threat, attacks=attacks)
    assert torch.equal(found.x_adv.near, expected.x_adv) and found.evaluation.names == expected.evaluation.names
    assert (found.evaluation.survivors() == expected.evaluation.survivors()).all()
    for one, other in zip(found.evaluation.columns, expected.evaluation.columns, strict=True):
        assert (one.passes == other.passes).all() and (one.step == other.step).all()


def test_distances_stay_on_their_device(few: Batch, model: nn.Module):
    attacks = {"closest": Closest(4, 2, refine=2)}
    with elsewhere():
        *_, found = distances.measure(sent_model(model), sent(few), Linf(0.0), attacks)
    *_, expected = distances.measure(model, few, Linf(0.0), attacks)
    assert (found.of() == expected.of()).all()


def test_a_batch_of_two_devices_is_refused(few: Batch, model: nn.Module):
    torn = sent(few)._replace(indices=few.indices)
    with elsewhere(), pytest.raises(BadInput, match="the images are on meta and the indices on cpu; move them to one"):
        next(evaluate_steps(sent_model(model), torn, threat=Linf(0.1), attacks={}))


def test_the_default_device_does_not_matter(few: Batch, model: nn.Module):
    """Whatever is made without a device would be on this one, and meets what is on the CPU."""
    images = Images.numbered((few.x * 255).to(torch.uint8), few.labels, list("abcd"), "t")
    settings = Settings(epochs=1, batch_size=2)
    with torch.device(FAR):
        batch = images.as_batch()
        *_, judged = evaluate_steps(model, batch, threat=Linf(0.1), attacks={"pgd": PGD(2, 1), "square": Square(3)})
        found = run(PGD(2, 1), model, batch, Linf(0.1), generator=seeded(0))
        state, method = start(model, settings), components("methods")["planish-at"]()
        guard = Guard(every=1, images=2, probe_images=2)
        list(fit(state, method, Linf(0.1), Batches(images.first(4), 2), settings, seed=0, guard=guard))
        images.split(2, 0)
    assert judged.x_adv.device.type == "cpu" and near(found).x_adv.device.type == "cpu"


@pytest.mark.parametrize("stream", ["always", "never"])
def test_the_default_device_does_not_matter_to_a_run(stream: Literal["always", "never"], tmp_path: Path):
    """From image files to weights, resumed in between, and to a record and its images, judged afresh."""
    pixels = (torch.rand(12, 8, 8, 3, generator=seeded(0)) * 255).to(torch.uint8).numpy()
    for number, image in enumerate(pixels):
        for split in ("train", "val"):
            folder = tmp_path / "pictures" / split / f"class{number % 4}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.png")
    data = DataOptions(
        source=f"folder:{tmp_path / 'pictures'}", flip=True, cutout=2, validation=4, stream=stream, workers=0
    )
    experiment = Experiment(
        data, Named("small-cnn", {"width": 2}), Named("n-fgsm"), settings=Settings(epochs=2, batch_size=4)
    )
    list(train_into(experiment, tmp_path / "plain"))
    with torch.device(FAR):
        next(train_into(experiment, tmp_path / "run"))
        list(train_into(experiment, tmp_path / "run", resume=True))
    task, judged = (
        EvaluationConfig(data.source, Linf("8/255"), ("pgd-2-1",), keep_images=True),
        load_model(str(tmp_path / "run")),
    )
    with torch.device(FAR):
        *_, record = evaluate_into(judged, task, tmp_path / "judged")
        assert verify(judged, task, tmp_path / "judged" / IMAGES).robust.value == record.survivors().mean()
    plain, run = (load_file(tmp_path / name / WEIGHTS) for name in ("plain", "run"))
    assert all(torch.equal(plain[name], run[name]) for name in plain)
