"""planish-suite on each model that only seems robust, and on honest ones: what was measured, and what the page says."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from planish.core.batch import Batch

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
PAGE = SCRIPTS.parent / "docs" / "results.md"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("escalation")


@pytest.fixture
def rows(script: Any) -> list[dict[str, Any]]:
    """Return what was measured on every model of the zoo."""
    found: list[dict[str, Any]] = script.rows_in(SCRIPTS / "results" / "suite" / "escalation.json")
    return found


class Detached(nn.Module):
    """The answers of a network, without a gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.detach()) + 0 * x.sum()


@pytest.fixture
def easy() -> tuple[nn.Module, Batch]:
    """Return a linear network, and images of 8x8 that a ball of 0.5 breaks all of, noise hardly."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    with torch.no_grad():
        network[1].weight.copy_(torch.randn(3, 64, generator=generator))
    x = 0.3 + 0.4 * torch.rand(8, 1, 8, 8, generator=generator)
    with torch.no_grad():
        return network, Batch(x, network(x).argmax(1))


def test_a_row_says_what_is_left_and_why_the_suite_went_on(script: Any, easy: tuple[nn.Module, Batch]) -> None:
    network, batch = easy
    best = script.Unmasked("linear", network, script.judged(network, batch, 0.3, script.Forced))
    masked = script.row_of("masked", lambda: Detached(network), batch, 0.3, best)
    honest = script.row_of("honest", lambda: network, batch, 0.3, None)
    assert masked["clean"] == honest["clean"] == "1" * 8 and masked["best"] == "0" * 8
    assert masked["same classes"] == masked["of"] == 3 * 8 and masked["bare"] == "linear"
    assert masked["long"] and any("led nowhere" in reason for reason in masked["because"])
    assert script.went_on(masked) == masked["because"][0] and script.above(masked) <= script.SLACK
    assert not honest["long"] and script.went_on(honest) == "it did not" and honest["passes"] < masked["passes"]
    refused = script.row_of("softmax", lambda: nn.Sequential(network, nn.Softmax(1)), batch, 0.3, best)
    assert script.went_on(refused) == "refused: the model returns probabilities" and "standing" not in refused
    text = script.tables([row | {"kind": "masked"} for row in (masked, refused)] + [honest | {"kind": "honest"}])
    assert "| masked | 100.0 | 0.0 | 0.0 | +0.0 [" in text and "| honest | 100.0 | 0.0 | it did not |" in text


def test_a_lent_gradient_leaves_the_answers_as_they_are(script: Any, easy: tuple[nn.Module, Batch]) -> None:
    network, batch = easy
    rounded = nn.Sequential(Detached(network))
    rounded.register_forward_hook(lambda module, inputs, logits: logits.round())
    x = batch.x.clone().requires_grad_()
    lent = script.Lent(rounded, network)
    assert torch.equal(lent(x), rounded(x))
    (found,), (honest,) = (torch.autograd.grad(model(x)[:, 0].sum(), x) for model in (lent, network))
    assert torch.equal(found, honest) and honest.abs().sum() > 0


def test_masks_of_images_survive_their_file(script: Any) -> None:
    mask = np.array([True, False, True, True])
    assert script.packed(mask) == "1011" and (script.mask_of("1011") == mask).all()


def test_the_table_on_the_results_page_is_that_of_the_raw_file(script: Any, rows: list[dict[str, Any]]) -> None:
    place = f"<!-- {script.PAGE} -->\n{script.tables(rows)}<!-- end of {script.PAGE} -->"
    assert place in PAGE.read_text(encoding="utf-8"), "python benchmarks/escalation.py --page docs/results.md"


def test_every_model_of_the_zoo_was_judged(script: Any, rows: list[dict[str, Any]]) -> None:
    assert [row["model"] for row in rows] == [*script.zoo.LIARS, *script.zoo.HONEST]
    assert set(script.UNSTEADY).isdisjoint((*script.LENT, *script.ITSELF)) and set(script.LENT).isdisjoint(
        script.ITSELF
    )
    assert {*script.UNSTEADY, *script.LENT, *script.ITSELF} < {*script.zoo.LIARS}


def test_no_honest_model_ran_a_long_stage(rows: list[dict[str, Any]]) -> None:
    honest = [row for row in rows if row["kind"] == "honest"]
    assert len(honest) >= 29 and [row["model"] for row in honest if row["long"]] == []


def test_the_models_called_masked_answer_as_their_networks_do(rows: list[dict[str, Any]]) -> None:
    """But for ties: tanh and float32 make the same number of logits that differ."""
    shared = [row for row in rows if row["kind"] == "masked" and "refused" not in row]
    differ = {row["model"]: row["of"] - row["same classes"] for row in shared if row["same classes"] < row["of"]}
    assert len(shared) >= 12 and differ == {"saturated tanh": 11}


def test_every_model_ends_at_the_best_known(script: Any, rows: list[dict[str, Any]]) -> None:
    known = [row for row in rows if "best" in row and "refused" not in row]
    away = {row["model"]: round(script.above(row) * row["images"] / 100) for row in known}
    assert len(known) >= 28 and {name: images for name, images in away.items() if images} == {}


def test_every_model_that_only_seems_robust_gives_cause_or_falls_at_once(
    script: Any, rows: list[dict[str, Any]]
) -> None:
    known = [row for row in rows if "best" in row and "refused" not in row]
    quiet = {row["model"]: round(script.above(row) * row["images"] / 100) for row in known if not row["long"]}
    assert len(known) >= 28 and quiet == dict.fromkeys(("FGSM overfitted", "abstains", "not a number off the grid"), 0)


def test_every_wrong_gradient_is_a_cause(rows: list[dict[str, Any]]) -> None:
    wrong = [row for row in rows if "gradient" in row["model"]]
    assert len(wrong) >= 9 and [row["model"] for row in wrong if not row["long"]] == []
