"""Color ops equal PIL's, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageEnhance, ImageOps

from pipeline.views import color

Images = npt.NDArray[np.uint8]
ENHANCERS = {
    "color": (color.color, ImageEnhance.Color),
    "contrast": (color.contrast, ImageEnhance.Contrast),
    "brightness": (color.brightness, ImageEnhance.Brightness),
    "sharpness": (color.sharpness, ImageEnhance.Sharpness),
}
FACTORS = [0.0, 0.1, 0.19, 0.37, 0.5, 0.73, 0.999, 1.0, 1.001, 1.27, 1.5, 1.81, 1.9, 2.43, 3.7]


def by_pil(images: Images, op: Callable[[Image.Image], Image.Image]) -> Images:
    return np.stack([np.asarray(op(Image.fromarray(image))) for image in images])


def all_images(photos: Images, digits: Images, large_photos: Images) -> list[Images]:
    return [photos, digits, large_photos, photos[:, :17, :23], photos[:, :2, :5], photos[:, :3, :3], photos[:, :1, :1]]


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", ENHANCERS)
def test_enhancing_op_equals_pil(
    name: str, factor: float, photos: Images, digits: Images, large_photos: Images
) -> None:
    ours, theirs = ENHANCERS[name]
    for images in all_images(photos, digits, large_photos):
        result = ours(torch.from_numpy(images.copy()), torch.full((len(images),), factor))
        np.testing.assert_array_equal(result.numpy(), by_pil(images, lambda image: theirs(image).enhance(factor)))


@pytest.mark.parametrize("name", ["autocontrast", "equalize", "invert"])
def test_op_without_magnitude_equals_pil(name: str, photos: Images, digits: Images, large_photos: Images) -> None:
    for images in all_images(photos, digits, large_photos):
        result = getattr(color, name)(torch.from_numpy(images.copy()))
        np.testing.assert_array_equal(result.numpy(), by_pil(images, getattr(ImageOps, name)))


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize_equals_pil(bits: int, photos: Images) -> None:
    result = color.posterize(torch.from_numpy(photos), bits)
    np.testing.assert_array_equal(result.numpy(), by_pil(photos, lambda image: ImageOps.posterize(image, bits)))


@pytest.mark.parametrize("threshold", [0, 1, 26, 127, 128, 200, 255, 256])
def test_solarize_equals_pil(threshold: int, photos: Images) -> None:
    result = color.solarize(torch.from_numpy(photos), threshold)
    np.testing.assert_array_equal(result.numpy(), by_pil(photos, lambda image: ImageOps.solarize(image, threshold)))


@pytest.mark.parametrize("added", [0, 1, 11, 99, 110, 127, 128])
def test_solarize_add_equals_pil_table(added: int, photos: Images) -> None:
    table = [min(value + added, 255) if value < 128 else value for value in range(256)] * 3
    result = color.solarize_add(torch.from_numpy(photos), added)
    np.testing.assert_array_equal(result.numpy(), by_pil(photos, lambda image: image.point(table)))


shapes = st.tuples(st.just(1), st.integers(1, 20), st.integers(1, 20), st.just(3))


@settings(max_examples=150)
@given(arrays(np.uint8, shapes), st.floats(0, 4, width=32))
def test_ops_equal_pil_on_any_image_and_factor(images: Images, factor: float) -> None:
    tensor = torch.from_numpy(images)
    for name in ("autocontrast", "equalize"):
        np.testing.assert_array_equal(getattr(color, name)(tensor).numpy(), by_pil(images, getattr(ImageOps, name)))
    for ours, theirs in ENHANCERS.values():
        expected = by_pil(images, lambda image: theirs(image).enhance(factor))  # noqa: B023
        np.testing.assert_array_equal(ours(tensor, torch.tensor([factor])).numpy(), expected)


@settings(max_examples=60)
@given(arrays(np.uint8, (1, 24, 24, 3), elements=st.sampled_from([0, 1, 7, 8, 100, 101, 254, 255])))
def test_histogram_ops_equal_pil_on_few_values(images: Images) -> None:
    for name in ("autocontrast", "equalize"):
        result = getattr(color, name)(torch.from_numpy(images))
        np.testing.assert_array_equal(result.numpy(), by_pil(images, getattr(ImageOps, name)))


def test_autocontrast_equals_pil_for_every_range() -> None:
    """Truncated float64 products decide single levels: all 32,640 pairs of lowest and highest value."""
    pairs = [(low, high) for low in range(256) for high in range(low + 1, 256)]
    for start in range(0, len(pairs), 3 * 1088):
        chunk = np.array(pairs[start : start + 3 * 1088])
        ramps = np.linspace(chunk[:, 0], chunk[:, 1], 256).round().astype(np.uint8)  # [256, n]
        images = np.ascontiguousarray(ramps.T.reshape(-1, 3, 16, 16).transpose(0, 2, 3, 1))
        result = color.autocontrast(torch.from_numpy(images))
        np.testing.assert_array_equal(result.numpy(), by_pil(images, ImageOps.autocontrast))
