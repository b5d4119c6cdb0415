"""Records that an earlier planish wrote still open, with the same numbers; old/ was made by commit 97b72b0.

A network of two layers on random images of 4 x 4 pixels: six of them, 24 in the audit.
"""

import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from torch import nn

from planish.attacks.gradient import FGSM, PGD
from planish.core.batch import Batch
from planish.core.threat import Linf
from planish.evaluation.evaluate import evaluate_steps
from planish.records import audit, distances, evaluation
from planish.records.evaluation import to_json
from planish.runs.audit import draw

OLD = Path(__file__).parent / "old"


def test_an_evaluation():
    record = evaluation.load(OLD / "evaluation.npz")
    assert record.names == (
        "fgsm",
        "pgd-5-2",
        *(f"planish-suite/{name}" for name in ("scout", "targets", "focus", "check")),
    )
    assert (record.norm, record.radius, record.robust_accuracy().hits, record.clean_accuracy().hits) == (
        "Linf",
        0.06,
        1,
        5,
    )
    fgsm_column = record.column("fgsm")
    assert fgsm_column.margin[[0, 4]] == pytest.approx([0.6448008418, -0.6517933011]) and np.isnan(
        fgsm_column.margin[3]
    )
    assert fgsm_column.component.tolist() == [0, 0, 0, -1, 0, 0], "an array that was called leaf/fgsm"
    assert to_json(record)["attacks"][1]["configuration"]["attack"].startswith("2 x Untargeted(rule=Steepest(")


def test_distances():
    record = distances.load(OLD / "distances.npz")
    assert record.names == ("ddn-20", "deepfool") and record.meta["norm"] == "L2"
    assert record.of().tolist() == pytest.approx(
        [0.0895738453, 0.2006095052, 0.1950133890, 0, 0.3345339596, 0.1435053647]
    )


def test_numbers():
    record = distances.load_numbers(OLD / "numbers.npz")
    assert sorted(record.numbers) == ["by_curvature", "by_lipschitz", "gradient", "hessian"]
    assert record.numbers["hessian"][:2] == pytest.approx([4.3464617729, 4.8456559181]) and record.meta["places"] == 1


def test_adversarial_images():
    x_adv, indices = evaluation.load_adversarials(OLD / "adversarial.npz")
    assert x_adv.shape == (6, 1, 4, 4) and indices.tolist() == [5, 7, 9, 11, 13, 15]


def test_an_audit_with_its_portrait(tmp_path: Path):
    """It opens, and its page can be drawn again; the geometry was called a portrait."""
    record = audit.load(OLD / "audit")
    assert (record.verdict, record.complete, record.robust_accuracy().hits) == ("fail", True, 4)
    assert record.attacks == ("planish-suite/scout", "planish-suite/targets") and record.broken_by[
        [0, 3, 20]
    ].tolist() == [
        0,
        -1,
        1,
    ]
    assert record.finding("radius-curve").evidence["standing"] == [18, 15, 10, 1, 0, 0]
    assert record.geometry is not None and record.geometry.rows.tolist() == [2, 4, 6, 11, 17, 20]
    assert record.geometry.linearity is not None and record.geometry.linearity.gamma[0] == pytest.approx(0.13826579)
    kept = json.loads((OLD / "audit" / "audit.json").read_text().replace("planish/", "planish-suite/"))
    kept["meta"]["suite"], kept["headline"] = (
        "planish-suite",
        kept["headline"].replace("suite planish", "suite planish-suite"),
    )
    written = audit.to_json(record)
    assert written.pop("standards")["clauses"]  # which came later
    assert written.pop("geometry") == kept.pop("portrait") and written == kept
    page = draw(Path(copytree(OLD / "audit", tmp_path / "audit")))
    assert (
        "16.7% [6.7, 35.9]" in (page.parent / "audit.md").read_text()
        and "## Geometry" in (page.parent / "audit.md").read_text()
    )


def test_an_old_evaluation_is_gone_on_with():
    """Its attacks are text of classes that have other names by now."""
    record = evaluation.load(OLD / "evaluation.npz")
    assert isinstance(record.column("pgd-5-2").meta["attack"], str)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    images = Batch(torch.rand(6, 1, 4, 4), torch.from_numpy(record.labels), torch.from_numpy(record.indices))
    fresh = next(evaluate_steps(network, images, threat=Linf(0.06), attacks={})).evaluation
    earlier = replace(record, meta={**record.meta, **{key: fresh.meta[key] for key in ("model", "data")}})
    attacks = {"fgsm": FGSM(), "pgd-5-2": PGD(5, 2), "pgd-3": PGD(3)}
    *_, last = evaluate_steps(network, images, threat=Linf(0.06), attacks=attacks, earlier=earlier)
    assert last.evaluation.names == (*record.names, "pgd-3")
