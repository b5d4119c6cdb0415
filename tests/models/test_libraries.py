"""Models of timm and Hugging Face, with modules in their place; test_libraries_themselves.py has the real ones."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import planish
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import Linf
from planish.methods import StepContext
from planish.methods.gradient_penalty import GradientPenalty
from planish.methods.llr import LLR
from planish.models import Normalized, build
from planish.runs import judge
from planish.runs.config import experiment_from
from planish.runs.judge import load_model
from planish.runs.run import load_run
from planish.runs.train import prepare, train_into

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Attending(nn.Module):
    """Patches of 4x4, one layer of attention, a mean, a classifier; made for one size of image, as such models are."""

    def __init__(self, classes: int, channels: int, side: int) -> None:
        super().__init__()
        self.side, self.num_classes = side, classes
        self.patches = nn.Conv2d(channels, 8, 4, 4)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.side:
            raise AssertionError(f"Input height ({x.shape[-1]}) doesn't match model ({self.side}).")
        logits: Tensor = self.head(self.layer(self.patches(x).flatten(2).transpose(1, 2)).mean(1))
        return logits


def fake_timm(asked: list[dict[str, Any]]) -> ModuleType:
    def create_model(
        model_name: str, pretrained: bool = False, pretrained_cfg_overlay: Any = None, **kwargs: Any
    ) -> Any:
        asked.append({"pretrained": pretrained, "overlay": pretrained_cfg_overlay, **kwargs})
        made = {"num_classes": 6, "in_chans": 3, "img_size": 8} | kwargs
        if set(made) > {"num_classes", "in_chans", "img_size"}:
            raise TypeError("__init__() got an unexpected keyword argument")
        model = Attending(made["num_classes"], made["in_chans"], made["img_size"])
        model.num_classes = 0 if model_name == "backbone" else made["num_classes"]
        model.pretrained_cfg = {"mean": MEAN, "std": STD, "input_size": (3, 8, 8)}  # type: ignore[assignment]
        return model

    timm = ModuleType("timm")
    known = {"tiny": "timm/tiny.in1k", "backbone": "timm/backbone", "unpublished": None}
    vars(timm).update(
        create_model=create_model,
        is_model=lambda name: name in known,
        list_models=lambda: sorted(known),
        get_pretrained_cfg=lambda name: SimpleNamespace(hf_hub_id=known[name]),
    )
    return timm


class Config(SimpleNamespace):
    def to_dict(self) -> dict[str, Any]:
        return vars(self)


class FakeAuto:
    """Of transformers: AutoConfig, AutoModelForImageClassification and ImageProcessingMixin in one."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.processor: dict[str, Any] = {"image_mean": list(MEAN), "image_std": list(STD)}
        self.missing: list[str] = []
        self.loads = True
        self.names: list[str] = []

    def config(self, name: str, *, trust_remote_code: bool) -> Config:
        assert not trust_remote_code
        return Config(num_labels=6, num_channels=3, image_size=8, id2label=dict(enumerate(self.names)))

    def from_config(self, config: Config) -> nn.Module:
        network = Attending(config.num_labels, config.num_channels, config.image_size)
        network.register_forward_hook(lambda module, inputs, output: SimpleNamespace(logits=output, loss=None))
        return network.half()

    def from_pretrained(self, name: str, *, config: Config, **kwargs: Any) -> tuple[nn.Module, dict[str, Any]]:
        self.asked.append(kwargs)
        if not self.loads:
            raise OSError(f"{name} does not appear to have a file named model.safetensors\nand more")
        return self.from_config(config).eval(), {"missing_keys": self.missing}

    def module(self) -> ModuleType:
        transformers = ModuleType("transformers")
        vars(transformers).update(
            AutoConfig=SimpleNamespace(from_pretrained=self.config),
            AutoModelForImageClassification=SimpleNamespace(
                from_config=self.from_config, from_pretrained=self.from_pretrained
            ),
            ImageProcessingMixin=SimpleNamespace(get_image_processor_dict=lambda name: (self.processor, {})),
        )
        return transformers


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    asked: list[dict[str, Any]] = []
    monkeypatch.setitem(sys.modules, "timm", fake_timm(asked))
    return asked


@pytest.fixture
def auto(monkeypatch: pytest.MonkeyPatch) -> FakeAuto:
    auto = FakeAuto()
    monkeypatch.setitem(sys.modules, "transformers", auto.module())
    return auto


def check_normalized(model: nn.Module, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> None:
    assert isinstance(model, Normalized)
    torch.testing.assert_close(model.mean.flatten(), torch.tensor(mean))
    torch.testing.assert_close(model.std.flatten(), torch.tensor(std))


def test_timm_gives_its_own_weights_classes_and_normalization(asked: list[dict[str, Any]]):
    found = load_model("timm:tiny")
    check_normalized(found.model)
    assert found.name == "tiny" and not any(module.training for module in found.model.modules())
    told = "mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)"
    assert found.facts() == {"name": "tiny", "normalization": told}
    assert found.model(torch.rand(2, 3, 8, 8)).shape == (2, 6)
    source = {"hf_hub_filename": "model.safetensors", "url": "", "file": None, "custom_load": False}
    assert asked == [{"pretrained": True, "overlay": source}]


def test_timm_takes_classes_channels_and_options(asked: list[dict[str, Any]]):
    model = build("timm:tiny", classes=3, channels=1, pretrained=False, img_size=16)
    assert asked == [{"pretrained": False, "overlay": None, "num_classes": 3, "in_chans": 1, "img_size": 16}]
    assert model(torch.rand(2, 1, 16, 16)).shape == (2, 3)
    check_normalized(model, (0.4,), (0.25,))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm:tinny", {}, "timm has no model 'tinny'. Did you mean 'tiny'"),
        ("timm:hf-hub:org/some", {}, "timm has no model"),
        ("timm:unpublished", {}, "no safetensors weights for 'unpublished'.*pretrained=false"),
        ("timm:backbone", {}, "no classes of its own"),
        ("timm:tiny", {"depth": 3}, "does not take these options"),
        ("timm:tiny", {"checkpoint_path": "x"}, "not checkpoint_path"),
        ("timm:tiny", {"act_layer": "../x.pth"}, "not act_layer = '../x.pth'"),
        ("timm:tiny", {"pretrained": 1}, "true or false"),
    ],
)
def test_timm_says_what_is_wrong(name: str, options: dict[str, Any], message: str, asked: list[dict[str, Any]]):
    with pytest.raises(BadInput, match=message):
        build(name, classes=0, channels=0, **options)


@pytest.mark.parametrize(("name", "module"), [("timm:resnet18", "timm"), ("hf:org/name", "transformers")])
def test_a_library_that_is_not_installed_is_named_as_on_pypi(name: str, module: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BadInput, match=rf"needs {module}.*pip install {module}$"):
        load_model(name)


def test_what_a_library_lacks_is_not_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """RobustBench 1.1.1 of PyPI cannot be imported as published; `pip install robustbench` was no help."""
    (tmp_path / "robustbench.py").write_text("from nowhere_to_be_found import AutoAttack")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "robustbench", raising=False)
    with pytest.raises(BadInput, match=r"needs robustbench, .* it is there, and lacks nowhere_to_be_found$"):
        load_model("robustbench:Wong2020Fast")


@pytest.mark.parametrize("library", ["timm", "torchvision", "robustbench"])
def test_a_torchvision_for_another_torch_is_said(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / f"{library}.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, library, raising=False)
    with pytest.raises(BadInput, match=r"torchvision::nms does not exist; it needs a torchvision that fits"):
        load_model(f"{library}:resnet18")


def test_hugging_face_gives_its_own_weights_from_safetensors(auto: FakeAuto):
    found = load_model("hf:org/name")
    check_normalized(found.model)
    assert found.name == "org/name" and not any(module.training for module in found.model.modules())
    logits = found.model(torch.rand(2, 3, 8, 8))
    assert logits.shape == (2, 6) and logits.dtype == torch.float32
    (asked,) = auto.asked
    assert asked["use_safetensors"] is True and asked["trust_remote_code"] is False
    assert asked["ignore_mismatched_sizes"] is False


def test_hugging_face_takes_classes_and_options(auto: FakeAuto):
    model = build("hf:org/name", classes=3, channels=3, image_size=16)
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 3) and auto.asked[0]["ignore_mismatched_sizes"] is True
    assert build("hf:org/name", classes=4, channels=3, pretrained=False)(torch.rand(2, 3, 8, 8)).shape == (2, 4)
    assert len(auto.asked) == 1


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        ({"image_mean": 0.5, "image_std": 0.25}, (0.5,) * 3, (0.25,) * 3),
        ({"do_normalize": False}, (0.0,) * 3, (1.0,) * 3),
        ({"image_mean": MEAN, "image_std": STD, "rescale_factor": 2 / 255}, (0.25, 0.2, 0.15), (0.1, 0.125, 0.15)),
        ({"image_mean": [51.0], "image_std": [51.0], "do_rescale": False}, (0.2,), (0.2,)),
    ],
)
def test_an_image_processor_s_numbers_become_those_of_pixels(
    processor: dict[str, Any], mean: tuple[float, ...], std: tuple[float, ...], auto: FakeAuto
):
    auto.processor = processor
    check_normalized(build("hf:org/name", classes=0, channels=0), mean, std)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"processor": {}}, "does not state its image_mean"),
        ({"processor": {"do_flip_channel_order": True}}, "prepared with do_flip_channel_order"),
        ({"missing": ["head.weight", "a.buffer"]}, "no weights for head.weight"),
        ({"loads": False}, "cannot load 'hf:org/name': OSError: .*model.safetensors$"),
    ],
)
def test_hugging_face_says_what_is_wrong(change: dict[str, Any], message: str, auto: FakeAuto):
    vars(auto).update(change)
    with pytest.raises(BadInput, match=message):
        load_model("hf:org/name")


def test_hugging_face_refuses_other_options_and_channels(auto: FakeAuto):
    with pytest.raises(BadInput, match=r"no option 'image_siz'\. Did you mean 'image_size'"):
        build("hf:org/name", classes=3, channels=3, image_siz=16)
    with pytest.raises(BadInput, match="reads images of 3 channels, these have 1"):
        build("hf:org/name", classes=3, channels=1)


def experiment(name: str, **options: Any) -> Any:
    tree = {
        "model": {"name": name, **options},
        "data": {"limit": 64},
        "method": {"name": "standard"},
        "settings": {"epochs": 1, "batch_size": 32},
    }
    return experiment_from(tree)


def test_a_run_of_a_borrowed_model_loads_without_its_published_weights(asked: list[dict[str, Any]], tmp_path: Path):
    """Nor does anybody have to name it again: its code is the library's, not the folder's."""
    assert len(list(train_into(experiment("timm:tiny"), tmp_path / "run"))) == 1
    assert asked.pop()["pretrained"] is True and not asked
    run = load_run(tmp_path / "run")
    model, about = run.model, run.about
    assert asked[0]["pretrained"] is False and asked[0]["num_classes"] == 10
    assert (about["model"]["name"], about["model"]["options"]) == ("timm:tiny", {})
    check_normalized(model, (0.4,), (0.25,))
    assert load_model(str(tmp_path / "run")).model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.usefixtures("asked")
def test_a_model_for_another_size_of_images_is_bad_input(tmp_path: Path):
    with pytest.raises(BadInput, match=r"images of shape \(1, 8, 8\): Input height \(8\) doesn't match model \(32\)"):
        next(train_into(experiment("timm:tiny", img_size=32), tmp_path / "run"))


@pytest.mark.parametrize(
    "method",
    [LLR(steps=2), GradientPenalty(slope="double-backward")],
    ids=["llr", "gradient-penalty"],
)
def test_attention_has_the_second_derivative_that_methods_need(method: Any):
    model = Normalized(Attending(4, 1, 8), (0.5,), (0.5,))
    generator = torch.Generator().manual_seed(0)
    batch = Batch(torch.rand(4, 1, 8, 8, generator=generator), torch.arange(4), torch.arange(4))
    found = method(model, batch, Linf(0.1), StepContext(generator))
    found.total.backward()
    grads = [p.grad for p in model.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)
    x = batch.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).logsumexp(1).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):  # what the methods' own context is for
        gradient.sum().backward()


def test_published_class_names_are_matched(auto: FakeAuto, tmp_path: Path):
    """Issue: data in another order than a Hugging Face model's id2label was judged by number, and fine-tuned so."""
    auto.names = ["ant", "bee", "cat", "dog", "emu", "fox"]
    x, classes = np.zeros((6, 8, 8, 3), np.uint8), sorted(auto.names, reverse=True)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(6), classes=classes)
    found = load_model("hf:x/y")
    assert found.about["classes"] == auto.names
    task = judge.EvaluationConfig(str(tmp_path / "a.npz"), Linf(0.1), ())
    batch, about, told = judge.images_to_judge(task, found.about)
    assert batch.labels.tolist() == [5, 4, 3, 2, 1, 0] and about["classes"] == auto.names and "by name" in told[0]
    tree = {"data": {"source": str(tmp_path / "a.npz")}, "model": {"name": "hf:x/y"}, "method": {"name": "standard"}}
    prepared = prepare(experiment_from(tree))
    assert list(prepared.sample.classes) == auto.names and prepared.images.labels.tolist() == [5, 4, 3, 2, 1, 0]
    np.savez(tmp_path / "b.npz", x=x, y=np.arange(6), classes=["a", "b", "c", "d", "e", "f"])
    other = prepare(experiment_from({**tree, "data": {"source": str(tmp_path / "b.npz")}}))
    assert other.images.labels.tolist() == list(range(6)), "a new task keeps its own order"
    auto.names = []
    assert "classes" not in load_model("hf:x/y").about


def test_models_by_name_from_python(asked: list[dict[str, Any]]):
    """Issue 24: `planish.load_model`; what normalises the images is said when the model is printed."""
    found = planish.load_model("timm:tiny")
    check_normalized(found)
    assert not found.training and "mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)" in str(found)
    with pytest.raises(BadInput, match="timm has no model 'tinny'"):
        planish.load_model("timm:tinny")


class FakeWeights:
    """Of torchvision: the published weights of a network. asked: how its file was to be read."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.meta = {"categories": ["cat", "dog"]}

    def transforms(self) -> SimpleNamespace:
        return SimpleNamespace(mean=list(MEAN), std=list(STD))

    def get_state_dict(self, **how: Any) -> dict[str, Tensor]:
        self.asked.append(how)
        return Attending(2, 3, 8).state_dict()


@pytest.fixture
def vision(monkeypatch: pytest.MonkeyPatch) -> FakeWeights:
    weights, torchvision = FakeWeights(), ModuleType("torchvision")
    models = SimpleNamespace(
        list_models=lambda module: ["tiny"],
        get_model_weights=lambda name: SimpleNamespace(DEFAULT=weights),
        get_model=lambda name, weights, num_classes: Attending(num_classes, 3, 8),
    )
    torchvision.models = models  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    return weights


def test_torchvision_s_models_are_normalised_as_its_weights_say(vision: FakeWeights):
    found = load_model("torchvision:tiny")
    check_normalized(found.model)
    assert found.about["classes"] == ["cat", "dog"] and found.model(torch.zeros(1, 3, 8, 8)).shape == (1, 2)
    assert vision.asked == [{"check_hash": True, "weights_only": True, "map_location": "cpu"}]


def test_torchvision_s_networks_without_weights(vision: FakeWeights):
    new = build("torchvision:tiny", classes=5, channels=3, pretrained=False)
    assert new(torch.zeros(1, 3, 8, 8)).shape == (1, 5) and vision.asked == []
    for options, words in (
        ({"classes": 5, "channels": 3}, "was published for 2 classes, these data have 5; set model.pretrained=false"),
        ({"classes": 2, "channels": 1}, "reads images of 3 channels, these have 1"),
    ):
        with pytest.raises(BadInput, match=words):
            build("torchvision:tiny", **options)
    with pytest.raises(BadInput, match=r"torchvision has no classifier 'tinny'\. Did you mean 'tiny'\?"):
        load_model("torchvision:tinny")


def test_networks_that_torchvision_feeds_otherwise(vision: FakeWeights, monkeypatch: pytest.MonkeyPatch):
    """Issue: inception_v3 and googlenet, whose weights are made for a mean and spread of 0.5, got ImageNet's."""

    class Fed(Attending):
        transform_input = False

    def made(name: str, weights: None, num_classes: int, transform_input: bool = False) -> Fed:
        network = Fed(num_classes, 3, 8)
        network.transform_input = transform_input
        return network

    monkeypatch.setattr(sys.modules["torchvision"].models, "get_model", made)
    model = load_model("torchvision:tiny").model
    assert isinstance(model, Normalized) and model.mean.flatten().tolist() == model.std.flatten().tolist() == [0.5] * 3
    check_normalized(build("torchvision:tiny", classes=2, channels=3, transform_input=True))
