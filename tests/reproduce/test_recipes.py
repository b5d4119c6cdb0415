"""The recipes: every row can be trained at every scale, every figure is there, every claim is the paper's."""

import tomllib
from pathlib import Path

import pytest
import torch

from planish.core.errors import BadInput
from planish.evaluation.naming import attacks_of, distance_attacks, package_of
from planish.registry import resolve
from planish.reproduce import Job, table, table_names
from planish.reproduce.claims import holds
from planish.reproduce.measured import paper_numbers
from planish.reproduce.scales import SCALES, attack_of, scale_of, scaled
from planish.reproduce.tables import HOME
from planish.runs.run import architecture

PRINTED = {
    "llr-table-2": (12, 4), "llr-table-3": (6, 5), "llr-table-4": (5, 2), "llr-table-5": (2, 3),
    "llr-table-5-imagenet": (2, 3), "llr-table-6": (4, 4), "llr-table-f2": (14, 2),
    "finlay-table-1": (4, 6), "finlay-table-1-imagenet": (5, 6), "finlay-table-2": (6, 6),
    "finlay-table-2-imagenet": (5, 6), "finlay-table-3": (6, 4), "finlay-table-3-imagenet": (5, 4),
    "seat-table-1": (10, 9), "seat-table-2": (4, 4), "seat-table-3": (5, 5), "seat-table-4": (4, 4),
    "seat-table-d1": (1, 6), "seat-table-d2": (3, 4), "seat-table-d3": (4, 3), "seat-table-e1": (6, 3),
    "fastat-cifar10": (12, 4), "fastat-cifar100": (12, 4), "fastat-tiny": (12, 4),
}  # fmt: skip
"""Rows and columns in the papers; Table 3 of LLR has its wall times as one column more. Of FastAT's board those rows
whose method planish has."""


def test_every_table_has_as_many_rows_and_columns_as_in_its_paper():
    printed = {
        name: (sum(not row.beside for row in table(name).rows.values()), len(table(name).columns))
        for name in table_names()
    }
    assert printed == PRINTED


@pytest.mark.parametrize("name", table_names())
@pytest.mark.parametrize("scale", SCALES)
def test_every_row_is_an_experiment_at_every_scale(name: str, scale: str):
    own = table(name)
    chosen = scale_of(own, scale)
    experiments = [scaled(row.experiment, chosen) for row in own.rows.values() if row.experiment is not None]
    experiments += [scaled(experiment, chosen) for experiment in own.sources.values()]
    assert experiments
    models = {repr(experiment.model): experiment.model for experiment in experiments}
    for model in models.values():
        with torch.device("meta"):
            network = architecture(model.name, model.options, own.head.classes, own.head.shape[0])
        assert sum(parameter.numel() for parameter in network.parameters()) > 1000
    for experiment in experiments:
        _ = experiment.training_method, experiment.threat.model, experiment.data.sides(experiment.settings.epochs)


@pytest.mark.parametrize("name", table_names())
@pytest.mark.parametrize("scale", SCALES)
def test_every_attack_is_known_at_every_scale(name: str, scale: str):
    own = table(name)
    for column in own.columns.values():
        attack = attack_of(column, scale_of(own, scale))
        if attack is None:
            continue
        if column.by_distance:
            assert distance_attacks([attack], own.head.classes, norm=own.head.norm)
        elif attack.startswith("transfer"):
            assert resolve(package_of(attack), attack)[1]["steps"] > 0
        else:
            assert attacks_of([attack], own.head.classes, norm=own.head.norm)


@pytest.mark.parametrize("name", table_names())
def test_figures_are_numbers_and_agree_with_what_the_paper_claims_of_them(name: str):
    own = table(name)
    numbers = paper_numbers(own)
    assert len(numbers) + sum(len(row.absent) for row in own.rows.values()) == len(own.rows) * len(own.columns)
    assert own.claims
    for claim in own.claims:
        assert holds(claim, numbers) is (not claim.contradicted), claim.says


@pytest.mark.parametrize(
    ("name", "figure", "value"),
    [
        ("llr-table-2", "wrn-28-8-llr.multi", 51.13),
        ("llr-table-2", "wrn-40-8-adv-relu.multi", 46.89),
        ("llr-table-3", "llr-16.random", 43.80),
        ("llr-table-f2", "wrn-40-8-llr-4-075.pgd", 55.47),
        ("finlay-table-1", "l1-1.error-8", 58.69),
        ("finlay-table-2", "undefended-smooth.ratio", -0.20),
        ("finlay-table-3", "undefended-smooth.max-hessian", 8134.26),
        ("seat-table-1", "seat-fl.aa", 45.8),
        ("seat-table-2", "pgd-at.square", 37.9),
        ("seat-table-e1", "rs-fgsm.upper", 2878.518),
    ],
)
def test_some_figures_against_the_papers(name: str, figure: str, value: float):
    assert paper_numbers(table(name))[figure] == value


def test_settings_are_the_papers():
    llr = table("llr-table-2").row("wrn-40-8-llr").experiment
    assert llr is not None and llr.model.name == "wide-resnet-40-8" and llr.model.options == {"activation": "softplus"}
    assert (llr.settings.epochs, llr.settings.batch_size, llr.settings.weight_decay) == (110, 256, 2e-4)
    assert [round(110 * drop) for drop in llr.settings.drops] == [100, 105]
    penalty = table("finlay-table-1").row("l1-1").experiment
    assert penalty is not None and (penalty.settings.epochs, penalty.settings.drop_factor) == (200, 0.2)
    assert [round(200 * drop) for drop in penalty.settings.drops] == [60, 120, 160]
    seat = table("seat-table-1").row("seat").experiment
    assert seat is not None and (seat.settings.epochs, seat.settings.schedule) == (30, "onecycle")


@pytest.mark.parametrize("name", [name for name in table_names() if table(name).scales.get("small", {}).get("options")])
def test_a_scale_s_own_hyper_parameters_are_the_methods(name: str):
    """SEAT-FL floods 3 % above where SEAT's loss ended at scale small, and alike in every table: rows are shared."""
    job = Job.of(table(name), "small", Path("nowhere"))
    changed = {row: job.experiment(row).training_method for row in job.scale.options}
    assert changed and {method.flood for method in changed.values()} == {0.87}
    assert all(table(name).row(row).experiment.training_method.flood == 0.9 for row in changed)


def test_no_recipe_has_a_table_that_nothing_reads():
    known = {"paper", "printed", "title", "norm", "radius", "images", "classes", "shape", "notes"}
    known |= {"columns", "base", "rows", "sources", "claims", "scales"}
    for path in HOME.glob("*.toml"):
        assert set(tomllib.loads(path.read_text())) <= known, path.name


BROKEN = [
    ('steps = { printed = "Steps"', 'stepz = { pinted = "Steps"', "column 'stepz' has no key 'pinted'"),
    ("[rows.plain]\n", '[rows.plain]\ncolour = "red"\n', "row 'plain' has no key 'colour'"),
    (
        "learning_rate = 0.1",
        "learning_rote = 0.1",
        "[settings] has no key 'learning_rote'. Did you mean 'learning_rate'?",
    ),
    (
        'method = { name = "fgsm" }',
        'method = { name = "fgsn" }',
        "row 'robust': unknown method 'fgsn'. Did you mean 'fgsm'?",
    ),
    ('"2", "2"]', '"2"]', "row 'robust': paper lists a text for each of the columns steps, "),
    ('absent = { ratio = "printed as a dash" }\n', "", "row 'plain': 'ratio' needs a printed text or a reason"),
    ('missing = "nobody has the code"', "", "row 'lost' says either how it is trained or why it is missing"),
    ('minus = ["lost.pgd"]', 'minus = ["lost.pdg"]', "speaks of 'lost.pdg', which is no row.column"),
    ("within = 100.5", "within = 100.5\nabove = 1", "needs one of above, below and within"),
    ('source = "plain"', 'source = "plane"', "column 'ratio' needs 'plane'. Did you mean 'plain'?"),
    ('why = "nobody knows it"', 'note = "x"', "a missing column says why"),
    ("places = 2", "places = 0", "places"),
    ("classes = 3", "classes = 3\ncolumns.x = 3", ""),
]


@pytest.mark.parametrize(("old", "new", "message"), BROKEN)
def test_a_broken_table_names_the_file_and_the_key(
    old: str, new: str, message: str, squares_folder: Path, tmp_path: Path
):
    text = (squares_folder / "table-0.toml").read_text()
    assert old in text
    path = tmp_path / "broken.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(BadInput) as raised:
        table(str(path))
    assert "broken.toml" in str(raised.value) and message in str(raised.value)
