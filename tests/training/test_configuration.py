import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from planish.core.errors import BadInput
from planish.core.threat import Linf
from planish.methods.adversarial import PGDAT
from planish.methods.llr import LLR
from planish.registry import components
from planish.runs.config import (
    DataOptions,
    Experiment,
    Named,
    ThreatOptions,
    experiment_from,
    experiment_of,
    make,
    override,
    read,
    to_toml,
)
from planish.training.settings import Settings


def round_trip(experiment: Experiment) -> Experiment:
    return experiment_from(tomllib.loads(to_toml(experiment)))


def test_every_default_is_written_out_and_read_back():
    text = to_toml(Experiment())
    for line in ("[settings]", "learning_rate = 0.2", "ema = 0.0", 'radius = "8/255"', "flip = false", "seed = 0"):
        assert line in text.splitlines()
    assert round_trip(Experiment()) == Experiment() == experiment_from({})


def test_the_default_method_is_planishs_own():
    assert experiment_of(None, {}, []).method == Experiment().method == Named("planish-at")


def test_an_experiment_comes_back_from_toml():
    experiment = Experiment(
        data=DataOptions('C:\\data "x"', limit=7, validation=2, crop=4, flip=True, cutout=16),
        model=Named("wide-resnet", {"depth": 10, "activation": "gelu"}),
        method=Named("llr-4", {"slope_weight": 0.25, "inner_gradient": "exact"}),
        threat=ThreatOptions("L2", 0.5),
        settings=Settings(epochs=3, schedule="onecycle", ema=0.999, precision="bf16", decay_norms=False),
        seed=12,
    )
    assert round_trip(experiment) == experiment
    assert round_trip(experiment).training_method == LLR(steps=4, slope_weight=0.25, inner_gradient="exact")


@settings(max_examples=25, deadline=None)
@example('\x7f \N{GRINNING FACE} " \\ \r\n\t \x00')
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_comes_back_from_toml(text: str):
    """Emoji, quotes, backslashes, control characters: what JSON escapes, TOML need not."""
    experiment = replace(Experiment(), data=DataOptions(source=text))
    assert round_trip(experiment) == experiment


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 1e6), st.integers(0, 2**62))
def test_any_number_comes_back_from_toml(rate: float, seed: int):
    experiment = replace(Experiment(), settings=Settings(learning_rate=rate), seed=seed)
    assert round_trip(experiment) == experiment


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("settings.epochs=10", {"settings": {"epochs": 10}}),
        (" settings.epochs = 10 ", {"settings": {"epochs": 10}}),
        ("data.flip=true", {"data": {"flip": True}}),
        ("threat.radius=8/255", {"threat": {"radius": "8/255"}}),
        ("threat.radius=0.03", {"threat": {"radius": 0.03}}),
        ('method.name="llr"', {"method": {"name": "llr"}}),
        ("method.name=llr-10", {"method": {"name": "llr-10"}}),
        ("data.source=npz:/a=b.npz", {"data": {"source": "npz:/a=b.npz"}}),
        ("seed=3", {"seed": 3}),
    ],
)
def test_overrides(assignment: str, expected: dict[str, Any]):
    assert override({}, assignment) == expected


def test_overrides_are_applied_to_a_copy():
    tree = {"settings": {"epochs": 3, "ema": 0.5}}
    assert override(tree, "settings.epochs=4") == {"settings": {"epochs": 4, "ema": 0.5}}
    assert tree == {"settings": {"epochs": 3, "ema": 0.5}}


@pytest.mark.parametrize("assignment", ["settings.epochs", "=3", " =3", "seed.x=1"])
def test_bad_overrides(assignment: str):
    with pytest.raises(BadInput, match=r"override|not a table"):
        override({"seed": 1}, assignment)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llr-10", LLR(steps=10)),
        ("llr", LLR()),
        ("pgd-7", PGDAT(7)),
        ("pgd-20", PGDAT(20)),
        ("rs-fgsm", components("methods")["rs-fgsm"]()),
    ],
)
def test_numbers_in_names_are_the_first_options(name: str, expected: object):
    assert make("methods", name, {}) == expected


def test_options_beat_numbers_and_too_many_numbers_are_refused():
    assert make("methods", "pgd-7", {"steps": 3}).steps == 3
    with pytest.raises(BadInput, match="'standard-1-2' has more numbers than method 'standard' takes"):
        make("methods", "standard-1-2", {})


@pytest.mark.parametrize("radius", ["8/255", 8 / 255, "0.031372549019607843"])
def test_radii(radius: str | float):
    assert experiment_from({"threat": {"radius": radius}}).threat.model == Linf(8 / 255)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"setings": {}}, "no key 'setings'. Did you mean 'settings'"),
    ({"settings": {"epoch": 3}}, r"\[settings\] has no key 'epoch'. Did you mean 'epochs'"),
    ({"settings": {"epochs": 2.5}}, "epochs = 2.5 is wrong"),
    ({"settings": {"epochs": "many"}}, "epochs = 'many' is wrong"),
    ({"settings": {"epochs": 0}}, "epochs must be from 1 to "),
    ({"settings": {"learning_rate": -0.1}}, "learning_rate must be from 0 to "),
    ({"settings": {"clip": -1.0}}, "clip must be at least 0"),
    ({"settings": {"momentum": 1.0}}, "momentum must be in"),
    ({"method": {"name": "pgd-0"}}, "steps must be at least 1, got 0"),
    ({"method": {"name": "llr-0"}}, "steps must be at least 1, got 0"),
    ({"method": {"name": "seat", "linearity_weight": -1}}, "linearity_weight must be at least 0"),
    ({"method": {"name": "gradient-penalty", "weight": -1}}, "weight must be at least 0"),
    ({"method": {"name": "trades", "beta": -1}}, "beta must be at least 0"),
    ({"settings": {"schedule": "linear"}}, "schedule = 'linear' is wrong.*triangular"),
    ({"settings": 3}, r"'settings' is a table: write \[settings\]"),
    ({"method": "llr"}, r"'method' is a table: write \[method\]"),
    ({"method": {"steps": 3}}, r'\[method\] needs a name, for instance name = "planish-at"'),
    ({"method": {"name": "ller"}}, "unknown method 'ller'. Did you mean 'llr'"),
    ({"method": {"name": "llr", "step": 3}}, "method 'llr' has no key 'step'. Did you mean 'steps'"),
    ({"method": {"name": "llr", "inner_gradient": "rough"}}, "inner_gradient = 'rough' is wrong"),
    ({"method": {"name": "pgd", "steps": "x"}}, "steps = 'x' is wrong"),
    ({"threat": {"norm": "L3"}}, "unknown norm 'L3'"),
    ({"threat": {"radius": 8}}, "8/255"),
    ({"threat": {"radius": "-1/255"}}, "not negative"),
    ({"threat": {"radius": [1]}}, "radius"),
    ({"seed": "one"}, "seed must be a whole number, not 'one'"),
    ({"seed": True}, "seed must be a whole number, not True"),
    ({"seed": 1.0}, "seed must be a whole number, not 1.0"),
    ({"data": {"crop": "a"}}, "crop = 'a' is wrong"),
    ({"data": {"size": 0}}, "data.size must be from 1 to 16384, got 0"),
    ({"data": {"workers": -1}}, "data.workers must be from 0 to 1024, got -1"),
    ({"data": {"stream": "sometimes"}}, "stream = 'sometimes' is wrong.*'auto'"),
    ({"data": {"resolutions": [[0.5, 8]]}}, r"start at shares \[0.5\] of the training: write them rising from 0"),
    ({"data": {"resolutions": [[0, 8], [0.5, 0]]}}, r"are \[8, 0\] pixels: 1 or more are needed"),
    ({"data": {"resolutions": [128]}}, "resolutions.0 = 128 is wrong"),
]


@pytest.mark.parametrize(("tree", "message"), WRONG)
def test_wrong_trees_say_what_is_right(tree: dict[str, Any], message: str):
    with pytest.raises(BadInput, match=message) as caught:
        experiment_from(tree)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_configuration(tmp_path: Path):
    file = tmp_path / "x.toml"
    with pytest.raises(BadInput, match="no configuration file"):
        read(file)
    for content in (b"epochs = ", b"\xff\xfe"):
        file.write_bytes(content)
        with pytest.raises(BadInput, match="is not TOML"):
            read(file)
    with pytest.raises(BadInput, match="is not TOML"):
        read(tmp_path)


@pytest.mark.parametrize(("code", "missing"), [("pass", "__call__"), ("__call__ = print", "second_order")])
def test_a_method_of_ones_own_is_checked_before_anything_is_loaded(code: str, missing: str, tmp_path: Path):
    """It was an AttributeError, said to be planish's mistake."""
    (tmp_path / "own.py").write_text(f"class Own:\n    {code}\n")
    with pytest.raises(BadInput, match=rf"own\.py:Own' makes a Own, which is no method: it has no {missing}; derive"):
        experiment_from({"method": {"name": f"{tmp_path}/own.py:Own"}})
