"""Bad input: exit code 2, one line on stderr that says what would be right, and nothing written."""

import pickle
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
import torch
from typer.testing import Result

from planish.models.small_cnn import small_cnn
from planish.runs import train as experiment
from planish.runs.run import RESUME, WEIGHTS, read_metadata, save_weights

Planish = Callable[..., Result]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def folders(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_dir()}


@pytest.fixture
def refused(planish: Planish, tmp_path: Path) -> Callable[..., str]:
    """refused("train", ...): the one line, after the other promises have been checked."""

    def run(*arguments: object) -> str:
        before = tree(tmp_path), folders(tmp_path)
        result = planish(*arguments)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert result.stderr.startswith("planish: ") and result.stderr.count("\n") == 1
        assert (tree(tmp_path), folders(tmp_path)) == before
        return result.stderr.removeprefix("planish: ").rstrip()

    return run


Refused = Callable[..., str]
EVALUATE = {"--data": "digits", "--radius": "8/255", "--attacks": "fgsm", "--limit": "20", "--device": "cpu"}


def evaluation(model: object, **changed: str) -> list[str]:
    options = EVALUATE | {f"--{name}": value for name, value in changed.items()}
    return ["evaluate", str(model), *(part for option in options.items() for part in option)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"radius": "8"},
            "Linf radius 8 is larger than the pixel range [0, 1]; radii are in pixels of [0, 1]: write 8/",
        ),
        ({"radius": "abc"}, "radius 'abc' is not a number; write for instance 8/255 or 0.03"),
        ({"radius": "8/0"}, "radius '8/0' is not a number"),
        ({"radius": "-0.1"}, "radius -0.1 must be finite and not negative"),
        ({"radius": ""}, "radius '' is not a number; write for instance 8/255 or 0.03"),
        ({"norm": "L0", "radius": "0.5"}, "L0 radius 0.5 changes no pixel value: give how many may, such as 10"),
        ({"attacks": ""}, "no attack is named; see: planish list attacks"),
        ({"attacks": " , ", "fail-under": "0.5"}, "no attack is named; see: planish list attacks"),
        ({"out": ""}, "--out is empty: give a path, or leave it out"),
        ({"against": ""}, "--against is empty: give a path, or leave it out"),
        ({"data": ""}, "the name of the data is empty: write digits, cifar10:PATH, or a path"),
        ({"radius": "nan"}, "radius nan must be finite and not negative"),
        ({"norm": "L3"}, "unknown norm 'L3'. Did you mean 'L2'? Known: Linf, L2"),
        ({"attacks": "pdg-50-10"}, "unknown attack 'pdg-50-10'. Did you mean 'pgd'?"),
        ({"attacks": "fgsm,apgt-t"}, "unknown attack 'apgt-t'. Did you mean 'apgd-t'?"),
        ({"attacks": "pgd-0"}, "steps must be at least 1, got 0"),
        ({"attacks": "transfer"}, "transfer makes its images on other models and none is given; name them with --"),
        ({"attacks": "transfer", "surrogates": "nowhere"}, "no model at 'nowhere': give a run folder that holds "),
        ({"surrogates": "nowhere"}, "surrogates are given, and no attack that uses them: add transfer to the attacks"),
        ({"data": "digit"}, "no data 'digit': there is no such file or folder. Did you mean 'digits'?"),
        ({"data": "cifar10:nowhere"}, "no CIFAR-10 test data in 'nowhere': looked for "),
        ({"limit": "0"}, "limit must be at least 1, got 0"),
        ({"precision": "fp8"}, "evaluate: precision = 'fp8' is wrong"),
        ({"device": "tpu9"}, "device 'tpu9' cannot be used here: "),
    ],
)
def test_evaluate(changed: dict[str, str], message: str, refused: Refused, run_folder: Path):
    assert refused(*evaluation(run_folder, **changed)).startswith(message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(refused: Refused, run_folder: Path):
    assert refused(*evaluation(run_folder, device="cuda")).startswith("device 'cuda' cannot be used here: ")
    assert refused("train", "--device", "cuda").startswith("device 'cuda' cannot be used here: ")


def test_other_images_than_the_model_takes(refused: Refused, run_folder: Path, tmp_path: Path):
    import numpy as np

    colour = np.zeros((5, 3, 8, 8), np.uint8)
    np.savez(tmp_path / "colour.npz", x=colour, y=np.arange(5) % 3)
    message = refused(*evaluation(run_folder, data="colour.npz", out="judged"))
    assert message.startswith("the model raises RuntimeError on images of shape (3, 8, 8)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "satndard"], "unknown method 'satndard'. Did you mean 'standard'?"),
        (["--set", "model.name=small-cn"], "unknown model 'small-cn'. Did you mean 'small-cnn'?"),
        (
            ["--set", "settings.batch_size=21"],
            "batch size 21 is larger than the 20 images of digits: give a smaller settings.batch_size",
        ),
        (["--set", "settings.epoch=3"], "[settings] has no key 'epoch'. Did you mean 'epochs'? Known: epochs, "),
        (["--set", "setings.epochs=3"], "the configuration has no key 'setings'. Did you mean 'settings'?"),
        (["--method", "pgd-7", "--set", "method.stepz=3"], "method 'pgd-7' has no key 'stepz'. Did you mean 'steps'?"),
        (["--set", "model.widht=3"], "model 'small-cnn' does not take these options"),
        (["--set", "settings.epochs"], "'settings.epochs' is not an override; write key=value, for instance settings."),
        (["--set", "settings.epochs=many"], "[settings]: epochs = 'many' is wrong: input should be a valid integer"),
        (["--set", "settings.epochs.more=1"], "[settings]: epochs = {'more': 1} is wrong: input should be a"),
        (["--set", "settings=3"], "'settings' is a table: write [settings] or settings.key = value"),
        (["--set", "seed=x"], "seed must be a whole number, not 'x'"),
        (["--set", "threat.radius=8"], "Linf radius 8 is larger than the pixel range [0, 1]"),
        (["--set", "threat.norm=L0"], "L0 radius 0.0313725 changes no pixel value: give how many may, such as 10"),
        (["--data", ""], "the name of the data is empty: write digits, cifar10:PATH, or a path"),
        (["--out="], "--out is empty: give a path, or leave it out"),
        (["--data", "nowhere.parquet"], "no train data: looked for 'nowhere.parquet'"),
        (["nowhere.toml"], "no configuration file nowhere.toml"),
        (["notes.txt"], "notes.txt is not TOML: "),
        (["--device", "tpu9"], "device 'tpu9' cannot be used here: "),
        (["--out", "notes.txt"], "notes.txt is not empty and not a run folder; choose another"),
        (["--out", "."], ". is not empty and not a run folder; choose another"),
        (["--out", "notes.txt/run"], "cannot write notes.txt/run/config.toml: Not a directory"),
    ],
)
def test_train(arguments: list[str], message: str, refused: Refused, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("these are not the settings\n")
    found = refused("train", "--set", "data.limit=20", "--set", "settings.batch_size=10", *arguments)
    assert found.startswith(message), found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["list", "mehtods"],
            "cannot list 'mehtods'. Did you mean 'methods'? Known: methods, attacks, suites, models, data, checks",
        ),
        (["report", "nowhere"], "nowhere holds no evaluation.npz; make one with: planish evaluate"),
        (evaluation("nowhere"), "no model at 'nowhere': give a run folder that holds model.safetensors"),
    ],
)
def test_other_commands(arguments: list[str], message: str, refused: Refused):
    assert refused(*arguments).startswith(message)


@pytest.mark.parametrize("command", ["report", "compare"])
def test_a_folder_that_is_named_twice(command: str, refused: Refused, tmp_path: Path):
    """It was told that each model in a report needs its own name, "run, run", and not what to do."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "evaluation.npz").touch()
    assert refused(command, "run", "./run/") == "run is named twice: name each folder once"


LEFT = "--overwrite replaces it, another --out leaves it"


def test_a_run_folder_that_is_taken(refused: Refused, run_folder: Path, tmp_path: Path, tiny: list[str]):
    shutil.copytree(run_folder, tmp_path / "run")
    again = ("train", "--method", "fgsm", "--out", "run", *tiny)
    assert refused(*again).startswith(f"run already holds this run: --resume goes on with it, {LEFT}")
    other = f"run holds a run of another configuration: seed is 0 there and 5 here; {LEFT}"
    assert refused(*again, "--set", "seed=5") == refused(*again, "--set", "seed=5", "--resume") == other


def test_an_evaluation_folder_that_cannot_be_written(refused: Refused, run_folder: Path, tmp_path: Path):
    (tmp_path / "taken").write_text("a file in the way\n")
    for out in ("taken", "taken/deeper"):
        assert refused(*evaluation(run_folder, out=out)).startswith(f"cannot write {out}/evaluation.npz: ")


@pytest.mark.parametrize("command", [("audit", "--radius", "0.1"), ("distances", "--attacks", "deepfool-3")])
def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    command: tuple[str, ...], refused: Refused, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Audits and distances once found out when their first part was done."""

    def worked(*arguments: object, **options: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr("planish.runs.audit.findings", worked)
    monkeypatch.setattr("planish.evaluation.distances.measure", worked)
    (tmp_path / "taken").touch()
    for out in ("taken", "taken/deeper"):
        found = refused(*command, run_folder, "--data", "digits", "--limit", "20", "--device", "cpu", "--out", out)
        assert found.startswith(f"cannot write {out}/{command[0]}.npz: Not a directory; choose another folder")


class Witness:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., IO[str]], tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.fixture
def damaged(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of the run folder, without the saves before the last, for a test to damage."""
    return Path(shutil.copytree(run_folder, tmp_path / "run", ignore=shutil.ignore_patterns("*.previous.*")))


@pytest.mark.parametrize("kept", [0, 5, 100, -100])
def test_truncated_weights(kept: int, refused: Refused, damaged: Path):
    weights = damaged / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:kept])
    assert refused(*evaluation(damaged)).startswith(f"{weights} is not a whole safetensors file")


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_is_never_loaded(how: str, refused: Refused, damaged: Path, tiny: list[str], tmp_path: Path):
    evil = Witness(tmp_path / "witness")
    for name in (WEIGHTS, RESUME):
        with (damaged / name).open("wb") as file:
            pickle.dump(evil, file) if how == "pickle" else torch.save({"model": evil}, file)
    assert "pickles are never loaded" in refused(*evaluation(damaged))
    message = refused("train", "--method", "fgsm", "--out", damaged, "--resume", *tiny)
    assert message.startswith(f"{damaged}/{RESUME} is truncated or not a planish checkpoint; remove it to start over")
    assert not (tmp_path / "witness").exists()


def test_the_witness_works(tmp_path: Path):
    """If it were unpickled, one would see it."""
    function, arguments = Witness(tmp_path / "witness").__reduce__()
    function(*arguments).close()
    assert (tmp_path / "witness").exists()


def test_a_truncated_resume_file(refused: Refused, damaged: Path, tiny: list[str]):
    checkpoint = damaged / RESUME
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    message = refused("train", "--method", "fgsm", "--out", damaged, "--resume", *tiny)
    assert message.startswith(f"{checkpoint} is truncated or not a planish checkpoint; remove it to start over")


def test_a_mistyped_folder_is_not_trained_into(refused: Refused, tmp_path: Path):
    wrong = tmp_path / "robsut"
    told = refused("train", "--resume", "--epochs", "14", "--out", wrong)
    assert told.startswith(f"nothing to go on with in {wrong};")
    assert not wrong.exists()


def test_weights_of_another_architecture(refused: Refused, damaged: Path):
    about = read_metadata(damaged / WEIGHTS)
    network = small_cnn(classes=10, channels=1, width=8)
    save_weights(damaged / WEIGHTS, network, {key: about[key] for key in about if key != "schema_version"})
    assert refused(*evaluation(damaged)).startswith(f"{damaged / WEIGHTS} holds another architecture: ")


def test_weights_of_somebody_else(refused: Refused, damaged: Path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, damaged / WEIGHTS)
    assert refused(*evaluation(damaged)).startswith(f"{damaged / WEIGHTS} was not written by planish")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Usage: planish "),
        (["nosuch"], "No such command 'nosuch'"),
        (["list"], "Missing argument"),
        (["evaluate", "x", "--data", "digits"], "Missing option '--radius'"),
        (["train", "--rounds", "3"], "No such option: --rounds"),
        (["evaluate", "x", "--data", "digits", "--radius", "0", "--limit", "few"], "Invalid value for '--limit'"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, planish: Planish, tmp_path: Path):
    result = planish(*arguments)
    assert result.exit_code == 2 and message in result.output
    assert "Traceback" not in result.output and tree(tmp_path) == {}


def test_a_failure_is_one_line_and_one(planish: Planish, tiny: list[str], monkeypatch: pytest.MonkeyPatch):
    def diverges(*arguments: object, **options: object) -> None:
        raise FloatingPointError("the loss is\nnot finite")

    monkeypatch.setattr(experiment, "fit", diverges)
    result = planish("train", *tiny)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "planish: the loss is not finite\n"


def test_a_stream_that_the_shell_has_closed_takes_nothing():
    """Issue: it was called a mistake of planish, with the path of a traceback."""
    line = f"{shlex.quote(sys.executable)} -m planish list attacks >&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_output_that_nobody_reads_is_no_program_of_the_user_s():
    """Issue: `planish audit ... | head -1` said that a file of yours ends the program."""
    line = f"{shlex.quote(sys.executable)} -m planish list attacks | true"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
