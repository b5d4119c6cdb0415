"""Issue 24: common corruptions as people have them on disk, beside the adversarial figure."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from planish.cli.main import app
from planish.core.errors import BadInput
from planish.core.threat import Linf
from planish.data.classes import Classes
from planish.data.corruptions import SEVERITIES, corrupted_sets
from planish.records.corruptions import BENCHMARK, Corruptions, to_json
from planish.records.corruptions import load as load_record
from planish.runs.corruptions import CommonCorruptions, baseline_of, measure_into
from planish.runs.judge import EvaluationConfig, LoadedModel, entries

COUNT = 20
NONE = (Linf(0.1), ())
"""A threat, and no attack."""
META = {"schema_version": 1, "model": {}, "baseline": None}


class Brightest(nn.Module):
    """Names the tenth of an image that is brightest; images (N, 3, 4, 10)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2))


def stripes(labels: np.ndarray, width: int = 10) -> np.ndarray:
    """Images (N, 4, width, 3) uint8, bright in the column of their label."""
    x = np.full((len(labels), 4, width, 3), 40, np.uint8)
    x[np.arange(len(labels)), :, labels] = 200
    return x


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """A CIFAR-10-C: severity s of fog makes 2 s images wrong, that of snow none; spatter is not of the benchmark."""
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    labels = np.arange(COUNT) % 10
    wrong = {"fog": 2, "snow": 0, "spatter": 4}
    for name, each in wrong.items():
        parts = [stripes(np.where(np.arange(COUNT) < each * at, (labels + 1) % 10, labels)) for at in SEVERITIES]
        np.save(folder / f"{name}.npy", np.concatenate(parts))
    np.save(folder / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    return folder


def measured(
    folder: Path, into: Path, limit: int | None = None, baseline: Path | None = None, classes: Classes | None = None
) -> Corruptions:
    task = EvaluationConfig("digits", *NONE, limit, classes=classes)
    judged = LoadedModel(Brightest(), "brightest")
    *_, last = measure_into(judged, task, into, CommonCorruptions.found(folder, baseline))
    return last


def test_five_severities_stacked(cifar: Path, tmp_path: Path):
    found = measured(cifar, tmp_path / "out")
    assert found.names == ("fog", "snow", "spatter") and found.severities == SEVERITIES and found.images == COUNT
    assert [found.accuracy("fog", at).hits for at in SEVERITIES] == [18, 16, 14, 12, 10]
    assert found.error("fog") == pytest.approx(0.3) and found.error("snow") == 0
    assert found.counted == ("fog", "snow") and found.mean_error().value == pytest.approx(0.15)
    assert any("2 of the benchmark's 15" in line for line in found.remarks())
    assert any("not counted" in line and "spatter" in line for line in found.remarks())
    back = load_record(tmp_path / "out" / "corruptions.npz")
    assert np.array_equal(back.correct, found.correct) and to_json(back) == to_json(found)


def test_the_interval_is_over_images():
    """The error of each image over all its sets is one draw; it is of its mean, by hand."""
    correct = np.ones((2, 5, 4), bool)
    correct[:, :, 0] = False
    found = Corruptions(("fog", "snow"), SEVERITIES, correct, META)
    value, low, high = found.mean_error()
    spread = 1.959963984540054 * np.std([1, 0, 0, 0], ddof=1) / 2
    assert (value, low, high) == pytest.approx((0.25, max(0, 0.25 - spread), 0.25 + spread))


def test_errors_relative_to_a_baseline(cifar: Path, tmp_path: Path):
    (tmp_path / "alexnet.toml").write_text("fog = 0.6\nsnow = 0.5\n")
    found = measured(cifar, tmp_path / "out", baseline=tmp_path / "alexnet.toml")
    assert found.error("fog") == pytest.approx(0.5) and found.mean_error().value == pytest.approx(0.25)
    assert found.error("spatter") == pytest.approx(0.6)  # it has no baseline and does not count
    assert "relative to the baseline 25.0%" in found.headline()


def test_a_limit_is_of_each_severity(cifar: Path, tmp_path: Path):
    found = measured(cifar, tmp_path / "out", limit=4)
    assert found.images == 4 and [found.accuracy("fog", at).hits for at in SEVERITIES] == [2, 0, 0, 0, 0]


def test_what_is_known_is_not_classified_again(cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    task, judged = EvaluationConfig("digits", Linf(0.1), ()), LoadedModel(Brightest(), "brightest")
    steps = measure_into(judged, task, tmp_path / "out", CommonCorruptions.found(cifar))
    assert next(steps).names == ("fog",)
    steps.close()
    (cifar / "fog.npy").write_bytes(b"not read again")
    assert measured(cifar, tmp_path / "out").error("fog") == pytest.approx(0.3)
    with pytest.raises(BadInput, match=r"fog\.npy: not a readable \.npy file"):
        measured(cifar, tmp_path / "out", limit=3)


@pytest.fixture(params=["", "weather"])
def imagenet(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """An ImageNet-C of two corruptions, two severities and three classes; in a folder of its kind or without."""
    for name, shifts in {"fog": (0, 1), "frost": (0, 0)}.items():
        for severity, shift in enumerate(shifts, 1):
            for label in range(3):
                folder = tmp_path / "C" / str(request.param) / name / str(severity) / f"n0{label}"
                folder.mkdir(parents=True)
                image = stripes(np.array([(label + shift) % 3]), 3)[0]
                Image.fromarray(image).save(folder / "a.png")
    return tmp_path / "C"


def test_folders_of_severities(imagenet: Path, tmp_path: Path):
    found = measured(imagenet, tmp_path / "out")
    assert (found.names, found.severities, found.images) == (("fog", "frost"), (1, 2), 3)
    assert [found.accuracy("fog", at).hits for at in (1, 2)] == [3, 0] and found.error("frost") == 0


def test_what_is_known_is_of_the_same_classes(cifar: Path, tmp_path: Path):
    """Issue: with --classes, errors that an earlier command had counted without them were shown again."""
    assert measured(cifar, tmp_path / "out").error("snow") == 0
    assert measured(cifar, tmp_path / "out", classes=[str(number) for number in range(10)]).error("snow") == 0
    turned = {str(number): (number + 1) % 10 for number in range(10)}
    assert measured(cifar, tmp_path / "out", classes=turned).error("snow") == 1


def test_severities_that_are_added_are_classified(imagenet: Path, tmp_path: Path):
    """Issue: the command ended with "corruption errors are (2, 2, 3)" until the folder was emptied."""
    measured(imagenet, tmp_path / "out")
    for severities in [place.parent for place in imagenet.rglob("2")]:
        shutil.copytree(severities / "2", severities / "3")
    found = measured(imagenet, tmp_path / "out")
    assert found.severities == (1, 2, 3) and [found.accuracy("fog", at).hits for at in (1, 2, 3)] == [3, 0, 0]


def test_notes_stay_with_what_is_known(imagenet: Path, tmp_path: Path):
    """Issue: a command that was given again lost "labels were matched by number"."""
    judged, task = (
        LoadedModel(Brightest(), "brightest", {"classes": ["a", "b", "c"]}),
        EvaluationConfig("digits", *NONE),
    )
    for _ in range(2):
        *_, last = measure_into(judged, task, tmp_path / "out", CommonCorruptions.found(imagenet))
        assert [line for line in last.meta["notes"] if "labels were matched by number" in line]


def test_classes_that_are_numbers_are_no_severities(tmp_path: Path):
    """Issue: noise/1/1, images of the class "1", was taken for a corruption "1" of severity 1."""
    for severity in "12":
        for label in "0123":
            folder = tmp_path / "C" / "noise" / severity / label
            folder.mkdir(parents=True)
            Image.fromarray(stripes(np.array([int(label)]), 4)[0]).save(folder / "a.png")
    assert [(one.corruption, one.severity) for one in corrupted_sets(tmp_path / "C")] == [("noise", 1), ("noise", 2)]
    assert measured(tmp_path / "C", tmp_path / "out").accuracy("noise", 2).hits == 4


@pytest.fixture
def planish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def forward(self, x):\n        return x.mean((1, 2))\n"
    )
    labels = np.arange(COUNT) % 10
    np.savez(tmp_path / "clean.npz", x=stripes(labels), y=labels)

    def run(*more: object) -> Result:
        own = ("evaluate", "own.py:Net", "--data", "clean.npz", "--radius", "0.1", "--attacks", "noise-2")
        result = CliRunner().invoke(app, [*own, "--device", "cpu", "--quiet", "--out", "out", *map(str, more)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


def test_the_command_shows_both(planish: Callable[..., Result], cifar: Path):
    result = planish("--corruptions", cifar)
    assert result.exit_code == 0 and result.stderr == ""
    words = " ".join(result.stdout.split())
    assert "Mean corruption error" in words and "15.0%" in words and "Robust accuracy" in words
    page, (method,) = Path("out/report.html").read_text(), json.loads(Path("out/results.json").read_text())["methods"]
    assert 'id="corruptions"' in page and "(spatter)" in page and "no gaussian_noise" in page
    assert method["corruptions"]["mean_error"]["value"] == pytest.approx(0.15)
    assert method["corruptions"]["corruptions"]["fog"]["severities"]["5"]["accuracy"] == pytest.approx(0.5)
    (entry,) = entries([Path("out")])
    assert entry.corruptions is not None and entry.corruptions.meta["model"]["name"] == "own"


def test_a_report_without_corruptions_says_nothing_of_them(planish: Callable[..., Result]):
    assert planish().exit_code == 0
    page = Path("out/report.html").read_text()
    assert "Common corruptions" not in page and "corruption error" not in page
    assert "corruptions" not in json.loads(Path("out/results.json").read_text())["methods"][0]


def test_wrong_input_is_told_before_the_attacks(planish: Callable[..., Result], cifar: Path, tmp_path: Path):
    def refused(*options: object) -> str:
        result = planish(*options)
        assert result.exit_code == 2 and not Path("out").exists()
        (line,) = result.stderr.splitlines()
        return line

    assert "no folder 'nowhere': give one of CIFAR-10-C" in refused("--corruptions", "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no corrupted images: looked for CORRUPTION.npy" in refused("--corruptions", "empty")
    assert "is for --corruptions FOLDER" in refused("--corruption-baseline", "b.json")
    (tmp_path / "b.json").write_text('{"fog": 0.5}')
    told = refused("--corruptions", cifar, "--corruption-baseline", "b.json")
    assert "the baseline has no error for snow" in told
    assert "leave --shard out" in refused("--corruptions", cifar, "--shard", "1/2")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"fog": 0}', '{"fog": 80}', '{"fog": "x"}', '{"fog": true}', "{" * 5]
)
def test_a_baseline_is_of_errors(text: str, tmp_path: Path):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(BadInput, match=r"\.json or \.toml"):
        baseline_of(tmp_path / "b.json")


def test_nothing_is_unpickled(cifar: Path, tmp_path: Path):
    np.save(cifar / "fog.npy", np.array([{}] * 100, object), allow_pickle=True)
    with pytest.raises(BadInput, match=r"fog\.npy: not a readable \.npy file of a plain array"):
        measured(cifar, tmp_path / "out")


def test_arrays_that_do_not_fit(cifar: Path, tmp_path: Path):
    np.save(cifar / "fog.npy", stripes(np.zeros(7, int)))
    with pytest.raises(BadInput, match="has 7 images, and its labels are 100"):
        measured(cifar, tmp_path / "out")
    np.save(cifar / "labels.npy", np.zeros(7, int))
    with pytest.raises(BadInput, match="7 labels, which are no five severities"):
        measured(cifar, tmp_path / "out")
    (tmp_path / "C" / "fog" / "1" / "a").mkdir(parents=True)
    (tmp_path / "C" / "snow" / "1" / "a").mkdir(parents=True)
    (tmp_path / "C" / "snow" / "2" / "a").mkdir(parents=True)
    with pytest.raises(BadInput, match="other severities for one corruption"):
        CommonCorruptions.found(tmp_path / "C")


def test_the_benchmark_is_the_paper_s():
    assert len({*BENCHMARK}) == 15
    assert Corruptions(("own", "mine"), (1,), np.ones((2, 1, 3), bool), META).counted == ("own", "mine")
    everything = Corruptions(("fog", "spatter"), (1,), np.ones((2, 1, 3), bool), META)
    assert everything.counted == ("fog",) and str(everything).splitlines()[0] == everything.headline()


def test_memory_holds_one_severity_at_a_time(cifar: Path):
    (first, *_) = corrupted_sets(cifar)
    images = first.read(3, None)
    assert images.x.shape == (3, 3, 4, 10) and images.x.dtype == torch.uint8
    assert images.x.untyped_storage().nbytes() == 3 * 3 * 4 * 10
