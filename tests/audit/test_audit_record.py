"""The record of an audit: what it derives, and that it comes back from its files."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from planish.core.errors import BadInput
from planish.records.audit import (
    DOCUMENT,
    RECORD,
    SCHEMA_VERSION,
    Audit,
    Finding,
    Verdict,
    from_json,
    load,
    save,
    to_json,
)

META = {
    "schema_version": SCHEMA_VERSION,
    "budget": "quick",
    "suite": "planish-suite",
    "checks": 2,
    "notes": [],
    "threat": {"norm": "Linf", "radius": 0.1},
}


def finding(check: str, verdict: Verdict) -> Finding:
    return Finding(check, verdict, 1.5, "%", 1.0, None, "It is so.", "", {"indices": [3], "of": None}, 12)


def made(*verdicts: Verdict) -> Audit:
    """Five images: one wrong, one broken by the suite, one by noise, two standing."""
    return Audit(
        tuple(finding(f"check-{place}", verdict) for place, verdict in enumerate(verdicts)),
        indices=np.array([3, 5, 7, 9, 11]),
        labels=np.zeros(5, np.int64),
        clean_margin=np.array([-1, -2, -1, 0, -3], np.float32),
        broken_by=np.array([-1, 0, 1, -1, -1]),
        attacks=("planish-suite/scout", "noise"),
        meta=dict(META),
    )


@pytest.mark.parametrize(
    ("verdicts", "worst"),
    [
        ((), "open"),
        (("pass", "pass"), "pass"),
        (("pass", "open"), "open"),
        (("open", "warn", "pass"), "warn"),
        (("warn", "fail", "open"), "fail"),
    ],
)
def test_the_verdict_is_the_worst_finding(verdicts: tuple[Verdict, ...], worst: str):
    assert made(*verdicts).verdict == worst


def test_the_headline_counts_what_anything_broke():
    audit = made("pass")
    assert (audit.robust_accuracy().hits, audit.clean_accuracy().hits) == (2, 4)
    assert audit.fell_to() == {"planish-suite/scout": 1, "noise": 1} and not audit.complete
    assert audit.headline().startswith("robust accuracy 40.0% [")
    said = "of 5 (Linf, radius 0.1, after the suite planish-suite and 1 image that only checks broke)"
    assert said in audit.headline()


def test_it_comes_back(tmp_path: Path):
    audit = made("warn", "open")
    save(audit, tmp_path)
    again = load(tmp_path)
    assert [asdict(one) for one in again.findings] == [asdict(one) for one in audit.findings]
    assert (again.meta, again.attacks, again.complete) == (audit.meta, audit.attacks, True)
    for name in ("indices", "labels", "clean_margin", "broken_by"):
        assert np.array_equal(getattr(again, name), getattr(audit, name))
    document = json.loads((tmp_path / DOCUMENT).read_text())
    assert document == to_json(audit) and document["verdict"] == "warn" and document["robust"]["hits"] == 2
    assert document["robust"]["norm"] == "Linf" and len(document["robust"]["interval95"]) == 2


def test_bad_files(tmp_path: Path):
    with pytest.raises(BadInput, match="make one with: planish audit"):
        load(tmp_path)
    save(made("pass"), tmp_path)
    whole = (tmp_path / RECORD).read_bytes()
    for content in (b"", whole[:80], b"\x80\x04N."):
        (tmp_path / RECORD).write_bytes(content)
        with pytest.raises(BadInput, match="is not a planish audit, or it is cut short"):
            load(tmp_path)
    np.savez(tmp_path / RECORD, x=np.zeros(3))
    with pytest.raises(BadInput, match="is not a planish audit"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": np.zeros(4, np.int64)}, "labels must be int64 of shape"),
        ({"clean_margin": np.zeros(5)}, "clean_margin must be float32"),
        ({"attacks": ("planish-suite/scout",)}, "broken by an attack that has no name"),
        ({"meta": {**META, "schema_version": 99}}, "schema version 99; planish reads 1"),
    ],
)
def test_records_that_disagree(changed: dict, message: str):
    with pytest.raises(BadInput, match=message):
        replace(made("pass"), **changed)


def test_a_strange_verdict():
    audit = made("pass")
    document = to_json(audit)
    document["findings"][0]["verdict"] = "fine"
    arrays = {name: getattr(audit, name) for name in ("indices", "labels", "clean_margin", "broken_by")}
    with pytest.raises(BadInput, match="'fine' is no verdict; known: pass, open, warn, fail"):
        from_json(document, arrays)


def test_an_unknown_finding():
    with pytest.raises(BadInput, match="no finding 'noise'; it has check-0"):
        made("pass").finding("noise")
