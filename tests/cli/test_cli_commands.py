"""What the commands do when all is well."""

import io
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from planish.cli import terminal
from planish.evaluation.evaluate import IN_TRAINING
from planish.records.evaluation import load
from planish.records.origin import attack_text
from planish.registry import PACKAGES, components
from planish.runs import quickstart
from planish.runs import train as experiment
from planish.runs.judge import entries
from planish.training.collapse import CollapseMonitor, MonitorState

Planish = Callable[..., Result]
JUDGE = ("--data", "digits", "--radius", "0.1", "--limit", "30", "--attacks", "fgsm,pgd-2-1", "--device", "cpu")


@pytest.mark.parametrize("what", PACKAGES)
def test_list(what: str, planish: Planish):
    shown, document = planish("list", what), planish("list", what, "--json")
    assert shown.exit_code == document.exit_code == 0 and shown.stderr == document.stderr == ""
    lines = json.loads(document.stdout)
    assert sorted(lines) == sorted(components(what)) and all(line.strip() for line in lines.values())
    for name, line in lines.items():
        assert f"{name} " in shown.stdout and line.split()[0] in shown.stdout


def test_train_writes_what_it_was_told(planish: Planish, tiny: list[str], tmp_path: Path):
    arguments = ("train", "--method", "seat", "--data", "digits", "--seed", "3", "--out", "run", *tiny)
    result = planish(*arguments, "--set", "data.flip=true")
    assert result.exit_code == 0 and len(result.stderr.splitlines()) == 2
    first, held_out, following = result.stdout.splitlines()
    assert first == "run folder: run" and held_out.startswith("held-out images: none; --set data.validation=N holds")
    assert following == "next: planish evaluate run --data digits --radius 0.1"
    config = tomllib.loads(Path("run/config.toml").read_text())
    assert config["method"]["name"] == "seat" and config["seed"] == 3 and config["data"]["flip"] is True
    assert config["settings"]["epochs"] == 2 and config["model"]["width"] == 4
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 2
    again = planish("train", "run/config.toml", "--out", "again", "--device", "cpu", "--json")
    document = json.loads(again.stdout)
    assert document["run"] == "again" and document["last"]["epoch"] == 2
    assert Path("run/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()


def test_train_and_evaluate_say_what_was_found_and_what_comes_next(planish: Planish, tiny: list[str], tmp_path: Path):
    """Accuracy on held-out images, and commands that a shell takes as they stand, spaces in paths and all."""
    out = tmp_path / "my runs"
    trained = planish("train", "--method", "fgsm", *tiny, "--set", "data.validation=16", "--out", out)
    held_out = r"\nheld-out training images: [\d.]+% \[.*\] of 16 right, .* of 16 after PGD-10 \(Linf, radius 0.1\)\n"
    assert re.search(held_out, trained.stdout)
    following = trained.stdout.splitlines()[-1].removeprefix("next: planish ")
    assert shlex.split(following) == ["evaluate", str(out), "--data", "digits", "--radius", "0.1"]
    judged = planish(*shlex.split(following), "--limit", "20", "--attacks", "fgsm")
    assert judged.exit_code == 0
    audit = shlex.split(judged.stdout.splitlines()[-1].removeprefix("next: planish "))
    assert audit == ["audit", str(out), "--data", "digits", "--radius", "0.1"]
    assert planish(*audit, "--dry-run").exit_code == 0


@pytest.mark.parametrize("probed", [{}, {"robust": 0.125}], ids=["nonlinear", "probed"])
def test_train_tells_of_alarms(
    probed: dict[str, float], planish: Planish, tiny: list[str], monkeypatch: pytest.MonkeyPatch
):
    """Once at the first probe, whether or not PGD was asked; it was once a KeyError where it was not."""
    seen = {"linearity_error": 0.5, "gradient_cosine": 0.21, "falling": 0.5, "one_step": 0.375, **probed}

    def collapsed(monitor: CollapseMonitor, state: MonitorState, *given: Any) -> bool:
        first = not state.alarms
        state.probes.append({"step": 3, "epoch": 1, **seen})
        return first

    monkeypatch.setattr(CollapseMonitor, "collapsed", collapsed)
    arguments = ("--method", "fgsm", "--data", "digits", "--guard", "--set", "guard.every=1", *tiny)
    result = planish("train", "--out", "run", *arguments)
    words = "alarm at step 3, epoch 1: the loss of 50 % falls under the attack, cosine 0.21;"
    end = f" 38 % withstand one gradient step{', 12 % withstand PGD' if probed else ''}; went back"
    assert result.exit_code == 0 and " ".join((words + end).split()) in " ".join(result.stderr.split())
    quiet = planish("train", "--out", "quiet", "--quiet", *arguments)
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    assert '"alarms": [{"step": 3' in Path("quiet/metrics.jsonl").read_text()


def interrupted(real: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The same generator, but Ctrl-C comes after its first item."""

    def generate(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield next(real(*arguments, **options))
        raise KeyboardInterrupt

    return generate


def test_interrupted_and_resumed(planish: Planish, tiny: list[str], run_folder: Path, monkeypatch: pytest.MonkeyPatch):
    arguments = ("train", "--method", "fgsm", "--out", "run", *tiny)
    with monkeypatch.context() as patched:
        patched.setattr(experiment, "fit", interrupted(experiment.fit))
        result = planish(*arguments)
    assert result.exit_code == 130
    assert result.stderr.endswith("\nplanish: interrupted; what was finished is saved, --resume goes on\n")
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 1
    resumed = planish(*arguments, "--resume", "--json")
    assert resumed.exit_code == 0 and json.loads(resumed.stdout)["last"]["epoch"] == 2
    assert Path("run/model.safetensors").read_bytes() == (run_folder / "model.safetensors").read_bytes()
    assert planish(*arguments, "--resume").exit_code == 0


@pytest.mark.parametrize(
    ("command", "where", "told"),
    [
        (["list", "attacks"], "planish.registry.listed", "interrupted"),
        (["reproduce", "seat-table-1"], "planish.reproduce.reproduce", "and the same command goes on with it"),
        (["distances", "run", "--data", "digits"], "planish.runs.judge.check_distances", "--resume goes on"),
    ],
)
def test_ctrl_c_offers_resume_where_there_is_one(
    command: list[str], where: str, told: str, planish: Planish, monkeypatch: pytest.MonkeyPatch
):
    """Every command once offered --resume, those without it too, such as `planish reproduce`."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt)
    result = planish(*command)
    assert result.exit_code == 130 and result.stderr.endswith(f"{told}\n"), result.stderr


def test_evaluate_prints_one_document(planish: Planish, run_folder: Path):
    result = planish("evaluate", run_folder, *JUDGE, "--out", "judged", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    evaluation = document["methods"][0]["evaluation"]
    record = load("judged/evaluation.npz")
    assert evaluation["robust"]["hits"] == record.robust_accuracy().hits
    assert [attack["attack"] for attack in evaluation["attacks"]] == ["fgsm", "pgd-2-1"]
    assert document == json.loads(Path("judged/results.json").read_text())
    assert Path("judged/report.html").exists()


def test_evaluate_prints_a_table_and_no_progress(planish: Planish, run_folder: Path):
    result = planish("evaluate", run_folder, *JUDGE, "--out", "judged")
    assert (result.exit_code, result.stderr) == (0, "") and "\x1b" not in result.stdout
    robust = load("judged/evaluation.npz").robust_accuracy()
    assert f"{100 * robust.value:.1f}" in result.stdout and "report: judged/report.html" in result.stdout


def test_evaluate_goes_on(planish: Planish, run_folder: Path):
    first = planish("evaluate", run_folder, *JUDGE[:-4], "--attacks", "fgsm", "--device", "cpu", "--out", "judged")
    refused = planish("evaluate", run_folder, *JUDGE, "--out", "judged")
    assert (first.exit_code, refused.exit_code) == (0, 2) and "--resume goes on with it" in refused.stderr
    assert planish("evaluate", run_folder, *JUDGE, "--out", "judged", "--resume").exit_code == 0
    assert load("judged/evaluation.npz").names == ("fgsm", "pgd-2-1")


def test_evaluate_with_surrogates(planish: Planish, run_folder: Path):
    judge = (*JUDGE[:-4], "--attacks", "fgsm,transfer-3", "--device", "cpu", "--out", "judged")
    assert planish("evaluate", run_folder, *judge, "--surrogates", f" {run_folder}, {run_folder}").exit_code == 0
    record = load("judged/evaluation.npz")
    assert record.names == ("fgsm", "transfer-3")
    assert attack_text(record.column("transfer-3").meta["attack"]).startswith("2 x Worst(Lent(attack=Targeted(")


def test_draws_judge_a_random_model(planish: Planish, tmp_path: Path):
    """Attacked and verified by as many draws; one draw warns, and three can show nothing."""
    Path("own.py").write_text(
        "import torch\n"
        "class Noisy(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Linear(64, 10)\n"
        "    def forward(self, x):\n"
        "        return self.layer((x + 0.3 * torch.randn_like(x)).flatten(1))\n"
    )
    judge = ("--data", "digits", "--radius", "0.1", "--limit", "20", "--device", "cpu")
    attack = ("evaluate", "own.py:Noisy", *judge, "--attacks", "fgsm", "--keep-images")
    once = planish(*attack, "--out", "once")
    assert once.exit_code == 0 and "The model is random" in " ".join(once.stdout.split())
    often = planish(*attack, "--eot", "4", "--out", "often")
    record = load("often/evaluation.npz")
    assert often.exit_code == 0 and record.meta["eot"] == record.columns[0].meta["eot"]["draws"] == 4
    assert planish("verify", "own.py:Noisy", "often/adversarial.npz", *judge[:4], "--eot", "4").exit_code == 0
    few = planish(*attack, "--eot", "3", "--out", "few")
    assert few.exit_code == 2 and "eot must be 1, or at least 4 draws" in few.stderr


def test_distances_without_a_gradient_are_no_success(planish: Planish, tmp_path: Path):
    Path("own.py").write_text(
        "import torch\n"
        "class Flat(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x.flatten(1)).detach()\n"
        "def net():\n"
        "    return Flat(64, 10)\n"
    )
    arguments = ("distances", "own.py:net", "--data", "digits", "--limit", "100", "--device", "cpu")
    result = planish(*arguments, "--attacks", "deepfool-3")
    assert result.exit_code == 1 and "deepfool-3 had no gradient on" in " ".join(result.stdout.split())


def test_distances_go_on_even_if_nothing_is_left(planish: Planish, run_folder: Path):
    arguments = ("distances", run_folder, "--data", "digits", "--limit", "20", "--device", "cpu", "--out", "measured")
    first = planish(*arguments, "--attacks", "deepfool")
    assert (first.exit_code, first.stderr) == (0, "") and "figure: measured/figures/distances.png" in first.stdout
    refused = planish(*arguments, "--attacks", "deepfool")
    assert refused.exit_code == 2 and "already holds distances: --resume goes on with it, --over" in refused.stderr
    again = planish(*arguments, "--attacks", "deepfool", "--resume")
    assert (again.exit_code, again.stdout) == (0, first.stdout)
    more = planish(*arguments, "--attacks", "deepfool,pgd-bisection-5-3", "--resume", "--json")
    names = [attack["attack"] for attack in json.loads(more.stdout)["attacks"]]
    assert names == ["deepfool", "pgd-bisection-5-3", "best per image"]


def test_notes_are_printed(planish: Planish, run_folder: Path, tmp_path: Path):
    Path("own.py").write_text(
        "import torch\n"
        "def net():\n"
        "    layer = torch.nn.Linear(64, 10)\n"
        "    layer.weight.data.zero_(); layer.bias.data.copy_(torch.arange(10))\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), layer)\n"
    )
    arguments = ("--data", "digits", "--radius", "0.1", "--limit", "900", "--attacks", "fgsm", "--device", "cpu")
    result = planish("evaluate", "own.py:net", *arguments, "--out", "judged")
    assert result.exit_code == 0
    assert "note: own: asked for 900 images, digits has 500" in result.stdout
    assert f"note: own: {IN_TRAINING}" in result.stdout.replace("\n", " ")
    assert "note: own: 9 classes (0, 1, 2, 3, 4 and 4 more) are never predicted" in result.stdout.replace("\n", " ")


def test_report_puts_folders_side_by_side(planish: Planish, run_folder: Path):
    Path("own.py").write_text(
        "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()\n"
    )
    for model, out in ((run_folder, "one"), ("own.py:net", "two")):
        assert planish("evaluate", model, *JUDGE, "--out", out).exit_code == 0
    shown = planish("report", "one", "two", "--out", "both", "--title", "Side by side")
    assert (shown.exit_code, shown.stderr) == (0, "") and "report: both/report.html" in shown.stdout
    again = planish("report", "one", "two", "--out", "both")
    assert again.exit_code == 2 and "both already holds a report: --overwrite replaces it" in again.stderr
    document = json.loads(planish("report", "one", "two", "--out", "both", "--overwrite", "--json").stdout)
    assert [method["name"] for method in document["methods"]] == ["run", "own"]
    compared = planish("compare", "one", "two", "--out", "pairs")
    assert (compared.exit_code, compared.stderr) == (0, "") and "Only first" in compared.stdout
    (pair,) = json.loads(Path("pairs/results.json").read_text())["pairs"]
    assert (pair["first"], pair["second"], pair["images"]) == ("run", "own", 30)


def test_quickstart(planish: Planish, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quickstart, "EPOCHS", 1)
    monkeypatch.setattr(quickstart, "METHODS", {"standard": "standard"})
    monkeypatch.setattr(quickstart, "ATTACKS", ("fgsm",))
    result = planish("quickstart", "--out", "quick", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert [method["name"] for method in document["methods"]] == ["standard"]
    assert Path("quick/report.html").exists() and len(entries([Path("quick/standard")])) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("plain", [False, True])
def test_no_color(plain: bool, monkeypatch: pytest.MonkeyPatch):
    """On a terminal a note is coloured, unless NO_COLOR is set."""
    monkeypatch.setattr(sys, "stdout", Terminal())
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    if plain:
        monkeypatch.setenv("NO_COLOR", "1")
    terminal.console().print("note: look", style="yellow")
    written = sys.stdout.getvalue()
    assert "note: look" in written and ("\x1b[33m" in written) is not plain


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_on_a_terminal_goes_to_stderr(quiet: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm-256color")
    with terminal.progress_bars(quiet) as bars:
        bars.update(bars.add_task("pgd-7", total=2, note=""), completed=1, note="3 broken")
    assert ("3 broken" in sys.stderr.getvalue()) is not quiet
    assert sys.stdout.getvalue() == ""


def test_a_run_goes_on_by_its_folder_alone_and_is_extended(planish: Callable[..., Result], tiny: list[str]):
    """Its own configuration is read; a value that is given besides must be its own, or more epochs."""
    planish("train", "--method", "rs-fgsm", "--out", "run", *tiny)
    before = Path("run/config.toml").read_bytes()
    assert planish("train", "--out", "run", "--resume", "--device", "cpu").exit_code == 0
    assert Path("run/config.toml").read_bytes() == before
    result = planish("train", "--out", "run", "--resume", "--epochs", "3", "--device", "cpu")
    assert result.exit_code == 0 and "epoch 3 of 3: loss" in result.stderr
    assert [entry["epoch"] for entry in map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())] == [
        1,
        2,
        3,
    ]
    other = planish("train", "--out", "run", "--resume", "--method", "fgsm", "--device", "cpu")
    assert other.exit_code == 2 and "method.name is 'rs-fgsm' there and 'fgsm' here" in " ".join(other.stderr.split())


def test_a_line_an_epoch_where_there_is_no_terminal(planish: Callable[..., Result], tiny: list[str]):
    result = planish("train", "--method", "standard", "--out", "run", *tiny)
    lines = [line for line in result.stderr.splitlines() if line.startswith("epoch ")]
    assert [line.partition(":")[0] for line in lines] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert "epoch" not in planish("train", "--out", "quiet", "--quiet", *tiny).stderr


def test_hardening_from_a_run_folder_and_the_best_epoch(
    planish: Callable[..., Result], tiny: list[str], run_folder: Path
):
    result = planish(
        "train", "--weights", run_folder, "--out", "run", "--method", "seat", *tiny, "--set", "data.validation=16"
    )
    assert result.exit_code == 0 and f'weights = "{run_folder}"' in Path("run/config.toml").read_text()
    options = ("--data", "digits", "--radius", "0.1", "--attacks", "fgsm", "--limit", "8", "--device", "cpu")
    best = planish("evaluate", "run/model-best.safetensors", *options, "--out", "best")
    assert best.exit_code == 0 and "seat" in Path("best/report.html").read_text()
    assert planish("train", "--weights", "nowhere", "--out", "other", *tiny).exit_code == 2


def test_several_threats_are_one_evaluation(planish: Planish, run_folder: Path):
    """Robust is what stands in each; the page, the next command and `verify` know of all of them."""
    asked = [part for threat in ("Linf:0.1", "L1:1.5") for part in ("--threat", threat)]
    given = ("--data", "digits", "--limit", "20", "--attacks", "pgd-2-1", "--device", "cpu")
    plan = planish("evaluate", run_folder, *given, *asked, "--dry-run", "--json")
    assert json.loads(plan.stdout)["threats"] == ["Linf:0.1", "L1:1.5"]
    done = planish("evaluate", run_folder, *given, *asked, "--keep-images", "--out", "both")
    assert done.exit_code == 0 and "the union of Linf 0.1 and L1 1.5" in " ".join(done.stdout.split())
    assert done.stdout.splitlines()[-1].endswith("--data digits --radius 0.1")
    record = load(Path("both/evaluation.npz"))
    assert record.names == ("Linf pgd-2-1", "L1 pgd-2-1") and "the union of" in Path("both/report.html").read_text()
    checked = planish("verify", run_folder, "both/adversarial.npz", "--data", "digits", *asked, "--json")
    document = json.loads(checked.stdout)
    assert document["infeasible"] == 0
    assert document["robust"]["accuracy"] == record.robust_accuracy().value
    for wrong, told in ((("--radius", "0.1"), "leave --radius out"), (("--shard", "1/2"), "in one process")):
        refused = planish("evaluate", run_folder, *given, *asked, *wrong)
        assert refused.exit_code == 2 and told in refused.stderr and len(refused.stderr.splitlines()) == 1
