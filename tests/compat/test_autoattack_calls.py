"""AutoAttack's way of calling: its scripts run with another import, and find about what its code finds."""

from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from half_broken import EPS, EPS_L2
from torch import Tensor, nn

import planish
from planish.compat import AutoAttack
from planish.core.errors import BadInput


def short(adversary: Any) -> Any:
    """Cut the budgets, in the way that scripts do."""
    adversary.apgd.n_iter = adversary.apgd_targeted.n_iter = adversary.fab.n_iter = 8
    adversary.apgd.n_restarts = adversary.fab.n_restarts = 1
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = 4
    adversary.square.n_queries = 40
    return adversary


def right(network: nn.Module, x: Tensor, labels: Tensor) -> float:
    return float((network(x).argmax(1) == labels).double().mean())


def test_its_readme(network: nn.Module, images: Tensor, labels: Tensor, capsys: pytest.CaptureFixture[str]):
    """A function in place of a module; the four of the standard version; x_adv, or a dict of them."""

    def forward_pass(x: Tensor) -> Tensor:
        return network(x)

    adversary = short(AutoAttack(forward_pass, norm="Linf", eps=EPS, version="standard"))
    x_adv = adversary.run_standard_evaluation(images, labels, bs=10)
    assert x_adv.shape == images.shape and x_adv.dtype == images.dtype and not x_adv.requires_grad
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "using standard version including apgd-ce, apgd-t, fab-t, square"
    assert lines[1] == "initial accuracy: 91.67%" and lines[2].startswith("robust accuracy after APGD-CE: ")
    assert f"robust accuracy: {right(network, x_adv, labels):.2%}" in lines
    standing = network(x_adv).argmax(1) == labels
    assert torch.equal(x_adv[standing], images[standing]), "what stands is returned clean"

    adversary.attacks_to_run = ["apgd-ce", "square"]
    dict_adv = adversary.run_standard_evaluation_individual(images, labels, bs=10)
    assert [*dict_adv] == ["apgd-ce", "square"] and dict_adv["square"].shape == images.shape
    assert right(network, x_adv, labels) <= right(network, dict_adv["apgd-ce"], labels) < 0.9


def test_the_loop_of_robustbench(network: nn.Module, images: Tensor, labels: Tensor, tmp_path: Path):
    """`benchmark`: keywords, a device, a log file; clean and robust accuracy counted by the caller."""
    device, log = torch.device("cpu"), tmp_path / "log.txt"
    log.write_text("before\n")
    adversary = AutoAttack(network.to(device), norm="Linf", eps=EPS, version="standard", device=device, log_path=log)
    short(adversary).verbose = True
    x_adv = adversary.run_standard_evaluation(images, labels, bs=32)
    adv_accuracy = right(network, x_adv, labels)
    assert 0 < adv_accuracy < 0.6
    before, *lines = log.read_text().splitlines()
    assert before == "before" and f"robust accuracy: {adv_accuracy:.2%}" in lines


def test_the_custom_version_and_labels(network: nn.Module, images: Tensor, labels: Tensor):
    """RobustBench's README and auto-attack's example: attacks_to_run, budgets by attribute, no_grad, return_labels."""
    adversary = AutoAttack(
        network, norm="L2", eps=EPS_L2, version="custom", attacks_to_run=["apgd-ce", "apgd-dlr"], verbose=False, seed=1
    )
    adversary.apgd.n_restarts = 1
    adversary.apgd.n_iter = 8
    with torch.no_grad():
        x_adv, y_adv = adversary.run_standard_evaluation(images, labels, bs=500, return_labels=True)
    assert torch.equal(network(x_adv).argmax(1), y_adv) and y_adv.dtype == labels.dtype
    assert float((x_adv - images).flatten(1).norm(dim=1).max()) <= EPS_L2 + 1e-5
    assert adversary.clean_accuracy(x_adv, labels, bs=7) == pytest.approx(right(network, x_adv, labels))
    both = adversary.run_standard_evaluation_individual(images, labels, return_labels=True)
    assert {name: len(pair) for name, pair in both.items()} == {"apgd-ce": 2, "apgd-dlr": 2}


@pytest.mark.parametrize(("norm", "eps"), [("Linf", EPS), ("L2", EPS_L2)])
def test_as_its_own_code(norm: str, eps: float, public: Any, network: nn.Module, images: Tensor, labels: Tensor):
    """The same images are broken, but for one of 24, with the same attacks and budgets."""
    names = ["apgd-ce", "apgd-t", "square"]
    theirs = short(public.AutoAttack(network, norm=norm, eps=eps, version="custom", attacks=names, seed=0))
    ours = short(AutoAttack(network, norm=norm, eps=eps, version="custom", attacks_to_run=names, verbose=False))
    x_theirs, y_theirs = theirs.run_standard_evaluation(images, labels)
    x_ours, y_ours = ours.run_standard_evaluation(images, labels, return_labels=True)
    for mine, other in ((x_ours, x_theirs), (y_ours, y_theirs)):
        assert type(mine) is type(other) and mine.shape == other.shape and mine.dtype == other.dtype
    assert int(((y_ours == labels) != (y_theirs == labels)).sum()) <= 1 and int((y_ours != labels).sum()) > 10


def test_versions_have_their_published_budgets(public: Any, network: nn.Module):
    budgets = ["apgd.n_iter", "apgd.n_restarts", "apgd.eot_iter", "square.n_queries", "square.p_init"]
    budgets += ["apgd_targeted.n_iter", "apgd_targeted.n_restarts", "apgd_targeted.n_target_classes"]
    for version in ("standard", "plus", "rand"):
        ours = AutoAttack(network, eps=EPS, version=version, verbose=False)
        theirs = public.AutoAttack(network, eps=EPS, version=version)
        assert ours.attacks_to_run == theirs.attacks_to_run
        used = budgets if version == "rand" else [*budgets, "fab.n_iter", "fab.n_restarts", "fab.n_target_classes"]
        for budget in used:
            assert attrgetter(budget)(ours) == attrgetter(budget)(theirs), (version, budget)


def test_a_state_is_gone_on_with(network: nn.Module, images: Tensor, labels: Tensor, tmp_path: Path):
    asked: list[int] = []
    counted = nn.Sequential(network)
    counted.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
    names = ["apgd-ce", "apgd-dlr"]

    def run(attacks: list[str]) -> tuple[Tensor, int]:
        asked.clear()
        adversary = AutoAttack(counted, eps=EPS, version="custom", attacks_to_run=attacks, verbose=False)
        x_adv = short(adversary).run_standard_evaluation(images, labels, state_path=tmp_path / "state")
        return x_adv, sum(asked)

    first, cost = run(names[:1])
    whole, _ = run(names)
    again, repeated = run(names)
    assert torch.equal(whole, again) and repeated < cost / 2
    assert bool(((first != images).flatten(1).any(1) <= (whole != images).flatten(1).any(1)).all())


def test_a_random_model_is_judged_by_draws(images: Tensor, labels: Tensor, network: nn.Module):
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return network(x + 0.01 * torch.randn_like(x))

    with torch.random.fork_rng(devices=[]):
        adversary = AutoAttack(Noisy(), eps=0.2, version="rand", verbose=False)
        adversary.apgd.n_iter, adversary.apgd.eot_iter = 3, 5
        x_adv = adversary.run_standard_evaluation(images, labels)
    assert right(network, x_adv, labels) < 0.3


def test_wrong_calls_are_said_in_a_line(network: nn.Module, images: Tensor, labels: Tensor):
    with pytest.raises(BadInput, match="version must be one of standard, plus, rand, custom"):
        AutoAttack(network, version="cheap")
    with pytest.raises(BadInput, match='for version="custom"'):
        AutoAttack(network, attacks_to_run=["square"])
    with pytest.raises(BadInput, match="a function of tensors"):
        AutoAttack(network, is_tf_model=True)
    with pytest.raises(BadInput, match="unknown norm"):
        AutoAttack(network, norm="L7")
    adversary = AutoAttack(network, eps=EPS, version="custom", attacks_to_run=["apgd"], verbose=False)
    with pytest.raises(BadInput, match=r"no attack 'apgd'\. Did you mean 'apgd-"):
        adversary.run_standard_evaluation(images, labels)
    with pytest.raises(AttributeError, match="n_epochs"):
        adversary.apgd.n_epochs = 3
    assert planish.compat.AutoAttack is AutoAttack


def test_a_batch_size_is_checked_at_the_call(network: nn.Module, images: Tensor, labels: Tensor):
    """Of 0 no evaluation came to an end."""
    adversary = AutoAttack(network, eps=EPS, verbose=False)
    calls = (adversary.run_standard_evaluation, adversary.run_standard_evaluation_individual, adversary.clean_accuracy)
    for call in calls:
        for bs in (0, -1):
            with pytest.raises(BadInput, match=f"bs must be at least 1, got {bs}"):
                call(images, labels, bs=bs)


def test_arrays_are_taken(network: nn.Module, images: Tensor, labels: Tensor):
    """They were a TypeError after the last attack."""
    adversary = AutoAttack(network, eps=EPS, version="custom", attacks_to_run=["apgd-ce"], verbose=False)
    adversary.apgd.n_iter = 2
    given: Any = images.numpy(), labels.numpy()
    found, expected = (
        adversary.run_standard_evaluation(*pair, return_labels=True) for pair in (given, (images, labels))
    )
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
