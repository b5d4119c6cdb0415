"""CR Attack as a peer, the models that it meets, and the table of what all suites left of them."""

import importlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.modes import Counted
from planish.core.threat import L2, Linf, ThreatModel
from planish.runs.config import experiment_from
from planish.runs.train import train_into

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
SIDE = 2


class Linear(nn.Module):
    """Logits that are linear in the pixels: what an attack can reach is known."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias

    def breakable(self, batch: Batch, threat: ThreatModel) -> Tensor:
        """Return which images the ball holds an adversarial image of; no image may be near the box."""
        logits, own = self(batch.x).detach(), self.weight.detach()
        apart = (own - own[batch.labels][:, None]).unflatten(2, (3, SIDE, SIDE))
        reach = torch.stack([threat.radius * threat.dual_norm(rows) for rows in apart])
        best = logits - logits.gather(1, batch.labels[:, None]) + reach
        return best.scatter(1, batch.labels[:, None], -torch.inf).amax(1) > 0


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """script(name): a module of benchmarks."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


@pytest.mark.parametrize("threat", [Linf(0.02), L2(0.06)])
def test_cr_attack_breaks_what_can_be_broken_of_a_linear_model(script: Any, threat: ThreatModel) -> None:
    torch.manual_seed(0)
    model = Linear(torch.randn(10, 3 * SIDE**2), torch.randn(10))
    x = 0.3 + 0.4 * torch.rand(50, 3, SIDE, SIDE)
    batch = Batch(x, model(x).argmax(1))
    x_adv = script("cr_attack").cr_attack(model.eval(), batch, threat)
    fooled, breakable = model(x_adv).argmax(1) != batch.labels, model.breakable(batch, threat)
    assert threat.feasible(x_adv, x).all() and 10 < breakable.sum() < 40
    assert not (fooled & ~breakable).any() and (breakable & ~fooled).sum() <= 1


def test_cr_attack_spends_what_its_code_does_where_nothing_comes_near(script: Any) -> None:
    """11 forwards rank the classes; 31 forwards and 20 backwards go to each of three: half of the way is seen twice."""
    weight = 0.001 * torch.randn(10, 3 * SIDE**2, generator=torch.Generator().manual_seed(0))
    counted = Counted(Linear(weight, 10 * torch.eye(10)[0])).eval()
    batch = Batch(torch.full((4, 3, SIDE, SIDE), 0.5), torch.zeros(4, dtype=torch.int64))
    script("cr_attack").cr_attack(counted, batch, Linf(0.1))
    assert counted.forwards == 4 * (11 + 1 + 3 * (1 + 31)) and counted.backwards == 4 * (10 + 3 * 20)


def test_a_hundred_classes_are_ten_of_each_in_ten_ways(script: Any) -> None:
    x = torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    changed, labels = script("hundred").hundredfold(x, torch.arange(20) % 7)
    assert changed.dtype == torch.uint8 and labels.tolist()[:12] == [10 * (n % 7) + n % 10 for n in range(12)]
    assert torch.equal(changed[10], x[10]) and torch.equal(changed[4], 255 - x[4])
    assert torch.equal(changed[12], x[12].flip(1, 2)) and not changed[16, 1:].any() and changed[16, 0].any()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of two epochs on a few digits."""
    folder = tmp_path_factory.mktemp("runs") / "pgd-7"
    tree = {"data": {"limit": 200}, "settings": {"epochs": 2, "batch_size": 16}}
    list(train_into(experiment_from({**tree, "model": {"name": "small-cnn", "width": 4}}), folder))
    return folder


def test_hidden_networks_answer_as_themselves_with_another_gradient(
    script: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNS", str(run.parent))
    hidden = script("hidden")
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    network = hidden.network().eval()
    (honest,) = torch.autograd.grad(network(x).square().sum(), x)
    for model in (hidden.confident(), hidden.off_the_grid()):
        assert torch.equal(model(x), network(x))
        (found,) = torch.autograd.grad(model(x).square().sum(), x)
        assert not torch.allclose(found, honest)


def test_the_table_of_the_proof(
    script: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ranks, bounds and gaps are those of the arrays; a model that only seems robust has a table of its own."""
    suite, proof = script("suite"), script("proof")
    monkeypatch.setattr(proof, "DEEP", "planish-deep-1")
    monkeypatch.setitem(suite.PEERS, proof.PUBLIC, ("planish", suite.own("pgd-3-1")))
    options = ["--data", "digits", "--images", "8", "--radius", "0.05", "--survivors-only", "--nearest", "3", "--late"]
    options += ["--suites", ",".join((proof.DEEP, proof.CR, proof.SUITE, proof.PUBLIC)), "--reference", proof.SUITE]
    one, other = tmp_path / "one", tmp_path / "other"
    suite.main([str(run), *options, "--out", str(one)])
    (network,) = proof.judged(one)
    stands = network.standing[proof.SUITE]
    assert len(network.ranks) == 3 <= stands.sum() and network.best.sum() <= stands.sum()
    after, ranks = stands.copy(), np.array([True, False, True])
    after[np.flatnonzero(stands)[0]] = False
    weak = network._replace(ranks=ranks, standing={**network.standing, proof.PUBLIC: after})
    row = proof.row_of(weak, {})
    assert (row["broke"], row["last"], row["bound"], row["above"][proof.SUITE][:5]) == (1, 2, "95.0%", "+12.5")
    assert proof.at_most(20) == "13.9%" and proof.at_most(0) == ""
    fell = network.record.correct() & ~stands
    assert row["left"] == "0 of 0" and fell.any()
    missed = network._replace(late=np.array([True, False]), standing={**network.standing, proof.PUBLIC: stands | fell})
    row = proof.row_of(missed, {})
    assert row["left"] == "1 of 2" and row["above"][proof.SUITE].startswith("-")
    assert proof.row_of(network._replace(name="confident"), {"pgd-7": weak})["over"][:5] == "+12.5"
    shutil.copytree(one / "pgd-7", other / "fgsm-at")
    (other / "suite.json").write_text((one / "suite.json").read_text().replace("pgd-7", "fgsm-at"))
    page = tmp_path / "page.md"
    page.write_text(f"<!-- {proof.PAGE} -->\nold\n<!-- end of {proof.PAGE} -->\n")
    proof.main([str(one), str(other), "--page", str(page), "--figure", str(tmp_path / "figure.png")])
    _, honest, apart, words, masked, _ = page.read_text().split("\n\n")
    assert "| pgd-7 |" in honest and "| pgd-7 |" in apart and "| fgsm-at |" in masked and "fgsm-at" not in honest
    assert "given 3 images and broke 0.\nNone of the 3 behind" in words and "most 63.2% would" in words
    assert "| pgd-7 |" not in masked and (tmp_path / "figure.png").exists() and masked[:99] in capsys.readouterr().out


def test_the_proof_on_the_results_page_is_that_of_the_raw_files(script: Any) -> None:
    proof = script("proof")
    folders = proof.folders_in(SCRIPTS / "results" / "suite" / "proof")
    if not folders:
        pytest.skip("not measured yet")
    place = f"<!-- {proof.PAGE} -->\n{proof.tables(proof.rows_in(folders))}<!-- end of {proof.PAGE} -->"
    assert place in (SCRIPTS.parent / "docs" / "results.md").read_text(encoding="utf-8"), "add --page docs/results.md"
