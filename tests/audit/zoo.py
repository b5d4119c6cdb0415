"""Models that only seem robust, each with the checks that must catch it, and honest ones that none may accuse."""

import io
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import masks
import numpy as np
import torch
from masks import Wrapped
from PIL import Image
from torch import Tensor, nn

from planish.attacks import ByDistance, Worst
from planish.attacks.ascents import Ranked, Targeted, Untargeted
from planish.attacks.suites import Fixed, Stage
from planish.audit.evidence import Plan
from planish.core.batch import Batch
from planish.core.losses import scale_free_cross_entropy
from planish.core.modes import batch_norms
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


def suite(classes: int = 10) -> Fixed:
    """Return a short suite."""
    targets = (Targeted(COSINE_MOMENTUM, 10, Ranked(rank)) for rank in range(1, min(classes, 4)))
    scout = Untargeted(COSINE_MOMENTUM, 10, scale_free_cross_entropy)
    return Fixed(
        (Stage("scout", scout), Stage("targets", Worst((ByDistance(), *targets) if classes > 2 else tuple(targets))))
    )


SUITE = suite()


@dataclass(frozen=True)
class Liar:
    """A model, its checks that fail and warn, radius and images, and the network that it masks ("" = none)."""

    make: Callable[[], nn.Module]
    fails: tuple[str, ...] = ()
    warns: tuple[str, ...] = ()
    radius: float = RADIUS
    images: int = IMAGES
    of: str = "standard"


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
    """Return a trained network whose dropout was left in training mode."""
    return nn.Sequential(nn.Dropout(0.3), deepcopy(trained("standard"))).train()


def in_training_mode() -> nn.Module:
    """Return a trained network whose batch norm was left in training mode."""
    return deepcopy(trained("standard")).train()


def without_averages() -> nn.Module:
    """Return a trained network whose batch norm has no running averages: it looks at the batch in either mode."""
    network = deepcopy(trained("standard"))
    for norm in batch_norms(network):
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    return network


class Back(Wrapped):
    """Every forward puts the dropout in front of the network back into training mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        self.dropout.train()
        return self.network(self.dropout(x))


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


def masked(mask: Callable[[nn.Module], nn.Module], of: str = "standard") -> Callable[[], nn.Module]:
    """Return what makes a trained network with a mask on."""
    return lambda: mask(deepcopy(trained(of)))


def before(change: Callable[[Tensor], Tensor], *fails: str, of: str = "standard", **how: object) -> Liar:
    return Liar(masked(lambda network: masks.Before(network, change), of), fails, of=of, **how)  # type: ignore[arg-type]


def after(change: Callable[[Tensor], Tensor], *fails: str, of: str = "standard", **how: object) -> Liar:
    return Liar(masked(lambda network: masks.After(network, change), of), fails, of=of, **how)  # type: ignore[arg-type]


def wrapped(kind: Callable[[nn.Module], nn.Module], *fails: str, of: str = "standard", **how: object) -> Liar:
    return Liar(masked(kind, of), fails, of=of, **how)  # type: ignore[arg-type]


def gradient(change: Callable[[Tensor, Tensor], Tensor], *fails: str, of: str = "standard", **how: object) -> Liar:
    return before(masks.altered(change), *fails, of=of, **how)


class QuantisedLayer(masks.Wrapped):
    """The last layer's inputs in 8 bits, by one scale for all images of the batch, as dynamic quantisation has it."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.network[:-1](x)
        scale = features.abs().amax() / 127
        return self.network[-1]((features / scale).round() * scale)


LIARS = {
    "logits x 1000": Liar(lambda: Scaled(trained("standard")), ("zero-gradients",), ("logit-scale", "tiny-gradients")),
    "quantised input": Liar(lambda: Quantised(trained("pgd-7")), ("smooth-input", "zero-gradients"), of="pgd-7"),
    "quantised layer": Liar(lambda: QuantisedLayer(trained("pgd-7")), ("gradient", "zero-gradients"), of="pgd-7"),
    "random noise": Liar(lambda: Noisy(trained("standard")), ("deterministic", "single-draw")),
    "random resizing": Liar(lambda: Resized(trained("standard")), ("deterministic", "single-draw")),
    "softmax output": Liar(lambda: Softmax(trained("standard")), ("logits",)),
    "one-hot output": Liar(lambda: Argmax(trained("standard")), ("logits", "gradient", "smooth-input")),
    "dropout put back on": wrapped(Back, "evaluation-mode", "deterministic"),
    "batch norm without averages": Liar(without_averages, ("evaluation-mode",)),
    "JPEG inside": Liar(lambda: Jpeg(trained("pgd-7")), ("gradient",), images=24, of="pgd-7"),
    "distilled": Liar(distilled, ("zero-gradients",), ("logit-scale",), of=""),
    "FGSM overfitted": Liar(overfitted, ("gradient-cosine", "one-step-gap"), radius=OVERFITTED, of=""),
    "k-winners": Liar(winning, ("gradient",), of=""),
    "remembers images": wrapped(masks.Remembering, "memory"),
    "counts its calls": Liar(
        lambda: masks.Counting(deepcopy(trained("standard")), deepcopy(trained("pgd-7"))), ("memory",)
    ),
    "gradient turned": gradient(masks.turned, "gradient"),
    "gradient reversed": gradient(lambda gradient, x: -gradient, "gradient"),
    "gradient with noise": gradient(masks.noisy_gradient, "gradient"),
    "gradient on a checkerboard": gradient(masks.checkered, "gradient"),
    "gradient reversed off the grid": gradient(masks.off_the_grid, "gradient"),
    "no gradient at the box": gradient(masks.only_inside, "gradient", of="pgd-7"),
    "no gradient where sure": wrapped(masks.Confident, "zero-gradients"),
    "half detached": wrapped(masks.Half),
    "without gradients": wrapped(masks.Sealed, "plain-forward", "gradient"),
    "thermometer": before(masks.thermometer, "zero-gradients"),
    "straight-through rounding": before(masks.straight_through, "gradient", "smooth-input"),
    "DCT rounded": before(masks.cosines, "zero-gradients", "smooth-input"),
    "median filter": before(masks.median, "gradient"),
    "noise by content": before(masks.by_content, "gradient", of="pgd-7"),
    "random translation": before(masks.translated, "deterministic", "single-draw"),
    "input dropout": before(masks.dropped, "deterministic", "single-draw", of="pgd-7"),
    "activations pruned": wrapped(masks.Pruned, "deterministic", "single-draw"),
    "batch whitened": before(masks.whitened, "evaluation-mode"),
    "votes on noisy copies": wrapped(masks.Voting, "zero-gradients", "smooth-input", of="pgd-7"),
    "searches when asked": wrapped(masks.Searching, "plain-forward"),
    "switching networks": Liar(
        lambda: masks.Switching(deepcopy(trained("standard")), deepcopy(trained("pgd-7"))), ("gradient",)
    ),
    "abstains": wrapped(masks.Abstaining, "gradient", warns=("abstention",)),
    "not a number off the grid": wrapped(masks.Undefined, "gradient-cosine"),
    "softmax at 0.05": after(masks.probabilities(0.05), "logits", "zero-gradients"),
    "saturated tanh": after(masks.saturated, "precision"),
    "logits rounded": after(masks.rounded, "zero-gradients"),
    "gradients underflow": after(masks.underflowing, "gradient", "zero-gradients", "precision"),
}


@dataclass(frozen=True)
class Honest:
    """A model that no check may fail, its images, the radius, and the checks that must warn of it."""

    make: Callable[[], nn.Module]
    images: Callable[[int], Batch] = images
    radius: float = RADIUS
    classes: int = 10
    warns: tuple[str, ...] = ()


@cache
def built(name: str) -> nn.Module:
    """Return a network of another kind, trained on the digits."""
    builds = {
        "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        "no biases": lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(64, 48, bias=False), nn.ReLU(), nn.Linear(48, 10, bias=False)
        ),
        "GELU": lambda: small_cnn(classes=10, channels=1, width=8, activation="gelu"),
        "ELU, average pool": lambda: pooled(nn.ELU(), nn.AvgPool2d(2)),
        "max pool": lambda: pooled(nn.ReLU(), nn.MaxPool2d(2)),
        "transformer": Patches,
    }
    rate = 0.02 if name == "transformer" else 0.2
    return _fitted(builds[name], make("methods", "pgd-2", {}), RADIUS, 8, learning_rate=rate)


def pooled(activation: nn.Module, pool: nn.Module) -> nn.Module:
    """Return one convolution, pooled, and a linear head."""
    return nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1), activation, pool, nn.Flatten(), nn.Linear(256, 10))


class Patches(nn.Module):
    """A small vision transformer: 2x2 patches, one block of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(1, 24, 2, 2), nn.Sequential(nn.Flatten(), nn.Linear(384, 10))
        self.place = nn.Parameter(0.02 * torch.randn(1, 16, 24))
        self.block = nn.TransformerEncoderLayer(24, 2, 48, 0.0, batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).mT + self.place
        return self.head(self.block(tokens))


class Dictionary(masks.Wrapped):
    """Logits in a dictionary, as Hugging Face has them."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.network(x)}


class Spoiling(masks.Wrapped):
    """Normalises its images in place."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.sub_(0.5).mul_(2).div_(2).add_(0.5))


def in_dtype(dtype: torch.dtype) -> Callable[[int], Batch]:
    return lambda count: images(count)._replace(x=images(count).x.to(dtype))


def cast(dtype: torch.dtype, of: str = "pgd-7") -> nn.Module:
    return deepcopy(trained(of)).to(dtype)


def of_two(count: int) -> Batch:
    """Return test images of zeros and ones."""
    batch = images(400)
    return batch.select((batch.labels < 2).nonzero().squeeze(1)[:count])


@cache
def two_classes() -> nn.Module:
    """Return the two first logits of a network that was trained on all digits against PGD."""
    network = deepcopy(trained("pgd-7"))
    last = nn.Linear(64, 2)
    with torch.no_grad():
        last.weight.copy_(network[-1].weight[:2])
        last.bias.copy_(network[-1].bias[:2])
    network[-1] = last
    return network


def of_pairs(count: int) -> Batch:
    """Return images of two digits side by side, of a hundred classes."""
    left, right = images(2 * count).select(slice(0, count)), images(2 * count).select(slice(count, 2 * count))
    return Batch(torch.cat([left.x, right.x], 3), 10 * left.labels + right.labels, left.indices)


class Pairs(masks.Wrapped):
    """Logits of two digits side by side: sums of those of each."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = (self.network(part.contiguous()).log_softmax(1) for part in x.split(x.shape[2], 3))
        return (left[:, :, None] + right[:, None]).flatten(1)


def weak() -> nn.Module:
    """Return a network that is little better than chance."""
    return _fitted(lambda: small_cnn(classes=10, channels=1, width=4), make("methods", "standard", {}), RADIUS, 1, 128)


class Mean(nn.Module):
    """The logarithm of the mean probability of several networks."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([network(x).log_softmax(1) for network in self.networks]).logsumexp(0)


def normalised() -> nn.Module:
    """Return a network behind a normalisation that its first layer undoes."""
    inner = masks.Before(deepcopy(trained("pgd-7")), lambda x: 0.3 * x + 0.3)
    return masks.Before(inner, lambda x: (x - 0.3) / 0.3)


@torch.no_grad()
def in_8_bits() -> nn.Module:
    """Return a network whose weights are whole multiples of a 127th of the largest of each tensor."""
    network = deepcopy(trained("pgd-7"))
    for weight in network.parameters():
        scale = weight.abs().amax().clamp(min=1e-12) / 127
        weight.copy_((weight / scale).round() * scale)
    return network


def exported() -> nn.Module:
    """Return the module that torch.export makes of a network, for any number of images."""
    network, count = deepcopy(trained("pgd-7")).eval(), torch.export.Dim("count", min=1)
    return torch.export.export(network, (images(4).x,), dynamic_shapes=({0: count},)).module()


HONEST = {
    **{name: Honest(lambda name=name: trained(name)) for name in ("standard", "pgd-7", "seat", "llr-2", "trades")},
    **{name: Honest(lambda name=name: built(name)) for name in ("linear", "no biases", "GELU", "ELU, average pool")},
    **{name: Honest(lambda name=name: built(name)) for name in ("max pool", "transformer")},
    "log-softmax": Honest(lambda: masks.After(deepcopy(trained("pgd-7")), lambda logits: logits.log_softmax(1))),
    "temperature 4": Honest(lambda: masks.After(deepcopy(trained("pgd-7")), lambda logits: logits / 4)),
    "float64": Honest(lambda: cast(torch.float64), in_dtype(torch.float64)),
    "bf16": Honest(lambda: cast(torch.bfloat16), in_dtype(torch.bfloat16)),
    "float16": Honest(lambda: cast(torch.float16), in_dtype(torch.float16)),
    "bf16 inside": Honest(lambda: masks.Before(cast(torch.bfloat16), lambda x: x.to(torch.bfloat16))),
    "two classes": Honest(two_classes, of_two, classes=2),
    "a hundred classes": Honest(lambda: Pairs(deepcopy(trained("pgd-7"))), of_pairs),
    "ensemble": Honest(lambda: Mean(*(deepcopy(trained(name)) for name in ("pgd-7", "seat", "trades")))),
    "normalised inside": Honest(normalised),
    "normalised in place": Honest(lambda: Spoiling(deepcopy(trained("pgd-7")))),
    "compiled": Honest(lambda: torch.compile(deepcopy(trained("pgd-7")), backend="aot_eager")),
    "weights in 8 bits": Honest(in_8_bits),
    "exported": Honest(exported),
    "dictionary": Honest(lambda: Dictionary(deepcopy(trained("pgd-7")))),
    "weak": Honest(weak),
    "dropout in training mode": Honest(with_dropout, warns=("evaluation-mode",)),
    "batch norm in training mode": Honest(in_training_mode, warns=("evaluation-mode",)),
}
