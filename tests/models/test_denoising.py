"""Feature denoising: the identity at first, and each mean against a loop over positions."""

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from planish.models import build
from planish.models.resnet import Denoising, DotMean, SoftmaxMean

KINDS = pytest.mark.parametrize("kind", ["softmax", "dot"])


def features(channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64)


@KINDS
@pytest.mark.parametrize("training", [True, False])
def test_a_block_is_the_identity_at_first_and_can_learn(kind: str, training: bool):
    block, x = Denoising(6, kind).double().train(training), features(6, 4, 3)
    out = block(x)
    torch.testing.assert_close(out, x, rtol=0, atol=0)
    out.pow(3).sum().backward()
    assert block.norm.weight.grad is not None and block.norm.weight.grad.abs().max() > 0


@KINDS
def test_a_network_with_denoising_starts_as_the_one_without(kind: str):
    model = build("resnet-18", classes=3, channels=1, width=2, denoise=kind)
    plain, x = deepcopy(model), torch.rand(4, 1, 16, 16)
    assert sum(isinstance(module, Denoising) for module in model) == 4
    for index, module in enumerate(plain):
        if isinstance(module, Denoising):
            plain[index] = nn.Identity()
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=0)
    for module in model:
        if isinstance(module, Denoising):
            nn.init.ones_(module.norm.weight)
    assert (model(x) - plain(x)).abs().max() > 1e-3


@torch.no_grad()
def test_softmax_agrees_with_a_loop_over_positions():
    mean, x = SoftmaxMean(6).double(), features(6, 4, 3)
    for embedding in (mean.theta, mean.phi):
        nn.init.normal_(embedding.weight)
    found = mean(x)
    for n in range(2):
        flat = x[n].flatten(1)
        theta, phi = (embedding.weight[:, :, 0, 0] @ flat for embedding in (mean.theta, mean.phi))
        for i in range(12):
            weights = [math.exp(float(theta[:, i] @ phi[:, j]) / math.sqrt(3)) for j in range(12)]
            expected = sum(weight * flat[:, j] for j, weight in enumerate(weights)) / sum(weights)
            torch.testing.assert_close(found[n].flatten(1)[:, i], expected)


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 4, 3), (20, 2, 3)])
def test_dot_agrees_with_a_loop_over_positions(channels: int, height: int, width: int):
    x = features(channels, height, width)
    found = DotMean(channels)(x)
    for n in range(2):
        flat, count = x[n].flatten(1), height * width
        for i in range(count):
            expected = sum(float(flat[:, i] @ flat[:, j]) * flat[:, j] for j in range(count)) / count
            torch.testing.assert_close(found[n].flatten(1)[:, i], expected)
