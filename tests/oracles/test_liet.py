"""LIET against its published procedure, written out pixel by pixel."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import cross_entropy
from planish.core.threat import L2, Linf, ThreatModel
from planish.methods import Memory, StepContext
from planish.methods.liet import INDICATIVE, LIET, jensen_shannon, randomly_smoothed

THREATS = pytest.mark.parametrize("threat", [Linf(0.125), L2(0.6)], ids=["Linf", "L2"])


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labelled(logits: Tensor, labels: Tensor, generator: torch.Generator, smoothing: float = 0.6) -> Tensor:
    """Cross entropy, image by image: `smoothing` goes to the wrong classes in random parts."""
    parts, values = torch.rand(logits.shape, generator=generator, dtype=logits.dtype), []
    for row, label in enumerate(labels.tolist()):
        target = parts[row].clone()
        target[label] = 0
        target = smoothing * target / target.sum()
        target[label] = 1 - smoothing
        values.append(-(target * logits[row].log_softmax(0)).sum())
    return torch.stack(values)


def up(values: Tensor, leaf: Tensor, threat: ThreatModel) -> Tensor:
    (gradient,) = torch.autograd.grad(values.sum(), leaf, retain_graph=True)
    if isinstance(threat, Linf):
        return threat.radius * gradient.sign()
    return threat.radius * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def placed(x_adv: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    delta = x_adv - x
    if isinstance(threat, Linf):
        return (x + delta.clamp(-threat.radius, threat.radius)).clamp(0, 1)
    shrink = (threat.radius / delta.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)
    return (x + delta * shrink).clamp(0, 1)


def class_wise(model: nn.Module, x: Tensor, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    """The steepest step from a grey image of each label, in evaluation mode."""
    grey = torch.full((4, *x.shape[1:]), 0.5, dtype=x.dtype).requires_grad_()
    return up(labelled(deepcopy(model).eval()(grey), torch.arange(4), generator), grey, threat)


def written_out(
    model: nn.Module, batch: Batch, threat: ThreatModel, seed: int, progress: float, known: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The loss of a step, and the class-wise perturbations that it used; known: those of a step before."""
    x, labels, generator = batch.x, batch.labels, drawn(seed)
    known = class_wise(model, x, threat, generator) if known is None else known
    share, sign = torch.rand(2, generator=generator, dtype=x.dtype)
    uniform = torch.rand(8, x[0].numel() + 1, generator=generator)
    noise = threat.sample(torch.full_like(x, 0.5), uniform) - 0.5
    hidden = torch.rand(x.shape, generator=generator, dtype=x.dtype) < 0.1 + 0.4 * share
    delta = known[labels].clone()
    delta[hidden] = noise[hidden]
    leaf = placed(x - delta if sign < 0.5 else x + delta, x, threat).requires_grad_()
    first = model(leaf)
    x_adv = placed(leaf.detach() + up(labelled(first, labels, generator), leaf, threat), x, threat)
    second = model(x_adv)
    p, q = first.softmax(1), second.softmax(1)
    m = (p + q) / 2
    divergence = ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)).mean() / 2
    return labelled(second, labels, generator).mean() + 100 * progress * divergence, known


@THREATS
def test_it_is_the_published_procedure(threat: ThreatModel, normed: nn.Module, batch: Batch):
    """Twelve steps: the class-wise perturbations are made anew in the first and in the eleventh."""
    batch, memory, known = batch._replace(x=batch.x.double()), Memory(), None
    model, twin = normed.double(), deepcopy(normed).double()
    for step in range(12):
        progress, known = step / 12, None if step == 10 else known
        context = StepContext(drawn(step), progress, step, memory)
        found = LIET()(model, batch, threat, context).total
        expected, known = written_out(twin, batch, threat, step, progress, known)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(memory[INDICATIVE], known)
    for one, other in zip(
        torch.autograd.grad(found, list(model.parameters())),
        torch.autograd.grad(expected, list(twin.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    for one, other in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_start_tells_the_class(batch: Batch):
    """Of a linear model the class-wise perturbation is the sign of how the label's logit falls and the others' rise."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    memory = Memory()
    two = batch._replace(x=batch.x.double(), labels=batch.labels % 2)
    LIET(label_smoothing=0.0)(model, two, Linf(0.1), StepContext(drawn(0), memory=memory))
    weight = model[1].weight.detach()
    expected = 0.1 * (weight[1] - weight[0]).sign().view(1, 8, 8)
    torch.testing.assert_close(memory[INDICATIVE], torch.stack([expected, -expected]))


def test_noise_beyond_the_ball_is_not_brought_back(normed: nn.Module, batch: Batch):
    seen: list[Tensor] = []
    normed.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()) if module.training else None)
    x = batch.x.double() * 0.2 + 0.4
    for noise, least, most in ((1.0, 0.0, 0.1), (2.0, 0.2, 0.3)):
        seen.clear()
        LIET(noise_in_radii=noise)(normed.double(), batch._replace(x=x), Linf(0.1), StepContext(drawn(0)))
        _, x_adv = seen
        assert least < (x_adv - x).abs().max() <= most + 1e-6


def test_label_smoothing_leaves_the_label_its_share_and_0_is_plain():
    logits, labels = torch.randn(50, 5, generator=drawn(0)), torch.arange(50) % 5
    plain = randomly_smoothed(0.0, drawn(1))(logits, labels)
    torch.testing.assert_close(plain, cross_entropy(logits, labels))
    certain = torch.full((50, 5), -40.0).scatter(1, labels[:, None], 0.0)
    torch.testing.assert_close(randomly_smoothed(0.6, drawn(1))(certain, labels), torch.full((50,), 24.0))


def test_divergence_of_outputs_that_agree_and_that_share_nothing():
    logits = torch.tensor([[100.0, 0.0], [0.0, 0.0]])
    assert jensen_shannon(logits, logits).abs().max() < 1e-7
    apart = jensen_shannon(torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]]))
    torch.testing.assert_close(apart, torch.tensor([math.log(2)]))


@pytest.mark.parametrize(
    "options", [{"label_smoothing": 1.0}, {"least_masked": 0.6}, {"most_masked": 1.5}, {"refresh": 0}]
)
def test_what_makes_no_sense_is_refused(options: dict[str, float]):
    with pytest.raises(BadInput):
        replace(LIET(), **options)  # type: ignore[arg-type]
