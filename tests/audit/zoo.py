"""Models that only seem robust, each with the checks that must catch it, and honest ones that none may accuse."""

import io
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from planish.attacks import ByDistance, Worst
from planish.attacks.ascents import Ranked, Targeted, Untargeted
from planish.attacks.suites import Fixed, Stage
from planish.audit.evidence import Plan
from planish.core.batch import Batch
from planish.core.losses import scale_free_cross_entropy
from planish.core.threat import Linf
from planish.data import load
from planish.data.batches import Batches
from planish.methods import Plain, StepContext, TrainingLoss
from planish.models.preact_resnet import preact_resnet18
from planish.models.small_cnn import small_cnn
from planish.registry import make
from planish.search.step_rules import COSINE_MOMENTUM
from planish.training.loop import fit, start
from planish.training.settings import Settings

RADIUS = 0.1
IMAGES = 104
PLAN = Plan("quick", images=IMAGES, setup=100, sample=104, steps=15, noise=8, queries=40, survivors=30, curve_steps=8)
SUITE = Fixed(
    (
        Stage("scout", Untargeted(COSINE_MOMENTUM, 10, scale_free_cross_entropy)),
        Stage("targets", Worst((ByDistance(), *(Targeted(COSINE_MOMENTUM, 10, Ranked(rank)) for rank in (1, 2, 3))))),
    )
)


@dataclass(frozen=True)
class Liar:
    """A model, the radius that it is judged at, and the checks of which at least one must fail, or else warn."""

    make: Callable[[], nn.Module]
    fails: tuple[str, ...] = ()
    warns: tuple[str, ...] = ()
    radius: float = RADIUS
    images: int = IMAGES


def images(count: int = IMAGES) -> Batch:
    """Return test images of the digits."""
    return load("digits", "test", count, None).as_batch()


@cache
def trained(method: str, radius: float = RADIUS, epochs: int = 6) -> nn.Module:
    """Return a small network trained on the digits, in evaluation mode. It is shared: wrap it, change nothing."""
    return _fitted(lambda: small_cnn(classes=10, channels=1, width=8), make("methods", method, {}), radius, epochs)


def _fitted(
    build: Callable[[], nn.Module], method: object, radius: float, epochs: int, count: int = 640, **how
) -> nn.Module:
    """Train in float64: where a network ends then depends on no machine's rounding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = InDouble(build().double())
    settings = Settings(**({"epochs": epochs, "batch_size": 64, "learning_rate": 0.1} | how))
    batches = Batches(load("digits", "train", count, None), settings.batch_size)
    for _ in fit(start(model, settings), method, Linf(radius), batches, settings, seed=0):
        pass
    return model.network.float().eval()


class Wrapped(nn.Module):
    """A network behind something that happens to its images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class InDouble(Wrapped):
    """A network in float64 for images in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.double())


class Scaled(Wrapped):
    """Logits times 1000."""

    def forward(self, x: Tensor) -> Tensor:
        return 1000 * self.network(x)


class Quantised(Wrapped):
    """Pixels are rounded to eight levels."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network((7 * x).round() / 7)


class Noisy(Wrapped):
    """Noise on every pixel, fresh for every forward."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x + 0.2 * torch.randn_like(x))


class Resized(Wrapped):
    """The image is shrunk to a random size and padded at a random place."""

    def forward(self, x: Tensor) -> Tensor:
        side = x.shape[-1]
        small = int(torch.randint(side - 2, side + 1, ()))
        left, top = (int(torch.randint(0, side - small + 1, ())) for _ in range(2))
        shrunk = nn.functional.interpolate(x, size=(small, small), mode="nearest")
        return self.network(nn.functional.pad(shrunk, (left, side - small - left, top, side - small - top)))


class Softmax(Wrapped):
    """Probabilities for logits."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).softmax(1)


class Argmax(Wrapped):
    """The predicted class and nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).to(x.dtype)


class Jpeg(Wrapped):
    """Images go through a JPEG file, 8 times as large, so that its blocks are single pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(torch.stack([self._through_file(image) for image in x.detach().cpu()]))

    def _through_file(self, image: Tensor) -> Tensor:
        pixels = (255 * image[0].clamp(0, 1)).round().to(torch.uint8).numpy().repeat(2, 0).repeat(2, 1)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=75)
        back = np.asarray(Image.open(file), dtype=np.float32)[::2, ::2] / 255
        return torch.from_numpy(back.copy())[None]


class Winners(nn.Module):
    """Only the largest activations of an image stay (k-winners-take-all, Xiao et al. 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(max(1, int(0.1 * flat.shape[1])), dim=1).values[:, -1:]
        return torch.where(flat >= least, flat, 0.0).view(x.shape)


@dataclass(frozen=True)
class Hot(Plain):
    """Training with the logits divided by a temperature, which is taken away afterwards (defensive distillation)."""

    temperature: float = 50.0

    def __call__(self, model: nn.Module, batch: Batch, threat: object, context: StepContext) -> TrainingLoss:
        logits = model(batch.x)
        loss = nn.functional.cross_entropy(logits / self.temperature, batch.labels)
        return TrainingLoss(loss, {"cross_entropy": loss.detach()}, logits.detach())


def with_dropout() -> nn.Module:
    """Return a trained network whose dropout was left on."""
    return nn.Sequential(nn.Dropout(0.3), deepcopy(trained("standard"))).train()


def in_training_mode() -> nn.Module:
    """Return a trained network whose batch norm was left in training mode."""
    return deepcopy(trained("standard")).train()


@cache
def distilled() -> nn.Module:
    """Return a network trained at a temperature of 50."""
    return _fitted(lambda: small_cnn(classes=10, channels=1, width=8), Hot(), RADIUS, 12, learning_rate=1.0)


@cache
def overfitted() -> nn.Module:
    """Return a network after catastrophic overfitting to single steps."""
    return _fitted(
        lambda: preact_resnet18(classes=10, channels=1, width=4),
        make("methods", "fgsm", {}),
        OVERFITTED,
        8,
        512,
    )


@cache
def winning() -> nn.Module:
    """Return a network with k-winners activations, trained on PGD-2."""

    def build() -> nn.Module:
        model = small_cnn(classes=10, channels=1, width=16)
        return nn.Sequential(*(Winners() if isinstance(layer, nn.ReLU) else layer for layer in model))

    return _fitted(build, make("methods", "pgd-2", {}), RADIUS, 6)


OVERFITTED = 0.3
LIARS = {
    "logits x 1000": Liar(lambda: Scaled(trained("standard")), ("zero-gradients",), ("logit-scale", "tiny-gradients")),
    "quantised input": Liar(lambda: Quantised(trained("pgd-7")), ("smooth-input", "zero-gradients")),
    "random noise": Liar(lambda: Noisy(trained("standard")), ("deterministic", "single-draw")),
    "random resizing": Liar(lambda: Resized(trained("standard")), ("deterministic", "single-draw")),
    "softmax output": Liar(lambda: Softmax(trained("standard")), ("logits",)),
    "one-hot output": Liar(lambda: Argmax(trained("standard")), ("logits", "gradient", "smooth-input")),
    "dropout left on": Liar(with_dropout, ("evaluation-mode",)),
    "batch norm left on": Liar(in_training_mode, ("evaluation-mode",)),
    "JPEG inside": Liar(lambda: Jpeg(trained("pgd-7")), ("gradient",), images=24),
    "distilled": Liar(distilled, ("zero-gradients",), ("logit-scale",)),
    "FGSM overfitted": Liar(overfitted, ("gradient-cosine", "one-step-gap"), radius=OVERFITTED),
    "k-winners": Liar(winning, ("gradient",)),
}
HONEST = {name: name for name in ("standard", "pgd-7", "seat", "llr-2", "trades")}
