"""docs/reproduction.md is what planish writes from the tables and the results that are kept."""

from pathlib import Path

from planish.reproduce import table, table_names
from planish.reproduce.figure import figure_name, paper_figure
from planish.reproduce.measured import load_documents
from planish.reproduce.pages import load_estimates, page_text, unrun

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "benchmarks/results/reproduce"


def test_the_page_is_up_to_date():
    """Else: planish reproduce --page docs/reproduction.md --out benchmarks/results/reproduce."""
    documents = load_documents(KEPT)
    text = page_text([table(name) for name in table_names()], documents, load_estimates(KEPT))
    assert (ROOT / "docs/reproduction.md").read_text() == text
    for whole in documents:
        rows = table(whole["table"]).rows
        assert set(whole["rows"]) <= set(rows) and all(rows[name].beside for name in set(rows) - set(whole["rows"]))
        if f"images/{figure_name(whole)}" in (ROOT / "docs/reproduction.md").read_text():
            assert (ROOT / "docs/images" / figure_name(whole)).exists()


def test_figures_have_named_axes_of_one_range_and_fit_a_screen_or_two():
    """The figure of SEAT's table 1 had been 3,483 pixels high, with five ranges and no label on any axis."""
    for whole in load_documents(KEPT):
        drawn = paper_figure(table(whole["table"]), whole)
        panels = [axes for axes in drawn.figure.axes if axes.get_visible()] if drawn else []
        assert drawn is None or 180 * drawn.figure.get_figheight() <= 1600
        kinds = {axes.get_xlabel() for axes in panels}
        assert "" not in kinds
        for kind in kinds:
            assert len({axes.get_xlim() for axes in panels if axes.get_xlabel() == kind}) == 1


def test_what_has_not_been_run_is_listed_with_what_it_takes():
    """Of three seeds one is there: two are left, and the rows that are finished are not named."""
    own = table("seat-table-1")
    one_seed, no_figure = {"clean": {"value": 78.4}}, {"clean": {"why": "not run"}}
    rows = {
        "seat": {"figures": one_seed},
        "trades": {"figures": one_seed},
        "pgd-at": {"figures": no_figure},
        "rs-fgsm": {"figures": {"clean": {"value": 50.0, "seeds": [49.0, 51.0]}}},
    }
    work = {"training": 2e6, "judging": 1e6, "seconds": 5400.0}
    runs = ("seat", "seat.seed-1", "seat.seed-2", "trades", "pgd-at", "rs-fgsm", "rs-fgsm.seed-1")
    estimated = {
        "scale": "small",
        "device": "a CPU",
        "date": "2026-11-27",
        "tables": {own.name: dict.fromkeys(runs, work)},
    }
    whole = {"table": own.name, "scale": "small", "rows": rows}
    text = "\n".join(unrun([own, table("seat-table-2")], [whole], estimated))
    assert text.startswith("## Not run yet at scale small") and "on a CPU, in processor time" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| seat")]
    assert line == "| seat-table-1 | 3 of 7 | 6.0 million | 3.0 million | 4.5 | seat 2 x 1.5, pgd-at 1.5 |"
    assert "| 7 of 7 |" in "\n".join(unrun([own], [], estimated))
