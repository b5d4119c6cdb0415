import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from planish.core import losses
from planish.core.errors import BadInput

LABELS = torch.tensor([0, 1, 2, 3, 4] * 20)
ONES = torch.ones_like(LABELS)
UNTARGETED = [
    losses.cross_entropy,
    losses.smoothed_cross_entropy(0.2),
    losses.margin,
    losses.probability_margin,
    losses.soft_margin,
    losses.dlr,
]


def logits(seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(100, 5, generator=torch.Generator().manual_seed(seed)) * 3 + shift


def others(scores: Tensor) -> Tensor:
    """The largest wrong score, by hand."""
    rows = zip(scores.tolist(), LABELS.tolist(), strict=True)
    return torch.tensor([max(v for j, v in enumerate(row) if j != y) for row, y in rows], dtype=scores.dtype)


def true(scores: Tensor) -> Tensor:
    return scores[torch.arange(100), LABELS]


@pytest.mark.parametrize("loss", [*UNTARGETED, losses.toward(ONES), losses.dlr_toward(ONES)])
@pytest.mark.parametrize("shift", [0.0, -30.0])
def test_larger_is_worse_for_the_model(loss: losses.Loss, shift: float):
    """A lower true logit, or a higher wrong one, raises every loss."""
    scores, labels = torch.tensor([[2.0, 1.0, -1.0, -2.0, 0.5]]).expand(100, 5) + shift, torch.zeros_like(LABELS)
    value = loss(scores, labels)
    assert value.shape == (100,)
    assert (loss(scores - torch.tensor([0.5, 0, 0, 0, 0]), labels) > value).all()
    assert (loss(scores + torch.tensor([0, 0.5, 0, 0, 0]), labels) > value).all()


@pytest.mark.parametrize("loss", [losses.margin, losses.probability_margin, losses.soft_margin, losses.dlr])
@pytest.mark.parametrize("shift", [0.0, -100.0, 50.0])
def test_the_sign_says_misclassified(loss: losses.Loss, shift: float):
    """All logits negative is the case that max((1 - onehot) * logits) gets wrong."""
    scores = logits(shift=shift)
    wrong = scores.argmax(1) != LABELS
    assert 10 < wrong.sum() < 90
    value = loss(scores, LABELS)
    assert (value[wrong] > 0).all()
    if loss is not losses.soft_margin:
        assert (value[~wrong] < 0).all()


def test_margins_by_hand():
    scores = logits(shift=-20)
    torch.testing.assert_close(losses.margin(scores, LABELS), others(scores) - true(scores))
    p = scores.softmax(1)
    torch.testing.assert_close(losses.probability_margin(scores, LABELS), others(p) - true(p))
    tie = torch.tensor([[-1.0, -1.0, -3.0]])
    assert losses.margin(tie, torch.tensor([0])).item() == 0
    two = torch.tensor([[-5.0, -2.0]])
    assert losses.margin(two, torch.tensor([0])).item() == 3


def test_soft_margin_is_a_tight_upper_bound():
    scores = logits()
    gap = losses.soft_margin(scores, LABELS) - losses.margin(scores, LABELS)
    assert (gap > 0).all() and (gap <= math.log(4) + 1e-5).all()
    exact = -(true(scores.softmax(1)) / (1 - true(scores.softmax(1)))).log()
    torch.testing.assert_close(losses.soft_margin(scores, LABELS), exact, rtol=1e-4, atol=1e-4)


def test_dlr_by_hand_and_invariant():
    scores = logits()
    ordered = scores.sort(1, descending=True).values
    expected = (others(scores) - true(scores)) / (ordered[:, 0] - ordered[:, 2])
    torch.testing.assert_close(losses.dlr(scores, LABELS), expected)
    torch.testing.assert_close(losses.dlr(scores * 7 + 3, LABELS), expected, rtol=1e-4, atol=1e-5)
    target = (LABELS + 2) % 5
    expected = (scores[torch.arange(100), target] - true(scores)) / (
        ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
    )
    torch.testing.assert_close(losses.dlr_toward(target)(scores, LABELS), expected)
    torch.testing.assert_close(losses.dlr_toward(target)(scores * 7 + 3, LABELS), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", [losses.dlr, losses.dlr_toward(torch.tensor([1]))])
def test_dlr_needs_four_classes(loss: losses.Loss):
    with pytest.raises(BadInput, match="4 classes and the model has 3"):
        loss(torch.zeros(1, 3), torch.tensor([0]))
    loss(torch.arange(4.0)[None], torch.tensor([0]))


def test_toward_a_target():
    scores, target = logits(), (LABELS + 3) % 5
    expected = [row[t] - row[y] for row, t, y in zip(scores, target, LABELS, strict=True)]
    torch.testing.assert_close(losses.toward(target)(scores, LABELS), torch.stack(expected))


def test_divergence():
    scores, reference = logits(), logits(1)
    found = losses.divergence(scores, reference)
    p, q = reference.softmax(1), scores.softmax(1)
    torch.testing.assert_close(found, (p * (p / q).log()).sum(1), rtol=1e-4, atol=1e-5)
    assert (found > 0).all()
    torch.testing.assert_close(losses.divergence(scores, scores + 5), torch.zeros(100), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", UNTARGETED)
def test_half_precision_is_widened_first(loss: losses.Loss, dtype: torch.dtype):
    scores = logits().to(dtype)
    found = loss(scores, LABELS)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(scores.float(), LABELS))
    assert loss(scores.double(), LABELS).dtype == torch.float64
    assert losses.divergence(scores, scores.roll(1, 0)).dtype == torch.float32


def test_cross_entropies_are_torchs():
    scores = logits()
    torch.testing.assert_close(losses.cross_entropy(scores, LABELS), F.cross_entropy(scores, LABELS, reduction="none"))
    soft = F.one_hot(LABELS, 5) * 0.7 + 0.3 / 5
    expected = -(soft * scores.log_softmax(1)).sum(1)
    torch.testing.assert_close(losses.smoothed_cross_entropy(0.3)(scores, LABELS), expected)
    smoothed = F.cross_entropy(scores, LABELS, label_smoothing=0.3)
    torch.testing.assert_close(losses.smoothed_cross_entropy(0.3)(scores, LABELS).mean(), smoothed)


def test_wrong_classes_are_ranked_by_their_logits():
    """The label never; of equals the smaller number first; the least logits last, however low."""
    scores = torch.tensor([[1.0, 3.0, 3.0, -1e9], [2.0, 2.0, 5.0, 2.0]])
    ranked = losses.likely_classes(scores, torch.tensor([0, 2]))
    assert ranked.tolist() == [[1, 2, 3], [0, 1, 3]]
