"""Issue 20, item 1: the audit judges a network that comes in training mode in evaluation mode, and warns."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zoo
from torch import nn

import planish
from planish.audit.auditor import audit
from planish.audit.evidence import PLANS
from planish.audit.geometry import relu_units
from planish.core.threat import Linf
from planish.records.audit import Finding
from planish.runs.judge import load_model

NETWORK = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10)
    return nn.Sequential(*layers)
"""


def mode_of(model: nn.Module) -> Finding:
    *_, last = audit(model, zoo.images(40), Linf(0.1), zoo.PLAN, suite=zoo.suite(), only=("evaluation-mode",))
    return last.finding("evaluation-mode")


def test_issue_20_a_function_that_returns_a_network_in_training_mode_is_warned_of(tmp_path: Path):
    (tmp_path / "own.py").write_text(NETWORK)
    found = mode_of(load_model(f"{tmp_path / 'own.py'}:build").model)
    assert found.verdict == "warn" and found.evidence["changed_by_mode"] > 0.01
    assert "judged in evaluation mode" in found.meaning and ".eval()" in found.advice
    assert mode_of(load_model(f"{tmp_path / 'own.py'}:build").model.eval()).verdict == "pass"


def test_issue_20_evaluate_and_the_audit_report_one_accuracy_whatever_the_mode():
    images, counts = zoo.images(40), []
    for model in (zoo.in_training_mode(), zoo.in_training_mode().eval()):
        judged = planish.evaluate(model, images, None, "Linf:0.1", "fgsm")
        *_, last = audit(model, images, Linf(0.1), zoo.PLAN, suite=zoo.suite(), only=("evaluation-mode",))
        counts += [judged.clean_accuracy().hits, last.clean_accuracy().hits]
    assert len({*counts}) == 1


@pytest.mark.parametrize("make", [zoo.without_averages, lambda: zoo.Back(zoo.trained("standard"))])
def test_it_fails_where_evaluation_mode_does_not_help(make):
    found = mode_of(make().eval())
    assert found.verdict == "fail" and "no train() in a forward" in found.advice


def test_a_flag_that_changes_nothing_is_no_cause_for_a_warning():
    torch.manual_seed(0)
    assert mode_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))).verdict == "pass"


def test_issue_20_a_whole_audit_asks_in_evaluation_mode_alone(tmp_path: Path):
    """Batch norm in training mode cannot take one image, and one pass in it would move the running averages."""
    (tmp_path / "own.py").write_text(NETWORK)
    model = load_model(f"{tmp_path / 'own.py'}:build").model
    plan = replace(
        PLANS["thorough"],
        images=12,
        setup=8,
        sample=8,
        steps=3,
        noise=2,
        queries=5,
        survivors=2,
        planted=2,
        curve_steps=2,
        walked=1,
        walk=20,
        long=False,
        measured=3,
        pictured=1,
        points=3,
        restarts=1,
        moved=2,
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    *_, last = audit(model, zoo.images(12), Linf(0.1), plan, suite=zoo.suite())
    assert last.complete and last.geometry is not None and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert last.finding("evaluation-mode").verdict == "warn"


def test_relus_of_a_network_in_training_mode_are_counted(tmp_path: Path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).train()
    assert relu_units(network, torch.rand(1, 1, 8, 8)) == 8 and network.training
