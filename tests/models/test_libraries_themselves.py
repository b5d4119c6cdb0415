"""timm, torchvision, transformers and RobustBench themselves, where they are installed; nothing is downloaded."""

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import library as operators
from typer.testing import CliRunner

import planish
from planish.cli.main import app
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import Linf
from planish.methods import StepContext
from planish.methods.llr import LLR
from planish.models import Normalized, build
from planish.records.evaluation import load
from planish.report.robustbench import model_info
from planish.runs.judge import load_model

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, at import
SIDE = 32
TIMM = pytest.mark.packages("timm", "torchvision")
TORCHVISION = pytest.mark.packages("torchvision")
TRANSFORMERS = pytest.mark.packages("transformers", "torchvision")
ROBUSTBENCH = pytest.mark.packages("robustbench", "pyautoattack", "timm", "torchvision")


def imported(name: str) -> Any:
    """Import a library. All import torchvision, and PyPI's is linked to CUDA: on a CPU its operators are missing."""
    with suppress(RuntimeError):
        importlib.import_module("torchvision")
        return importlib.import_module(name)
    boxes = ["roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d"]
    for operator in ["nms", "qnms", "qroi_align", *boxes, *(f"_{box}_backward" for box in boxes)]:
        with suppress(RuntimeError):  # defined already
            operators.define(f"torchvision::{operator}", "(Tensor x) -> Tensor")
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def timm() -> Any:
    return imported("timm")


@pytest.fixture(scope="module")
def transformers() -> Any:
    return imported("transformers")


@pytest.fixture
def robustbench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its `utils`. Version 1.1.1 asks for pyautoattack and imports it by its older name, autoattack."""
    for part in ("", ".state"):
        monkeypatch.setitem(sys.modules, f"autoattack{part}", imported(f"pyautoattack{part}"))
    return imported("robustbench.utils")


@pytest.fixture
def published(transformers: Any, tmp_path: Path) -> Path:
    """A folder as published: configuration, weights, image processor."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**sizes, image_size=SIDE, patch_size=8, num_labels=5)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    processor = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path


def one_llr_step(model: nn.Module, size: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    batch = Batch(torch.rand(2, 3, size, size, generator=generator), torch.arange(2) % classes, torch.arange(2))
    LLR(steps=1)(model, batch, Linf(0.1), StepContext(generator)).total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@TIMM
def test_timm_reads_a_safetensors_file_and_nothing_else(timm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    network = timm.create_model("resnet10t").eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    asked: list[str] = []

    def download(repo_id: str, filename: str, **_: Any) -> str:
        asked.append(f"{repo_id}/{filename}")
        return str(tmp_path / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    model = load_model("timm:resnet10t").model
    assert isinstance(model, Normalized) and asked == ["timm/resnet10t.c3_in1k/model.safetensors"]
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(x), network((x - model.mean) / model.std))
    assert model.mean.flatten().tolist() == pytest.approx(network.pretrained_cfg["mean"])
    assert build("timm:resnet10t", classes=3, channels=1)(x[:, :1]).shape == (2, 3)


@TIMM
def test_timm_s_attention_trains_by_llr(timm: Any):
    options = {"pretrained": False, "img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}
    model = build("timm:vit_tiny_patch16_224", classes=2, channels=3, **options)
    one_llr_step(model, 16, 2)
    for name, message in (
        ("timm:resnet10q", "Did you mean"),
        ("timm:resnet10t.other", "cannot make 'resnet10t.other'"),
    ):
        with pytest.raises(BadInput, match=message):
            build(name, classes=0, channels=0)


@TRANSFORMERS
def test_transformers_reads_a_published_folder(transformers: Any, published: Path):
    model = load_model(f"hf:{published}").model
    own = transformers.ViTForImageClassification.from_pretrained(published).eval()
    x = torch.rand(2, 3, SIDE, SIDE)
    assert isinstance(model, Normalized) and model.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    torch.testing.assert_close(model(x), own((x - model.mean) / model.std).logits)
    one_llr_step(build(f"hf:{published}", classes=3, channels=3), SIDE, 3)
    fresh = build(f"hf:{published}", classes=3, channels=3, pretrained=False, hidden_size=8)
    assert fresh(x).shape == (2, 3)


@TRANSFORMERS
def test_transformers_reads_no_pickle_and_no_backbone(transformers: Any, published: Path):
    own = transformers.ViTForImageClassification.from_pretrained(published)
    own.vit.save_pretrained(published)
    with pytest.raises(BadInput, match="not published as a classifier"):
        build(f"hf:{published}", classes=0, channels=0)
    (published / "model.safetensors").unlink()
    torch.save(own.state_dict(), published / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"no file named model\.safetensors"):
        build(f"hf:{published}", classes=0, channels=0)


class Named(NamedTuple):
    """A name of planish's; the library's own network; what its own configuration says of images, per channel."""

    name: str
    network: Callable[[Tensor], Tensor]
    mean: Sequence[float]
    std: Sequence[float]

    def logits(self, x: Tensor) -> Tensor:
        mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (self.mean, self.std))
        with torch.no_grad():
            return self.network((x - mean) / std)


def of_timm(ask: pytest.FixtureRequest, folder: Path, patch: pytest.MonkeyPatch) -> Named:
    timm = ask.getfixturevalue("timm")
    network = timm.create_model("resnet10t").eval()
    save_file(network.state_dict(), folder / "model.safetensors")
    patch.setattr("timm.models._hub.hf_hub_download", lambda repo_id, filename, **_: str(folder / filename))
    known = timm.data.resolve_model_data_config(network)
    return Named("timm:resnet10t", network, known["mean"], known["std"])


def of_torchvision(ask: pytest.FixtureRequest, folder: Path, patch: pytest.MonkeyPatch) -> Named:
    """Its weights lie in PyTorch's own cache, as if they had been downloaded."""
    models = imported("torchvision").models
    weights, network = models.get_model_weights("resnet18").DEFAULT, models.resnet18().eval()
    cache = folder / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(network.state_dict(), cache / Path(weights.url).name)
    patch.setenv("TORCH_HOME", str(folder))
    return Named("torchvision:resnet18", network, weights.transforms().mean, weights.transforms().std)


def of_hugging_face(ask: pytest.FixtureRequest, folder: Path, patch: pytest.MonkeyPatch) -> Named:
    transformers, published = ask.getfixturevalue("transformers"), ask.getfixturevalue("published")
    own = transformers.AutoModelForImageClassification.from_pretrained(published).eval()
    known = transformers.AutoImageProcessor.from_pretrained(published)
    return Named(f"hf:{published}", lambda x: own(x).logits, known.image_mean, known.image_std)


def of_robustbench(ask: pytest.FixtureRequest, folder: Path, patch: pytest.MonkeyPatch) -> Named:
    """Its architecture normalises by itself; the file lies where its zoo looks before it downloads."""
    zoo = ask.getfixturevalue("robustbench").all_models
    of_linf = next(known for threat, known in next(iter(zoo.values())).items() if threat.value == "Linf")
    network = of_linf["Wong2020Fast"]["model"]().eval()
    place = folder / "robustbench" / "cifar10" / "Linf"
    place.mkdir(parents=True)
    torch.save({"state_dict": network.state_dict()}, place / "Wong2020Fast.pt")
    patch.setenv("PLANISH_HOME", str(folder))
    return Named("robustbench:Wong2020Fast", network, (0.0,) * 3, (1.0,) * 3)


EACH = [(of_timm, TIMM), (of_torchvision, TORCHVISION), (of_hugging_face, TRANSFORMERS), (of_robustbench, ROBUSTBENCH)]


@pytest.fixture(params=[pytest.param(make, marks=mark, id=make.__name__) for make, mark in EACH])
def named(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Named:
    return request.param(request, tmp_path, monkeypatch)


def test_a_name_in_python_is_the_library_s_own_network(named: Named):
    """Issue 24: normalised by the mean and std of the model's own configuration, which printing the model tells."""
    model = planish.load_model(named.name)
    x = torch.rand(2, 3, SIDE, SIDE)
    torch.testing.assert_close(model(x), named.logits(x))
    assert not any(module.training for module in model.modules())
    assert f"mean=({', '.join(f'{value:.4g}' for value in named.mean)})" in str(model)


def test_a_name_on_the_command_line_is_the_library_s_own_network(
    named: Named, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    x = torch.rand(6, 3, SIDE, SIDE)
    largest, classes = named.logits(x).topk(2)
    np.savez("images.npz", x=x.numpy(), y=classes[:, 0].numpy())
    how = ["--data", "images.npz", "--radius", "1/255", "--attacks", "fgsm", "--device", "cpu", "--out", "judged"]
    done = CliRunner().invoke(app, ["evaluate", named.name, *how])
    assert done.exit_code == 0, done.output
    told = any(line.startswith("normalization of ") for line in done.stdout.splitlines())
    assert told == (set(named.std) != {1.0})
    margins = load("judged/evaluation.npz").clean_margin
    np.testing.assert_allclose(margins, largest[:, 1] - largest[:, 0], rtol=1e-3, atol=1e-5)


@ROBUSTBENCH
def test_robustbench_says_what_is_wrong(robustbench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PLANISH_HOME", str(tmp_path))
    with pytest.raises(BadInput, match="no model 'Nobody' for cifar10 and Linf"):
        load_model("robustbench:Nobody")
    place = tmp_path / "robustbench" / "cifar10" / "L2"
    place.mkdir(parents=True)
    torch.save({"state_dict": {}, "who": Named("", abs, (), ())}, place / "Rice2020Overfitting.pt")
    with pytest.raises(BadInput, match="more than tensors is never read"):
        load_model("robustbench:cifar10/L2/Rice2020Overfitting")


@ROBUSTBENCH
def test_robustbench_s_own_table_reads_planish_s_fields(
    robustbench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`planish report --model-info` writes what its leaderboard is made from."""
    monkeypatch.chdir(tmp_path)
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(48, 10)).eval(), torch.rand(8, 3, 4, 4)
    labels = torch.cat([network(x[:6]).argmax(1), (network(x[6:]).argmax(1) + 1) % 10])
    record = planish.evaluate(network, x, labels, "Linf:8/255", "pgd-5-1")
    place = tmp_path / "model_info" / "cifar10" / "Linf"
    place.mkdir(parents=True)
    (place / "Wong2020Fast.json").write_text(json.dumps(model_info(record)))
    row = robustbench.get_leaderboard_latex("cifar10", "Linf")
    assert "Wong2020Fast" in row and f"{100 * record.clean_accuracy().value:.2f}" in row
    assert f"{100 * record.robust_accuracy().value:.2f}" in row
