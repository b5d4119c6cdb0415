"""Models in a report: what they are called, how two of one name are told apart, what their training cost."""

from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
import torch

from planish.core.threat import Linf
from planish.records import audit
from planish.report.tables import summary_rows
from planish.runs.config import DataOptions, Experiment, Named, ThreatOptions
from planish.runs.judge import EvaluationConfig, comparison, entries, evaluate_into, load_model
from planish.runs.names import name_of
from planish.runs.train import train_into
from planish.training.settings import Settings

TINY = Experiment(
    data=DataOptions("digits", limit=100),
    model=Named("small-cnn", {"width": 2}),
    method=Named("fgsm"),
    threat=ThreatOptions("Linf", 0.1),
    settings=Settings(epochs=1, batch_size=50, learning_rate=0.2),
)
TASK = EvaluationConfig("digits", Linf(0.1), ("fgsm",), limit=20)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert len(list(train_into(TINY, folder))) == 1
    return folder


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("runs/robust", "robust"),
        ("runs/robust/model-best.safetensors", "robust-best"),
        ("nets.py:wide", "wide"),
        ("my.nets:your_model", "your_model"),
        ("nets.py:build", "nets"),
        ("my.nets:get_model", "nets"),
        ("timm:resnet18", "resnet18"),
        ("hf:google/vit-base", "google/vit-base"),
        ("exports/vgg.onnx", "vgg"),
    ],
)
def test_a_model_is_called_as_its_folder_file_or_function(spec: str, name: str):
    """Not as its method: "planish keeps 44 % after planish" told nobody which model it was (issue 20, item 5)."""
    assert name_of(spec) == name


def test_models_of_one_name_are_told_apart_by_their_folders(run_folder: Path, tmp_path: Path):
    other = load_model(str(run_folder))
    with torch.no_grad():
        next(other.model.parameters()).mul_(0.5)
    for place, judged in (("a/tiny", load_model(str(run_folder))), ("b/tiny", other), ("mine", other)):
        list(evaluate_into(judged, TASK, tmp_path / place))
    found = entries([tmp_path / "a/tiny", tmp_path / "b/tiny"])
    assert [entry.name for entry in found] == ["a/tiny", "b/tiny"]
    assert [entry.name for entry in entries([tmp_path / "a/tiny", tmp_path / "mine"])] == ["tiny", "tiny, mine"]


def test_audits_of_one_name_are_told_apart_by_their_folders(tmp_path: Path):
    """They were "tiny, audit 1" and "tiny, audit 2", whatever they lay in."""
    old = Path(__file__).parents[1] / "records" / "old" / "audit"
    for place in ("a", "b"):
        copytree(old, tmp_path / place / "judged")
    name = audit.load(old).name
    found = comparison([tmp_path / "a/judged", tmp_path / "b/judged"]).audits
    assert [one.name for one in found] == [f"{name}, a/judged", f"{name}, b/judged"]
    assert [one.name for one in comparison([tmp_path / "a/judged"]).audits] == [name]


def test_seconds_are_relative_to_the_model_of_the_standard_method_whatever_it_is_called(tmp_path: Path):
    for place, method in (("plain", "standard"), ("standard", "fgsm")):
        list(train_into(replace(TINY, method=Named(method)), tmp_path / place))
        list(evaluate_into(load_model(str(tmp_path / place)), replace(TASK, attacks=()), tmp_path / place))
    plain, other = entries([tmp_path / "plain", tmp_path / "standard"])
    assert (plain.method, other.method) == ("standard", "fgsm")
    assert plain.training["relative_seconds"] == 1 != other.training["relative_seconds"]


def test_an_evaluation_goes_on_though_its_model_is_called_otherwise_now(run_folder: Path, tmp_path: Path):
    judged = load_model(str(run_folder))
    list(evaluate_into(replace(judged, name="fgsm"), TASK, tmp_path))
    *_, last = evaluate_into(judged, replace(TASK, attacks=("fgsm", "noise")), tmp_path, resume=True)
    assert last.names == ("fgsm", "noise") and last.meta["model"]["name"] == "tiny"


def test_training_cost_counts_the_epochs_that_were_done(tmp_path: Path):
    """Three epochs stood beside twelve with the cost of one step; an extended run costs all that it took (item 4)."""
    for place, method, epochs in (("a", "standard", 1), ("a", "standard", 3), ("b", "fgsm", 2)):
        longer = replace(TINY, method=Named(method), settings=replace(TINY.settings, epochs=epochs))
        list(train_into(longer, tmp_path / place, resume=True))
    for place in ("a", "b"):
        list(evaluate_into(load_model(str(tmp_path / place)), TASK, tmp_path / place))
    plain, single = entries([tmp_path / "a", tmp_path / "b"])
    assert plain.cost == 3 and single.cost == pytest.approx(2 * 1.67, abs=0.15)
    assert summary_rows([plain, single]).rows[0][-2] == "3.0"


def test_replays_are_epochs(tmp_path: Path):
    list(train_into(replace(TINY, method=Named("free", {"replays": 3})), tmp_path / "free"))
    training = load_model(str(tmp_path / "free")).training
    assert training is not None and training["epochs"] == 3 and len(training["history"]) == 1
