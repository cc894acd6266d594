"""Resized crops are drawn as torchvision draws them, from all of the image, and are as sharp as its own."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp, kstest
from sklearn.datasets import load_sample_images
from support.images import write_files

import pipeline.models  # noqa: F401  # torchvision cannot be imported beside a CPU torch without it
from pipeline.config import Data, WeakView
from pipeline.errors import UserError
from pipeline.packing.pack import pack
from pipeline.randomness import uniforms
from pipeline.shards.dataset import open_split
from pipeline.shards.decode import Pixels
from pipeline.shards.reader import Reader
from pipeline.views.crops import NUM_DRAWS, ResizedCrops, resized_crop, scaled_crop

from torchvision.transforms import InterpolationMode, RandomResizedCrop  # isort: skip

SIZES = [(256, 256), (256, 341), (341, 256), (100, 700), (700, 100), (3, 2), (1, 40)]
MIN_AREAS = [0.08, 0.25, 1.0]


def boxes(num: int, height: int, width: int, min_area: float, key: int = 0) -> npt.NDArray[np.int64]:
    """(top, left, height, width) of many crops, [num, 4]."""
    draws = uniforms(key, np.arange(num), NUM_DRAWS)
    return np.array([resized_crop(row.tolist(), height, width, min_area) for row in draws])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("min_area", MIN_AREAS)
def test_boxes_are_distributed_as_those_of_torchvision(size: tuple[int, int], min_area: float) -> None:
    """Top, left, height, width, area and ratio, redrawing and the fallback to the centre included."""
    torch.manual_seed(0)
    image, ratio = torch.empty(3, *size), [3 / 4, 4 / 3]
    theirs = np.array([RandomResizedCrop.get_params(image, [min_area, 1], ratio) for _ in range(1500)])
    ours = boxes(1500, *size, min_area)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= size).all()
    for what in (*np.eye(4), *((0, 0, 1, -1), (1, 0, 1, 0), (0, 1, 0, 1))):
        assert ks_2samp(ours @ what, theirs @ what, method="asymp").pvalue > 1e-4, what
    area = [found[:, 2] * found[:, 3] for found in (ours, theirs)]
    assert ks_2samp(*area, method="asymp").pvalue > 1e-4


def test_every_pixel_of_a_photograph_is_seen() -> None:
    """A quarter of a 4:3 photograph lies outside of its centre square."""
    seen = np.zeros((30, 40), int)
    found = boxes(2000, 30, 40, 0.25)
    for top, left, height, width in found:
        seen[top : top + height, left : left + width] += 1
    assert seen.min() > 50  # the corners
    middle, edge = seen[10:20, 18:22].mean(), seen[10:20, :5].mean()
    assert edge > 0.2 * middle


# --------------------------------------------------------------------------------------------------------------- pixels


def jpeg(pixels: Pixels, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def photographs() -> list[Pixels]:
    """Two photographs of 427 x 640 pixels."""
    return [np.asarray(image) for image in load_sample_images().images]


def make(size: int = 112, num_views: int = 1, seed: int = 0, min_area: float = 0.25) -> ResizedCrops:
    return ResizedCrops(size, WeakView(crop="resized", min_area=min_area), "bilinear", (seed, 1), num_views)


def sharpness(images: list[Pixels]) -> float:
    """The mean absolute Laplacian."""
    grey = np.stack(images).astype(float).mean(3)
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return float(np.abs(around - 4 * grey[:, 1:-1, 1:-1]).mean())


def test_crops_are_the_pixels_of_their_box_and_as_sharp_as_those_of_torchvision() -> None:
    crops, draws = make(), uniforms(0, np.arange(60), NUM_DRAWS)
    of_torchvision = RandomResizedCrop(112, scale=(0.25, 1), interpolation=InterpolationMode.BILINEAR)
    torch.manual_seed(0)
    ours, theirs = [], []
    for number, row in enumerate(draws):
        data = jpeg(photographs()[number % 2])
        image = Image.open(io.BytesIO(data)).convert("RGB")
        (crop,) = crops.cut(data, "x", row[None])
        top, left, height, width = resized_crop(row.tolist(), image.height, image.width, 0.25)
        box = (left, top, left + width, top + height)
        expected = np.asarray(image.crop(box).resize((112, 112), Image.Resampling.BILINEAR))
        assert np.abs(crop.astype(int) - expected).max() <= 2
        ours.append(crop)
        theirs.append(np.asarray(of_torchvision(image)))
    assert sharpness(ours) == pytest.approx(sharpness(theirs), rel=0.1)


@pytest.mark.parametrize("orientation", [1, 6])
def test_scaled_decoding_changes_little(orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small views of a large photograph are cut from one that was decoded at a half or a quarter of its size."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data, draws = jpeg(photographs()[0], exif=exif), uniforms(0, np.arange(30), NUM_DRAWS)
    found = [make(24).cut(data, "x", row[None]) for row in draws]
    monkeypatch.setattr("pipeline.views.crops.plain_size", lambda data: None)  # then it is decoded as it is
    whole = [make(24).cut(data, "x", row[None]) for row in draws]
    differences = [np.abs(a.astype(int) - b).mean() for a, b in zip(found, whole, strict=True)]
    assert 0 < np.mean(differences) < 4
    assert max(differences) < 8


@pytest.mark.parametrize("options", [{}, {"num_views": 2}])
def test_crops_are_a_function_of_the_position(tmp_path: Path, options: dict[str, int]) -> None:
    """Whatever the batch, the order and the number of threads; views, copies, seeds and rounds have their own."""
    files = {f"a/{n}.jpg": jpeg(photographs()[n % 2][: 200 + 40 * n]) for n in range(5)}
    pack(write_files(tmp_path / "images", files), tmp_path / "packed", split="unlabeled", shard_size=2)
    data = Data(root=tmp_path / "packed", cache="never", cache_dir=tmp_path / "cache")
    dataset, crops = open_split(data, "unlabeled"), make(32, **options)
    rows, positions = np.array([3, 0, 1, 2, 4, 3]), np.arange(6, dtype=np.uint64)
    one, many = (Reader(dataset, 32, data.model_copy(update={"decode_workers": n})) for n in (1, 3))
    found = crops.read(one, rows, positions)
    assert found.shape == ((6, 2, 32, 32, 3) if options else (6, 32, 32, 3))
    assert np.array_equal(crops.read(many, rows, positions), found)
    order = np.array([4, 1, 0])
    assert np.array_equal(crops.read(many, rows[order], positions[order]), found[order])
    assert not np.array_equal(found[0], found[5])  # one image at two positions
    assert (make(32, seed=1, **options).read(one, rows, positions) != found).any()
    if options:
        assert (found[:, 0] != found[:, 1]).any((1, 2, 3)).all()
    assert crops.read(one, rows[:0], positions[:0]).shape == (0, *found.shape[1:])


# --------------------------------------------------------------------------------------------------------- scale jitter

JITTER = ResizedCrops(112, WeakView(crop="scale"), "bicubic", (0, 1))
"""L is in 128..240 pixels."""


def test_the_shorter_side_and_the_place_of_a_scaled_crop_are_uniform() -> None:
    """A crop of 224 pixels from a photograph whose shorter side became 256 to 480 (He 2016), as in ResNet."""
    draws = uniforms(0, np.arange(3000), NUM_DRAWS)
    found = np.array([scaled_crop(row.tolist(), 4270, 6400, 224, (256 / 224, 480 / 224)) for row in draws])
    assert (found[:, :2] >= 0).all()
    assert (found[:, :2] + found[:, 2:] <= (4270, 6400)).all()
    assert (found[:, 2] == found[:, 3]).all()
    lengths = 224 * 4270 / found[:, 2]
    assert lengths.min() == pytest.approx(256, abs=0.1)
    assert lengths.max() == pytest.approx(480, abs=0.1)
    assert kstest(lengths, "uniform", (255.5, 225)).pvalue > 1e-3
    for place, extent in ((found[:, 0], 4270), (found[:, 1], 6400)):
        assert kstest((place + draws[:, 5]) / (extent - found[:, 2] + 1), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("photo", [0, 1])
def test_a_scaled_crop_is_that_of_an_image_that_was_resized_before(photo: int) -> None:
    """Pillow resizes the whole photograph, then crops: the same pixels, up to half a pixel of the stored image."""
    image = Image.fromarray(photographs()[photo])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    for row in uniforms(1, np.arange(12), NUM_DRAWS):
        (found,) = JITTER.cut(buffer.getvalue(), "x", row[None])
        length = 128 + int(row[2] * 113)
        scale = length / image.height
        resized = image.resize((round(image.width * scale), length), Image.Resampling.BICUBIC)
        box = scaled_crop(row.tolist(), image.height, image.width, 112, (128 / 112, 240 / 112))
        left, top = round(box.left * scale), round(box.top * scale)
        expected = np.asarray(resized.crop((left, top, left + 112, top + 112))).astype(float)
        grey = [pixels.astype(float).mean(2).ravel() for pixels in (found, expected)]
        assert np.corrcoef(grey)[0, 1] > 0.93
        assert abs(grey[0].mean() - grey[1].mean()) < 2
        exact = image.resize(
            (112, 112), Image.Resampling.BICUBIC, box=(*box[1::-1], box.left + box.width, box.top + box.height)
        )
        assert np.abs(found.astype(float) - np.asarray(exact))[3:-3, 3:-3].max() <= 3


def test_a_small_image_is_enlarged_and_a_strip_stays_within_itself() -> None:
    for height, width in ((20, 30), (1, 40), (3, 2)):
        for row in uniforms(0, np.arange(200), NUM_DRAWS):
            box = scaled_crop(row.tolist(), height, width, 112, (1.0, 1.2))
            assert 1 <= box.height == box.width <= min(height, width)
            assert box.top + box.height <= height
            assert box.left + box.width <= width


def test_an_image_that_is_cut_is_named() -> None:
    data = jpeg(photographs()[0])
    with pytest.raises(UserError, match=r"a/b\.jpg is not a readable image"):
        make().cut(data[: len(data) // 2], "a/b.jpg", uniforms(0, np.arange(1), NUM_DRAWS))
