"""RobustBench's zoo as a model: a stand-in for it, since it downloads; and the fields that its own code makes."""

import os
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from half_broken import EPS
from torch import Tensor, nn

from planish import Linf, evaluate
from planish.attacks import Noise
from planish.core.errors import BadInput
from planish.models import build
from planish.report.robustbench import model_info
from planish.runs.judge import load_model

Asked = list[dict[str, Any]]


class Stranger:
    """What a file may hold beside tensors."""


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """A zoo with a model whose file holds tensors and one whose file holds more; it loads as RobustBench does."""
    asked: Asked = []
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
    files: dict[str, Any] = {"Good2020Tensors": network.state_dict(), "Bad2021Pickle": {"state": Stranger()}}
    for name, content in files.items():
        torch.save(content, tmp_path / f"{name}.pt")

    def load_model(model_name: str, model_dir: Path, dataset: str, threat_model: str) -> nn.Module:
        asked.append({"name": model_name, "dir": model_dir, "dataset": dataset, "threat": threat_model})
        print("Downloading ...")
        path = {name: tmp_path / f"{name}.pt" for name in files}[model_name]
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=False))
        return network.train()

    utils = ModuleType("robustbench.utils")
    utils.load_model = load_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "robustbench", ModuleType("robustbench"))
    monkeypatch.setitem(sys.modules, "robustbench.utils", utils)
    monkeypatch.setenv("PLANISH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    return asked


def test_a_model_of_the_zoo(zoo: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    judged = load_model("robustbench:Good2020Tensors")
    assert judged.name == "Good2020Tensors" and not any(module.training for module in judged.model.modules())
    x = torch.rand(6, 3, 4, 4)
    inner: nn.Module = judged.model.network  # type: ignore[assignment]
    assert torch.equal(judged.model(x), inner(x)), "images in [0, 1], as the zoo takes them"
    load_model("robustbench:cifar100/L2/Good2020Tensors")
    home = tmp_path / "home" / "robustbench"
    assert [(one["dataset"], one["threat"], one["dir"]) for one in zoo] == [
        ("cifar10", "Linf", home),
        ("cifar100", "L2", home),
    ]
    assert "Downloading" not in capsys.readouterr().out
    record = evaluate(judged.model, x, judged.model(x).argmax(1), Linf(0.01), "fgsm")
    assert record.clean_accuracy().value == 1


def test_nothing_is_unpickled_whatever_the_zoo_asks_for(zoo: Asked, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pickle, "load", pytest.fail)
    with pytest.raises(BadInput, match="more than tensors is never read: load it in a function of your own"):
        load_model("robustbench:Bad2021Pickle")
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_wrong_names_are_said_in_a_line(zoo: Asked):
    with pytest.raises(BadInput, match="no model 'Nobody' for cifar10 and Linf"):
        load_model("robustbench:Nobody")
    with pytest.raises(BadInput, match="DATASET/THREAT/NAME"):
        load_model("robustbench:cifar10/Nobody")
    with pytest.raises(BadInput, match="comes as it was trained"):
        build("robustbench:Good2020Tensors", classes=7, channels=3)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "robustbench", None)
    with pytest.raises(BadInput, match="needs robustbench, which cannot be imported"):
        load_model("robustbench:Good2020Tensors")


def test_autoattack_and_what_is_better_are_told_apart(network: nn.Module, images: Tensor, labels: Tensor):
    """As RobustBench's "autoattack_acc", and "external" where another attack leaves less."""
    short = dict.fromkeys(("apgd-ce", "apgd-t", "fab-t", "square"), Noise(1))
    attacks: dict[str, Any] = {f"autoattack/{name}": attack for name, attack in short.items()}
    record = evaluate(network, images, labels, Linf(EPS), attacks)
    found = model_info(record)
    assert found["autoattack_acc"] == found["reported"] and "external" not in found
    more = evaluate(network, images, labels, Linf(EPS), {**attacks, "pgd": "pgd-40-5"})
    assert float(model_info(more)["external"]) < float(model_info(more)["autoattack_acc"])
    with pytest.raises(BadInput, match="needs an attack"):
        model_info(evaluate(network, images, labels, Linf(EPS), []))
