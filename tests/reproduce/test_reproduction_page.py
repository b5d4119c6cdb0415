"""docs/reproduction.md is what planish writes from the tables and the results that are kept."""

from pathlib import Path

from planish.reproduce import table, table_names
from planish.reproduce.measured import load_documents
from planish.reproduce.pages import figure_name, page_text

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "benchmarks/results/reproduce"


def test_the_page_is_up_to_date():
    """Else: planish reproduce --page docs/reproduction.md --out benchmarks/results/reproduce."""
    documents = load_documents(KEPT)
    assert (ROOT / "docs/reproduction.md").read_text() == page_text([table(name) for name in table_names()], documents)
    for whole in documents:
        rows = table(whole["table"]).rows
        assert set(whole["rows"]) <= set(rows) and all(rows[name].beside for name in set(rows) - set(whole["rows"]))
        if f"images/{figure_name(whole)}" in (ROOT / "docs/reproduction.md").read_text():
            assert (ROOT / "docs/images" / figure_name(whole)).exists()
