"""The config that `selftrain init` prints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.config import Config, load_config, parse
from pipeline.errors import UserError
from pipeline.models.registry import build
from pipeline.packing.carve import Carve
from pipeline.packing.pack import pack
from pipeline.starter import speed
from pipeline.starter.plan import starting_config, threshold_for
from pipeline.starter.recipe import recipe


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


@pytest.fixture(autouse=True)
def _measure_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast this machine is plays no part here."""
    monkeypatch.setattr(speed, "_MEASURE_S", 0.01)


def config_of(folder: Path) -> tuple[Config, str]:
    text = starting_config(folder)
    return parse(Config, yaml.safe_load(text), "init"), text


@pytest.mark.parametrize("side", [8, 32, 72])
def test_it_fits_the_images(side: int, tmp_path: Path) -> None:
    config, text = config_of(packed(tmp_path, side))
    assert config.teacher.image_size == config.student.image_size == side
    assert config.teacher.weak.crop == ("resized" if side > 64 else "pad")
    assert config.teacher.mean == pytest.approx([75 / 255] * 3, abs=0.03)  # levels 0-49 and 100-149 in equal parts
    assert config.teacher.batch_size <= 20
    assert "20 labeled, 16 unlabeled, 12 val, 12 test; 2 classes" in text


def test_every_key_has_a_comment(tmp_path: Path) -> None:
    _, text = config_of(packed(tmp_path, 8))
    keys = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(keys) > 40
    assert [line for line in keys if "  # " not in line] == []
    assert max(len(line) for line in keys if str(tmp_path) not in line) <= 130


def test_images_from_elsewhere_are_filtered_and_uneven_classes_stay_uneven(tmp_path: Path) -> None:
    carved, _ = config_of(packed(tmp_path / "carved", 8))
    apart, _ = config_of(packed(tmp_path / "apart", 8, num_per_class=(40, 8), carve=False))
    assert (carved.select.threshold, carved.select.balance) == (0.0, "uniform")
    assert (apart.select.threshold, apart.select.balance, apart.select.prior) == (0.65, "prior", ())


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100, 1000])
def test_the_threshold_filters_whatever_the_number_of_classes(num_classes: int) -> None:
    """0.3, as in the paper, is for 1,000 classes: of three, the surest one always has more."""
    assert threshold_for(1000) == 0.3
    assert 1 / num_classes + 0.14 < threshold_for(num_classes) < 0.7


def test_a_carve_of_uneven_classes_is_balanced_by_the_shares_of_val(tmp_path: Path) -> None:
    """A carve labels as many images of each class, so the labels do not show that the source is uneven."""
    config, text = config_of(packed(tmp_path, 8, num_per_class=(120, 20)))
    assert config.select.balance == "prior"
    assert config.select.prior == pytest.approx((25 / 30, 5 / 30), abs=1e-3)
    assert "those of val" in text


def test_odd_paths_survive_yaml(tmp_path: Path) -> None:
    folder = packed(tmp_path, 8).rename(tmp_path / 'a: "b" # c')
    config, _ = config_of(folder)
    assert config.data.root == folder


def test_missing_splits_are_named_with_the_command_that_adds_them(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), "white").save(tmp_path / "in" / name / "0.png")
    pack(tmp_path / "in", tmp_path / "packed", split="labeled")
    with pytest.raises(UserError, match=r"has no unlabeled and no val images.*--split unlabeled"):
        starting_config(tmp_path / "packed")


@pytest.mark.parametrize("side", [8, 32, 64, 65, 300])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_recipe_is_a_network_with_residual_paths_to_drop(side: int, device: str) -> None:
    plan = recipe(side, device)
    build(plan.model, 3, stochastic_depth=0.1, dropout=0.2, model_args=plan.model_args)
    assert plan.teacher_steps[0] < plan.teacher_steps[1]
    assert plan.image_size <= max(side, 8)


def test_it_loads_as_the_file_that_users_write(tmp_path: Path) -> None:
    (tmp_path / "birds.yaml").write_text(starting_config(packed(tmp_path, 8)))
    assert load_config(tmp_path / "birds.yaml", ["teacher.steps=50"]).teacher.steps == 50
