"""The config that `selftrain init` prints, whatever the images."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from support.starter import at_speed, config_of, packed

from pipeline.config import load_config
from pipeline.config.methods import METHOD_CONFIGS
from pipeline.config.unread import unread_beside, unread_keys
from pipeline.errors import UserError
from pipeline.models.registry import build
from pipeline.packing.pack import pack
from pipeline.starter.plan import starting_config, threshold_for
from pipeline.starter.recipe import recipe


@pytest.mark.parametrize("side", [8, 32, 72])
def test_it_fits_the_images(side: int, tmp_path: Path) -> None:
    config, text = config_of(packed(tmp_path, side), encoder="none")
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
    found = recipe(side, device)
    build(found.model, 3, stochastic_depth=0.1, dropout=0.2, model_args=found.model_args)
    assert found.teacher_steps[0] < found.teacher_steps[1]
    assert found.image_size <= max(side, 8)


def test_it_loads_as_the_file_that_users_write(tmp_path: Path) -> None:
    (tmp_path / "birds.yaml").write_text(starting_config(packed(tmp_path, 8)))
    assert load_config(tmp_path / "birds.yaml", ["teacher.steps=50"]).teacher.steps == 50


@pytest.mark.parametrize("method", METHOD_CONFIGS)
@pytest.mark.parametrize("form", ["photos", "tiny"])
def test_every_method_gets_a_config_that_it_takes_and_reads(
    method: str, form: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as no label smoothing for fixmatch, which would leave it no image."""
    at_speed(monkeypatch, 100)
    config, text = config_of(request.getfixturevalue(form), method=method)
    assert config.method == method
    assert unread_keys(config) == unread_beside(config) == []
    sections = {line.split(":")[0] for line in text.splitlines() if line[:1].isalpha()}
    assert sections - {"seed", "method", "data", "evaluate", "runtime"} == set(METHOD_CONFIGS[method].reads) - (
        {"label"} if method == "meta" else {"committee"}
    )
    if form == "photos":
        start = config.teacher.start if "rounds" in sections else config.student.start
        assert start is not None


def test_more_than_an_hour_is_said_first(photos: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_speed(monkeypatch, 5)
    assert "Note" not in starting_config(photos)
    assert re.match(r"# Note: this takes about \d+ hours here; `--minutes 30` sizes it", starting_config(tiny))
    at_speed(monkeypatch, 0.5)
    assert re.match(r"# Note: this takes about \d+ hours here, not 30 minutes", starting_config(photos))


def test_a_wrong_method_or_time_is_refused(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"--method fixmach is unknown; did you mean `fixmatch`"):
        starting_config(tiny, method="fixmach")
    with pytest.raises(UserError, match=r"--minutes must be a positive number, not -3"):
        starting_config(tiny, minutes=-3)
