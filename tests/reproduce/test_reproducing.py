"""A made-up table from start to end: run, stopped, resumed, moved, refused; and the command."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor
from typer.testing import CliRunner, Result

from planish.cli.main import app
from planish.core.errors import BadInput
from planish.records import evaluation as results
from planish.records.distances import Numbers
from planish.reproduce import Job, chosen_rows, estimate, estimate_rows, estimates, judge, reproduce, table
from planish.reproduce.estimate import FEW, LONG
from planish.reproduce.figure import paper_figure, write_figure
from planish.reproduce.measured import document
from planish.reproduce.pages import claims_rows, page_text, results_rows, write_page
from planish.reproduce.running import state, trained
from planish.runs import train as training
from planish.training.loop import EpochRecord


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_cell_has_a_figure_or_a_reason(finished: Job):
    whole = json.loads((finished.out / "results.json").read_text())
    assert [row["state"] for row in whole["rows"].values()] == ["finished", "finished", "missing"]
    for name in ("plain", "robust"):
        row = whole["rows"][name]
        cells = row["figures"]
        assert {key for key, cell in cells.items() if "why" in cell} <= {"steps", "bound", "ratio", "bent"}
        assert cells["clean"]["low"] <= cells["clean"]["value"] <= cells["clean"]["high"]
        assert cells["clean"]["value"] + cells["error"]["value"] == pytest.approx(100)
        assert cells["gap"]["value"] == pytest.approx(cells["clean"]["value"] - cells["pgd"]["value"])
        assert 0 < cells["lower"]["value"] < cells["upper"]["value"]
        assert cells["steep"]["low"] == cells["steep"]["value"] > 0 and cells["l-bound"]["value"] > 0
        assert cells["bent"]["why"] == "the network is not smooth"
        assert row["test_images"] == {"name": "squares", "images": 24} and row["data_name"] == "squares"
        assert row["setting"].startswith("the first 40 images, small-cnn (width 4), 2 epochs of batches of 16, ")
    assert whole["rows"]["robust"]["figures"]["time"]["value"] == pytest.approx(1.67, abs=0.2)
    assert whole["attacks"]["pgd"] == "pgd-3-1" and whole["attacks"]["planish-suite"] == "planish-suite"
    assert [claim["outcome"] for claim in whole["claims"]][::2] == ["confirmed", "not tested"]
    assert {path.parent.name for path in finished.folder("plain").glob("judged/*/*.npz")} >= {
        "clean", "pgd-3-1", "closest", "random-targeted-3-1", "transfer-3-1.other", "planish-suite", "lipschitz",
        "regularity", "regularity-2",
    }  # fmt: skip


def test_one_seed_of_a_row_can_be_named(job: Job):
    columns = {"clean": job.table.columns["clean"]}
    scale = replace(job.scale, seeds={"robust": 3})
    job = replace(job, table=replace(job.table, columns=columns, claims=()), scale=scale)
    rows = chosen_rows(job.table, ["robust.seed-1"], scale)
    steps = list(reproduce(job, rows))
    assert {step.row for step in steps} == {"robust.seed-1"} and job.experiment("robust.seed-1").seed == 1
    assert [run for run, _ in estimates(job, ["robust.seed-2"])] == ["robust.seed-2"]
    assert not job.folder("robust").exists() and not job.folder("robust.seed-2").exists()
    for name, known in (("robust.seed-3", "robust, robust.seed-1, robust.seed-2"), ("plain.seed-1", "plain")):
        with pytest.raises(BadInput, match=f"has no '{name}' at scale .* Its trainings of .*: {known}$"):
            chosen_rows(job.table, [name], scale)


def test_a_row_of_several_seeds_is_trained_with_each_and_its_weights_are_kept_on_the_way(job: Job):
    columns = {"clean": job.table.columns["clean"]}
    scale = replace(job.scale, seeds={"robust": 2}, snapshots=2, epochs=3, validation=8)
    head = replace(job.table.head, radius=0.5)  # which breaks every image at once
    job = replace(job, table=replace(job.table, head=head, columns=columns, claims=()), scale=scale)
    rows = chosen_rows(job.table, None, scale)
    assert rows == ("robust", "plain")
    kept, begun = job.folder("robust") / "snapshots", reproduce(job, rows)
    steps = [next(begun), next(begun)]
    (kept / "epoch-002.safetensors").unlink()  # as if killed between the epoch's end and the copy
    steps += list(reproduce(job, rows))
    assert list(dict.fromkeys(step.row for step in steps)) == ["robust", "plain", "robust.seed-1"]  # in rounds
    assert [job.experiment(run).seed for run in ("robust", "robust.seed-1")] == [0, 1]
    assert (job.folder("robust.seed-1") / "judged/planish-suite/evaluation.npz").exists()
    metrics = [json.loads(line) for line in (job.folder("robust") / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 3 and all("validation_robust_accuracy" in line for line in metrics)
    assert [path.name for path in kept.iterdir()] == ["epoch-002.safetensors"]
    last = (job.folder("robust") / "model.safetensors").read_bytes()
    assert (kept / "epoch-002.safetensors").read_bytes() != last
    figures = document(job)["rows"]["robust"]["figures"]
    records = [results.load(job.folder(run) / "judged/clean/evaluation.npz") for run in scale.runs("robust")]
    seeds = [100 * record.clean_accuracy().value for record in records]
    assert figures["clean"]["seeds"] == pytest.approx(seeds)
    assert figures["clean"]["value"] == pytest.approx(sum(seeds) / 2)
    drawn = paper_figure(job.table, document(job))
    assert drawn is not None
    rings = [line.get_xdata() for line in drawn.figure.axes[0].lines if line.get_label() == "one seed"]
    assert [list(ring) for ring in rings] == [pytest.approx(seeds)]
    assert "seeds" not in document(job)["rows"]["plain"]["figures"]["clean"]


def test_trained_rows_are_judged_by_what_was_added_and_nothing_is_trained(
    finished: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A scale that measures more makes no finished training invalid."""
    shutil.copytree(finished.out, tmp_path / "cpu")
    (tmp_path / "cpu/robust/model.safetensors").unlink()
    scale = replace(finished.scale, beside=("gamma", "linearity-error"))
    more = replace(finished, out=tmp_path / "cpu", scale=scale)
    assert state(more, "plain") == "trained"
    monkeypatch.setattr(training, "fit", None)
    steps = list(judge(more, ("plain", "robust")))
    assert [(step.row, type(step.event)) for step in steps] == [("plain", Numbers)]
    assert state(more, "plain") == "finished" and list(judge(more, ("plain",))) == []
    whole = document(more)
    cells = whole["rows"]["plain"]["figures"]
    assert cells["linearity-error"]["value"] > 0 and 0 < cells["gamma"]["low"] < cells["gamma"]["value"]
    shown = results_rows(more.table, whole)
    assert shown.headers[-2:] == ("gamma", "linearity-error") and shown.rows[1][-1] == "\N{EN DASH}"


def test_a_scale_has_its_own_hyper_parameters_of_a_row(job: Job, tmp_path: Path):
    other = replace(job, scale=replace(job.scale, options={"plain": {"label_smoothing": 0.1}}))
    assert other.experiment("plain.seed-1").method.options == {"label_smoothing": 0.1}
    assert other.experiment("robust") == job.experiment("robust") and job.experiment("plain").method.options == {}
    text = (Path(str(job.train)).parent / "table-0.toml").read_text()
    (tmp_path / "typo.toml").write_text(text.replace("[scales.cpu]", "[scales.cpu]\noptions = { plane = {} }"))
    with pytest.raises(BadInput, match=r"\[scales.cpu\] speaks of 'plane', which is no row. Did you mean 'plain'?"):
        table(str(tmp_path / "typo.toml"))


def test_what_is_finished_is_not_run_again(finished: Job):
    before = contents(finished.out)
    assert list(reproduce(finished, finished.table.trainable)) == []
    assert list(reproduce(replace(finished, train=None), finished.table.trainable)) == []  # the data is not needed
    assert contents(finished.out) == before


def test_a_kill_before_the_last_weights_leaves_no_whole_training(finished: Job, tmp_path: Path):
    """Issue: with the metrics of the last epoch written and its weights not yet, those of the epoch before counted."""
    folder, experiment = shutil.copytree(finished.folder("plain"), tmp_path / "plain"), finished.experiment("plain")
    assert trained(folder, experiment)
    shutil.copyfile(folder / "model.previous.safetensors", folder / "model.safetensors")
    assert not trained(folder, experiment)
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert trained(folder, experiment)  # what loads it says so


def test_stopped_and_gone_on_elsewhere(
    finished: Job, job: Job, squares_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = replace(job, table=replace(job.table, columns={"clean": job.table.columns["clean"]}, claims=()))
    step = next(iter(reproduce(job, ["plain"])))
    assert isinstance(step.event, EpochRecord) and step.event.epoch == 1
    assert state(job, "plain") == "begun" and state(job, "robust") == "not run"
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(job.out, elsewhere)
    shutil.copy(squares_folder / "squares-train.npz", tmp_path / "moved-train.npz")
    shutil.copy(squares_folder / "squares-test.npz", tmp_path / "moved-test.npz")
    moved = replace(job, out=elsewhere, train=str(tmp_path / "moved-train.npz"))
    epochs = [step.event.epoch for step in reproduce(moved, ["plain"]) if isinstance(step.event, EpochRecord)]
    assert epochs == [2] and state(moved, "plain") == "finished"
    assert (elsewhere / "plain/metrics.jsonl").read_text().count("\n") == 2
    weights = "plain/model.safetensors"
    assert (elsewhere / weights).read_bytes()[-3000:] == (finished.out / weights).read_bytes()[-3000:]
    monkeypatch.setattr(training, "fit", None)
    assert list(reproduce(moved, ["plain"])) == []


def test_a_training_of_another_table_is_copied(
    finished: Job, tmp_path: Path, make_squares: Callable[[Path, int, int], None], monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(finished.out, tmp_path / "one/cpu")
    job = replace(finished, out=tmp_path / "two/cpu")
    clean = replace(job, table=replace(job.table, columns={"clean": job.table.columns["clean"]}, claims=()))
    make_squares(tmp_path / "squares-train.npz", 60, 7)
    elsewhere = replace(clean, out=tmp_path / "three/cpu", train=str(tmp_path / "squares-train.npz"))
    assert isinstance(next(iter(reproduce(elsewhere, ["plain"]))).event, EpochRecord)  # other images: trained anew
    monkeypatch.setattr(training, "fit", None)
    assert not any(isinstance(step.event, EpochRecord) for step in reproduce(clean, ["plain"]))
    assert state(clean, "plain") == "finished"
    same = ("config.toml", "metrics.jsonl", "model.safetensors", "provenance.json")
    assert all((clean.folder("plain") / n).read_bytes() == (finished.folder("plain") / n).read_bytes() for n in same)


def test_other_data_and_other_recipes_are_refused(
    finished: Job, tmp_path: Path, make_squares: Callable[[Path, int, int], None]
):
    before = contents(finished.out)
    make_squares(tmp_path / "squares-train.npz", 60, 7)
    with pytest.raises(BadInput, match="holds a run on other data"):
        list(reproduce(replace(finished, train=str(tmp_path / "squares-train.npz")), ["plain"]))
    for scale in (replace(finished.scale, epochs=1), replace(finished.scale, width_divisor=2)):
        with pytest.raises(BadInput, match="plain was made by another version of this recipe"):
            list(reproduce(replace(finished, scale=scale), ["plain"]))
    with pytest.raises(BadInput, match="was judged at another radius or on other images"):
        list(reproduce(replace(finished, scale=replace(finished.scale, test_images=20)), ["plain"]))
    assert contents(finished.out) == before


def test_a_table_of_which_nothing_is_measured_is_refused(finished: Job):
    columns = {key: finished.table.columns[key] for key in ("steps", "bound")}
    with pytest.raises(BadInput, match="table-0 cannot be run: nobody knows it"):
        chosen_rows(replace(finished.table, columns=columns, claims=()), None, finished.scale)


def test_estimate_falls_to_nothing(finished: Job, job: Job):
    begun, done = (estimate_rows(one, [*estimates(one, one.table.trainable)]) for one in (job, finished))
    assert [row[1] for row in begun.rows] == ["240", "408"] and "An estimate" in begun.caption
    assert [row[1:3] for row in done.rows] == [("0", "0")] * 2


def test_tables_figure_and_page(finished: Job, tmp_path: Path):
    whole = json.loads((finished.out / "results.json").read_text())
    shown = results_rows(finished.table, whole)
    assert shown.headers[:3] == ("Row", "Clean", "PGD-50") and shown.headers[-1] == "planish-suite"
    assert "(paper: 99.0)" in shown.rows[0][1] and shown.rows[2][1].startswith("\N{EN DASH}")
    assert "24 test images of squares" in shown.caption
    assert claims_rows(finished.table, whole).rows[2][:2] == ("not tested", "Lost is worse than robust")
    fewer = {**whole, "claims": whole["claims"][:2]}
    assert claims_rows(finished.table, fewer).rows[2][:3] == (
        "not tested",
        "Lost is worse than robust",
        "added after this was judged; run the table again",
    )
    path = write_figure(finished.table, whole, tmp_path / "figure.png")
    assert path is not None and path.read_bytes().startswith(b"\x89PNG")
    nothing = {
        **whole,
        "rows": {
            name: {**row, "figures": {key: {"why": ""} for key in row["figures"]}}
            for name, row in whole["rows"].items()
        },
    }
    assert write_figure(finished.table, nothing, tmp_path / "none.png") is None
    page = write_page(finished.out.parent.parent, tmp_path / "page.md", [finished.table])
    text = page.read_text()
    assert "#### table-0 at scale cpu" in text and (tmp_path / "images/reproduce-table-0-cpu.png").exists()
    assert "missing, nobody has the code" in text and text != page_text([finished.table], [])


@pytest.fixture
def planish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(app, ["reproduce", *map(str, arguments)], prog_name="planish")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


def test_command_lists_and_estimates(planish, finished: Job, squares_folder: Path):
    names = json.loads(planish("--list", "--json").stdout)
    assert len(names) == 24 and names["seat-table-1"]["rows"][0] == "pgd-at"
    shown = planish("--list", squares_folder / "table-0.toml", "--out", finished.out.parent.parent)
    assert shown.exit_code == 0 and "cpu: 2 of 2" in shown.stdout
    told = planish(
        squares_folder / "table-0.toml", "--data", squares_folder / "squares-train.npz", "--estimate", "--json"
    )
    assert [row[0] for row in json.loads(told.stdout)["rows"]] == ["plain", "robust"]
    assert [line.partition(": about ")[0] for line in told.stderr.splitlines()] == ["1 of 2: plain", "2 of 2: robust"]
    assert not Path("runs").exists()


def test_an_estimate_times_few_images_once_where_they_take_long(job: Job, monkeypatch: pytest.MonkeyPatch):
    """Each row once took four calls with 64 images before anything was said; rows of one network share its passes."""
    calls: list[int] = []

    def taken(once: Callable[[int], Tensor], count: int, timer: object) -> float:
        assert once(count).numel() == 1
        calls.append(count)
        return 2 * LONG

    monkeypatch.setattr(estimate, "_taken", taken)
    found = dict(estimate.estimates(job, job.table.trainable))
    assert len(found) == 2 and calls == [FEW, FEW, FEW]  # two kinds of steps and one network's pass
    assert all(one.seconds > LONG for one in found.values())


def test_command_runs_and_shows(planish, finished: Job, squares_folder: Path, tmp_path: Path):
    arguments = (squares_folder / "table-0.toml", "--out", finished.out.parent.parent, "--device", "cpu")
    result = planish(*arguments)
    assert (result.exit_code, result.stderr) == (0, "") and "confirmed" in result.stdout
    assert "plain: the first 40 images, small-cnn (width 4)" in result.stdout
    document = json.loads(planish(*arguments, "--rows", "plain", "--json").stdout)
    assert document["table"] == "table-0" and document["claims"][0]["outcome"] == "confirmed"
    assert (finished.out / "figure.png").exists()
    assert planish(*arguments, "--judge").stdout == result.stdout
    page = planish("--page", tmp_path / "page.md", "--out", finished.out.parent.parent)
    assert page.exit_code == 0 and "seat-table-1" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a table; planish reproduce --list shows them"),
        (("seat-tabel-1",), "unknown table 'seat-tabel-1'. Did you mean 'seat-table-1'?"),
        (("seat-table-1", "--rows", "seatt"), "seat-table-1 has no row 'seatt'. Did you mean 'seat'?"),
        (("seat-table-1", "--scale", "huge"), "unknown scale 'huge'."),
        (("seat-table-1", "--data", "nowhere.npz"), ""),
        (
            ("llr-table-2", "--rows", "wrn-28-8-adv-published"),
            "llr-table-2 wrn-28-8-adv-published cannot be trained: the",
        ),
        (("nowhere.toml",), "no configuration file nowhere.toml"),
    ],
)
def test_command_refuses(planish, arguments: tuple[str, ...], message: str):
    result = planish(*arguments, "--device", "cpu")
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith(f"planish: {message}") and result.stderr.count("\n") == 1
    assert not Path("runs").exists()
