"""planish audit: findings, files, exit codes, black boxes."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import Result

from planish.audit.auditor import checks
from planish.audit.evidence import PLANS
from planish.core.errors import Unwritten
from planish.records.audit import load, save
from planish.records.evaluation import load_adversarials
from planish.runs.audit import CHECK_IMAGES, SUITE, SUITE_IMAGES, KeptAudit, draw

Planish = Callable[..., Result]
OPTIONS = ("--data", "digits", "--radius", "0.1", "--limit", "24", "--device", "cpu", "--out", "audited")
OWN = """
import torch
class Net(torch.nn.Module):
    def __init__(self, rounds):
        super().__init__()
        self.layer, self.rounds = torch.nn.Linear(64, 10), rounds
    def forward(self, x):
        return self.layer(((4 * x).round() / 4 if self.rounds else x).flatten(1))
def honest():
    torch.manual_seed(0)
    return Net(False)
def rounding():
    torch.manual_seed(0)
    return Net(True)
"""


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quick budget that is a matter of a second."""
    small = replace(PLANS["quick"], steps=3, noise=2, queries=3, survivors=3, curve_steps=2, setup=8)
    small = replace(small, measured=3, points=3, pictured=1, restarts=2)
    monkeypatch.setitem(PLANS, "quick", small)


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return "own.py"


def test_a_table_and_two_files(planish: Planish, own: str):
    result = planish("audit", f"{own}:honest", *OPTIONS, "--all")
    assert (result.exit_code, result.stderr) == (0, "") and "\x1b" not in result.stdout
    found = load(Path("audited"))
    assert found.complete and found.headline() in " ".join(result.stdout.split())
    assert all(name in result.stdout for name in checks()) and "report: audited/audit.html" in result.stdout
    assert {path.name for path in Path("audited").iterdir()} == {
        "audit.html",
        "audit.json",
        "audit.md",
        "audit.npz",
        "card.md",
        "figures",
        "geometry.npz",
    }
    before = Path("audited/audit.html").read_text()
    Path("audited/audit.html").unlink()
    assert draw(Path("audited")).read_text() == before and 'id="figure-bounds"' in before


def test_a_check_that_fails_is_exit_code_one(planish: Planish, own: str):
    result = planish("audit", f"{own}:rounding", *OPTIONS, "--json", "--name", "rounding")
    assert (result.exit_code, result.stderr) == (1, "")
    document = json.loads(result.stdout)
    assert document == json.loads(Path("audited/audit.json").read_text())
    assert document["verdict"] == "fail" and document["meta"]["model"]["name"] == "rounding"
    verdicts = {finding["check"]: finding["verdict"] for finding in document["findings"]}
    assert verdicts["zero-gradients"] == "fail"


def test_an_audit_prints_its_verdict_and_what_is_wrong(planish: Planish, own: str):
    """It once printed a table of every check, some 200 lines; --all still does."""
    result = planish("audit", f"{own}:rounding", *OPTIONS, "--name", "rounding")
    found = load(Path("audited"))
    first, second, *_, hint, last = result.stdout.splitlines()
    told = [line for line in result.stdout.splitlines() if line.startswith(("fail: ", "warn: "))]
    wrong = [one.check for kind in ("fail", "warn") for one in found.findings if one.verdict == kind]
    assert first.startswith(f"rounding: fail ({sum(one.verdict == 'fail' for one in found.findings)} fail, ")
    assert second == found.headline() and [line.split()[1] for line in told] == wrong and "zero-gradients" in wrong
    assert result.stdout.count("\n  why: ") == result.stdout.count("\n  what to do: ") == len(wrong)
    assert (hint, last) == ("--all prints every check", "report: audited/audit.html")
    every = planish("audit", f"{own}:rounding", *OPTIONS, "--name", "rounding", "--resume", "--all")
    assert all(name in every.stdout for name in checks()) and not all(name in result.stdout for name in checks())


def test_audits_are_compared(planish: Planish, own: str):
    """Alone, with an evaluation beside them, and not where something is missing."""
    planish("audit", f"{own}:honest", *OPTIONS)
    found = load(Path("audited"))
    worse = tuple(replace(one, verdict="fail") if one.check == "noise" else one for one in found.findings)
    meta = {**found.meta, "model": {**found.meta["model"], "name": "other"}}
    save(replace(found, findings=worse, meta=meta), Path("other"))
    result = planish("compare", "audited", "other", "--out", "both")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "honest" in result.stdout and "\N{MULTIPLICATION X} Fail" in result.stdout
    document = json.loads(planish("compare", "audited", "other", "--out", "both", "--overwrite", "--json").stdout)
    assert [(one["name"], one["verdict"] == "fail") for one in document["audits"]] == [
        ("honest", False),
        ("other", True),
    ]
    judged = ("--data", "digits", "--radius", "0.1", "--limit", "24", "--attacks", "noise-3", "--device", "cpu")
    planish("evaluate", f"{own}:honest", *judged, "--out", "judged")
    assert planish("compare", "judged", "other", "--out", "mixed").exit_code == 0
    assert 'id="audits"' in Path("mixed/report.html").read_text()
    missing = planish("compare", "audited", "nowhere")
    assert missing.exit_code == 2 and missing.stderr.startswith(
        "planish: nowhere holds neither evaluation.npz nor audit"
    )
    save(replace(found, findings=found.findings[:3], geometry=None), Path("short"))
    short = planish("compare", "audited", "short")
    assert short.exit_code == 2 and "short was cut short; its command goes on with --out short --resume" in short.stderr


def test_surrogates(planish: Planish, own: str):
    planish("audit", f"{own}:honest", *OPTIONS, "--surrogates", f"{own}:rounding,{own}:honest")
    assert load(Path("audited")).finding("transfer").meaning.startswith("Images made on 2 other models break ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("own.py:honest", "--budget", "long"), "unknown budget 'long'. Known: quick, standard, thorough"),
        (("nowhere",), "no model at 'nowhere': give a run folder"),
        (("own.py:honest", "--surrogates", "nowhere"), "no model at 'nowhere'"),
        (("own.py:honest", "--radius", "8"), "Linf radius 8 is larger than the pixel range"),
        (("no.onnx",), "there is no file no.onnx"),
        (("text.onnx",), "text.onnx needs onnxruntime, which cannot be imported"),
    ],
)
def test_bad_input(
    arguments: tuple[str, ...], message: str, planish: Planish, own: str, monkeypatch: pytest.MonkeyPatch
):
    Path("text.onnx").write_text("no model")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = planish("audit", *OPTIONS, *arguments)
    assert (result.exit_code, result.stdout) == (2, "") and result.stderr.startswith(f"planish: {message}")
    assert not Path("audited").exists()


def test_a_folder_that_is_taken(planish: Planish, own: str):
    assert planish("audit", f"{own}:honest", *OPTIONS).exit_code == 0
    found = load(Path("audited"))
    save(replace(found, findings=found.findings[:3]), Path("audited"))
    short = planish("audit", f"{own}:honest", *OPTIONS)
    assert short.exit_code == 2 and "audited already holds an audit: --resume goes on with it" in short.stderr
    assert planish("audit", f"{own}:honest", *OPTIONS, "--resume").exit_code == 0 and load(Path("audited")).complete
    again = planish("audit", f"{own}:honest", *OPTIONS)
    assert again.exit_code == 2 and "audited already holds an audit: --overwrite replaces it" in again.stderr


class Runtime:
    """What is used of onnxruntime: a linear model that insists on batches of 5."""

    def __init__(self, path: str, providers: list[str]) -> None:
        if Path(path).read_bytes() != b"a model":
            raise ValueError("not a model")
        self.weights = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="images", shape=[5, 1, 8, 8])]

    def run(self, outputs: None, feed: dict[str, Any]) -> list[Any]:
        assert outputs is None and feed["images"].shape == (5, 1, 8, 8)
        return [feed["images"].reshape(5, 64) @ self.weights]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = ModuleType("onnxruntime")
    module.InferenceSession = Runtime  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    (tmp_path / "model.onnx").write_bytes(b"a model")
    (tmp_path / "text.onnx").write_bytes(b"a text")


@pytest.mark.usefixtures("runtime")
def test_an_onnx_file_is_a_black_box(planish: Planish):
    result = planish("audit", "model.onnx", *OPTIONS)
    found = load(Path("audited"))
    assert result.stderr == "" and "note: model is a black box" in " ".join(result.stdout.split())
    blind = {name for name, check in checks().items() if check.needs != "logits" and check.level == "quick"}
    assert all(found.finding(name).verdict == "open" for name in blind)
    assert found.finding("deterministic").verdict == found.finding("logits").verdict == "pass"
    assert found.meta["suite"] == "black-box" and found.meta["black_box"]
    assert result.exit_code == int(found.verdict == "fail")


@pytest.mark.usefixtures("runtime")
def test_an_onnx_file_is_attacked_without_gradients_only(planish: Planish):
    refused = planish("evaluate", "model.onnx", *OPTIONS, "--attacks", "noise,pgd-5-1")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("planish: model is a black box and pgd-5-1 asks for gradients; use noise, square")
    assert planish("evaluate", "model.onnx", *OPTIONS, "--attacks", "noise-3,square-5").exit_code == 0
    broken = planish("audit", "text.onnx", *OPTIONS)
    assert (
        broken.exit_code == 2 and "text.onnx is not an ONNX model that onnxruntime reads: not a model" in broken.stderr
    )


KILLED = """
import sys
from dataclasses import replace
from planish.audit.evidence import PLANS
small = replace(PLANS["quick"], steps=3, noise=2, queries=3, survivors=3, curve_steps=2, setup=8)
PLANS["quick"] = replace(small, measured=3, points=3, pictured=1, restarts=2)
from planish.cli.main import app
app(["audit", *sys.argv[1:]])
"""


def test_an_audit_that_is_killed_goes_on_by_check(planish: Planish, own: str):
    """SIGKILL after some findings: --resume makes the rest, and ends with the same findings and images."""
    whole = planish("audit", f"{own}:rounding", *OPTIONS[:-1], "whole")
    command = [sys.executable, "-c", KILLED, f"{own}:rounding", *OPTIONS]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        for _ in range(6000):
            if child.poll() is not None or (
                Path("audited/audit.npz").exists() and len(load(Path("audited")).findings) > 4
            ):
                break
            time.sleep(0.01)
        child.kill()
    cut = load(Path("audited"))
    assert 4 < len(cut.findings) < len(checks()) and (Path("audited") / SUITE).exists()
    resumed = planish("audit", f"{own}:rounding", *OPTIONS, "--resume")
    assert resumed.exit_code == whole.exit_code == 1, resumed.output
    one, other = load(Path("whole")), load(Path("audited"))
    assert [replace(f, passes=0) for f in one.findings] == [replace(f, passes=0) for f in other.findings]
    assert np.array_equal(one.broken_by, other.broken_by) and one.attacks == other.attacks
    assert not any((Path("audited") / name).exists() for name in (SUITE, SUITE_IMAGES, CHECK_IMAGES))
    again = planish("audit", f"{own}:rounding", *OPTIONS, "--resume")
    assert (again.exit_code, again.stdout) == (1, resumed.stdout)


def test_broken_images_are_written_when_there_are_more(tmp_path: Path):
    """Named regression: all of them were compressed again with every finding."""
    images = torch.rand(4, 1, 8, 8)
    evidence = SimpleNamespace(broken={}, adversarial={})
    kept = KeptAudit(tmp_path, resume=False, evidence=evidence)  # type: ignore[arg-type]
    audit, path = SimpleNamespace(complete=False), tmp_path / CHECK_IMAGES
    states: list[list[int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "planish.records.audit.save", lambda audit, folder, state: states.append([*state.get("rows", ())])
        )
        for row in (None, 2, None, 0):
            before = path.stat().st_mtime_ns if path.exists() else 0
            if row is not None:
                evidence.adversarial[row] = images[row]
            kept.keep(audit)  # type: ignore[arg-type]
            assert (path.exists() and path.stat().st_mtime_ns > before) == (row is not None)
        x_adv, rows = load_adversarials(path)
        assert rows.tolist() == states[-1] == [2, 0] and np.array_equal(x_adv, images[[2, 0]].numpy())
        audit.complete = True
        kept.keep(audit)  # type: ignore[arg-type]
    assert not path.exists()


def test_broken_images_are_there_again(planish: Planish, own: str, monkeypatch: pytest.MonkeyPatch):
    """An audit that is gone on with has the images that its checks broke before."""
    keep, restored, seen = KeptAudit.keep, KeptAudit.restored, dict[int, torch.Tensor]()

    def cut(kept: KeptAudit, audit: Any) -> None:
        assert kept.evidence is not None
        kept.evidence.adversarial[5] = torch.full((1, 8, 8), 0.25)
        keep(kept, audit)
        raise KeyboardInterrupt

    def gone_on(kept: KeptAudit, evidence: Any, *given: Any) -> Any:
        found = restored(kept, evidence, *given)
        seen.update(evidence.adversarial)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(KeptAudit, "keep", cut)
        assert planish("audit", f"{own}:honest", *OPTIONS).exit_code == 130
    monkeypatch.setattr(KeptAudit, "restored", gone_on)
    assert planish("audit", f"{own}:honest", *OPTIONS, "--resume").exit_code == 0
    assert [*seen] == [5] and torch.equal(seen[5], torch.full((1, 8, 8), 0.25))


def test_an_audit_goes_on_from_an_evaluation_in_shards(planish: Planish, own: str):
    """The suite is not run again, and the findings are those of an audit that ran it; what does not fit is refused."""
    asked = (f"{own}:honest", *OPTIONS[:-2])
    suite = (*asked, "--attacks", "planish-suite")
    for number in (1, 2):
        assert planish("evaluate", *suite, "--keep-images", "--shard", f"{number}/2", "--out", f"part-{number}")
    assert planish("merge", "part-1", "part-2", "--out", "judged").exit_code == 0
    planish("audit", *asked, "--out", "whole")
    short = [word for word in asked if word not in ("--limit", "24")]
    result = planish("audit", *short, "--after", "judged", "--out", "audited")
    one, other = load(Path("whole")), load(Path("audited"))
    assert result.exit_code in (0, 1) and other.complete, result.output
    assert [replace(f, passes=0) for f in one.findings] == [replace(f, passes=0) for f in other.findings]
    assert np.array_equal(one.broken_by, other.broken_by) and one.attacks == other.attacks and len(one.labels) == 24
    for options, told in (
        (("--seed", "3"), "the earlier evaluation is of another seed"),
        (("--limit", "20"), "the earlier evaluation is of other data"),
        (("--after", "nowhere"), "There is no evaluation at nowhere/evaluation.npz."),
    ):
        refused = planish("audit", *short, "--after", "judged", *options, "--out", "no")
        assert refused.exit_code == 2 and told in refused.stderr and not Path("no").exists(), refused.stderr
    planish("evaluate", *suite, "--out", "bare")
    planish("evaluate", *asked, "--attacks", "noise-3", "--keep-images", "--out", "noise")
    again = "give its command again with --attacks planish-suite --keep-images --overwrite"
    for folder, told in (
        ("bare", f"bare holds no adversarial images, which an audit looks at: {again}"),
        ("noise", f"noise was judged by noise-3, and an audit by planish-suite alone: {again}"),
    ):
        refused = planish("audit", *short, "--after", folder, "--out", "no")
        assert refused.exit_code == 2 and told in refused.stderr, refused.stderr


def test_resume_writes_a_page_that_a_full_disk_refused(planish: Planish, own: str, monkeypatch: pytest.MonkeyPatch):
    """A whole record without its page: --resume once named a page that was not there."""

    def full(folder: Path) -> Path:
        raise Unwritten(f"cannot write {folder}/audit.html: No space left on device; choose another folder")

    with monkeypatch.context() as patch:
        patch.setattr("planish.runs.audit.draw", full)
        assert planish("audit", f"{own}:honest", *OPTIONS).exit_code == 2
    (Path("audited") / "audit.json").unlink()
    result = planish("audit", f"{own}:honest", *OPTIONS, "--resume")
    assert result.exit_code == 0 and "report: audited/audit.html" in result.stdout
    assert {"audit.html", "audit.md", "audit.json"} <= {path.name for path in Path("audited").iterdir()}


def test_an_audit_of_something_else_is_not_gone_on_with(planish: Planish, own: str, monkeypatch: pytest.MonkeyPatch):
    def killed(audit: object, folder: Path, state: object = None) -> None:
        save(audit, folder, state)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("planish.records.audit.save", killed)
        assert planish("audit", f"{own}:honest", *OPTIONS).exit_code == 130
    assert len(load(Path("audited")).findings) == 1
    for changed in (["--seed", "3"], ["--radius", "0.2"], ["--limit", "20"]):
        refused = planish("audit", f"{own}:honest", *OPTIONS, *changed, "--resume")
        assert refused.exit_code == 2 and "choose another folder" in refused.stderr, refused.output
    assert planish("audit", f"{own}:honest", *OPTIONS, "--resume").exit_code == 0 and load(Path("audited")).complete
