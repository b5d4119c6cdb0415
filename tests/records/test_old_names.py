"""planish was method, suite and program once: files with the old names are read by the new ones, typed ones told."""

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from planish.attacks.suites.cascade import Cascade
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import Linf
from planish.evaluation.evaluate import evaluate_steps
from planish.evaluation.naming import attacks_of
from planish.registry import called_now, called_once, make
from planish.reproduce import Job, table
from planish.reproduce.measured import load_documents
from planish.runs.config import DataOptions, Experiment, Named, ThreatOptions, experiment_of
from planish.runs.run import CONFIG, WEIGHTS, load_run, read_weights, save_weights
from planish.runs.train import train_into
from planish.storage.files import write_json, write_text
from planish.storage.reading import headed
from planish.training.settings import Settings


@pytest.mark.parametrize("name", ["planish", "planish-10-10"])
def test_a_typed_suite(name: str):
    with pytest.raises(BadInput, match=f"^suite '{name}' is called '{name.replace('planish', 'planish-suite')}' now$"):
        attacks_of([name], 10)


def test_a_typed_method():
    with pytest.raises(BadInput, match=r"^method 'planish' is called 'planish-at' now$"):
        make("methods", "planish", {})


def test_names_that_only_begin_so():
    assert called_now("suites", "planish/scout") == "planish-suite/scout"
    assert all(called_now("suites", name) == name for name in ("planishing", "planish-suite", "planish-suite/scout"))
    assert (
        called_once("methods", "planish-at.seed-2") == "planish.seed-2" and called_now("models", "planish") == "planish"
    )


def test_the_suite_draws_what_it_drew(model: nn.Module, batch: Batch):
    """Its random numbers hang on its name: the measured results would not be found again."""
    images, records = batch._replace(labels=model.eval()(batch.x).argmax(1), logits=None), []
    for attacks in ({"planish": Cascade(classes=4)}, "planish-suite"):
        *_, last = evaluate_steps(model, images, threat=Linf(0.01), attacks=attacks)
        records.append(last.evaluation)
    assert records[0].columns[0].attempted.any()
    for old, new in zip(*(record.columns for record in records), strict=True):
        assert new.name == old.name.replace("planish", "planish-suite") and np.array_equal(
            old.margin, new.margin, equal_nan=True
        )


def test_a_run_folder(tmp_path: Path):
    """It opens with the new name, goes on, and says the new name from then on."""
    settings = Settings(epochs=2, batch_size=40)
    model, options = Named("small-cnn", {"width": 2}), DataOptions("digits", limit=40)
    experiment = Experiment(options, model, Named("planish-at"), ThreatOptions("Linf", 0.1), settings)
    folder = tmp_path / "run"
    next(train_into(experiment, folder))
    text = (folder / CONFIG).read_text().partition("\n")[2].replace('"planish-at"', '"planish"')
    write_text(headed(text), folder / CONFIG)
    about = read_weights(folder / WEIGHTS)[1]
    save_weights(folder / WEIGHTS, load_run(folder).model, {**about, "method": {**about["method"], "name": "planish"}})
    assert b'\\"name\\": \\"planish\\"' in (folder / WEIGHTS).read_bytes()
    assert experiment_of(folder / CONFIG, {}, []) == experiment, "config.toml alone reruns the run"
    run = load_run(folder)
    assert run.about["method"]["name"] == run.config["method"]["name"] == "planish-at" and len(run.history) == 1
    assert [record.epoch for record in train_into(experiment, folder, resume=True)] == [2]
    assert 'name = "planish-at"' in (folder / CONFIG).read_text()


def test_a_reproduction(tmp_path: Path):
    job = Job.of(table("seat-table-1"), "small", tmp_path)
    column = job.columns()["planish-suite"]
    assert job.record("planish-at", column) == tmp_path / "seat-table-1/small/planish-at/judged/planish-suite"
    for name in ("planish/judged/planish", "planish.seed-1"):
        (job.out / name).mkdir(parents=True)
    assert job.record("planish-at", column) == tmp_path / "seat-table-1/small/planish/judged/planish"
    assert job.folder("planish-at.seed-1").name == "planish.seed-1"
    assert job.folder("planish-at.seed-2").name == "planish-at.seed-2"


def test_results_of_a_reproduction(tmp_path: Path):
    figures = {"clean": {"value": 1.0}, "planish": {"value": 2.0}}
    rows = {
        "planish": {"setting": "all training images, planish (warmup 0.7, label_smoothing 0.1)", "figures": figures}
    }
    whole = {
        "schema_version": 1,
        "table": "seat-table-1",
        "scale": "small",
        "words": "bf16, planish in place of autoattack",
    }
    write_json(
        {**whole, "attacks": {"clean": None, "aa": "planish", "planish": "planish"}, "rows": rows, "claims": []},
        tmp_path / "seat-table-1/small/results.json",
    )
    (found,) = load_documents(tmp_path)
    assert found["attacks"] == {"clean": None, "aa": "planish-suite", "planish-suite": "planish-suite"}
    assert found["words"] == "bf16, planish-suite in place of autoattack"
    assert found["rows"]["planish-at"] == {
        "setting": "all training images, planish-at (warmup 0.7, label_smoothing 0.1)",
        "figures": {"clean": {"value": 1.0}, "planish-suite": {"value": 2.0}},
    }
