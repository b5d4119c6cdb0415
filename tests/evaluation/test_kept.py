"""What survives a kill in the middle of an attack, and saved images that are judged again."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from planish.attacks import Attack, ByDistance, Progress, Worst
from planish.attacks.ascents import Ranked, Targeted
from planish.attacks.gradient import APGDT, PGDMargin
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import Linf
from planish.evaluation.adversarials import KeptProgress, load_images, save_images
from planish.evaluation.evaluate import EvaluationStep, evaluate_steps
from planish.evaluation.image_files import ImageFiles
from planish.records.evaluation import load, load_adversarials, save_adversarials
from planish.runs.judge import EvaluationConfig, LoadedModel, verify
from planish.search.step_rules import Steepest

Make = Callable[[], nn.Module]
ATTACKS: dict[str, Attack] = {"pgd": PGDMargin(5, 3), "t": APGDT(4, 2)}
RADIUS = Linf(0.015)


class Killed(Exception):
    """Stands for a kill after a chunk."""


class Fragile(KeptProgress):
    """Writes after every chunk, and dies after so many."""

    def __init__(self, path: Path, chunks: int) -> None:
        super().__init__(path, seconds=-1)
        self.chunks = chunks

    def keep(self, key: str, progress: Progress) -> None:
        super().keep(key, progress)
        self.chunks -= 1
        if self.chunks == 0:
            raise Killed


def judged(
    network: nn.Module, images: Batch, path: Path, chunks: int = -1, attacks: dict[str, Attack] = ATTACKS
) -> EvaluationStep:
    *_, last = evaluate_steps(
        network, images, threat=RADIUS, attacks=attacks, seed=3, chunk=4, unfinished=Fragile(path, chunks)
    )
    return last


@pytest.mark.parametrize("chunks", [1, 2, 3, 5, 7])
def test_an_attack_goes_on_from_its_last_chunk(chunks: int, make_network: Make, images: Batch, tmp_path: Path):
    whole = judged(make_network(), images, tmp_path / "whole.npz")
    with pytest.raises(Killed):
        judged(make_network(), images, tmp_path / "killed.npz", chunks)
    asked: list[int] = []
    network = make_network()
    network.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
    again = judged(network, images, tmp_path / "killed.npz")
    for ours, theirs in zip(again.evaluation.columns, whole.evaluation.columns, strict=True):
        for key in ("margin", "distance", "predicted", "target", "component", "step", "passes"):
            np.testing.assert_allclose(getattr(ours, key), getattr(theirs, key), atol=1e-5)
    torch.testing.assert_close(again.x_adv, whole.x_adv)
    needed = sum(column.forwards for column in whole.evaluation.columns) + 2 * len(images.x)
    assert sum(asked) < needed or chunks == 7  # the seventh falls to the second attack, and the first has no record


@pytest.mark.parametrize("chunks", [1, 3, 7])
def test_a_resumed_column_counts_what_was_spent_before(chunks: int, make_network: Make, images: Batch, tmp_path: Path):
    """Its passes and seconds were those since the kill alone, and planish-deep decides by them."""
    whole = judged(make_network(), images, tmp_path / "whole.npz").evaluation.columns
    path, device = tmp_path / "killed.npz", torch.device("cpu")
    with pytest.raises(Killed):
        judged(make_network(), images, path, chunks)
    with np.load(path) as kept:
        key, earlier = str(kept["key"]), kept["spent"].tolist()
    assert earlier[2] > 0 and KeptProgress(path).load(key, device).spent == (*earlier,)
    again = judged(make_network(), images, path).evaluation.columns
    for ours, theirs in zip(again, whole, strict=True):
        assert (ours.forwards, ours.backwards) == (theirs.forwards, theirs.backwards)
        assert ours.expected == theirs.expected
    if chunks < 7:  # the seventh falls to the second attack: the first has no record here, and both begin anew
        assert again[0].seconds > earlier[2]


@pytest.mark.parametrize("chunks", [1, 4])
def test_classes_are_ranked_by_distance_once(chunks: int, make_network: Make, images: Batch, tmp_path: Path):
    """A resumed attack ranked them again and counted it again, up to 10 passes an image."""
    toward = (Targeted(Steepest(0.5), 3, Ranked(rank)) for rank in (1, 2))
    attacks: dict[str, Attack] = {"near": Worst((PGDMargin(1, 1), ByDistance(), *toward))}
    (whole,) = judged(make_network(), images, tmp_path / "whole.npz", attacks=attacks).evaluation.columns
    with pytest.raises(Killed):
        judged(make_network(), images, tmp_path / "killed.npz", chunks, attacks)
    (again,) = judged(make_network(), images, tmp_path / "killed.npz", attacks=attacks).evaluation.columns
    for key in ("passes", "target", "component", "step", "forwards", "backwards"):
        np.testing.assert_array_equal(getattr(again, key), getattr(whole, key), err_msg=key)
    np.testing.assert_allclose(again.margin, whole.margin, atol=1e-5)


def test_progress_that_does_not_say_what_was_spent_is_none(make_network: Make, images: Batch, tmp_path: Path):
    """As an earlier planish has left it: its column is begun anew, and not counted short."""
    path = tmp_path / "progress.npz"
    with pytest.raises(Killed):
        judged(make_network(), images, path, 2)
    with np.load(path) as kept:
        arrays = {name: kept[name] for name in kept.files if name != "spent"}
    np.savez(path, **arrays)
    assert KeptProgress(path).load(str(arrays["key"]), torch.device("cpu")) is None
    assert judged(make_network(), images, path).evaluation.names == ("pgd", "t")


def test_progress_of_another_attack_or_a_broken_file_is_none(make_network: Make, images: Batch, tmp_path: Path):
    path = tmp_path / "progress.npz"
    with pytest.raises(Killed):
        judged(make_network(), images, path, 1)
    device = torch.device("cpu")
    assert KeptProgress(path).load("another", device) is None
    path.write_bytes(path.read_bytes()[:200])
    assert KeptProgress(path).load("another", device) is None
    assert KeptProgress(tmp_path / "absent.npz").load("another", device) is None


def test_progress_is_written_seldom(tmp_path: Path, make_network: Make, images: Batch):
    kept = KeptProgress(tmp_path / "progress.npz", seconds=1e6)
    list(evaluate_steps(make_network(), images, threat=RADIUS, attacks=ATTACKS, chunk=4, unfinished=kept))
    assert not kept.path.exists()


SCRIPT = """
    import sys, time, torch
    from pathlib import Path
    from planish.evaluation import adversarials as kept
    from planish.runs.judge import LoadedModel, EvaluationConfig, evaluate_into
    from planish.core.threat import Linf

    torch.set_num_threads(1)

    class Slow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        def forward(self, x):
            time.sleep({pause})
            return self.net(x)

    kept.KeptProgress.__init__.__defaults__ = (-1.0, *kept.KeptProgress.__init__.__defaults__[1:])
    task = EvaluationConfig("digits", Linf(0.05), ("pgd-20-5",), limit=300, keep_images=True)
    for folder in {folders!r}:
        for record in evaluate_into(LoadedModel(Slow(), "slow"), task, Path(folder), resume=True):
            print(len(record.columns), flush=True)
"""


def started(pause: float, *folders: Path) -> subprocess.Popen[str]:
    script = textwrap.dedent(SCRIPT).format(folders=[str(folder) for folder in folders], pause=pause)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_kill_minus_nine_in_the_middle_of_an_attack(tmp_path: Path):
    """The record equals that of a run that was never killed, and nothing is left over."""
    first = started(0.02, tmp_path / "killed")
    while not (tmp_path / "killed" / "progress.npz").exists():
        assert first.poll() is None
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert load(tmp_path / "killed" / "evaluation.npz").columns == ()
    process = started(0.0, tmp_path / "killed", tmp_path / "whole")
    process.communicate()
    assert process.returncode == 0 and not list(tmp_path.rglob("progress.npz"))
    killed, whole = (load(tmp_path / name / "evaluation.npz").columns[0] for name in ("killed", "whole"))
    for key in ("margin", "target", "component", "step", "passes"):
        np.testing.assert_allclose(getattr(killed, key), getattr(whole, key), atol=1e-5)
    images = [load_images(tmp_path / name / "adversarial.npz")[0] for name in ("killed", "whole")]
    torch.testing.assert_close(*images)


@pytest.fixture
def linear_digits() -> LoadedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LoadedModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "linear")


def attacked_digits(subject: LoadedModel, path: Path) -> tuple[EvaluationStep, EvaluationConfig]:
    from planish.data import load as load_data

    task = EvaluationConfig("digits", Linf(0.05), (), limit=60)
    batch = load_data("digits", "test", 60).as_batch()
    batch = batch._replace(labels=subject.model(batch.x).argmax(1))
    *_, last = evaluate_steps(subject.model, batch, threat=task.threat, attacks={"pgd": PGDMargin(10, 1)})
    save_images(last, path)
    return last, task


def test_saved_images_give_the_same_accuracy(linear_digits: LoadedModel, tmp_path: Path):
    last, task = attacked_digits(linear_digits, tmp_path / "adversarial.npz")
    found = verify(linear_digits, task, tmp_path / "adversarial.npz")
    logits = linear_digits.model(last.x_adv).argmax(1).numpy()
    truth = last.evaluation.labels
    from planish.data import load as load_data

    labels = load_data("digits", "test", 60).as_batch().labels.numpy()
    clean = last.evaluation.clean_predicted == labels
    assert found.infeasible == 0 and found.distance == pytest.approx(0.05, abs=1e-6)
    assert found.clean.hits == clean.sum() and found.robust.hits == (clean & (logits == labels)).sum()
    assert (truth != labels).any()


def test_an_image_outside_the_ball_breaks_nothing(linear_digits: LoadedModel, tmp_path: Path):
    last, task = attacked_digits(linear_digits, tmp_path / "adversarial.npz")
    save_images(last._replace(x_adv=1 - last.x_adv), tmp_path / "far.npz")
    found = verify(linear_digits, task, tmp_path / "far.npz")
    assert found.infeasible == 60 and found.robust.hits == found.clean.hits and found.distance > 0.5


def test_images_that_do_not_fit(linear_digits: LoadedModel, tmp_path: Path):
    path = tmp_path / "adversarial.npz"
    _, task = attacked_digits(linear_digits, path)
    with pytest.raises(BadInput, match=r"has image .*, which digits"):
        verify(linear_digits, EvaluationConfig("digits", Linf(0.05), (), limit=10), path)
    x_adv, indices = load_adversarials(path)
    save_adversarials(x_adv[[0, 1, 0]], indices[[0, 1, 0]], tmp_path / "again.npz")
    with pytest.raises(BadInput, match=f"has image {indices[0]} a second time: give each image once"):
        verify(linear_digits, task, tmp_path / "again.npz")
    save_adversarials(x_adv[:0], indices[:0], tmp_path / "none.npz")
    with pytest.raises(BadInput, match=r"none.npz holds no images"):
        verify(linear_digits, task, tmp_path / "none.npz")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(BadInput, match=r"does not hold adversarial images, or it is cut short"):
        verify(linear_digits, task, path)
    with pytest.raises(BadInput, match=r"there is no .*; planish evaluate --keep-images writes one"):
        verify(linear_digits, task, tmp_path / "absent.npz")
    np.savez(path, x_adv=np.zeros((2, 3)), indices=np.arange(2))
    with pytest.raises(BadInput, match="must hold x_adv"):
        verify(linear_digits, task, path)


def test_images_are_found_in_the_folder_of_their_evaluation(linear_digits: LoadedModel, tmp_path: Path):
    """It once lacked "the file that begins with image 0"."""
    last, task = attacked_digits(linear_digits, tmp_path / "own" / "adversarial.npz")
    found = verify(linear_digits, task, tmp_path / "own" / "adversarial.npz")
    assert verify(linear_digits, task, tmp_path / "own") == found
    files = ImageFiles(tmp_path / "many" / "adversarial", last.evaluation.indices, tuple(last.x_adv.shape[1:]))
    files.begin(lambda rows: last.x_adv[rows], anew=True)
    assert verify(linear_digits, task, tmp_path / "many") == found
