"""Issue 24: one page that lists all runs and audits, the newest first; and pages as PDF."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from typer.testing import CliRunner, Result

import planish as pl
from planish.cli.main import app
from planish.records import audit as audits
from planish.records import evaluation as evaluations
from planish.records.audit import Audit, Finding
from planish.report import pdf, write_report
from planish.report.index import counted
from planish.runs.index import listed_in
from planish.runs.judge import entries


def audit_of(name: str, checks: int) -> Audit:
    """An audit of one finding, which fails; of more checks than one it is cut short."""
    rows, threat = np.arange(4), {"norm": "Linf", "radius": 0.1}
    meta = {"schema_version": 1, "suite": "planish-suite", "checks": checks, "threat": threat, "notes": []}
    meta |= {"date": "2026-01-01", "model": {"name": name}}
    finding = Finding("gradient", "fail", 0.0, "", None, 0.95, "Cut off.", "Look.")
    return Audit((finding,), rows, rows, np.full(4, -1, np.float32), rows * 0 - 1, (), meta)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training, its evaluation with a page, two audits, a damaged record, and a report: the later the newer."""
    home = tmp_path_factory.mktemp("all") / "runs & more"
    settings = pl.Settings(batch_size=64, learning_rate=0.05, epochs=1)
    own = {"method": "seat", "threat": "Linf:0.1", "settings": settings, "out": home / "train" / "seat"}
    run = pl.train("small-cnn", "digits", **own)
    x = pl.data.load("digits", "test", limit=20).as_batch()
    about = {"model": {"name": "seat <b>"}, "data": {"name": "digits"}}
    judged = home / "evaluation" / "seat"
    evaluations.save(
        pl.evaluate(run.model, x, threat="Linf:0.1", attacks="pgd-2-1", about=about), judged / "evaluation.npz"
    )
    write_report(entries([judged]), judged, "one", {})
    write_report(entries([judged]), home / "report" / "both", "All of them", {"date": "2026-01-02"})
    audits.save(audit_of("masked", 1), home / "audit" / "masked")
    audits.save(audit_of("cut", 3), home / "audit" / "cut")
    (home / "broken").mkdir()
    (home / "broken" / "evaluation.npz").write_bytes(b"not one")
    (home / ".hidden").mkdir()
    shutil.copy(judged / "evaluation.npz", home / ".hidden")
    order = ["train/seat/model.safetensors", "evaluation/seat/evaluation.npz", "audit/masked/audit.npz"]
    for place, name in enumerate([*order, "audit/cut/audit.npz", "report/both/results.json"]):
        os.utime(home / name, (1000 + place, 1000 + place))
    return home


def planish(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="planish")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_everything_is_found_the_newest_first(whole: Path):
    listed, notes = listed_in(whole)
    assert [(one.kind, one.name) for one in listed] == [
        ("report", "All of them"),
        ("audit", "cut"),
        ("audit", "masked"),
        ("evaluation", "seat <b>"),
        ("training", "seat"),
    ]
    (note,) = notes
    assert note.startswith(f"{whole / 'broken' / 'evaluation.npz'} is left out: is not a planish evaluation")
    report, cut, masked, judged, trained = listed
    assert cut.headline.endswith("cut short after 1 check of 3") and masked.verdict == "fail"
    assert judged.robust is not None and judged.headline.startswith("accuracy ") and judged.images == "20 of digits"
    assert trained.day and "small-cnn by seat; 1 epoch, loss" in trained.headline and trained.threat == "Linf 0.1"
    assert report.day == "2026-01-02" and report.page.name == "report.html"
    assert counted(listed) == "1 report, 2 audits, 1 evaluation, 1 training. 2 audits failed."


def test_the_command_writes_it_again_and_again(whole: Path):
    result = planish("report", "--index", whole)
    assert result.exit_code == 0 and f"index: {whole / 'index.html'}" in result.stdout
    assert "is left out" in result.stdout and "masked" in result.stdout
    assert planish("report", "--index", whole).exit_code == 0
    page = (whole / "index.html").read_text()
    assert 'href="evaluation/seat/report.html"' in page and 'href="train/seat/"' in page and "seat &lt;b&gt;" in page
    assert 'data-kind="audit" data-verdict="fail"' in page and page.index("All of them") < page.index("masked")


def test_links_are_right_from_another_folder(whole: Path, tmp_path: Path):
    document = json.loads(planish("report", "--index", whole, "--out", tmp_path, "--json").stdout)
    assert document["page"] == str(tmp_path / "index.html") and len(document["listed"]) == 5 == len(listed_in(whole)[0])
    (judged,) = (one for one in document["listed"] if one["kind"] == "evaluation")
    assert judged["robust"]["images"] == 20
    link = os.path.relpath(whole.resolve(), tmp_path.resolve()).replace(" ", "%20").replace("&", "%26")
    assert f'href="{link}/evaluation/seat/report.html"' in (tmp_path / "index.html").read_text()


def test_what_is_refused(whole: Path, tmp_path: Path):
    both = planish("report", whole / "evaluation" / "seat", "--index", whole)
    neither = planish("report")
    for result in (both, neither):
        assert result.exit_code == 2 and "or --index FOLDER to list all" in result.stderr
    assert "no folder 'nowhere'" in planish("report", "--index", "nowhere").stderr


def test_an_empty_folder_is_a_page_too(tmp_path: Path):
    assert planish("report", "--index", tmp_path).exit_code == 0
    assert "Nothing is here yet." in (tmp_path / "index.html").read_text()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as found:
        yield found


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_page_filters_and_sorts(whole: Path, browser: Browser, tmp_path: Path):
    planish("report", "--index", whole, "--out", tmp_path / "page")
    browser.open(tmp_path / "page" / "index.html")

    def names() -> list[str]:
        rows = "[...document.querySelectorAll('.index tbody tr')].filter((row) => !row.hidden)"
        return browser.run(f"{rows}.map((row) => row.querySelector('a').textContent)")

    def put(control: str, value: str) -> None:
        browser.run(f"document.getElementById('{control}').value = '{value}'")
        browser.run(f"document.getElementById('{control}').dispatchEvent(new Event('input'))")

    assert len(names()) == 5 and browser.run("document.getElementById('shown').value") == "5 of 5"
    put("kind", "audit")
    assert names() == ["cut", "masked"]
    put("filter", "SHORT after")
    assert names() == ["cut"] and browser.run("document.getElementById('shown').value") == "1 of 5"
    put("filter", "")
    put("kind", "")
    browser.run("document.querySelector('.index thead button').click()")
    assert names()[0] == "All of them"
    assert browser.troubles() == []
    browser.open(tmp_path / "page" / "index.html", width=400)
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_page_is_printed(whole: Path):
    result = planish("report", "--index", whole, "--pdf")
    assert result.exit_code == 0 and f"PDF: {whole / 'index.pdf'}" in result.stdout
    assert (whole / "index.pdf").read_bytes().startswith(b"%PDF-")


def test_without_chromium_nothing_is_begun(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pdf.shutil, "which", lambda name: None)
    result = planish("report", "--index", whole, "--out", tmp_path, "--pdf")
    assert result.exit_code == 2 and "printed by Chromium, which is not found here" in result.stderr
    assert not (tmp_path / "index.html").exists()


@pytest.mark.parametrize("command", ["evaluate", "audit", "report", "compare"])
def test_commands_that_write_a_page_print_it(command: str, monkeypatch: pytest.MonkeyPatch):
    """Each looks for a browser before it does anything else."""
    monkeypatch.setattr(pdf.shutil, "which", lambda name: None)
    more = ("own.py:net", "--data", "digits", "--radius", "0.1") if command in ("evaluate", "audit") else ("here",)
    assert "which is not found here" in planish(command, *more, "--pdf").stderr


def test_what_chromium_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    failed = SimpleNamespace(returncode=1, stderr="first\nno display\n")
    monkeypatch.setattr(pdf, "browser", lambda: "chromium")
    monkeypatch.setattr(pdf.subprocess, "run", lambda *given, **options: failed)
    with pytest.raises(RuntimeError, match=r"could not print .*page\.html: no display"):
        pdf.write_pdf(tmp_path / "page.html")
