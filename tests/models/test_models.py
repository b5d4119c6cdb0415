import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from planish.core.errors import BadInput
from planish.models import Normalized, SmoothReLU, activation, build
from planish.registry import components, get, listed


def test_preact_resnet_halves_three_times():
    model = build("preact-resnet-18", classes=10, channels=3, width=2)
    body = nn.Sequential(*list(model.children())[:9])
    assert body(torch.rand(1, 3, 32, 32)).shape == (1, 16, 4, 4)


def test_normalized_is_inside_the_model():
    model = Normalized(nn.Flatten(), (0.5, 0.2), (0.25, 0.5))
    x = torch.rand(2, 2, 2, 2)
    expected = torch.stack([(x[:, 0] - 0.5) / 0.25, (x[:, 1] - 0.2) / 0.5], 1).flatten(1)
    torch.testing.assert_close(model(x), expected)
    assert set(model.state_dict()) == {"mean", "std"}
    for std in ((0.0, 1.0), (1.0,)):
        with pytest.raises(BadInput, match="positive std per channel"):
            Normalized(nn.Flatten(), (0.5, 0.2), std)


def test_smooth_relu_is_twice_differentiable_and_meets_relu():
    smooth = SmoothReLU().double()
    x = torch.tensor([-2.0, -0.5, -0.3, 0.0, 0.2, 0.49, 0.5, 3.0], dtype=torch.float64)
    by_hand = [0.0 if v <= -0.5 else v if v >= 0.5 else -((v + 0.5) ** 4) / 2 + (v + 0.5) ** 3 for v in x.tolist()]
    torch.testing.assert_close(smooth(x), torch.tensor(by_hand, dtype=torch.float64))
    edges = torch.tensor([-0.5, -0.2, 0.1, 0.5], dtype=torch.float64, requires_grad=True)
    assert gradcheck(smooth, edges) and gradgradcheck(smooth, edges)
    (slope,) = torch.autograd.grad(smooth(edges).sum(), edges, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), edges)
    assert slope[0] == 0 and slope[3] == 1 and bend[0] == bend[3] == 0 and bend[1] > 0
    assert activation("softplus")(torch.zeros(1)).item() == pytest.approx(math.log(2))


def test_normalized_takes_the_logits_out_of_what_holds_them():
    class Held(nn.Flatten):
        def forward(self, x: torch.Tensor) -> SimpleNamespace:  # type: ignore[override]
            return SimpleNamespace(logits=super().forward(x), loss=None)

    x = torch.rand(2, 1, 2, 2)
    torch.testing.assert_close(Normalized(Held(), (0.5,), (0.5,))(x), 2 * x.flatten(1) - 1)


def test_numbers_after_a_name_are_its_first_options():
    with torch.device("meta"):
        named = build("wide-resnet-16-2", classes=10, channels=3)
        spelt = build("wide-resnet", classes=10, channels=3, depth=16, factor=2)
        assert [p.shape for p in named.parameters()] == [p.shape for p in spelt.parameters()]
        over = build("wide-resnet-16-2", classes=10, channels=3, factor=1)
    assert sum(p.numel() for p in over.parameters()) < sum(p.numel() for p in named.parameters())
    for name in ("small-cnn-3", "preact-resnet-18-2"):
        with pytest.raises(BadInput, match="more numbers than model"):
            build(name, classes=10, channels=3)


def test_bad_options_say_what_is_right():
    with pytest.raises(BadInput, match="Did you mean 'softplus'"):
        activation("soft-plus")
    with pytest.raises(BadInput, match="6 n \\+ 4"):
        build("wide-resnet", classes=10, channels=3, depth=18)
    for name, options, message in (
        ("resnet-19", {}, "one of 18, 34, 50, 101, 152, got 19"),
        ("resnet", {"size": 48}, "size must be 32, 64 or 224.* got 48"),
        ("resnet", {"denoise": "mean"}, "none, softmax or dot, got 'mean'"),
        ("resnext-35", {}, "6 n \\+ 4"),
        ("resnext", {"logits": "none"}, "plain or activated"),
        ("vgg-11", {"depth": 13}, "does not take these options"),
    ):
        with pytest.raises(BadInput, match=message):
            build(name, classes=10, channels=3, **options)
    with pytest.raises(BadInput, match=r"does not take these options.*wide"):
        build("small-cnn", classes=10, channels=3, wide=4)
    with pytest.raises(BadInput, match="Did you mean 'small-cnn'"):
        build("smal-cnn", classes=10, channels=3)


def test_own_models(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text("import torch\ndef net(size=2): return torch.nn.Linear(size, 3)\ndef number(): return 4\n")
    assert build(f"{file}:net", classes=1, channels=1, size=7).in_features == 7
    assert isinstance(build("torch.nn:Flatten", classes=1, channels=1), nn.Flatten)
    for name, message in (
        (f"{file}:nett", "no function or class 'nett'"),
        (f"{file}:number", "returned int"),
        (f"{tmp_path}/other.py:net", "no file"),
        ("no.such.module:net", "cannot import 'no.such.module'"),
    ):
        with pytest.raises(BadInput, match=message):
            build(name, classes=1, channels=1)


def test_the_registry_names_the_nearest():
    with pytest.raises(BadInput, match=r"unknown method 'seet'\. Did you mean 'seat'\? Known: .*trades"):
        get("methods", "seet")
    assert get("models", "small-cnn") is components("models")["small-cnn"]
    for package in ("methods", "models"):
        for name, line in listed(package).items():
            assert name == name.lower() and "_" not in name
            assert len(line) > 20 and "\n" not in line, name
