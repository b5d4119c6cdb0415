"""What a sweep searches, and what it refuses before anything is trained."""

from collections.abc import Callable
from typing import Any

import pytest

from planish.cli.sweep import _recipes, _rows
from planish.core.errors import BadInput
from planish.runs.space import Sweep, dimension

MakeSweep = Callable[..., Sweep]
WEIGHT = "method.linearity_weight=log(0.1,10)"


@pytest.mark.parametrize(
    ("text", "kind", "values"),
    [
        ("method.linearity_weight=log(0.1,10)", "log", (0.1, 10.0)),
        (" settings.learning_rate = uniform( 0.05 , 1e-1 ) ", "uniform", (0.05, 0.1)),
        ("settings.batch_size=int(16,64)", "int", (16, 64)),
        ("model.activation=choice(relu, gelu)", "choice", ("relu", "gelu")),
        ("method.linearity_weight=grid(0,0.1,0.3)", "grid", ("0", "0.1", "0.3")),
    ],
)
def test_a_dimension_is_read(text: str, kind: str, values: tuple[Any, ...]):
    found = dimension(text)
    assert (found.kind, found.values) == (kind, values)
    assert dimension(str(found)) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("method.linearity_weight", "is wrong: write KEY=log(0.1,10)"),
        ("method.linearity_weight=0.5", "is wrong: write KEY=log(0.1,10)"),
        ("method.linearity_weight=lgo(0.1,10)", "there is no 'lgo'. Did you mean 'log'?"),
        ("method.linearity_weight=log(0,1)", "above 0, the smaller one first"),
        ("method.linearity_weight=uniform(2,1)", "the smaller one first"),
        ("method.linearity_weight=uniform(nan,1)", "the smaller one first"),
        ("method.linearity_weight=log(1)", "log takes two numbers"),
        ("method.steps=int(1,2.5)", "int takes two whole numbers"),
        ("model.activation=choice()", "name each value once"),
        ("model.activation=choice(relu,relu)", "name each value once"),
        ("threat.radius=uniform(0.1,0.2)", "trials are judged on the same images at one threat"),
        ("data.validation=int(10,20)", "trials are judged on the same images"),
        ("seed=int(0,3)", "trials are judged on the same images"),
    ],
)
def test_a_malformed_space_is_one_line(text: str, words: str):
    with pytest.raises(BadInput) as found:
        dimension(text)
    assert words in str(found.value) and f"'{text}'" in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ("method.linearity_wieght=log(0.1,10)", "Did you mean 'linearity_weight'?"),
        ("settings.epoch=int(1,2)", "Did you mean 'epochs'?"),
        ("setting.epochs=int(1,2)", "Did you mean 'settings'?"),
        ("model.widht=int(2,4)", "Did you mean 'width'?"),
        ("model.activation=choice(relu,swoosh)", "swoosh"),
        ("method.linearity_weight=uniform(-1,1)", "linearity_weight"),
    ],
)
def test_unknown_keys_and_values_are_named_before_anything_is_trained(space: str, words: str, make_sweep: MakeSweep):
    with pytest.raises(BadInput) as found:
        make_sweep(space).check()
    assert words in str(found.value)


@pytest.mark.parametrize(
    ("space", "options", "words"),
    [
        ((), {}, "needs a --space"),
        ((WEIGHT, WEIGHT), {}, "names method.linearity_weight twice"),
        ((WEIGHT, "model.width=grid(2,4)"), {}, "is no grid, and others are"),
        ((WEIGHT,), {"objective": "robust"}, "Did you mean 'robust-accuracy'?"),
        ((WEIGHT,), {"trials": 0}, "--trials must be at least 1"),
        ((WEIGHT,), {"attacks": ()}, "no attack is named; see: planish list attacks"),
        ((WEIGHT,), {"seed": -1}, "seed must be from 0 to 9223372036854775807, not -1"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(space: Any, options: Any, words: str, make_sweep: MakeSweep):
    with pytest.raises(BadInput) as found:
        make_sweep(*space, **options)
    assert words in str(found.value)


def test_images_must_be_held_out(make_sweep: MakeSweep, recipe: dict[str, Any]):
    recipe["data"]["validation"] = 0
    with pytest.raises(BadInput, match=r"never on test images.*--set data\.validation=1000"):
        make_sweep(WEIGHT).check()


def test_data_that_are_not_there_are_told_before_a_trial(make_sweep: MakeSweep, recipe: dict[str, Any]):
    recipe["data"]["source"] = "nowhere"
    with pytest.raises(BadInput, match="no data 'nowhere'"):
        make_sweep(WEIGHT).check()


def test_unknown_attacks_are_named(make_sweep: MakeSweep):
    with pytest.raises(BadInput, match="pgd"):
        make_sweep(WEIGHT, attacks=("pgdd",)).check()


def test_a_grid_has_each_point_once_and_limits_the_trials(make_sweep: MakeSweep):
    found = make_sweep("method.linearity_weight=grid(0,0.5)", "model.width=grid(2,3)")
    values = [(one["method.linearity_weight"], one["model.width"]) for one in found.points]
    assert values == [("0", "2"), ("0", "3"), ("0.5", "2"), ("0.5", "3")]
    assert found.most == 4 and make_sweep("model.width=grid(2,3)", trials=9).most == 2
    experiment = found.experiment(found.points[3])
    assert experiment.method.options["linearity_weight"] == 0.5 and experiment.model.options["width"] == 3
    assert make_sweep(WEIGHT).most == 20


@pytest.mark.parametrize(
    ("table", "rows", "key", "values"),
    [
        ("seat-table-3", 5, "linearity_weight", [0.0, 0.1, 0.3, 0.5, 0.7]),
        ("llr-table-f2", 14, "slope_weight", [0.2, 0.3, 0.5, 0.5, 2.0, 0.75, 0.85]),
    ],
)
def test_the_papers_tables_are_sweeps(table: str, rows: int, key: str, values: list[float]):
    trees = _recipes(table, "cpu", "digits", ["data.validation=64"])
    space = dimension(f"row=grid({','.join(trees)})")
    found = Sweep(trees, (space,), "both")
    found.check()
    experiments = [found.experiment(point) for point in found.points]
    assert len(experiments) == rows == found.most
    assert [one.method.options[key] for one in experiments if key in one.method.options] == values
    assert {(one.data.source, one.data.validation) for one in experiments} == {("digits", 64)}


def test_a_range_beside_the_rows_of_a_table():
    """Issue: the rows were a grid that nobody had asked for, and the range was refused because it is none."""
    trees, wanted = _recipes("seat-table-3", "cpu", "digits", ["data.validation=64"]), dimension(WEIGHT)
    found = Sweep(trees, (*_rows(trees, [wanted]), wanted))
    found.check()
    assert [own.kind for own in found.space] == ["choice", "log"] and found.most == 20 and not found.points
    assert [own.kind for own in _rows(trees, [])] == ["grid"]
