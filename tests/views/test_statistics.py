"""The statistics of a data set against numpy's in float64, of all its images at once."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.demos.digits import load_digits
from pipeline.views.statistics import Statistics, measure


class Colored:
    """Reads images, to which it gives the colors that digits lack, as a `Reader` would."""

    def __init__(self, images: np.ndarray) -> None:
        tints = np.random.default_rng(0).integers(40, 256, (len(images), 1, 1, 3))
        self.images = (images * tints // 255).astype(np.uint8)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.images[rows]


@pytest.fixture(scope="module")
def colored() -> Colored:
    return Colored(np.repeat(load_digits()[0][:400, ..., None], 3, axis=3))


@pytest.fixture(scope="module")
def found(colored: Colored) -> Statistics:
    return measure(colored, len(colored.images), products=True)  # type: ignore[arg-type]


def test_means_and_deviations_are_those_of_numpy(found: Statistics, colored: Colored) -> None:
    values = colored.images / 255
    np.testing.assert_allclose(found.mean_image, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.mean, values.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.std, values.std((0, 1, 2)), rtol=1e-10)


def test_components_are_those_of_the_colors(found: Statistics, colored: Colored) -> None:
    """Against the singular values of the centered pixels, which know of no covariance."""
    pixels = colored.images.reshape(-1, 3) / 255
    _, singular, directions = np.linalg.svd(pixels - pixels.mean(0), full_matrices=False)
    variances = singular**2 / len(pixels)
    order = np.argsort(np.linalg.norm(found.components, axis=0))[::-1]
    ours = found.components[:, order]
    np.testing.assert_allclose(np.linalg.norm(ours, axis=0), variances, rtol=1e-9)
    np.testing.assert_allclose(np.abs((ours / variances).T), np.abs(directions), rtol=1e-7)


def test_batches_and_their_order_change_no_bit(colored: Colored, monkeypatch: pytest.MonkeyPatch) -> None:
    num = len(colored.images)
    one = measure(colored, num, products=True)  # type: ignore[arg-type]
    monkeypatch.setattr("pipeline.views.statistics._BATCH", 7)
    seen: list[int] = []
    turned = Colored(colored.images)
    turned.images = colored.images[::-1]
    two = measure(turned, num, seen.append, products=True)  # type: ignore[arg-type]
    for name in ("total", "colors", "products"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
    assert seen == [*range(7, num, 7), num]
