"""The measures as `planish.measures` shows them: with images and labels, or what holds both, in place of a Batch.

Each is the function of the same name in this package, which says what it measures and what it returns.
"""

from collections.abc import Callable
from inspect import Parameter, Signature, signature
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import nn

from planish.attacks import PGD
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
from planish.core.modes import Counted
from planish.core.randomness import seeded
from planish.core.threat import Linf, ThreatModel
from planish.records.geometry import REACH, Planes

More = ParamSpec("More")
Measured = TypeVar("Measured")


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


local_linearity = on_images(_linearity.local_linearity)
one_step = on_images(_linearity.one_step)
gradient_norms = on_images(_curvature.gradient_norms)
curvature = on_images(_curvature.curvature)
local_constants = on_images(_curvature.local_constants)
empirical_lipschitz = on_images(_lipschitz.empirical_lipschitz)
jacobian_bound = on_images(_lipschitz.jacobian_bound)
proven_lipschitz = on_images(_lipschitz.proven_lipschitz)
bounds = on_images(_bounds.bounds)
estimated_bounds = on_images(_bounds.estimated_bounds)
linear_distance = on_images(_certificates.linear_distance)
relu_distance = on_images(_certificates.relu_distance)
smoothed_radius = on_images(_smoothing.smoothed_radius)
accuracy_along = on_images(_surfaces.accuracy_along)
one_step_distortion = on_images(_surfaces.one_step_distortion)


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
    moved = PGD(steps, 1).search(network, batch, threat, generator=seeded(seed)).x_adv - batch.x
    stayed = per_image(threat.norm(moved) == 0, moved)  # such as images that are misclassified when clean
    first = torch.where(stayed, _linearity.one_step(network, batch, threat).x_adv - batch.x, moved)
    second = _surfaces.rademacher(batch, threat, seed)
    shares = torch.linspace(-REACH, REACH, points, device="cpu")
    loss = _surfaces.loss_plane(network, batch, first, second, shares.tolist(), shares.tolist())
    lengths = (threat.norm(move).float().cpu()[:, None] * shares for move in (first, second))
    rows = torch.arange(len(batch.x), device="cpu")
    return Planes(*(part.cpu().numpy() for part in (rows, *lengths, loss.transpose(1, 2))))
