"""Judging a model into a folder and reading it back; where models come from."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from planish.attacks.suites import Staged
from planish.core.errors import BadInput
from planish.core.randomness import initialised
from planish.core.threat import Linf
from planish.evaluation.naming import attacks_of
from planish.records.evaluation import load
from planish.records.origin import attack_text, model_digest
from planish.report import write_report
from planish.runs import quickstart as quick
from planish.runs.config import DataOptions, Experiment, Named, ThreatOptions
from planish.runs.judge import (
    EVALUATION,
    GALLERY,
    EvaluationConfig,
    entries,
    evaluate_into,
    load_model,
)
from planish.runs.judge import images_to_judge as images_of
from planish.runs.judge import measure as measure_into
from planish.runs.train import train_into
from planish.training.settings import Settings

TINY = Experiment(
    data=DataOptions("digits", limit=200),
    model=Named("small-cnn", {"width": 4}),
    method=Named("fgsm"),
    threat=ThreatOptions("Linf", 0.1),
    settings=Settings(epochs=3, batch_size=50, learning_rate=0.2),
)
TASK = EvaluationConfig("digits", Linf(0.1), ("fgsm", "pgd-3-1"), limit=40)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert len(list(train_into(TINY, folder))) == 3
    return folder


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(
        "import torch\n"
        "def net():\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
        "def wants(width):\n"
        "    return width\n"
        "def number():\n"
        "    return 3\n"
        "def three():\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))\n"
        "def colour():\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))\n"
        "value = 4\n"
    )
    return path


def test_a_run_folder_is_a_subject(run_folder: Path):
    judged = load_model(str(run_folder))
    assert judged.name == "tiny" and not judged.model.training
    assert judged.about["classes"] == [str(digit) for digit in range(10)]
    assert judged.training["passes"] > 1 and len(judged.training["history"]) == 3
    assert judged.training["seconds"] == sum(record["seconds"] for record in judged.training["history"])


def test_a_function_is_a_subject(own_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(own_file.parent)
    for spec in (f"{own_file}:net", "own:net"):
        judged = load_model(spec)
        assert judged.name == "own" and judged.training is None
        assert judged.model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere", "no model at 'nowhere': give a run folder that holds model.safetensors, package.module:function"),
        ("{folder}", "no model at '{folder}': give a run folder that holds model.safetensors"),
        ("{folder}/none.py:net", "cannot import '{folder}/none.py' for model '{folder}/none.py:net': no file"),
        ("planish_none:net", "cannot import 'planish_none' for model 'planish_none:net': No module named"),
        ("{folder}/own.py:none", "'{folder}/own.py' has no function or class 'none'"),
        ("{folder}/own.py:value", "'{folder}/own.py' has no function or class 'value'"),
        ("{folder}/own.py:number", "model '{folder}/own.py:number' returned int, not a torch.nn.Module"),
        ("{folder}/own.py:wants", "model '{folder}/own.py:wants' does not take these options"),
    ],
)
def test_what_is_no_subject(spec: str, message: str, own_file: Path):
    folder = str(own_file.parent)
    with pytest.raises(BadInput) as raised:
        load_model(spec.format(folder=folder))
    assert str(raised.value).startswith(message.format(folder=folder))


def test_attacks_by_name_know_the_number_of_classes():
    attacks = attacks_of(["pgd-5-2", "apgd-t-5", "multi-targeted-5-1"], 3)
    assert list(attacks) == ["pgd-5-2", "apgd-t-5", "multi-targeted-5-1"]
    assert [len(attacks[name].assembled(3).attacks) for name in ("apgd-t-5", "multi-targeted-5-1")] == [2, 2]
    with pytest.raises(BadInput, match=r"unknown attack 'pdg-5'\. Did you mean 'pgd'\?"):
        attacks_of(["pdg-5"], 3)


def test_one_attack_of_a_suite_by_name():
    found = attacks_of(["paper-llr/fgsm-20", "autoattack/apgd-ce"], 10)
    stages = attacks_of(["paper-llr", "autoattack"], 10)
    suites = [suite for suite in stages.values() if isinstance(suite, Staged)]
    assert list(found.values()) == [suites[0].stages[0].attack, suites[1].stages[0].attack]
    with pytest.raises(BadInput, match=r"'paper-llr' has no stage 'fgsm'\. Did you mean 'fgsm-20'\?"):
        attacks_of(["paper-llr/fgsm"], 10)
    with pytest.raises(BadInput, match="'pgd' has no stage 'first'"):
        attacks_of(["pgd/first"], 10)


def test_fewer_images_than_asked_for_are_told():
    batch, about, warnings = images_of(EvaluationConfig("digits", Linf(0.1), (), limit=10_000), {})
    assert len(batch.x) == about["images"] == 500
    assert warnings == ["asked for 10,000 images, digits has 500"]
    assert images_of(EvaluationConfig("digits", Linf(0.1), (), limit=20), {})[2] == []


def test_judged_read_back_and_reported(run_folder: Path, tmp_path: Path):
    out = tmp_path / "judged"
    judged = load_model(str(run_folder))
    records = list(evaluate_into(judged, TASK, out))
    assert [len(record.columns) for record in records] == [0, 1, 2]
    (entry,) = entries([out])
    assert entry.name == "tiny" and entry.evaluation.names == ("fgsm", "pgd-3-1")
    assert entry.evaluation.robust_accuracy() == records[-1].robust_accuracy()
    assert entry.training["passes"] == judged.training["passes"]
    page = write_report([entry], out, "Title", {"commands": ["planish evaluate"]})
    document = json.loads((out / "results.json").read_text())
    robust = records[-1].robust_accuracy()
    assert document["methods"][0]["evaluation"]["robust"]["hits"] == robust.hits
    assert "Title" in page.read_text() and 0 < robust.hits < records[-1].clean_accuracy().hits


def gallery(folder: Path) -> dict[str, Any]:
    with np.load(folder / GALLERY, allow_pickle=False) as arrays:
        return dict(arrays)


def check_gallery(folder: Path, model: Callable[..., Any]) -> None:
    """Every pair shows an image that was right and its twin, misclassified as written below it."""
    shown, record = gallery(folder), load(folder / EVALUATION)
    with torch.no_grad():
        clean, twin = (model(torch.from_numpy(shown[key])).argmax(1).numpy() for key in ("clean", "adversarial"))
    assert 1 <= len(clean) <= 8 and (clean == shown["labels"]).all()
    assert (twin == shown["predicted_adv"]).all() and (twin != shown["labels"]).all()
    assert np.isin(shown["indices"], record.indices[record.correct() & ~record.survivors()]).all()
    assert (np.abs(shown["adversarial"] - shown["clean"]).reshape(len(clean), -1).max(1) > 0).all()


@pytest.mark.parametrize("resumed", [False, True])
def test_the_gallery_shows_broken_images(resumed: bool, run_folder: Path, tmp_path: Path):
    """Also after a resume, when the images that earlier processes broke are known by their numbers alone."""
    judged = load_model(str(run_folder))
    if resumed:
        process = evaluate_into(judged, TASK, tmp_path)
        next(process), next(process)
        process.close()
        check_gallery(tmp_path, judged.model)
    list(evaluate_into(judged, TASK, tmp_path, resume=resumed))
    check_gallery(tmp_path, judged.model)


def test_the_gallery_after_a_targeted_attack(run_folder: Path, tmp_path: Path):
    """It runs on images that fell already, too, and must not take away the twins that broke them."""
    judged = load_model(str(run_folder))
    task = EvaluationConfig("digits", Linf(0.1), ("pgd-3-1", "random-targeted-2-1"), limit=40)
    list(evaluate_into(judged, task, tmp_path))
    check_gallery(tmp_path, judged.model)


def test_a_folder_that_is_taken(run_folder: Path, tmp_path: Path):
    judged = load_model(str(run_folder))
    *_, whole = evaluate_into(judged, TASK, tmp_path / "whole")
    first = evaluate_into(judged, TASK, tmp_path / "parts")
    next(first)
    first.close()
    with pytest.raises(BadInput, match="already holds an evaluation: --resume goes on with it, --over"):
        next(evaluate_into(judged, TASK, tmp_path / "parts"))
    *_, resumed = evaluate_into(judged, TASK, tmp_path / "parts", resume=True)
    for one, other in zip(whole.columns, resumed.columns, strict=True):
        assert np.array_equal(one.margin, other.margin, equal_nan=True)
    other_task = EvaluationConfig("digits", Linf(0.2), TASK.attacks, TASK.limit)
    with pytest.raises(BadInput, match="the earlier evaluation is of another threat"):
        next(evaluate_into(judged, other_task, tmp_path / "parts", resume=True))
    with pytest.raises(BadInput, match=f"holds no {EVALUATION}; make one with: planish evaluate"):
        entries([tmp_path])


LENT = replace(TASK, attacks=("fgsm", "transfer-2"))


def test_surrogates_are_in_the_record_and_a_resume_needs_the_same(run_folder: Path, own_file: Path, tmp_path: Path):
    judged, out = load_model(str(run_folder)), tmp_path / "lent"
    other = tmp_path / "other"
    list(train_into(replace(TINY, method=Named("standard"), seed=1), other))
    lent = replace(LENT, surrogates=(str(run_folder), str(other)))
    *_, record = evaluate_into(judged, lent, out)
    text = attack_text(record.column("transfer-2").meta["attack"])
    for folder, name in ((run_folder, "tiny"), (other, other.name)):
        assert f"Surrogate(name='{name}', digest='{model_digest(load_model(str(folder)).model)}')" in text
    assert record.column("transfer-2").attempted.sum() > 0 and "Linear" not in text
    *_, resumed = evaluate_into(judged, lent, out, resume=True)
    assert resumed.names == ("fgsm", "transfer-2")
    for others in ((str(other), str(run_folder)), (str(run_folder),)):
        with pytest.raises(BadInput, match="the earlier evaluation ran another attack named 'transfer-2'; choose"):
            next(evaluate_into(judged, replace(LENT, surrogates=others), out, resume=True))
    *_, fewer = evaluate_into(judged, replace(LENT, attacks=("fgsm",)), out, resume=True)
    assert fewer.names == ("fgsm", "transfer-2")


def test_transfer_from_the_model_itself_is_its_own_attack(run_folder: Path, tmp_path: Path):
    judged = load_model(str(run_folder))
    task = replace(LENT, attacks=("transfer-5-2-9",), surrogates=(str(run_folder),))
    *_, lent = evaluate_into(judged, task, tmp_path / "lent")
    *_, own = evaluate_into(judged, replace(task, attacks=("multi-targeted-5-2",), surrogates=()), tmp_path / "own")
    assert lent.clean_accuracy().hits > lent.robust_accuracy().hits > 0
    assert abs(lent.robust_accuracy().hits - own.robust_accuracy().hits) <= 1


@pytest.mark.parametrize(
    ("surrogates", "message"),
    [
        ((), "transfer makes its images on other models and none is given; name them with --surrogates, each a run "),
        (("{folder}/own.py:three",), "surrogate '{folder}/own.py:three' has 3 classes, the model under attack 10; a "),
        (("{folder}/own.py:colour",), "surrogate '{folder}/own.py:colour': the model raises RuntimeError on images "),
        (("{folder}/own.py:net", "nowhere"), "no model at 'nowhere': give a run folder"),
    ],
)
def test_what_is_no_surrogate(
    surrogates: tuple[str, ...], message: str, run_folder: Path, own_file: Path, tmp_path: Path
):
    """It is told before anything is run."""
    place = {"folder": str(own_file.parent)}
    task = replace(LENT, surrogates=tuple(spec.format(**place) for spec in surrogates))
    with pytest.raises(BadInput) as raised:
        next(evaluate_into(load_model(str(run_folder)), task, tmp_path / "lent"))
    assert str(raised.value).startswith(message.format(**place)) and not (tmp_path / "lent").exists()


@pytest.mark.parametrize("present", [1, 2])
def test_the_model_s_logits_decide_on_the_classes(present: int, own_file: Path, tmp_path: Path):
    """Data that show few of a model's classes are attacked towards all of them, in a ball and by distance."""
    with initialised(0):
        judged = load_model(f"{own_file}:net")
    x = np.random.default_rng(0).random((8, 8, 8), dtype=np.float32)
    with torch.no_grad():
        predicted = judged.model(torch.from_numpy(x)).argmax(1).numpy()
    shown = np.unique(predicted)[:present]
    rows = np.isin(predicted, shown)
    for part in judged.model[1].parameters():
        part.data = part.data.roll(-int(shown[0]), 0)  # its class is number 0
    with torch.no_grad():
        labels = judged.model(torch.from_numpy(x[rows])).argmax(1).clamp(max=present - 1).numpy()
    np.savez(tmp_path / "few.npz", x=x[rows], y=labels)
    task = replace(TASK, data=str(tmp_path / "few.npz"), attacks=("apgd-t-10", "multi-targeted-10-1"), threat=Linf(0.9))
    *_, record = evaluate_into(judged, task, tmp_path / "out")
    assert record.robust_accuracy().hits == 0 and record.clean_accuracy().hits > 0
    assert any(f"the data name {present} classes, the model has 10" in remark for remark in record.remarks())
    *_, found = measure_into(judged, replace(task, attacks=("fab-t-20",), threat=Linf(0)), tmp_path / "far")
    assert found.not_found() == 0


def test_surrogates_that_nothing_uses_are_told(run_folder: Path, tmp_path: Path):
    task = replace(TASK, surrogates=(str(run_folder),))
    with pytest.raises(BadInput, match="surrogates are given, and no attack that uses them: add transfer to the "):
        next(evaluate_into(load_model(str(run_folder)), task, tmp_path / "lent"))


def test_a_truncated_record_is_refused(run_folder: Path, tmp_path: Path):
    judged = load_model(str(run_folder))
    list(evaluate_into(judged, EvaluationConfig("digits", Linf(0.1), (), limit=20), tmp_path))
    record = tmp_path / EVALUATION
    record.write_bytes(record.read_bytes()[:-200])
    with pytest.raises(BadInput, match="is not a planish evaluation, or it is cut short; evaluate again"):
        next(evaluate_into(judged, TASK, tmp_path, resume=True))


def test_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two methods, two epochs; killed in the second method; resumed; costs are relative to standard training."""
    monkeypatch.setattr(quick, "EPOCHS", 2)
    monkeypatch.setattr(quick, "METHODS", {"standard": "standard", "FGSM AT": "fgsm"})
    monkeypatch.setattr(quick, "ATTACKS", ("fgsm",))
    expected = [(name, kind) for name in quick.METHODS for kind in ["EpochRecord"] * 2 + ["Evaluation"] * 2]
    first = quick.quickstart(tmp_path)
    begun = [(stage.method, type(stage.event).__name__) for stage in islice(first, 5)]
    first.close()
    assert begun == expected[:5]
    rest = [(stage.method, type(stage.event).__name__) for stage in quick.quickstart(tmp_path, resume=True)]
    assert rest == [("standard", "Evaluation"), *expected[5:]]
    assert [folder.name for folder in quick.folders(tmp_path)] == ["standard", "FGSM-AT"]
    standard, adversarial = entries(quick.folders(tmp_path))
    assert (standard.name, adversarial.name) == ("standard", "FGSM AT")
    assert standard.training["passes"] == 1 and standard.training["relative_seconds"] == 1
    seconds = adversarial.training["seconds"] / standard.training["seconds"]
    assert adversarial.training["relative_seconds"] == pytest.approx(seconds)
    assert len(adversarial.training["history"]) == 2


def test_one_model_judged_by_two_attacks_is_two_entries(run_folder: Path, tmp_path: Path):
    for attack in ("fgsm", "pgd-2-1"):
        assert list(evaluate_into(load_model(str(run_folder)), replace(TASK, attacks=(attack,)), tmp_path / attack))
    found = entries([tmp_path / "fgsm", tmp_path / "pgd-2-1"])
    assert [entry.name for entry in found] == ["tiny, fgsm", "tiny, pgd-2-1"]
    assert [entry.name for entry in entries([tmp_path / "fgsm"])] == ["tiny"]
