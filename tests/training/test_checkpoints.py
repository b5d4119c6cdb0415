import errno
import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from planish.core.errors import BadInput
from planish.runs import run as checkpoints
from planish.runs.run import load_resume, load_weights, read_metadata, save_resume, save_weights
from planish.storage.files import write_json, write_text
from planish.storage.reading import previous
from planish.training.state import moments, restore_moments


class Explosive:
    """Unpickling this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def one_line(caught: pytest.ExceptionInfo[BadInput], *words: str) -> None:
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def network(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 2))


def test_weights_come_back_exactly(tmp_path: Path):
    model, other = network().to(memory_format=torch.channels_last), network()  # type: ignore[call-overload]
    model(torch.rand(4, 1, 3, 3))
    save_weights(tmp_path / "new" / "model.safetensors", model, {"note": "\N{SNOWMAN}", "epoch": 3})
    load_weights(tmp_path / "new" / "model.safetensors", other)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    about = read_metadata(tmp_path / "new" / "model.safetensors")
    assert about["note"] == "\N{SNOWMAN}" and about["epoch"] == 3 and about["schema_version"] == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("damage", ["pickled", "truncated", "text", "empty", "folder", "absent"])
def test_weights_that_are_none(damage: str, tmp_path: Path):
    path, proof = tmp_path / "model.safetensors", tmp_path / "proof"
    save_weights(path, network(), {})
    whole = path.read_bytes()
    if damage == "pickled":
        torch.save(Explosive(proof), path)
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "absent":
        path.unlink()
    else:
        path.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"hello", "empty": b""}[damage])
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(BadInput) as caught:
        load_weights(path, network())
    one_line(caught, str(path), "no weights" if damage == "absent" else "not a whole safetensors file")
    assert not proof.exists() and (path.read_bytes() if path.is_file() else None) == before


def test_weights_of_others(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(BadInput) as caught:
        load_weights(path, network())
    one_line(caught, str(path), "not written by planish")
    save_weights(path, network(8), {})
    model = network(4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(BadInput) as caught:
        load_weights(path, model)
    one_line(caught, "another architecture", "'0.bias' is 8 there and 4 in the model")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(BadInput, match=r"'3.bias' is 2 there and missing in the model"):
        load_weights(path, network(8)[:3])  # type: ignore[index]


def test_weights_of_a_newer_planish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoints, "SCHEMA_VERSION", 2)
    save_weights(tmp_path / "m", network(), {})
    monkeypatch.undo()
    with pytest.raises(BadInput, match=r"newer planish \(schema 2\); upgrade"):
        read_metadata(tmp_path / "m")


def test_resume_files_come_back_exactly(tmp_path: Path):
    state = {"model": {"w": torch.arange(3.0)}, "moments": [torch.ones(2), None], "step": 3, "history": [{"loss": 0.1}]}
    save_resume(tmp_path / "resume.pt", state)
    found = load_resume(tmp_path / "resume.pt")
    assert torch.equal(found["model"]["w"], torch.arange(3.0)) and found["history"] == [{"loss": 0.1}]
    assert found["moments"][1] is None and found["step"] == 3


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated_resume_files(share: float, tmp_path: Path):
    path = tmp_path / "resume.pt"
    save_resume(path, {"model": network().state_dict(), "step": 3})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(BadInput) as caught:
        load_resume(path)
    one_line(caught, str(path), "truncated or not a planish checkpoint")


@pytest.mark.parametrize("kind", ["explosive", "old explosive", "pickle", "text", "zip"])
def test_foreign_resume_files_run_no_code(kind: str, tmp_path: Path):
    path, proof = tmp_path / "resume.pt", tmp_path / "proof"
    if "explosive" in kind:
        torch.save(Explosive(proof), path, _use_new_zipfile_serialization=kind == "explosive")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Explosive(proof)))
    else:
        path.write_bytes({"text": b"{}\n" * 50, "zip": b"PK\x03\x04" + bytes(100)}[kind])
    with pytest.raises(BadInput) as caught:
        load_resume(path)
    one_line(caught, str(path))
    assert not proof.exists()


def trained(momentum: float = 0.9) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """Three parameters, of which the second never gets a gradient."""
    parameters = [nn.Parameter(torch.full((2,), float(value))) for value in range(3)]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=momentum)
    for _ in range(2):
        parameters[0].grad, parameters[2].grad = torch.ones(2), torch.full((2,), 5.0)
        optimizer.step()
    return parameters, optimizer


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_moments_come_back_to_their_own_parameters(momentum: float):
    parameters, optimizer = trained(momentum)
    fresh = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    resumed = torch.optim.SGD(fresh, lr=0.1, momentum=momentum)
    restore_moments(resumed, moments(optimizer))
    for own, other in ((parameters, optimizer), (fresh, resumed)):
        for parameter in own:
            parameter.grad = torch.full((2,), 0.5)
        other.step()
    assert all(torch.equal(one, other) for one, other in zip(parameters, fresh, strict=True))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("where", ["pathlib.Path.replace", "os.fsync", "pathlib.Path.mkdir"])
def test_what_stood_there_still_stands_when_the_disk_fails(
    number: int, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "model.safetensors"
    save_weights(path, network(), {"epoch": 1})
    before = path.read_bytes()

    def fails(*_: object, **__: object) -> None:
        raise OSError(number, "the disk says no")

    monkeypatch.setattr(where, fails)
    with pytest.raises(BadInput) as caught:
        save_weights(path, network(), {"epoch": 2})
    one_line(caught, str(path), "the disk says no")
    monkeypatch.undo()
    assert path.read_bytes() == before and {*tmp_path.iterdir()} <= {path, previous(path)}


def test_a_file_where_a_folder_should_be(tmp_path: Path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(BadInput) as caught:
        write_text("text", tmp_path / "run" / "config.toml")
    one_line(caught, str(tmp_path / "run" / "config.toml"))
    assert (tmp_path / "run").read_text() == "mine"


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"loss": float("nan")}, tmp_path / "results.json")
    write_json({"loss": 1.5}, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == {"loss": 1.5}
    assert len(list(tmp_path.iterdir())) == 1
