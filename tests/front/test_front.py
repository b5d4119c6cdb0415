"""The front door: what `import planish as pl` alone gives, and what it says of a wrong argument."""

import csv
import inspect
import runpy
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import planish as pl
from planish.attacks import run
from planish.cli import judge
from planish.core.losses import margin
from planish.core.randomness import seeded


class Linear(nn.Module):
    """Two colours apart: class 1 where the first pixel is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([-1.0, 1.0, 0.2]))

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, 0, 0, :1] - 0.5) * self.weight


@pytest.fixture
def model() -> nn.Module:
    return Linear()


@pytest.fixture
def x() -> Tensor:
    return torch.linspace(0.05, 0.95, 12).reshape(12, 1, 1, 1).expand(12, 1, 4, 4).clone()


@pytest.fixture
def y(x: Tensor) -> Tensor:
    return (x[:, 0, 0, 0] > 0.5).long()


def test_an_attack_is_called_on_images(model: nn.Module, x: Tensor, y: Tensor):
    """It finds what `run` finds with the seed's generator; margins are the model's own."""
    attack, threat = pl.attacks.PGD(steps=5, restarts=2), pl.Linf(0.2)
    found = attack(model, x, y, threat, seed=3)
    inside = run(attack, model, pl.Batch(x, y), threat, generator=seeded(3))
    assert torch.equal(found.x_adv, inside.x_adv) and torch.equal(found.passes, inside.passes)
    assert torch.equal(found.margin, margin(model(found.x_adv), y).detach())
    assert torch.equal(found.success, found.margin >= 0) and 0 < found.success.sum() < len(x)
    assert torch.equal(found.success, (x[:, 0, 0, 0] - 0.5).abs() <= 0.2)


@pytest.mark.parametrize("change", [lambda x: x.numpy(), lambda x: x.numpy().astype(np.float64), lambda x: x])
def test_arrays_tensors_and_batches_are_the_same(
    model: nn.Module, x: Tensor, y: Tensor, change: Callable[[Tensor], Any]
):
    attack = pl.attacks.APGD(5)
    expected = attack(model, pl.Batch(x, y), None, pl.Linf(0.2))
    found = attack(model, change(x), y.tolist(), "linf:0.2")
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_targeted_attack_succeeds_where_it_reaches_its_class(model: nn.Module, x: Tensor, y: Tensor):
    found = pl.attacks.LeastLikelyTargeted(30, 1)(model, x, y, pl.Linf(0.9))
    reached = model(found.x_adv).argmax(1)
    assert found.success.any() and (reached[found.success] != y[found.success]).all()


def test_a_distance_attack_is_called_on_images(model: nn.Module, x: Tensor, y: Tensor):
    found = pl.attacks.Closest(20)(model, x, y, "Linf")
    torch.testing.assert_close(found.distance, (x[:, 0, 0, 0] - 0.5).abs(), atol=2e-3, rtol=0)
    near = pl.attacks.DeepFool()(model, x, y, "Linf:0.2")
    assert found.success.all() and torch.equal(near.success, near.distance <= 0.2) and not near.success.all()


def test_autoattack_is_one_attack_too(model: nn.Module, x: Tensor, y: Tensor):
    found = pl.attacks.AutoAttack()(model, x[3:9], y[3:9], pl.Linf(0.2))
    assert torch.equal(found.success, (x[3:9, 0, 0, 0] - 0.5).abs() <= 0.2) and not found.success.all()


def test_an_evaluation_by_name_and_by_object_is_the_same(model: nn.Module, x: Tensor, y: Tensor):
    """An object's name is the one by which it would be asked for, and its random numbers are keyed by it."""
    threat = pl.Linf(0.2)
    by_name = pl.evaluate(model, x, y, threat, "pgd-5-2")
    for attacks in (pl.attacks.PGD(5, 2), [pl.attacks.PGD(5, 2)], {"pgd-5-2": pl.attacks.PGD(5, 2)}, ["pgd-5-2"]):
        found = pl.evaluate(model, x, y, threat=threat, attacks=attacks)
        assert found.names == ("pgd-5-2",)
        np.testing.assert_array_equal(found.columns[0].margin, by_name.columns[0].margin)
    steps = [step.evaluation.names for step in pl.evaluate_steps(model, x, y, threat, "fgsm,pgd-2-1")]
    assert steps == [(), ("fgsm",), ("fgsm", "pgd-2-1")]


def test_adversarial_images_are_saved_and_verified(model: nn.Module, x: Tensor, y: Tensor, tmp_path: Path):
    res = pl.evaluate(model, x, y, "Linf:0.2", "fgsm")
    res.save_adversarials(tmp_path / "adv.npz")
    verified = pl.verify(model, x, y, str(tmp_path / "adv.npz"), pl.Linf(0.2))
    assert verified.robust.hits == res.robust_accuracy().hits and verified.infeasible == 0
    closer = pl.verify(model, x, y, tmp_path / "adv.npz", pl.Linf(0.1))
    assert closer.infeasible == (np.abs(res.x_adv - x.numpy()).max((1, 2, 3)) > 0.1001).sum() > 0
    with pytest.raises(pl.BadInput, match="has image 2, which the images given does not hold"):
        pl.verify(model, x[:2], y[:2], tmp_path / "adv.npz", pl.Linf(0.2))
    steps = list(pl.evaluate_steps(model, x, y, "Linf:0.2", "fgsm"))
    with pytest.raises(pl.BadInput, match=r"this record holds no images; planish\.evaluate returns one that does"):
        steps[-1].evaluation.save_adversarials(tmp_path / "none.npz")


def test_an_audit_tries_the_images_of_other_models(model: nn.Module, x: Tensor, y: Tensor):
    """Its check `transfer` is open where none were given."""
    with_one, alone = (pl.audit(model, x, y, pl.Linf(0.1), **how) for how in ({"surrogates": [Linear()]}, {}))
    told = [{found.check: found.meaning for found in one.findings}["transfer"] for one in (with_one, alone)]
    assert told[0].startswith("Images made on 1 other model break 0 of") and told[1] == "No other model was given."


def test_python_and_the_command_line_have_the_same_defaults():
    """But for the device: Python computes where the tensors are."""
    pairs = {
        (pl.evaluate, judge.evaluate): ("attacks", "seed", "precision", "eot"),
        (pl.audit, judge.audit): ("seed", "budget"),
    }
    for (call, command), names in pairs.items():
        for name in names:
            assert (
                inspect.signature(call).parameters[name].default == inspect.signature(command).parameters[name].default
            )
    own, typed = inspect.signature(pl.minimum_distance).parameters, inspect.signature(judge.distances).parameters
    assert (own["norm"].default, own["attack"].default) == (typed["norm"].default, typed["attacks"].default)


def test_distances_are_measured_by_name_and_object(model: nn.Module, x: Tensor, y: Tensor):
    named = pl.minimum_distance(model, x, y, norm="Linf", attack="closest")
    own = pl.minimum_distance(model, x, y, "Linf", {"mine": pl.attacks.Closest()})
    assert named.names == ("closest",) and own.names == ("mine",)
    np.testing.assert_array_equal(named.of(), own.of())


def test_training_in_memory_and_into_a_folder_agree(tmp_path: Path):
    digits, settings = "digits", pl.Settings(batch_size=256, learning_rate=0.1)
    options: dict[str, Any] = {"method": "fgsm", "threat": "Linf:0.1", "epochs": 1, "settings": settings}
    one = pl.train("small-cnn", digits, **options)
    other = pl.train("small-cnn", digits, out=tmp_path / "run", **options)
    opened = pl.load_run(str(tmp_path / "run"))
    assert other.folder == tmp_path / "run" and opened.config == other.config
    assert all(opened.config[key] == one.config[key] for key in ("model", "threat", "seed"))
    assert opened.config["settings"]["epochs"] == one.config["settings"]["epochs"] == 1
    assert one.history[0]["loss"] == other.history[0]["loss"] == opened.history[0]["loss"]
    weights = one.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in opened.model.state_dict().items())


def test_a_module_and_arrays_are_trained(x: Tensor, y: Tensor):
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    before = network[1].weight.detach().clone()
    trained = pl.train(network, (x.numpy(), y.numpy()), method=pl.methods.SEAT(), threat=pl.Linf(0.1), epochs=2)
    assert not torch.equal(before, network[1].weight) and not trained.model.training and len(trained.history) == 2
    assert trained.config["method"]["name"] == "seat" and trained.config["settings"]["epochs"] == 2
    assert trained.about["classes"] == ["0", "1"]


def test_measures_take_images_and_are_drawn(model: nn.Module, x: Tensor, y: Tensor):
    assert pl.measures.local_linearity(model, x, y, "Linf:0.1", steps=2).gamma.shape == (12,)
    assert pl.measures.curvature(model, x.numpy(), y, steps=2).norm.shape == (12,)
    planes = pl.measures.loss_plane(model, x[:2], y[:2], pl.Linf(0.1), points=5)
    assert planes.loss.shape == (2, 5, 5) and planes.along[0, [0, -1]] == pytest.approx([-0.15, 0.15])
    expected = nn.functional.cross_entropy(model(x[:2]), y[:2], reduction="none")
    np.testing.assert_allclose(planes.loss[:, 2, 2], expected.detach(), rtol=1e-5)
    assert pl.plot.loss_surface(planes, image=1).axes
    evaluation = pl.evaluate(model, x, y, "Linf:0.1", "fgsm,noise-3")
    for draw in (pl.plot.accuracies, pl.plot.margins, pl.plot.passes):
        assert draw(evaluation).axes and draw({"one": evaluation, "two": evaluation}).axes
    assert pl.plot.distances(pl.minimum_distance(model, x, y, "Linf", "deepfool")).axes
    assert pl.plot.gammas({"one": np.linspace(0, 1, 5)}).axes


def test_an_audit_is_saved_with_its_page(model: nn.Module, x: Tensor, y: Tensor, tmp_path: Path):
    steps = list(pl.audit_steps(model, x, y, pl.Linf(0.1)))
    rep = steps[-1]
    page = rep.save(tmp_path / "audit")
    assert rep.complete and page.name == "audit.html" and "images in memory" in page.read_text()
    from planish.records.audit import load

    assert load(tmp_path / "audit").verdict == rep.verdict
    import planish.audit.auditor  # the room of the same name does not take the call's place

    assert planish.audit.auditor.checks() if hasattr(planish.audit, "auditor") else callable(pl.audit)


# --- wrong arguments --------------------------------------------------------------------------------------------

WRONG: list[tuple[Callable[..., Any], str]] = [
    (lambda m, x, y: pl.evaluate(m, x, y, pl.Linf(0.1), "pdg-5"), r"unknown attack 'pdg-5'\. Did you mean 'pgd'\?"),
    (lambda m, x, y: pl.evaluate_steps(m, x, y, pl.Linf(0.1), 5), r'attacks are a name such as "autoattack" .*, not 5'),
    (lambda m, x, y: pl.evaluate_steps(m, x, y, pl.Linf(0.1), [pl.attacks.PGD]), r"not .*; call the class: PGD\(\)"),
    (lambda m, x, y: pl.evaluate_steps(m, x, y, pl.Linf(0.1), {"a": 1}), "attack 'a' must be a name or an attack"),
    (lambda m, x, y: pl.evaluate_steps(m, x, y, pl.Linf(0.1), ["fgsm", "fgsm"]), "an attack is given twice"),
    (lambda m, x, y: pl.evaluate_steps(m, x * 255, y, pl.Linf(0.1)), r"pixels lie in .*, not in \[0, 1\]; .* by 255"),
    (lambda m, x, y: pl.evaluate_steps(m, (x * 255).byte(), y, pl.Linf(0.1)), "images x are torch.uint8; .* by 255"),
    (lambda m, x, y: pl.evaluate_steps(m, x, y.float(), pl.Linf(0.1)), r"labels must be whole numbers \(N,\), not"),
    (lambda m, x, y: pl.evaluate_steps(m, x, None, pl.Linf(0.1)), "labels are missing"),
    (lambda m, x, y: pl.evaluate_steps(m, x, y[:3], pl.Linf(0.1)), r"labels must be int64 of shape \(12,\)"),
    (
        lambda m, x, y: pl.evaluate_steps(m, x, y + 5, pl.Linf(0.1)),
        r"labels lie in 5\.\.6, but the model has 3 classes",
    ),
    (lambda m, x, y: pl.evaluate_steps(m, "images", y, pl.Linf(0.1)), "images x must be a tensor or a NumPy array"),
    (lambda m, x, y: pl.evaluate_steps(m, pl.Batch(x, y), y, pl.Linf(0.1)), "a Batch holds its labels already"),
    (lambda m, x, y: pl.evaluate_steps("model", x, y, pl.Linf(0.1)), r"must be a torch\.nn\.Module .*, not 'model'"),
    (lambda m, x, y: pl.evaluate_steps(m, x, y, "Linf"), "threat 'Linf' has no radius; write a norm and a radius"),
    (lambda m, x, y: pl.evaluate_steps(m, x, y, "Lnf:0.1"), r"unknown norm 'Lnf'\. Did you mean 'Linf'\?"),
    (lambda m, x, y: pl.evaluate_steps(m, x, y, "Linf:big"), "radius 'big' is not a number"),
    (lambda m, x, y: pl.evaluate_steps(m, x, y), r'no threat is given: write threat="Linf:8/255"'),
    (
        lambda m, x, y: pl.evaluate_steps(m, x, y, pl.Linf(0.1), precision="fp32"),
        "precision must be one of float32, bf16",
    ),
    (lambda m, x, y: pl.evaluate_steps(m, x, y, pl.Linf(0.1), seed="a"), "seed must be a whole number, not 'a'"),
    (lambda m, x, y: pl.attacks.PGD()(m, x, y, 0.1), r"a threat is .*, not 0\.1"),
    (lambda m, x, y: pl.attacks.PGD()(m, x, y, "Linf:0.1", seed=1.5), r"seed must be a whole number, not 1\.5"),
    (
        lambda m, x, y: pl.attacks.PGD()(m, x, y, eps=0.1),
        r"call with images .* 'eps'. Did you mean threat=planish.Linf",
    ),
    (lambda m, x, y: pl.attacks.DDN()(m, x, y, restart=2), "the call with images has no argument 'restart'"),
    (lambda m, x, y: pl.attacks.PGD()(m), "the call with images needs x"),
    (lambda m, x, y: pl.attacks.PGD()(m, x, y, "L2:1", 3), "takes model, x, labels, threat without a name"),
    (lambda m, x, y: pl.evaluate_steps(m, x, y, pl.Linf(0.1), {"a": print}), "'a' must be .* planish.verify judges"),
    (lambda m, x, y: pl.attacks.PGD(steps=0), "steps must be at least 1, got 0"),
    (lambda m, x, y: pl.attacks.APGD(loss="mse"), "APGD knows the losses ce, dlr, targeted, not 'mse'"),
    (lambda m, x, y: pl.minimum_distance(m, x, y, "L3"), r"unknown norm 'L3'"),
    (lambda m, x, y: pl.minimum_distance(m, x, y, "L2", "pgd"), "'pgd' searches a ball of fixed radius; .* closest"),
    (lambda m, x, y: pl.minimum_distance(m, x, y, "L2", pl.attacks.PGD()), "'pgd-50-10' searches a ball of fixed"),
    (lambda m, x, y: pl.audit_steps(m, x, y, pl.Linf(0.1), "fast"), "unknown budget 'fast'"),
    (lambda m, x, y: pl.audit_steps(m, x, y, pl.Linf(0.1), checks=["none.py:x"]), "cannot import 'none.py' for check"),
    (lambda m, x, y: pl.audit_steps(m, x, y, pl.Linf(0.1), surrogates={"a": nn.Identity()}), "surrogate 'a': "),
    (lambda m, x, y: pl.train(m, "digits", threat="Linf:0.1", method="trads"), r"'trads'\. Did you mean 'trades'\?"),
    (lambda m, x, y: pl.train(m, "digits", threat="Linf:0.1", method=pl.methods.SEAT), r"call the class: SEAT\(\)"),
    (lambda m, x, y: pl.train(m, x, threat="Linf:0.1"), r"data is a text such as .*, not a Tensor"),
    (lambda m, x, y: pl.train(m, (x * 255, y), threat="Linf:0.1"), r"pixels lie in"),
    (lambda m, x, y: pl.train(5, (x, y), threat="Linf:0.1"), r"the model is a torch\.nn\.Module or a name .*, not 5"),
    (lambda m, x, y: pl.train("small-cmm", (x, y), threat="Linf:0.1"), "Did you mean 'small-cnn'"),
    (lambda m, x, y: pl.train(m, "digits", threat="Linf:0.1", out="runs/x"), "must name its model"),
    (lambda m, x, y: pl.load_run("nowhere"), r"no weights at nowhere"),
    (lambda m, x, y: pl.load_run(3), "a path is a text or a pathlib.Path, not 3"),
    (lambda m, x, y: pl.verify(m, x, y, "nowhere.npz", pl.Linf(0.1)), "there is no nowhere.npz"),
    (lambda m, x, y: pl.measures.local_linearity(m, x, y, "Linf"), "threat 'Linf' has no radius"),
    (lambda m, x, y: pl.measures.local_linearity(m, x * 9, y, pl.Linf(0.1)), "pixels lie in"),
    (lambda m, x, y: pl.plot.loss_surface([1]), r"loss_surface draws what planish\.measures\.loss_plane returns"),
    (lambda m, x, y: pl.plot.margins(3), "give an Evaluation or a dict"),
    (lambda m, x, y: pl.list("atacks"), r"cannot list 'atacks'\. Did you mean 'attacks'\?"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_arguments_are_told_at_once(
    call: Callable[..., Any], message: str, model: nn.Module, x: Tensor, y: Tensor
):
    """Nothing is iterated here: the call itself raises."""
    with pytest.raises(pl.BadInput, match=message) as raised:
        call(model, x, y)
    assert "\n" not in str(raised.value)


# --- what an import costs ---------------------------------------------------------------------------------------


def loaded(code: str) -> set[str]:
    """What of these is imported once the code has run in an interpreter of its own."""
    heavy = ("torch", "numpy", "matplotlib", "jinja2", "pydantic", "typer", "sympy")
    end = f"\nimport sys; print(*sorted(set({heavy}) & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code + end], capture_output=True, text=True, check=True).stdout
    return set(out.split())


def test_naming_things_loads_no_more_than_they_need():
    assert loaded("import planish as pl; dir(pl)") == set()
    for code in ("import planish as pl; pl.attacks.PGD(); pl.attacks.AutoAttack()", "from planish.attacks import PGD"):
        assert loaded(code) == {"torch", "numpy"}
    assert loaded("import planish as pl; pl.methods.SEAT(); pl.Linf(0.1)") == {"torch", "numpy"}
    named = "import planish as pl, planish.reproduce; pl.evaluate; pl.minimum_distance; pl.list('attacks')"
    asked = "from planish.cli.main import app; app(['evaluate', 'no.py:x', '--data', 'digits', '--radius', '1'])"
    assert "matplotlib" not in loaded(f"{named}\ntry:\n    {asked}\nexcept SystemExit:\n    pass")


def test_attacks_do_without_pytorch_s_compiler():
    """Half a second of every command: sympy and 485 modules of PyTorch came with the first gradient."""
    model = "torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).eval()"
    code = f"import planish as pl, torch; x = torch.rand(2, 1, 2, 2); model = {model}; labels = model(x).argmax(1)"
    assert "sympy" not in loaded(f"{code}; pl.evaluate(model, x, labels, 'Linf:0.1', 'planish-suite')")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_does_without_pytorch_s_compiler(optimizer: str, tmp_path: Path):
    """As long as importing PyTorch: its optimizers load it, and what counts the arithmetic of a step."""
    words = ["train", "--data", "digits", "--epochs", "1", "--out", str(tmp_path / "run")]
    for setting in ("data.limit=32", "settings.batch_size=16", f"settings.optimizer='{optimizer}'"):
        words += ["--set", setting]
    found = loaded(f"from planish.cli.main import app\ntry:\n    app({words})\nexcept SystemExit:\n    pass")
    assert "torch" in found and "sympy" not in found and (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("room", [pl, pl.attacks, pl.methods], ids=lambda room: room.__name__)
def test_every_public_name_is_there_and_completed(room: Any):
    assert {*room.__all__} <= {*dir(room)}
    assert all(getattr(room, name) is not None for name in room.__all__)
    with pytest.raises(AttributeError, match=f"module '{room.__name__}' has no attribute 'Nothing'"):
        _ = room.Nothing


def test_every_registered_attack_and_method_is_public():
    from planish.registry import components

    for room, package in ((pl.attacks, "attacks"), (pl.methods, "methods")):
        kinds = [kind for kind in components(package).values() if isinstance(kind, type)]
        assert kinds and {kind.__name__ for kind in kinds} <= {*room.__all__, "APGDDLR"}


# --- records show themselves --------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Counts tags that open and close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open += [] if tag == "img" else [tag]
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_records_show_themselves(model: nn.Module, x: Tensor, y: Tensor, monkeypatch: pytest.MonkeyPatch):
    evaluation = pl.evaluate(model, x, y, "Linf:0.1", {"<fgsm>": pl.attacks.FGSM()})
    records = [evaluation, pl.minimum_distance(model, x, y, "Linf", "deepfool"), pl.audit(model, x, y, pl.Linf(0.1))]
    for record in records:
        text, tags = str(record).splitlines(), Tags()
        assert text[0] == record.headline() and len(text) == len(record.rows()) + 4 + len(record.remarks())
        assert repr(record) == f"<{type(record).__name__}: {record.headline()}>", "a line, not pages of arrays"
        tags.feed(record._repr_html_())
        assert tags.open == [] and tags.seen.count("tr") == len(record.rows()) + 1 and tags.seen.count("img") == 1
    assert "&lt;fgsm&gt;" in evaluation._repr_html_() and "accuracy 8" in evaluation.headline()
    clean, fgsm = csv.DictReader(evaluation.to_csv().splitlines())
    assert (clean["attack"], fgsm["attack"]) == ("none (clean)", "<fgsm>")
    assert float(clean["accuracy_low"]) < float(clean["accuracy"]) == 1 and fgsm["images"] == "12"
    assert all(len(record.to_csv().splitlines()) == len(record.rows()) + 1 for record in records)


@pytest.mark.packages("pandas")
def test_a_frame_of_pandas_has_the_rows(model: nn.Module, x: Tensor, y: Tensor):
    frame = pl.evaluate(model, x, y, "Linf:0.1", "fgsm").to_pandas()
    assert list(frame["attack"]) == ["none (clean)", "fgsm"] and frame["accuracy_low"][0] < frame["accuracy"][0] == 1


def test_without_pandas(model: nn.Module, x: Tensor, y: Tensor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(pl.BadInput, match="to_pandas needs pandas, which is not installed: pip install pandas"):
        pl.evaluate(model, x, y, "Linf:0.1", "fgsm").to_pandas()


# --- the ten tasks ------------------------------------------------------------------------------------------------


@pytest.mark.timeout(900)
def test_ten_tasks_with_planish_alone(capsys: pytest.CaptureFixture[str]):
    path = Path(__file__).parents[2] / "examples" / "ten_tasks.py"
    imports = [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
    assert imports == ["from tempfile import mkdtemp", "import planish as pl"]
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    for start in ("trained for 3 epochs", "PGD misclassifies", "local linearity", "audit:", "nearest", "verified:"):
        assert any(line.startswith(start) for line in lines), start
    assert any(line.startswith("autoattack/square") for line in lines) and "opened a run of fgsm, 1 epoch" in lines


ROOMS = (pl, pl.attacks, pl.methods, pl.models, pl.data, pl.measures, pl.plot, pl.compat)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)
def test_a_tab_offers_the_public_names_alone(room: ModuleType):
    """Issue: planish.models offered torch, Callable and Component, and planish itself sys."""
    offered = {name for name in dir(room) if not name.startswith("_")}
    assert offered == {*room.__all__} and all(hasattr(room, name) for name in offered)


def test_a_threat_is_one_text_or_two():
    assert pl.parse_threat("linf:8/255") == pl.parse_threat("Linf", "8/255") == pl.Linf(8 / 255)
    with pytest.raises(pl.BadInput, match="threat 'L2' has no radius; write a norm and a radius"):
        pl.parse_threat("L2")
    with pytest.raises(pl.BadInput, match="unknown norm 'Linf:8/255'"):
        pl.parse_threat("Linf:8/255", 0.1)


def test_a_threat_in_the_place_of_the_labels_is_told(model: nn.Module, x: Tensor, y: Tensor):
    with pytest.raises(pl.BadInput, match='no threat is given: write threat="Linf:8/255"'):
        pl.evaluate(model, (x, y), "Linf:0.1")


def test_what_an_attack_returns_is_said_in_a_line(model: nn.Module, x: Tensor, y: Tensor):
    """Issue: print(attack(...)) filled pages of a terminal with pixels."""
    found = pl.attacks.FGSM()(model, x, y, "Linf:0.1")
    assert str(found) == f"<AttackResult: success on {int(found.success.sum())} of 12 images>"
    near = pl.attacks.DeepFool()(model, x, y, "L2:0")
    assert str(near).startswith("<DistanceResult: success on 12 of 12 images, median distance ")
