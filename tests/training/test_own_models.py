"""Models that a user's own function builds: trained, saved, and never built again on a file's word alone."""

from pathlib import Path

import pytest
import torch
from torch import nn

from planish.core.errors import BadInput
from planish.data.images import images_of
from planish.models import build
from planish.runs.config import Named, experiment_from
from planish.runs.run import check_storable, load_run, put_weights, save_weights
from planish.runs.train import new_model, train_into

CODE = """
from pathlib import Path
from torch import nn

def build(width=4):
    Path(__file__).with_name("called").touch()
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Softplus(), nn.Linear(width, 10))
"""


@pytest.fixture
def built_by(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(CODE)
    tree = {
        "model": {"name": f"{tmp_path}/mine.py:build", "width": 6},
        "method": {"name": "standard"},
        "settings": {"epochs": 1, "batch_size": 64},
    }
    assert len(list(train_into(experiment_from(tree), tmp_path / "run"))) == 1
    (tmp_path / "called").unlink()
    return f"{tmp_path}/mine.py:build"


def test_a_run_of_an_own_model_loads_with_its_options(built_by: str, tmp_path: Path) -> None:
    run = load_run(tmp_path / "run", built_by)
    model, about = run.model, run.about
    assert about["model"]["options"] == {"width": 6}
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_a_run_folder_does_not_choose_the_code_that_runs(built_by: str, tmp_path: Path) -> None:
    """A weights file that names a function must not make anybody call it: the user names it too, or nothing runs."""
    with pytest.raises(BadInput, match="--built-by"):
        load_run(tmp_path / "run")
    assert not (tmp_path / "called").exists()


def test_the_code_that_a_folder_names_is_quoted_for_a_shell(tmp_path: Path) -> None:
    """What a file from elsewhere names stands in an option to paste: a space would part it, `$(...)` would be run."""
    about = {"model": {"name": "my nets/$(touch called).py:build", "options": {}}, "classes": ["0", "1"], "channels": 1}
    save_weights(tmp_path / "run" / "model.safetensors", nn.Linear(1, 1), about)
    with pytest.raises(BadInput, match=r"add --built-by 'my nets/\$\(touch called\)\.py:build'$"):
        load_run(tmp_path / "run")


def test_a_folder_with_a_half_written_file_alone_is_new(tmp_path: Path) -> None:
    """A run killed while it wrote its very first file can be started again in the same folder."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.toml.x1y2.part").write_text("seed")
    tree = {"method": {"name": "standard"}, "settings": {"epochs": 1, "batch_size": 256}}
    assert len(list(train_into(experiment_from(tree), tmp_path / "run"))) == 1


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("def net(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_file_of_ones_own_that_cannot_be_imported_is_bad_input(code: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(BadInput, match=f"raises {error} when it is imported"):
        build(f"{tmp_path}/mine.py:net", classes=2, channels=1)


SHARED_WIDTH = """
WIDTH = 3
"""
OWN_PARTS = """
from dataclasses import dataclass

import torch
from own_parts_of_{name} import WIDTH
from torch import nn


@dataclass
class Shape:
    width: int = WIDTH


def make(width: int = 0) -> nn.Module:
    shape = Shape(width or WIDTH)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, shape.width), nn.ReLU(), nn.Linear(shape.width, 10))


def broken(width: int = 3) -> nn.Module:
    return make("a" + width)  # type: ignore
"""


def own_file(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"own_parts_of_{name}.py").write_text(SHARED_WIDTH)
    path = folder / "net_file.py"
    path.write_text(OWN_PARTS.replace("{name}", name))
    return path


def test_a_model_file_has_dataclasses_and_modules_beside_it(tmp_path: Path):
    """Issue: "NoneType has no attribute __dict__", and only what was installed could be imported."""
    model = build(f"{own_file(tmp_path / 'models', 'beside')}:make", classes=0, channels=0)
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_modules_in_the_working_directory_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_here.py").write_text("from torch import nn\n\n\ndef make():\n    return nn.Flatten()\n")
    assert isinstance(build("own_here:make", classes=0, channels=0), torch.nn.Flatten)


def test_an_error_inside_a_model_is_not_taken_for_an_option(tmp_path: Path):
    """Issue: a TypeError inside the user's function was reported as an option that does not exist."""
    path = own_file(tmp_path, "broken")
    with pytest.raises(BadInput, match=r"cannot be built: TypeError: can only conc.*\(.*net_file.py, line \d+\)$"):
        build(f"{path}:broken", classes=0, channels=0)
    with pytest.raises(BadInput, match=r"does not take these options: .*unexpected keyword argument 'depth'"):
        build(f"{path}:make", classes=0, channels=0, depth=3)
    with pytest.raises(BadInput, match=r"does not take these options: .*unexpected keyword argument 'depth'"):
        build("small-cnn", classes=2, channels=1, depth=3)


def test_a_run_is_opened_by_the_same_file_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Issue: a run whose model's file was named by another path than in training was refused."""
    own_file(tmp_path / "here", "moved")
    monkeypatch.chdir(tmp_path / "here")
    settings = {"epochs": 1, "batch_size": 32}
    tree = {"model": {"name": "net_file.py:make"}, "method": {"name": "standard"}, "settings": settings}
    list(train_into(experiment_from({"data": {"limit": 128}, **tree}), tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    for other in ("here/net_file.py:broken", "here/other.py:make"):
        with pytest.raises(BadInput, match=r"was built by 'net_file.py:make'; if you trust that code"):
            load_run(tmp_path / "run", other)
    for same in ("here/net_file.py:make", f"{tmp_path}/here/net_file.py:make"):
        assert load_run(tmp_path / "run", same).model(torch.rand(1, 1, 8, 8)).shape == (1, 10)


LAZY = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
"""


def test_a_run_of_a_lazy_model_is_of_its_seed_and_can_be_opened(tmp_path: Path):
    """Its weights came from the global random state, and no evaluation could open its folder."""
    file, images = tmp_path / "lazy.py", images_of((torch.rand(4, 1, 8, 8), torch.arange(4)))
    file.write_text(LAZY)
    one, other = (new_model(Named(f"{file}:build"), images, 7).state_dict() for _ in range(2))
    assert torch.equal(one["1.weight"], other["1.weight"]) and one["1.weight"].shape == (10, 64)
    opened = build(f"{file}:build", classes=4, channels=1)
    put_weights(one, file, opened)
    torch.testing.assert_close(opened(images.x), images.x.flatten(1) @ one["1.weight"].T + one["1.bias"])
    with pytest.raises(BadInput, match=r"'1\.weight' is missing there and of any shape in the model"):
        put_weights({"1.bias": one["1.bias"]}, file, build(f"{file}:build", classes=4, channels=1))


def test_weights_without_a_shape_cannot_be_stored():
    with pytest.raises(BadInput, match="the LazyLinear in the model has no weights yet: run one batch through"):
        check_storable(nn.Sequential(nn.LazyLinear(3)))
