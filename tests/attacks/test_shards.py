"""Shards of a test set make the record that one process would have written, for every attack and suite there is."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from misleading import Misleading
from small_attacks import CLASSES, DEFINED, FAR, KNOWN, few, named
from strange_models import Alone
from torch import nn

from planish.attacks.gradient import FGSM, PGD
from planish.attacks.random_search import Noise
from planish.attacks.suites import Fixed, Stage, Staged, Suite
from planish.attacks.suites.cascade import Cascade
from planish.attacks.suites.deep import Deep
from planish.core.batch import Batch
from planish.core.errors import BadInput, Unlike
from planish.core.threat import Linf, ThreatModel
from planish.core.words import another
from planish.evaluation.distances import measure
from planish.evaluation.evaluate import evaluate_steps
from planish.evaluation.naming import attacks_of
from planish.evaluation.stages import left
from planish.records.evaluation import Column, Evaluation
from planish.records.shards import ImageShard, joined
from planish.records.store import Columned
from planish.registry import components
from planish.runs.shards import cut

COUNTS = [1, 2, 3, 7]
OF = 3
"""Shards of attacks, which decide nothing by their number."""
DATA = {"name": "noise", "classes": ["a", "b", "c", "d"]}
COST = {"seconds", "meta"}
OWN = {"clean", "guards", "date", "command"}
"""Facts of a record that are times, what guards spent, and who made it."""


@pytest.fixture
def many() -> Batch:
    """Sixteen images of the network's size, with indices of their own."""
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    return Batch(x, torch.arange(16) % CLASSES, torch.arange(16) * 3 + 20)


@pytest.fixture
def model(knowing: Any, many: Batch) -> nn.Module:
    """Asked about one image at a time, so that no arithmetic depends on the others; right on three quarters."""
    network = Alone(knowing.network.eval())
    with torch.no_grad():
        many.labels.copy_(network(many.x).argmax(1))
    many.labels[::4] = (many.labels[::4] + 1) % CLASSES
    return network


def same(one: Columned, other: Columned) -> None:
    """Assert that two records are the same image by image, and in all but times, the guards' cost and who made them."""
    assert one.names == other.names
    for ours, theirs in [(one, other), *zip(one.columns, other.columns, strict=True)]:
        for part in fields(ours):
            mine, wanted = getattr(ours, part.name), getattr(theirs, part.name)
            if isinstance(mine, np.ndarray):
                np.testing.assert_array_equal(mine, wanted, err_msg=f"{getattr(ours, 'name', 'record')}: {part.name}")
                assert mine.dtype == wanted.dtype
            elif part.name in ("forwards", "backwards", "fragile"):
                assert mine == wanted, part.name
    assert [column.meta for column in one.columns] == [column.meta for column in other.columns]
    assert {key: one.meta[key] for key in one.meta if key not in OWN} == {
        key: other.meta[key] for key in other.meta if key not in OWN
    }


def shards(batch: Batch, of: int, seed: int = 0, after: Evaluation | None = None) -> dict[str, Any]:
    """Return each shard's part of the images."""
    numbers = range(1, of + 1)
    decided = after
    return {f"shard-{number}": cut(ImageShard(number, of), batch, seed, DATA, decided) for number in numbers}


@pytest.fixture(scope="module")
def wholes() -> dict[tuple[str, ThreatModel], Evaluation]:
    """The records of suites that one process writes, made once for all counts of shards."""
    return {}


def evaluated(model: nn.Module, batch: Batch, threat: ThreatModel, attacks: Mapping[str, Any], **options: Any) -> Any:
    about = {"data": DATA, **options.pop("about", {})}
    *_, last = evaluate_steps(model, batch, threat=threat, attacks=attacks, about=about, **options)
    return last.evaluation


def in_shards(
    model: nn.Module, batch: Batch, threat: ThreatModel, attacks: Mapping[str, Any], of: int, after: Any = None
) -> Evaluation:
    parts = shards(batch, of, after=after)
    found = {
        name: evaluated(model, part.images, threat, attacks, about=part.about, share=part.share, earlier=part.begun)
        for name, part in parts.items()
    }
    return joined(found)


@pytest.mark.parametrize(("name", "threat"), DEFINED, ids=named)
def test_shards_of_every_attack_make_the_whole(name: str, threat: ThreatModel, model: nn.Module, many: Batch):
    attacks = attacks_of({name: few(name)}, CLASSES, norm=threat.name)
    whole = evaluated(model, many, threat, attacks)
    assert whole.correct().sum() == 12 and whole.columns[0].attempted.any()
    same(in_shards(model, many, threat, attacks, OF), whole)


@pytest.mark.parametrize(("name", "threat"), [pair for pair in DEFINED if pair[0] in FAR], ids=named)
def test_shards_of_every_distance_attack_make_the_whole(name: str, threat: ThreatModel, model: nn.Module, many: Batch):
    ball, some = replace(threat, radius=0.0), many.select(slice(8))
    *_, whole = measure(model, some, ball, {name: few(name)}, about={"data": DATA})
    found = {}
    for place, part in shards(some, OF).items():
        about = {"data": DATA, **part.about}
        *_, found[place] = measure(model, part.images, ball, {name: few(name)}, about=about)
    same(joined(found), whole)


SMALL = {"planish-suite": Cascade(3, 2, classes=CLASSES), "planish-deep": Deep(2, 1e-9, classes=CLASSES)}
"""Suites that are small enough as they are; of others each stage is FGSM, on the images that the stage faces."""


def suite_of(name: str, norm: str) -> Suite:
    if name in SMALL:
        return SMALL[name]
    suite = attacks_of([name], CLASSES, norm=norm, surrogates=KNOWN["surrogates"])[name]
    assert isinstance(suite, Staged) and len(suite.stages) > 1
    return Fixed(tuple(stage._replace(attack=FGSM()) for stage in suite.stages))


@pytest.mark.parametrize("threat", [Linf(0.05), Linf(0.1)], ids=["easy", "hard"])
@pytest.mark.parametrize("name", sorted(components("suites")))
@pytest.mark.parametrize("of", COUNTS)
def test_shards_of_every_suite_make_the_whole(
    name: str, threat: ThreatModel, of: int, model: nn.Module, many: Batch, monkeypatch: pytest.MonkeyPatch, wholes: Any
):
    """What a suite decides by the whole test set, and what follows it, is left: one process does it, or rounds do."""
    monkeypatch.setattr("planish.attacks.suites.cascade.CHECK_SHARE", 3)
    monkeypatch.setattr("planish.attacks.suites.deep.Cascade", partial(Cascade, 3, 2))
    monkeypatch.setattr(Deep, "_round", FGSM())
    attacks = {name: suite_of(name, threat.name), "pgd": PGD(2, 1)}
    if (name, threat) not in wholes:
        wholes[name, threat] = evaluated(model, many, threat, attacks)
    whole, merged = wholes[name, threat], in_shards(model, many, threat, attacks, of)
    chooses = name in SMALL
    assert merged.meta.get("left", []) == ([name, "pgd"] if chooses else [])
    assert merged.names == (tuple(f"{name}/{stage}" for stage in ("scout", "targets")) if chooses else whole.names)
    resumed = evaluated(model, many, threat, attacks, earlier=merged)
    same(resumed, whole)
    rounds = 1
    while "left" in merged.meta and left(attacks, merged):
        merged, rounds = in_shards(model, many, threat, attacks, of, after=merged), rounds + 1
    same(replace(merged, meta={key: fact for key, fact in merged.meta.items() if key != "left"}), whole)
    assert rounds > 2 if chooses else rounds == 1


@pytest.mark.parametrize("of", [2, 3])
def test_an_escalation_is_decided_by_all_the_images(
    of: int, model: nn.Module, many: Batch, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("planish.attacks.suites.cascade.CHECK_SHARE", 1)
    few = [Stage("noise", Noise(5)), Stage("fgsm", FGSM(), because=()), Stage("pgd", PGD(2, 1))]
    monkeypatch.setattr(Cascade, "_long", tuple(few))
    attacks = {"planish-suite": Cascade(3, 2, classes=CLASSES)}
    whole = evaluated(Misleading(model), many, Linf(0.08), attacks)
    assert whole.names[4:] == tuple(f"planish-suite/{name}" for name in ("search", "noise", "fgsm", "pgd"))
    merged, rounds = in_shards(Misleading(model), many, Linf(0.08), attacks, of), 1
    while left(attacks, merged):
        merged, rounds = in_shards(Misleading(model), many, Linf(0.08), attacks, of, after=merged), rounds + 1
    same(replace(merged, meta={key: fact for key, fact in merged.meta.items() if key != "left"}), whole)
    assert rounds == 5  # scout and targets; the hard cases; the check; its search; all long stages, decided at once


class Curious(Suite):
    """One of the user's own: chooses its second attack by what the first has broken."""

    def following(self, done: Mapping[str, Column], images: int) -> Stage | None:
        if "first" not in done:
            return Stage("first", FGSM())
        if "second" in done:
            return None
        return Stage("second", PGD(2, 1) if done["first"].broken.sum() > images / 4 else PGD(3, 1))


def test_a_suite_of_one_s_own_that_looks_at_its_columns_is_left(model: nn.Module, many: Batch):
    merged = in_shards(model, many, Linf(0.05), {"own": Curious()}, 3)
    assert merged.names == ("own/first",) and merged.meta["left"] == ["own"]
    whole = evaluated(model, many, Linf(0.05), {"own": Curious()})
    same(evaluated(model, many, Linf(0.05), {"own": Curious()}, earlier=merged), whole)


def test_every_image_is_in_one_shard_and_the_seed_decides_which():
    for of in (1, 2, 3, 7, 16):
        rows = torch.cat([ImageShard(number, of).rows(16, 0) for number in range(1, of + 1)])
        assert rows.sort().values.tolist() == list(range(16))
    assert ImageShard(1, 2).rows(100, 0).tolist() != ImageShard(1, 2).rows(100, 1).tolist()
    mixed = ImageShard(1, 2).rows(1000, 0)
    assert 200 < int((mixed < 500).sum()) < 300 and 200 < int((mixed % 2 == 0).sum()) < 300


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/5", ""])
def test_what_is_no_shard_is_refused(text: str):
    with pytest.raises(BadInput, match=r"is none: write NUMBER/OF with NUMBER from 1 to OF, such as 3/16$"):
        ImageShard.parsed(text)


def test_more_shards_than_images_are_refused():
    with pytest.raises(BadInput, match=r"^17 shards of 16 images leave some empty: use at most 16$"):
        ImageShard(1, 17).rows(16, 0)


@pytest.fixture
def done(model: nn.Module, many: Batch) -> Callable[..., dict[str, Evaluation]]:
    """done(of, ...): finished shards, by FGSM unless other attacks are given."""

    def run(of: int = 3, seed: int = 0, radius: float = 0.05, batch: Batch = many, **given: Any) -> Any:
        own = given.get("attacks", {"fgsm": FGSM()})
        return {
            name: evaluated(
                given.get("model", model), part.images, Linf(radius), own, about=part.about, share=part.share, seed=seed
            )
            for name, part in shards(batch, of, seed).items()
        }

    return run


def test_a_missing_shard_is_named(done: Callable[..., dict[str, Evaluation]]):
    found = done(7)
    del found["shard-2"], found["shard-6"]
    with pytest.raises(BadInput, match=r"^missing: shard 2/7, 6/7; make each by the others' command, with --shard 2/7"):
        joined(found)


def test_a_doubled_shard_is_named(done: Callable[..., dict[str, Evaluation]]):
    found = done(2)
    with pytest.raises(BadInput, match=r"^shard 1/2 is there twice: shard-1 and again; leave one of them out$"):
        joined({**found, "again": found["shard-1"]})


def test_an_unfinished_shard_is_named(done: Callable[..., dict[str, Evaluation]]):
    found = done(2)
    record = found["shard-2"]
    facts = {key: fact for key, fact in record.meta["shard"].items() if key != "left"}
    found["shard-2"] = replace(record, meta={**record.meta, "shard": facts}, columns=())
    with pytest.raises(BadInput, match=r"^shard-2 is not finished: .* with --shard 2/2 --out shard-2 --resume$"):
        joined(found)


@pytest.mark.parametrize(
    ("what", "given"),
    [
        ("model", lambda model, many: {"model": Alone(nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)))}),
        ("data", lambda model, many: {"batch": many._replace(labels=many.labels.flip(0))}),
        ("threat", lambda model, many: {"radius": 0.06}),
        ("seed", lambda model, many: {"seed": 1}),
        ("number of shards", lambda model, many: {"of": 4}),
    ],
)
def test_a_foreign_shard_is_named(
    what: str, given: Any, done: Callable[..., dict[str, Evaluation]], model: nn.Module, many: Batch
):
    found, others = done(), done(**given(model, many))
    found["shard-2"] = others["shard-2"]
    with pytest.raises(BadInput, match=f"^shard-2 is of {another(what)} than shard-1: leave it out or make it anew$"):
        joined(found)


def test_a_shard_of_another_planish_is_named(done: Callable[..., dict[str, Evaluation]]):
    found = done()
    older = {**found["shard-3"].meta, "versions": {**found["shard-3"].meta["versions"], "planish": "0.0.1"}}
    found["shard-3"] = replace(found["shard-3"], meta=older)
    with pytest.raises(BadInput, match=r"^shard-3 is of another planish than shard-1: leave it out or make it anew$"):
        joined(found)


def test_a_shard_of_other_attacks_is_named(done: Callable[..., dict[str, Evaluation]]):
    found, others = done(), done(attacks={"fgsm": FGSM(), "pgd": PGD(2, 1)})
    found["shard-2"] = others["shard-2"]
    with pytest.raises(BadInput, match=r"^shard-2 ran other attacks \(fgsm, pgd\) than shard-1 \(fgsm\)"):
        joined(found)


def test_a_whole_record_is_no_shard(done: Callable[..., dict[str, Evaluation]], model: nn.Module, many: Batch):
    whole = evaluated(model, many, Linf(0.05), {"fgsm": FGSM()})
    with pytest.raises(BadInput, match=r"^whole holds no shard but a whole record"):
        joined({**done(2), "whole": whole})


def test_a_shard_does_not_go_on_with_a_record_of_other_images(model: nn.Module, many: Batch):
    other = many._replace(labels=many.labels.flip(0))
    record = evaluated(model, other, Linf(0.05), {"fgsm": FGSM()})
    with pytest.raises(Unlike, match=r"^the record of all shards is of other data"):
        shards(many, 2, after=record)
