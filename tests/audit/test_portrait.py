"""The geometry of an audit: closed forms on a linear model, the same again, its file, and what a black box gets."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import strange
import torch
from torch import nn

from planish.attacks.ascents import Untargeted
from planish.attacks.random_search import Noise
from planish.attacks.suites import Fixed, Stage
from planish.audit.auditor import audit
from planish.audit.evidence import Evidence, Plan
from planish.audit.geometry import geometry, relu_units
from planish.audit.measures.certificates import relu_distance
from planish.core.arguments import logits_of
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import margin
from planish.core.modes import Counted
from planish.core.threat import L2, Linf, ThreatModel
from planish.records import audit as record
from planish.records.audit import Audit
from planish.records.geometry import GEOMETRY, PARTS, Geometry, facts, load, save
from planish.search.step_rules import Steepest

PLAN = Plan(
    "quick", None, setup=6, sample=8, steps=4, noise=2, queries=4, survivors=4, curve_steps=5, measured=6, pictured=2,
    points=5, restarts=2, moved=4,
)  # fmt: skip
SUITE = Fixed((Stage("first", Untargeted(Steepest(0.5), 3, margin)), Stage("noise", Noise(2))))


def audited(model: nn.Module, batch: Batch, threat: ThreatModel, plan: Plan = PLAN, **how: object) -> Audit:
    *_, last = audit(model, batch, threat, plan, suite=SUITE, **how)  # type: ignore[arg-type]
    return last


def geometry_of(model: nn.Module, batch: Batch, threat: ThreatModel, **how: bool) -> Geometry:
    """The geometry alone, without the checks before it."""
    with torch.no_grad():
        images = batch._replace(logits=logits_of(model, batch.x))
    return geometry(Evidence(Counted(model), model, images, threat, PLAN, "suite", SUITE, **how), [])  # type: ignore[arg-type]


def two_classes() -> nn.Module:
    """Logits (0, w x + b): the margin is linear in the pixels, and every gradient is the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        with torch.no_grad():
            model[1].weight[0], model[1].bias[0] = 0, 0
            model[1].bias[1] = -0.5 * model[1].weight[1].sum()
    return model


def inner(batch: Batch, model: nn.Module) -> Batch:
    """Images far from the box's walls, labelled as the model sees them."""
    x = 0.4 + 0.2 * batch.x
    with torch.no_grad():
        return batch._replace(x=x, labels=model(x).argmax(1))


def arrays(geometry: Geometry) -> list[np.ndarray]:
    parts = [part for name in PARTS if (part := getattr(geometry, name)) is not None]
    return [geometry.distance, geometry.rows, *(np.asarray(value) for part in parts for value in part)]


@pytest.mark.parametrize("threat", [Linf(0.02), L2(0.1)], ids=["Linf", "L2"])
def test_the_l_bound_of_a_linear_margin_is_its_distance(threat: ThreatModel, batch: Batch):
    model = two_classes()
    found = geometry_of(model, inner(batch, model), threat)
    assert found.bounds is not None
    exact = model(inner(batch, model).x)[:, 1].abs().detach() / threat.dual_norm(model[1].weight[1:2].detach())
    rows = torch.from_numpy(found.rows)
    assert len(rows) == 6
    torch.testing.assert_close(torch.from_numpy(found.bounds.by_lipschitz), exact[rows], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.nearest, exact[rows].numpy(), rtol=2e-2)
    assert (found.bounds.l_refuted, found.bounds.c_refuted, found.bounds.compared) == (0, 0, 6)
    assert found.bounds.curvature < 1e-2
    assert found.bounds.proof == "exact: the network is affine"
    np.testing.assert_allclose(found.bounds.certified, exact[rows].numpy(), rtol=1e-4)
    assert (found.bounds.by_curvature <= found.bounds.by_lipschitz * 1.001).all()


def small(width: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 3)).eval()


def test_distances_of_a_small_relu_network_are_proven(batch: Batch):
    pytest.importorskip("scipy", reason="solves the integer programs")
    images = inner(batch, small(6))
    whole = geometry_of(small(6), images, Linf(0.02))
    found = whole.bounds
    assert found is not None and found.proof == "integer programs of at most 5 s, 6 of 6 finished and so exact"
    exact = relu_distance(small(6), images.select(torch.from_numpy(whole.rows)), Linf(1.0)).upper
    np.testing.assert_allclose(found.certified, exact.numpy(), rtol=1e-4)
    assert (found.certified > 0).all() and (found.certified <= whole.nearest + 1e-5).all()
    np.testing.assert_allclose(whole.nearest, exact.numpy(), rtol=2e-3)  # what the solver found counts as found
    assert found.l_refuted == np.count_nonzero(found.by_lipschitz > whole.nearest) > 0


@pytest.mark.parametrize(("width", "threat"), [(200, Linf(0.02)), (6, L2(0.1))], ids=["large", "L2"])
def test_what_cannot_be_proven_is_not(width: int, threat: ThreatModel, batch: Batch):
    found = geometry_of(small(width), inner(batch, small(width)), threat).bounds
    assert found is not None and found.proof == "" and np.isnan(found.certified).all()


def test_nothing_is_proven_of_a_network_that_rounds_to_half_precision(batch: Batch):
    whole = geometry_of(small(6).bfloat16(), inner(batch, small(6)), Linf(0.02))
    assert whole.bounds is not None and whole.bounds.proof == "" and np.isnan(whole.bounds.certified).all()
    assert relu_units(two_classes().bfloat16(), batch.x) is None
    assert relu_units(small(6).double(), batch.x.double()) == 6


def test_the_relus_of_other_networks_are_not_counted(batch: Batch):
    assert relu_units(small(6), batch.x) == 6 and relu_units(two_classes(), batch.x) == 0
    assert relu_units(nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Softplus()), batch.x) is None
    assert relu_units(strange.Optimising(), batch.x) is None


def test_gamma_of_a_linear_loss_is_nothing(batch: Batch):
    """Logits so far apart that cross entropy is flat in the ball; where they are near, it bends."""
    model = two_classes()
    near = geometry_of(model, inner(batch, model), Linf(0.02)).linearity
    with torch.no_grad():
        model[1].weight *= 1e5
        model[1].bias *= 1e5
    images = inner(batch, model)
    far = geometry_of(model, images.select(model(images.x).detach()[:, 1].abs() > 1000), Linf(1e-5)).linearity
    assert near is not None and far is not None and len(far.gamma) > 2
    assert far.gamma.max() == 0 and near.gamma.min() > 1e-5
    assert (near.gamma >= near.error).all()


def test_nothing_is_measured_round_wrong_images(batch: Batch):
    model = two_classes()
    right = inner(batch, model)
    found = geometry_of(model, right._replace(labels=1 - right.labels), Linf(0.02))
    assert found.distance.tolist() == [0.0] * 8 and "no image is classified correctly" in found.notes[0]
    assert all(getattr(found, name) is None for name in PARTS)


def test_its_parts_agree_with_the_audit(batch: Batch, tmp_path: Path):
    model = strange.linear()
    found = audited(model, inner(batch, model), Linf(0.1))
    seen = found.geometry
    record.save(found, tmp_path)
    again = record.load(tmp_path)
    assert again.geometry is not None and record.to_json(again) == record.to_json(found)
    assert seen is not None and all(getattr(seen, name) is not None for name in PARTS) and not seen.notes
    assert (
        seen.by_radius is not None and seen.effort is not None and seen.planes is not None and seen.weights is not None
    )
    curve = found.finding("radius-curve").evidence
    assert seen.by_radius.standing.tolist()[1:] == curve["standing"] and seen.by_radius.images == curve["images"]
    assert seen.effort.steps.tolist() == [1, 2, 5] and seen.effort.restarts.tolist() == [1, 2]
    assert (np.diff(seen.effort.accuracy, axis=0) <= 0).all() and (np.diff(seen.effort.accuracy, axis=1) <= 0).all()
    assert seen.planes.loss.shape[1:] == (5, 5) and seen.planes.along[0, 2] == 0
    broken = found.broken_by >= 0
    assert not np.isnan(seen.distance[broken]).any() and (seen.distance[broken] <= 0.1 + 1e-6).all()
    assert not (seen.distance[found.survivors()] <= 0.1 - 1e-6).any()
    assert (seen.weights.attacked >= seen.weights.clean - 1e-6).all() and seen.weights.shares[5] == 0
    assert seen.pictures is not None and len(seen.pictures.rows) <= 4
    told = np.abs(seen.pictures.adversarial - seen.pictures.clean).max(axis=(1, 2, 3))
    assert (told <= 0.1 + 1e-6).all() and (told > 0).all()
    fell = seen.pictures.predicted_adv != seen.pictures.predicted_clean
    assert fell.tolist() == broken[seen.pictures.rows].tolist() and fell.any()
    assert found.meta["passes"] == sum(one.passes for one in found.findings) + seen.passes + _rest(model, batch)


def _rest(model: nn.Module, batch: Batch) -> int:
    """Passes of the clean images and the suite: those of an audit of one check that makes none."""
    alone = audited(model, inner(batch, model), Linf(0.1), only=["sample-size"])
    assert alone.geometry is None
    return int(alone.meta["passes"])


def test_it_is_the_same_again_and_changes_nothing(model: nn.Module, batch: Batch):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, mode = inner(batch, model.eval()), model.training
    first, second = (geometry_of(model, images, Linf(0.05)) for _ in range(2))
    for one, other in zip(arrays(first), arrays(second), strict=True):
        assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    assert (first.notes, first.passes) == (second.notes, second.passes) and model.training == mode
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("threat", [Linf(0.0), L2(0.3)], ids=["radius 0", "L2"])
@pytest.mark.parametrize("name", ["Constant", "Detached", "Undefined", "linear"])
def test_any_model_has_one_that_can_be_kept(name: str, threat: ThreatModel, batch: Batch, tmp_path: Path):
    model = getattr(strange, name)()
    found = geometry_of(model, inner(batch, model), threat)
    assert (found.linearity is None) == (name != "linear") == any("gradient" in note for note in found.notes)
    save(found, tmp_path)
    again = load(tmp_path)
    assert again is not None and again.notes == found.notes and again.passes == found.passes
    for one, other in zip(arrays(found), arrays(again), strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    json.dumps(facts(found, batch.indices.numpy()), allow_nan=False)


def test_a_black_box_gets_what_needs_no_gradient(batch: Batch):
    model = strange.linear()
    images = inner(batch, model)
    found = geometry_of(model, images, Linf(0.3), black_box=True)
    assert found.planes is not None and found.pictures is not None
    missing = ("linearity", "bounds", "by_radius", "effort", "weights")
    assert all(getattr(found, name) is None for name in missing) and len(found.rows) == 0
    assert found.notes[0].startswith("a black box has no gradients: local linearity, bounds")


def test_pictures_of_other_channels_and_models_without_weights(batch: Batch):
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bright = 10 * (x.flatten(1).mean(1) - 0.5)
            return torch.stack([bright, -bright], 1)

    found = geometry_of(Fixed(), inner(batch._replace(x=batch.x.repeat(1, 2, 1, 1)), Fixed()), Linf(0.05))
    assert found.pictures is None and found.weights is None and found.bounds is not None
    assert any("2 channels" in note for note in found.notes) and any(
        "no weights to move" in note for note in found.notes
    )


def test_bad_files(batch: Batch, tmp_path: Path):
    assert load(tmp_path) is None
    save(Geometry(np.zeros(3, np.float32), np.zeros(0, np.int64)), tmp_path)
    whole = (tmp_path / GEOMETRY).read_bytes()
    for content in (b"", whole[:60], b"\x80\x04N."):
        (tmp_path / GEOMETRY).write_bytes(content)
        with pytest.raises(BadInput, match="is not a geometry of planish, or it is cut short"):
            load(tmp_path)
    model = strange.linear()
    found = audited(model, inner(batch, model), Linf(0.1), replace(PLAN, measured=0))
    assert found.geometry is None
    with pytest.raises(BadInput, match="the geometry is of 3 images, the audit of 8"):
        replace(found, geometry=Geometry(np.zeros(3, np.float32), np.zeros(0, np.int64)))
