"""How torchattacks' attacks are called: a model when they are made, then images and labels; modes set in between."""

import io
import pickle
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from planish.attacks import Attack, DistanceAttack
from planish.attacks.ascents import Given, LeastLikely, Start, Targeted, Untargeted
from planish.core.arguments import device_of, logits_of, model_of, seed_of
from planish.core.batch import Batch
from planish.core.errors import BadInput, one_of
from planish.core.losses import cross_entropy, cross_entropy_toward, dlr
from planish.core.threat import ThreatModel
from planish.models import Normalized
from planish.search.step_rules import StepRule
from planish.storage.files import write_bytes
from planish.storage.reading import content_of

DEFAULT, TARGETED = ("default",), ("default", "targeted")
ROUNDING = 1e-5
"""Pixels outside [0, 1] by so little were put there by taking a normalization back."""
LOSSES = {"ce": cross_entropy, "dlr": dlr}
TargetMap = Callable[[Tensor, Tensor], Tensor]


@dataclass(eq=False, repr=False)
class TorchAttack:
    """What all of torchattacks' attacks have. model: from images in [0, 1] to logits. Raises BadInput, a ValueError.

    Differs: an image is returned at its first adversarial iterate, or else at its worst for the model, and not at the
    last one; one that is misclassified from the start is returned as it is; nothing is printed; the model is attacked
    in evaluation mode and stays as it is.
    """

    model: nn.Module
    supported_mode: ClassVar[tuple[str, ...]] = DEFAULT

    def __post_init__(self) -> None:
        self.set_model(self.model)
        self.device = device_of(self.model)
        self.normalization_used: dict[str, tuple[float, ...]] | None = None
        self._target_map: TargetMap = _labels
        self.return_type = "float"
        self.set_mode_default()

    @property
    def attack(self) -> str:
        """The attack's name."""
        return type(self).__name__

    @property
    def model_name(self) -> str:
        """The name of the model's class."""
        return type(self.model).__name__

    def planish(self) -> tuple[Attack | DistanceAttack, ThreatModel | str]:
        """Return planish's attack with these arguments, and its threat or, of a distance attack, its norm.

        Raises BadInput where a class of one's own has neither this nor a `forward`.
        """
        raise BadInput(
            f"{self.attack} says no attack: give it forward(images, labels), which returns adversarial images"
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the adversarial images (N, C, H, W) of images in [0, 1]."""
        targets = None
        if self.targeted:
            targets = self.get_target_label(images, labels)
            labels = (targets == 0).to(labels)  # any others: those given may be the targets, and no attack here asks
        found, threat = self.planish()
        return found(self.network(), Batch(images, labels, targets=targets), threat=threat, seed=self.get_seed()).x_adv

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the adversarial images of the images, on the attack's device, normalised as they were.

        labels: (N,); of the mode "targeted(label)", the classes to reach.
        """
        x_adv = self._found(inputs, labels)
        return x_adv if self.return_type == "float" else (255 * self._pixels(x_adv)).round().to(torch.uint8)

    def network(self) -> nn.Module:
        """Return the model of images in [0, 1], which normalises them if the caller's images are."""
        if self.normalization_used is None:
            return self.model
        mean, std = self.normalization_used.values()
        return Normalized(self.model, mean, std).to(self.device or "cpu")

    def get_logits(self, inputs: Tensor) -> Tensor:
        """Return the logits (N, K) of images in [0, 1], with a graph."""
        logits: Tensor = self.network()(inputs)
        return logits

    def get_seed(self) -> int:
        """Return the attack's seed; where it has none, one from PyTorch's global random state, as there."""
        own = getattr(self, "seed", None)
        return int(torch.randint(2**62, (), device="cpu")) if own is None else seed_of(own)

    def ascent(self, rule: StepRule, steps: int, start: Start, loss: str = "ce") -> Attack:
        """Return the ascent of a loss, or in a targeted mode towards the targets. Raises BadInput."""
        one_of(LOSSES, loss=loss)
        if self.targeted:
            return Targeted(rule, steps, Given(), cross_entropy_toward, start, aim="reach")
        return Untargeted(rule, steps, LOSSES[loss], start)

    def set_model(self, model: nn.Module) -> None:
        """Attack this model from now on."""
        self.model = model_of(model)

    def set_device(self, device: torch.device | str) -> None:
        """Bring images to this device."""
        self.device = torch.device(device)

    def set_normalization_used(self, mean: Iterable[float], std: Iterable[float]) -> None:
        """Say that images come normalised, (x - mean) / std per channel; eps and steps stay in pixels of [0, 1]."""
        own = {"mean": mean, "std": std}
        self.normalization_used = {name: tuple(float(value) for value in part) for name, part in own.items()}

    def set_return_type(self, type: str) -> None:
        """Return "float" images, normalised as they came, or "int" ones: uint8, the pixels times 255, rounded."""
        one_of(("float", "int"), type=type)
        self.return_type = type

    def set_model_training_mode(
        self, model_training: bool = False, batchnorm_training: bool = False, dropout_training: bool = False
    ) -> None:
        """Accept evaluation mode, which is what planish attacks a model in. Raises BadInput for anything else."""
        if model_training or batchnorm_training or dropout_training:
            raise BadInput("planish attacks a model in evaluation mode; leave model_training and the like at False")

    set_training_mode = set_model_training_mode

    def get_mode(self) -> str:
        """Return the mode: "default", "targeted(label)" or another targeted one."""
        return self.attack_mode

    def set_mode_default(self) -> None:
        """Leave a targeted mode."""
        self.attack_mode, self.targeted, self._target_map = "default", False, _labels

    def set_mode_targeted_by_label(self, quiet: bool = False) -> None:
        """Take the labels that the attack is called with for the classes to reach."""
        self._aim("label", _labels)

    def set_mode_targeted_by_function(self, target_map_function: TargetMap | None, quiet: bool = False) -> None:
        """Drive images to the classes (N,) that the function makes of images and labels; None: the labels."""
        self._aim("custom", target_map_function or _labels)

    def set_mode_targeted_random(self, quiet: bool = False) -> None:
        """Drive each image to a wrong class drawn from PyTorch's global random state."""
        self._aim("random", self._random_classes)

    def set_mode_targeted_least_likely(self, kth_min: int = 1, quiet: bool = False) -> None:
        """Drive each image to its least likely wrong class. Raises BadInput for any but the first."""
        if kth_min != 1:
            raise BadInput(f"planish drives images to the least likely class alone, not to the {kth_min}th from below")
        self._aim("least-likely", lambda images, labels: LeastLikely()(self._judged(images, labels)))

    def get_target_label(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the classes to reach, (N,)."""
        return self._target_map(inputs, labels).to(labels)

    def save(
        self,
        data_loader: Iterable[Any],
        save_path: str | Path | None = None,
        verbose: bool = True,
        return_verbose: bool = False,
        save_predictions: bool = False,
        save_clean_inputs: bool = False,
        save_type: str = "float",
    ) -> tuple[float, float, float] | None:
        """Attack all batches of a loader; write a file that `load` reads, if one is named.

        return_verbose: return the robust accuracy in percent, the mean L2 norm of what broke images, and the seconds.
        """
        one_of(("float",), save_type=save_type)
        began, parts = time.perf_counter(), [self._saved(*batch[:2]) for batch in data_loader]
        if not parts:
            raise BadInput("the loader yields no images: give it some")
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        right = whole["preds"] == whole["labels"]
        kept = ["adv_inputs", "labels", *(["preds"] * save_predictions), *(["clean_inputs"] * save_clean_inputs)]
        if save_path is not None:
            file = io.BytesIO()
            torch.save({**{name: whole[name] for name in kept}, "save_type": save_type}, file)
            write_bytes(file.getvalue(), save_path)
        if not return_verbose:
            return None
        moved = (whole["adv_inputs"] - whole["clean_inputs"]).flatten(1).norm(dim=1)[~right]
        return 100 * float(right.double().mean()), float(moved.mean()), time.perf_counter() - began

    @staticmethod
    def load(
        load_path: str | Path,
        batch_size: int = 128,
        shuffle: bool = False,
        load_predictions: bool = False,
        load_clean_inputs: bool = False,
    ) -> DataLoader[tuple[Tensor, ...]]:
        """Return a loader of what `save` wrote: images and labels, and what else is asked for. Raises BadInput."""
        saved = _read(load_path)
        more = {"preds": load_predictions, "clean_inputs": load_clean_inputs}
        names = ["adv_inputs", "labels", *(name for name, wanted in more.items() if wanted)]
        if missing := [name for name in names if name not in saved]:
            raise BadInput(f"{load_path} holds no {missing[0]}: it was saved without")
        return DataLoader(TensorDataset(*(saved[name] for name in names)), batch_size=batch_size, shuffle=shuffle)

    def __repr__(self) -> str:
        own = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "model"}
        known = {"model_name": self.model_name, "device": self.device, "attack_mode": self.attack_mode, **own}
        known["normalization_used"] = self.normalization_used is not None
        return f"{self.attack}({', '.join(f'{name}={value}' for name, value in known.items())})"

    def _aim(self, mode: str, target_map: TargetMap) -> None:
        if "targeted" not in self.supported_mode:
            raise BadInput(f"planish's {self.attack} aims at no class that is given; PGD does")
        self.attack_mode, self.targeted, self._target_map = f"targeted({mode})", True, target_map

    def _judged(self, images: Tensor, labels: Tensor) -> Batch:
        return Batch(images, labels, logits=logits_of(self.network(), images))

    def _random_classes(self, images: Tensor, labels: Tensor) -> Tensor:
        wrong = self._judged(images[:1], labels[:1]).clean_logits.shape[1] - 1
        return (labels + 1 + torch.randint(wrong, labels.shape, device="cpu").to(labels)) % (wrong + 1)

    def _found(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the adversarial images as floats, normalised as the inputs are."""
        device = inputs.device if self.device is None else self.device
        inputs, labels = inputs.detach().to(device), labels.detach().to(device, torch.int64)
        x_adv = self.forward(self._pixels(inputs), labels)
        if self.normalization_used is None:
            return x_adv
        mean, std = self._mean_and_std(x_adv)
        return (x_adv - mean) / std

    def _pixels(self, inputs: Tensor) -> Tensor:
        """Return images in [0, 1] of images as the caller has them."""
        if self.normalization_used is None:
            return inputs
        mean, std = self._mean_and_std(inputs)
        images = inputs * std + mean
        inside = images.clamp(0, 1)
        return torch.where((images - inside).abs() <= ROUNDING, inside, images)

    def _mean_and_std(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (x.new_tensor(part).view(-1, 1, 1) for part in (self.normalization_used or {}).values())
        return mean, std

    def _saved(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return what `save` keeps of a batch."""
        x_adv = self._found(inputs, labels)
        predicted = logits_of(self.model, x_adv).argmax(1)
        parts = {"adv_inputs": x_adv, "labels": labels, "preds": predicted, "clean_inputs": inputs}
        return {name: part.detach().cpu() for name, part in parts.items()}


def _read(path: str | Path) -> dict[str, Tensor]:
    """Return what `save` wrote. Raises BadInput for anything else."""
    try:
        content = content_of(path)
    except OSError as error:
        raise BadInput(f"cannot read {path} ({error.strerror or error}): give a file that `save` wrote") from error
    try:
        saved = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise BadInput(f"{path} is not a whole file that `save` wrote") from error
    if not isinstance(saved, dict):
        raise BadInput(f"{path} is not a file that `save` wrote: it holds a {type(saved).__name__}")
    return saved


def _labels(images: Tensor, labels: Tensor) -> Tensor:
    return labels
