"""torchattacks' way of calling: its scripts run with another import, and find about what torchattacks finds."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from half_broken import EPS, EPS_L2
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from planish.compat import torchattacks
from planish.compat.calling import TorchAttack
from planish.core.errors import BadInput

L2 = {"eps": EPS_L2, "alpha": 0.09}
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("FGSM", {"eps": EPS}),
    ("FFGSM", {"eps": EPS, "alpha": 1.25 * EPS}),
    ("BIM", {"eps": EPS, "alpha": EPS / 4, "steps": 6}),
    ("PGD", {"eps": EPS, "alpha": EPS / 4, "steps": 6, "random_start": True}),
    ("PGDL2", {**L2, "steps": 6}),
    ("MIFGSM", {"eps": EPS, "alpha": EPS / 4, "steps": 6, "decay": 1.0}),
    ("APGD", {"norm": "Linf", "eps": EPS, "steps": 8}),
    ("APGD", {"norm": "L2", "eps": EPS_L2, "steps": 8, "loss": "dlr"}),
    ("APGDT", {"norm": "Linf", "eps": EPS, "steps": 8, "n_classes": 5}),
    ("FAB", {"norm": "Linf", "eps": EPS, "steps": 8, "multi_targeted": True, "n_classes": 5}),
    ("Square", {"norm": "Linf", "eps": 2 * EPS, "n_queries": 80}),
    ("CW", {"c": 1, "kappa": 0, "steps": 30, "lr": 0.02}),
    ("DeepFool", {"steps": 10, "overshoot": 0.02}),
]
AIMING = ["FGSM", "FFGSM", "BIM", "PGD", "PGDL2", "MIFGSM"]


def right(network: nn.Module, x: Tensor, labels: Tensor) -> int:
    return int((network(x).argmax(1) == labels).sum())


@pytest.mark.parametrize(("name", "options"), CALLS, ids=[f"{name}-{place}" for place, (name, _) in enumerate(CALLS)])
def test_as_torchattacks(
    name: str, options: dict[str, Any], peer: Any, network: nn.Module, images: Tensor, labels: Tensor
):
    """The same type, shape, dtype and graph; in the ball and in the box; no weaker by more than two of 24 images."""
    theirs = getattr(peer, name)(network, **options)(images, labels)
    ours = getattr(torchattacks, name)(network, **options)(images, labels)
    assert type(ours) is type(theirs) and ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert ours.device == theirs.device and not ours.requires_grad
    assert right(network, ours, labels) <= right(network, theirs, labels) + 2 and right(network, ours, labels) < 22
    assert ours.min() >= 0 and ours.max() <= 1
    if (eps := options.get("eps")) is not None:
        away = (ours - images).flatten(1)
        norm = away.norm(dim=1) if "L2" in name or options.get("norm") == "L2" else away.abs().amax(1)
        assert float(norm.max()) <= eps + 1e-5


@pytest.mark.parametrize("name", sorted({name for name, _ in CALLS} | {"AutoAttack"}))
def test_the_same_arguments_in_the_same_places(name: str, peer: Any, network: nn.Module):
    ours, theirs = (inspect.signature(getattr(home, name)).parameters for home in (torchattacks, peer))
    assert [*ours] == [*theirs]
    for key, own in theirs.items():
        assert ours[key].default == own.default, key


def test_the_readme(network: nn.Module, images: Tensor, labels: Tensor):
    """Normalised images, a targeted mode by function, by label, and the default again."""
    mean, std = [0.4], [0.3]
    normalised = (images - 0.4) / 0.3
    behind = nn.Sequential(nn.Identity(), Denormalised(network))
    atk = torchattacks.PGD(behind, eps=EPS, alpha=EPS / 4, steps=6)
    atk.set_normalization_used(mean=mean, std=std)
    adv_images = atk(normalised, labels)
    assert float((adv_images * 0.3 + 0.4 - images).abs().max()) <= EPS + 1e-5
    assert right(behind, adv_images, labels) < 18 < right(behind, normalised, labels)

    atk = torchattacks.PGD(network, eps=0.3, alpha=0.05, steps=20)
    atk.set_mode_targeted_by_function(target_map_function=lambda images, labels: (labels + 1) % 5)
    wanted = (labels + 1) % 5
    reached = network(atk(images, labels)).argmax(1) == wanted
    atk.set_mode_targeted_by_label(quiet=True)
    assert atk.get_mode() == "targeted(label)" and "targeted(label)" in repr(atk)
    again = network(atk(images, wanted)).argmax(1) == wanted
    assert reached.sum() > 20 and again.sum() > 20
    atk.set_mode_default()
    assert right(network, atk(images, labels), labels) == 0


class Denormalised(nn.Module):
    """The network, of images that come as (x - 0.4) / 0.3."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x * 0.3 + 0.4)
        return logits


def test_a_loop_over_a_loader_with_several_attacks(network: nn.Module, images: Tensor, labels: Tensor, peer: Any):
    """The demo on CIFAR-10: a list of attacks, their names printed, batch after batch, accuracy counted."""

    def counted(home: Any) -> dict[str, int]:
        torch.manual_seed(0)
        atks = [
            home.FGSM(network, eps=EPS),
            home.PGD(network, eps=EPS, alpha=EPS / 4, steps=7, random_start=True),
            home.MultiAttack([home.PGD(network, eps=EPS, alpha=EPS / 4, steps=7)] * 2),
        ]
        found = dict.fromkeys((atk.attack for atk in atks), 0)
        for atk in atks:
            for batch, wanted in DataLoader(TensorDataset(images, labels), batch_size=10):
                found[atk.attack] += right(network, atk(batch, wanted), wanted)
        return found

    ours, theirs = counted(torchattacks), counted(peer)
    assert ours.keys() == theirs.keys() == {"FGSM", "PGD", "MultiAttack"}
    assert all(abs(ours[name] - theirs[name]) <= 2 for name in ours)
    assert ours["MultiAttack"] <= ours["PGD"] <= ours["FGSM"] < 22


def test_saved_and_loaded(network: nn.Module, images: Tensor, labels: Tensor, tmp_path: Path):
    atk = torchattacks.PGD(network, eps=EPS, alpha=EPS / 4, steps=6)
    loader = DataLoader(TensorDataset(images, labels), batch_size=10)
    accuracy, distance, seconds = atk.save(loader, tmp_path / "adv.pt", return_verbose=True, save_predictions=True)
    assert 0 < accuracy < 80 and 0 < distance <= 8 * EPS and seconds > 0
    batches = [*atk.load(tmp_path / "adv.pt", batch_size=9, load_predictions=True)]
    x_adv, wanted, predicted = (torch.cat(part) for part in zip(*batches, strict=True))
    assert torch.equal(wanted, labels) and torch.equal(network(x_adv).argmax(1), predicted)
    assert 100 * right(network, x_adv, labels) / 24 == pytest.approx(accuracy)
    with pytest.raises(BadInput, match="the loader yields no images: give it some"):
        atk.save([])
    with pytest.raises(BadInput, match="holds no clean_inputs"):
        atk.load(tmp_path / "adv.pt", load_clean_inputs=True)


def test_subclasses_attributes_and_the_global_seed(network: nn.Module, images: Tensor, labels: Tensor):
    class Own(torchattacks.PGD):
        def __init__(self, model: nn.Module, levels: int) -> None:
            super().__init__(model, levels / 255, 2 / 255, 3)

    atk = Own(network, 4)
    near = (atk(images, labels) - images).abs().max()
    atk.eps = EPS
    assert isinstance(atk, torchattacks.PGD) and near <= 4.001 / 255 < (atk(images, labels) - images).abs().max()
    first, second = (atk(images, labels) for _ in range(2))
    assert not torch.equal(first, second), "every call starts elsewhere"
    with torch.random.fork_rng(devices=[]):
        drawn = [(torch.manual_seed(3), atk(images, labels))[1] for _ in range(2)]
    assert torch.equal(*drawn)


def test_random_and_least_likely_targets_and_whole_numbers(network: nn.Module, images: Tensor, labels: Tensor):
    atk = torchattacks.PGD(network, eps=0.4, alpha=0.05, steps=20)
    atk.set_mode_targeted_random()
    drawn = atk.get_target_label(images, labels)
    assert bool((drawn != labels).all()) and len(set(drawn.tolist())) == 5
    atk.set_mode_targeted_least_likely()
    least = atk.get_target_label(images, labels)
    assert int((network(atk(images, labels)).argmax(1) == least).sum()) > 18
    atk.set_return_type("int")
    assert atk(images, labels).dtype == torch.uint8


def test_the_classes_to_reach_in_place_of_the_labels(network: nn.Module, images: Tensor, labels: Tensor):
    """As torchattacks' targeted mode takes them: that they are the labels of the call is no mistake."""
    atk = torchattacks.PGD(network, eps=0.4, alpha=0.05, steps=20)
    atk.set_mode_targeted_by_label()
    wanted = torch.zeros_like(labels)
    assert int((network(atk(images, wanted)).argmax(1) == wanted).sum()) > 18


def test_what_planish_has_not_is_said_in_a_line(network: nn.Module, images: Tensor, labels: Tensor):
    pgd, apgd = torchattacks.PGD(network), torchattacks.APGD(network, eot_iter=2)
    with pytest.raises(BadInput, match="torchattacks' NIFGSM; it has APGD, APGDT, AutoAttack"):
        _ = torchattacks.NIFGSM
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = torchattacks.Nothing
    with pytest.raises(BadInput, match="in evaluation mode"):
        pgd.set_model_training_mode(model_training=True)
    with pytest.raises(BadInput, match="aims at no class"):
        torchattacks.DeepFool(network).set_mode_targeted_by_label()
    with pytest.raises(BadInput, match="eot_iter must be one of 1"):
        apgd(images, labels)
    with pytest.raises(BadInput, match="one model"):
        torchattacks.MultiAttack([pgd, torchattacks.PGD(nn.Sequential(network))])
    with pytest.raises(BadInput, match="pixels lie in"):
        pgd(images * 255, labels)
    with pytest.raises(BadInput, match="TorchAttack says no attack: give it forward"):
        TorchAttack(network)(images, labels)


def test_whole_numbers_of_normalised_images(network: nn.Module, images: Tensor, labels: Tensor):
    """They came as float32, and what `save` judged and kept were whole numbers."""
    atk = torchattacks.FGSM(Denormalised(network), eps=EPS)
    atk.set_normalization_used((0.4,), (0.3,))
    inputs = (images - 0.4) / 0.3
    x_adv = atk(inputs, labels) * 0.3 + 0.4
    before = atk.save([(inputs, labels)], return_verbose=True)
    atk.set_return_type("int")
    found, after = atk(inputs, labels), atk.save([(inputs, labels)], return_verbose=True)
    assert found.dtype == torch.uint8 and float((found / 255 - x_adv).abs().max()) <= 0.51 / 255
    assert before is not None and after is not None and before[:2] == after[:2]


@pytest.mark.parametrize("content", [None, b"", b"no images", [1]])
def test_what_save_did_not_write_is_one_line(content: bytes | list[int] | None, tmp_path: Path):
    """It was a FileNotFoundError, an EOFError or an UnpicklingError."""
    file = tmp_path / "adv.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(BadInput, match=r"adv\.pt .*file that `save` wrote"):
        TorchAttack.load(file)
