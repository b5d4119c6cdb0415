"""FMN against foolbox's, and its bad input; test_closest.py holds what every such attack must do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from known_distances import right
from observing import asked, by_norm, nearest
from torch import Tensor, nn

from planish.attacks.fmn import FMN
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import ThreatModel
from planish.registry import make
from planish.search.nearest import StepOutcome, Walk


def peer_of(foolbox: Any, threat: ThreatModel, **options: float) -> Any:
    return {"L2": foolbox.attacks.L2FMNAttack, "Linf": foolbox.attacks.LInfFMNAttack}[threat.name](**options)


class Paper(FMN):
    """FMN whose radius before the first success is the linearised distance, however little it grows."""

    def _radius(self, at: Walk, seen: StepOutcome, share: float, threat: ThreatModel) -> Tensor:
        started = at._replace(radius=torch.where(seen.best.isfinite(), at.radius, 0.0))
        return super()._radius(started, seen, share, threat)


def on_the_ball(self: Any, x: Any, x0: Any, epsilon: Any) -> Any:
    delta = x - x0
    length = (delta.raw.flatten(1) ** 2).sum(1).sqrt()
    factor = (epsilon.raw / length).clamp(max=1.0)
    return x0 + delta * type(x)(factor.view(-1, 1, 1, 1))


@by_norm
def test_foolbox_step_by_step(
    threat: ThreatModel,
    foolbox: Any,
    run_foolbox: Callable[..., Tensor],
    network: nn.Module,
    known: Batch,
    monkeypatch: pytest.MonkeyPatch,
):
    """The same points are judged, once two differences are neutralised; foolbox throws its last step away unjudged.

    planish's radius has a least growth before the first success. foolbox 3.3.4 does not project in L2 at all: it
    multiplies by min(1, norms / norms).
    """
    monkeypatch.setattr(foolbox.attacks.L2FMNAttack, "project", on_the_ball)
    steps, grey = 10, right(network, 0.3 + 0.4 * known.x)
    peer = peer_of(foolbox, threat, steps=steps + 1)
    theirs = asked(network, lambda: run_foolbox(peer, network, grey))[-steps - 1 :]
    _, *mine = asked(network, lambda: nearest(Paper(steps), network, grey, threat))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@by_norm
def test_foolbox(
    threat: ThreatModel, foolbox: Any, run_foolbox: Callable[..., Tensor], network: nn.Module, known: Batch
):
    theirs = run_foolbox(peer_of(foolbox, threat, steps=100), network, known)
    found = nearest(FMN(100), network, known, threat)
    assert (found.distance <= 1.05 * threat.norm(theirs - known.x)).all()


@by_norm
def test_the_box_does_not_stop_the_radius(threat: ThreatModel):
    """A linear model with half of the pixels clipped: by the paper's radius alone L2 ends short of the boundary."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()
    model[1].weight.data = torch.tensor([[0.0] * 4, [1.0] * 4], dtype=torch.float64)
    model[1].bias.data = torch.tensor([2.8, 0.0], dtype=torch.float64)
    x = torch.tensor([1.0, 1.0, 0.2, 0.2], dtype=torch.float64).view(1, 1, 2, 2)
    images = Batch(x, torch.tensor([0]), torch.tensor([0]))
    found = nearest(FMN(), model, images, threat)
    expected = threat.norm(torch.tensor([[0.0, 0.0, 0.2, 0.2]], dtype=torch.float64))
    torch.testing.assert_close(found.distance, expected, rtol=0.01, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"gamma": (0.05, 0.0)}, "gamma must be above 0 and below 1"),
        ({"step_size": (1.0, 0.0)}, "step_size must be above 0"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str):
    with pytest.raises(BadInput, match=message):
        FMN(**options)


def test_its_name():
    assert make("attacks", "fmn-30", {}) == FMN(steps=30)
