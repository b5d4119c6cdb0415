"""SSAT against a search one image and one checkpoint at a time."""

import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from known_losses import call, uniform
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import L2, Linf
from planish.methods.ssat import SSAT

RADIUS = 0.125


class Waves(nn.Module):
    """Two classes by the sign of a wave of the mean pixel, behind batch norm: misclassified here and there."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1, affine=False, momentum=None)
        self.shift = nn.Parameter(torch.full((), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        height = self.norm(x.flatten(1).mean(1, keepdim=True))
        return torch.cat([torch.zeros_like(height), (7 * height).sin() - self.shift], 1)


def strip(count: int = 24) -> Batch:
    x = torch.linspace(0.2, 0.8, count).double()[:, None].expand(-1, 4).reshape(count, 1, 2, 2).clone()
    return Batch(x, torch.zeros(count, dtype=torch.int64), torch.arange(count))


def rs_fgsm(model: nn.Module, batch: Batch, step: float) -> Tensor:
    noise = uniform(torch.Generator().manual_seed(0), batch.x)[:, 1:].reshape(batch.x.shape)
    leaf = (batch.x + RADIUS * (2 * noise - 1)).clamp(0, 1).requires_grad_()
    (up,) = torch.autograd.grad(F.cross_entropy(model(leaf), batch.labels, reduction="sum"), leaf)
    moved = leaf.detach() + step * RADIUS * up.sign()
    return (batch.x + (moved - batch.x).clamp(-RADIUS, RADIUS)).clamp(0, 1)


@pytest.mark.parametrize("checkpoints", [1, 3, 5])
def test_the_smallest_k_is_taken(checkpoints: int):
    """The attack by the batch's statistics, the checkpoints by the running averages."""
    model, batch = Waves().double(), strip()
    model(batch.x * 0.8)
    inside, judge = deepcopy(model).train(), deepcopy(model).eval()
    farthest = rs_fgsm(inside, batch, 1.25)
    expected, smallest = [], []
    for image, last in zip(batch.x, farthest, strict=True):
        for k in range(checkpoints + 1):
            point = image + k / checkpoints * (last - image)
            zero, one = judge(point[None])[0].tolist()
            if k == checkpoints or one >= zero:
                expected.append(point)
                smallest.append(k)
                break
    assert set(smallest) == set(range(checkpoints + 1))
    found = call(SSAT(checkpoints), model, batch, Linf(RADIUS))
    assert found.x_adv is not None
    torch.testing.assert_close(found.x_adv, torch.stack(expected))
    total = F.cross_entropy(inside(torch.stack(expected)), batch.labels)
    torch.testing.assert_close(found.total, total)


def test_a_right_answer_everywhere_leaves_rs_fgsm_and_a_wrong_one_the_image(linear: nn.Module, batch: Batch):
    images = batch._replace(x=batch.x.double(), labels=torch.zeros_like(batch.labels))
    linear.double()
    with torch.no_grad():
        linear[1].bias[0] += 20  # type: ignore[index,union-attr,operator]
    assert torch.equal(call(SSAT(), linear, images, Linf(RADIUS)).x_adv, rs_fgsm(linear, images, 1.25))  # type: ignore[arg-type]
    wrong = images._replace(labels=images.labels + 1)
    assert torch.equal(call(SSAT(), linear, wrong, L2(0.5)).x_adv, images.x)  # type: ignore[arg-type]


def test_a_tie_is_a_misclassification(batch: Batch):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False)).double()
    nn.init.zeros_(flat[1].weight)
    images = batch._replace(x=batch.x.double())
    found = call(SSAT(), flat, images, Linf(RADIUS))
    assert torch.equal(found.x_adv, images.x)  # type: ignore[arg-type]
    assert found.total.item() == pytest.approx(math.log(4))


def test_hardened_looks_more_closely():
    assert SSAT(checkpoints=3, step_in_radii=1.0).strengthened() == SSAT(checkpoints=6, step_in_radii=1.0)


def test_bad_input():
    with pytest.raises(BadInput, match="checkpoints must be at least 1"):
        SSAT(checkpoints=0)
