"""Damaged and hostile files: one line and exit code 2, or the save before and a note; never a wrong number."""

import io
import json
import logging
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result

from planish.core.errors import BadInput
from planish.evaluation.adversarials import load_images
from planish.records import distances, evaluation
from planish.runs.config import experiment_from
from planish.runs.run import load_resume, load_run, save_resume
from planish.runs.train import train_into
from planish.storage.files import write_arrays, write_lines, write_sealed_json
from planish.storage.reading import read_arrays, read_json, read_lines, unpacked

Planish = Callable[..., Result]
JUDGE = ("--data", "digits", "--limit", "8", "--radius", "0.1", "--attacks", "fgsm", "--device", "cpu")


@pytest.fixture
def run(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of the run folder, evaluated, without the saves before the last."""
    return Path(shutil.copytree(run_folder, tmp_path / "run", ignore=shutil.ignore_patterns("*.previous.*")))


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]


def one_line(result: Result, *words: str) -> None:
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert result.stderr.count("\n") == 1 and all(word in result.stderr for word in words), result.stderr


@pytest.mark.parametrize("share", [0.5, 0.65, 0.8, 0.999])
@pytest.mark.parametrize("how", ["flipped", "zeroed"])
def test_weights_with_other_values(how: str, share: float, run: Path):
    path = run / "model.safetensors"
    whole = path.read_bytes()
    at = int(share * len(whole))
    zeroed = whole[: at - 100] + bytes(100) + whole[at:]
    path.write_bytes(flipped(whole, at) if how == "flipped" else zeroed)
    with pytest.raises(BadInput, match="is damaged: its weights are not those that were written"):
        load_run(run)


def test_weights_whose_metadata_are_others(run: Path):
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'\\"0\\", \\"1\\"', b'\\"1\\", \\"0\\"'))
    with pytest.raises(BadInput, match="is damaged: its weights are not those that were written"):
        load_run(run)


def test_every_flipped_byte_of_a_resume_file_is_found_or_harmless(tmp_path: Path):
    path = tmp_path / "resume.pt"
    state = {"model": {"w": torch.arange(40.0)}, "step": 3}
    save_resume(path, state)
    whole, found = path.read_bytes(), 0
    for at in range(0, len(whole), 5):
        path.write_bytes(flipped(whole, at))
        try:
            loaded = load_resume(path)
        except BadInput:
            found += 1
        else:
            assert torch.equal(loaded["model"]["w"], state["model"]["w"]) and loaded["step"] == 3, at  # type: ignore[index]
    assert found > 0.9 * len(whole) / 5


def test_files_of_an_earlier_planish_have_no_digest_and_open(run: Path, tmp_path: Path):
    metrics, config = run / "metrics.jsonl", run / "config.toml"
    entries = [json.loads(line) for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(json.dumps({k: v for k, v in e.items() if k != "sha256"}) + "\n" for e in entries))
    config.write_text(config.read_text().partition("\n")[2])
    assert len(load_run(run).history) == 2 and load_run(run).config["method"]["name"] == "fgsm"
    torch.save({"step": 1}, tmp_path / "resume.pt")
    assert load_resume(tmp_path / "resume.pt") == {"step": 1}
    np.savez(tmp_path / "old.npz", x=np.arange(3))
    assert read_arrays(tmp_path / "old.npz")["x"].tolist() == [0, 1, 2]


def test_the_save_before_is_used_and_the_user_told(
    planish: Planish, run_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    path = folder / "model.safetensors"
    path.write_bytes(flipped(path.read_bytes(), -40))
    with caplog.at_level(logging.WARNING):
        result = planish("evaluate", folder, *JUDGE)
    assert result.exit_code == 0 and "used the save before it, model.previous.safetensors" in caplog.text
    assert result.stderr.count("\n") == 1 and result.stderr.startswith(f"planish: {path} is damaged: ")
    record = evaluation.load(next(tmp_path.glob("runs/evaluation/*/evaluation.npz")))
    assert any("used the save before it" in note for note in record.remarks())


def test_weights_alone_are_judged(planish: Planish, run: Path):
    """A folder that somebody sends holds the weights and nothing else."""
    (run.parent / "sent").mkdir()
    shutil.copy(run / "model.safetensors", run.parent / "sent")
    assert planish("evaluate", run.parent / "sent", *JUDGE).exit_code == 0


def test_a_damaged_resume_file_goes_on_from_the_save_before(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    tree = {"data": {"limit": 64}, "model": {"name": "small-cnn", "width": 2}, "method": {"name": "fgsm"}}
    experiment = experiment_from({**tree, "settings": {"epochs": 3, "batch_size": 32}})
    list(train_into(experiment, tmp_path / "whole"))
    records = train_into(experiment, tmp_path / "cut")
    _ = next(records), next(records)
    records.close()  # type: ignore[attr-defined]
    path = tmp_path / "cut" / "resume.pt"
    path.write_bytes(flipped(path.read_bytes(), 500))
    assert [record.epoch for record in train_into(experiment, tmp_path / "cut", resume=True)] == [2, 3]
    assert "used the save before it, resume.previous.pt" in caplog.text
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert one == other


DAMAGES = {
    "empty": lambda whole: b"",
    "cut": lambda whole: whole[: len(whole) // 2],
    "cut a little": lambda whole: whole[:-3],
    "zeroed": lambda whole: bytes(len(whole)),
    "binary": lambda whole: bytes(range(128, 256)) * 3,
    "deep": lambda whole: b"[" * 100_000,
    "flipped": lambda whole: flipped(whole, len(whole) // 2),
    "other": lambda whole: b"[1, 2]\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["provenance.json", "config.toml", "metrics.jsonl"])
def test_texts_of_a_run_folder(name: str, damage: str, planish: Planish, run: Path):
    path = run / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    one_line(planish("evaluate", run, *JUDGE), str(path))


@pytest.mark.parametrize("damage", [*DAMAGES, "folder"])
def test_records(damage: str, tmp_path: Path):
    """Each file of arrays, by its own reader."""
    path = tmp_path / "one.npz"
    write_arrays(path, x_adv=np.zeros((2, 1, 2, 2), np.float32), indices=np.arange(2))
    whole = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(DAMAGES[damage](whole))
    for load in (evaluation.load, distances.load, distances.load_numbers, load_images):
        with pytest.raises(BadInput) as caught:
            load(path)  # type: ignore[operator]
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["gallery.npz", "evaluation.npz", "distances.npz"])
def test_a_report_of_damaged_files(name: str, planish: Planish, run: Path):
    assert planish("evaluate", run, *JUDGE, "--out", run).exit_code == 0
    (run / name).write_bytes(b"PK\x03\x04" + bytes(500))
    one_line(planish("report", run), str(run / name))


def test_a_gallery_of_other_arrays(planish: Planish, run: Path):
    assert planish("evaluate", run, *JUDGE, "--out", run).exit_code == 0
    write_arrays(run / "gallery.npz", clean=np.zeros((1, 1, 8, 8)), adversarial=np.zeros((1, 1, 8, 8)))
    one_line(planish("report", run), "does not hold the pictures of an evaluation")


def test_a_pipe_in_place_of_a_file_is_not_waited_for(planish: Planish, run: Path):
    import os

    for name in ("provenance.json", "metrics.jsonl"):
        shutil.copytree(run, run.parent / "piped", dirs_exist_ok=True)
        (run.parent / "piped" / name).unlink()
        os.mkfifo(run.parent / "piped" / name)
        one_line(planish("evaluate", run.parent / "piped", *JUDGE), name)
        (run.parent / "piped" / name).unlink()


def test_json_whose_values_are_others(tmp_path: Path):
    write_sealed_json({"cost": 1.25}, tmp_path / "one.json")
    assert read_json(tmp_path / "one.json", "") == {"cost": 1.25}
    whole = (tmp_path / "one.json").read_text()
    for damaged in (whole.replace("1.25", "1.75"), whole.replace("sha256", "sha254"), whole.replace("cost", "cast")):
        (tmp_path / "one.json").write_text(damaged)
        with pytest.raises(BadInput, match="its values are not those that were written"):
            read_json(tmp_path / "one.json", "")
    write_lines([{"epoch": 1}, {"epoch": 2}], tmp_path / "lines.jsonl")
    assert read_lines(tmp_path / "lines.jsonl", "") == [{"epoch": 1}, {"epoch": 2}]


def claiming(shape: str, path: Path) -> Path:
    """An .npz of few bytes whose header says that x is of this shape."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", start + header.encode() + bytes(64))
    return path


@pytest.mark.parametrize("shape", ["(1099511627776,)", "(4294967296, 4294967296)", "(2, 2)", "(-4, -4)", "(16, 2)"])
def test_headers_that_claim_what_the_file_does_not_hold(shape: str, tmp_path: Path, planish: Planish, run: Path):
    path = claiming(shape, tmp_path / "big.npz")
    with pytest.raises(BadInput, match="is not a planish evaluation"):
        evaluation.load(path)
    one_line(planish("evaluate", run, "--data", path, *JUDGE[2:]), str(path))


def test_what_unpacks_to_more_than_is_allowed(
    tmp_path: Path, planish: Planish, run: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, x=np.zeros((64, 1, 128, 128), np.float32), y=np.zeros(64, np.int64))
    assert path.stat().st_size < 50_000
    monkeypatch.setenv("PLANISH_MAX_BYTES", "1000000")
    with pytest.raises(BadInput, match=r"takes 0.0042 GB, more than the 0.001 GB that are allowed"):
        unpacked(io.BytesIO(path.read_bytes()), path)
    one_line(planish("evaluate", run, "--data", path, *JUDGE[2:]), "PLANISH_MAX_BYTES to at least 4195")
    monkeypatch.setenv("PLANISH_MAX_BYTES", "much")
    one_line(planish("evaluate", run, *JUDGE), "PLANISH_MAX_BYTES is 'much': give a number of bytes")


def test_an_archive_whose_directory_lost_its_last_entries(tmp_path: Path):
    """The zip is sound without them; a digest that was one more array got lost with them."""
    path = tmp_path / "one.npz"
    record = distances.Numbers(np.arange(2), np.arange(2), np.arange(2), {"gradient": np.ones(2, np.float32)}, {})
    distances.save_numbers(record, path)
    whole = path.read_bytes()
    shorter = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(shorter, "w") as fewer:
        for name in archive.namelist()[:-1]:
            fewer.writestr(name, archive.read(name))
    path.write_bytes(shorter.getvalue() + whole[-81:])
    with pytest.raises(BadInput, match="does not hold planish's numbers of images"):
        distances.load_numbers(path)
    with np.load(io.BytesIO(whole)) as arrays:
        assert "gradient" in arrays.files, "NumPy opens what planish sealed"
