"""Every liar is caught by the check that is there for it, and no honest model is accused."""

import runpy
from pathlib import Path

import pytest
import torch
import zoo

from planish.audit.auditor import audit, checks
from planish.core.threat import Linf
from planish.records.audit import Audit

pytest.importorskip("sklearn", reason="the digits need it")
TABLE = Path(__file__).parents[2] / "docs" / "audit-zoo.md"


def audited(model: torch.nn.Module, radius: float, count: int, only: tuple[str, ...] = ()) -> Audit:
    *_, last = audit(model, zoo.images(count), Linf(radius), zoo.PLAN, suite=zoo.SUITE, only=only)
    return last


@pytest.mark.parametrize("name", sorted(zoo.LIARS))
def test_a_liar_is_caught(name: str):
    liar = zoo.LIARS[name]
    found = audited(liar.make(), liar.radius, liar.images, (*liar.fails, *liar.warns))
    assert {check: found.finding(check).verdict for check in liar.fails} == dict.fromkeys(liar.fails, "fail")
    assert {check: found.finding(check).verdict for check in liar.warns} == dict.fromkeys(liar.warns, "warn")
    assert found.verdict == "fail" and all(finding.advice for finding in found.findings)


@pytest.mark.parametrize("name", sorted(zoo.HONEST))
def test_an_honest_model_is_not_accused(name: str):
    found = audited(zoo.trained(name), zoo.RADIUS, zoo.IMAGES)
    assert [finding.check for finding in found.findings if finding.verdict == "fail"] == []
    assert sum(finding.verdict == "warn" for finding in found.findings) <= 2
    assert sum(finding.verdict == "pass" for finding in found.findings) >= 20


def test_what_only_a_check_breaks_counts_in_the_headline():
    """Rounding hides the gradient from the suite, but not from noise and random search."""
    found = audited(zoo.Quantised(zoo.trained("pgd-7")), zoo.RADIUS, zoo.IMAGES, ("noise", "random-search"))
    extra = sum(len(finding.evidence["indices"]) for finding in found.findings)
    fell = found.fell_to()
    assert extra == sum(count for name, count in fell.items() if not name.startswith("planish/")) > 0
    assert f"{extra} images that only checks broke" in found.headline()
    assert found.robust_accuracy().hits == found.clean_accuracy().hits - sum(fell.values())


def test_the_script_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    script = runpy.run_path(str(TABLE.parents[1] / "benchmarks" / "zoo.py"))
    script["main"](["--only", "softmax output", "--out", str(tmp_path / "zoo.md")])
    text = (tmp_path / "zoo.md").read_text(encoding="utf-8")
    assert "| check | softmax output |" in text and "| `logits` | **fail** |" in text
    assert all(f"| `{name}` |" in text for name in checks()) and text in capsys.readouterr().out


def test_the_committed_table_has_every_model_and_check():
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    header = next(line for line in lines if line.startswith("| check |"))
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["check", *zoo.HONEST, *zoo.LIARS]
    assert [line.split("`")[1] for line in lines if line.startswith("| `")] == list(checks())
