"""How far the outputs move for how far the image does: measured by ascent, and bounded for networks of ReLUs."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from planish.audit.measures.affine import affine_layers, ball, reachable
from planish.core.batch import Batch
from planish.core.errors import at_least
from planish.core.losses import wide
from planish.core.modes import attacked, full_precision
from planish.core.randomness import keyed_draws
from planish.core.threat import ThreatModel
from planish.search.ascent import highest
from planish.search.objectives import Objective, logit_gradients
from planish.search.step_rules import Cosine, Steepest, StepRule

Outputs = Literal["logits", "probabilities"]
RULE = Steepest(Cosine(2.0, 0.02))
NEAREST = 1e-3
"""In radii: at smaller distances rounding would be measured."""


class EmpiricalLipschitz(NamedTuple):
    """Extremes of ||f(x) - f(x')||_1 / ||x - x'|| met in each ball, (N,); estimates, no bounds.

    largest: not above the true maximum, and so an estimate from below of the local Lipschitz constant at x. smallest:
    not below the true minimum. passes: (N,) int64 forwards and backwards.
    """

    largest: Tensor
    smallest: Tensor
    passes: Tensor


class ProvenLipschitz(NamedTuple):
    """Upper bounds of constants that hold everywhere in each ball, (N,) float64: certificates.

    outputs: of ||f(x) - f(x')||_1 / ||x - x'||, for any two points. margin: of max_{j != y} z_j - z_y, the L of an
    L-bound within the ball.
    """

    outputs: Tensor
    margin: Tensor


def empirical_lipschitz(
    model: nn.Module,
    batch: Batch,
    threat: ThreatModel,
    *,
    steps: int = 20,
    restarts: int = 1,
    seed: int = 0,
    rule: StepRule = RULE,
    outputs: Outputs = "logits",
) -> EmpiricalLipschitz:
    """Return the empirical local Lipschitz constant, by ascent (Yang et al. 2020; Li and Yu 2022, eq. 10).

    Its mean over images is what the papers print: the largest is SEAT's "upper bound", the smallest its "lower bound"
    (Tables 3 and E.1); both are estimates. In the threat's norm, Linf there. From random corners of the ball, first
    with the distance held constant, which suits affine models far from the box, then from there with its gradient,
    which finds more where the box is near. Costs one forward, and 6 steps + 3 passes a restart.
    Points nearer than a thousandth of the radius do not count. Differs: two ascents with a falling step for the
    largest; Yang et al. make one.
    """
    at_least(1, steps=steps, restarts=restarts)
    f = _outputs(model, outputs)
    with attacked(model), full_precision(batch.x):
        with torch.no_grad():
            clean = f(batch.x)
        largest = least = torch.full_like(clean[:, 0], -torch.inf)
        for restart in range(restarts):
            start = threat.corner(batch.x, keyed_draws(batch.x, batch.indices, seed + restart))
            held = highest(_ratio(f, clean, batch, threat, 1, "held"), batch.x, threat, rule, steps, start=start)
            up = highest(_ratio(f, clean, batch, threat, 1), batch.x, threat, rule, steps, start=held.x_adv)
            down = highest(_ratio(f, clean, batch, threat, -1), batch.x, threat, rule, steps, start=start)
            largest, least = torch.maximum(largest, up.value), torch.maximum(least, down.value)
    return EmpiricalLipschitz(largest, -least, torch.full_like(batch.labels, 1 + restarts * 3 * (2 * steps + 1)))


def jacobian_bound(model: nn.Module, batch: Batch, threat: ThreatModel, *, outputs: Outputs = "logits") -> Tensor:
    """Return sum_k ||grad f_k(x)||_dual, (N,): at least ||f(x) - f(x')||_1 / ||x - x'|| in the limit x' -> x.

    An upper bound of the Lipschitz constant where f is affine in the ball; elsewhere it speaks of x alone, and its
    largest value over some points is an estimate. One forward, a backward for each class.
    """
    with attacked(model), full_precision(batch.x):
        f = _outputs(model, outputs)
        with torch.no_grad():
            classes = f(batch.x[:1]).shape[1]
        every = torch.arange(classes, device=batch.x.device).expand(len(batch.x), -1)
        _, gradients = logit_gradients(f, batch.x, every)
    return threat.dual_norm(gradients.flatten(0, 1)).view(-1, classes).sum(1)


def proven_lipschitz(model: nn.Module, batch: Batch, threat: ThreatModel) -> ProvenLipschitz:
    """Bound the constants of a small ReLU network in each ball: |W| ... |W|, without ReLUs that are shut all over it.

    No entry of the network's derivative is larger than that of this product (interval arithmetic decides which ReLUs
    can open), and so no dual norm of a row is. Exact where the network is affine in the ball. No passes but
    `affine_layers`; memory for N x H x D numbers. Raises BadInput for other layers.
    """
    layers = affine_layers(model, batch.x)
    last, found = layers[-1].weight, []
    within = reachable(layers, ball(batch.x, threat, threat.radius))
    for row, label in enumerate(batch.labels.tolist()):
        steepest = torch.eye(layers[0].weight.shape[1], dtype=torch.float64, device="cpu")
        for layer, entering in zip(layers[:-1], within, strict=True):
            steepest = layer.weight.abs() @ steepest * (entering.high[row] > 0)[:, None]
        outputs = threat.dual_norm(last.abs() @ steepest).sum()
        found.append(torch.stack([outputs, threat.dual_norm((last - last[label]).abs() @ steepest).amax()]))
    return ProvenLipschitz(*torch.stack(found, 1).to(batch.x.device))


def _outputs(model: nn.Module, outputs: Outputs) -> Callable[[Tensor], Tensor]:
    return lambda x: wide(model(x)) if outputs == "logits" else wide(model(x)).softmax(1)


def _ratio(
    f: Callable[[Tensor], Tensor],
    clean: Tensor,
    batch: Batch,
    threat: ThreatModel,
    sign: Literal[1, -1],
    distance: Literal["held", "moving"] = "moving",
) -> Objective:
    """Return the objective sign ||f(x_adv) - f(x)||_1 / ||x_adv - x||; -inf too near to x."""

    def objective(x_adv: Tensor) -> tuple[Tensor, Tensor]:
        logits = f(x_adv)
        away, least = threat.norm(x_adv - batch.x), NEAREST * threat.radius
        away = away.detach() if distance == "held" else away
        ratio = sign * (logits - clean).abs().sum(1) / away.clamp(min=max(least, torch.finfo(away.dtype).tiny))
        return torch.where(away >= least, ratio, -torch.inf), logits

    return objective
