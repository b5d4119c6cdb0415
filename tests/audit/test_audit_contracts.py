"""What every check promises: whatever the model, a finding; the same again; nothing about the model changes."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import strange
import torch
from sketch import sketches
from torch import Tensor, nn

from planish.attacks.ascents import Untargeted
from planish.attacks.random_search import Noise
from planish.attacks.suites import Fixed, Stage
from planish.audit.auditor import audit, checks
from planish.audit.evidence import Plan
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import margin
from planish.core.threat import L2, Linf, ThreatModel
from planish.records.audit import SEVERITY, Audit
from planish.registry import listed
from planish.search.step_rules import Steepest

TINY = Plan(
    "thorough",
    images=None,
    setup=6,
    sample=8,
    steps=3,
    noise=2,
    queries=5,
    survivors=4,
    curve_steps=2,
    planted=2,
    walked=2,
    walk=5,
)
SUITE = Fixed((Stage("first", Untargeted(Steepest(0.5), 3, margin)), Stage("noise", Noise(2))))


def audited(model: nn.Module, batch: Batch, threat: ThreatModel | None = None, **how: object) -> Audit:
    *_, last = audit(model, batch, threat or Linf(0.1), TINY, suite=SUITE, **how)  # type: ignore[arg-type]
    assert last.complete and [finding.check for finding in last.findings] == list(checks())
    return last


def same(first: Audit, second: Audit) -> bool:
    arrays = all(
        (getattr(first, name) == getattr(second, name)).all() for name in ("clean_margin", "broken_by", "indices")
    )
    return arrays and repr(first.findings) == repr(second.findings) and first.attacks == second.attacks


def images(batch: Batch, model: nn.Module) -> Batch:
    """Return the images with the model's own answers as labels, so that all are correct."""
    with torch.no_grad():
        return batch._replace(labels=model(batch.x).argmax(1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "constant": strange.Constant,
    "detached": strange.Detached,
    "undefined": strange.Undefined,
    "two classes": lambda: strange.linear(2),
    "linear": strange.linear,
}


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5), Linf(0.0)], ids=["Linf", "L2", "radius 0"])
@pytest.mark.parametrize("name", MODELS)
def test_every_check_has_a_finding_that_can_be_written(name: str, threat: ThreatModel, batch: Batch):
    model = MODELS[name]()
    found = audited(model, images(batch, model), threat, surrogates=sketches(model(batch.x).shape[1]))
    for finding in found.findings:
        assert finding.verdict in SEVERITY and finding.meaning.endswith(".") and finding.passes >= 0
        assert (finding.statistic is None) == (finding.verdict == "open")
        assert (finding.advice == "") == (finding.verdict == "pass")
        json.dumps(finding.evidence, allow_nan=False)


@pytest.mark.parametrize("name", MODELS)
def test_one_image_is_enough_to_answer_and_too_few_to_pass_a_share(name: str, batch: Batch):
    model = MODELS[name]()
    found = audited(model, images(batch, model).select(slice(0, 1)))
    for finding in found.findings:
        rate = finding.unit == "%" and (finding.warn_at, finding.fail_at) != (None, None)
        assert not (rate and finding.verdict == "pass") or finding.check == "single-draw", finding.check


def test_nothing_is_correct(batch: Batch):
    model = strange.linear()
    with torch.no_grad():
        wrong = batch._replace(labels=(model(batch.x).argmax(1) + 1) % 4)
    found = audited(model, wrong)
    assert found.robust_accuracy().hits == 0 and found.finding("one-step").verdict == "open"


@pytest.mark.parametrize("name", ["linear", "random", "training"])
def test_it_is_the_same_again_and_leaves_all_as_it_was(name: str, batch: Batch, model: nn.Module):
    judged = {"linear": strange.linear(), "random": nn.Sequential(nn.Dropout(0.4), model), "training": model}[name]
    weights, modes = deepcopy(judged.state_dict()), [module.training for module in judged.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = audited(judged, batch), audited(judged, batch)
    assert same(first, second) and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[key]) for key, value in judged.state_dict().items())
    assert [module.training for module in judged.modules()] == modes
    assert all(parameter.requires_grad and parameter.grad is None for parameter in judged.parameters())
    assert not any(module._forward_pre_hooks for module in judged.modules())


def test_a_random_model_is_the_same_again(batch: Batch):
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return strange.linear()(x + torch.rand_like(x))

    first, second = audited(Random(), batch), audited(Random(), batch)
    assert same(first, second) and first.finding("deterministic").verdict == "fail"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch.select(slice(0, 0)), "images must be"),
        (lambda batch: batch._replace(x=batch.x + 2), "pixels lie in"),
        (lambda batch: batch._replace(labels=batch.labels + 9), "labels lie in 9..12"),
    ],
)
def test_bad_input(change: Callable[[Batch], Batch], message: str, batch: Batch):
    with pytest.raises(BadInput, match=message):
        next(audit(strange.linear(), change(batch), Linf(0.1), TINY))


def test_a_model_that_raises_is_bad_input(batch: Batch):
    with pytest.raises(BadInput, match="the model raises RuntimeError on images"):
        next(audit(nn.Linear(3, 4), batch, Linf(0.1), TINY))


def test_a_smaller_budget_leaves_checks_open(batch: Batch):
    model = strange.linear()
    *_, found = audit(model, images(batch, model), Linf(0.1), replace(TINY, level="quick"), suite=SUITE)
    beyond = {name for name, check in checks().items() if check.level != "quick"}
    assert beyond and all("--budget" in found.finding(name).advice for name in beyond)


def test_a_black_box_is_asked_for_no_gradient(batch: Batch):
    model = strange.Detached()
    *_, found = audit(model, images(batch, model), Linf(0.1), replace(TINY, level="quick"), black_box=True)
    without = {name for name, check in checks().items() if check.needs != "logits" and check.level == "quick"}
    assert all(found.finding(name).meaning.startswith("A black box has no gradients") for name in without)
    assert found.finding("noise").statistic is not None or found.finding("noise").verdict == "open"


def test_descriptions():
    assert listed("checks").keys() == checks().keys()
    for name, line in listed("checks").items():
        assert line.endswith(".") and len(line) < 120, name
