"""Issue 24: planish as a capability inside tools that speak MAITE's protocols; the protocols are the package's own."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import planish as pl
from planish.core.errors import BadInput
from planish.records.statistics import Estimate
from planish.runs.maite import (
    Attacked,
    Robustness,
    ServedImages,
    ServedModel,
    SharedAccuracy,
    batch_of_dataset,
    network_of,
)

MAITE = pytest.mark.packages("maite")


@pytest.fixture(scope="module")
def dataset() -> ServedImages:
    return ServedImages(pl.data.load("digits", "test", limit=24))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """The nearest mean of ten, which is linear."""
    images = pl.data.load("digits", "train").as_batch()
    means = torch.stack([images.x[images.labels == k].mean(0).flatten() for k in range(10)])
    layer = nn.Linear(64, 10)
    with torch.no_grad():
        layer.weight.copy_(means)
        layer.bias.copy_(-means.square().sum(1) / 2)
    return nn.Sequential(nn.Flatten(), layer).eval()


@pytest.fixture(scope="module")
def served(network: nn.Module) -> ServedModel:
    return ServedModel(network, "nearest mean", [str(number) for number in range(10)])


class Foreign:
    """Somebody's model: arrays in, arrays out."""

    def __init__(self, model: ServedModel) -> None:
        self.model, self.metadata = model, {"id": "foreign"}

    def __call__(self, batch: Any) -> list[np.ndarray]:
        assert all(isinstance(image, np.ndarray) and image.ndim == 3 for image in batch)
        return self.model(batch)


@MAITE
def test_the_protocols_are_maite_s(dataset: ServedImages, served: ServedModel):
    from maite.protocols import image_classification as protocols

    assert isinstance(dataset, protocols.Dataset) and isinstance(served, protocols.Model)
    assert isinstance(SharedAccuracy(), protocols.Metric)
    assert isinstance(Attacked(served, Robustness("Linf:0.1")), protocols.Augmentation)


@MAITE
def test_maite_s_own_workflow_measures_robust_accuracy(dataset: ServedImages, served: ServedModel):
    from maite import tasks

    clean, _, _ = tasks.evaluate(model=served, dataset=dataset, metric=SharedAccuracy(), batch_size=10)
    how = Robustness("Linf:0.1", "pgd-5-1")
    also = {"augmentation": Attacked(served, how), "batch_size": 10, "return_augmented_data": True}
    robust, _, data = tasks.evaluate(model=served, dataset=dataset, metric=SharedAccuracy(), **also)
    found = how.evaluate(served, dataset)
    assert clean["accuracy"] == found.clean_accuracy().value > robust["accuracy"]
    assert robust["accuracy"] == pytest.approx(found.robust_accuracy().value, abs=1.5 / 24) and robust["images"] == 24
    moved = np.concatenate([np.stack(images) for images, _, _ in data]) - np.stack([image for image, _, _ in dataset])
    assert 0.09 < np.abs(moved).max() <= 0.1 + 1e-6


def test_a_capability_judges_models_and_data_sets(dataset: ServedImages, served: ServedModel, network: nn.Module):
    found = Robustness("Linf:0.1", "pgd-5-1", limit=12).evaluate(served, dataset)
    own = pl.evaluate(network, dataset.images.first(12).as_batch(), threat="Linf:0.1", attacks="pgd-5-1")
    assert np.array_equal(found.survivors(), own.survivors()) and found.meta["model"]["name"] == "nearest mean"
    assert found.dataset == "digits" and found.classes == tuple("0123456789")


def test_a_model_without_gradients(dataset: ServedImages, served: ServedModel):
    foreign = Foreign(served)
    with pytest.raises(BadInput, match="foreign is a black box and planish-suite asks for gradients; use noise"):
        Robustness("Linf:0.1").evaluate(foreign, dataset)
    found = Robustness("Linf:0.1", "noise-3,square-20", limit=8).evaluate(foreign, dataset)
    assert found.asked == ("noise-3", "square-20") and found.meta["model"]["name"] == "foreign"
    x = batch_of_dataset(dataset, 3).x
    expected = torch.from_numpy(np.stack(served([*x.numpy()])))
    assert torch.equal(network_of(foreign)(x), expected.log())


def test_images_of_eight_bits_and_wrong_ones(dataset: ServedImages):
    class Bytes:
        def __init__(self, sides: tuple[int, ...]) -> None:
            self.sides, self.metadata = sides, {"id": "bytes"}

        def __len__(self) -> int:
            return len(self.sides)

        def __getitem__(self, place: int) -> Any:
            side = self.sides[place]
            return np.full((3, side, side), 255, np.uint8), np.array([0, 1, 0]), {"id": "a"}

    batch = batch_of_dataset(Bytes((4, 4)))
    assert batch.x.shape == (2, 3, 4, 4) and batch.x.max() == 1 and batch.labels.tolist() == [1, 1]
    with pytest.raises(BadInput, match=r"of one size, and the data set has \(3, 4, 4\), \(3, 5, 5\)"):
        batch_of_dataset(Bytes((4, 5)))
    with pytest.raises(BadInput, match="has no image"):
        batch_of_dataset(Bytes(()))
    with pytest.raises(IndexError):
        dataset[24]


def test_the_metric_counts_ties_as_wrong():
    metric = SharedAccuracy()
    one = np.array([1.0, 0.0])
    metric.update([np.array([0.9, 0.1]), np.array([0.5, 0.5])], [one, one], [{}, {}])
    share = Estimate.from_counts(1, 2)
    assert metric.compute() == {"accuracy": 0.5, "low": share.low, "high": share.high, "images": 2}
    metric.reset()
    with pytest.raises(ValueError, match="total >= 1"):
        metric.compute()


def test_a_target_is_a_number_for_each_class():
    """Issue: labels given as plain numbers were all read as class 0, and everything was judged by that."""

    class Numbered:
        def __init__(self) -> None:
            self.metadata = {"id": "numbered"}

        def __len__(self) -> int:
            return 3

        def __getitem__(self, place: int) -> Any:
            return np.zeros((1, 2, 2), np.float32), place, {}

    with pytest.raises(BadInput, match=r"one number for each class, \(classes,\), not one of shape \(\)"):
        batch_of_dataset(Numbered())
    with pytest.raises(BadInput, match="one number for each class"):
        SharedAccuracy().update([np.array([0.1, 0.9])], [1], [{}])


def test_names_of_classes_numbered_by_text(network: nn.Module):
    """Issue: of JSON, where numbers are text, "10" came before "2", and pages named the wrong classes."""
    images = pl.data.load("digits", "test", limit=4)
    data = ServedImages(images)
    data.metadata = {"id": "digits", "index2label": {str(number): f"class {number}" for number in range(12)}}
    found = Robustness("Linf:0.1", "noise-2").evaluate(network, data)
    assert found.classes == tuple(f"class {number}" for number in range(12))
