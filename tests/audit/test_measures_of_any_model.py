"""Public measures of the models that an evaluation takes too: in half and double precision, with wrapped logits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish import BadInput, measures
from planish.attacks import PGD
from planish.core.footprint import at_a_time
from planish.methods import GradientPenalty

X = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(4) % 3
IN_BALL = {"threat": "Linf:0.1"}
CALLS: dict[str, Callable[..., Any]] = {
    "gamma": partial(measures.local_linearity, steps=2, **IN_BALL),
    "norms": partial(measures.gradient_norms, **IN_BALL),
    "curvature": partial(measures.curvature, steps=3),
    "curvature-difference": partial(measures.curvature, steps=3, way="finite-difference"),
    "lipschitz": partial(measures.empirical_lipschitz, steps=2, **IN_BALL),
    "jacobian": partial(measures.jacobian_bound, **IN_BALL),
    "bounds": partial(measures.estimated_bounds, steps=2, **IN_BALL),
    "distortion": partial(measures.one_step_distortion, **IN_BALL),
    "along": partial(measures.accuracy_along, attack=PGD(2, 1), factors=[1.0], **IN_BALL),
    "smoothed": partial(measures.smoothed_radius, sigma=0.25, selection=4, samples=8),
    "plane": partial(measures.loss_plane, points=3, steps=2, **IN_BALL),
}


class Wrapped(nn.Module):
    """Returns its logits in a mapping, as models of Hugging Face do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.model(x)}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Softplus(), nn.Linear(8, 3))


@pytest.mark.parametrize("name", CALLS)
def test_a_measure_takes_every_model_that_an_evaluation_takes(name: str) -> None:
    expected = _numbers(CALLS[name](network(), X, LABELS))
    assert torch.equal(_numbers(CALLS[name](Wrapped(network()), X, LABELS)), expected)
    for model, x in ((network().double(), X), (network(), X.double()), (network().bfloat16(), X)):
        found = _numbers(CALLS[name](model, x, LABELS))
        assert torch.equal(found.isfinite(), expected.isfinite())


@pytest.mark.parametrize("name", CALLS)
def test_labels_beyond_the_models_classes_are_one_line(name: str) -> None:
    with pytest.raises(BadInput, match=r"labels lie in 2\.\.4, but the model has 3 classes"):
        CALLS[name](network(), X, LABELS + 2)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (partial(measures.curvature, way="exact"), "way must be one of double-backward, finite-difference"),
        (partial(measures.curvature, steps=2.5), "steps must be a whole number"),
        (partial(measures.curvature, way="finite-difference", length=0.0), "length must be above 0"),
        (partial(measures.empirical_lipschitz, outputs="logit", **IN_BALL), "outputs must be one of logits, prob"),
        (partial(measures.bounds, lipschitz=torch.ones(3), **IN_BALL), "one number each, or one for each of 4 images"),
    ],
)
def test_what_a_measure_does_not_know_is_refused(call: Callable[..., Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        call(network(), X, LABELS)


def test_a_probe_without_a_length_is_refused() -> None:
    with pytest.raises(BadInput, match="length must be above 0"):
        GradientPenalty(length=0.0)


def _numbers(found: Any) -> Tensor:
    """Return the numbers of an outcome, but for images, one after the other."""
    parts = [found] if isinstance(found, Tensor) else [*(vars(found).values() if hasattr(found, "kind") else found)]
    tensors = [torch.as_tensor(part) for part in parts if not isinstance(part, str)]
    return torch.cat([one.double().flatten() for one in tensors if one.ndim != 4])


@pytest.mark.parametrize("name", CALLS)
def test_images_go_through_the_model_in_parts(name: str) -> None:
    """Issue: all images of a call went through at once, which no GPU holds for a thousand large ones."""
    whole = _numbers(CALLS[name](network(), X, LABELS))
    seen: list[int] = []
    model = network()
    model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    with at_a_time(2):
        found = _numbers(CALLS[name](model, X, LABELS))
    assert max(seen) == 2 and torch.allclose(found, whole, atol=1e-5, equal_nan=True)
