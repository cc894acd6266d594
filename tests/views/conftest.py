"""Real and random images for the tests of views."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.demos.digits import load_digits

Images = npt.NDArray[np.uint8]


@pytest.fixture(scope="session")
def photos() -> Images:
    """Crops of scikit-learn's two photographs at 32 pixels, and what photographs lack: noise, flat, two values."""
    crops = [
        np.asarray(Image.fromarray(photo[top : top + 256, left : left + 256]).resize((32, 32), Image.Resampling.BOX))
        for photo in load_sample_images().images
        for top in (0, 100, 171)
        for left in (0, 150, 300)
    ]
    noise = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    noise[3:] = noise[3:] // 5 + 90  # little contrast
    flat = np.full((1, 32, 32, 3), (3, 128, 255), np.uint8)
    two = np.where(noise[:1] < 99, 17, 18).astype(np.uint8)
    return np.concatenate([np.stack(crops), noise, flat, two])


@pytest.fixture(scope="session")
def large_photos() -> Images:
    """Two photographs at 224 pixels."""
    return np.stack([photo[100:324, 200:424] for photo in load_sample_images().images])


@pytest.fixture(scope="session")
def digits() -> Images:
    """Ten handwritten digits at 8 pixels."""
    return np.repeat(load_digits()[0][:10, ..., None], 3, axis=3)
