"""The reference: no public name is forgotten, undocumented or without an example, and the examples run."""

import re
import warnings
from pathlib import Path

import pytest
import reference
import torch

import planish
from planish.registry import components

NAMES = [(room, name) for room in reference.ROOMS for name in reference.public(room)]
IDS = [f"{room}.{name}" for room, name in NAMES]


def test_it_holds_all_that_is_public():
    """What `planish` itself shows is in it, the packages as pages of their own, and every registered component."""
    assert {*reference.public("planish"), *reference.ROOMS} - {"planish"} == set(planish.__all__)
    assert set(reference.OPENINGS) <= set(reference.ROOMS) and len(reference.ROOMS) >= 7
    for room, packages in reference.REGISTRIES.items():
        shown = {reference.registered(room, name) for name in reference.public(room)} - {None}
        classes = {key for package in packages for key, value in components(package).items() if value.__doc__}
        recipes = {"apgd-dlr", "paper-finlay", "paper-llr", "paper-seat"}  # functions: options of what is shown
        assert classes - shown <= recipes, classes - shown


@pytest.mark.parametrize(("room", "name"), NAMES, ids=IDS)
def test_each_name_is_documented_where_the_source_defines_it(room: str, name: str):
    assert len(reference.docstring(room, name)) > 15
    home, _, own = reference.address(room, name).rpartition(".")
    source = Path(planish.__file__).parent.joinpath(*home.split(".")[1:])
    file = source.with_suffix(".py") if source.with_suffix(".py").exists() else source / "__init__.py"
    assert re.search(rf"^(class {own}\b|def {own}\b|{own}\b.* = )", file.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("room", reference.ROOMS)
def test_a_page_has_an_entry_for_each_name(room: str):
    page = reference.page(room)
    headings = re.findall(r"^ +heading: (\w+)$", page, re.MULTILINE)
    assert headings == [*reference.public(room)] == sorted(headings, key=str.lower)
    assert page.count("\n::: planish.") == len(headings) and page.count("```python") == len(headings) + 1


@pytest.mark.parametrize("room", ["attacks", "methods"])
def test_a_component_says_what_it_computes(room: str):
    """From the tables of docs/attacks.md and docs/methods.md: a formula or words, and the paper, if there is one."""
    for name in reference.public(room):
        if called := reference.registered(room, name):
            facts = reference.row(room, called)
            assert facts and not any("options" in heading for heading in facts), name
    assert "CE(x_adv) + λ" in reference.row("methods", "seat")["what it does"]
    assert "|⟨d, ∇l⟩|" in reference.row("methods", "llr")["what it does"]


@pytest.mark.timeout(600)  # seconds on a clock of a busy machine
def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One after the other, as they stand in the file; those of all components of a kind are made, and so are their
    objects."""
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, text in reference.written().items():
            exec(compile(text, f"examples.md, {name}", "exec"), space)
        for room, name in NAMES:
            if made := re.search(r"planish\.\w+\.\w+\(\)", reference.example(room, name)):
                eval(made[0], space)


def test_no_example_is_of_nothing_or_there_twice():
    headings = re.findall(r"^## (\S+)$", (reference.HERE / "examples.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(set(headings)) == len(headings) == len(reference.written())
    known = {name if room == "planish" else f"{room}.{name}" for room, name in NAMES}
    assert set(reference.written()) - {"prelude"} <= known


def test_docstrings_become_lists():
    griffe = pytest.importorskip("griffe", reason="the site's generator brings it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from docstrings import listed
    text = "Do it.\n\nx: (N, C, H, W), a\ntensor. labels: (N,) *all*; y, z: two.\nRaises BadInput. For x < 1, `a < b`."
    shown = listed(text, ["x", "labels", "y", "z"])
    assert "\n- **x**: (N, C, H, W), a\ntensor." in shown and "\n- **labels**: (N,) \\*all\\*;" in shown
    assert "- **y**, **z**: two." in shown and "\n\nRaises BadInput." in shown and "x &lt; 1, `a < b`" in shown
    assert griffe.Docstring(shown).value.startswith("Do it.")
