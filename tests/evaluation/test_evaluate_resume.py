"""A killed evaluation goes on where it was; a record of something else is refused."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from planish.attacks.gradient import APGD, FGSM, PGD, RandomTargeted
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import L2, Linf
from planish.core.words import another
from planish.evaluation.evaluate import EvaluationStep, evaluate_steps
from planish.records.evaluation import Evaluation, load, save

ATTACKS = {"fgsm": FGSM(), "pgd-3-2": PGD(3, 2), "random-targeted-3-1": RandomTargeted(3, 1), "apgd": APGD(4)}
RADIUS = Linf(0.015)
ABOUT = {"model": {"name": "small"}, "data": {"name": "noise", "classes": ["a", "b", "c", "d"]}}
Make = Callable[[], nn.Module]


def arrays(record: Evaluation) -> dict[str, Any]:
    """Everything but the wall time."""
    columns = {c.name: [c.margin, c.distance, c.predicted, c.target, c.forwards, c.backwards] for c in record.columns}
    return {"clean": [record.clean_margin, record.clean_predicted], **columns}


def same(one: Evaluation, other: Evaluation) -> bool:
    first, second = arrays(one), arrays(other)
    pairs = [pair for name in first for pair in zip(first[name], second[name], strict=True)]
    return list(first) == list(second) and all(
        np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f") for a, b in pairs
    )


def steps(network: nn.Module, images: Batch, **options: Any) -> Iterator[EvaluationStep]:
    return evaluate_steps(network, images, threat=RADIUS, attacks=ATTACKS, seed=3, about=ABOUT, **options)


@pytest.mark.parametrize("finished", [0, 1, 3])
def test_resumed_equals_uninterrupted(finished: int, make_network: Make, images: Batch, tmp_path: Path):
    """Killed after some attacks; another process, whose random state is another, goes on from the saved record."""
    *_, whole = steps(make_network(), images)
    first = steps(make_network(), images)
    for _ in range(finished + 1):
        save(next(first).evaluation, tmp_path / "evaluation.npz")
    first.close()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        later = [step.evaluation for step in steps(make_network(), images, earlier=load(tmp_path / "evaluation.npz"))]
    assert [len(record.columns) for record in later] == list(range(finished, 5))
    assert same(later[-1], whole.evaluation)
    assert 0 < whole.evaluation.robust_accuracy().hits < whole.evaluation.clean_accuracy().hits


def test_each_attack_in_a_process_of_its_own(make_network: Make, images: Batch, tmp_path: Path):
    path, record = tmp_path / "evaluation.npz", None
    for _ in ATTACKS:
        process = steps(make_network(), images, earlier=record)
        next(process)
        save(next(process).evaluation, path)
        process.close()
        record = load(path)
    *_, whole = steps(make_network(), images)
    assert same(record, whole.evaluation)


def test_an_attack_that_is_done_is_not_run_again(make_network: Make, images: Batch):
    *_, whole = steps(make_network(), images)
    network, asked = make_network(), []
    network.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
    (again,) = steps(network, images, earlier=whole.evaluation)
    assert same(again.evaluation, whole.evaluation) and sum(asked) == len(images.x)


def test_an_attack_does_not_depend_on_those_before_it(make_network: Make, images: Batch):
    """Its noise is keyed by its name: on the images that it faces in both records, it finds the same."""
    *_, after = evaluate_steps(make_network(), images, threat=RADIUS, attacks={"fgsm": FGSM(), "pgd": PGD(3, 2)})
    *_, alone = evaluate_steps(make_network(), images, threat=RADIUS, attacks={"pgd": PGD(3, 2)})
    both = after.evaluation.column("pgd").attempted
    one, other = (judged.evaluation.column("pgd").margin[both] for judged in (after, alone))
    np.testing.assert_allclose(one, other, atol=1e-4)
    assert 0 < both.sum() < alone.evaluation.column("pgd").attempted.sum()


@pytest.mark.parametrize("what", ["model", "data", "threat", "norm", "seed"])
def test_a_record_of_something_else_is_refused(what: str, make_network: Make, images: Batch):
    (clean,) = evaluate_steps(make_network(), images, threat=RADIUS, attacks={}, seed=0)
    network, threat, seed = make_network(), RADIUS, 0
    if what == "model":
        next(network.parameters()).data[0] += 1e-6
    elif what == "data":
        images = images._replace(labels=images.labels.flip(0))
    elif what == "threat":
        threat = Linf(0.016)
    elif what == "norm":
        what, threat = "threat", L2(0.015)
    else:
        seed = 1
    with pytest.raises(BadInput, match=f"the earlier evaluation is of {another(what)}; choose another folder"):
        next(evaluate_steps(network, images, threat=threat, attacks={}, seed=seed, earlier=clean.evaluation))


def test_a_record_that_says_less_of_the_same_data_goes_on(make_network: Make, images: Batch):
    """Records have come to count a data set's files and to digest its pixels: earlier ones had been refused."""
    about = {**ABOUT, "data": {**ABOUT["data"], "files": "1 file found, 0 left out"}}
    (now,) = evaluate_steps(make_network(), images, threat=RADIUS, attacks={}, about=about)
    said = now.evaluation.meta
    less = {key: said["data"][key] for key in ("name", "classes", "digest")}
    earlier = replace(now.evaluation, meta={**said, "data": less})
    *_, on = evaluate_steps(
        make_network(), images, threat=RADIUS, attacks={"fgsm": FGSM()}, about=about, earlier=earlier
    )
    assert on.evaluation.names == ("fgsm",) and on.evaluation.meta["data"] == said["data"]
    other = replace(now.evaluation, meta={**said, "data": {**less, "digest": "0" * 64}})
    with pytest.raises(BadInput, match="the earlier evaluation is of other data"):
        next(evaluate_steps(make_network(), images, threat=RADIUS, attacks={}, about=about, earlier=other))


def test_another_attack_of_the_same_name_is_refused(make_network: Make, images: Batch):
    """Or a weaker one, done earlier, would pass for it."""
    *_, weak = evaluate_steps(make_network(), images, threat=RADIUS, attacks={"pgd": PGD(2, 1), "fgsm": FGSM()})
    with pytest.raises(BadInput, match="the earlier evaluation ran another attack named 'pgd'"):
        next(
            evaluate_steps(make_network(), images, threat=RADIUS, attacks={"pgd": PGD(50, 10)}, earlier=weak.evaluation)
        )
    (same_one,) = evaluate_steps(
        make_network(), images, threat=RADIUS, attacks={"pgd": PGD(2, 1)}, earlier=weak.evaluation
    )
    assert same_one.evaluation.names == ("pgd", "fgsm")


def test_the_seed_decides(make_network: Make, images: Batch):
    found = []
    for seed in (0, 0, 1):
        *_, judged = evaluate_steps(make_network(), images, threat=RADIUS, attacks={"pgd": PGD(1, 1)}, seed=seed)
        found.append(replace(judged.evaluation, meta={**judged.evaluation.meta, "seed": 0}))
    assert same(found[0], found[1]) and not same(found[0], found[2])
