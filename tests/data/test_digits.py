import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from planish.core.errors import BadInput
from planish.data.readers.digits import STORED, read_digits


def scikit_learns() -> Any:
    return pytest.importorskip("sklearn.datasets", reason="scikit-learn is not here to compare with").load_digits()


def test_digits_are_scikit_learns_scaled_to_uint8():
    train, test = (read_digits(None, split, None) for split in ("train", "test"))
    assert (len(train), len(test)) == (1297, 500)
    assert sorted(train.indices.tolist() + test.indices.tolist()) == list(range(1797))
    original = scikit_learns()
    for images in (train, test):
        assert images.x.shape[1:] == (1, 8, 8) and images.x.dtype == torch.uint8
        values = torch.tensor(original.images)[images.indices].unsqueeze(1)
        assert torch.equal((images.x.double() * 16 / 255).round(), values)
        assert torch.equal(images.labels, torch.tensor(original.target)[images.indices])
    assert train.x.max() == 255 and train.classes == tuple("0123456789")


def test_the_stored_digits_are_scikit_learns_to_the_byte():
    original = scikit_learns()
    with np.load(STORED) as stored:
        assert sorted(stored.files) == ["x", "y"]
        assert stored["x"].astype(original.images.dtype).tobytes() == np.ascontiguousarray(original.images).tobytes()
        assert stored["y"].astype(original.target.dtype).tobytes() == original.target.tobytes()


def test_the_digits_come_with_planish_and_name_their_source_and_licence():
    """Without scikit-learn, which a plain install does not bring."""
    code = "import sys; sys.modules['sklearn'] = None; import planish; print(len(planish.data.load('digits', 'train')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "1297\n"
    said = STORED.with_suffix(".txt").read_text(encoding="utf-8")
    assert "UCI" in said and "10.24432/C50P49" in said and "CC BY 4.0" in said
    assert STORED.stat().st_size < 60_000


def test_the_split_does_not_change():
    assert read_digits(None, "test", 3).indices.tolist() == [0, 4, 10]


def test_a_path_is_refused():
    with pytest.raises(BadInput, match="takes no path"):
        read_digits(Path("somewhere"), "train", None)
