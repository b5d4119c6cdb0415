"""Issue 24: the appendix on standards: every clause mapped or marked, every check of use to one, nothing claimed."""

import json
import re

import numpy as np
import pytest

from planish.records.audit import Audit, Finding, to_json
from planish.records.geometry import PARTS
from planish.records.standards import DISCLAIMER, GEOMETRY, Clause, appendix, clauses, evidence
from planish.registry import listed
from planish.report.audited import standards_rows

DOCUMENTS = ("ISO/IEC TR 24029-1", "ISO/IEC 24029-2", "ISO/IEC DIS 24029-3", "NIST AI 100-2", "IEEE 3129", "Article 15")


@pytest.fixture
def audit() -> Audit:
    findings = (
        Finding("gradient", "fail", 0.25, "", None, 0.95, "It is off.", "Look."),
        Finding("noise", "warn", 2.5, "%", 0, 10, "Noise breaks some.", "Mind."),
        Finding("transfer", "open", None, "%", None, 1, "No surrogate.", "Give one."),
    )
    whole = np.arange(4)
    margin = np.array([-1, -1, -1, 1], np.float32)
    meta = {"schema_version": 1, "suite": "planish-suite", "checks": 3, "model": {"name": "net"}}
    meta |= {"threat": {"norm": "Linf", "radius": 0.1}, "notes": []}
    return Audit(findings, whole, whole, margin, np.array([0, -1, -1, -1]), ("planish-suite/scout",), meta)


@pytest.mark.parametrize("clause", clauses(), ids=lambda one: f"{one.document}, {one.topic}")
def test_every_clause_is_mapped_or_marked(clause: Clause):
    """By evidence of an audit, perhaps with another command beside it, or by a reason why there is none."""
    assert bool(clause.shown or clause.elsewhere) != bool(clause.missing)
    assert clause.asks.endswith(".") and clause.topic and len(clause.asks) < 160
    known = {"robust", "clean", *listed("checks"), f"{GEOMETRY}nearest", *(f"{GEOMETRY}{part}" for part in PARTS)}
    assert {*clause.shown} <= known and len({*clause.shown}) == len(clause.shown)
    assert re.fullmatch(r"|\d+(\.\d+)*(\(\d+\))?", clause.clause)


def test_every_document_is_there_and_every_check_serves_one():
    named = [one.document for one in clauses()]
    assert all(any(word in name for name in named) for word in DOCUMENTS) and len({*named}) == len(DOCUMENTS)
    assert {*listed("checks")} <= {source for one in clauses() for source in one.shown}


def test_article_15_is_whole():
    own = {one.clause for one in clauses() if "Article 15" in one.document}
    assert own == {f"15({number})" for number in range(1, 6)}


def test_what_an_audit_has(audit: Audit):
    assert (evidence(audit, "gradient").verdict, evidence(audit, "gradient").number) == ("fail", 0.25)
    assert (
        evidence(audit, "noise").words == "noise: warn (2.5%)" and evidence(audit, "transfer").words == "transfer: open"
    )
    assert evidence(audit, "robust").number == 0.5 and "50.0% [15.0, 85.0] of 4" in evidence(audit, "robust").words
    assert evidence(audit, "planted").words == "planted: not made"
    assert evidence(audit, "geometry/nearest").words == "nearest misclassified image: not measured"


def test_the_document_and_the_table(audit: Audit):
    standards = to_json(audit)["standards"]
    assert json.loads(json.dumps(standards)) == standards and standards["disclaimer"] == DISCLAIMER
    assert len(standards["clauses"]) == len(clauses()) > 30
    (evasion,) = (one for one in standards["clauses"] if one["topic"].startswith("Adversarial examples"))
    assert {"source": "gradient", "words": "gradient: fail (0.25)", "verdict": "fail", "number": 0.25} in evasion[
        "evidence"
    ]
    (poison,) = (one for one in standards["clauses"] if one["clause"] == "2.3")
    assert not poison["evidence"] and poison["not_covered"]
    table = standards_rows(audit)
    assert table.caption == DISCLAIMER and "no conformity" in DISCLAIMER.replace("\n", " ")
    texts = {row[1]: row[3] for row in table.rows}
    assert texts["2.3 Poisoning"].startswith("not covered by planish: ")
    assert all(row[3] for row in table.rows) and len(table.rows) == len(appendix(audit))
