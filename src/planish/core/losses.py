"""Losses of logits, per example. Larger is always worse for the model; a targeted attack is another loss."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from planish.core.errors import BadInput

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (N, K), labels (N,)) -> (N,), computed in float32 or wider."""

MASKED = -math.inf


def wide(logits: Tensor) -> Tensor:
    """Return the logits in float32, or as they are if already that wide."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log p_y."""
    return F.cross_entropy(wide(logits), labels, reduction="none")


def smoothed_cross_entropy(smoothing: float) -> Loss:
    """Return cross entropy with labels (1 - smoothing) * onehot + smoothing / K (Szegedy et al. 2016)."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(wide(logits), labels, reduction="none", label_smoothing=smoothing)

    return loss


def leave_the_label_ahead(label_smoothing: float, logits: Tensor) -> None:
    """Raise BadInput where labels that leave this share to the other classes, (N, K), would put these ahead."""
    most = 1 - 1 / logits.shape[1]
    if not 0 <= label_smoothing < most:
        raise BadInput(
            f"label_smoothing = {label_smoothing:g} leaves other classes more than the label itself: with "
            f"{logits.shape[1]} classes it must be from 0 to below {most:g}"
        )


def scale_free_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return cross entropy of the logits divided by the gap between the two largest, a constant to the gradient.

    MIFPE (Yu and Xu 2023, "Efficient loss function by minimizing the detrimental effect of floating-point errors on
    gradient-based attacks", eq. 9): neither huge nor tiny logits make its gradient vanish, and all classes count.
    """
    scores = wide(logits)
    top = scores.detach().topk(2, dim=1).values
    return cross_entropy(scores / (top[:, :1] - top[:, 1:]).clamp(min=torch.finfo(scores.dtype).eps), labels)


def masked(scores: Tensor, classes: Tensor) -> Tensor:
    """Return the scores (N, K) with that of one class each, (N,), below every other."""
    return scores.scatter(1, classes[:, None], MASKED)


def likely_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the wrong classes, (N, K - 1) int64, that of the largest logit first; of equals, the smaller number."""
    return masked(wide(logits), labels).argsort(dim=1, descending=True, stable=True)[:, :-1]


def _of(scores: Tensor, labels: Tensor) -> Tensor:
    return scores.gather(1, labels[:, None]).squeeze(1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return max_{j != y} z_j - z_y: positive iff misclassified (0 is a tie); inf where a logit is not finite."""
    scores, own = wide(logits), labels[:, None]
    found = scores.scatter(1, own, MASKED).amax(1) - scores.gather(1, own).squeeze(1)
    return found.masked_fill((scores * 0).sum(1) != 0, torch.inf)  # 0 where all are finite, else not a number


def probability_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return max_{j != y} p_j - p_y, in [-1, 1] (the inner loss of SEAT)."""
    return margin(wide(logits).softmax(1), labels)


def soft_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log sum_{j != y} exp(z_j) - z_y, a smooth upper bound of the margin.

    Finlay and Oberman 2019, Remark 2.2.
    """
    scores = wide(logits)
    return masked(scores, labels).logsumexp(1) - _of(scores, labels)


def _need_four(logits: Tensor) -> None:
    if logits.shape[1] < 4:
        raise BadInput(
            f"the DLR loss needs at least 4 classes and the model has {logits.shape[1]}; use a margin attack instead"
        )


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the difference of logits ratio, (max_{j != y} z_j - z_y) / (z_(1) - z_(3)).

    Croce and Hein 2020, eq. 6. Raises BadInput with fewer than four classes.
    """
    _need_four(logits)
    top = wide(logits).topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def toward(target: Tensor) -> Loss:
    """Return the loss z_target - z_y for one target class per example, (N,)."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        scores = wide(logits)
        return _of(scores, target) - _of(scores, labels)

    return loss


def cross_entropy_toward(target: Tensor) -> Loss:
    """Return the loss log p_target for one target class per example, (N,): the published targeted attacks' own."""
    return lambda logits, labels: -cross_entropy(logits, target)


def dlr_toward(target: Tensor) -> Loss:
    """Return the targeted DLR loss, (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2).

    Croce and Hein 2020, eq. 7.
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        _need_four(logits)
        top = wide(logits).topk(4, dim=1).values
        return toward(target)(logits, labels) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)

    return loss


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Return KL(softmax(reference) || softmax(logits)) per example."""
    return F.kl_div(wide(logits).log_softmax(1), wide(reference).log_softmax(1), reduction="none", log_target=True).sum(
        1
    )


def quadratic_bound(logits: Tensor, reference: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return l(f) + <f' - f, grad l(f)> + ||f' - f||^2 / 4, per example, at least l(f') (QUB, You and Lee 2025).

    l: cross entropy with smoothed labels, f' = logits and f = reference, both (N, K). The Hessian of l in the logits
    has no eigenvalue above 1/2. Equal to l(f') where f' = f. Gradients flow through f' and f.
    """
    clean = wide(reference)
    moved = wide(logits) - clean
    label = (1 - smoothing) * moved.gather(1, labels[:, None]).squeeze(1) + smoothing * moved.mean(1)
    slope = (clean.softmax(1) * moved).sum(1) - label
    return smoothed_cross_entropy(smoothing)(clean, labels) + slope + moved.square().sum(1) / 4
