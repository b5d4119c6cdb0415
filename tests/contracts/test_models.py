import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from planish.errors import BadInput
from planish.models import Normalized, build
from planish.models.activations import ACTIVATIONS, SmoothReLU, activation
from planish.registry import components, describe, get

NAMES = sorted(components("models"))
SMALL = {"preact-resnet-18": {"width": 2}, "wide-resnet": {"depth": 10, "factor": 1}, "small-cnn": {"width": 4}}
EVERY = pytest.mark.parametrize("name", NAMES)


@EVERY
@pytest.mark.parametrize("kind", sorted(ACTIVATIONS))
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 16)])
def test_every_architecture(name: str, kind: str, channels: int, size: int):
    model = build(name, classes=5, channels=channels, activation=kind, **SMALL.get(name, {}))
    x = torch.rand(4, channels, size, size)
    logits = model(x)
    assert logits.shape == (4, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-4, atol=1e-5)
    used = {type(activation(kind))} - {nn.Module}
    assert used < {type(module) for module in model.modules()}


@EVERY
def test_smooth_architectures_have_curvature(name: str):
    model = build(name, classes=3, channels=1, activation="softplus", **SMALL.get(name, {})).double().eval()
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x).logsumexp(1).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(gradient.square().sum(), x)
    assert curvature.abs().max() > 1e-9


def parameters_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_known_sizes():
    """PreActResNet-18 has 11.17 M parameters, WideResNet-28-10 36.5 M, WideResNet-34-10 46.2 M."""
    with torch.device("meta"):
        assert parameters_of(build("preact-resnet-18", classes=10, channels=3)) / 1e6 == pytest.approx(11.17, abs=0.01)
        wide = {depth: build("wide-resnet", classes=10, channels=3, depth=depth, factor=10) for depth in (28, 34)}
    assert parameters_of(wide[28]) / 1e6 == pytest.approx(36.48, abs=0.02)
    assert parameters_of(wide[34]) / 1e6 == pytest.approx(46.16, abs=0.02)


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


def test_bad_options_say_what_is_right():
    with pytest.raises(BadInput, match="Did you mean 'softplus'"):
        activation("soft-plus")
    with pytest.raises(BadInput, match="6 n \\+ 4"):
        build("wide-resnet", classes=10, channels=3, depth=18)
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
        (f"{file}:nett", "no function 'nett'"),
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
        for name, component in components(package).items():
            assert name == name.lower() and "_" not in name
            assert len(describe(component)) > 20 and "\n" not in describe(component), name
