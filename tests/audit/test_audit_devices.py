"""A whole audit, its geometry included, on a device that is not the CPU: the same findings."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from far import elsewhere, sent, sent_model
from sketch import sketches
from test_audit_contracts import SUITE, TINY, images
from torch import nn

from planish.attacks.transfer import Surrogate
from planish.audit.auditor import audit
from planish.audit.measures.certificates import linear_distance
from planish.audit.measures.lipschitz import proven_lipschitz
from planish.audit.measures.smoothing import smoothed_radius
from planish.core.batch import Batch
from planish.core.threat import Linf
from planish.records.audit import Audit
from planish.search.ascent import LOOK, LOOK_ACCELERATED

PLAN = replace(TINY, setup=3, sample=4, measured=3, pictured=1, points=3, restarts=2, moved=2, walk=3)


def audited(model: nn.Module, batch: Batch, lender: nn.Module) -> Audit:
    surrogates = (Surrogate("sketch", "0", lender),)
    *_, last = audit(model, batch, Linf(0.1), PLAN, suite=SUITE, surrogates=surrogates)
    return last


def test_an_audit_stays_on_its_device(batch: Batch, model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(LOOK, "cpu", LOOK_ACCELERATED)
    model.eval()
    few, lender = images(batch, model).select(slice(0, 4)), sketches(4)[0].model
    with elsewhere():
        found = audited(sent_model(model), sent(few), sent_model(lender))
    expected = audited(model, few, lender)
    for one, other in zip(found.findings, expected.findings, strict=True):
        assert (one.check, one.verdict, one.passes) == (other.check, other.verdict, other.passes)
        if one.statistic is not None or other.statistic is not None:
            assert one.statistic == pytest.approx(other.statistic, rel=1e-3, abs=1e-6)
    assert (found.broken_by == expected.broken_by).all()
    assert found.geometry is not None and expected.geometry is not None
    assert found.geometry.notes == expected.geometry.notes
    for part in fields(found.geometry):
        one, other = getattr(found.geometry, part.name), getattr(expected.geometry, part.name)
        assert (one is None) == (other is None), part.name
        if isinstance(one, np.ndarray):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_certificates_come_back_to_the_device(batch: Batch, linear: nn.Module):
    few = images(batch, linear).select(slice(0, 3))
    measures = (
        lambda model, batch: linear_distance(model, batch, Linf(0.1)),
        lambda model, batch: proven_lipschitz(model, batch, Linf(0.1)),
    )
    for measure in measures:
        with elsewhere():
            found = measure(sent_model(linear), sent(few))
        for one, other in zip(found, measure(linear, few), strict=True):
            torch.testing.assert_close(one.near, other)


def test_smoothing_stays_on_its_device(batch: Batch, linear: nn.Module):
    few = batch.select(slice(0, 2))
    with elsewhere():
        found = smoothed_radius(sent_model(linear), sent(few), 0.1, selection=4, samples=8)
    for one, other in zip(found, smoothed_radius(linear, few, 0.1, selection=4, samples=8), strict=True):
        assert torch.equal(one.near, other)


def test_the_default_device_does_not_matter_to_an_audit(batch: Batch, model: nn.Module):
    model.eval()
    few, lender = images(batch, model).select(slice(0, 3)), sketches(4)[0].model
    expected = audited(model, few, lender)
    with torch.device("meta"):
        found = audited(model, few, lender)
    assert repr(found.findings) == repr(expected.findings)
