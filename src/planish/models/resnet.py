"""Residual networks for images of 32, 64 and 224 pixels, with feature denoising if that is asked for."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from planish.core.errors import BadInput
from planish.models import Pointwise
from planish.models import activation as activation_of

Size = Literal[32, 64, 224]
"""Side of the images, in pixels, that the first layers are made for."""

Denoise = Literal["none", "softmax", "dot"]
"""Which mean over positions a denoising block takes."""

Body = Callable[[int, int, int, str], nn.Sequential]
"""(inputs, width, stride, activation) -> the layers beside a block's shortcut."""


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias, normal with variance 2 / fan-out (He et al. 2015)."""
    if kernel == 1:
        layer: nn.Conv2d = Pointwise(inputs, outputs, stride)
    else:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def basic(inputs: int, width: int, stride: int, activation: str) -> nn.Sequential:
    """Return two 3x3 convolutions, the first with the stride."""
    return _body(activation, convolution(inputs, width, 3, stride), convolution(width, width, 3))


def bottleneck(inputs: int, width: int, stride: int, activation: str) -> nn.Sequential:
    """Return 1x1, 3x3 and 1x1 convolutions; the 3x3 has the stride, the last is 4 times as wide."""
    first, second = convolution(inputs, width, 1), convolution(width, width, 3, stride)
    return _body(activation, first, second, convolution(width, 4 * width, 1))


def _body(activation: str, *convolutions: nn.Conv2d) -> nn.Sequential:
    """Return the convolutions, each with batch norm behind it, and activations between them."""
    stages = [(layer, nn.BatchNorm2d(layer.out_channels), activation_of(activation)) for layer in convolutions]
    return nn.Sequential(*[layer for stage in stages for layer in stage][:-1])


class Residual(nn.Module):
    """activation(body(x) + shortcut(x)); the shortcut is 1x1 with batch norm where the shape changes."""

    def __init__(self, body: Body, inputs: int, width: int, outputs: int, stride: int, activation: str) -> None:
        super().__init__()
        self.body = body(inputs, width, stride, activation)
        projection = nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if stride == 1 and inputs == outputs else projection
        self.act = activation_of(activation)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.body(x) + self.shortcut(x))
        return out


class SoftmaxMean(nn.Module):
    """Every position's mean of all, weighted by softmax(theta . phi / sqrt(E)), E = C / 2 (Xie et al. 2019, 4.2).

    theta and phi are 1x1 convolutions to E channels. For H x W positions it holds (H W)^2 weights per image.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta, self.phi = (nn.Conv2d(channels, max(1, channels // 2), 1, bias=False) for _ in range(2))
        for embedding in (self.theta, self.phi):
            nn.init.normal_(embedding.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Return the means, (N, C, H, W), of x (N, C, H, W)."""
        theta, phi = self.theta(x).flatten(2), self.phi(x).flatten(2)
        weights = torch.softmax(theta.transpose(1, 2) @ phi / math.sqrt(theta.shape[1]), dim=-1)
        return (x.flatten(2) @ weights.transpose(1, 2)).view(x.shape)


class DotMean(nn.Module):
    """Every position's mean of all, weighted by dot products: X X^T X / (H W), X of (C, H W) (Xie et al. 2019, 4.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the means, (N, C, H, W), of x (N, C, H, W); the smaller of the two products comes first."""
        flat = x.flatten(2)
        positions = flat.shape[2]
        across = flat.transpose(1, 2)
        means = flat @ (across @ flat) if positions < self.channels else (flat @ across) @ flat
        return (means / positions).view(x.shape)


MEANS: dict[str, Callable[[int], nn.Module]] = {"softmax": SoftmaxMean, "dot": DotMean}


class Denoising(nn.Module):
    """x + BN(conv1x1(mean(x))) (Xie et al. 2019, Fig. 4); the identity at first, because BN's gamma starts at 0."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.mean = MEANS[kind](channels)
        self.conv, self.norm = convolution(channels, channels, 1), nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.norm(self.conv(self.mean(x)))
        return out


BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Blocks in each stage, by depth."""


def _stem(channels: int, width: int, size: int, activation: str) -> list[nn.Module]:
    if size not in (32, 64, 224):
        raise BadInput(f"size must be 32, 64 or 224, the side of the images in pixels, got {size!r}")
    head = [nn.BatchNorm2d(width), activation_of(activation)]
    if size == 224:
        return [convolution(channels, width, 7, 2), *head, nn.MaxPool2d(3, 2, 1)]
    return [convolution(channels, width, 3), *head]


def resnet(
    depth: int = 18,
    *,
    classes: int,
    channels: int,
    width: int = 64,
    size: Size = 32,
    denoise: Denoise = "none",
    activation: str = "relu",
) -> nn.Module:
    """ResNet-18, 34, 50, 101 or 152 for images of 32, 64 or 224 pixels (He et al. 2016); 18 has 11.2 M parameters.

    size: 224 starts with a 7x7 convolution of stride 2 and a max pool, 32 and 64 with a 3x3 convolution of stride 1, as
    Tiny-ImageNet's robust networks do (Wang et al. 2023); 32 and 64 are the same network. Other sides work too.
    denoise: a block of feature denoising after each of the four stages (Xie et al. 2019); published for 152 at 224
    pixels with "softmax".
    Raises BadInput. Differs: strides are in the 3x3 convolutions as in torchvision, not in the first 1x1 of He et al.;
    the last batch norm of each block starts with gamma 1 as in torchvision, in Xie et al.'s code with 0.
    """
    if depth not in BLOCKS:
        raise BadInput(f"a ResNet's depth is one of {', '.join(map(str, BLOCKS))}, got {depth}")
    if denoise not in ("none", *MEANS):
        raise BadInput(f"denoise must be none, softmax or dot, got {denoise!r}")
    body, growth = (basic, 1) if depth < 50 else (bottleneck, 4)
    layers, inputs = _stem(channels, width, size, activation), width
    for stage, count in enumerate(BLOCKS[depth]):
        inner = width * 2**stage
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            layers.append(Residual(body, inputs, inner, growth * inner, stride, activation))
            inputs = growth * inner
        if denoise != "none":
            layers.append(Denoising(inputs, denoise))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


COMPONENTS = {"resnet": resnet}
