"""Issue 20, item 8: what other libraries call things leads to what they are called here."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import planish as pl
from planish.core.synonyms import SYNONYMS
from planish.registry import components
from planish.runs.config import SECTIONS, experiment_from, experiment_of

KEYS = [
    ("settings.lr=0.1", r"\[settings\] has no key 'lr'\. Did you mean 'learning_rate'\?"),
    ("settings.batch=64", "Did you mean 'batch_size'"),
    ("settings.wd=0.1", "Did you mean 'weight_decay'"),
    ("settings.optim=adamw", "Did you mean 'optimizer'"),
    ("settings.optimizer=adam", "optimizer = 'adam' is wrong: input should be 'sgd' or 'adamw'"),
    ("settings.eps=8/255", r"\[settings\] has no key 'eps'\. Did you mean 'threat\.radius'\?"),
    ("threat.eps=8/255", r"\[threat\] has no key 'eps'\. Did you mean 'radius'\?"),
    ("threat.epsilon=8/255", "Did you mean 'radius'"),
    ("threat.ord=2", "Did you mean 'norm'"),
    ("data.path=digits", "Did you mean 'source'"),
    ("data.lr=1", "Did you mean 'settings.learning_rate'"),
    ("lr=0.1", "the configuration has no key 'lr'. Did you mean 'settings.learning_rate'"),
    ("epsilon=0.1", "Did you mean 'threat.radius'"),
    ("method.lambda=6", "method 'trades' has no key 'lambda'. Did you mean 'beta'"),
    ("method.iters=6", "Did you mean 'steps'"),
    ("method.alpha=6", "Did you mean 'step_in_radii'"),
    ("method.arch=x", "Did you mean 'method.name'"),
]


@pytest.mark.parametrize(("assignment", "message"), KEYS)
def test_issue_20_a_key_of_the_field_leads_to_the_right_one(assignment: str, message: str):
    with pytest.raises(pl.BadInput, match=message) as raised:
        experiment_of(None, {"method.name": "trades"}, [assignment])
    assert "\n" not in str(raised.value)
    table, _, key = assignment.partition("=")[0].rpartition(".")
    if table in SECTIONS and key != "optimizer":  # as in a file
        with pytest.raises(pl.BadInput, match=message):
            experiment_from({table: {key: 1}})


def test_issue_20_an_architecture_is_the_model_s_name():
    for key, hint in (
        ("arch", "model.name"),
        ("backbone", "model.name"),
        ("act", "activation"),
        ("ckpt", "model.weights"),
    ):
        with pytest.raises(pl.BadInput, match=rf"'{key}'\. Did you mean '{hint}'\?"):
            pl.models.build("small-cnn", classes=10, channels=1, **{key: 1})


def call(name: str, *args: Any, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(pl, name)(*args, **options)


CALLS = [
    (call("Linf", eps="8/255"), r"Linf has no argument 'eps'\. Did you mean 'radius'\? Known: radius, low, high"),
    (call("L2", epsilon=0.5), r"L2 has no argument 'epsilon'\. Did you mean 'radius'"),
    (call("Settings", lr=0.1), r"Settings has no argument 'lr'\. Did you mean 'learning_rate'\?"),
    (call("Settings", optimizer="Adam"), r"settings\.optimizer must be one of sgd, adamw, not 'Adam'"),
    (call("Settings", schedule="linear"), r"settings\.schedule must be one of triangular, "),
    (
        call("train", None, "digits", eps=0.1),
        r"train has no argument 'eps'\. Did you mean threat=planish\.Linf\(radius=\.\.\.\)\?",
    ),
    (call("train", None, "digits", lr=0.1), r"Did you mean settings=planish\.Settings\(learning_rate=\.\.\.\)\?"),
    (call("train", None, "digits", batch_size=1), r"Did you mean settings=planish\.Settings\(batch_size=\.\.\.\)\?"),
    (call("train", None, "digits", num_epochs=1), r"Did you mean 'epochs'"),
    (call("evaluate", None, None, None, eps=0.1), r"Did you mean threat=planish\.Linf\(radius=\.\.\.\)"),
    (call("evaluate_steps", None, images=1), "Did you mean 'x'"),
    (call("evaluate", None, targets=1), r"Did you mean x=planish\.Batch\(targets=\.\.\.\)\?"),
    (call("evaluate", None, target=1), "Did you mean 'labels'"),
    (lambda: pl.attacks.PGD()(nn.Flatten(), targets=1), r"Did you mean x=planish\.Batch\(targets=\.\.\.\)\?"),
    (call("audit", None, None, None, epsilon=0.1), r"Did you mean threat=planish\.Linf\(radius=\.\.\.\)"),
    (call("audit_steps", None, targets=1), "Did you mean 'labels'"),
    (call("minimum_distance", None, y=1), "Did you mean 'labels'"),
    (call("verify", None, eps=1), r"Did you mean threat=planish\.Linf\(radius=\.\.\.\)"),
    (call("train", None, (), [], threat="Linf:0.1"), r"takes model, data without a name, .*: \(x, labels\)$"),
    (call("train", None, ()), r"train needs threat$"),
    (call("train", None, "digits", threat="Linf:0.1", guard=True), r"a guard is planish\.Guard\(every=25\), not True"),
    (call("train", None, "digits", threat="Linf:0.1", settings={"epochs": 1}), r"settings are planish\.Settings\(ep"),
    (call("train", None, "digits", threat="Linf:0.1", settings={}), r"settings are planish\.Settings\(epochs"),
    (call("Settings", drops=0.5), r"settings\.drops must be a list, such as \[0\.5\], got 0\.5"),
    (call("evaluate", None, [], [], "Linf:0.1", "fgsm", 1, 2, 3, 4, 5, 6, 7), "evaluate takes model, x, labels"),
    (
        call("evaluate", nn.Flatten(), torch.zeros(2, 3, 3), 0, "Linf:0.1"),
        r"got \(2, 3, 3\); one image is x\[None\], grey images without channels are x\[:, None\]",
    ),
    (
        call("audit", nn.Flatten(), torch.zeros(1, 1, 1, 2), [0], "Linf:0"),
        "an audit needs a radius above 0: at 0 nothing can be searched",
    ),
    (call("evaluate"), "evaluate needs model, x$"),
    (
        lambda: pl.measures.local_linearity(nn.Flatten(), torch.zeros(1, 1, 1, 2), [0]),
        r"local_linearity: missing a required argument: 'threat'; it takes model, x, labels, threat",
    ),
    (lambda: pl.measures.local_linearity(None, None, None, eps=1), r"local_linearity has no argument 'eps'"),
    (lambda: pl.attacks.PGD(eps=1), r"PGD has no argument 'eps': the call with images takes threat=planish\.Linf\(rad"),
    (
        lambda: pl.attacks.PGD(threat=1),
        r"PGD has no argument 'threat': the call with images takes threat",
    ),
    (lambda: pl.attacks.PGD(alpha=1), r"Did you mean 'step_in_radii'\? Known: steps, restarts, step_in_radii"),
    (lambda: pl.attacks.PGD(nn.Identity()), r"steps must be at least 1, got Identity\(\)"),
    (lambda: pl.attacks.PGD(steps=2.5), r"steps must be a whole number, got 2\.5"),
    (lambda: pl.attacks.FGSM(nn.Identity()), r"FGSM takes no arguments; all else is for the call with images"),
    (
        lambda: pl.methods.PGDAT(eps=1),
        r"PGDAT has no argument 'eps': planish\.train takes threat=planish\.Linf\(radius",
    ),
    (lambda: pl.methods.TRADES(beta="6"), r"beta must be at least 0, got '6'"),
]


@pytest.mark.parametrize(("wrong", "message"), CALLS, ids=range(len(CALLS)))
def test_issue_20_an_argument_of_the_field_leads_to_the_right_one(wrong: Callable[[], Any], message: str):
    with pytest.raises(pl.BadInput, match=message) as raised:
        wrong()
    assert "\n" not in str(raised.value)


def test_a_model_made_under_inference_mode_is_refused():
    with torch.inference_mode():
        network = nn.Linear(2, 2)
    with pytest.raises(
        pl.BadInput, match=r"made under torch\.inference_mode\(\), so it has no gradients: make it outside"
    ):
        pl.evaluate(nn.Sequential(nn.Flatten(), network), torch.zeros(1, 1, 1, 2), [0], "Linf:0.1")


def test_synonyms_are_of_names_that_there_are():
    """And none of them is itself a name where it would lead astray: what is known is never looked up."""
    known = {key for kind in SECTIONS.values() for key in kind.__dataclass_fields__}
    for package in ("methods", "attacks", "models"):
        for component in components(package).values():
            known |= {*pl.registry.inspect.signature(component).parameters}
    known |= {"name", "weights", "x", "labels", "model", "data", "out", "device", "attacks", "seed"}
    assert {*SYNONYMS} <= known


def test_adamw_trains():
    x, y = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    adamw = pl.Settings(optimizer="adamw", learning_rate=0.003, epochs=2, batch_size=6)
    both = (adamw, replace(adamw, optimizer="sgd"))
    runs = [pl.train("small-cnn", (x, y), method="standard", threat="Linf:0.1", settings=own) for own in both]
    assert [run.config["settings"]["optimizer"] for run in runs] == ["adamw", "sgd"]
    assert not torch.equal(*(next(run.model.parameters()) for run in runs))
