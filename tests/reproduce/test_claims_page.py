"""docs/claims.md is what planish writes from the tables, the results that are kept and what was made of them."""

from pathlib import Path

import pytest

from planish.reproduce import load_documents, table, table_names
from planish.reproduce.readings import (
    JudgedClaim,
    claims_page,
    distance_and_reach,
    judged_claims,
    readings,
    seeds_needed,
    would_decide,
)
from planish.reproduce.tables import Claim

ROOT = Path(__file__).parents[2]
TABLES = [table(name) for name in table_names()]
DOCUMENTS = load_documents(ROOT / "benchmarks/results/reproduce")


def test_the_page_is_up_to_date():
    """Else: planish reproduce --claims docs/claims.md --out benchmarks/results/reproduce."""
    assert (ROOT / "docs/claims.md").read_text(encoding="utf-8") == claims_page(TABLES, DOCUMENTS)


def test_every_outcome_has_been_read_and_no_reading_is_of_another():
    claims = judged_claims(TABLES, DOCUMENTS)
    assert [f"{one.own.name}: {one.claim.says}" for one in claims if one.decisive and not one.reading] == []
    used = [one.reading for one in claims if one.reading]
    assert sorted(used, key=str) == sorted(readings(), key=str)


def test_every_claim_is_on_the_page_and_every_figure_is_there():
    page = (ROOT / "docs/claims.md").read_text(encoding="utf-8")
    papers = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert len(papers) == 3
    for own in TABLES:
        assert own.head.paper not in papers or all(claim.says in page for claim in own.claims)
    for line in page.splitlines():
        assert not line.startswith("![") or (ROOT / "docs" / line.partition("](")[2].rstrip(")")).exists()


def judged(claim: Claim, found: dict[str, object], seeds: list[float] | None = None) -> JudgedClaim:
    """Return a claim about row "a" with such a verdict on 500 test images."""
    figures = {"pgd": {"seeds": seeds} if seeds else {}}
    whole = {"scale": "small", "test_images": 500, "rows": {"a": {"figures": figures}}}
    return JudgedClaim(TABLES[0], claim, ((whole, found),), None)


@pytest.mark.parametrize(
    ("low", "high", "above", "words"),
    [
        (1.0, 9.0, 4.0, "about 8,000 test images"),  # 5 away by 1: an interval of 4 to that side must shrink fourfold
        (1.0, 9.0, 3.0, "about 2,000 test images"),
        (-15.0, 25.0, 4.0, "about 200,000 test images, if the difference stays: more than CIFAR-10 has"),
        (1.0, 9.0, 5.0, "no number of images"),
    ],
)
def test_what_would_decide_it_in_images(low: float, high: float, above: float, words: str):
    claim = Claim("more than nothing", "here", plus=("a.pgd",), above=above)
    one = judged(claim, {"outcome": "open", "value": 5.0, "low": low, "high": high})
    assert would_decide(one).startswith(words)


def test_what_would_decide_it_in_seeds():
    """Three that scatter with a deviation of 10, 9 away: 12.7, 4.3, ... x 10 / root of their number first below 9."""
    claim = Claim("more than nothing", "here", plus=("a.pgd",), above=1.0)
    one = judged(claim, {"outcome": "open", "value": 10.0, "low": -15.0, "high": 35.0}, [0.0, 10.0, 20.0])
    assert seeds_needed([[0.0, 10.0, 20.0]], 9.0) == 8
    assert would_decide(one) == "8 seeds, if more of them scatter as these do."
    assert seeds_needed([[0.0, 10.0, 20.0]], 0.1) is None
    one = judged(claim, {"outcome": "open", "value": 1.1, "low": -15.0, "high": 35.0}, [0.0, 10.0, 20.0])
    assert would_decide(one).startswith("not their mean, as trainings lie up to 20 points apart: more than 100")


def test_nothing_is_left_to_decide_where_it_is_decided():
    claim = Claim("more than nothing", "here", plus=("a.pgd",), above=1.0)
    assert would_decide(judged(claim, {"outcome": "confirmed", "value": 5.0, "low": 3.0, "high": 7.0})) == ""


def test_the_nearer_bound_counts():
    claim = Claim("much the same", "here", plus=("a.pgd",), within=3.0)
    assert distance_and_reach(claim, {"value": -2.0, "low": -6.0, "high": 1.0}) == (1.0, 4.0)
    assert distance_and_reach(claim, {"value": -5.0, "low": -6.0, "high": 1.0}) == (2.0, 6.0)
