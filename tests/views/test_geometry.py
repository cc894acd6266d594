"""Crops are exact; resampling is PIL's bilinear, but rounded; cutout clips at the border."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.views import OPS
from pipeline.views.geometry import FILL, crop, cut_out, fit, mirror, resample
from pipeline.views.randaugment import GEOMETRIC, RandAugment, rotation

Images = npt.NDArray[np.uint8]
MAGNITUDES = [0.5, 1.0, 2.0, 5.0, 9.0, 10.0, 17.0, 27.0, 30.0]


def by_pil(images: Images, affine: tuple[float, ...]) -> Images:
    size = images.shape[1:3]
    transformed = [
        Image.fromarray(image).transform(
            size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR, fillcolor=(FILL,) * 3
        )
        for image in images
    ]
    return np.stack([np.asarray(image) for image in transformed])


def interior(affine: tuple[float, ...], size: int) -> npt.NDArray[np.bool_]:
    """Output pixels read at least one pixel inside the image, and those read at least one pixel outside."""
    a, b, c, d, e, f = affine
    y, x = np.mgrid[:size, :size] + 0.5
    positions = np.stack([a * x + b * y + c, d * x + e * y + f])
    inside: npt.NDArray[np.bool_] = ((positions > 1) & (positions < size - 1)).all(0)
    return inside


def assert_close_to_pil(result: Images, expected: Images, affine: tuple[float, ...]) -> None:
    difference = np.abs(result.astype(int) - expected)
    assert difference.mean() <= 1
    inside = interior(affine, result.shape[1])
    assert difference[:, inside].max(initial=0) <= 1  # the bound asked for is 3: truncation costs PIL up to 1


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometric_op_is_near_pil(
    name: str, magnitude: float, photos: Images, digits: Images, large_photos: Images
) -> None:
    for images in (photos, digits, large_photos):
        size = images.shape[1]
        randaugment = RandAugment(1, magnitude, size)
        for sign in (0, 1):
            plan = randaugment.plan(np.full((len(images), 1), OPS.index(name)), np.full((len(images), 1), sign))
            affine = tuple(plan.parameters[0, 0].astype(float).tolist())
            result = randaugment.apply(
                torch.from_numpy(images), torch.from_numpy(plan.order), torch.from_numpy(plan.parameters), plan.counts
            )
            assert_close_to_pil(result.numpy(), by_pil(images, affine), affine)


@settings(max_examples=100)
@given(st.tuples(*[st.floats(-2, 2)] * 2, st.floats(-40, 40), *[st.floats(-2, 2)] * 2, st.floats(-40, 40)))
def test_resample_is_near_pil_for_any_affine_map(affine: tuple[float, ...]) -> None:
    affine = tuple(float(np.float32(value)) for value in affine)
    images = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), np.uint8)
    result = resample(torch.from_numpy(images), torch.tensor([affine] * 2), 16).numpy()
    inside = interior(affine, 16)
    difference = np.abs(result.astype(int) - by_pil(images, affine))
    assert difference[:, inside].max(initial=0) <= 1


@pytest.mark.parametrize("degrees", [-90, -30, 3, 27, 45, 81])
def test_rotation_is_pils(degrees: float, photos: Images) -> None:
    expected = [
        np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR, fillcolor=(FILL,) * 3))
        for image in photos
    ]
    affine = rotation(degrees, 32)
    result = resample(torch.from_numpy(photos), torch.tensor([affine] * len(photos)), 32).numpy()
    assert_close_to_pil(result, np.stack(expected), affine)


def test_border_and_fill_are_pils(photos: Images) -> None:
    """Exactly representable shifts: what is fill, and what the half pixel at the border gives, is as in PIL."""
    for shift in (-32.5, -4.5, -4, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 3, 31.25, 31.5, 32):
        affine = (1, 0, shift, 0, 1, -shift / 2)
        result = resample(torch.from_numpy(photos), torch.tensor([affine] * len(photos)), 32).numpy()
        expected = by_pil(photos, affine)
        assert np.abs(result.astype(int) - expected).max() <= 1
        if shift % 2 == 0:
            np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("size", [1, 2, 8, 32, 97, 224, 513])
def test_identity_map_is_exact(size: int) -> None:
    images = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resample(images, torch.tensor([[1.0, 0, 0, 0, 1, 0]] * 2), size), images)


def test_quarter_turns_are_exact(photos: Images) -> None:
    images = torch.from_numpy(photos)
    turned = resample(images, torch.tensor([rotation(90, 32)] * len(images)), 32)
    np.testing.assert_array_equal(turned[:, 1:-1, 1:-1], torch.rot90(images, 1, (1, 2))[:, 1:-1, 1:-1])


@settings(max_examples=100)
@given(size=st.integers(2, 20), padding=st.integers(0, 25), data=st.data())
def test_crop_equals_numpy_reflection(size: int, padding: int, data: st.DataObject) -> None:
    images = np.random.default_rng(size).integers(0, 256, (3, size, size, 3), np.uint8)
    offset = st.integers(0, 2 * padding)
    corners = np.array([[data.draw(offset), data.draw(offset)] for _ in images], np.int32)
    flips = np.array([data.draw(st.booleans()) for _ in images])
    result = crop(torch.from_numpy(images), torch.from_numpy(corners), torch.from_numpy(flips), padding).numpy()
    for row, (image, (top, left), flip) in enumerate(zip(images, corners, flips, strict=True)):
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
        expected = padded[top : top + size, left : left + size]
        np.testing.assert_array_equal(result[row], expected[:, ::-1] if flip else expected)


@settings(max_examples=100)
@given(size=st.integers(1, 12), side=st.integers(1, 12), top=st.integers(-12, 13), left=st.integers(-12, 13))
def test_cutout_fills_the_clipped_square_and_nothing_else(size: int, side: int, top: int, left: int) -> None:
    images = np.zeros((1, size, size, 3), np.uint8)
    expected = images.copy()
    expected[0, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = FILL
    corners = torch.tensor([[top, left]], dtype=torch.int32)
    np.testing.assert_array_equal(cut_out(torch.from_numpy(images), corners, side).numpy(), expected)


def test_fit_is_the_identity_at_the_same_size_and_near_pils_bicubic_otherwise(large_photos: Images) -> None:
    images = torch.from_numpy(large_photos)
    assert fit(images, 224) is images
    for size in (64, 100, 256):
        expected = np.stack([np.asarray(Image.fromarray(image).resize((size, size))) for image in large_photos])
        difference = np.abs(fit(images, size).numpy().astype(int) - expected)
        assert difference.mean() < 0.2  # PIL rounds and clips to 8 bits between its two passes
        assert difference.max() <= 10
    scaled = [Image.fromarray(image[:150]).resize((149, 100)) for image in large_photos]
    expected = np.stack([np.asarray(image)[:, 24:124] for image in scaled])
    difference = np.abs(fit(images[:, :150], 100).numpy().astype(int) - expected)
    assert difference.mean() < 0.2


@pytest.mark.parametrize("side", [8, 60])  # of which a host mirrors the larger ones in another way
def test_mirror_is_a_crop_without_padding_and_leaves_its_input_alone(side: int) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, side, side, 3), np.uint8))
    before, rows = images.clone(), torch.tensor([0, 3], dtype=torch.int32)
    flips = torch.tensor([True, False, False, True, False])
    expected = crop(images, torch.zeros(5, 2, dtype=torch.int32), flips, 0)
    assert torch.equal(mirror(images, rows), expected)
    assert torch.equal(images, before)
    assert mirror(images, rows[:0]).data_ptr() != images.data_ptr()
