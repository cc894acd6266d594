"""A model sees the centre of an image as timm's evaluation would show it: crop_pct and interpolation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.images import picture, png, write_files
from torch import Tensor, nn

from pipeline.config import Data, Interpolation
from pipeline.evaluate.predictor import Predictor, reader_of
from pipeline.models.format import ModelInfo
from pipeline.packing.pack import pack
from pipeline.shards.dataset import Dataset, open_split

from timm.data import create_transform  # isort: skip - after pipeline.models, which lets timm be imported

SIZE, SIDE, NUM = 16, 40, 6
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


class Shows(nn.Module):
    """What it sees are its logits."""

    def forward_features(self, x: Tensor) -> Tensor:
        return x

    def forward_head(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def info(crop_pct: float, interpolation: Interpolation) -> ModelInfo:
    shown: dict[str, object] = {"crop_pct": crop_pct, "interpolation": interpolation, "mean": MEAN, "std": STD}
    other = {
        "schema": 1,
        "architecture": "shows",
        "model_args": {},
        "classes": ("cat", "dog"),
        "metrics": {},
        "lineage": {},
    }
    return ModelInfo.model_validate({**other, **shown, "input_size": (3, SIZE, SIZE)})


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Data]:
    folder = tmp_path_factory.mktemp("photographs")
    write_files(
        folder / "images",
        {f"{'cat' if number else 'dog'}/{number:04d}.png": png(number, SIDE) for number in range(NUM)},
    )
    pack(folder / "images", folder / "packed", split="val")
    data = Data(root=folder / "packed", cache="always", cache_dir=folder / "cache")
    return open_split(data, "val"), data


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.9])
def test_a_model_sees_what_timm_would_show_it(
    photographs: tuple[Dataset, Data], crop_pct: float, interpolation: Interpolation
) -> None:
    dataset, data = photographs
    model = info(crop_pct, interpolation)
    predictor = Predictor(Shows(), model, device=torch.device("cpu"), precision="fp32", flip=False)
    seen = predictor.logits(predictor.read(reader_of(model, dataset, data), np.arange(NUM)))
    transform = create_transform(
        (3, SIZE, SIZE), crop_pct=crop_pct, interpolation=interpolation, mean=MEAN, std=STD, is_training=False
    )
    for row in range(NUM):
        number = int(dataset.key(row).rpartition("/")[2])
        expected = transform(Image.fromarray(picture(number, SIDE)))
        torch.testing.assert_close(seen[row].view(3, SIZE, SIZE), expected, atol=1e-5, rtol=0)


def test_images_of_another_interpolation_are_cached_under_another_name(photographs: tuple[Dataset, Data]) -> None:
    dataset, data = photographs
    assert data.cache_dir is not None
    before = set(Path(data.cache_dir).rglob("*.npy"))
    images = [reader_of(info(0.8, how), dataset, data).read(np.arange(NUM)) for how in ("bicubic", "bilinear")]  # type: ignore[arg-type]
    assert images[0].shape == (NUM, 20, 20, 3)
    assert not np.array_equal(images[0], images[1])
    assert len(set(Path(data.cache_dir).rglob("*.npy")) - before) == 2
