"""What every architecture owes, over the registry at tiny widths, and what each is known for."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from planish.core.modes import autocast, batch_norms
from planish.models import Pointwise, build, corrupts_memory
from planish.models.resnet import Denoising, Residual
from planish.models.resnext import Branches
from planish.registry import components

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "small-cnn": ("small-cnn", {"width": 4}),
    "preact": ("preact-resnet-18", {"width": 2}),
    "wide": ("wide-resnet-10-1", {}),
    "vgg": ("vgg-11", {"width": 2}),
    "resnext": ("resnext-10-2-4", {}),
    "resnext-activated": ("resnext-10-3-4", {"logits": "activated"}),
    "resnet-18": ("resnet-18", {"width": 2}),
    "resnet-50": ("resnet-50", {"width": 2}),
    "resnet-224": ("resnet-18", {"width": 2, "size": 224}),
    "resnet-softmax": ("resnet-18", {"width": 2, "denoise": "softmax"}),
    "resnet-dot": ("resnet-18", {"width": 2, "denoise": "dot"}),
}
EVERY = pytest.mark.parametrize("case", sorted(TINY))


def tiny(case: str, channels: int = 3, kind: str = "softplus") -> nn.Module:
    """A tiny network in which denoising does something."""
    name, options = TINY[case]
    model = build(name, classes=5, channels=channels, activation=kind, **options)
    for module in model.modules():
        if isinstance(module, Denoising):
            nn.init.ones_(module.norm.weight)
    return model


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """In evaluation mode, batch norms with the statistics of these images: weights this new may explode without."""
    norms = batch_norms(model)
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(x)
    return model.eval()


def images(count: int, channels: int, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(2), dtype=dtype)


@cache
def parameters_of(name: str, classes: int = 10, **options: Any) -> int:
    with torch.device("meta"):
        model = build(name, classes=classes, channels=3, **options)
    return sum(p.numel() for p in model.parameters())


def test_every_architecture_is_among_the_tiny_ones():
    known = components("models")
    assert all(any(name == own or name.startswith(f"{own}-") for name, _ in TINY.values()) for own in known)


@EVERY
@pytest.mark.parametrize(
    ("kind", "channels", "size"), [("relu", 3, 16), ("softplus", 1, 8), ("gelu", 1, 16), ("smooth-relu", 3, 8)]
)
def test_shapes_and_gradients(case: str, kind: str, channels: int, size: int):
    model = tiny(case, channels, kind)
    logits = model(images(4, channels, size))
    assert logits.shape == (4, 5)
    (logits * torch.arange(20.0).view(4, 5).sin()).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert sum(bool(p.grad is not None and p.grad.any()) for p in model.parameters()) > 4


@EVERY
def test_an_image_s_logits_do_not_depend_on_its_batch(case: str):
    x = images(4, 3, 16, torch.float64)
    model = settled(tiny(case).double(), x)
    torch.testing.assert_close(model(x), torch.cat([model(x[:2]), model(x[2:])]), rtol=1e-8, atol=1e-9)


class Rectified(TorchDispatchMode):
    """Notes every operation that is a ReLU, whatever module or function called it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "relu" in str(func) or "threshold" in str(func):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def rectified(model: nn.Module) -> int:
    with Rectified() as mode, torch.no_grad():
        model(images(2, 3, 8))
    return len(mode.found)


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


@EVERY
def test_the_activation_is_used_everywhere(case: str):
    plain = tiny(case, kind="relu")
    assert rectified(plain) >= 3
    smooth = tiny(case, kind="softplus")
    assert rectified(smooth) == 0
    assert count(smooth, nn.ReLU) == 0 and count(smooth, nn.Softplus) == count(plain, nn.ReLU) > 0


@EVERY
def test_smooth_architectures_have_curvature_that_parameters_see(case: str):
    model = tiny(case).double()
    x = images(3, 3, 16, torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).logsumexp(1).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().max() > 1e-9
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(found) > 4 and all(grad.isfinite().all() for grad in found)


@EVERY
def test_bf16_runs_and_learns(case: str):
    # not 16 pixels: of a stride of 2 over one pixel PyTorch 2.13 gives bf16 weight gradients of uninitialised memory
    model, x = tiny(case), images(4, 3, 32)
    with autocast(x, "bf16"):
        logits = model(x)
    logits.float().logsumexp(1).sum().backward()
    assert logits.isfinite().all() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@EVERY
def test_channels_last_changes_nothing(case: str):
    x = images(4, 3, 16, torch.float64)
    model = settled(tiny(case).double(), x)
    expected = model(x)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected, rtol=1e-8, atol=1e-9)


# Published counts: torchvision's tables for ResNets at 224 pixels; the widely used CIFAR code for ResNet-18 and VGG-11;
# Zagoruyko and Komodakis' 36.5 M and Madry-style 46.2 M for wide ones; Rice et al.'s PreActResNet-18.
COUNTS = [
    ("resnet-18", 1000, {"size": 224}, 11_689_512),
    ("resnet-34", 1000, {"size": 224}, 21_797_672),
    ("resnet-50", 1000, {"size": 224}, 25_557_032),
    ("resnet-101", 1000, {"size": 224}, 44_549_160),
    ("resnet-152", 1000, {"size": 224}, 60_192_808),
    ("resnet-18", 10, {}, 11_173_962),
    ("preact-resnet-18", 10, {}, 11_172_170),
    ("wide-resnet-28-10", 10, {}, 36_479_194),
    ("wide-resnet-34-10", 10, {}, 46_160_474),
    ("vgg-11", 10, {}, 9_231_114),
]


@pytest.mark.parametrize(("name", "classes", "options", "count"), COUNTS, ids=lambda part: str(part))
def test_published_parameter_counts(name: str, classes: int, options: dict[str, Any], count: int):
    assert parameters_of(name, classes, **options) == count


ROWS = re.findall(
    r"^\| `([\w-]+)` \| (.*) \| (\d+) \| ([\d,]+) \|$",
    (Path(__file__).parents[2] / "docs" / "models.md").read_text().replace("| |", "|  |"),
    re.MULTILINE,
)


@pytest.mark.parametrize(("name", "options", "classes", "count"), ROWS, ids=lambda part: str(part))
def test_sizes_in_the_page_are_the_code_s(name: str, options: str, classes: str, count: str):
    known = {key: json.loads(value) for key, value in re.findall(r"`(\w+) = ([^`]*)`", options)}
    assert f"{parameters_of(name, int(classes), **known):,}" == count


def test_the_page_sizes_every_architecture():
    assert len(ROWS) > 15
    assert all(any(row[0] == own or row[0].startswith(f"{own}-") for row in ROWS) for own in components("models"))


def resnext_by_hand(width: int, classes: int, branches: int = 2) -> int:
    """Count the parameters of cfinlay/tulip's ResNeXt34: batch norms without scale but in the blocks."""
    total, inputs = 3 * width * 9 + width, width
    for channels in (width, 2 * width, 4 * width):
        if channels != inputs:
            total += inputs * channels + channels
        inner = branches * channels
        total += 5 * (9 * channels * inner + 9 * inner * channels + 2 * 2 * inner)
        inputs = channels
    return total + inputs * classes + classes


def test_resnext_has_the_published_code_s_parameters():
    assert parameters_of("resnext-34") == resnext_by_hand(32, 10) == 3_892_298
    assert parameters_of("resnext-34-2-64", 100) == resnext_by_hand(64, 100) == 15_569_636


@pytest.mark.parametrize("depth", [28, 40])
def test_wide_resnets_by_hand(depth: int):
    total, inputs = 3 * 16 * 9, 16
    for outputs in (128, 256, 512):
        for _ in range((depth - 4) // 6):
            total += 2 * inputs + 9 * inputs * outputs + 2 * outputs + 9 * outputs**2
            total += inputs * outputs if inputs != outputs else 0
            inputs = outputs
    assert parameters_of(f"wide-resnet-{depth}-8") == total + 2 * 512 + 512 * 10 + 10


def test_denoising_adds_two_products_of_channels():
    """1x1 embeddings to half the channels twice, a 1x1 convolution and a batch norm, after 256, 512, 1024 and 2048."""
    stages = (256, 512, 1024, 2048)
    plain = parameters_of("resnet-50")
    assert parameters_of("resnet-50", denoise="softmax") == plain + sum(2 * c**2 + 2 * c for c in stages)
    assert parameters_of("resnet-50", denoise="dot") == plain + sum(c**2 + 2 * c for c in stages)


@pytest.mark.parametrize(
    ("name", "size", "options", "side"),
    [
        ("resnet-18", 32, {"size": 32}, 4),
        ("resnet-50", 64, {"size": 64}, 8),
        ("resnet-34", 224, {"size": 224}, 7),
        ("preact-resnet-18", 32, {}, 4),
        ("resnext-10-2-4", 32, {}, 8),
        ("vgg-11", 32, {}, 1),
    ],
)
def test_sides_of_the_last_features(name: str, size: int, options: dict[str, Any], side: int):
    model = build(name, classes=3, channels=3, **options, **({} if "-10-" in name else {"width": 2}))
    sides = seen(model, images(2, 3, size))
    assert sides == side


def seen(model: nn.Module, x: Tensor) -> int:
    """Return the side of what the global mean is taken of; the logits must come out right too."""
    sides: list[int] = []
    pool = next(module for module in model.modules() if isinstance(module, nn.AdaptiveAvgPool2d))
    handle = pool.register_forward_hook(lambda module, inputs, output: sides.append(inputs[0].shape[-1]))
    assert model(x).shape == (2, 3)
    handle.remove()
    return sides[0]


def test_bottlenecks_stride_in_their_3x3():
    model = build("resnet-50", classes=3, channels=3, width=2)
    blocks = [module for module in model.modules() if isinstance(module, Residual)]
    strides = [[part.stride[0] for part in block.body if isinstance(part, nn.Conv2d)] for block in blocks]
    assert len(blocks) == 16 and [index for index, parts in enumerate(strides) if parts == [1, 2, 1]] == [3, 7, 13]


def test_branches_are_averaged():
    block = Branches(4, 3, "relu").eval()
    x = images(2, 4, 8)
    first, norm1, act, second, norm2 = block.body
    hidden = act(norm1(first(x)))
    parts = [
        nn.functional.conv2d(hidden[:, 4 * b : 4 * b + 4], second.weight[4 * b : 4 * b + 4], padding=1)
        for b in range(3)
    ]
    parts = [part / (1 + norm2.eps) ** 0.5 for part in parts]
    torch.testing.assert_close(block(x), (x + sum(parts) / 3).relu(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("logits", "check"), [("plain", lambda z: z.min() < 0), ("activated", lambda z: z.min() == 0)])
def test_resnext_s_logits_pass_a_batch_norm(logits: str, check: Callable[[Tensor], bool]):
    z = build("resnext-10-2-4", classes=5, channels=3, logits=logits)(images(16, 3, 8))
    assert check(z)
    if logits == "plain":
        torch.testing.assert_close(z.std(0, correction=0), torch.ones(5), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("side", "stride"), [(8, 2), (7, 2), (7, 3), (5, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_pointwise_convolution_is_the_strided_one(side: int, stride: int, memory_format: torch.memory_format):
    """Also channels last, where PyTorch's own corrupted memory: narrow residual networks aborted in training."""
    plain, ours = nn.Conv2d(3, 4, 1, stride, bias=False), Pointwise(3, 4, stride)
    ours.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, side, side, requires_grad=True)
    expected, found = plain(x), ours(x.contiguous(memory_format=memory_format))
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        *(torch.autograd.grad(y.tanh().sum(), [x, layer.weight]) for y, layer in ((found, ours), (expected, plain))),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@EVERY
def test_no_layer_corrupts_memory(case: str):
    name, options = TINY[case]
    assert not any(map(corrupts_memory, build(name, classes=4, channels=1, **options).modules()))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_residual_networks_can_be_scripted():
    model, x = build("preact-resnet-18", classes=4, channels=1, width=2).eval(), torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))
