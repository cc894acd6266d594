"""Color noise against torchvision's, Pillow's, and the formula of AlexNet in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy.stats import kstest

import pipeline.models  # noqa: F401  # torchvision cannot be imported beside a CPU torch without it
from pipeline.arrays import F64Array
from pipeline.config import WeakView
from pipeline.views.jitter import ColorNoise

from torchvision.transforms.v2 import functional as theirs  # isort: skip

Images = npt.NDArray[np.uint8]
ALL = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2}
COMPONENTS = np.array([[0.12, 0.01, 0.002], [0.12, 0.001, -0.004], [0.11, -0.01, 0.002]])


def noise(jitter: dict[str, float] | None = None, pca: F64Array | None = None, **weak: Any) -> ColorNoise:
    return ColorNoise(WeakView(color_jitter=jitter, **weak), pca, (0, 1))


def positions(num: int) -> npt.NDArray[np.uint64]:
    return np.arange(num, dtype=np.uint64)


def by_torchvision(image: Images, factors: list[float]) -> F64Array:
    """The same operations on floats, in 0..255, without rounding."""
    planes = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    brightness, contrast, saturation, hue = factors
    planes = theirs.adjust_contrast(theirs.adjust_brightness(planes, brightness), contrast)
    planes = theirs.adjust_hue(theirs.adjust_saturation(planes, saturation), hue)
    return np.asarray(planes.permute(1, 2, 0) * 255, np.float64)


@pytest.mark.parametrize("which", [*ALL, "all"])
def test_color_jitter_is_that_of_torchvision_up_to_the_rounding(
    which: str, photos: Images, large_photos: Images
) -> None:
    """Half a level is the rounding; torchvision's weights of the luma differ by 0.0001, and its mean luma by half."""
    jitter = {name: strength if which in (name, "all") else 0.0 for name, strength in ALL.items()}
    for images in (photos, large_photos):
        made = noise(jitter)
        numbers = made.draw(positions(len(images)), "weak")
        found = made.apply(torch.from_numpy(images), torch.from_numpy(numbers)).numpy()
        assert (found != images).any()
        for image, ours, row in zip(images, found, numbers.tolist(), strict=True):
            # Of torchvision's hue, turns near a corner of the color circle are unstable by a level.
            assert np.abs(ours - by_torchvision(image, row[:4])).max() < (0.8 if not jitter["hue"] else 1.1)


def test_color_jitter_is_that_of_pillow_up_to_its_truncations(photos: Images) -> None:
    """Pillow cuts off, by half a level in the mean, after each of three operations, which the later ones stretch by up
    to 1.4 each: 0.5 * (1 + 1.4 + 1.96)."""
    made = noise({})
    numbers = made.draw(positions(len(photos)), "weak")
    found = made.apply(torch.from_numpy(photos), torch.from_numpy(numbers)).numpy()
    for image, ours, row in zip(photos, found, numbers.tolist(), strict=True):
        shown = Image.fromarray(image)
        for enhancer, factor in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), row):  # noqa: B905
            shown = enhancer(shown).enhance(factor)
        assert np.abs(ours.astype(int) - np.asarray(shown)).max() <= 5
        assert np.abs(ours.astype(int) - np.asarray(shown)).mean() <= 2.2


def test_factors_are_uniform_and_each_images_own() -> None:
    numbers = noise(ALL).draw(positions(4000), "weak")
    for column, (name, strength) in enumerate(ALL.items()):
        middle = 0.0 if name == "hue" else 1.0
        assert kstest(numbers[:, column], "uniform", (middle - strength, 2 * strength)).pvalue > 1e-3
    assert np.abs(np.corrcoef(numbers[:, :4].T) - np.eye(4)).max() < 0.06
    assert (noise(ALL).draw(positions(4000), "strong") != numbers)[:, :4].mean() > 0.99
    assert noise(ALL).draw(positions(4000)[77:78], "weak").tolist() == numbers[77:78].tolist()


def test_pca_color_is_the_formula_of_alexnet(photos: Images) -> None:
    """[p1 p2 p3] [alpha1 lambda1, alpha2 lambda2, alpha3 lambda3]^T is added to every pixel, with values in 0..1."""
    made = noise(pca=COMPONENTS, pca_color=0.1)
    numbers = made.draw(positions(len(photos)), "weak")
    found = made.apply(torch.from_numpy(photos), torch.from_numpy(numbers)).numpy()
    alpha = np.linalg.solve(COMPONENTS, numbers[:, 4:].T / 255).T  # [B, 3]
    expected = np.clip(photos / 255 + (alpha @ COMPONENTS.T)[:, None, None, :], 0, 1) * 255
    assert np.abs(found - expected).max() < 0.501


def test_alpha_is_normal_with_the_asked_deviation() -> None:
    numbers = noise(pca=COMPONENTS, pca_color=0.1).draw(positions(4000), "weak")
    alpha = np.linalg.solve(COMPONENTS, numbers[:, 4:].T / 255)
    for row in alpha:
        assert kstest(row, "norm", (0, 0.1)).pvalue > 1e-3
    assert np.abs(np.corrcoef(alpha) - np.eye(3)).max() < 0.06


def test_without_color_noise_nothing_is_drawn() -> None:
    assert noise().draw(positions(3), "weak").shape == (3, 0)
    assert not noise().is_on
