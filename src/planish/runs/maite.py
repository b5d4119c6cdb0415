"""MAITE's protocols for image classification, spoken both ways: planish inside the tools that know them, and reverse.

Nothing is imported from MAITE: its protocols are structural. Images are (C, H, W) in [0, 1], or of 8 bits; a target is
one number for each class, the largest of which is the class.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from planish.core.arguments import logits_of
from planish.core.batch import Batch
from planish.core.errors import BadInput, at_least
from planish.core.threat import ThreatModel
from planish.data.images import Images, to_unit
from planish.evaluation.evaluate import evaluate
from planish.models import BlackBox
from planish.records.audit import Audit
from planish.records.evaluation import Evaluation
from planish.records.statistics import Estimate
from planish.runs.audit import audit

Array = NDArray[Any]
Datum = tuple[Any, Any, Mapping[str, Any]]


class Predicts(Protocol):
    """A MAITE model: a sequence of images to a sequence of scores, (classes,) each."""

    metadata: Any

    def __call__(self, batch: Any, /) -> Any: ...


class Holds(Protocol):
    """A MAITE data set: image, target and metadata by position."""

    metadata: Any

    def __getitem__(self, place: int, /) -> Any: ...
    def __len__(self) -> int: ...


def answers_of(model: Predicts, x: NDArray[np.float32]) -> Tensor:
    """Return the logits (N, K) of a MAITE model; of probabilities their logarithms, which order classes alike."""
    scores = torch.stack([torch.as_tensor(np.asarray(one), device="cpu").float() for one in model([*x])])
    if bool((scores >= 0).all()) and bool(((scores.sum(1) - 1).abs() < 1e-4).all()):
        scores = scores.clamp_min(torch.finfo(scores.dtype).tiny).log()
    return scores


def network_of(model: Predicts | nn.Module) -> nn.Module:
    """Return the network of a MAITE model: itself if it is one, that of a `ServedModel`, else one without gradients."""
    if isinstance(model, ServedModel):
        return model.network
    return model if isinstance(model, nn.Module) else BlackBox(partial(answers_of, model))


def batch_of_dataset(dataset: Holds, limit: int | None = None) -> Batch:
    """Return the first images of a MAITE data set with labels. Raises BadInput for images of several sizes."""
    at_least(1, limit=limit)
    count = min(len(dataset), limit or len(dataset))
    return _batch([dataset[place] for place in range(count)], range(count))


def _batch(data: Sequence[Datum], places: Sequence[int]) -> Batch:
    images = [torch.as_tensor(np.asarray(image), device="cpu") for image, _, _ in data]
    if not images or len({image.shape for image in images}) > 1 or images[0].ndim != 3:
        found = ", ".join(sorted({str(tuple(image.shape)) for image in images})) or "no image"
        raise BadInput(f"planish judges images (C, H, W) of one size, and the data set has {found}")
    labels = torch.tensor([_label(target) for _, target, _ in data], device="cpu")
    return Batch(to_unit(torch.stack(images)), labels, torch.tensor([*places], device="cpu"))


def _label(target: Any) -> int:
    """Return the class of a target. Raises BadInput for a single number, whose largest is always the first."""
    scores = np.asarray(target)
    if scores.ndim != 1 or scores.size < 2:
        raise BadInput(f"a MAITE target is one number for each class, (classes,), not one of shape {scores.shape}")
    return int(scores.argmax())


@dataclass(frozen=True)
class Robustness:
    """planish's suite and audit as a capability: a threat model and attacks, asked of MAITE models and data sets.

    attacks: as for `planish.evaluate`. limit: the first so many images.
    """

    threat: ThreatModel | str
    attacks: str = "planish-suite"
    limit: int | None = None
    seed: int = 0

    def evaluate(self, model: Predicts | nn.Module, dataset: Holds) -> Evaluation:
        """Return the evaluation. Raises BadInput for gradient attacks on a model that gives no gradients."""
        network = network_of(model)
        batch, about = batch_of_dataset(dataset, self.limit), _about(model, dataset)
        return evaluate(network, batch, threat=self.threat, attacks=self.attacks, seed=self.seed, about=about)

    def audit(self, model: Predicts | nn.Module, dataset: Holds, budget: str = "quick") -> Audit:
        """Return the audit; of a model without gradients, what can be asked of one. Raises BadInput."""
        batch, about = batch_of_dataset(dataset, self.limit), _about(model, dataset)
        return audit(network_of(model), batch, threat=self.threat, budget=budget, seed=self.seed, about=about)


def _about(model: Any, dataset: Holds) -> dict[str, Any]:
    names = {what: dict(getattr(part, "metadata", None) or {}) for what, part in (("model", model), ("data", dataset))}
    classes = names["data"].get("index2label") or {}
    about = {what: {"name": str(facts.get("id", f"the {what}"))} for what, facts in names.items()}
    return {**about, "data": {**about["data"], "classes": [str(classes[key]) for key in sorted(classes, key=int)]}}


class ServedModel:
    """A network as a MAITE model: images to probabilities, (classes,) each."""

    def __init__(self, network: nn.Module, name: str, classes: Sequence[str] = ()) -> None:
        self.network = network
        self.metadata = {"id": name, "index2label": dict(enumerate(classes))}

    def __call__(self, batch: Sequence[Any], /) -> list[Array]:
        """Return the probabilities of each image."""
        x = to_unit(torch.stack([torch.as_tensor(np.asarray(image), device="cpu") for image in batch]))
        return [*logits_of(self.network, x).softmax(1).cpu().numpy()]


class ServedImages:
    """Images as a MAITE data set: (C, H, W) float32 in [0, 1], a target of zeros and a one, and the index."""

    def __init__(self, images: Images) -> None:
        self.images = images
        self.metadata = {"id": images.name, "index2label": dict(enumerate(images.classes))}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int, /) -> tuple[Array, Array, dict[str, int]]:
        """Return an image, its target and its metadata. Raises IndexError behind the last one."""
        if not 0 <= place < len(self):
            raise IndexError(place)
        one = self.images.take([place])
        target = np.zeros(len(self.images.classes), np.float32)
        target[int(one.labels[0])] = 1
        return one.float_pixels()[0].cpu().numpy(), target, {"id": int(one.indices[0])}

    def __iter__(self) -> Iterator[tuple[Array, Array, dict[str, int]]]:
        return (self[place] for place in range(len(self)))


@dataclass
class SharedAccuracy:
    """A MAITE metric: the share of images that are right, with its 95 % Wilson interval."""

    metadata: dict[str, str] = field(default_factory=lambda: {"id": "accuracy with 95 % Wilson interval"})
    right: list[bool] = field(default_factory=list)

    def reset(self) -> None:
        """Forget what was counted."""
        self.right.clear()

    def update(self, predictions: Sequence[Any], targets: Sequence[Any], metadata: Sequence[Any], /) -> None:
        """Count images; a tie between the true and another class is wrong."""
        for scores, label in zip(map(np.asarray, predictions), map(_label, targets), strict=True):
            self.right.append(bool((np.delete(scores, label) < scores[label]).all()))

    def compute(self) -> dict[str, float]:
        """Return the share, its interval and the number of images. Raises ValueError without an image."""
        found = Estimate.of(np.array(self.right, bool))
        return {"accuracy": found.value, "low": found.low, "high": found.high, "images": found.total}


class Attacked:
    """A MAITE augmentation: images as the attacks of a `Robustness` leave them; those that stand stay as they are."""

    def __init__(self, model: ServedModel | nn.Module, robustness: Robustness) -> None:
        self.network, self.robustness = network_of(model), robustness
        self.metadata = {"id": f"planish, {robustness.attacks}"}
        self.seen = 0

    def __call__(self, batch: tuple[Sequence[Any], Sequence[Any], Sequence[Any]], /) -> tuple[Any, Any, Any]:
        """Return the batch with other images. Random numbers go by the place of an image in all that were given."""
        own = _batch([*zip(*batch, strict=True)], range(self.seen, self.seen + len(batch[0])))
        self.seen += len(batch[0])
        how = self.robustness
        found = evaluate(self.network, own, threat=how.threat, attacks=how.attacks, seed=how.seed)
        assert found.x_adv is not None
        return [*found.x_adv], batch[1], batch[2]
