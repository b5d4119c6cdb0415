"""What models return in training: logits however wrapped, or one line that says what is wrong."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import planish as pl
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import Linf
from planish.methods import PGDAT, Plain, TrainingLoss
from planish.registry import components
from planish.runs.config import experiment_from
from planish.runs.run import load_run
from planish.runs.train import train_into
from planish.training.cost import training_cost
from planish.training.step import check_trainable

X = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3
OWN: dict[str, Any] = {"threat": "Linf:0.1", "epochs": 2, "guard": pl.Guard(every=1)}


class Own(nn.Module):
    """A network of which something is made of the images before it, and of the logits behind it."""

    def __init__(self, behind: Callable[[Tensor], Any] = lambda z: z, before: Callable[[Tensor], Tensor] = lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
        self.behind, self.before = behind, before

    def forward(self, x: Tensor) -> Any:
        return self.behind(self.network(self.before(x)))


@pytest.mark.parametrize("wrap", [lambda z: {"logits": z}, lambda z: SimpleNamespace(logits=z)], ids=["dict", "object"])
def test_a_model_that_wraps_its_logits_is_trained_as_one_that_does_not(wrap: Callable[[Tensor], Any]):
    """The check took it, and training ended in an AttributeError, said to be planish's mistake."""
    one, other = pl.train(Own(wrap), (X, LABELS), **OWN), pl.train(Own(), (X, LABELS), **OWN)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
    seen = [{key: value for key, value in run.history[-1].items() if "guard" in key} for run in (one, other)]
    assert seen[0] == seen[1] != {}
    assert isinstance(one.model, Own) and not isinstance(one.model(X), Tensor), "it is left as it was"
    costs = [training_cost(PGDAT(2), model, Batch(X, LABELS), Linf(0.1)) for model in (Own(wrap), Own())]
    assert costs[0] == costs[1] > 1


CODE = """
from torch import nn

class Own(nn.Sequential):
    def forward(self, x):
        return {"logits": super().forward(x)}

def build():
    return Own(nn.Flatten(), nn.Linear(16, 3))
"""


def test_a_run_of_a_model_that_wraps_its_logits_is_validated_and_opened(tmp_path: Path):
    (tmp_path / "own.py").write_text(CODE)
    np.savez(tmp_path / "tiny-train.npz", allow_pickle=False, x=(255 * X[:, 0]).byte().numpy(), y=LABELS.numpy())
    tree = {
        "data": {"source": f"{tmp_path}/tiny-train.npz", "validation": 2},
        "model": {"name": f"{tmp_path}/own.py:build"},
        "settings": {"epochs": 1, "batch_size": 6, "schedule": "constant"},
    }
    *_, last = train_into(experiment_from(tree), tmp_path / "run")
    assert "validation_robust_accuracy" in last.metrics
    assert load_run(tmp_path / "run", f"{tmp_path}/own.py:build").model(X)["logits"].shape == (8, 3)


REFUSED = {
    "half": (
        lambda: Own().half(),
        r"weights are torch.float16 and the images torch.float32: train it in torch.float32",
    ),
    "cut off": (lambda: Own(lambda z: z.detach()), "the model's logits have no gradient: leave out what cuts them off"),
    "in place": (
        lambda: Own(before=lambda x: x.sub_(0.5)),
        "writes into the images .*: begin its forward with x = x.cl",
    ),
    "backward": (
        lambda: Own(lambda z: z.exp().mul_(2).exp_().mul_(z)),
        "the model raises RuntimeError on torch.float32",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_a_model_that_cannot_be_trained_is_one_line(make: Callable[[], nn.Module], message: str):
    """Each was an error of PyTorch's, said to be planish's mistake."""
    with pytest.raises(BadInput, match=message) as caught:
        pl.train(make(), (X, LABELS), **OWN)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(components("methods")))
def test_a_model_that_cuts_its_images_off_is_trained_by_none_that_attacks_it(name: str):
    """PGD's and TRADES' networks had been trained on clean images and nobody was told; others ended in an error."""
    cut = Own(before=lambda x: (x.detach() - 0.5) / 0.5)
    if name == "standard":
        assert len(pl.train(cut, (X, LABELS), method=name, threat="Linf:0.1", epochs=2).history) == 2
        return
    with pytest.raises(BadInput, match=r"^no gradient reaches the images, and \w+ follows it: leave out what cuts"):
        pl.train(cut, (X, LABELS), method=name, threat="Linf:0.1", epochs=1)


class Jittered(Plain):
    """A method of one's own that attacks nothing."""

    clean = True
    cost = 1.0

    def __call__(self, model: nn.Module, batch: Batch, threat: object, context: object) -> TrainingLoss:
        logits = model(batch.x)
        return TrainingLoss.of(nn.functional.cross_entropy(logits, batch.labels), logits)


def test_a_method_of_one_s_own_says_that_it_needs_no_gradient_of_the_images():
    cut = Own(before=lambda x: x.detach())
    assert len(pl.train(cut, (X, LABELS), method=Jittered(), threat="Linf:0.1", epochs=2).history) == 2


def test_the_trial_changes_nothing():
    model = Own(lambda z: nn.functional.dropout(z, 0.5))
    before, images, drawn = deepcopy(model.state_dict()), X.clone(), torch.get_rng_state()
    check_trainable(model, X, PGDAT(2))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(own.grad is None for own in model.parameters()) and model.training and torch.equal(X, images)


def test_a_double_model_is_trained_on_a_loader_of_doubles():
    """The trial sees images as the training does."""
    found = pl.train(Own().double(), [(X.double(), LABELS)], threat="Linf:0.1", epochs=2)
    assert next(found.model.parameters()).dtype == torch.float64
