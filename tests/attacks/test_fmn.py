"""FMN against foolbox's, and its bad input; test_closest.py holds what every such attack must do."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.attacks.fmn import FMN
from planish.batch import Batch
from planish.configuration import make
from planish.errors import BadInput
from planish.randomness import seeded
from planish.threat import L2, Linf, ThreatModel

both = pytest.mark.parametrize("threat", [L2(0.0), Linf(0.0)], ids=lambda threat: threat.name)


@pytest.fixture
def foolbox() -> Any:
    return pytest.importorskip("foolbox", reason="foolbox, a test-only peer, is not installed")


def peer_of(foolbox: Any, threat: ThreatModel, **options: float) -> Any:
    return {"L2": foolbox.attacks.L2FMNAttack, "Linf": foolbox.attacks.LInfFMNAttack}[threat.name](**options)


def asked(network: nn.Module, call: Any) -> list[Tensor]:
    """Return every batch at which the network is asked while `call` runs."""
    seen: list[Tensor] = []
    handle = network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    call()
    handle.remove()
    return seen


class Paper(FMN):
    """FMN whose radius before the first success is the linearised distance, however little it grows."""

    def _radius(
        self, at: Any, height: Tensor, gradient: Tensor, best: Tensor, share: float, threat: ThreatModel
    ) -> Tensor:
        started = at._replace(radius=torch.where(best.isfinite(), at.radius, 0.0))
        return super()._radius(started, height, gradient, best, share, threat)


def on_the_ball(self: Any, x: Any, x0: Any, epsilon: Any) -> Any:
    delta = x - x0
    length = (delta.raw.flatten(1) ** 2).sum(1).sqrt()
    factor = (epsilon.raw / length).clamp(max=1.0)
    return x0 + delta * type(x)(factor.view(-1, 1, 1, 1))


@both
def test_foolbox_step_by_step(
    threat: ThreatModel, foolbox: Any, knowing: nn.Module, known: Batch, monkeypatch: pytest.MonkeyPatch
):
    """The same iterates, once two differences are neutralised.

    planish's radius has a least growth before the first success. foolbox 3.3.4 does not project in L2 at all: it
    multiplies by min(1, norms / norms).
    """
    monkeypatch.setattr(foolbox.attacks.L2FMNAttack, "project", on_the_ball)
    steps, network = 10, knowing.network.eval()
    x = 0.3 + 0.4 * known.x
    with torch.no_grad():
        grey = known._replace(x=x, labels=network(x).argmax(1))
    model, criterion = foolbox.PyTorchModel(network, bounds=(0, 1)), foolbox.criteria.Misclassification(grey.labels)
    peer = peer_of(foolbox, threat, steps=steps, min_stepsize=1e-5)
    theirs = asked(network, lambda: peer.run(model, grey.x, criterion))[-steps:]
    _, *mine = asked(network, lambda: Paper(steps).distances(network, grey, threat, generator=seeded(0)))
    for one, other in zip(mine[:steps], theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@both
def test_foolbox(threat: ThreatModel, foolbox: Any, knowing: nn.Module, known: Batch):
    network = knowing.network.eval()
    model, criterion = foolbox.PyTorchModel(network, bounds=(0, 1)), foolbox.criteria.Misclassification(known.labels)
    peer = peer_of(foolbox, threat, steps=100, min_stepsize=1e-5).run(model, known.x, criterion)
    found = FMN(100).distances(network, known, threat, generator=seeded(0))
    assert (found.distance <= 1.05 * threat.norm(peer - known.x)).all()


@both
def test_the_box_does_not_stop_the_radius(threat: ThreatModel):
    """A linear model with half of the pixels clipped: by the paper's radius alone L2 ends short of the boundary."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()
    model[1].weight.data = torch.tensor([[0.0] * 4, [1.0] * 4], dtype=torch.float64)
    model[1].bias.data = torch.tensor([2.8, 0.0], dtype=torch.float64)
    x = torch.tensor([1.0, 1.0, 0.2, 0.2], dtype=torch.float64).view(1, 1, 2, 2)
    images = Batch(x, torch.tensor([0]), torch.tensor([0]))
    found = FMN().distances(model, images, threat, generator=seeded(0))
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
