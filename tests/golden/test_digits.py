"""Losses of a short training on digits, stored for a torch minor version: no change goes unseen.

Update them with `python tests/golden/test_digits.py`, and say in the commit why they moved.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from support.processes import run, train_job

from pipeline.config import Config, changed

STORED = Path(__file__).with_name("digits.json")
VERSION = ".".join(torch.__version__.split(".")[:2])
TOLERANCE = 0.02
"""Kernels of other CPUs round differently, and 30 steps amplify that."""


def losses(config: Config, out: Path) -> list[float]:
    training = changed(config.teacher, steps=30, strong=config.student.strong, evaluations=1)
    runtime = changed(config.runtime, log_every=1)
    folder = run(train_job(config, out, training=training, runtime=runtime))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [round(line["loss"], 5) for line in lines if "loss" in line]


@pytest.mark.process
def test_losses_are_those_that_were_stored(digits: Config, tmp_path: Path) -> None:
    stored = json.loads(STORED.read_text())
    if VERSION not in stored:
        pytest.skip(f"no losses are stored for torch {VERSION}; python {__file__} adds them")
    found = losses(digits, tmp_path / "train")
    assert len(found) == 30
    assert found == pytest.approx(stored[VERSION], abs=TOLERANCE)
    assert found[-1] < 0.7 * found[0]


def store(values: list[float], path: Path = STORED) -> None:
    """Add the losses of this torch to those of others."""
    stored = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**stored, VERSION: values}, indent=1, sort_keys=True) + "\n")


def test_storing_keeps_the_losses_of_other_versions(tmp_path: Path) -> None:
    path = tmp_path / "digits.json"
    path.write_text('{"1.0": [3.0], "' + VERSION + '": [1.0]}')
    store([2.0, 1.5], path)
    assert json.loads(path.read_text()) == {"1.0": [3.0], VERSION: [2.0, 1.5]}


if __name__ == "__main__":
    import tempfile

    from support.digits import digits_config

    with tempfile.TemporaryDirectory() as folder:
        store(losses(digits_config(Path(folder) / "packed"), Path(folder) / "train"))
    print(f"{STORED}: losses of torch {VERSION} stored")
