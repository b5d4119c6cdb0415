"""A model is what it says twice, in float64 and under attack; its gradients are held against it along the way."""

import cProfile
import threading
from collections.abc import Callable
from statistics import median

import masks
import pytest
import torch
import zoo
from torch import Tensor, nn

from planish.audit.auditor import audit
from planish.core.batch import Batch
from planish.core.threat import L2, Linf, ThreatModel
from planish.records.audit import Finding

CLASSES, THREAT = 4, Linf(0.1)


def network(classes: int = CLASSES, scale: float = 1.0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, classes)).eval()
    with torch.no_grad():
        found[-1].weight *= scale
        found[-1].bias -= found(torch.rand(200, 1, 6, 6, generator=torch.Generator().manual_seed(2))).mean(0)
    return found


def images(model: nn.Module, count: int = 64) -> Batch:
    """Return images, a few pixels of each at the box, labelled as the model sees them."""
    x = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    x = torch.where(x < 0.2, 0.0, torch.where(x > 0.8, 1.0, x))
    with torch.no_grad():
        return Batch(x, model(x).argmax(1), torch.arange(count))


def found(
    check: str, model: nn.Module, batch: Batch | None = None, threat: ThreatModel = THREAT, classes: int = CLASSES
) -> Finding:
    batch = images(network()) if batch is None else batch
    *_, last = audit(model, batch, threat, zoo.PLAN, suite=zoo.suite(classes), only=(check,))
    return last.finding(check)


def test_a_gradient_is_probed_inside_the_box():
    """Beyond the box the model is another, and probes there would say nothing of it in the ball."""
    beyond = masks.Before(network(), lambda x: torch.where((x < 0) | (x > 1), 1 - x, x))
    assert found("gradient", beyond).verdict == "pass"


def test_a_gradient_turned_away_from_clean_images_is_seen_where_attacks_pass_and_stop():
    batch = images(network())

    def turned(gradient: Tensor, x: Tensor) -> Tensor:
        """Turn gradients half round but at the clean images themselves."""
        clean = (x[:, None] == batch.x.to(x)).flatten(2).all(2).any(1).view(-1, 1, 1, 1)
        return torch.where(clean, gradient, -gradient)

    finding = found("gradient", masks.Before(network(), masks.altered(turned)), batch)
    told = finding.evidence["agreements"]
    assert finding.verdict == "fail" and min(told["as they are"]) > 0.95
    assert median(told["half-way"]) < -0.95 and median(told["where attacks stop"]) < -0.95


@pytest.mark.parametrize(("degrees", "verdict"), [(0.0, "pass"), (10.0, "pass"), (25.0, "fail"), (40.0, "fail")])
@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)], ids=["Linf", "L2"])
def test_a_gradient_may_not_be_turned_by_much(degrees: float, verdict: str, threat: ThreatModel):
    way = masks.altered(lambda gradient, x: masks.turned(gradient, x, degrees))
    assert found("gradient", masks.Before(network(), way), threat=threat).verdict == verdict


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_coarse_dtype_is_no_wrong_gradient(dtype: torch.dtype):
    assert found("gradient", network().to(dtype)).verdict in ("pass", "open")
    assert found("smooth-input", network().to(dtype)).verdict == "open"
    assert found("precision", network().to(dtype)).verdict == "open"


@pytest.mark.parametrize("calls", [1, 2, 3, 5])
def test_a_model_that_counts_its_calls_is_told_from_a_fresh_copy(calls: int):
    model, batch = network(), images(network())
    other = network()
    with torch.no_grad():
        other[-1].weight.copy_(-other[-1].weight)
    finding = found("memory", masks.Counting(model, other, calls), batch._replace(labels=model(batch.x).argmax(1)))
    assert finding.verdict == "fail" and finding.evidence["hits"] > 10


def test_a_model_that_remembers_nothing_passes_and_nothing_of_it_changes():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    finding = found("memory", model)
    assert finding.verdict == "pass" and finding.statistic == 0.0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_cannot_be_copied_is_not_asked_anew():
    model = network()
    model.lock = threading.Lock()
    for check in ("memory", "precision"):
        finding = found(check, model)
        assert finding.verdict == "open" and finding.meaning == "The model cannot be copied."


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda logits: logits, "pass"),
        (masks.underflowing, "fail"),
        (lambda logits: logits * 1e20 * 1e18 * 1e-38, "pass"),
        (lambda logits: (logits + 1e7) - 1e7, "fail"),
    ],
    ids=["as it is", "underflow", "large and back", "absorbed"],
)
def test_numbers_that_float32_loses_are_seen_in_float64(change: Callable[[Tensor], Tensor], verdict: str):
    model = masks.After(network(), change)
    assert found("precision", model, images(model)).verdict == verdict


def test_a_random_model_s_rounding_cannot_be_told():
    model = masks.Before(network(), lambda x: x + 0.5 * torch.randn_like(x))
    finding = found("precision", model)
    assert finding.verdict == "open" and "deterministic" in finding.advice


def test_a_class_that_only_attacks_reach_is_named():
    plain = network()

    class Guarded(masks.Wrapped):
        def forward(self, x: Tensor) -> Tensor:
            away = (x[:, None] - batch.x.to(x)).abs().flatten(2).amax(2).amin(1, keepdim=True)
            return torch.cat([self.network(x), 100 * (away - 0.02)], 1)

    batch = images(plain)
    finding = found("abstention", Guarded(plain), batch, classes=CLASSES + 1)
    assert finding.verdict == "warn" and finding.evidence["target"] == CLASSES and finding.statistic > 50
    assert found("abstention", plain, batch).verdict == "pass"


def test_classes_that_the_images_lack_are_no_abstention():
    model = network(10, 4.0)
    batch = images(model)
    few = batch.select((batch.labels == batch.labels.mode().values).nonzero().squeeze(1))
    finding = found("abstention", model, few, classes=10)
    assert finding.verdict == "open" and "of 10 classes" in finding.meaning


@pytest.mark.parametrize("constant", [0, 2])
def test_a_model_that_always_says_the_same_is_weak_and_no_liar(constant: int):
    """Its few right images stay right in any ball, and on any scale of the input: that is no sign of a weak attack."""
    model = network(scale=1e-5)
    with torch.no_grad():
        model[-1].bias[constant] = 1.0
    batch = images(network())
    for check in ("unbounded", "input-scale"):
        assert found(check, model, batch).verdict in ("pass", "open"), check


def test_a_gradient_that_leads_nowhere_is_seen_in_the_ball_of_grey():
    model = masks.Before(network(), masks.altered(lambda gradient, x: -gradient))
    assert found("unbounded", model).verdict == "fail"


@pytest.mark.parametrize("classes", [2, 4])
def test_a_sure_network_s_gradients_are_no_chance(classes: int):
    """Cross entropy below the rounding of float32 has a gradient of no direction, which says nothing of the loss."""
    model = network(classes, 2000.0)
    batch = images(model)
    with torch.no_grad():
        sure = nn.functional.cross_entropy(model(batch.x), batch.labels, reduction="none") == 0
    assert sure.float().mean() > 0.5
    finding = found("gradient-cosine", model, batch, Linf(0.001), classes)
    assert finding.verdict in ("pass", "open")


def test_a_layer_without_gradients_is_no_plain_forward():
    class Frozen(masks.Wrapped):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                first = self.network[:2](x)
            return self.network[2:](first + 0 * x.sum())

    finding = found("plain-forward", Frozen(network()))
    assert finding.verdict == "fail" and finding.evidence["called"] == ["a layer without gradients"]
    assert found("plain-forward", network()).verdict == "pass"


def test_an_audit_can_be_profiled():
    """Its look at one forward once ended in a TypeError under cProfile, or took the profiler away."""
    with cProfile.Profile() as profile:
        assert found("plain-forward", network()).verdict == "pass"
        sorted([2, 1])
    assert any("sorted" in str(entry.code) for entry in profile.getstats())
