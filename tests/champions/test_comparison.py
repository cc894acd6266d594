"""A challenger is promoted if it is better on val than the champion by more than chance, and else it is not."""

from __future__ import annotations

from math import comb
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from support.champions import CLASSES, answers, even_model, pack_val, reordered, run_with
from support.command import selftrain_here as selftrain
from support.saved import save_random

from pipeline.champions.comparison import Comparison, compare_on_val
from pipeline.champions.history import read_history
from pipeline.champions.promotion import promote
from pipeline.config import changed, dump_yaml, load_config
from pipeline.errors import UserError
from pipeline.evaluate.metrics import paired_difference

N = 60


pytestmark = pytest.mark.usefixtures("same_threads")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, and images whose labels are the answers of one of them."""
    folder = tmp_path_factory.mktemp("comparison")
    images = pack_val(folder / "base", [0] * N)
    strong, weak = (even_model(folder / f"{name}.safetensors", images, s) for s, name in enumerate(("strong", "weak")))
    for name, model, data in (
        ("strong-run", strong, pack_val(folder / "val", answers(strong, images).tolist())),
        ("weak-run", weak, folder / "val/packed"),
    ):
        run_with(folder / name, model, data)
    return folder


def check_against_plain_counting(found: Comparison, folder: Path) -> None:
    ours, theirs = (answers(folder / f"{name}.safetensors", folder / "val/packed") for name in ("strong", "weak"))
    # The labels are the answers of the strong model, which is always right.
    assert found.num_samples == N
    assert (found.gained, found.lost) == (int((ours != theirs).sum()), 0)
    assert (found.challenger, found.champion) == (1.0, pytest.approx(float((ours == theirs).mean())))
    assert found.difference == pytest.approx(found.gained / N)


def test_a_better_model_is_promoted_and_a_worse_one_is_not(folder: Path, tmp_path: Path) -> None:
    registry = tmp_path / "birds"
    first = promote(folder / "weak-run", registry, if_better=True)
    assert first.changed, "without a champion there is nothing to compare with"
    second = promote(folder / "strong-run", registry, if_better=True)
    assert (second.changed, second.champion["version"]) == (True, 2)
    found = Comparison(**second.champion["comparison"] or {})
    assert found.is_better
    check_against_plain_counting(found, folder)
    third = promote(folder / "weak-run", registry, if_better=True)
    assert not third.changed
    assert "is not better. Accuracy on the 60 val images of" in str(third)
    assert [entry["version"] for entry in read_history(registry)] == [1, 2]


def test_classes_are_matched_by_name(folder: Path, tmp_path: Path) -> None:
    """The same model with its classes in another order gives the same answers, so neither is better."""
    other = reordered(tmp_path / "other.safetensors", folder / "strong.safetensors", (2, 0, 1))
    found = compare_on_val(folder / "strong-run", other, 0.05)
    assert (found.gained, found.lost, found.difference, found.champion) == (0, 0, 0.0, 1.0)
    assert not found.is_better


def test_models_of_other_classes_are_not_compared(folder: Path, tmp_path: Path) -> None:
    save_random(tmp_path / "other.safetensors", (*CLASSES, "fox"))
    registry = tmp_path / "birds"
    promote(tmp_path / "other.safetensors", registry)
    with pytest.raises(UserError, match=r"only the champion knows 'fox', .*; leave --if-better out"):
        promote(folder / "strong-run", registry, if_better=True)
    assert promote(folder / "strong-run", registry).changed


def test_a_file_that_is_in_no_run_has_no_val(folder: Path, tmp_path: Path) -> None:
    promote(folder / "weak.safetensors", tmp_path / "birds")
    with pytest.raises(UserError, match=r"strong.safetensors is in no run, .*; name its run folder, or leave"):
        promote(folder / "strong.safetensors", tmp_path / "birds", if_better=True)


def test_a_val_that_differs_from_that_of_the_champion_is_told(folder: Path, tmp_path: Path) -> None:
    registry = tmp_path / "birds"
    promote(folder / "weak-run", registry)
    promote(folder / "strong-run", registry, if_better=True)
    other = pack_val(tmp_path / "other", answers(folder / "weak.safetensors", folder / "base/packed").tolist())
    challenger = run_with(tmp_path / "run", folder / "weak.safetensors", other)
    done = promote(challenger, registry, if_better=True)
    assert done.changed, "on these images it is the better one"
    assert "The champion was chosen on another val" in done.why
    assert promote(None, registry, rollback=True).champion["model"] != done.champion["model"]


def test_the_level_decides_how_clear_a_lead_must_be(folder: Path, tmp_path: Path) -> None:
    """3 of 60 images more, and none less, are a lead at 0.2, not at 0.05."""
    ours, theirs = (answers(folder / f"{name}.safetensors", folder / "base/packed") for name in ("strong", "weak"))
    leads = np.flatnonzero(ours != theirs)
    labels = np.where(ours == theirs, ours, 3 - ours - theirs)  # one that neither gives
    labels[leads[:3]] = ours[leads[:3]]
    run = run_with(tmp_path / "run", folder / "strong.safetensors", pack_val(tmp_path / "val", labels.tolist()))
    promote(folder / "weak-run", tmp_path / "birds")
    kept = selftrain("promote", run, "--to", tmp_path / "birds", "--if-better")
    assert "v1 " in kept
    assert "stays champion" in kept
    assert "alone right on 3 images against 0" in kept
    with pytest.raises(UserError, match="--level 7 must lie between 0 and 1"):
        selftrain("promote", run, "--to", tmp_path / "birds", "--if-better", "--level", "7")
    with pytest.raises(UserError, match=r"--level 0\.2 is of the test that --if-better asks for"):
        selftrain("promote", run, "--to", tmp_path / "birds", "--level", "0.2")
    promote(folder / "weak-run", tmp_path / "others")
    assert "is champion" in selftrain("promote", run, "--to", tmp_path / "others", "--if-better", "--level", "0.2")
    config = load_config(run / "config.yaml")
    of_run = changed(config, rounds=changed(config.rounds, promotion_level=0.2))
    (run / "config.yaml").write_text(dump_yaml(of_run))
    assert "is champion" in selftrain("promote", run, "--to", tmp_path / "birds", "--if-better")


@pytest.mark.parametrize("level", [0.05, 0.2])
@pytest.mark.parametrize(("n", "share"), [(50, 0.1), (100, 0.2), (100, 0.5)])
def test_no_more_than_half_of_the_level_of_equal_challengers_pass(n: int, share: float, level: float) -> None:
    """Exactly, by the binomial law of McNemar's test: of the images on which one model alone is right, each model has
    half."""
    quantile, passed = NormalDist().inv_cdf(1 - level / 2), 0.0
    for apart in range(n + 1):
        weight = comb(n, apart) * share**apart * (1 - share) ** (n - apart) / 2**apart
        for gained in range(apart // 2 + 1, apart + 1):
            right, other = np.arange(n) < gained, (np.arange(n) >= gained) & (np.arange(n) < apart)
            if paired_difference(right, other, quantile)[1] > 0:
                passed += weight * comb(apart, gained)
    assert 0.2 * level < passed < 0.52 * level, "on few images fewer pass, as their answers are coarse"
