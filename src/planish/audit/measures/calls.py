"""The measures as `planish.measures` shows them: with images and labels, or what holds both, in place of a Batch.

Each is the function of the same name in this package, which says what it measures and what it returns.
"""

from collections.abc import Callable
from functools import update_wrapper
from inspect import Parameter, Signature, signature
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from planish.attacks import PGD, Attack
from planish.audit.measures import bounds as _bounds
from planish.audit.measures import certificates as _certificates
from planish.audit.measures import curvature as _curvature
from planish.audit.measures import linearity as _linearity
from planish.audit.measures import lipschitz as _lipschitz
from planish.audit.measures import smoothing as _smoothing
from planish.audit.measures import surfaces as _surfaces
from planish.core.arguments import (
    Images,
    Labels,
    batch_of,
    check_images,
    check_logits,
    judged_batch,
    judged_dtype,
    model_of,
    seed_of,
    threat_of,
)
from planish.core.batch import Batch, per_image
from planish.core.errors import BadInput, at_least, of_kind, spelled
from planish.core.footprint import in_chunks
from planish.core.modes import Counted
from planish.core.randomness import seeded
from planish.core.threat import Linf, ThreatModel
from planish.records.geometry import REACH, Planes

__all__ = [
    "accuracy_along",
    "bounds",
    "curvature",
    "empirical_lipschitz",
    "estimated_bounds",
    "gradient_norms",
    "jacobian_bound",
    "linear_distance",
    "local_constants",
    "local_linearity",
    "loss_plane",
    "one_step",
    "one_step_distortion",
    "proven_lipschitz",
    "relu_distance",
    "smoothed_radius",
]
More = ParamSpec("More")
Measured = TypeVar("Measured")
Own = TypeVar("Own", bound=tuple[Any, ...] | Tensor)
"""What a measure says of each image: tensors (N, ...)."""


def __dir__() -> list[str]:
    return __all__


def on_images(
    measure: Callable[Concatenate[nn.Module, Batch, More], Measured],
) -> Callable[Concatenate[nn.Module, Images, Labels, More], Measured]:
    """Return the measure as a function of (model, x, labels, ...), which checks what it is given. Raises BadInput."""
    own = signature(measure)

    def call(model: nn.Module, x: Images, labels: Labels = None, *args: More.args, **options: More.kwargs) -> Measured:
        asked = _asked(model, x, labels)
        try:
            given = own.bind(*asked, *args, **options)
        except TypeError as error:
            raise BadInput(f"{measure.__name__}: {error}; it takes {', '.join(taken.parameters)}") from error
        for name, value in given.arguments.items():
            of_kind(own.parameters[name].annotation, **{name: value})
        if "threat" in given.arguments:
            given.arguments["threat"] = threat_of(given.arguments["threat"])
        return measure(*given.args, **given.kwargs)

    named = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("model", "x", "labels")]
    taken = Signature([*named, *[*own.parameters.values()][2:]])
    call.__name__, call.__doc__ = measure.__name__, measure.__doc__
    call.__signature__ = taken  # type: ignore[attr-defined]
    return spelled(threat=Linf)(call)  # type: ignore[return-value]


def _asked(model: object, x: object, labels: object) -> tuple[Counted, Batch]:
    """Return how the model is asked, and the images, as `judged_batch` does: tried on one. Raises BadInput."""
    network = Counted(model_of(model))
    batch = batch_of(x, labels, network)
    check_images(batch, threat_of("Linf:0"))
    batch = batch._replace(x=batch.x.to(judged_dtype(network, batch.x)))
    one = batch.x[:1].expand(2, *batch.x.shape[1:])
    check_logits(network, Batch(one, torch.stack(batch.labels.aminmax())))  # the least label and the largest
    return network, batch


def on_each(
    measure: Callable[Concatenate[nn.Module, Batch, More], Own],
) -> Callable[Concatenate[nn.Module, Images, Labels, More], Own]:
    """Return, as `on_images` does, a measure of each image alone: as many at a time as fit go through the model."""

    def in_parts(model: nn.Module, batch: Batch, /, *args: More.args, **options: More.kwargs) -> Own:
        return in_chunks(lambda network, some: measure(network, some, *args, **options), model, batch)

    update_wrapper(in_parts, measure)
    return on_images(in_parts)


local_linearity = on_each(_linearity.local_linearity)
one_step = on_each(_linearity.one_step)
gradient_norms = on_each(_curvature.gradient_norms)
curvature = on_each(_curvature.curvature)
local_constants = on_each(_curvature.local_constants)
empirical_lipschitz = on_each(_lipschitz.empirical_lipschitz)
jacobian_bound = on_each(_lipschitz.jacobian_bound)
proven_lipschitz = on_each(_lipschitz.proven_lipschitz)
bounds = on_images(_bounds.bounds)
estimated_bounds = on_images(_bounds.estimated_bounds)
linear_distance = on_each(_certificates.linear_distance)
relu_distance = on_images(_certificates.relu_distance)
smoothed_radius = on_images(_smoothing.smoothed_radius)
accuracy_along = on_each(_surfaces.accuracy_along)
one_step_distortion = on_each(_surfaces.one_step_distortion)


@spelled(threat=Linf)
def loss_plane(
    model: nn.Module,
    x: Images,
    labels: Labels = None,
    threat: ThreatModel | str | None = None,
    *,
    points: int = 21,
    steps: int = 20,
    seed: int = 0,
) -> Planes:
    """Measure the cross entropy over a plane through each image (Qin et al. 2019, figures 1 and 4).

    One direction is that of PGD of so many steps, or where that finds nothing, of a gradient step; the other is of
    random signs, as long as the radius.
    points: of the plane's grid on each side, from -1.5 to 1.5 lengths; a plane costs points^2 forwards an image.
    Returns rows, along, across and loss for each image, for `planish.plot.loss_surface`. Raises BadInput.
    """
    at_least(2, points=points)
    threat, seed = threat_of(threat), seed_of(seed)
    network = Counted(model_of(model))
    batch = judged_batch(network, x, labels, threat)
    shares = torch.linspace(-REACH, REACH, points, device="cpu")

    def measure(network: nn.Module, some: Batch) -> _Plane:
        return _plane(network, some, threat, shares, PGD(steps, 1), seed)

    rows = torch.arange(len(batch.x), device="cpu")
    return Planes(*(part.cpu().numpy() for part in (rows, *in_chunks(measure, network, batch))))


class _Plane(NamedTuple):
    """Lengths (N, P) along and across, and the loss (N, P, P) there."""

    along: Tensor
    across: Tensor
    loss: Tensor


def _plane(network: nn.Module, batch: Batch, threat: ThreatModel, shares: Tensor, attack: Attack, seed: int) -> _Plane:
    """Return the loss over the plane of the attack's direction and random signs. shares: of both directions, (P,)."""
    moved = attack.search(network, batch, threat, generator=seeded(seed)).x_adv - batch.x
    stayed = per_image(threat.norm(moved) == 0, moved)  # such as images that are misclassified when clean
    first = torch.where(stayed, _linearity.one_step(network, batch, threat).x_adv - batch.x, moved)
    second = _surfaces.rademacher(batch, threat, seed)
    loss = _surfaces.loss_plane(network, batch, first, second, shares.tolist(), shares.tolist())
    along, across = (threat.norm(move).float().cpu()[:, None] * shares for move in (first, second))
    return _Plane(along, across, loss.transpose(1, 2))
