"""docs/architecture.md is true: its rooms and floors, and the way of a training batch, an evaluation and an audit."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
from test_architecture import HOME, ORDER
from tracing import PAGE, ROOT, Trace, chains, traced, traced_command

from planish.core.threat import Linf

PATIENT = pytest.mark.timeout(900)  # seconds on a clock; a fraction of it in work, but machines may be busy


@PATIENT
def test_the_ways_are_the_page_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One after the other: the second and the third read the run folder of the first."""
    monkeypatch.chdir(tmp_path)
    found = chains()
    assert [chain.command.split()[1] for chain in found] == ["train", "evaluate", "audit"]
    faults = []
    for chain in found:
        assert len(chain.lines) > 10
        trace = traced_command(chain.command)
        faults += [f"{chain.command.split()[1]}: {fault}" for fault in chain.faults(trace)]
    assert not faults, "\n".join([*faults, "mend docs/architecture.md; `python tests/tracing.py` prints what is true"])


def test_a_wrong_page_is_seen():
    """Another count, a file that is not called, and two in the wrong order are three faults."""
    trace = Trace(dict.fromkeys("abc"), {"": {"a.py": None}, "a.py": dict.fromkeys(["b.py", "c.py"])})
    (chain, *_) = chains()
    lines = ((0, "a.py"), (1, "c.py"), (1, "b.py"), (2, "d.py"))
    faults = list(type(chain)("", 4, lines).faults(trace))
    assert [fault.split()[0] for fault in faults] == ["the", "a.py", "b.py"] and "earlier" in faults[1]
    assert not list(type(chain)("", 3, (lines[0], (1, "b.py"), (1, "c.py"))).faults(trace))


def test_a_trace_has_what_runs_and_not_what_is_imported():
    threat = Linf(0.1)
    trace = traced(lambda: threat.steepest(torch.zeros(1, 1, 2, 2)))
    assert list(trace.files) == ["core/threat.py"] and trace.calls == {"": {"core/threat.py": None}}


def test_rooms_and_floors_are_the_page_s():
    text = PAGE.read_text(encoding="utf-8")
    floors = re.findall(r"^## Floors\n.*?^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert floors[0].splitlines() == ORDER
    rooms = {path.name for path in HOME.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    table = text.partition("## Rooms")[2].partition("## Floors")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == rooms
    assert f"is {len(rooms)} rooms" in text
    for nested in re.findall(r"`(\w+/\w+)`", table):
        assert (HOME / nested).is_dir(), nested


def test_new_names_in_the_changelog_are_there():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^  - `planish\.([\w.]+)`: (.*?)(?=^  - |^$)", text, re.MULTILINE | re.DOTALL)
    assert len(rooms) > 10
    for room, listed in rooms:
        for new in re.findall(r"`(\w+)`(?:,|$)", " ".join(listed.split())):
            place = HOME.joinpath(*room.split("."), new)
            assert place.with_suffix(".py").is_file() or place.is_dir(), place
    table = text.partition("| old name | new name |")[2].partition("\n\n")[0]
    new_names = " ".join(row.split("|")[2] for row in table.splitlines() if row.startswith("  | `"))
    names = re.findall(r"`planish\.([\w.]+)\.(\w+)`", new_names)
    assert len(names) > 5
    for module, name in names:
        assert hasattr(import_module(f"planish.{module}"), name), f"{module}.{name}"
