"""AutoAttack's own call: `AutoAttack(model, norm="Linf", eps=8 / 255).run_standard_evaluation(x, y, bs=250)`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from planish.attacks import APGD, APGDT, FAB, FABT, Attack, Square, Within
from planish.attacks.ascents import restarted
from planish.core.arguments import batch_of, device_of, logits_of, shown
from planish.core.batch import Batch
from planish.core.errors import BadInput, at_least, nearest, one_of
from planish.core.threat_texts import parse_threat
from planish.evaluation.adversarials import load_images, save_images
from planish.evaluation.evaluate import EvaluationStep, evaluate_steps
from planish.models import Function
from planish.records.evaluation import Evaluation, load, save
from planish.storage.files import write_text

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
RANDOM_DRAWS = 20
"""What the version "rand" averages a gradient over, and judges an image by."""


@dataclass(slots=True)
class GradientOptions:
    """What a script may set of `.apgd`, `.apgd_targeted` and `.fab`. use_largereps: of no effect; it goes with L1."""

    n_iter: int = 100
    n_restarts: int = 1
    n_target_classes: int = 9
    eot_iter: int = 1
    use_largereps: bool = False


@dataclass(slots=True)
class SquareOptions:
    """What a script may set of `.square`."""

    n_queries: int = 5000
    n_restarts: int = 1
    p_init: float = 0.8
    resc_schedule: bool = False


@dataclass
class Logger:
    """Prints lines where they are wanted, and keeps them in a file if one is named."""

    path: str | Path | None = None
    prints: bool = True

    def log(self, line: str) -> None:
        """Print a line, and add it to the file."""
        if self.prints:
            print(line)
        if self.path is not None:
            before = Path(self.path).read_text(encoding="utf-8") if Path(self.path).exists() else ""
            write_text(f"{before}{line}\n", self.path)


class AutoAttack:
    """AutoAttack as its public code is called (Croce and Hein 2020); a broken image costs nothing more.

    model: a module or a function from images in [0, 1] to logits. norm: "Linf", "L2" or "L1". eps: the radius, in
    pixels of [0, 1]. seed: of everything random; None is 0, so that a run can be repeated. verbose: print how it goes.
    attacks_to_run: of the version "custom", names of "plus". version: "standard", "plus", "rand" or "custom". device:
    where images are brought to; the model's own by default. log_path: a file that the lines are added to.
    Raises BadInput, a ValueError.

    Differs: the model is judged in evaluation mode, and stays as it is; a tie counts as broken; "rand" judges an image
    by 20 draws and not by one.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Tensor],
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: torch.device | str | None = None,
        log_path: str | Path | None = None,
    ) -> None:
        one_of((*VERSIONS, "custom"), version=version)
        if is_tf_model or not callable(model):
            raise BadInput(f"the model must be a torch.nn.Module or a function of tensors, not {shown(model)}")
        if version in VERSIONS and len(attacks_to_run):
            raise BadInput(f'the version "{version}" has its own attacks; attacks_to_run is for version="custom"')
        self.model = model if isinstance(model, nn.Module) else Function(model)
        self.norm, self.epsilon, self.seed = parse_threat(norm, eps).name, eps, seed
        self.verbose, self.version, self.is_tf_model = verbose, version, False
        self.device = device_of(self.model) if device is None else torch.device(device)
        self.attacks_to_run = [*attacks_to_run]
        self.logger = Logger(log_path)
        self.apgd, self.fab = GradientOptions(n_restarts=5), GradientOptions(n_restarts=5)
        self.apgd_targeted, self.square = GradientOptions(), SquareOptions()
        if version in VERSIONS:
            self.set_version(version)

    def set_version(self, version: str = "standard") -> None:
        """Take over a version's attacks and budgets. Raises BadInput."""
        one_of(VERSIONS, version=version)
        self.attacks_to_run = [*VERSIONS[version]]
        standard_l1 = version == "standard" and self.norm == "L1"
        self.apgd.n_restarts = 5 if version == "plus" or standard_l1 else 1
        self.apgd.eot_iter = RANDOM_DRAWS if version == "rand" else 1
        self.fab.n_restarts = 5 if version == "plus" else 1
        self.apgd_targeted.n_target_classes = 5 if standard_l1 else 9

    def get_seed(self) -> int:
        """Return the seed that is used."""
        return 0 if self.seed is None else self.seed

    def get_logits(self, x: Tensor) -> Tensor:
        """Return the model's logits, (N, K), of images (N, C, H, W)."""
        return logits_of(self.model, x)

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: str | Path | None = None,
    ) -> Any:
        """Run the attacks in turn, each on what stands, and return x_adv (N, C, H, W): images that stand are clean.

        x_orig: in [0, 1]. y_orig: (N,). bs: images at a time. return_labels: return (x_adv, y_adv), with the classes
        (N,) that the model sees in x_adv. state_path: a file that keeps what was finished, and is gone on with; the
        images lie beside it. Raises BadInput.
        """
        self._say(f"using {self.version} version including {', '.join(self.attacks_to_run)}")
        x_adv, y_adv = self._run(x_orig, y_orig, self.attacks_to_run, bs, state_path)
        return (x_adv, y_adv) if return_labels else x_adv

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Any]:
        """Run each attack on all correct images; return what `run_standard_evaluation` does for each, by name."""
        self._say(f"using {self.version} version including {', '.join(self.attacks_to_run)}")
        found: dict[str, Any] = {}
        for name in self.attacks_to_run:
            x_adv, y_adv = self._run(x_orig, y_orig, [name], bs, None)
            found[name] = (x_adv, y_adv) if return_labels else x_adv
        return found

    def clean_accuracy(self, x_orig: Tensor, y_orig: Tensor, bs: int = 250) -> float:
        """Return the share of images (N, C, H, W) that the model is right on, labels (N,)."""
        batch = self._given(x_orig, y_orig, bs)
        share = float((logits_of(self.model, batch.x, bs).argmax(1) == batch.labels).double().mean())
        self._say(f"clean accuracy: {share:.2%}")
        return share

    def _run(
        self, x: Tensor, y: Tensor, names: Sequence[str], bs: int, state: str | Path | None
    ) -> tuple[Tensor, Tensor]:
        """Return the images as the attacks left them and the classes that the model sees in them."""
        batch, threat = self._given(x, y, bs), parse_threat(self.norm, self.epsilon)
        options: dict[str, Any] = {"seed": self.get_seed(), "chunk": bs, "eot": self.apgd.eot_iter}
        attacks = {name: self._attack(name) for name in names}
        steps = evaluate_steps(self.model, batch, None, threat, attacks, **options, **_kept(state))
        step = next(steps)
        self._say(f"initial accuracy: {step.evaluation.clean_accuracy().value:.2%}")
        for step in steps:
            _keep(step, state)
            seconds = sum(column.seconds for column in step.evaluation.columns)
            after = f"robust accuracy after {step.evaluation.names[-1].upper()}"
            self._say(f"{after}: {step.evaluation.robust_accuracy().value:.2%} (total time {seconds:.1f} s)")
        broken, classes = _outcome(step.evaluation)
        x_adv = torch.where(broken.view(-1, 1, 1, 1).to(batch.x.device), step.x_adv.to(batch.x), batch.x)
        farthest = float(threat.norm(x_adv - batch.x).max())
        self._say(f"max {self.norm} perturbation: {farthest:.5f}, max: {x_adv.max():.5f}, min: {x_adv.min():.5f}")
        self._say(f"robust accuracy: {step.evaluation.robust_accuracy().value:.2%}")
        for remark in step.evaluation.remarks():
            self._say(remark)
        return _like(x, x_adv), _like(y, classes)

    def _given(self, x: Tensor, y: Tensor, bs: int) -> Batch:
        """Return the batch where it is attacked. Raises BadInput."""
        at_least(1, bs=bs)
        batch = batch_of(x, y)
        return batch if self.device is None else batch.to(self.device)

    def _attack(self, name: str) -> Attack:
        """Return one of the attacks, with the budgets of this object. Raises BadInput."""
        apgd, fab, toward, square = self.apgd, self.fab, self.apgd_targeted, self.square
        made: dict[str, Callable[[], Attack]] = {
            "apgd-ce": lambda: APGD(apgd.n_iter, apgd.n_restarts),
            "apgd-dlr": lambda: APGD(apgd.n_iter, apgd.n_restarts, loss="dlr"),
            "apgd-t": lambda: APGDT(toward.n_iter, toward.n_target_classes, toward.n_restarts),
            "fab": lambda: Within(FAB(fab.n_iter, fab.n_restarts)),
            "fab-t": lambda: Within(FABT(fab.n_iter, fab.n_target_classes)),
            "square": lambda: restarted(
                Square(square.n_queries, p_init=square.p_init, rescaled=square.resc_schedule), square.n_restarts
            ),
        }
        if name not in made:
            raise BadInput(f"AutoAttack has no attack '{name}'.{nearest(name, made)} Known: {', '.join(made)}")
        return made[name]()

    def _say(self, line: str) -> None:
        if self.verbose:
            self.logger.log(line)


def _like(given: object, values: Tensor) -> Tensor:
    """Return the values where and in what form those lie that were given; of an array, a tensor on the CPU."""
    return values.to(given) if isinstance(given, Tensor) else values.cpu()


def _kept(state: str | Path | None) -> dict[str, Any]:
    """Return what was finished before, as `evaluate_steps` takes it."""
    if state is None or not Path(state).exists():
        return {}
    return {"earlier": load(state), "x_adv": load_images(_beside(state))[0]}


def _keep(step: EvaluationStep, state: str | Path | None) -> None:
    if state is not None:
        save_images(step, _beside(state))
        save(step.evaluation, state)


def _beside(state: str | Path) -> Path:
    return Path(f"{state}.images.npz")


def _outcome(record: Evaluation) -> tuple[Tensor, Tensor]:
    """Return which images were broken, (N,), and the class that the model sees in each as it was left, (N,)."""
    classes, standing = record.clean_predicted.copy(), record.correct()
    for column in record.columns:
        hit = standing & column.broken
        classes, standing = np.where(hit, column.predicted, classes), standing & ~hit
    return torch.from_numpy(record.correct() & ~standing), torch.from_numpy(classes)
