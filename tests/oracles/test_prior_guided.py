"""FGSM-EP, FGSM-MEP and FGSM-PCO against a memory kept in a dictionary, image by image."""

from copy import deepcopy
from dataclasses import asdict

import pytest
import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import L2, Linf, ThreatModel
from planish.methods import Memory, StepContext
from planish.methods.prior_guided import DELTA, FGSMEP, FGSMMEP, FGSMPCO, MOMENTUM, PERIOD

BOTH = pytest.mark.parametrize("threat", [Linf(0.125), L2(0.5)], ids=["Linf", "L2"])
DECAYS = pytest.mark.parametrize("decay", [0.0, 0.3])
Remembered = dict[int, tuple[Tensor, Tensor]]


def ascended(image: Tensor, start: Tensor, up: Tensor, threat: ThreatModel) -> Tensor:
    """One image's step: up by a radius."""
    return placed(image, start + threat.radius * (up.sign() if isinstance(threat, Linf) else up / up.norm()), threat)


def placed(image: Tensor, moved: Tensor, threat: ThreatModel) -> Tensor:
    """One image back in the ball and in the box."""
    delta = moved - image
    if isinstance(threat, Linf):
        delta = delta.clamp(-threat.radius, threat.radius)
    else:
        delta = delta * min(1.0, threat.radius / float(delta.norm()))
    return (image + delta).clamp(0, 1)


def labelled(logits: Tensor, labels: Tensor, true: float = 0.6) -> Tensor:
    """Cross entropy with this share on the label and the rest on the others."""
    target = torch.full_like(logits, (1 - true) / (logits.shape[1] - 1))
    target[torch.arange(len(labels)), labels] = true
    return -(target * logits.log_softmax(1)).sum(1).mean()


def slow(
    model: nn.Module, batch: Batch, threat: ThreatModel, seed: int, decay: float, remembered: Remembered
) -> Tensor:
    """FGSM_MEP.py with a gradient normalised for each image: the step's loss; `remembered` moves on."""
    corners = threat.corner(batch.x, torch.rand(len(batch.x), 65, generator=torch.Generator().manual_seed(seed)))
    starts, momenta = [], []
    for image, corner, index in zip(batch.x, corners, batch.indices.tolist(), strict=True):
        known = index in remembered
        starts.append(placed(image, image + remembered[index][0], threat) if known else corner)
        momenta.append(remembered[index][1] if known else torch.zeros_like(image))
    leaf = torch.stack(starts).requires_grad_()
    first = model(leaf)
    (up,) = torch.autograd.grad(labelled(first, batch.labels), leaf, retain_graph=True)
    x_adv = torch.stack([ascended(*parts, threat) for parts in zip(batch.x, leaf.detach(), up, strict=True)])
    for row, index in enumerate(batch.indices.tolist()):
        momentum = decay * momenta[row] + up[row] / up[row].abs().mean()
        following = ascended(batch.x[row], leaf[row].detach(), momentum, threat)
        remembered[index] = ((following - batch.x[row]).half().double(), momentum.bfloat16().double())
    second = model(x_adv)
    return labelled(second, batch.labels) + 10 * ((second - first) ** 2).mean()


@BOTH
@DECAYS
def test_three_epochs_of_other_batches_by_hand(threat: ThreatModel, decay: float, normed: nn.Module, images: Batch):
    """What is remembered is the image's, whichever batch it comes in; images of grey edges are clipped to the box."""
    method, memory, remembered = FGSMMEP(decay=decay), Memory(), Remembered()
    twin, seed = deepcopy(normed), 0
    for order in ([0, 1, 2, 3, 4, 5, 6, 7], [7, 2, 5, 0, 1, 3, 6, 4], [3, 1, 4, 0, 5, 2, 6, 7]):
        for rows in torch.tensor(order).split(4):
            seed += 1
            part = images.select(rows)
            context = StepContext(torch.Generator().manual_seed(seed), 0.1, memory=memory, identities=136)
            found = method(normed, part, threat, context).total
            expected = slow(twin, part, threat, seed, decay, remembered)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
            parameters = zip(normed.parameters(), twin.parameters(), strict=True)
            found.backward()
            expected.backward()
            for one, other in parameters:
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7)
    for index, (delta, momentum) in remembered.items():
        torch.testing.assert_close(memory[DELTA][index].double(), delta, rtol=1e-2, atol=1e-4)
        if decay:
            torch.testing.assert_close(memory[MOMENTUM][index].double(), momentum, rtol=1e-2, atol=1e-3)
    assert (MOMENTUM in memory) == (decay > 0) and (memory[PERIOD] == 0).sum() == len(remembered) == 8


def slow_mix(model: nn.Module, batch: Batch, threat: ThreatModel, seed: int, remembered: dict[int, Tensor]) -> Tensor:
    """FGSM-PCO.py, each image's mix by hand: the step's loss; `remembered` moves on."""
    corners = threat.corner(batch.x, torch.rand(len(batch.x), 65, generator=torch.Generator().manual_seed(seed)))
    starts = [
        placed(image, image + remembered[index], threat) if index in remembered else corner
        for image, corner, index in zip(batch.x, corners, batch.indices.tolist(), strict=True)
    ]
    leaf = torch.stack(starts).requires_grad_()
    first = model(leaf)
    (up,) = torch.autograd.grad(labelled(first, batch.labels), leaf, retain_graph=True)
    mixes, ends = [], []
    for row, index in enumerate(batch.indices.tolist()):
        image, start = batch.x[row], leaf[row].detach()
        end = ascended(image, start, up[row], threat)
        sure = first[row].exp()[batch.labels[row]] / first[row].exp().sum()
        mixes.append((1 - sure) * start + sure * (image + 1.5 * (end - image)))
        ends.append(end)
        remembered[index] = (end - image).half().double()
    mixed, alone = model(torch.stack(mixes)), model(torch.stack(ends))
    apart = ((alone - first) ** 2).mean() - ((alone - mixed) ** 2).mean()
    return labelled(mixed, batch.labels) + 10 * apart.abs()


@BOTH
def test_fgsm_pco_by_hand(threat: ThreatModel, normed: nn.Module, images: Batch):
    """Two epochs of other batches: what is remembered, the loss, and the gradient through the share of the mix."""
    memory, remembered = Memory(), dict[int, Tensor]()
    twin, seed = deepcopy(normed), 0
    for order in ([0, 1, 2, 3, 4, 5, 6, 7], [7, 2, 5, 0, 1, 3, 6, 4]):
        for rows in torch.tensor(order).split(4):
            seed += 1
            part = images.select(rows)
            context = StepContext(torch.Generator().manual_seed(seed), seed / 5, memory=memory, identities=136)
            found = FGSMPCO()(normed, part, threat, context).total
            expected = slow_mix(twin, part, threat, seed, remembered)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
            found.backward()
            expected.backward()
            for one, other in zip(normed.parameters(), twin.parameters(), strict=True):
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7)
    for index, delta in remembered.items():
        torch.testing.assert_close(memory[DELTA][index].double(), delta, rtol=1e-2, atol=1e-4)
    assert MOMENTUM not in memory and (memory[PERIOD] == 0).sum() == 8


def step(method: FGSMEP, model: nn.Module, batch: Batch, memory: Memory, progress: float = 0.1) -> Tensor:
    context = StepContext(torch.Generator().manual_seed(0), progress, memory=memory, identities=136)
    total = method(model, batch, Linf(0.125), context).total
    total.backward()
    return total.detach()


def test_all_is_forgotten_after_a_period(smooth: nn.Module, images: Batch):
    """The first step of a new period is the first of all; the second starts where the first ended."""
    memory: Memory = {}
    totals = [step(FGSMEP(period=0.3), smooth, images, memory, progress).item() for progress in (0.1, 0.29, 0.31, 0.9)]
    assert totals[0] == totals[2] == totals[3] != totals[1]


def test_the_gradient_of_something_else_writes_nothing(smooth: nn.Module, images: Batch):
    """Weight perturbation takes the gradient twice in a step: only the one of backward() counts."""
    memory: Memory = {}
    context = StepContext(torch.Generator().manual_seed(0), 0.1, memory=memory, identities=136)
    total = FGSMMEP()(smooth, images, Linf(0.125), context).total
    torch.autograd.grad(total, list(smooth.parameters()), retain_graph=True)
    assert (memory[PERIOD] == -1).all() and not memory[DELTA].any()
    total.backward()
    assert (memory[PERIOD] == 0).sum() == 8 and memory[DELTA][images.indices].any()


def test_images_of_another_shape_begin_anew(images: Batch):
    def model(side: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(side * side, 4))

    memory: Memory = {}
    step(FGSMMEP(), model(8).double(), images, memory)
    step(FGSMMEP(), model(6), images._replace(x=images.x[..., :6, :6].float()), memory)
    assert memory[DELTA].shape == memory[MOMENTUM].shape == (136, 1, 6, 6)
    assert memory[DELTA].dtype == torch.float16 and memory[MOMENTUM].dtype == torch.bfloat16


def test_bad_input(smooth: nn.Module, images: Batch):
    with pytest.raises(BadInput, match="remembers each image"):
        FGSMMEP()(smooth, images, Linf(0.125), StepContext(torch.Generator()))
    with pytest.raises(BadInput, match="period must be above 0"):
        FGSMMEP(period=0.0)
    with pytest.raises(BadInput, match="overshoot must be at least 1"):
        FGSMPCO(overshoot=0.5)


def test_ep_is_mep_without_momentum():
    for options in ({}, {"consistency_weight": 3.0, "label_smoothing": 0.1, "period": 1.0}):
        assert asdict(FGSMMEP(decay=0.0, **options)) == {**asdict(FGSMEP(**options)), "decay": 0.0}
        assert FGSMEP(**options).decay == 0
