"""The tables of docs/audit.md are the code's."""

import re
from pathlib import Path

import pytest

from planish.audit.auditor import checks
from planish.audit.check import FEWEST, Check
from planish.audit.evidence import LEVELS, PLANS
from planish.registry import listed

PAGE = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")


def limit(check: Check, at: float | None) -> str:
    sign = ">" if check.worse == "above" else "<"
    return "none" if at is None else f"{sign} {at:g} {check.unit}".rstrip()


@pytest.mark.parametrize("name", checks())
def test_every_check_has_its_row(name: str):
    check = checks()[name]
    rows = ", ".join(map(str, check.rows))
    limits = [limit(check, at) for at in (check.warn_at, check.fail_at)]
    cells = [name, rows, check.level, listed("checks")[name][:-1], *limits]
    assert "| `{}` | {} |".format(cells[0], " | ".join(cells[1:])) in PAGE


def test_no_row_is_of_a_check_that_is_not_there():
    assert re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE) == list(checks())


def test_the_checks_are_those_of_the_list_of_warning_signs():
    assert sorted(row for check in checks().values() for row in check.rows) == sorted([*range(1, 39), 19, 24])


@pytest.mark.parametrize("what", ["images", "sample", "setup", "steps", "noise", "queries", "survivors"])
def test_budgets(what: str):
    numbers = (getattr(PLANS[level], what) for level in LEVELS)
    assert " | ".join("all" if number is None else f"{number:,}" for number in numbers) in PAGE


def test_the_fewest_images_are_said():
    assert f"never with fewer than {FEWEST}; with fewer" in PAGE
