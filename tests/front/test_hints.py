"""What users bring in another form is refused with the line that makes it right."""

from typing import Any

import pytest
import torch
from torch import nn

import planish as pl

CLASSES = 10
X = torch.rand(6, 3, 5, 7, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 9, 3, 4, 5])


def refusal(x: Any, labels: Any) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(), nn.Linear(35, CLASSES)).eval()
    with pytest.raises(pl.BadInput) as refused:
        pl.evaluate(model, x, labels, "Linf:0.1", "fgsm")
    assert "\n" not in str(refused.value)
    return str(refused.value)


LABELS_THAT = {
    "one column": (LABELS[:, None], "give labels[:, 0]"),
    "one-hot rows": (nn.functional.one_hot(LABELS, CLASSES), "give labels.argmax(1)"),
    "one-hot rows of floats": (nn.functional.one_hot(LABELS, CLASSES).float(), "give labels.argmax(1)"),
    "whole floats": (LABELS.float(), "give labels.long()"),
    "counted from 1": (LABELS + 1, "do they count from 1? give labels - 1"),
}


@pytest.mark.parametrize("kind", LABELS_THAT)
def test_labels_of_another_form(kind: str):
    labels, hint = LABELS_THAT[kind]
    assert refusal(X, labels).endswith(hint)


SEVERAL = nn.functional.one_hot(LABELS, CLASSES) | nn.functional.one_hot(LABELS.flip(0), CLASSES)
UNKNOWN = [(LABELS.float() + 0.5, "floats"), (LABELS + 2, "not from 1"), (SEVERAL, "several classes of an image")]


@pytest.mark.parametrize(("labels", "why"), UNKNOWN)
def test_labels_that_nothing_makes_right_get_no_hint(labels: torch.Tensor, why: str):
    assert "give" not in refusal(X, labels), why


IMAGES_THAT = {
    "channels last": (X.permute(0, 2, 3, 1), "do the channels lie last? give x.permute(0, 3, 1, 2)"),
    "vectors": (X.flatten(1), "vectors are images of one pixel, x[:, :, None, None]"),
    "volumes": (X[:, None], "volumes are images with their slices as channels, x.flatten(1, 2)"),
    "a loader of mappings": ([{"image": X, "label": LABELS}], "[(item[A], item[B]) for item in loader]"),
}


@pytest.mark.parametrize("kind", IMAGES_THAT)
def test_images_of_another_form(kind: str):
    x, hint = IMAGES_THAT[kind]
    assert hint in refusal(x, None if isinstance(x, list) else LABELS)


def test_what_the_hints_say_works():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 5 * 7, CLASSES)).eval()
    for x in (X.flatten(1)[:, :, None, None], X[:, None].flatten(1, 2)):
        assert len(pl.evaluate(flat, x, LABELS, "Linf:0.1", "fgsm").labels) == 6
    loader = [{"image": X, "label": LABELS}]
    pairs = [(item["image"], item["label"]) for item in loader]
    assert len(pl.evaluate(flat, pairs, None, "Linf:0.1", "fgsm").labels) == 6
