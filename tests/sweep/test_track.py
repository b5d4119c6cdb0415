"""What is told of a run to TensorBoard, MLflow and Weights & Biases, and shown in the terminal."""

import json
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from planish.cli.main import app
from planish.cli.watch import HEIGHT, WIDTH, curves, view
from planish.core.threat import Linf
from planish.runs.config import parsed, written
from planish.runs.run import load_run
from planish.runs.track import EXAMPLES, numbers, picture
from planish.runs.train import training_images
from planish.training.collapse import probe
from planish.training.loop import Examples

TINY = ["data.limit=64", "data.validation=16", "settings.batch_size=32", "model.width=2", "threat.radius=0.1"]
EACH = ("--set", "guard.every=1")
ENTRY = {"epoch": 3, "loss": 1.5, "train_accuracy": 0.5, "learning_rate": 0.1, "seconds": 2.0}
ALARM = {"step": 9.0, "epoch": 3.0, "falling": 0.5, "gradient_cosine": 0.1, "one_step": 0.2, "went_back": 1.0}


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """train("--track", ...) into the folder "run"; two epochs unless it is said."""
    monkeypatch.chdir(tmp_path)
    settings = [word for override in TINY for word in ("--set", override)]

    def run(*words: str, epochs: int = 2) -> Result:
        own = ["train", "--method", "fgsm", "--device", "cpu", "--out", "run", "--epochs", str(epochs), *settings]
        result = CliRunner().invoke(app, [*own, *words])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


def history() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]


def test_numbers_are_grouped_and_alarms_counted():
    assert numbers(ENTRY)["training/loss"] == 1.5 and numbers(ENTRY)["training/learning_rate"] == 0.1
    assert "guard/alarms" not in numbers(ENTRY)
    watched = numbers({**ENTRY, "validation_robust_accuracy": 0.3, "guard_one_step": 0.4, "sha256": "x"})
    assert watched["validation/robust_accuracy"] == 0.3 and watched["guard/one_step"] == 0.4
    assert watched["guard/alarms"] == 0 and "training/sha256" not in watched
    assert numbers({**ENTRY, "guard_one_step": 0.4, "alarms": [ALARM]})["guard/alarms"] == 1


def events(path: Path) -> Iterator[Any]:
    """Yield the events of a file of TensorBoard's: length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def scalars(path: Path) -> dict[tuple[str, int], float]:
    told = [(event.step, value) for event in events(path) for value in event.summary.value]
    values = [(step, value) for step, value in told if value.tag != EXAMPLES]
    found = {(value.tag, step): value.simple_value for step, value in values}
    assert len(found) == len(values), "a number was told twice"
    return found


@pytest.mark.packages("tensorboardX")
def test_tensorboard_has_every_epoch_once_after_a_resumption_too(train: Callable[..., Result]):
    assert train("--track", "tensorboard", *EACH).exit_code == 0
    (first,) = Path("run/events").iterdir()
    told = scalars(first)
    for entry in history():
        assert told["training/loss", entry["epoch"]] == pytest.approx(entry["loss"], rel=1e-6)
        robust = entry["validation_robust_accuracy"]
        assert told["validation/robust_accuracy", entry["epoch"]] == pytest.approx(robust, rel=1e-6)
        assert told["guard/alarms", entry["epoch"]] == len(entry.get("alarms", []))
    shown = {event.step: value for event in events(first) for value in event.summary.value if value.tag == EXAMPLES}
    assert [*shown] == [1, 2]
    for value in shown.values():
        assert Image.open(BytesIO(value.image.encoded_image_string)).size == (8 * 64, 3 * 64), (
            "8 digits, 8 times as large"
        )
    assert train("--track", "tensorboard", *EACH, "--resume", epochs=3).exit_code == 0
    second = max(Path("run/events").iterdir())  # the same file, if both began in one second
    own = [*events(second)]
    assert any(event.session_log.status == 1 and event.step == 0 for event in own), "the first file must not count"
    assert {step for name, step in scalars(second) if name == "training/loss"} == {1, 2, 3}


class Server(ModuleType):
    """Stands in for MLflow and for Weights & Biases: keeps what it is told."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.told: list[tuple[int, dict[str, float]]] = []
        self.shown: list[tuple[int, Any]] = []
        self.known: dict[str, Any] = {}
        self.ended = False

    @contextmanager
    def start_run(self, run_name: str) -> Iterator[None]:
        self.known["name"] = run_name
        yield
        self.ended = True

    def log_params(self, params: dict[str, Any]) -> None:
        self.known |= params

    def log_metrics(self, found: dict[str, float], step: int) -> None:
        self.told.append((step, found))

    @contextmanager
    def init(self, project: str, name: str, config: dict[str, Any]) -> Iterator["Server"]:
        self.known |= {"project": project, "name": name, "settings.epochs": config["settings"]["epochs"]}
        yield self
        self.ended = True

    def log(self, found: dict[str, Any], step: int) -> None:
        self.shown.append((step, found.pop(EXAMPLES)))
        self.told.append((step, found))

    def log_image(self, image: Any, key: str, step: int) -> None:
        assert key == EXAMPLES
        self.shown.append((step, image))

    def Image(self, image: Any) -> Any:  # the name is wandb's
        return image


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_servers_are_told_the_same_numbers(name: str, train: Callable[..., Result], monkeypatch: pytest.MonkeyPatch):
    server = Server(name)
    monkeypatch.setitem(sys.modules, name, server)
    assert train("--track", name).exit_code == 0
    assert server.told == [(entry["epoch"], numbers(entry)) for entry in history()] and len(server.told) == 2
    assert server.known["name"] == "run" and server.known["settings.epochs"] == 2 and server.ended
    assert [(step, seen.shape) for step, seen in server.shown] == [(1, (192, 512, 3)), (2, (192, 512, 3))]


@pytest.mark.packages("mlflow")
@pytest.mark.filterwarnings("ignore")  # its own
def test_mlflow_itself_has_every_epoch(train: Callable[..., Result], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///told.db")
    assert train("--track", "mlflow").exit_code == 0
    from mlflow import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([found.experiment_id for found in client.search_experiments()])
    assert run.info.run_name == "run" and run.info.status == "FINISHED" and run.data.params["settings.epochs"] == "2"
    assert run.data.metrics == pytest.approx(numbers(history()[-1]))
    told = client.get_metric_history(run.info.run_id, "training/loss")
    assert [(one.step, one.value) for one in told] == [(entry["epoch"], entry["loss"]) for entry in history()]
    assert len(client.list_artifacts(run.info.run_id, "images")) >= 2


def sent(path: Path) -> Iterator[Any]:
    """Yield the messages of a file of wandb's: blocks of 32 KiB, parts of checksum, length and kind (1, 4 end one)."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, message = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        message += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield Record.FromString(message)
            message = b""


@pytest.mark.packages("wandb")
@pytest.mark.filterwarnings("ignore")  # its own
def test_wandb_itself_has_every_epoch(train: Callable[..., Result], monkeypatch: pytest.MonkeyPatch):
    """Offline, into the file that `wandb sync` sends."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert train("--track", "wandb").exit_code == 0
    (path,) = Path("wandb").glob("offline-run-*/run-*.wandb")
    told = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in sent(path)
        if record.WhichOneof("record_type") == "history"
    ]
    assert [one["_step"] for one in told] == [entry["epoch"] for entry in history()]
    for one, entry in zip(told, history(), strict=True):
        assert {name: one[name] for name in numbers(entry)} == pytest.approx(numbers(entry))
        assert one[f"{EXAMPLES}/_type"] == "image-file" and one[f"{EXAMPLES}/width"] == 8 * 64


def test_the_linearity_error_of_held_out_images_is_in_every_run(train: Callable[..., Result]):
    assert train().exit_code == 0
    run, experiment = load_run("run"), parsed(written(Path("run/config.toml")))
    _, held_out = training_images(experiment)
    assert held_out is not None
    seen = probe(run.model, held_out.as_batch(), Linf(0.1))
    entry = history()[-1]
    assert entry["validation_linearity_error"] == pytest.approx(float(seen.linearity_error), rel=1e-4) != 0
    assert entry["validation_gradient_cosine"] == pytest.approx(float(seen.gradient_cosine), rel=1e-4)


def test_a_picture_has_clean_images_adversarial_ones_and_what_changed():
    x = torch.full((2, 1, 64, 64), 0.5)
    x_adv = x.clone()
    x_adv[0, :, 0, 0], x_adv[1, :, 0, 0] = 0.6, 0.45
    seen = picture(Examples(x, x_adv))
    assert seen is not None and seen.shape == (3 * 64, 2 * 64, 3)
    assert seen[0, 0].tolist() == [128] * 3 and seen[64, 0, 0] == 153 and seen[64, 64, 0] == 115
    assert (seen[128, 0, 0], seen[128, 64, 0]) == (255, 64), "the largest change is white, half of it down is a quarter"
    assert (seen[129:] == 128).all()
    coloured = picture(Examples(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)))
    assert coloured is not None and coloured.shape == (3 * 64, 64, 3)
    assert picture(Examples(torch.rand(1, 2, 8, 8), torch.rand(1, 2, 8, 8))) is None


def test_wrong_trackers_are_refused_before_anything_is_trained(
    train: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
):
    done = train("--track", "tensorbord")
    assert done.exit_code == 2 and "Did you mean 'tensorboard'?" in done.stderr
    monkeypatch.setattr("planish.runs.track.find_spec", lambda name: None)
    done = train("--track", "tensorboard")
    assert done.exit_code == 2 and done.stderr.endswith("not installed: pip install tensorboardX\n")
    assert not Path("run").exists()


def test_watch_shows_a_run_once_where_there_is_no_terminal(train: Callable[..., Result]):
    assert train().exit_code == 0
    shown = CliRunner().invoke(app, ["watch", "run"])
    last = history()[-1]
    assert shown.exit_code == 0 and shown.stdout.startswith("run: epoch 2 of 2\n")
    assert f"r {100 * last['validation_robust_accuracy']:5.1f} %" in shown.stdout
    assert f"loss {last['loss']:.3f}" in shown.stdout
    found = json.loads(CliRunner().invoke(app, ["watch", "run", "--json"]).stdout)
    assert found["epochs"] == 2 and [entry["loss"] for entry in found["history"]] == [e["loss"] for e in history()]
    wrong = CliRunner().invoke(app, ["watch", "nowhere"])
    assert wrong.exit_code == 2 and "no run at nowhere" in wrong.stderr


def test_watch_draws_alarms_and_what_is_left():
    lines = view("run", [ENTRY, {**ENTRY, "epoch": 2, "alarms": [ALARM]}], 4)
    assert lines[0] == "run: epoch 2 of 4, about 4.0 s to go" and "went back" in lines[-1]
    assert view("run", [], 4) == ["run: epoch 0 of 4", "no epoch is finished yet"]


def test_curves_are_where_their_values_are():
    lines = curves({"t": [0.0, 1.0], "r": [0.5]}, 2)
    assert len(lines) == HEIGHT + 2
    body = [line[7:].ljust(WIDTH) for line in lines[:HEIGHT]]
    assert body[HEIGHT - 1][0] == "t" and body[0][WIDTH - 1] == "t" and body[HEIGHT // 2][0] == "r"
    assert sum(line.count("t") + line.count("r") for line in body) == 3
