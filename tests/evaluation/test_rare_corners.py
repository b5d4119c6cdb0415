"""Corners that few users reach: radii of single images, boxes, indices, seeds and labels that are unusual."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import planish
from planish.attacks.ascents import Ranked
from planish.attacks.relaxed import Relaxed
from planish.attacks.suites.cascade import Cascade
from planish.audit.auditor import Short, _suite
from planish.audit.evidence import PLANS
from planish.core.errors import BadInput
from planish.core.randomness import seeded
from planish.models import corrupts_memory
from planish.runs.judge import load_model


def linear(classes: int = 3, side: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(side * side, classes)).eval()


def right(model: nn.Module, count: int, side: int = 4) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(1))
    return x, model(x).argmax(1)


def test_group_norms_are_not_laid_out_channels_last_where_pytorch_would_crash():
    assert corrupts_memory(nn.GroupNorm(1, 3))
    net = nn.Sequential(nn.GroupNorm(1, 3), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    data = (torch.rand(32, 3, 8, 8), torch.arange(32) % 10)
    run = planish.train(net, data, method="fgsm", threat="Linf:8/255", epochs=2)
    assert len(run.history) == 2


@pytest.mark.parametrize("level", PLANS)
def test_an_audit_s_suite_is_that_of_its_norm(level: str):
    suite = _suite(10, PLANS[level], black_box=False, norm="L1")
    whole = suite.whole if isinstance(suite, Short) else suite
    stage = whole.following({}, 500)
    assert isinstance(whole, Cascade) and whole.norm == "L1" and stage is not None and stage.name == "scout"


def test_two_images_of_one_index_have_no_radii_of_their_own():
    model = linear()
    x, labels = right(model, 6)
    batch = planish.Batch(x, labels, torch.tensor([0, 1, 2, 0, 1, 2]))
    with pytest.raises(BadInput, match="two images have the same index"):
        planish.evaluate(model, batch, None, ("Linf", torch.linspace(0, 0.5, 6)), "pgd-10-1")


@pytest.mark.parametrize("attack", ["multi-targeted-20-1", "untargeted-20-1", "adam-pgd-20-1"])
def test_an_image_s_attack_does_not_depend_on_the_radii_of_others(attack: str):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)).eval()
    x, labels = right(model, 9)
    small = torch.full((9,), 0.02)
    large = small.clone()
    large[8] = 0.5
    alone, beside = (planish.evaluate(model, x, labels, ("L2", radii), attack) for radii in (small, large))
    assert np.allclose(alone.x_adv[:8], beside.x_adv[:8], atol=1e-5)


def test_relaxed_balls_of_radii_of_single_images():
    model = linear()
    x, labels = right(model, 40)
    radii = torch.linspace(0.01, 0.2, 40)
    found = planish.evaluate(model, x, labels, ("Linf", radii), {"relaxed": Relaxed(Ranked(1), 6)})
    moved = torch.as_tensor(found.x_adv - x.numpy()).abs().flatten(1).amax(1)
    assert (moved <= radii + 1e-6).all() and 0 < found.robust_accuracy().hits < 40


def test_a_run_folder_has_no_box_of_its_own(tmp_path: Path):
    with pytest.raises(BadInput, match="leave out low, high and levels, or out="):
        planish.train(
            "small-cnn", "digits", threat=planish.Linf("8/255", low=0.2, high=0.8), epochs=1, out=tmp_path / "a"
        )
    assert not (tmp_path / "a").exists()


def test_training_images_lie_in_the_threat_s_box():
    with pytest.raises(BadInput, match=r"not in \[0.2, 1\]"):
        planish.train(linear(), (torch.zeros(8, 1, 4, 4), torch.arange(8) % 3), threat=planish.Linf("8/255", low=0.2))


def test_a_seed_of_numpy_is_that_number():
    assert seeded(3).initial_seed() == seeded(np.int64(3)).initial_seed()  # type: ignore[arg-type]
    model = linear()
    x, labels = right(model, 4)
    first, second = (planish.minimum_distance(model, x, labels, "L2", "boundary-50", seed=s) for s in (3, np.int64(3)))
    assert np.array_equal(first.columns[0].distance, second.columns[0].distance)


def test_training_labels_are_classes_of_the_model():
    data = (torch.rand(12, 1, 4, 4), torch.tensor([1, 2, 1, 2, 3, 3] * 2))
    with pytest.raises(BadInput, match=r"labels lie in 1..3, but the model has 3 classes"):
        planish.train(linear(), data, threat="Linf:0.1")


def test_a_loader_s_labels_below_0_are_refused():
    labels = torch.arange(12) % 3
    labels[9] = -100
    loader = DataLoader(TensorDataset(torch.rand(12, 1, 4, 4), labels), batch_size=4)
    with pytest.raises(BadInput, match="step 2 has the label -100"):
        planish.train(linear(), loader, threat="Linf:0.1", epochs=1)


@pytest.mark.parametrize("measure", [planish.measures.curvature, planish.measures.gradient_norms])
def test_a_loss_that_is_a_mean_is_refused(measure: Callable[..., object]):
    model = linear()
    x, labels = right(model, 6)
    threat = () if measure is planish.measures.curvature else ("Linf:0.1",)
    with pytest.raises(BadInput, match="one value for each of 6 images, and this one is of shape"):
        measure(model, x, labels, *threat, loss=functional.cross_entropy)


class Endless(nn.Module):
    """NaN near white."""

    def __init__(self) -> None:
        super().__init__()
        self.net = linear()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return torch.where(x.flatten(1).amax(1, keepdim=True) > 0.95, torch.nan, logits)


def test_an_audit_of_a_model_that_returns_nan_in_the_ball_is_written(tmp_path: Path):
    model = Endless()
    x = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 0.9
    audit = planish.audit(model, x, model(x).argmax(1), "Linf:0.1")
    assert audit.save(tmp_path / "saved") and any((tmp_path / "saved").iterdir())


@pytest.mark.parametrize("device", ["gpu", "tpu9", 7.5])
def test_a_device_that_is_none_is_one_line(device: object, tmp_path: Path):
    data = (torch.rand(8, 1, 4, 4), torch.arange(8) % 3)
    with pytest.raises(BadInput, match=r"device .* cannot be used here: "):
        planish.train(linear(), data, threat="Linf:0.1", device=device)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"device .* cannot be used here: "):
        load_model("run", device)  # type: ignore[arg-type]


def test_a_run_s_path_loads_its_model_and_a_module_is_none(tmp_path: Path):
    planish.train("small-cnn", "digits", threat="Linf:0.1", epochs=1, out=tmp_path / "run")
    assert load_model(tmp_path / "run").about["data"] == "digits"
    with pytest.raises(BadInput, match="a module needs no loading"):
        load_model(linear())  # type: ignore[arg-type]


def test_a_distance_s_accuracy_takes_a_radius_as_a_text():
    model = linear()
    x, labels = right(model, 6)
    found = planish.minimum_distance(model, x, labels, "Linf", "closest")
    assert found.accuracy_at("8/255") == found.accuracy_at(8 / 255)
    with pytest.raises(BadInput):
        found.accuracy_at("eight")


def test_surrogates_that_are_one_model_are_refused():
    model = linear()
    x, labels = right(model, 4)
    with pytest.raises(BadInput, match="surrogates are models by name"):
        planish.evaluate(model, x, labels, "Linf:0.1", "transfer-5-1", surrogates=linear())  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(20, 1, 1), (5, 4, 4), (20, 3, 4)])
def test_small_images_of_many_channels_are_trained_on(shape: tuple[int, ...]):
    model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 3))
    run = planish.train(model, (torch.rand(40, *shape), torch.arange(40) % 3), threat="Linf:0.1", epochs=2)
    assert len(run.history) == 2


def test_a_run_s_labels_are_classes_of_the_model(tmp_path: Path):
    code = "from torch import nn\n\n\ndef build(**given):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9))\n"
    (tmp_path / "nine.py").write_text(code)
    with pytest.raises(BadInput, match=r"labels lie in 0..9, but the model has 9 classes"):
        planish.train(f"{tmp_path / 'nine.py'}:build", "digits", threat="Linf:0.1", epochs=1, out=tmp_path / "run")
