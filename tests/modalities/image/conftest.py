"""Small files in the formats that the readers know."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

SHARED = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not here")
    return SHARED


@pytest.fixture
def random_pixels() -> Callable[..., NDArray[np.uint8]]:
    generator = np.random.default_rng(0)

    def make(*shape: int) -> NDArray[np.uint8]:
        return generator.integers(0, 256, shape, np.uint8)

    return make


@pytest.fixture
def save_image(tmp_path: Path, random_pixels: Callable[..., NDArray[np.uint8]]) -> Callable[..., NDArray[np.uint8]]:
    def save(name: str, *shape: int) -> NDArray[np.uint8]:
        """Saves random pixels, (H, W) or (H, W, C), under ``tmp_path / name``."""
        pixels = random_pixels(*(shape or (6, 8, 3)))
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return pixels

    return save
