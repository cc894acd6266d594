"""Views are functions of (image, seed, round, purpose, position), whatever the batch, the order or the threads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from pipeline.config import StrongView, WeakView
from pipeline.errors import UserError
from pipeline.views import Views

Images = npt.NDArray[np.uint8]
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
PAD, RESIZED = WeakView(), WeakView(crop="resized")
COLORED = WeakView(color_jitter={"hue": 0.1}, pca_color=0.1)
STRONG = StrongView(num_ops=2, magnitude=9, cutout=4)


def make(
    size: int = 32, weak: WeakView = PAD, strong: StrongView = STRONG, coordinates: tuple[int, ...] = (0, 1)
) -> Views:
    components = np.diag([0.2, 0.02, 0.005]) if weak.pca_color else None
    return Views(
        weak, strong, size, mean=MEAN, std=STD, device="cpu", key_coordinates=coordinates, components=components
    )


def noise(batch: int, size: int = 32) -> Tensor:
    return torch.from_numpy(np.random.default_rng(batch).integers(0, 256, (batch, size, size, 3), np.uint8))


def positions(batch: int, start: int = 0) -> npt.NDArray[np.uint64]:
    return np.arange(start, start + batch, dtype=np.uint64)


def all_views(views: Views, images: Tensor, where: npt.NDArray[np.uint64]) -> list[Tensor]:
    return [views.weak(images, where), views.strong(images, where), views.strong(images, where, "strong2")]


@pytest.mark.parametrize("weak", [PAD, RESIZED, COLORED, WeakView(crop="none", flip=False)])
@pytest.mark.parametrize("size", [8, 32, 57])
def test_view_does_not_depend_on_the_batch(weak: WeakView, size: int) -> None:
    views, images, where = make(size, weak), noise(64, size), positions(64, 10**12)
    whole = all_views(views, images, where)
    for part in [slice(row, row + 1) for row in range(64)] + [slice(0, 7), slice(7, 40), slice(40, 64)]:
        for view, expected in zip(all_views(views, images[part], where[part]), whole, strict=True):
            assert torch.equal(view, expected[part])


@settings(max_examples=20)
@given(st.permutations(range(24)))
def test_permuted_rows_give_permuted_views(order: list[int]) -> None:
    views, images, where = make(8), noise(24, 8), positions(24)
    for view, expected in zip(
        all_views(views, images[order], where[order]), all_views(views, images, where), strict=True
    ):
        assert torch.equal(view, expected[order])


def test_view_does_not_depend_on_threads_and_repeats() -> None:
    images, where = noise(96), positions(96)
    expected = all_views(make(), images, where)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for view, same in zip(all_views(make(), images, where), expected, strict=True):
                assert torch.equal(view, same)
    finally:
        torch.set_num_threads(threads)


def test_copies_at_other_positions_and_other_keys_get_other_noise() -> None:
    images = noise(1).expand(64, -1, -1, -1)
    views = make()
    strong = views.strong_uint8(images, positions(64))
    assert len(torch.unique(strong.flatten(1), dim=0)) >= 63
    for other in (
        views.strong_uint8(images, positions(64), "strong2"),
        make(coordinates=(0, 2)).strong_uint8(images, positions(64)),
        make(coordinates=(1, 1)).strong_uint8(images, positions(64)),
    ):
        assert (other != strong).flatten(1).any(1).float().mean() > 0.95


def test_strong_without_noise_is_the_weak_view_of_its_purpose() -> None:
    images, where = noise(32), positions(32)
    quiet = make(strong=StrongView(num_ops=0))
    assert torch.equal(quiet.strong_uint8(images, where), quiet.weak_uint8(images, where, "strong"))
    only_cutout = make(strong=StrongView(num_ops=0, cutout=16)).strong_uint8(images, where)
    changed = (only_cutout != quiet.strong_uint8(images, where)).any(3)
    assert (only_cutout[changed] == 128).all()
    assert changed.sum((1, 2)).max() <= 256
    assert changed.sum((1, 2)).min() >= 50  # at a corner, a quarter is left


def test_center_is_the_normalized_image_in_channels_last(photos: Images) -> None:
    view = make().center(torch.from_numpy(photos))
    expected = (photos / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(view.permute(0, 2, 3, 1).numpy(), expected, atol=2e-6)
    images, where = torch.from_numpy(photos), positions(len(photos))
    for made in (view, *all_views(make(), images, where)):
        assert made.dtype == torch.float32
        assert made.shape == (len(photos), 3, 32, 32)
        assert made.is_contiguous(memory_format=torch.channels_last)


def test_center_shrinks_and_crops_larger_images(large_photos: Images) -> None:
    images = torch.from_numpy(large_photos)
    view = make(56).center(images)
    expected = np.stack([np.asarray(Image.fromarray(image).resize((56, 56))) for image in large_photos])
    expected = (expected / 255 - np.array(MEAN)) / np.array(STD)
    assert np.abs(view.permute(0, 2, 3, 1).numpy() - expected).mean() < 0.01
    assert make(56).weak(images, positions(2)).shape == (2, 3, 56, 56)
    assert make(56, RESIZED).strong(images, positions(2)).shape == (2, 3, 56, 56)


def test_pad_crops_are_shifts_and_mirrors_of_the_image() -> None:
    """A ramp tells where each pixel came from: all 9 x 9 shifts and both mirrors occur, with reflected borders."""
    rows, columns = np.mgrid[:32, :32].astype(np.uint8)
    ramp = torch.from_numpy(np.stack([rows, columns, rows], axis=-1)).expand(4000, -1, -1, -1)
    views = make().weak_uint8(ramp, positions(4000)).numpy().astype(int)
    top, left = views[:, 16, 16, 0] - 16, views[:, 16, 16, 1]
    mirrored = views[:, 16, 17, 1] < views[:, 16, 16, 1]
    left = np.where(mirrored, left - 15, left - 16)
    assert np.unique(top).tolist() == np.unique(left).tolist() == list(range(-4, 5))
    assert len(set(zip(top, left, mirrored, strict=True))) == 162
    assert abs(mirrored.mean() - 0.5) < 0.04
    unflipped = make(weak=WeakView(flip=False)).weak_uint8(ramp, positions(4000))
    assert (unflipped[:, 16, 17, 1] > unflipped[:, 16, 16, 1]).all()


def test_crops_that_were_cut_before_are_mirrored_and_no_more() -> None:
    """The weak view has the first of two crops, and the strong one the last."""
    images, where = noise(64), positions(64)
    weak = make(weak=RESIZED).weak_uint8(images, where)
    same, mirrored = ((weak == other).all((1, 2, 3)) for other in (images, images.flip(2)))
    assert (same | mirrored).all()
    assert 16 < int(mirrored.sum()) < 48
    views, pairs = make(weak=RESIZED), torch.stack([images, noise(65)[:64]], dim=1)
    assert torch.equal(views.weak(pairs, where), views.weak(pairs[:, 0], where))
    assert torch.equal(views.strong(pairs, where), views.strong(pairs[:, 1], where))


def test_cutout_larger_than_the_image_is_an_error() -> None:
    with pytest.raises(UserError, match=r"strong.cutout is 16 pixels.*image size of 8"):
        make(8, strong=StrongView(cutout=16))


def test_wrong_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        make().weak(noise(4).float(), positions(4))
    with pytest.raises(ValueError, match="3 positions"):
        make().weak(noise(4), positions(3))


def test_empty_batch_gives_an_empty_view() -> None:
    for view in all_views(make(), noise(0), positions(0)):
        assert view.shape == (0, 3, 32, 32)
