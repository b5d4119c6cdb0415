"""Certificates for an audit: distances that are proven where the network is simple enough for it."""

from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn

from planish.audit.measures.affine import AFFINE
from planish.audit.measures.certificates import linear_distance, relu_distance
from planish.core.batch import Batch
from planish.core.threat import Linf, ThreatModel
from planish.models import Normalized

UNITS = 150
"""ReLUs of a network for which integer programs are tried."""
IMAGES = 8
SECONDS = 5.0
"""For each image; what is proven by then holds."""
BEYOND = 1.001
"""How much farther than the boundary, where two classes tie, the images lie that were found with a proof."""


class Proof(NamedTuple):
    """Certificates (N,): no image that is nearer is misclassified; NaN = not attempted. how: in words.

    x_adv: (N, ...) in the box, a little beyond the nearest images found with the proof; the image where there is none.
    """

    distance: Tensor
    how: str
    x_adv: Tensor


def proof(model: nn.Module, batch: Batch, threat: ThreatModel, found: Tensor) -> Proof | None:
    """Return certificates of the images' distances in the box; None for a network of other layers, or too large.

    Exact for affine networks; for a few images of a small ReLU network in Linf by integer programming within SECONDS
    each, which needs SciPy. found: (N,) distances of misclassified images that are known, inf = none. Raises BadInput.
    """
    units = relu_units(model, batch.x)
    if units is None:
        return None
    if units == 0:
        exact = linear_distance(model, batch, threat)
        return Proof(exact.distance, "exact: the network is affine", _beyond(exact.x_adv, batch.x, threat))
    if units > UNITS or not isinstance(threat, Linf):
        return None
    few, distance = batch.select(slice(0, IMAGES)), torch.full_like(found, torch.nan, dtype=torch.float64)
    far = Linf(threat.high - threat.low, threat.low, threat.high)
    solved = relu_distance(model, few, far, seconds=SECONDS, found=found[:IMAGES])
    distance[:IMAGES] = solved.lower
    how = f"integer programs of at most {SECONDS:g} s, {int(solved.proven.sum())} of {len(few.x)} finished and so exact"
    x_adv = torch.cat([_beyond(solved.x_adv, few.x, threat), batch.x[IMAGES:]])
    return Proof(distance, how, x_adv)


def _beyond(x_adv: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    return (x + BEYOND * (x_adv - x)).clamp(threat.low, threat.high).to(x.dtype)


def relu_units(model: nn.Module, x: Tensor) -> int | None:
    """Return how many ReLUs an image (1, ...) passes; None if other layers than affine ones and ReLU are met."""
    leaves = [module for module in model.modules() if not any(module.children())]
    inner = [module for module in model.modules() if any(module.children())]
    if not all(isinstance(module, (*AFFINE, nn.ReLU)) for module in leaves):
        return None
    if not all(isinstance(module, (nn.Sequential, Normalized)) for module in inner):
        return None
    counts: list[int] = []
    with ExitStack() as hooks, torch.no_grad():
        for module in leaves:
            if isinstance(module, nn.ReLU):
                hooks.enter_context(module.register_forward_hook(lambda _, __, out: counts.append(out[0].numel())))
        model(x[:1])
    return sum(counts)
