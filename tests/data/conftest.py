"""Shared by the data tests: a private PLANISH_HOME, and small image files."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def private_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("PLANISH_HOME", str(home))
    return home


@pytest.fixture
def rgb() -> Callable[..., np.ndarray]:
    """Random RGB images (N, H, W, 3) uint8."""

    def make(count: int, height: int = 5, width: int = 4, seed: int = 0) -> np.ndarray:
        generator = np.random.default_rng(seed)
        return generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8)

    return make


@pytest.fixture
def png() -> Callable[[np.ndarray], bytes]:
    """Encode (H, W) or (H, W, 3) uint8 as PNG."""

    def encode(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        return buffer.getvalue()

    return encode
