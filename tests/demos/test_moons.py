"""The two moons: networks that do not feel each other, and a comparison from points to figures."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import load, parse
from pipeline.demos.moons.__main__ import PICTURE, RESULT, main
from pipeline.demos.moons.compare import NUM_METHODS, compare
from pipeline.demos.moons.config import TwoMoons
from pipeline.demos.moons.data import moons, pack_moons
from pipeline.demos.moons.methods import Batches, Points, meta_pseudo_labels, supervised
from pipeline.demos.moons.networks import Networks
from pipeline.errors import EXIT_OK, EXIT_USER_ERROR, UserError
from pipeline.files import read_json
from pipeline.packing.pack import pack

CONFIG = Path(__file__).parents[2] / "configs" / "two_moons.yaml"
METHODS = {"supervised", "pseudo_label", "uda", "off", "meta", "wrong_sign"}


@pytest.fixture(scope="module")
def points() -> Points:
    x, y = (torch.from_numpy(array) for array in moons(200, seed=0))
    return Points(x[:6], y[:6], x[6:])


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The points of the demo as a packed folder."""
    folder = tmp_path_factory.mktemp("moons") / "moons"
    pack_moons(folder)
    return folder


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
    with pytest.raises(UserError, match=r"not finite; lower teacher_lr or student_lr"):
        supervised(points, TwoMoons(steps=20, activation="relu", init=1.0, teacher_lr=1e30), [0], lambda _: None)


def test_supervised_networks_fit_the_labeled_points(points: Points) -> None:
    config = TwoMoons(steps=500, activation="tanh", init=1.0, teacher_lr=0.5)
    model = supervised(points, config, [0, 1], lambda _: None)
    assert (model(points.labeled[:, None]).argmax(-1) == points.labels).all()


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["moons", *map(str, arguments)])
    return main()


def test_the_command_counts_the_seeds_that_each_method_separates(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "moons.yaml").write_text(f"data: {{root: {packed}}}\nnum_seeds: 2\nthreads: 1\n")
    command = (tmp_path / "moons.yaml", "--out", tmp_path / "out", "--set", "steps=20")
    assert run_main(monkeypatch, *command) == EXIT_OK
    found = read_json(tmp_path / "out" / RESULT)
    assert found["config"]["steps"] == 20
    assert found["accuracy"].keys() == found["num_separated"].keys() == METHODS
    assert all(0 <= number <= 2 for number in found["num_separated"].values())
    assert all(len(values) == 2 and 0 <= min(values) <= max(values) <= 1 for values in found["accuracy"].values())
    assert (tmp_path / "out" / PICTURE).read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    for name in METHODS:
        separated = f"{found['num_separated'][name]} of 2"
        assert any(name.replace("_", " ") in line and separated in line for line in shown.splitlines())
    assert run_main(monkeypatch, *command) == EXIT_OK  # in place of the first
    assert read_json(tmp_path / "out" / RESULT) == found
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert run_main(monkeypatch, *command) == EXIT_USER_ERROR
    assert "has files, such as thesis.txt; choose another --out" in capsys.readouterr().err


def test_every_step_of_every_method_is_told(packed: Path) -> None:
    raw = {"data": {"root": str(packed)}, "num_seeds": 1, "threads": 1, "steps": 5}
    ticks: list[int] = []
    comparison = compare(parse(TwoMoons, raw, "tests"), ticks.append)
    assert comparison.accuracy.keys() == METHODS
    assert sum(ticks) == NUM_METHODS * 5


def test_other_data_than_points_of_two_classes_is_refused(tmp_path: Path) -> None:
    for split in ("labeled", "unlabeled", "val", "test"):
        for name in ("a", "b"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            np.save(folder / "0.npy", np.array([len(split), ord(name), 0.5], np.float32))
        pack(tmp_path / split, tmp_path / "packed", split=split)
    config = parse(TwoMoons, {"data": {"root": str(tmp_path / "packed")}, "threads": 1}, "tests")
    with pytest.raises(UserError, match=r"2 classes of vectors of length 3; the two moons are 2 classes of points in"):
        compare(config, lambda _: None)


def separated_by(packed: Path, *overrides: str) -> dict[str, int]:
    """Of the 20 seeds of the shipped config, how many each method separates."""
    config = load(TwoMoons, CONFIG, [f"data.root={packed}", *overrides])
    assert config.num_seeds == 20
    found = dict(compare(config, lambda _: None).num_separated)
    print(found)
    return found


@pytest.mark.slow
def test_feedback_alone_brings_the_labels_to_the_moons(packed: Path) -> None:
    """20 seeds of the shipped config, in which a teacher meets labels through its student's progress only."""
    found = separated_by(packed)
    assert found["meta"] >= 18
    for control in ("supervised", "pseudo_label", "off", "wrong_sign"):
        assert found[control] == 0


@pytest.mark.slow
def test_beside_a_supervised_loss_too_the_sign_of_the_feedback_counts(packed: Path) -> None:
    """Here a teacher without feedback meets the labels as well, so that the controls could separate the moons."""
    found = separated_by(packed, "uda.labeled_weight=1")
    assert found["meta"] >= found["off"] >= found["wrong_sign"] + 5
