"""Two processes that exchange tensors by gloo take the steps that one would take on the same images."""

from copy import deepcopy
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from several import together
from torch import Tensor, nn

from planish.core.errors import BadInput
from planish.core.randomness import draws, seeded, twin
from planish.core.share import OwnRows, Share
from planish.core.threat import Linf
from planish.data import load
from planish.data.batches import Augmentation, Batches
from planish.data.images import Images
from planish.models.small_cnn import small_cnn
from planish.registry import components, make
from planish.training.collapse import Guard, probe
from planish.training.loop import fit, start
from planish.training.processes import ALONE, Group, joined, own_device, refuse_wrapped
from planish.training.settings import Settings

THREAT, CLASSES, BATCH, COUNT = Linf(0.05), 4, 7, 14  # parts of 4 and 3 images
PLAIN = Settings(epochs=2, batch_size=BATCH, learning_rate=0.05, schedule="constant", momentum=0.5, weight_decay=0.01)
GRADIENT = replace(PLAIN, epochs=1, batch_size=COUNT - 1, learning_rate=1.0, momentum=0.0, weight_decay=0.0)
METHODS = sorted(components("methods"))
SEVEN = ("standard", "fgsm", "pgd", "seat", "llr", "gradient-penalty", "planish-at")
OF_THE_WHOLE_BATCH = {"nuat", "seat-published"}
"""Their losses are no means over images: of a nuclear norm, and of the absolute value of a mean."""


def images() -> Images:
    generator = torch.Generator().manual_seed(7)
    x = torch.randint(256, (COUNT, 1, 8, 8), generator=generator).to(torch.uint8)
    labels = torch.randint(CLASSES, (COUNT,), generator=generator)
    return Images(x, labels, ("a", "b", "c", "d"), "made", torch.arange(COUNT) * 5 + 100)


def network(*, frozen: bool) -> nn.Module:
    """A small network whose batch norms have seen something; frozen: they rest."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small_cnn(classes=CLASSES, channels=1, width=4, activation="softplus")
        with torch.no_grad():
            model(torch.rand(64, 1, 8, 8))
    for module in model.modules():
        module.training = not (frozen and isinstance(module, nn.BatchNorm2d))
    return model


def flat(parts: Any) -> Tensor:
    return torch.cat([part.detach().flatten().float() for part in parts])


def trained(
    group: Group, method: str, settings: Settings = PLAIN, *, frozen: bool = True, **more: Any
) -> dict[str, Any]:
    model = network(frozen=frozen)
    state = start(model, settings, group)
    batches = Batches(images(), settings.batch_size, Augmentation(crop=1, flip=True), share=group.share)
    run = fit(state, make("methods", method, {}), THREAT, batches, settings, seed=3, group=group, **more)
    metrics = [record.metrics for record in run]
    found = {"weights": flat(model.parameters()), "buffers": flat(model.buffers()), "memory": dict(state.memory)}
    return {**found, "average": flat(state.deployed.parameters()), "metrics": metrics, "probes": state.monitor.probes}


def short_run(group: Group) -> dict[str, float]:
    """Accuracy on 450 digits, clean and after one step, of a network with batch norm trained for six epochs."""
    settings = Settings(epochs=6, batch_size=64, learning_rate=0.1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = start(small_cnn(classes=10, channels=1, width=8, activation="relu"), settings, group)
    batches = Batches(load("digits", "train"), settings.batch_size, share=group.share)
    for _ in fit(state, make("methods", "fgsm", {}), THREAT, batches, settings, seed=0, group=group):
        pass
    test = load("digits", "test").as_batch()
    found = probe(state.model, test, THREAT)
    with torch.no_grad():
        clean = state.model.eval()(test.x).argmax(1) == test.labels
    return {"clean": float(clean.float().mean()), "one step": float(found.one_step)}


def refused(call: Any) -> str:
    with pytest.raises(BadInput) as caught:
        call()
    return str(caught.value)


def every(group: Group) -> dict[str, Any]:
    """Everything that is asked of the processes: they start once."""
    found = {name: trained(group, name) for name in METHODS}
    found |= {f"gradient of {name}": trained(group, name, GRADIENT) for name in SEVEN}
    found["accumulated"] = trained(group, "fgsm", replace(PLAIN, accumulate=2, ema=0.9, clip=0.1))
    found["against its weights"] = trained(group, "pgd", replace(PLAIN, weight_perturbation=0.02))
    found["as it comes"] = trained(group, "trades", frozen=False)
    found["short run"] = short_run(group)
    found["guarded"] = trained(group, "fgsm", guard=Guard(every=1, images=4, probe_every=2))
    return found


def errors(group: Group) -> dict[str, str]:
    """What is refused, in both processes alike."""
    from torch.distributed.fsdp import fully_shard  # three seconds that no other test needs

    number = group.share.number

    def fails_in_second() -> int:
        if number == 1:
            raise BadInput("no disk")
        return number

    def both_fail() -> int:
        raise BadInput("no data")

    with joined() as again:  # of a group that is there already
        assert again == group
    whole = Batches(images(), BATCH)
    state = start(network(frozen=True), PLAIN)
    fitted = fit(state, make("methods", "fgsm", {}), THREAT, whole, PLAIN, seed=0, group=group)
    sharded = nn.Sequential(nn.Linear(4, 4))
    fully_shard(sharded)
    wrapped = nn.parallel.DistributedDataParallel(nn.Linear(4, 4))
    synchronized = replace(PLAIN, batch_norm="synchronized")
    return {
        "one": refused(lambda: group.together(fails_in_second)),
        "both": refused(lambda: group.together(both_fail)),
        "differ": refused(lambda: group.agree({"planish": "2.0", "settings.epochs": 3 + number})),
        "whole": refused(lambda: next(fitted)),
        "sharded": refused(lambda: start(sharded, PLAIN)),
        "wrapped": refused(lambda: start(wrapped, PLAIN)),
        "synchronized": refused(lambda: start(network(frozen=False), synchronized, group)),
        "told": " ".join(group.texts(f"Zürich {'!' * number}")),
    }


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return every(ALONE)


def both(group: Group) -> dict[str, Any]:
    return {**every(group), "errors": errors(group)}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return together(both, 2, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("name", SEVEN)
def test_the_gradient_of_a_step_is_that_of_one_process(name: str, one: dict[str, Any], two: list[dict[str, Any]]):
    """Of a step with rate 1 from the same weights, on parts of seven and six images."""
    alone, (first, second) = one[f"gradient of {name}"], (each[f"gradient of {name}"] for each in two)
    assert (alone["weights"] - flat(network(frozen=True).parameters())).abs().max() > 0.1
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=0, atol=1e-5)
    assert torch.equal(first["weights"], second["weights"])


@pytest.mark.parametrize("name", [*METHODS, "accumulated", "against its weights", "guarded"])
def test_two_processes_take_the_steps_of_one(name: str, one: dict[str, Any], two: list[dict[str, Any]]):
    """Weights after four steps, metrics, and what the method remembers, with parts of four and three images."""
    alone, (first, second) = one[name], (each[name] for each in two)
    assert torch.equal(first["weights"], second["weights"]) and torch.equal(first["average"], second["average"])
    assert (alone["weights"] - flat(network(frozen=True).parameters())).abs().max() > 0.002
    if name in OF_THE_WHOLE_BATCH:
        assert not torch.allclose(first["weights"], alone["weights"], rtol=0, atol=1e-6)
        return
    for what in ("weights", "average", "buffers"):
        torch.testing.assert_close(first[what], alone[what], rtol=0, atol=1e-4)
    assert first["memory"].keys() == second["memory"].keys() == alone["memory"].keys()
    for key, value in alone["memory"].items():
        assert torch.equal(first["memory"][key], second["memory"][key])
        torch.testing.assert_close(first["memory"][key], value, rtol=1e-3, atol=1e-4)
    for found, wanted in zip(first["metrics"], alone["metrics"], strict=True):
        shared = [key for key in wanted if not key.startswith("guard_")]
        assert [found[key] for key in shared] == pytest.approx([wanted[key] for key in shared], rel=1e-3, abs=1e-4)
    assert first["metrics"] == second["metrics"]


def test_batch_norms_see_their_own_images_and_share_their_running_averages(
    one: dict[str, Any], two: list[dict[str, Any]]
):
    """Local batch norm: another number of processes is another training, the same in all of them."""
    alone, first, second = one["as it comes"], two[0]["as it comes"], two[1]["as it comes"]
    assert torch.equal(first["buffers"], second["buffers"]) and torch.equal(first["weights"], second["weights"])
    assert not torch.allclose(first["buffers"], alone["buffers"], rtol=0, atol=1e-5)
    torch.testing.assert_close(first["buffers"], alone["buffers"], rtol=0.1, atol=0.05)


def test_a_short_run_reaches_the_same_accuracy(one: dict[str, Any], two: list[dict[str, Any]]):
    """With local batch norm, within what another seed would change too."""
    alone, (first, second) = one["short run"], (each["short run"] for each in two)
    assert first == second and alone["clean"] > 0.9 and alone["one step"] > 0.6
    assert first == pytest.approx(alone, abs=0.04)


def test_the_guard_decides_on_the_same_numbers_in_all(two: list[dict[str, Any]]):
    first, second = (each["guarded"]["probes"] for each in two)
    assert first == second and len(first) == 4 and "robust" in first[1]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("one", "process 1: no disk"),
        ("both", "no data"),
        ("differ", "process 1 has settings.epochs 4, process 0 has 3: start all of them with the same"),
        ("whole", "several processes need batches that know their share"),
        ("sharded", "the model is sharded by FSDP, which frees weights that a second forward or backward"),
        ("wrapped", "the model is wrapped for several devices already: give the plain model"),
        ("synchronized", 'settings.batch_norm = "synchronized" needs GPUs'),
        ("told", "Zürich  Zürich !"),
    ],
)
def test_all_processes_refuse_alike(what: str, words: str, two: list[dict[str, Any]]):
    first, second = (each["errors"][what] for each in two)
    assert first == second and first.startswith(words)


def test_every_row_belongs_to_one_share():
    for of in range(1, 6):
        for count in range(of, 12):
            rows = [[*range(count)][Share(number, of).rows(count)] for number in range(of)]
            assert [*chain(*rows)] == [*range(count)] and max(map(len, rows)) - min(map(len, rows)) <= 1
    with pytest.raises(BadInput, match=r"a batch of 3 images cannot be shared by 4 processes: set settings"):
        Share(0, 4).rows(3)
    with pytest.raises(BadInput, match="cannot be shared by 8 processes"):
        Batches(images(), BATCH, share=Share(0, 8))


def test_an_image_has_the_noise_that_it_has_in_the_whole_batch():
    x = torch.rand(BATCH, 1, 4, 4)
    whole = seeded(1, 2)
    drawn = [draws(x, whole), draws(x, whole)]
    for number in range(3):
        share = Share(number, 3)
        own = OwnRows.of(seeded(1, 2), share, BATCH)
        rows = share.rows(BATCH)
        assert torch.equal(draws(x[rows], own), drawn[0][rows])
        again = twin(own)
        assert torch.equal(draws(x[rows], own), drawn[1][rows]) and torch.equal(draws(x[rows], again), drawn[1][rows])


def test_shares_of_batches_are_the_batches():
    whole = Batches(images(), 4, Augmentation(crop=1, flip=True, cutout=2), drop_last=False)
    parts = [replace(whole, share=Share(number, 2)) for number in range(2)]
    found = zip(*(part.epoch(1, 5, skip=1) for part in parts), strict=True)
    for wanted, (first, second) in zip(whole.epoch(1, 5, skip=1), found, strict=True):
        for both_parts, part in zip(zip(first[:3], second[:3], strict=True), wanted[:3], strict=True):
            assert torch.equal(torch.cat(both_parts), part)  # type: ignore[arg-type]
    assert [whole.whole(step) for step in range(4)] == [4, 4, 4, 2]


def test_a_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch):
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_device("cuda") == torch.device("cuda", 1) and taken == [1] and own_device("cpu").type == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(BadInput, match="process 2 of this machine has no GPU: there are 2"):
        own_device("cuda")


def test_a_model_in_data_parallel_is_refused():
    model = network(frozen=False)
    refuse_wrapped(deepcopy(model))
    with pytest.raises(BadInput, match="wrapped for several devices already"):
        start(nn.DataParallel(model), PLAIN)


def test_synchronized_batch_norm_in_one_process_is_plain():
    settings = replace(PLAIN, batch_norm="synchronized")
    assert torch.equal(trained(ALONE, "fgsm", settings)["weights"], trained(ALONE, "fgsm")["weights"])
    with pytest.raises(BadInput, match="synchronized batch norm has no second derivative"):
        trained(ALONE, "llr", settings)
