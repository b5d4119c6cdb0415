"""benchmarks/gpu.py on a CPU: every file that a GPU would give, what a crash or a kill leaves, and the page."""

import importlib
import json
import subprocess
import sys
import time
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from planish.core.errors import BadInput
from planish.records import evaluation as results
from planish.registry import components

pytestmark = pytest.mark.timeout(400)  # `run` trains and judges
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
PIECES = ("works", "speedrun", "steps", "judging", "papers")
KEPT = {*(f"{name}.json" for name in PIECES), "network-1.safetensors", "network-2.safetensors", "records.zip"}
LARGEST = 16 * 2**20


def called(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(out), "--device", "cpu", "--tiny", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=out.parent)


def document(out: Path, piece: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"{piece}.json").read_text())
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """OUT of all five pieces, and what was printed."""
    out = tmp_path_factory.mktemp("gpu") / "out"
    return out, called(out).stdout


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """module(name): one of benchmarks/."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


@pytest.fixture
def job(module: Callable[[str], Any], tmp_path: Path) -> Any:
    """A piece with a minute left."""
    end = time.monotonic() + 60
    made = module("gpu_pieces.job").Job("steps", tmp_path, tmp_path, torch.device("cpu"), True, None, end, "now")
    made.begin(None)
    return made


def test_it_gives_every_file_that_a_gpu_would(run: tuple[Path, str]):
    out, printed = run
    assert {path.name for path in out.iterdir()} == KEPT
    assert all(path.stat().st_size < LARGEST for path in out.iterdir())
    assert printed.splitlines()[-1] == "measured: " + "; ".join(f"{name}: done" for name in PIECES)
    for name in PIECES:
        found = document(out, name)
        assert found["tiny"] and found["state"] == "done" and found["rows"]
        assert not {key: row["error"] for key, row in found["rows"].items() if "error" in row}
        (attempt,) = found["attempts"]
        assert {"versions", "device", "commit", "command", "card", "call", "seconds", "log"} <= set(attempt)
        assert all(row["attempt"] == 0 and row["taken"] >= 0 for row in found["rows"].values())


def test_it_checks_every_attack_and_method_and_a_cpu_agrees_with_itself(run: tuple[Path, str]):
    rows = document(run[0], "works")["rows"]
    assert {f"method {name}" for name in components("methods")} <= set(rows)
    linf = {name for name in components("attacks") if name not in ("ddn", "carlini-wagner", "sigma-zero")}
    assert {f"attack {name} Linf" for name in linf} <= set(rows)
    assert {name: row for name, row in rows.items() if row["status"] not in ("ok", "not applicable")} == {}
    assert {"resume", "ascent", "memory", "compiled planish-at", "suite planish-suite"} <= set(rows)
    assert any(0 < row["broken"] < row["images"] for name, row in rows.items() if name.startswith("attack"))


def test_the_speedrun_is_trained_judged_and_kept(run: tuple[Path, str], module: Callable[[str], Any], tmp_path: Path):
    out, _ = run
    rows = document(out, "speedrun")["rows"]
    assert list(rows) == ["eager", "compiled", "planned", "trained", "judged"]
    trained, judged = rows["trained"], rows["judged"]
    assert trained["epochs"] == len(trained["history"]) == rows["planned"]["epochs"] and trained["seconds"] > 0
    assert judged["images"] == 12 and judged["robust"].endswith("of 12")
    halves = [load_file(out / f"network-{number}.safetensors") for number in (1, 2)]
    assert not set(halves[0]) & set(halves[1]) and any(value.dtype == torch.float16 for value in halves[0].values())
    with zipfile.ZipFile(out / "records.zip") as archive:
        archive.extractall(tmp_path)
    record = results.load(tmp_path / "speedrun.npz")
    assert str(record.robust_accuracy()) == judged["robust"] and len(record.labels) == 12
    assert record.meta["model"]["digest"] == digest_of(out, module)


def digest_of(out: Path, module: Callable[[str], Any]) -> str:
    """The digest of the network that OUT holds."""
    job = module("gpu_pieces.job").Job("judging", out, out, torch.device("cpu"), True, None, 0.0, "now")
    model = module("gpu_pieces.network").network(job, "gelu")
    assert module("gpu_pieces.network").kept(job, model)
    return str(importlib.import_module("planish.records.origin").model_digest(model))


def test_the_weights_of_the_papers_network_fit_into_two_files(job: Any, module: Callable[[str], Any]):
    """What is judged is what is kept: the model gets the weights as they are written."""
    network = module("gpu_pieces.network")
    job.tiny = False
    model = network.network(job, "gelu")
    network.keep(job, model, {})
    assert all(2**20 < (job.out / file).stat().st_size < LARGEST for file in network.WEIGHTS)
    again = network.network(job, "gelu")
    torch.nn.init.zeros_(again.mean)
    assert network.kept(job, again)
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))
    job.tiny = True
    assert not network.kept(job, network.network(job, "gelu")), "of another width"


def test_steps_of_every_method_and_by_hand_are_timed(run: tuple[Path, str]):
    rows = document(run[0], "steps")["rows"]
    names = (set(components("methods")) - {"standard"}) | {"hand-written FGSM", "hand-written PGD-7", "guard"}
    assert {f"{name}, 8" for name in names} == set(rows)
    timed = [row for name, row in rows.items() if not name.startswith("guard")]
    assert all(row["ratio"] > 0 and row["counted"] >= 0.99 and row["images_per_second"] > 0 for row in timed)
    assert rows["pgd, 8"]["counted"] == rows["hand-written PGD-7, 8"]["counted"]


def test_judging_and_papers(run: tuple[Path, str]):
    rows = document(run[0], "judging")["rows"]
    assert {"pgd", "apgd-ce", "planish-suite", "autoattack", "difference"} == set(rows)
    assert {"planish", "planish, bf16", "hand-written"} <= set(rows["pgd"]["by"]) and rows["pgd"]["trained"]
    assert rows["planish-suite"]["whole"] and rows["planish-suite"]["images"] == 8
    assert [*rows["autoattack"]["stages"]] == ["autoattack/apgd-ce"]  # a tiny run has its first attack alone
    papers = document(run[0], "papers")["rows"]
    assert list(papers) == ["seat", "seat-fl"]
    assert all(row["epochs_done"] == row["epochs"] == 2 and row["judged"]["images"] == 12 for row in papers.values())


def test_a_second_call_measures_what_failed_and_nothing_else(run: tuple[Path, str]):
    out, _ = run
    found = document(out, "papers")
    first = found["rows"]["seat"]
    found["rows"]["seat-fl"] = {"error": "it was so", "call": "earlier", "attempt": 0, "taken": 0.0}
    (out / "papers.json").write_text(json.dumps(found))
    before = {
        path: path.stat().st_mtime_ns for path in out.iterdir() if path.name in KEPT - {"papers.json", "records.zip"}
    }
    assert called(out).stdout.splitlines()[0] == "papers: done"
    again = document(out, "papers")
    assert again["rows"]["seat"] == first and "error" not in again["rows"]["seat-fl"]
    assert again["rows"]["seat-fl"]["attempt"] == 1 and len(again["attempts"]) == 2
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_it_needs_nothing_but_torch_numpy_and_safetensors(tmp_path: Path):
    """A bare machine: what planish asks for beside these cannot be imported."""
    lacking = "pydantic typer rich matplotlib jinja2 pyarrow PIL platformdirs sklearn scipy pandas torchvision pytest"
    names = "gpu " + " ".join(f"gpu_pieces.{name}" for name in PIECES)
    script = (
        f"import sys, importlib\nfor name in {lacking.split()!r}: sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\nfor name in {names.split()!r}: importlib.import_module(name)\n"
        "from planish.registry import components\n"
        "print(*(len(components(package)) for package in ('attacks', 'methods', 'models', 'suites')))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    packages = ("attacks", "methods", "models", "suites")
    assert shown.stdout.split() == [str(len(components(package))) for package in packages]


@pytest.mark.parametrize(
    ("code", "state", "begun"),
    [
        ("raise RuntimeError('a wrong turn')", "crashed with exit status 1", False),
        ("import os; os.abort()", "crashed with exit status -6", True),
        ("import time; print('asleep', flush=True); time.sleep(600)", "killed at its time limit", True),
    ],
)
def test_a_crash_and_a_hang_are_recorded(
    code: str, state: str, begun: bool, job: Any, module: Callable[[str], Any], tmp_path: Path
):
    gpu, log = module("gpu"), tmp_path / "steps.log"
    if begun:
        job.document["at"] = "planish, 8"
        job.save()
    else:
        job.path.unlink()
    began = time.monotonic()
    status = gpu.attempt([sys.executable, "-c", code], 3.0, log)
    found = gpu.closed(Namespace(out=tmp_path, tiny=True, call="now"), "steps", status, 3.0, log)
    assert time.monotonic() - began < 60 and found == document(tmp_path, "steps")
    assert found["state"] == found["attempts"][-1]["state"] == state
    assert found["rows"].get("planish, 8", {}).get("error") == (state if begun else None)
    if status != -6:
        assert any("a wrong turn" in line or "asleep" in line for line in found["attempts"][-1]["log"])


def test_a_row_that_fails_or_has_no_time_left_harms_no_other(job: Any, module: Callable[[str], Any]):
    parts = module("gpu_pieces.job")
    job.row("wrong", lambda: {"value": 1 / 0})
    job.row("right", lambda: {"value": 2})
    job.row("right", lambda: {"value": 3})

    def late() -> dict[str, Any]:
        raise parts.OutOfTime

    job.row("late", late)
    assert job.left_out and "late" not in job.rows and job.rows["right"]["value"] == 2
    assert job.rows["wrong"]["error"] == "ZeroDivisionError: division by zero" and job.rows["wrong"]["trace"]

    def poisoned() -> dict[str, Any]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(parts.Broken):
        job.row("poisoned", poisoned)
    job.deadline = time.monotonic()
    job.row("later", lambda: {"value": 4})
    assert set(document(job.out, "steps")["rows"]) == {"wrong", "right", "poisoned"}
    assert job.done("wrong"), "it failed in this call"
    job.call = "another"
    assert not job.done("wrong") and job.done("right")


def test_training_goes_on_after_its_time_is_over(job: Any, module: Callable[[str], Any], tmp_path: Path):
    """Stopped after an epoch and loaded again, it ends where one that is not stopped does."""

    def trained(name: str, seconds: float, epochs: int) -> Any:
        run = module("gpu_pieces.speedrun").Speedrun(job)
        run.table["settings"] |= {"epochs": 2, "ema": 0.5}
        job.deadline = time.monotonic() + seconds
        assert len(list(run.training.epochs(job, tmp_path / name))) == epochs
        return run.training.state

    whole = trained("whole.pt", 600, epochs=2)
    trained("stopped.pt", -1, epochs=1)
    again = trained("stopped.pt", 600, epochs=1)
    assert again.epoch == whole.epoch == 2 and len(again.history) == 2
    pairs = zip(whole.deployed.state_dict().values(), again.deployed.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "steps,sleep"], "no piece 'sleep'; known: works, speedrun"),
        (["--device", "cpu"], "name the folder that holds train.npz and test.npz"),
        (["--device", "cpu", "--data", "{out}"], "does not hold train.npz and test.npz"),
    ],
)
def test_bad_input_is_told_in_a_line(options: list[str], message: str, module: Callable[[str], Any], tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(BadInput, match=message):
        module("gpu").main([str(out), *(option.format(out=tmp_path) for option in options)])
    assert not list(tmp_path.iterdir())


def test_tiny_and_whole_are_not_mixed(run: tuple[Path, str], module: Callable[[str], Any]):
    with pytest.raises(BadInput, match=r"is tiny; choose another OUT"):
        module("gpu").main([str(run[0]), "--device", "cpu", "--data", str(run[0])])


def test_the_page_shows_every_piece(run: tuple[Path, str], module: Callable[[str], Any], monkeypatch: Any):
    page = module("gpu_pieces.page")
    text = page.section(run[0].parent)
    assert all(f"**{piece.title}** (done)" in text for piece in module("gpu_pieces").PIECES.values())
    assert "Tiny:" in text and f"PyTorch {torch.__version__}" in text and "| planish-at | 8 |" in text
    assert page.section(run[0].parent / "empty") == page.NOTHING
    place = run[0].parent / "page.md"
    place.write_text("A\n<!-- gpu -->\nold\n<!-- end of gpu -->\nB\n")
    monkeypatch.setattr(module("gpu"), "PAGE", place)
    module("gpu").main([str(run[0]), "--page"])
    assert place.read_text() == f"A\n<!-- gpu -->\n{page.section(run[0])}<!-- end of gpu -->\nB\n"


def test_the_results_page_says_what_was_measured_on_a_gpu(module: Callable[[str], Any]):
    text = module("gpu_pieces.page").section(ROOT / "benchmarks" / "results" / "gpu")
    written = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert f"<!-- gpu -->\n{text}<!-- end of gpu -->" in written, "python benchmarks/gpu.py --page"
