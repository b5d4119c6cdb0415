"""Defects found in other libraries: `ELSEWHERE` names the tests of those that are not here."""

import gc
import inspect
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from sketch import sketches
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from planish.attacks import Attack, Within, Worst, components_of, run
from planish.attacks.ascents import Untargeted
from planish.attacks.gradient import PGD, PGDMargin
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import cross_entropy, margin
from planish.core.randomness import seeded
from planish.core.threat import L0, L2, Linf, ThreatModel
from planish.evaluation.evaluate import evaluate_steps
from planish.registry import components, make
from planish.search.ascent import ascend
from planish.search.objectives import loss_of, objective_of
from planish.search.step_rules import Steepest

ATTACKS = sorted(components("attacks"))
ELSEWHERE = {
    "resume raises: auto-attack writes a set as a string and then misses a variable": (
        "evaluation/test_evaluate_resume.py::test_resumed_equals_uninterrupted",
        "evaluation/test_kept.py::test_kill_minus_nine_in_the_middle_of_an_attack",
    ),
    "a resumed accuracy raises: RobustBench takes the mean of booleans": (
        "evaluation/test_evaluate_resume.py::test_resumed_equals_uninterrupted",
    ),
    "checkpoints need pickle (MAIR, MadryLab)": (
        "training/test_checkpoints.py::test_foreign_resume_files_run_no_code",
        "cli/test_cli_errors.py::test_a_pickle_is_never_loaded",
    ),
    "channels_last images crash (auto-attack's .view)": (
        "attacks/test_attack_contracts.py::test_memory_layout_changes_nothing_on_oblong_images",
        "evaluation/test_evaluate.py::test_images_are_not_changed_and_may_be_strided",
    ),
    "gradients are left in the parameters (six libraries)": (
        "attacks/test_attack_contracts.py::test_the_model_and_the_world_stay_as_they_are",
    ),
    "a frozen batch norm comes back in training mode (torchattacks)": (
        "attacks/test_attack_contracts.py::test_the_model_and_the_world_stay_as_they_are",
    ),
    "a model left in training mode is attacked so, and its statistics move (auto-attack)": (
        "evaluation/test_evaluate_models.py::test_a_model_left_in_training_mode",
    ),
    "the global random state is seeded (torchattacks, auto-attack, MAIR)": (
        "attacks/test_attack_contracts.py::test_the_model_and_the_world_stay_as_they_are",
    ),
    "undefined names in the L2 branch (DeepRobust)": (
        "attacks/test_attack_contracts.py::test_feasible_honest_and_never_worse_than_the_clean_image",
    ),
    "momentum is fed with signs (foolbox)": (
        "contracts/test_rules.py::test_momentum_is_mi_fgsm",
        "attacks/test_attack_parity.py::test_foolbox_mi_fgsm",
    ),
    "a random start where none was asked for (ares)": ("attacks/test_attack_parity.py::test_pgd_from_the_image",),
    "only the last restart counts, for every image (MadryLab)": (
        "attacks/test_attack_contracts.py::test_more_restarts_and_longer_suites_never_lower_a_score",
        "attacks/test_dropping.py::test_bit_for_bit",
    ),
    "what is scored is not what was attacked (ares: images without their normalization)": (
        "attacks/test_attack_contracts.py::test_feasible_honest_and_never_worse_than_the_clean_image",
        "evaluation/test_evaluate.py::test_an_attack_that_lies_is_judged_by_the_model",
    ),
    "margins of negative logits (torchattacks' C&W)": (
        "attacks/test_carlini_wagner.py::test_negative_logits_change_nothing",
        "contracts/test_losses.py::test_margins_by_hand",
    ),
    "black and white pixels cannot move (torchattacks' C&W)": (
        "attacks/test_carlini_wagner.py::test_linear_models_on_black_and_white_images",
    ),
    "one constant for all, and the whole batch ends together (torchattacks' C&W)": (
        "attacks/test_carlini_wagner.py::test_torchattacks_iterates",
        "attacks/test_carlini_wagner.py::test_a_batch_is_its_halves_in_any_order",
    ),
    "one step size for all in L2 (torchattacks' APGD-T), no projection in L2 (foolbox' FMN)": (
        "attacks/test_attack_parity.py::test_apgd_towards_a_target",
        "attacks/test_fmn.py::test_foolbox_step_by_step",
    ),
    "several forwards for a step or a query (ART's C&W and Square)": (
        "attacks/test_carlini_wagner.py::test_passes",
        "attacks/test_square.py::test_the_best_candidate_is_returned",
        "contracts/test_ascent.py::test_passes",
    ),
    "AutoAttack with 10 steps (torchattacks, MAIR), or without APGD-T and FAB (ART)": (
        "evaluation/test_suites.py::test_autoattack_is_the_published_four_with_their_budgets",
    ),
    "broken images are attacked to the end (all but a few)": (
        "contracts/test_ascent.py::test_an_image_that_has_arrived_costs_nothing_more",
        "attacks/test_dropping.py::test_on_networks",
    ),
    "bfloat16 weights are refused (auto-attack, ART, MadryLab)": (
        "attacks/test_attack_contracts.py::test_bfloat16_weights",
        "evaluation/test_evaluate.py::test_bf16_searches_and_float32_judges",
    ),
    "images outside [0, 1] are silently clamped (auto-attack, torchattacks, adversarial-library)": (
        "evaluation/test_evaluate_models.py::test_images_that_cannot_be_judged",
        "evaluation/test_evaluate.py::test_an_attack_that_leaves_the_ball_or_the_box_is_an_error",
    ),
    "radius 0 changes images (torchattacks)": (
        "attacks/test_attack_contracts.py::test_radius_zero_returns_the_clean_images",
    ),
    "nothing left to attack is an error (auto-attack's Square)": (
        "evaluation/test_evaluate.py::test_nothing_is_left_to_attack",
        "attacks/test_attack_contracts.py::test_no_image_is_left",
    ),
    "training never leaves evaluation mode (ART)": (
        "contracts/test_methods.py::test_running_statistics_are_updated_as_often_as_the_docstring_says",
    ),
}
PUBLISHED = {
    "pgd": (50, 10, 1),
    "untargeted": (200, 20, 1),
    "random-targeted": (200, 20, 1),
    "multi-targeted": (200, 20, 9),
    "apgd-ce": (100, 1, 1),
    "apgd-dlr": (100, 1, 1),
    "apgd-t": (100, 1, 9),
}


def attack_of(name: str, classes: int, **options: int) -> Attack:
    takes = inspect.signature(components("attacks")[name]).parameters
    wanted = {"classes": classes, "surrogates": sketches(classes), **options}
    made = make("attacks", name, {key: value for key, value in wanted.items() if key in takes})
    return Within(made) if hasattr(made, "distances") else made


def ball(name: str, linf: Linf, l2: L2) -> ThreatModel:
    if name == "sigma-zero":
        return L0(200 * linf.radius)
    return l2 if name in ("ddn", "carlini-wagner") else linf


def small_network(classes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Softplus(), nn.Linear(6, classes)).eval()


def some_images(network: nn.Module) -> Batch:
    x = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return Batch(x, network(x).argmax(1), torch.arange(10))


def test_tests_elsewhere_are_there():
    tests = Path(__file__).parents[1]
    for names in ELSEWHERE.values():
        for file, name in (test.split("::") for test in names):
            assert f"def {name}(" in (tests / file).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_knows_few_classes(name: str, classes: int):
    """auto-attack warns that its losses and target counts do not fit, then ends in an IndexError."""
    network = small_network(classes)
    images, attack = some_images(network), attack_of(name, classes, steps=2, restarts=2, queries=150)
    found, refused = None, ""
    try:
        found = run(attack, network, images, ball(name, Linf(0.1), L2(0.4)), generator=seeded(0))
    except BadInput as error:
        refused = str(error)
    assert "at least 4 classes" in refused or (found is not None and found.score.isfinite().all())
    assert found is None or (found.target < classes).all()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_number_of_steps_is_what_runs(name: str):
    """torchattacks' and MAIR's AutoAttack never pass the steps on and run 10 where 100 are published."""
    steps, restarts, targets = PUBLISHED[name]
    parts: list[Any] = list(components_of(attack_of(name, 10).assembled(10)))
    assert [part.steps for part in parts] == [steps] * restarts * targets


LOOPED = ["deepfool", "fab", "carlini-wagner", "apgd-dlr", "square"]


@pytest.mark.parametrize("name", LOOPED)
def test_all_images_and_classes_share_a_forward(name: str):
    """torchattacks' DeepFool takes one image at a time, foolbox' one class, ART's DLR loss loops over the images."""
    network = small_network(4)
    images = some_images(network)
    attack, threat = attack_of(name, 4, steps=5, restarts=1, queries=20, searches=1), ball(name, Linf(0.1), L2(0.4))
    calls: list[int] = []
    network.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))

    def asked(batch: Batch) -> int:
        calls.clear()
        attack.search(network, batch, threat, generator=seeded(0))
        return len(calls)

    single = [asked(images.select(slice(row, row + 1))) for row in range(10)]
    assert max(single) <= asked(images) <= max(single) + 1


class Noting(TorchFunctionMode):
    """Notes the name of every function of torch that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.names.add(getattr(function, "__name__", ""))
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("name", ATTACKS)
def test_images_stay_where_they_are(name: str, monkeypatch: pytest.MonkeyPatch):
    """secml-torch moves images to the device and gradients back at every step, ART everything by way of numpy.

    Whatever is made where nothing was said is made elsewhere here, and does not mix with the images. Of all functions
    that make the host wait only the look for finished images is used, once CPUs are no exception.
    """
    monkeypatch.setattr("planish.search.ascent.AT_ONCE", ())
    network = small_network(4)
    images = some_images(network)
    attack, threat = attack_of(name, 4, steps=3, restarts=2, queries=30), ball(name, Linf(0.1), L2(0.4))
    with torch.device("meta"), Noting() as noted:
        found = run(attack, network, images, threat, generator=seeded(0))
    assert found.x_adv.device == images.x.device and "nonzero" in noted.names
    assert not noted.names & {"cpu", "cuda", "numpy", "tolist", "item", "__bool__", "__float__", "__array__"}


class Wave(nn.Module):
    """Two classes; class 1 wins only in a narrow band of brightness, over which large steps jump back and forth."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: Tensor) -> Tensor:
        height = 0.5 - (self.scale * (x.mean((1, 2, 3)) - 0.6)).square()
        return torch.stack([-height, height], 1)


def test_an_iterate_that_succeeds_is_kept():
    """torchattacks, foolbox and ART return the last iterate, whether it is the best or not."""
    images = Batch(torch.full((1, 1, 2, 2), 0.53), torch.tensor([0]), torch.arange(1))
    attack = Untargeted(Steepest(1.0), 2, start="image")
    visited: list[Tensor] = []
    wave = Wave()
    wave.register_forward_pre_hook(lambda module, inputs: visited.append(inputs[0].detach()))
    found = attack.search(wave, images, Linf(0.09), generator=seeded(0))
    scores = [margin(wave(x).detach(), images.labels).item() for x in visited[1:3]]
    assert scores[0] < 0 <= scores[1] and found.step.item() == 1 and found.passes.item() == 4
    assert found.score.item() == pytest.approx(scores[1])
    on = ascend(objective_of(wave, loss_of(cross_entropy, images.labels)), images.x, Linf(0.09), attack.rule, 2)
    assert margin(wave(on).detach(), images.labels).item() < 0


class Poisoned(nn.Module):
    """A network whose gradient is NaN, but its logits are not, at images whose first pixel is 0."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + 0 * x[:, 0, 0, :1].abs().sqrt()


@pytest.mark.parametrize("name", ATTACKS)
def test_one_nan_poisons_nobody_else(name: str):
    """A NaN gradient of one image spoils ART's PGD for the whole batch."""
    network = small_network(4)
    images = some_images(network)
    x = images.x.clone()
    x[:, 0, 0, 0] = 0.5
    x[2, 0, 0, 0] = 0.0
    images = images._replace(x=x, labels=network(x).argmax(1))
    attack = attack_of(name, 4, steps=3, restarts=1, targets=1, queries=150)
    threat = ball(name, Linf(0.05), L2(0.2))
    others = torch.arange(10) != 2
    found = run(attack, Poisoned(network), images, threat, generator=seeded(0))
    alone = run(attack, Poisoned(network), images.select(others), threat, generator=seeded(0))
    torch.testing.assert_close(found.x_adv[others], alone.x_adv, atol=1e-6, rtol=0)
    assert found.x_adv.isfinite().all() and found.score.isfinite().all()
    assert threat.feasible(found.x_adv, images.x).all()


def test_survivors_are_refilled_into_full_batches():
    """auto-attack's APGD-T lets a batch shrink target after target and never refills it."""
    network = small_network(4)
    images = some_images(network)
    after_one = run(PGDMargin(2, 1), network, images, Linf(0.3), generator=seeded(0)).score
    survivors = int((after_one < 0).sum())
    assert 4 < survivors < 10
    visits: list[tuple[int, int]] = []
    keep = lambda progress: visits.append((progress.component, progress.visited))  # noqa: E731
    run(PGDMargin(2, 3), network, images, Linf(0.3), generator=seeded(0), chunk=4, keep=keep)
    assert visits[:5] == [(0, 4), (0, 8), (0, 10), (1, 4), (1, survivors)]


def test_nothing_stays_hooked_to_the_model():
    """adversarial-library counts passes with hooks that it never takes away, and needs CUDA events to do so."""
    network = small_network(4)
    images = some_images(network)
    for _ in evaluate_steps(network, images, threat=Linf(0.1), attacks={"pgd": PGD(2, 1)}):
        pass
    kinds = [name for name in vars(network) if name.endswith("hooks")]
    assert len(kinds) > 4
    for module in network.modules():
        assert not any(getattr(module, kind) for kind in kinds)
        assert not any(parameter._backward_hooks for parameter in module.parameters())
    gone = weakref.ref(network)
    del network, module
    gc.collect()
    assert gone() is None


def test_the_loss_is_not_scaled_by_the_batch():
    """A mean over the batch makes each gradient smaller the more images there are (torchattacks, PGD)."""
    network = small_network(4)
    images = some_images(network)
    seen: dict[int, Tensor] = {}

    class Noting(Steepest):
        def step(self, point: Any, state: None) -> tuple[Tensor, None]:
            seen[len(point.x)] = point.gradient
            return super().step(point, state)

    attack = Untargeted(Noting(1.0), 1, start="image")
    for batch in (images, images.select(slice(0, 1))):
        attack.search(network, batch, Linf(0.1), generator=seeded(0))
    torch.testing.assert_close(seen[10][:1], seen[1])


def test_restarts_are_chosen_for_each_image():
    """ART keeps the restart that is best for the whole data set, not for each image."""
    network = small_network(4)
    images = some_images(network)
    attack = Worst((Untargeted(Steepest(0.3), 1, margin),) * 4)
    best = run(attack, network, images, Linf(0.05), generator=seeded(0)).score
    generator = seeded(0)
    single = [run(attack.attacks[0], network, images, Linf(0.05), generator=generator).score for _ in range(4)]
    expected = torch.stack(single).amax(0)
    assert len(set(torch.stack(single).argmax(0).tolist())) > 1
    torch.testing.assert_close(best, expected, atol=1e-6, rtol=0)
