import sys
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from planish.core.errors import BadInput
from planish.data.readers.digits import read_digits


def test_digits_are_scikit_learns_scaled_to_uint8():
    train, test = (read_digits(None, split, None) for split in ("train", "test"))
    assert (len(train), len(test)) == (1297, 500)
    assert sorted(train.indices.tolist() + test.indices.tolist()) == list(range(1797))
    original = load_digits()
    for images in (train, test):
        assert images.x.shape[1:] == (1, 8, 8) and images.x.dtype == torch.uint8
        values = torch.tensor(original.images)[images.indices].unsqueeze(1)
        assert torch.equal((images.x.double() * 16 / 255).round(), values)
        assert torch.equal(images.labels, torch.tensor(original.target)[images.indices])
    assert train.x.max() == 255 and train.classes == tuple("0123456789")


def test_the_split_does_not_change():
    assert read_digits(None, "test", 3).indices.tolist() == [0, 4, 10]


def test_a_path_is_refused():
    with pytest.raises(BadInput, match="takes no path"):
        read_digits(Path("somewhere"), "train", None)


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(BadInput, match=r"pip install planish\[digits\]"):
        read_digits(None, "train", None)
