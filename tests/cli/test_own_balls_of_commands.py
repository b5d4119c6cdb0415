"""Files that `planish evaluate` takes and writes: radii, targets, images of 8 bits."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import Result

from planish.cli.threats import next_audit
from planish.core.errors import BadInput
from planish.data import load
from planish.evaluation.pngs import load_pngs
from planish.records.evaluation import Evaluation
from planish.runs.given import aimed, threat_in
from planish.runs.judge import EvaluationConfig, evaluate_into, load_model
from planish.runs.places import clear

Planish = Callable[..., Result]


@pytest.fixture
def judged(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Evaluation]:
    """judged(folder, radius, attacks, **more): an evaluation of 20 digits into a folder, as the command makes it."""
    monkeypatch.chdir(tmp_path)

    def run(folder: str, radius: str, attacks: str, levels: int | None = None, **more: object) -> Evaluation:
        task = EvaluationConfig("digits", threat_in("Linf", radius, levels), (attacks,), limit=20, **more)  # type: ignore[arg-type]
        *_, last = evaluate_into(load_model(str(run_folder)), task, Path(folder))
        return last

    return run


def test_images_of_8_bits_are_verified_from_their_pngs(
    judged: Callable[..., Evaluation], run_folder: Path, planish: Planish
):
    arguments = ("--data", "digits", "--radius", "0.1", "--limit", "20")
    record = judged("own", "0.1", "pgd-5-1", 256, keep_images=True)
    assert record.meta["threat"] == {"norm": "Linf", "radius": 0.1, "levels": 256}
    assert "Adversarial images have 256 levels, as their files hold them." in record.remarks()
    names = {f"{index}.png" for index in record.indices}
    assert {path.name for path in Path("own/png").iterdir()} == names and len(names) == 20
    told = json.loads(planish("verify", run_folder, "own/png", *arguments[:4], "--json").stdout)
    assert told["robust"]["hits"] == int(record.survivors().sum()) < told["clean"]["hits"] and told["infeasible"] == 0
    arrays = planish("verify", run_folder, "own/adversarial.npz", *arguments[:4], "--json")
    assert json.loads(arrays.stdout) == told
    planned = planish("evaluate", run_folder, *arguments, "--eight-bit", "--dry-run", "--json")
    assert json.loads(planned.stdout)["threat"] == record.meta["threat"]
    clear(Path("own"), "evaluation")
    assert not Path("own/png").exists()


def test_images_in_radii_of_a_file_are_verified(judged: Callable[..., Evaluation], run_folder: Path, planish: Planish):
    """Radii for as many images as --limit took did not fit the whole test set, which `verify` always read."""
    np.save("radii.npy", np.array([0.0, 0.3] * 10))
    record = judged("own", "radii.npy", "pgd-5-1", keep_images=True)
    asked = ("--data", "digits", "--radius", "radii.npy", "--device", "cpu")
    result = planish("verify", run_folder, "own", *asked, "--limit", "20", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["robust"]["hits"] == int(record.survivors().sum()) and told["infeasible"] == 0


def test_damaged_pngs_are_said_in_a_line(tmp_path: Path):
    with pytest.raises(BadInput, match=r"holds no INDEX\.png"):
        next(load_pngs(tmp_path))
    (tmp_path / "3.png").write_bytes(b"\x89PNG and nothing more")
    with pytest.raises(BadInput, match=r"3\.png is no PNG"):
        next(load_pngs(tmp_path))
    Image.new("RGBA", (4, 4)).save(tmp_path / "3.png")
    with pytest.raises(BadInput, match="of the mode RGBA"):
        next(load_pngs(tmp_path))
    Image.new("L", (4, 4)).save(tmp_path / "3.png")
    Image.new("L", (5, 4)).save(tmp_path / "12.png")
    with pytest.raises(BadInput, match="not of one size"):
        next(load_pngs(tmp_path))


def test_radii_from_a_file(judged: Callable[..., Evaluation], planish: Planish, run_folder: Path):
    np.save("radii.npy", np.array([0.0, 0.3] * 10))
    record = judged("own", "radii.npy", "pgd-5-1")
    assert record.survivors()[::2].sum() == record.correct()[::2].sum() and record.survivors()[1::2].sum() < 5
    assert record.radius == pytest.approx(0.3) and any("from 0 to 0.3" in remark for remark in record.remarks())
    refused = planish("audit", run_folder, "--data", "digits", "--radius", "radii.npy", "--limit", "20")
    assert refused.exit_code == 2 and "give one number here" in refused.stderr
    np.save("radii.npy", np.array(["a"]))
    with pytest.raises(BadInput, match="one array of numbers"):
        threat_in("Linf", "radii.npy")
    with pytest.raises(BadInput, match=r"cannot read nowhere\.npy"):
        threat_in("Linf", "nowhere.npy")


def test_targets_from_files(judged: Callable[..., Evaluation]):
    labels = load("digits", "test", 20).as_batch().labels
    wanted = ((labels + 1) % 10).tolist()
    Path("targets.txt").write_text("".join(f"{number}\n" for number in wanted))
    record = judged("own", "0.4", "targeted-10-1", targets="targets.txt")
    tried = record.columns[0].attempted
    assert record.columns[0].target[tried].tolist() == np.array(wanted)[tried].tolist()
    np.save("targets.npy", np.array(wanted))
    images = load("digits", "test", 20).as_batch()
    assert torch.equal(aimed(images, "targets.npy", []).targets, torch.tensor(wanted))
    Path("names.txt").write_text("cat\ndog\n")
    assert aimed(images.select(slice(0, 2)), "names.txt", ["dog", "cat"]).targets.tolist() == [1, 0]
    with pytest.raises(BadInput, match=r"a class 'cat', and 2 are called so: write its number"):
        aimed(images, "names.txt", ["cat", "dog", "cat"])
    with pytest.raises(BadInput, match="a class 'cat' that the data have not"):
        aimed(images, "names.txt", ["dog"])
    with pytest.raises(BadInput, match=r"names\.txt has 2 targets for 20 images"):
        aimed(images, "names.txt", ["dog", "cat"])
    with pytest.raises(BadInput, match="no attack drives images to them"):
        judged("other", "0.1", "fgsm", targets="targets.txt")
    with pytest.raises(BadInput, match="no file of targets"):
        judged("other", "0.1", "targeted", targets="nowhere.txt")


def test_a_byte_order_mark_before_targets(tmp_path: Path):
    """Issue: it was taken for a part of the first class's name."""
    (tmp_path / "targets.txt").write_bytes(b"\xef\xbb\xbf1\ncat\n")
    images = load("digits", "test", 2).as_batch()
    assert aimed(images, str(tmp_path / "targets.txt"), ["cat"]).targets.tolist() == [1, 0]


def test_an_empty_line_among_targets(tmp_path: Path):
    """Issue: it was left out, and each image below it was driven to the class of the next one."""
    path = tmp_path / "targets.txt"
    path.write_text("1\n\n2\n3\n")
    with pytest.raises(BadInput, match=r"targets\.txt: line 2 is empty, and each line has its number"):
        aimed(load("digits", "test", 3).as_batch(), str(path), [])
    path.write_text("1\n2\n3\n\n\n")
    assert aimed(load("digits", "test", 3).as_batch(), str(path), []).targets.tolist() == [1, 2, 3]


@pytest.mark.parametrize(("radius", "follows"), [("radii.npy", False), ("0", False), ("25.5/255", True)])
def test_no_audit_comes_next_that_refuses_the_radius(
    radius: str, follows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    np.save("radii.npy", np.array([0.1, 0.3]))
    task = EvaluationConfig("digits", threat_in("Linf", radius), ("fgsm",))
    command = f"planish audit run --data digits --radius {radius} --size 8"
    assert next_audit("run", task, radius, built_by=None, size=8) == (command if follows else None)
