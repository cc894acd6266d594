"""Packed folders to propose configs for, and a machine of any speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.config import Config, parse
from pipeline.packing.carve import Carve
from pipeline.packing.pack import pack
from pipeline.starter import photographs, scratch
from pipeline.starter.plan import starting_config


def packed(folder: Path, side: int, num_per_class: tuple[int, ...] = (30, 30), carve: bool = True) -> Path:
    """A packed folder of noise, brighter for later classes."""
    generator = np.random.default_rng(side)
    for split in ("all",) if carve else ("labeled", "unlabeled", "val"):
        for label, count in enumerate(num_per_class):
            (folder / split / str(label)).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(100 * label, 100 * label + 50, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / str(label) / f"{index}.png")
        if carve:
            pack(folder / split, folder / "packed", carve=Carve(num_labeled=20, val_fraction=0.2, test_fraction=0.2))
        else:
            pack(folder / split, folder / "packed", split=split)  # type: ignore[arg-type]
    return folder / "packed"


def config_of(folder: Path, **asked: Any) -> tuple[Config, str]:
    text = starting_config(folder, **asked)
    return parse(Config, yaml.safe_load(text), "init"), text


def at_speed(monkeypatch: pytest.MonkeyPatch, images_per_s: float) -> None:
    """Have a machine of this speed, whatever the network."""
    for module in (photographs, scratch):
        monkeypatch.setattr(module, "training_speed", lambda *_: images_per_s)
    monkeypatch.setattr(photographs, "prediction_speed", lambda *_: 3 * images_per_s)
    monkeypatch.setattr(photographs, "reading_speed", lambda *_: 50 * images_per_s)
