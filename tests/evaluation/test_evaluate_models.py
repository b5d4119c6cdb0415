"""Models and images as users bring them: what is put back, what is told, and what is refused in one line."""

from collections.abc import Callable
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from planish.attacks.gradient import APGDDLR, APGDT, PGD
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import likely_classes
from planish.core.threat import Linf
from planish.evaluation.evaluate import IN_TRAINING, EvaluationStep, evaluate_steps

Judge = Callable[..., EvaluationStep]


def test_a_model_left_in_training_mode(
    make_network: Callable[[], nn.Module], images: Batch, judge: Judge, unchanged_randomness: None
):
    """It is judged in evaluation mode, told so, and put back; its running statistics do not move."""
    left, proper = make_network(), make_network().eval()
    modes = [module.training for module in left.modules()]
    tensors = deepcopy(left.state_dict())
    assert any(modes) and not all(modes)
    attacks = {"pgd": PGD(3, 2)}
    found, expected = (judge(model, images, attacks, radius=0.015).evaluation for model in (left, proper))
    assert np.array_equal(found.columns[0].margin, expected.columns[0].margin, equal_nan=True)
    assert found.meta["warnings"] == [IN_TRAINING]
    assert expected.meta["warnings"] == []
    assert [module.training for module in left.modules()] == modes
    assert all(torch.equal(value, tensors[name]) for name, value in left.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in left.parameters())


def test_between_attacks_the_model_is_as_its_owner_left_it(network: nn.Module, images: Batch):
    modes = [module.training for module in network.modules()]
    for _ in evaluate_steps(network, images, threat=Linf(0.015), attacks={"pgd": PGD(2, 1)}):
        assert [module.training for module in network.modules()] == modes
        assert all(p.requires_grad for p in network.parameters())


class Changed(nn.Module):
    """A network whose output is changed."""

    def __init__(self, network: nn.Module, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x: Tensor) -> object:
        return self.change(self.network(x))


def test_outputs_that_wrap_their_logits(network: nn.Module, images: Batch, judge: Judge):
    wrapped = Changed(network, lambda logits: SimpleNamespace(logits=logits, loss=None))
    attacks = {"pgd": PGD(2, 1)}
    one, other = (judge(model, images, attacks, radius=0.015).evaluation.columns[0] for model in (wrapped, network))
    assert np.array_equal(one.margin, other.margin, equal_nan=True) and one.backwards == other.backwards > 0


class Inferring(nn.Sequential):
    """A network without a graph, as it is made to serve."""

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)  # type: ignore[no-any-return]


class Buffered(nn.Module):
    """A network without a graph that answers in the same memory each time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.answers = network, torch.zeros(64, 4)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.answers[: len(x)].copy_(self.network(x))


def test_a_forward_in_inference_mode(network: nn.Module, images: Batch, judge: Judge):
    """Named regression: "Inference tensors cannot be saved for backward" ended planish-suite."""
    models = Inferring(network), Changed(network, lambda logits: logits.detach())
    found, expected = (judge(model, images, "measured-2-1", radius=0.015).evaluation.columns[0] for model in models)
    assert np.array_equal(found.margin, expected.margin, equal_nan=True) and found.meta == expected.meta


@pytest.mark.parametrize("eot", [1, 4])
def test_answers_in_the_same_memory(eot: int, network: nn.Module, images: Batch, judge: Judge):
    """Named regression: what was kept of a forward was that of the next one, and so were the answers for all parts."""
    detached = Changed(network, lambda logits: logits.detach())
    found, expected = (
        judge(model, images, "noise-2", radius=0.015, chunk=5, eot=eot).evaluation
        for model in (Buffered(network), detached)
    )
    assert expected.clean_accuracy().hits > 6 and np.array_equal(found.clean_margin, expected.clean_margin)
    assert np.array_equal(found.columns[0].margin, expected.columns[0].margin, equal_nan=True)
    assert found.meta["warnings"] == expected.meta["warnings"]


def poisoned(logits: Tensor) -> Tensor:
    return torch.cat([logits[:1] * torch.nan, logits[1:]])


def explode(logits: Tensor) -> Tensor:
    raise ArithmeticError("no luck")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: z.softmax(1), "the model returns probabilities; give logits: leave its softmax out"),
        (poisoned, "the model returns NaN or infinite logits on 1 image"),
        (lambda z: z * torch.inf, "the model returns NaN or infinite logits on 12 images"),
        (lambda z: z[:, :1], "the model must return logits (N, classes), got (12, 1) for 12 images"),
        (lambda z: z[:, :, None], "the model must return logits (N, classes), got (12, 4, 1) for 12 images"),
        (lambda z: z[:5], "the model must return logits (N, classes), got (5, 4) for 12 images"),
        (lambda z: z[:, :2], "labels lie in 0..3, but the model has 2 classes (0..1)"),
        (explode, "the model raises ArithmeticError on images of shape (1, 8, 8): no luck"),
        (
            lambda z: {"scores": z},
            "the model returns a dict; it must return logits (N, classes) as a tensor",
        ),
    ],
)
def test_outputs_that_cannot_be_judged(
    change: Callable[[Tensor], object], message: str, network: nn.Module, images: Batch
):
    with pytest.raises(BadInput) as raised:
        next(evaluate_steps(Changed(network, change), images, threat=Linf(0.1), attacks={}))
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_probabilities_are_refused_in_half_precision_too(dtype: torch.dtype, network: nn.Module, images: Batch):
    """Their rows add up to 1 as far as their dtype rounds."""
    model = nn.Sequential(network, nn.Softmax(1)).to(dtype)
    with pytest.raises(BadInput, match="the model returns probabilities"):
        evaluate_steps(model, images, threat=Linf(0.1), attacks={})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda b: b._replace(x=b.x * 255),
            "pixels lie in [0.932789, 254.758], not in [0, 1]; give raw images divided by 255",
        ),
        (lambda b: b._replace(x=b.x - 0.5), "pixels lie in [-0.49"),
        (lambda b: b._replace(x=b.x / 0), "pixels lie in [inf, inf], not in [0, 1]"),
        (lambda b: b._replace(x=b.x * torch.nan), "pixels lie in [nan, nan], not in [0, 1]"),
        (
            lambda b: b._replace(x=b.x[:, 0]),
            "images must be (N, channels, height, width), got (12, 8, 8); one image is",
        ),
        (
            lambda b: b.select(slice(0, 0)),
            "images must be (N, channels, height, width) with none of these 0, got (0, 1, 8, 8)",
        ),
        (
            lambda b: b._replace(x=b.x[..., :0]),
            "images must be (N, channels, height, width) with none of these 0, got (12, 1, 8, 0)",
        ),
        (lambda b: b._replace(labels=b.labels - 1), "labels lie in -1..2, but the model has 4 classes (0..3)"),
        (lambda b: b._replace(labels=b.labels + 1), "labels lie in 1..4, but the model has 4 classes (0..3)"),
        (lambda b: b._replace(labels=b.labels[:5]), "labels must be int64 of shape (12,), got torch.int64 of"),
        (lambda b: b._replace(labels=b.labels.float()), "labels must be whole numbers (N,), not torch.float32 of"),
        (lambda b: b._replace(indices=b.indices[:1]), "indices must be int64 of shape (12,), got torch.int64 of"),
        (lambda b: b._replace(x=b.x[..., :3, :3]), "the model raises RuntimeError on images of shape (1, 3, 3)"),
    ],
)
def test_images_that_cannot_be_judged(
    change: Callable[[Batch], Batch], message: str, network: nn.Module, images: Batch
):
    with pytest.raises(BadInput) as raised:
        next(evaluate_steps(network, change(images), threat=Linf(0.1), attacks={}))
    assert str(raised.value).startswith(message), str(raised.value)


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes: int, brightness: Callable[..., nn.Module], levels: Batch, judge: Judge):
    """The DLR loss needs four classes: apgd-dlr says so and names the cure, apgd-t takes the margin by itself."""
    with pytest.raises(BadInput, match=rf"needs at least 4 classes and the model has {classes}; use a margin attack"):
        judge(brightness(classes), levels, {"apgd-dlr": APGDDLR(3)})
    record = judge(brightness(classes), levels, {"apgd-t": APGDT(10)}).evaluation
    assert record.survivors().tolist() == [True, False, False, False, True, False]


class Squeezed(nn.Module):
    """The network's logits without dimensions of one: of a single image (K,)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).squeeze()


def test_a_model_that_squeezes_the_logits_of_one_image(network: nn.Module, images: Batch, judge: Judge):
    """It ended in an IndexError as soon as one image was left in a part."""
    attacks = {"pgd": PGD(3, 1), "apgd-t": APGDT(3, 2)}
    for some in (images, images.select(slice(0, 1))):
        found, expected = (
            judge(model, some, attacks, radius=0.015, chunk=1).evaluation for model in (Squeezed(network), network)
        )
        assert np.array_equal(found.columns[0].margin, expected.columns[0].margin, equal_nan=True)
        assert found.survivors().tolist() == expected.survivors().tolist()


class Lowered(nn.Module):
    """The network's logits times 1e30, all of them below -1e30, and two classes that it never says."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits = 1e30 * (self.network(x) - 1e3)
        return nn.functional.pad(logits, (0, 2), value=torch.finfo(logits.dtype).min)


def test_logits_however_low_are_judged_as_others(brightness: Callable[..., nn.Module], levels: Batch, judge: Judge):
    found, expected = (judge(model, levels, {}).evaluation for model in (Lowered(brightness(3)), brightness(3)))
    assert found.correct().tolist() == expected.correct().tolist() and expected.correct().any()


def test_a_label_is_no_wrong_class_beside_classes_that_are_masked(levels: Batch, brightness: Callable[..., nn.Module]):
    likely = likely_classes(Lowered(brightness(3))(levels.x), levels.labels)
    assert likely.shape == (len(levels.x), 4) and not (likely == levels.labels[:, None]).any()


def test_a_class_that_is_never_predicted_is_told(brightness: Callable[..., nn.Module], levels: Batch, judge: Judge):
    levels = levels._replace(labels=torch.tensor([0, 0, 2, 1, 2, 1]))
    record = judge(brightness(), levels, {}, about={"data": {"classes": ["dark", "bright", "blue", "red"]}}).evaluation
    assert record.class_warnings() == ["Class blue is never predicted on clean images, though 2 show it."]


@pytest.mark.parametrize(
    "lazy", [nn.LazyLinear(3), nn.LazyBatchNorm2d(affine=False)], ids=lambda one: type(one).__name__
)
def test_a_lazy_model_that_never_ran_is_one_line(lazy: nn.Module, images: Batch):
    """It was a ValueError of an uninitialized parameter, said to be planish's mistake."""
    with pytest.raises(BadInput, match=f"the {type(lazy).__name__} in the model has no weights yet: run one batch"):
        next(evaluate_steps(nn.Sequential(lazy, nn.Flatten()), images, threat=Linf(0.1), attacks={}))
