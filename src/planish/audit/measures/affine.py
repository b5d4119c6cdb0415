"""Networks of ReLUs as matrices in float64: what is proven of them holds up to the rounding of float32 inference."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from planish.core.errors import BadInput
from planish.core.modes import Counted
from planish.core.threat import ThreatModel
from planish.models import Normalized

AFFINE = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.AvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Flatten, nn.Unflatten,
    nn.Identity, nn.Dropout,
)  # fmt: skip
"""Layers that are affine in evaluation mode."""
ROUNDING = 1e-9
"""By how much interval bounds are widened, relative to their size: more than float64 rounds."""
Part = Callable[[Tensor], Tensor]


class Affine(NamedTuple):
    """z = weight a + bias, weight (out, in), bias (out,), float64 on the CPU."""

    weight: Tensor
    bias: Tensor


class Interval(NamedTuple):
    """What values (N, H) can be: low <= value <= high."""

    low: Tensor
    high: Tensor


def affine_layers(model: nn.Module, x: Tensor) -> list[Affine]:
    """Return the affine maps between a network's ReLUs, in evaluation mode, for images like x (N, ...).

    The network is a Sequential, nested or `Normalized`, of affine layers and ReLU; one map means that it is affine.
    Works on a copy in float64; costs a forward of D + 1 small batches and memory for D x H numbers, so small networks.
    Raises BadInput for any other layer.
    """
    layers, stage, point = [], list[Part](), torch.zeros_like(x[:1], dtype=torch.float64, device="cpu")
    parts: list[Part] = [*_parts(deepcopy(model).double().cpu().eval()), nn.ReLU()]
    for part in parts:
        if isinstance(part, nn.ReLU):
            layer, point = _folded(stage, point)
            layers.append(layer)
            stage = []
        else:
            stage.append(part)
    return layers


def ball(x: Tensor, threat: ThreatModel, radius: float) -> Interval:
    """Return the pixels' range in the ball of that radius and in the box, (N, D), float64."""
    flat = x.detach().flatten(1).double().cpu()
    return Interval((flat - radius).clamp(min=threat.low), (flat + radius).clamp(max=threat.high))


def reachable(layers: list[Affine], inputs: Interval) -> list[Interval]:
    """Return what enters each ReLU, (N, H), for all inputs in the interval, by interval arithmetic: none is outside."""
    found = []
    for weight, bias in layers[:-1]:
        middle, half = (inputs.low + inputs.high) / 2, (inputs.high - inputs.low) / 2
        centre, spread = middle @ weight.T + bias, half @ weight.T.abs()
        spread = spread + ROUNDING * (1 + centre.abs() + spread)
        found.append(Interval(centre - spread, centre + spread))
        inputs = Interval(found[-1].low.clamp(min=0), found[-1].high.clamp(min=0))
    return found


def outputs(layers: list[Affine], x: Tensor) -> Tensor:
    """Return the logits (N, K) of flat images (N, D), float64."""
    for weight, bias in layers[:-1]:
        x = (x @ weight.T + bias).clamp(min=0)
    return x @ layers[-1].weight.T + layers[-1].bias


def _parts(module: nn.Module) -> Iterator[Part]:
    if type(module) is nn.Sequential:
        for child in module:
            yield from _parts(child)
    elif type(module) is Counted:
        yield from _parts(module.model)
    elif type(module) is Normalized:
        yield lambda x: (x - module.mean) / module.std
        yield from _parts(module.network)
    elif type(module) in (nn.ReLU, *AFFINE) and getattr(module, "running_mean", module) is not None:
        yield module
    else:
        raise BadInput(
            f"{type(module).__name__} is not a layer that can be certified; use a Sequential of Linear, Conv2d, "
            "AvgPool2d, BatchNorm, Flatten and ReLU"
        )


@torch.no_grad()
def _folded(stage: list[Part], point: Tensor) -> tuple[Affine, Tensor]:
    """Return a stage as one map, and a zero image of the shape that it puts out."""
    size = point.numel()
    ends = torch.cat([point.new_zeros(1, size), torch.eye(size, device="cpu")]).double().view(-1, *point.shape[1:])
    for part in stage:
        ends = part(ends)
    flat = ends.flatten(1)
    return Affine((flat[1:] - flat[0]).T.contiguous(), flat[0]), torch.zeros_like(ends[:1])
