"""The two moons: networks that do not feel each other, and a run from points to figures."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from flows.cli import moons_table
from pipeline.config import Config, TwoMoons, load_config, parse
from pipeline.demos.moons.data import moons, pack_moons
from pipeline.demos.moons.methods import Batches, Points, meta_pseudo_labels, supervised
from pipeline.demos.moons.networks import Networks
from pipeline.errors import UserError
from pipeline.packing.pack import pack
from pipeline.runs.loop import run_loop
from pipeline.stages.launch import run_job

CONFIG = Path(__file__).parents[1] / "configs" / "two_moons.yaml"


@pytest.fixture(scope="module")
def points() -> Points:
    x, y = (torch.from_numpy(array) for array in moons(200, seed=0))
    return Points(x[:6], y[:6], x[6:])


def test_a_network_has_the_weights_of_its_seed_whoever_is_beside_it() -> None:
    make = partial(Networks, name="teacher", hidden=8, activation="tanh", init=0.1)
    three, one = make([4, 5, 6]), make([5])
    grid = torch.randn(7, 1, 2)
    torch.testing.assert_close(three(grid)[1], one(grid)[0])
    assert not torch.equal(three(grid)[0], three(grid)[1])


def test_batches_are_a_function_of_seed_and_step(points: Points) -> None:
    config = TwoMoons(batch_size=16)
    several, one = Batches(points, config, [1, 2]), Batches(points, config, [2])
    several.batch(0)
    batch, alone = several.batch(60), one.batch(60)
    torch.testing.assert_close(batch.strong[:, 1], alone.strong[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(batch.draws[1], alone.draws[0], rtol=0, atol=0)
    jitter = (batch.strong - batch.weak) / config.jitter
    assert 0.5 < jitter.std() < 1.5


def test_seeds_end_as_they_would_alone(points: Points) -> None:
    config = TwoMoons(steps=20, batch_size=16)
    together, alone = (meta_pseudo_labels(points, config, seeds, lambda _: None)[0] for seeds in ([1, 2], [2]))
    torch.testing.assert_close(together.weights[0][1], alone.weights[0][0], rtol=1e-4, atol=1e-6)


def test_weights_that_are_not_finite_are_an_error(points: Points) -> None:
    with pytest.raises(UserError, match=r"not finite; lower two_moons\.teacher_lr"):
        supervised(points, TwoMoons(steps=20, activation="relu", init=1.0, teacher_lr=1e30), [0], lambda _: None)


def test_supervised_networks_fit_the_labeled_points(points: Points) -> None:
    config = TwoMoons(steps=500, activation="tanh", init=1.0, teacher_lr=0.5)
    model = supervised(points, config, [0, 1], lambda _: None)
    assert (model(points.labeled[:, None]).argmax(-1) == points.labels).all()


def test_a_run_counts_the_seeds_that_each_method_separates(tmp_path: Path) -> None:
    pack_moons(tmp_path / "moons")
    raw = {
        "method": "two_moons",
        "data": {"root": str(tmp_path / "moons")},
        "two_moons": {"num_seeds": 2, "steps": 20},
        "runtime": {"device": "cpu", "threads": 1},
    }
    final = run_loop(parse(Config, raw, "tests"), tmp_path / "run", run_stage=run_job)["final"]
    assert final["num_seeds"] == 2
    for name in ("supervised", "pseudo_label", "uda", "off", "meta", "wrong_sign"):
        assert 0 <= final[f"{name}_separated"] <= 2
        assert len(final["accuracy"][name]) == 2
    assert (tmp_path / "run" / final["picture"]).read_bytes().startswith(b"\x89PNG")
    assert moons_table(final).row_count == 6


def test_other_data_than_points_of_two_classes_is_refused(tmp_path: Path) -> None:
    for split in ("labeled", "unlabeled", "val", "test"):
        for name in ("a", "b"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            np.save(folder / "0.npy", np.array([len(split), ord(name), 0.5], np.float32))
        pack(tmp_path / split, tmp_path / "packed", split=split)
    raw = {
        "method": "two_moons",
        "data": {"root": str(tmp_path / "packed")},
        "runtime": {"device": "cpu", "threads": 1},
    }
    with pytest.raises(UserError, match=r"2 classes of vectors of length 3; method two_moons needs"):
        run_loop(parse(Config, raw, "tests"), tmp_path / "run", run_stage=run_job)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_feedback_alone_brings_the_labels_to_the_moons(tmp_path: Path) -> None:
    """20 seeds of the shipped config, in which a teacher meets labels through its student's progress only."""
    pack_moons(tmp_path / "moons")
    final = run_loop(load_config(CONFIG, [f"data.root={tmp_path / 'moons'}"]), tmp_path / "run", run_stage=run_job)[
        "final"
    ]
    print({name: count for name, count in final.items() if name != "accuracy"})
    assert final["meta_separated"] >= 18
    for control in ("supervised", "pseudo_label", "off", "wrong_sign"):
        assert final[f"{control}_separated"] == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_beside_a_supervised_loss_too_the_sign_of_the_feedback_counts(tmp_path: Path) -> None:
    """Here a teacher without feedback meets the labels as well, so that the controls could separate the moons."""
    pack_moons(tmp_path / "moons")
    overrides = [f"data.root={tmp_path / 'moons'}", "two_moons.meta.labeled_weight=1"]
    final = run_loop(load_config(CONFIG, overrides), tmp_path / "run", run_stage=run_job)["final"]
    print({name: count for name, count in final.items() if name != "accuracy"})
    assert final["meta_separated"] >= final["off_separated"] >= final["wrong_sign_separated"] + 5
