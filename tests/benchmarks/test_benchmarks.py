"""The benchmarks run and write what they promise; how long anything takes is not tested."""

import importlib
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planish.core.errors import BadInput
from planish.core.threat import Linf
from planish.records.evaluation import load as results_of
from planish.registry import components
from planish.runs.config import experiment_from
from planish.runs.judge import EvaluationConfig, evaluate_into, load_model
from planish.runs.train import train_into
from planish.storage.files import write_arrays
from planish.storage.reading import read_arrays

PEERS = ("torchattacks", "foolbox")
pytestmark = pytest.mark.skipif(not all(map(find_spec, PEERS)), reason=f"compare with {' and '.join(PEERS)}")
SCRIPTS = Path(__file__).parents[2] / "benchmarks"
TIMING = {"seconds", "ratio", "low", "high"}


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """results(script, *options): what the script writes about a tiny problem."""
    monkeypatch.syspath_prepend(SCRIPTS)

    def run(script: str, *options: str) -> dict[str, Any]:
        out = tmp_path / "new" / f"{script}.json"
        importlib.import_module(script).main(["--tiny", "--rounds", "1", "--out", str(out), *options])
        found: dict[str, Any] = json.loads(out.read_text())
        return found

    return run


def test_attack_cost(results: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = results("attack_cost", "--steps", "2", "--widths", "4")
    assert {"versions", "device", "commit", "command", "setting", "rows"} <= set(found)
    assert {"planish", "torch", "torchattacks", "foolbox"} <= set(found["versions"])
    rows = {(row["attack"], row["candidate"]): row for row in found["rows"]}
    assert len(found["rows"]) == len(rows) and {row["width"] for row in found["rows"]} == {4}
    assert all(TIMING | {"operations"} <= set(row) and row["seconds"] > 0 for row in found["rows"])
    assert all(rows[attack, "planish"]["ratio"] == 1 for attack, _ in rows)
    assert "PGD-2" in capsys.readouterr().out
    passes = {key: (row["forwards"], row["backwards"]) for key, row in rows.items()}
    assert passes["FGSM", "planish"] == (2, 1)
    assert passes["PGD-2", "planish"] == passes["PGD-2", "hand-written, best"] == (3, 2)
    assert passes["PGD-2", "hand-written, last"] == (3, 2)
    half = "PGD-2, 2 starts, half broken"
    assert passes[half, "planish"] == (3, 2), "two starts of the half that is not broken"
    assert passes[half, "foolbox"] == (6, 4)
    assert passes["FMN-2", "planish"] == (3, 2)
    if ("FMN-2", "adversarial-library") in passes:
        assert passes["FMN-2", "adversarial-library"] == (3, 3), "as many points judged, and a gradient thrown away"
    assert passes["APGD-CE-2, L1", "planish"] == (5, 2)
    assert passes["APGD-CE-2, L1", "auto-attack"] == (6, 5)
    full = {candidate for (_, candidate), row in rows.items() if row["parameter_gradients"]}
    assert full == {"foolbox"}
    page = tmp_path / "page.md"
    page.write_text("<!-- attack_cost -->\n<!-- end of attack_cost -->\n")
    again = results("attack_cost", "--steps", "2", "--widths", "4", "--batches", "4", "--resume", "--page", str(page))
    assert again["rows"] == found["rows"] and page.read_text().count("\n| PGD-2 | 4 | 4 |") == 1


def test_the_cells_of_attack_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each width with each batch, or the one that is given; the page's table has a line for each attack and cell."""
    monkeypatch.syspath_prepend(SCRIPTS)
    script = importlib.import_module("attack_cost")
    many = script.Namespace(widths=[4, 16], batches=[8, 64], width=1, batch=2)
    assert [(cell.width, cell.batch) for cell in script.cells(many)] == [(4, 8), (4, 64), (16, 8), (16, 64)]
    one = script.Namespace(widths=None, batches=None, width=1, batch=2)
    assert [(cell.width, cell.batch) for cell in script.cells(one)] == [(1, 2)]
    about = {"attack": "FGSM", "place": 0, "low": 1.0, "high": 2.0, "seconds": 0.5}
    cells = [{**about, "width": width, "batch": 8} for width in (4, 16)]
    rows = [{**cell, "candidate": by, "ratio": 1.25} for cell in cells for by in ("planish", "foolbox")]
    table = script.tables(rows).splitlines()
    assert table[-3:-1] == [f"| FGSM | {width} | 8 | 500 |  |  |  | 1.25 [1.00, 2.00] |  |  |" for width in (4, 16)]


def test_fmn_beside_its_peers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A linear model: as many points judged, the same distances; and nothing found yet in three steps."""
    monkeypatch.syspath_prepend(SCRIPTS)
    (tmp_path / "given.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef linear():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    out = tmp_path / "fmn.json"
    options = ["--data", "digits", "--images", "100", "--steps", "3,20", "--out", str(out)]
    importlib.import_module("fmn_peers").main([f"{tmp_path / 'given.py'}:linear", *options])
    rows = {(row["steps"], row["candidate"]): row for row in json.loads(out.read_text())["rows"]}
    assert {"planish", "foolbox"} <= {by for _, by in rows}
    early, ours, theirs = rows[3, "planish"], rows[20, "planish"], rows[20, "foolbox"]
    assert early["found"] == 0 and early["median"] is None and set(early["distances"]) == {-1}
    assert ours["found"] == 1 and 0 < len(ours["distances"]) < 100 and theirs["nearer"] == theirs["farther"] == 0
    assert ours["distances"] == pytest.approx(theirs["distances"], rel=1e-3) and 0 < ours["median"] < 0.2
    assert "farther" in capsys.readouterr().out


def test_training_cost(results: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- training_cost -->\n<!-- end of training_cost -->\n")
    found = results("training_cost", "--activations", "relu", "--page", str(page))
    rows = {row["step"]: row for row in found["rows"]}
    assert set(components("methods")) < set(rows)
    assert all(TIMING | {"activation", "counted", "operations"} <= set(row) for row in rows.values())
    assert rows["standard"]["counted"] == rows["standard"]["ratio"] == 1
    assert rows["pgd"]["counted"] == rows["hand-written PGD-7"]["counted"] > rows["fgsm"]["counted"] > 1
    assert found["setting"]["images"] == [4, 3, 8, 8]
    assert "pgd" in capsys.readouterr().out and page.read_text().count("\n| ") == len(rows) + 2


def test_loader(results: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = results("loader", "--workers", "0,1")
    *loader, model = found["rows"]
    assert [(row["what"], row["workers"]) for row in loader] == [("loader", 0), ("loader", 1)]
    assert model["ratio"] == 1 and model["workers"] is None
    for row in loader:
        assert row["images_per_second"] == pytest.approx(row["ratio"] * model["images_per_second"]) and row["ratio"] > 0
    assert found["setting"]["size"] == 16 and "images/s" in capsys.readouterr().out


def test_candidates_take_turns_and_are_compared_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    timing = importlib.import_module("timing")
    calls: list[str] = []
    now = 0.0
    lasts = {"a": iter([50.0, 1.0, 2.0]), "b": iter([50.0, 2.0, 6.0])}

    def candidate(name: str) -> Callable[[], None]:
        def call() -> None:
            nonlocal now
            calls.append(name)
            now += next(lasts[name])

        return call

    monkeypatch.setattr(timing.time, "process_time", lambda: now)
    found = timing.compare({name: candidate(name) for name in lasts}, 2, base="a")
    assert [set(calls[i : i + 2]) for i in (0, 2, 4)] == [{"a", "b"}] * 3
    assert found["a"] == (1.5, 1.0, 1.0, 1.0)
    assert found["b"] == (4.0, 2.5, 2.25, 2.75)


def test_suite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two suites on a small run: a second call does nothing again; pairs list the images on which they disagree."""
    monkeypatch.syspath_prepend(SCRIPTS)
    experiment = experiment_from({"data": {"limit": 200}, "settings": {"epochs": 2}, "model": {"name": "small-cnn"}})
    list(train_into(experiment, tmp_path / "tiny"))
    options = ["--data", "digits", "--images", "8", "--radius", "0.1", "--reference", "planish-suite", "--chunk", "5"]
    options += ["--suites", "planish-suite,foolbox PGD-50-10"]
    main = importlib.import_module("suite").main
    for _ in range(2):
        main([str(tmp_path / "tiny"), *options, "--out", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "suite.json").read_text())
    ours, theirs = found["rows"]
    assert (ours["suite"], theirs["suite"]) == ("planish-suite", "foolbox PGD-50-10")
    assert ours["images"] == theirs["images"] == 8 and ours["cheaper"] == 1 and theirs["cheaper"] < 1
    (pair,) = found["pairs"]
    only = len(pair["broken by the first only"]) - len(pair["broken by the second only"])
    assert 8 * (theirs["accuracy"] - ours["accuracy"]) == pytest.approx(only)
    assert {"versions", "device", "commit", "command", "setting"} <= set(found)
    assert "foolbox PGD-50-10" in capsys.readouterr().out
    options[options.index("--suites") + 1] = "planish-suite,pgd-3-1+fgsm"
    few = ["--survivors-only", "--nearest", "1", "--late", "--out", str(tmp_path / "out")]
    for _ in range(2):
        main([str(tmp_path / "tiny"), *options, *few])
    found = json.loads((tmp_path / "out" / "suite.json").read_text())
    ours, second, late = found["rows"]
    assert ours["images"] == 8 and second["images"] == 1 and second["cheaper"] is None
    record = results_of(tmp_path / "out" / "tiny" / "planish-suite" / "evaluation.npz")
    fell = record.correct() & ~record.survivors() & ~record.columns[0].broken
    assert late["images"] == fell.sum() and late["accuracy"] >= ours["accuracy"]
    assert all(pair["images"] == 8 for pair in found["pairs"]) and not found["pairs"][0]["broken by the first only"]
    few[few.index("1")] = "2"
    main([str(tmp_path / "tiny"), *options, *few])
    _, more, again = json.loads((tmp_path / "out" / "suite.json").read_text())["rows"]
    assert more["images"] == 2 and more["passes"] * 2 > second["passes"] and again == late
    path = tmp_path / "out" / "tiny" / "pgd-3-1+fgsm.npz"
    given = read_arrays(path)
    margins = np.fmax.reduce([column.margin for column in record.columns])
    assert (np.diff(margins[np.searchsorted(record.indices, given["indices"])]) <= 0).all()
    write_arrays(path, **{**given, "indices": given["indices"] + 1000})
    with pytest.raises(BadInput, match="is of other images; choose another --out"):
        main([str(tmp_path / "tiny"), *options, *few])


def test_distances(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ratios are to the best of all; where a suite has judged the same images, both must agree at the radius."""
    monkeypatch.syspath_prepend(SCRIPTS)
    experiment = experiment_from({"data": {"limit": 200}, "settings": {"epochs": 2}, "model": {"name": "small-cnn"}})
    list(train_into(experiment, tmp_path / "tiny"))
    shared = [str(tmp_path / "tiny"), "--data", "digits", "--images", "8", "--radius", "0.1"]
    suite = ["--suites", "planish-suite", "--reference", "planish-suite", "--out", str(tmp_path / "suite")]
    importlib.import_module("suite").main([*shared, *suite])
    options = ["--linf", "closest,fmn", "--l2", "deepfool", "--reference", "closest-60-9", "--suite", suite[-1]]
    for _ in range(2):
        importlib.import_module("distances").main([*shared, *options, "--out", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "distances.json").read_text())
    rows = {(row["norm"], row["attack"]): row for row in found["rows"]}
    assert {name for _, name in rows} == {"closest", "fmn", "deepfool", "closest-60-9"} and len(rows) == 5
    assert all(row["ratio"] >= 1 and row["p95"] >= 1 for row in rows.values())
    assert rows["Linf", "closest"]["ratio"] < 1.02 and rows["L2", "deepfool"]["ratio"] > 1
    (pair,) = found["agreement"]
    assert pair["suite"] == pair["closest"] and not pair["broken by closest only"]
    assert "p95" in capsys.readouterr().out


def tiny_run(folder: Path, **model: Any) -> str:
    """A run of four epochs on a few digits."""
    model = {"name": "small-cnn", "width": 4, **model}
    list(
        train_into(
            experiment_from({"data": {"limit": 200}, "settings": {"epochs": 4, "batch_size": 16}, "model": model}),
            folder,
        )
    )
    return str(folder)


def test_bounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Constants of all images are the largest, so their bounds are the least; a second call measures nothing again."""
    monkeypatch.syspath_prepend(SCRIPTS)
    kinked, smooth = tiny_run(tmp_path / "kinked"), tiny_run(tmp_path / "other", activation="softplus")
    out, main = tmp_path / "out", importlib.import_module("bounds").main
    options = [kinked, f"smooth={smooth}", "--data", "digits", "--out", str(out), "--figure", str(out / "figure.png")]
    page = tmp_path / "page.md"
    page.write_text("A\n<!-- bounds -->\nold\n<!-- end of bounds -->\nB\n")
    options += ["--page", str(page)]
    options += ["--curved", "11"]
    main([*options, "--images", "12", "--lanczos", "8"])
    measured = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz") if path.name != "bounds.npz"}
    main([*options, "--images", "12", "--lanczos", "8"])
    assert len(measured) == 6 and measured == {path: path.stat().st_mtime_ns for path in measured}
    found = json.loads((out / "bounds.json").read_text())
    assert {"versions", "device", "commit", "command", "setting"} <= set(found)
    rows = {(row["model"], row["norm"]): row for row in found["rows"]}
    assert set(rows) == {(model, norm) for model in ("kinked", "smooth") for norm in ("L2", "Linf")}
    for (model, norm), row in rows.items():
        assert row["images"] == 12 and row["not_found"] == 0 and row["mean"]["L all"] > 0
        assert ("C all" in row["mean"]) is ("hessian" in row) is (model == "smooth")
        arrays = read_arrays(out / model / norm / "bounds.npz")
        assert row["failed"]["L all"] == np.count_nonzero(arrays["L all"] > arrays["distance"] * (1 + 1e-5))
        for letter in ("L", "soft L", *(("C", "mixed C") if model == "smooth" else ())):
            every, few, own = (arrays[f"{letter} {kind}"] for kind in ("all", "first 10", "own"))
            assert (every <= few).all() and (every <= own)[:11].all()
            assert bool(np.isnan(own[11])) is ("C" in letter)
        assert row["compared"]["L own"] == row["correct"] > 6
        assert (arrays["soft L own"][~arrays["correct"]] == 0).all()
    text = page.read_text()
    assert text.startswith("A\n<!-- bounds -->\n\n| network | norm |") and text.endswith(
        "\n<!-- end of bounds -->\nB\n"
    )
    assert "old" not in text and text.count("| kinked | L2 |") == 2
    assert (out / "figure.png").exists() and "mixed C" in capsys.readouterr().out
    with pytest.raises(BadInput, match="another lanczos"):
        main([*options, "--images", "12", "--lanczos", "9"])


def test_gamma(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The largest error of the tangent grows with the radius; other images are refused."""
    monkeypatch.syspath_prepend(SCRIPTS)
    run, main, rows = tiny_run(tmp_path / "run", activation="softplus"), importlib.import_module("gamma").main, []
    for radius in ("0.05", "0.2"):
        options = [
            f"NET={run}",
            "--data",
            "digits",
            "--steps",
            "3",
            "--radius",
            radius,
            "--out",
            str(tmp_path / radius),
        ]
        main([*options, "--images", "12", "--figure", str(tmp_path / "figure.png")])
        rows += json.loads((tmp_path / radius / "gamma.json").read_text())["rows"]
    small, large = rows
    assert small["model"] == "NET" and small["images"] == 12 and small["passes"] == 9
    assert 0 < small["median"] < large["median"] and large["p5"] <= large["median"] <= large["p95"] <= large["largest"]
    assert read_arrays(tmp_path / "0.2" / "NET.npz")["gamma"].max() == pytest.approx(large["largest"])
    assert (tmp_path / "figure.png").exists() and "gamma(0.2, x)" in capsys.readouterr().out
    with pytest.raises(BadInput, match="another data"):
        main([*options, "--images", "13"])
    (tmp_path / "page.md").write_text("<!-- gamma -->\n")
    with pytest.raises(BadInput, match="no place for 'gamma'"):
        main([*options, "--images", "12", "--page", str(tmp_path / "page.md")])


@pytest.mark.parametrize("name", ["ablation", "ablation-long", "attack_cost", "bounds", "gamma", "training_cost"])
def test_the_table_of_the_results_page_is_that_of_the_raw_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    found = json.loads((SCRIPTS / "results" / name / f"{name}.json").read_text())
    tables = importlib.import_module(name.removesuffix("-long")).tables(found["rows"])
    place = f"<!-- {name} -->\n{tables}<!-- end of {name} -->"
    assert place in (SCRIPTS.parent / "docs" / "results.md").read_text(encoding="utf-8"), "add --page docs/results.md"


@pytest.mark.parametrize("script", ["collapse", "every_method"])
def test_tables_of_runs(script: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Two runs of an epoch on a few digits, one of them guarded."""
    monkeypatch.syspath_prepend(SCRIPTS)
    for name, guard in (("rs-fgsm", {}), ("fgsm", {"every": 1})):
        run = tmp_path / "runs" / "digits" / (f"{name}--guard-0" if script == "collapse" and guard else name)
        tree = {
            "data": {"limit": 64, "validation": 16},
            "model": {"name": "small-cnn", "width": 1},
            "method": {"name": name},
            "settings": {"epochs": 1, "batch_size": 16},
            "guard": guard,
        }
        *_, _ = train_into(experiment_from(tree), run)
        task = EvaluationConfig("digits", Linf(0.1), ("fgsm", "pgd-2-1"), 20)
        *_, _ = evaluate_into(load_model(str(run), "cpu"), task, run, device="cpu", resume=False)
    out, figure = tmp_path / "out", tmp_path / "figure.png"
    drawn = ["--figure", str(figure)] if script == "collapse" else []
    runs = tmp_path / "runs" / ("digits" if script == "collapse" else "")
    importlib.import_module(script).main([str(runs), "--out", str(out), *drawn])
    (table,) = out.glob("*.json")
    rows = json.loads(table.read_text())["rows"]
    assert len(rows) == 2 and all("of 20" in row["robust"] and row["about"]["versions"] for row in rows)
    assert len(list(out.rglob("*.npz"))) == 2
    assert figure.exists() is (script == "collapse")


ABLATION = """
budget = 40.0
judged = 40

[base]
data = { limit = 80 }
model = { name = "small-cnn", width = 2 }
threat = { radius = 0.1 }
settings = { batch_size = 32 }

[rows.n-fgsm]
says = "as published"
method = { name = "n-fgsm" }

[rows.own]
says = "the candidate"
method = { name = "planish-at" }
settings = { ema = 0.9 }
"""


def test_ablation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    main = importlib.import_module("ablation").main
    (tmp_path / "table.toml").write_text(ABLATION)
    places = [f"--{name}={tmp_path / name}" for name in ("runs", "out", "figure")]
    arguments = [str(tmp_path / "table.toml"), "--data=digits", "--seeds=0,1", "--budget=4", "--name=short", *places]
    main(arguments)
    found = json.loads((tmp_path / "out" / "short.json").read_text())
    rows = {row["row"]: row for row in found["rows"]}
    assert {name: row["epochs"] for name, row in rows.items()} == {"n-fgsm": 2, "own": 2}
    assert rows["own"]["against"] == [] and rows["own"]["images"] == 40 and rows["own"]["seeds"] == [0, 1]
    pairs = zip(rows["n-fgsm"]["robust"], rows["own"]["robust"], strict=True)
    assert rows["n-fgsm"]["against"] == [one - other for one, other in pairs]
    assert (tmp_path / "figure").read_bytes().startswith(b"\x89PNG") and "own" in capsys.readouterr().out
    for wrong in ("data = { flip = false }", "data = { limit = 100000 }"):
        (tmp_path / "wrong.toml").write_text(ABLATION.replace("data = { limit = 80 }", wrong))
        with pytest.raises(BadInput, match="limit"):
            main([str(tmp_path / "wrong.toml"), "--data=digits", f"--runs={tmp_path / 'none'}"])
    assert not (tmp_path / "none").exists()
    before = (tmp_path / "runs" / "own" / "0" / "held-out.npz").stat().st_mtime_ns
    main(arguments)
    assert (tmp_path / "runs" / "own" / "0" / "held-out.npz").stat().st_mtime_ns == before
    assert "epoch 1" not in capsys.readouterr().out
    (tmp_path / "page.md").write_text("<!-- short -->\n<!-- end of short -->\n")
    main([*arguments, "--table-only", "--page", str(tmp_path / "page.md")])
    assert "| own | the candidate | 1." in (tmp_path / "page.md").read_text()


CURVES = """
key = "threat.radius"
values = ["26/255", 0.3]
says = "radius"
budget = 2.0
judged = 8
base = { data = { limit = 80 }, model = { name = "small-cnn", width = 2 }, settings = { batch_size = 16 } }
lines = { fast = { method = { name = "rs-fgsm" } } }
"""


def test_curves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    main = importlib.import_module("curves").main
    (tmp_path / "radii.toml").write_text(CURVES)
    places = [f"--{name}={tmp_path / name}" for name in ("runs", "out", "figure")]
    main([str(tmp_path / "radii.toml"), "--data=digits", "--seeds=1", *places])
    near, far = json.loads((tmp_path / "out/radii.json").read_text())["rows"]
    assert (near["value"], far["value"]) == ("26/255", 0.3) and near["line"] == far["line"] == "fast"
    judged = [results_of(tmp_path / f"out/fast-{value}-1.npz") for value in ("26-255", "0.3")]
    assert [record.radius for record in judged] == pytest.approx([26 / 255, 0.3])
    assert [record.robust_accuracy().value for record in judged] == [near["robust"][0], far["robust"][0]]
    assert near["losses"] != far["losses"] and min(far["losses"]) > 0 and far["seeds"] == [1]
    assert (tmp_path / "figure").read_bytes().startswith(b"\x89PNG") and "epoch 1" in capsys.readouterr().out
    (tmp_path / "page.md").write_text("<!-- radii -->\n<!-- end of radii -->\n")
    options = ["--table-only", "--page", str(tmp_path / "page.md")]
    main([str(tmp_path / "radii.toml"), "--data=digits", "--seeds=1", *places, *options])
    assert "epoch 1" not in capsys.readouterr().out and "| fast | 26/255 | 1 |" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize("name", ["flooding", "radius"])
def test_the_curves_of_the_results_page_are_those_of_the_raw_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    raw = SCRIPTS / "results" / name / f"{name}.json"
    if not raw.exists():
        pytest.skip("not measured yet")
    table = importlib.import_module("curves").tables(json.loads(raw.read_text())["rows"])
    place = f"<!-- {name} -->\n{table}<!-- end of {name} -->"
    assert place in (SCRIPTS.parent / "docs" / "results.md").read_text(encoding="utf-8"), "add --page docs/results.md"


def test_speedrun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    main = importlib.import_module("speedrun").main
    small = [f"--set={key}" for key in ("data.limit=80", "model.width=2", "settings.epochs=1", "data.flip=false")]
    arguments = ["--data=digits", "--tiny", "--images=10", "--target=0", *small]
    arguments += [f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
    main(arguments)
    (path,) = (tmp_path / "out").glob("*.json")
    (row,) = json.loads(path.read_text())["rows"]
    assert path.stem == "tiny-planish-at-1-0" and path.with_suffix(".npz").exists()
    assert row["reached"] and row["suite"] == "planish-suite" and row["robust"].endswith("of 10")
    assert row["images_per_second"] == pytest.approx(80 / row["seconds"])
    assert "epoch 1" in capsys.readouterr().out
    main(arguments)
    assert "epoch 1" not in capsys.readouterr().out
    assert json.loads(path.read_text())["rows"][0]["seconds"] == row["seconds"]


def test_faults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The short version: each file damaged some times; kills and the full disk are tested where they happen."""
    monkeypatch.syspath_prepend(SCRIPTS)
    faults = importlib.import_module("faults")
    monkeypatch.chdir(tmp_path)
    faults.files_for_reading(tmp_path, (faults.TRAIN, faults.EVALUATE, faults.DISTANCES))
    chance, readers = faults.random.Random(3), [one for one in faults.READERS if (tmp_path / "run" / one.name).exists()]
    found = {reader.name: faults.mutate(reader, tmp_path / "run", 25, chance) for reader in readers}
    assert len(found) == 11 and all(sum(counts.values()) > 20 for counts in found.values())
    for name, counts in found.items():
        assert counts["refused"] > 10 and set(counts) <= {"refused", "unharmed"}, name


def test_faults_of_data_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each format's files, damaged some times, are read or refused, whatever was hit."""
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setenv("PLANISH_HOME", str(tmp_path))
    faults = importlib.import_module("faults")
    faults.data_for_reading(tmp_path / "data")
    chance = faults.random.Random(5)
    found = {one.name: faults.read_or_refused(faults.mutate(one, tmp_path / "data", 20, chance)) for one in faults.DATA}
    assert len(found) == 9 and all(sum(counts.values()) >= 15 for counts in found.values())  # a tar has zeros to zero
    assert all(set(counts) <= {"refused", "read"} for counts in found.values()), found


def test_faults_counts_what_is_silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A reader without a digest, one that raises something else, and one that never ends."""
    monkeypatch.syspath_prepend(SCRIPTS)
    faults = importlib.import_module("faults")
    (tmp_path / "one").write_bytes(bytes(range(200)))

    def raises(path: Path) -> None:
        raise KeyError(path)

    def never(path: Path) -> None:
        while True:
            pass

    monkeypatch.setattr(faults, "HANG", 1)
    for read, kind in ((Path.read_bytes, "silent"), (raises, "tracebacks"), (never, "hangs")):
        assert faults.outcome(faults.Reader("one", read), tmp_path / "one", "another digest") == kind


def test_faults_bad_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A share of the bad arguments, each refused in one line."""
    monkeypatch.syspath_prepend(SCRIPTS)
    faults = importlib.import_module("faults")
    (tmp_path / "whole").mkdir()
    monkeypatch.setattr(faults, "BAD", {"seed": ["-1"], "model.width": ["inf", "1e8"], "data.source": ["nowhere.npz"]})
    monkeypatch.setattr(faults, "OPTIONS", {"--radius": ["x"], "--out": ["/proc/nowhere"]})
    monkeypatch.chdir(tmp_path)
    found = faults.bad_arguments(tmp_path)
    assert found["commands"] == 10 and found["refused"] == 10 and not found["silent"] + found["tracebacks"], found


def test_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes take a step; kills are tested where they happen, in tests/training/test_launch.py."""
    monkeypatch.syspath_prepend(SCRIPTS)
    processes = importlib.import_module("processes")
    step, exchange = processes.measured(processes.Work("tiny", 2, 9), steps=2)
    assert step > 0 and exchange > 0


def test_scaling(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A step waits for the slowest of its three lines, and what is counted are the passes that the methods make."""
    monkeypatch.syspath_prepend(SCRIPTS)
    script = importlib.import_module("scaling")
    out = tmp_path / "scaling.json"
    script.main(["--count", "--only", "finlay-table-1", "--scale", "cpu", "--out", str(out)])
    plain, adversarial, penalty = json.loads(out.read_text())["rows"]
    assert plain["work"] == plain["standard"] and plain["hours"] == 2.06 and not plain["streamed"]
    assert adversarial["work"] / adversarial["standard"] == pytest.approx(17 / 3, rel=0.02), "7 steps and a full one"
    assert penalty["work"] / penalty["standard"] == pytest.approx(7 / 3, rel=0.02)
    cluster = script.Cluster(flops=1e12, link=1e9, network=1e8, cores=2, decoded=50.0, stored=1e5)
    row = {"batch": 80, "work": 1e11, "gradient_bytes": 4e8, "streamed": True, "epochs": 1, "images": 8000}
    assert cluster.seconds(row, 1) == {"compute": 8.0, "communication": 0.0, "loader": 0.8}
    assert cluster.seconds(row, 8) == {"compute": 1.0, "communication": 0.7, "loader": 0.1}
    assert cluster.step(row, 16) == ("communication", pytest.approx(7.5)) and cluster.hours(row, 8) == 100 / 3600
    assert cluster.step({**row, "work": 1e9}, 1)[0] == "loader" and cluster.rate(row) == 10.0


def test_the_scaling_page_is_what_the_script_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    script = importlib.import_module("scaling")
    given = script.parsed([])
    page = given.page.read_text()
    for name, text in script.tables(json.loads(given.out.read_text()), script.cluster_of(given)).items():
        assert f"<!-- {name} -->\n\n{text}\n<!-- end of {name} -->" in page, f"python benchmarks/scaling.py: {name}"
