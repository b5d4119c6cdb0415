"""The residual networks with branches of Finlay and Oberman's experiments on CIFAR."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from planish.core.errors import BadInput
from planish.models import activation as activation_of

Logits = Literal["plain", "activated"]
"""What comes after the last batch norm: nothing, or the activation."""


class Shift(nn.Module):
    """Adds one learned number per channel; starts as the bias of a layer with that fan-in would."""

    def __init__(self, channels: int, fan_in: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-1, 1) / math.sqrt(fan_in))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, C, ...) plus the numbers."""
        return x + self.bias.view(1, -1, *[1] * (x.ndim - 2))


class Branches(nn.Module):
    """activation(x + mean over branches): two 3x3 convolutions with batch norm, the second branch by branch."""

    def __init__(self, channels: int, branches: int, activation: str) -> None:
        super().__init__()
        inner, self.branches = channels * branches, branches
        self.body = nn.Sequential(
            nn.Conv2d(channels, inner, 3, 1, 1, bias=False),
            nn.BatchNorm2d(inner),
            activation_of(activation),
            nn.Conv2d(inner, inner, 3, 1, 1, groups=branches, bias=False),
            nn.BatchNorm2d(inner),
        )
        self.act = activation_of(activation)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(x + self.body(x).unflatten(1, (self.branches, -1)).mean(1))
        return out


def _layer(inputs: int, outputs: int, kernel: int, activation: str) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, bias=False)
    norm = nn.BatchNorm2d(outputs, affine=False)
    return [convolution, norm, Shift(outputs, inputs * kernel**2), activation_of(activation)]


def resnext(
    depth: int = 34,
    branches: int = 2,
    width: int = 32,
    *,
    classes: int,
    channels: int,
    logits: Logits = "plain",
    activation: str = "relu",
) -> nn.Module:
    """ResNeXt-depth (branches x width) of Finlay and Oberman for 32x32 images: 34 (2x32) has 3.9 M parameters.

    Three stages of (depth - 4) / 6 blocks, 1, 2 and 4 times the width; between them a 1x1 convolution and a mean over
    2x2. CIFAR-10's 34 (2x32): 3,892,298 parameters; CIFAR-100's 34 (2x64): 15,569,636, as in cfinlay/tulip. Blocks take
    the mean of their branches instead of Xie et al.'s 1x1 convolution (2017). Logits go through a batch norm without
    scale, so that their spread over a batch is 1 in training.
    Raises BadInput. Differs: the published code puts the activation on the logits too (`logits = "activated"`). With
    ReLU a class below 0 then has no gradient, which hides it from attacks.
    """
    if depth < 10 or (depth - 4) % 6:
        raise BadInput(f"a ResNeXt's depth is 6 n + 4 (10, 16, 22, 28, 34, ...), got {depth}")
    if logits not in ("plain", "activated"):
        raise BadInput(f"logits must be plain or activated, got {logits!r}")
    layers = _layer(channels, width, 3, activation)
    for stage in range(3):
        outputs = width * 2**stage
        if stage:
            layers += [*_layer(outputs // 2, outputs, 1, activation), nn.AvgPool2d(2, ceil_mode=True)]
        layers += [Branches(outputs, branches, activation) for _ in range((depth - 4) // 6)]
    head = [nn.Linear(outputs, classes, bias=False), nn.BatchNorm1d(classes, affine=False), Shift(classes, outputs)]
    last = [] if logits == "plain" else [activation_of(activation)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head, *last)


COMPONENTS = {"resnext": resnext}
