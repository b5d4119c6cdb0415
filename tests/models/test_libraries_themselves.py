"""timm and transformers themselves, where they are installed; nothing is downloaded."""

import importlib.util
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import library as operators
from torch import nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import Linf
from planish.methods import StepContext
from planish.methods.llr import LLR
from planish.models import Normalized, build
from planish.runs.judge import load_model

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, at import


def torchvision() -> None:
    """Both import torchvision, and PyPI's is linked to CUDA: on a CPU the names of its operators are missing."""
    with suppress(RuntimeError):
        importlib.import_module("torchvision")
        return
    boxes = ["roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d"]
    names = ["nms", "qnms", "qroi_align", *boxes, *(f"_{name}_backward" for name in boxes)]
    for name in names:
        operators.define(f"torchvision::{name}", "(Tensor x) -> Tensor")


def need(name: str) -> Any:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    if importlib.util.find_spec("torchvision") is not None:
        torchvision()
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def timm() -> Any:
    return need("timm")


@pytest.fixture(scope="module")
def transformers() -> Any:
    return need("transformers")


@pytest.fixture
def published(transformers: Any, tmp_path: Path) -> Path:
    """A folder as published: configuration, weights, image processor."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=4, num_labels=5)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    processor = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path


def one_llr_step(model: nn.Module, size: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    batch = Batch(torch.rand(2, 3, size, size, generator=generator), torch.arange(2) % classes, torch.arange(2))
    LLR(steps=1)(model, batch, Linf(0.1), StepContext(generator)).total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


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


def test_transformers_reads_a_published_folder(transformers: Any, published: Path):
    model = load_model(f"hf:{published}").model
    own = transformers.ViTForImageClassification.from_pretrained(published).eval()
    x = torch.rand(2, 3, 16, 16)
    assert isinstance(model, Normalized) and model.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    torch.testing.assert_close(model(x), own((x - model.mean) / model.std).logits)
    one_llr_step(build(f"hf:{published}", classes=3, channels=3), 16, 3)
    fresh = build(f"hf:{published}", classes=3, channels=3, pretrained=False, hidden_size=8)
    assert fresh(x).shape == (2, 3)


def test_transformers_reads_no_pickle_and_no_backbone(transformers: Any, published: Path):
    own = transformers.ViTForImageClassification.from_pretrained(published)
    own.vit.save_pretrained(published)
    with pytest.raises(BadInput, match="not published as a classifier"):
        build(f"hf:{published}", classes=0, channels=0)
    (published / "model.safetensors").unlink()
    torch.save(own.state_dict(), published / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"no file named model\.safetensors"):
        build(f"hf:{published}", classes=0, channels=0)
