"""Records saved and read back by the front door: the folder is one that the commands take."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import planish as pl
from planish.cli import main as cli
from planish.report.tables import GALLERY

ABOUT = {"model": {"name": "mine"}}


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


@pytest.fixture
def images(model: nn.Module) -> pl.Batch:
    """Test images, with the classes that the model gives them."""
    batch = pl.data.load("digits", "test", 12).as_batch()
    with torch.no_grad():
        return batch._replace(labels=model(batch.x).argmax(1))


def test_an_evaluation_is_saved_with_its_page_and_read_back(model: nn.Module, images: pl.Batch, tmp_path: Path):
    """Issue: an evaluation had no `save`, and lay behind planish.records.evaluation."""
    record = pl.evaluate(model, images, threat="Linf:0.1", attacks="fgsm,pgd-5-1", about=ABOUT)
    page = record.save(str(tmp_path / "mine"))
    assert page == tmp_path / "mine" / "report.html" and "mine" in page.read_text(encoding="utf-8")
    for place in (tmp_path / "mine", tmp_path / "mine" / "evaluation.npz"):
        again = pl.load_record(place)
        assert str(again) == str(record) and record.columns[0].attempted.all()
        np.testing.assert_array_equal(again.columns[1].margin, record.columns[1].margin)


def test_commands_take_what_was_saved(model: nn.Module, images: pl.Batch, tmp_path: Path):
    one, other = tmp_path / "one", tmp_path / "other"
    pl.evaluate(model, images, threat="Linf:0.1", attacks="fgsm", about=ABOUT).save(one)
    pl.evaluate(model, images, threat="Linf:0.1", attacks="pgd-5-1", about={"model": {"name": "yours"}}).save(other)
    for command in ("report", "compare"):
        result = CliRunner().invoke(cli.app, [command, str(one), str(other), "--out", str(tmp_path / command)])
        assert result.exit_code == 0 and "mine" in result.output and "yours" in result.output


def test_pictures_of_an_earlier_evaluation_go(model: nn.Module, images: pl.Batch, tmp_path: Path):
    (tmp_path / GALLERY).write_bytes(b"of another model")
    pl.evaluate(model, images, threat="Linf:0.1", attacks="fgsm").save(tmp_path)
    assert CliRunner().invoke(cli.app, ["report", str(tmp_path), "--out", str(tmp_path / "page")]).exit_code == 0


def test_distances_and_audits_too(model: nn.Module, images: pl.Batch, tmp_path: Path):
    distances = pl.minimum_distance(model, images, None, "Linf", "deepfool-3")
    assert distances.save(tmp_path / "far").exists()
    assert np.array_equal(pl.load_record(tmp_path / "far").of(), distances.of())
    audit = pl.audit(model, images, threat="Linf:0.1")
    audit.save(tmp_path / "real")
    again = pl.load_record(tmp_path / "real")
    assert again.verdict == audit.verdict and again.save(tmp_path / "again") == tmp_path / "again" / "audit.html"


@pytest.mark.parametrize("name", ["mine.npz", "a file"])
def test_a_record_is_saved_into_a_folder(name: str, model: nn.Module, images: pl.Batch, tmp_path: Path):
    (tmp_path / "a file").write_text("mine", encoding="utf-8")
    record = pl.evaluate(model, images, threat="Linf:0.1", attacks="fgsm")
    with pytest.raises(pl.BadInput, match="name a folder, not the file"):
        record.save(tmp_path / name)
    assert (tmp_path / "a file").read_text(encoding="utf-8") == "mine" and not (tmp_path / "mine.npz").exists()


def test_images_of_whatever_code_are_verified_where_they_are(model: nn.Module, images: pl.Batch, tmp_path: Path):
    record = pl.evaluate(model, images, threat="Linf:0.1", attacks="pgd-5-1")
    assert record.x_adv is not None
    record.save_adversarials(tmp_path / "x.npz")
    saved = pl.verify(model, images, None, tmp_path / "x.npz", "Linf:0.1")
    assert saved == pl.verify(model, images, None, record.x_adv, "Linf:0.1")
    assert saved == pl.verify(model, images, None, torch.from_numpy(record.x_adv).double(), "Linf:0.1")
    far = pl.verify(model, images, None, record.x_adv, "Linf:0.05")
    assert far.robust.hits == far.clean.hits and saved.robust.hits < saved.clean.hits
    with pytest.raises(pl.BadInput, match="3 adversarial images of 12 clean ones: give one for each"):
        pl.verify(model, images, None, record.x_adv[:3], "Linf:0.1")
    with pytest.raises(pl.BadInput, match=r"x_adv holds images \(1, 8, 4\)"):
        pl.verify(model, images, None, record.x_adv[..., :4], "Linf:0.1")


def test_what_is_no_record_is_told(model: nn.Module, images: pl.Batch, tmp_path: Path):
    with pytest.raises(
        pl.BadInput, match=r"holds no record: name a folder with one of evaluation\.npz, distances\.npz"
    ):
        pl.load_record(tmp_path)
    with pytest.raises(pl.BadInput, match="holds no record"):
        pl.load_record(tmp_path / "nowhere.npz")
    pl.evaluate(model, images, threat="Linf:0.1", attacks="fgsm").save(tmp_path)
    pl.minimum_distance(model, images, None, "Linf", "deepfool-3").save(tmp_path)
    with pytest.raises(pl.BadInput, match=r"holds several records: name one of .*evaluation\.npz, .*distances\.npz"):
        pl.load_record(tmp_path)
    (tmp_path / "evaluation.npz").write_bytes(b"cut short")
    with pytest.raises(pl.BadInput):
        pl.load_record(tmp_path / "evaluation.npz")
