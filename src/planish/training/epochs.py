"""Training batches: what gives them epoch by epoch, and how that is made of a DataLoader, or of images and labels."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from planish.core.arguments import check_images, is_loader, pair_of
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.randomness import drawn_seed, reproducible, seeded
from planish.core.share import Share
from planish.core.threat import ThreatModel
from planish.data.batches import Augmentation, Batches
from planish.data.images import images_of

LOADED = 0x10AD  # keeps a loader's draws apart from a method's for the same seed and step


class Epochs(Protocol):
    """Training batches that depend on (seed, epoch) alone, so that a resumed run sees the same.

    identities: every index is below it; methods that remember each image need it. skip: leave out so many batches.
    """

    @property
    def identities(self) -> int | None: ...

    def __len__(self) -> int: ...
    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]: ...


@runtime_checkable
class Shared(Epochs, Protocol):
    """Batches that several processes share. share: what this one takes. whole: images that a batch has in all."""

    @property
    def share(self) -> Share: ...

    def whole(self, step: int) -> int: ...


@dataclass(frozen=True)
class Loaded:
    """The batches of a DataLoader, or of anything else of a known length that yields (images, labels) anew each epoch.

    What is drawn by PyTorch, such as the order and the augmentation, depends on the seed, the epoch and the step alone.
    """

    loader: Iterable[Any]
    threat: ThreatModel
    device: torch.device

    @property
    def identities(self) -> int | None:
        """A loader does not say which image is which."""
        return None

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the epoch's batches on the model's device. Raises BadInput."""
        iterator: Iterator[Any] | None = None
        for step in range(len(self)):
            with reproducible(drawn_seed(seeded(seed, LOADED, number, step))):
                iterator = iter(self.loader) if iterator is None else iterator
                pair = next(iterator, None)
            if pair is None:
                raise BadInput(f"the loader says that it has {len(self)} batches and yields {step}: correct its length")
            if step < skip:
                continue
            batch = pair_of(pair)
            if step == skip or batch.x.device.type == "cpu":  # on a GPU a look at every batch would wait for each
                check_images(batch, self.threat)
                if (least := int(batch.labels.min())) < 0:
                    raise BadInput(f"step {step} has the label {least}; labels count from 0: leave such images out")
            yield Batch(*(part.to(self.device) for part in batch[:3]))


def epochs_of(batches: Any, threat: ThreatModel, batch_size: int, device: torch.device) -> Epochs:
    """Return training batches of what `fit` is given. Raises BadInput."""
    if hasattr(batches, "epoch"):
        return batches  # type: ignore[no-any-return]
    if is_loader(batches):
        try:
            len(batches)
        except TypeError:
            raise BadInput(
                f"a loader must know how many batches it has, and a {type(batches).__name__} does not"
            ) from None
        return Loaded(batches, threat, device)
    return Batches(images_of(batches), batch_size, Augmentation(), device)
