"""How many steps `selftrain init` proposes, and the speeds by which it counts them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from support.starter import at_speed, config_of, packed

from pipeline.config import Data, Runtime
from pipeline.shards.dataset import open_split
from pipeline.shards.reader import Reader
from pipeline.stages.machine import resolve
from pipeline.starter import photographs, speed
from pipeline.starter.given import Given


@pytest.mark.parametrize("form", ["photos", "tiny"])
def test_steps_are_what_the_minutes_allow(
    form: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_speed(monkeypatch, 100)
    steps = [config_of(request.getfixturevalue(form), minutes=m)[0].student.steps for m in (6, 12, 24)]
    assert steps[1] == pytest.approx(2 * steps[0], rel=0.05)
    assert steps[2] == pytest.approx(4 * steps[0], rel=0.05) or steps[2] == 500  # of so few images no more
    assert "time      about 8 minutes" in config_of(request.getfixturevalue(form), minutes=8)[1]


def test_images_that_are_slow_to_read_leave_fewer_steps(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs of 12 megapixels may cost a CPU more than the network does."""
    at_speed(monkeypatch, 100)
    monkeypatch.setattr(photographs, "reading_speed", lambda *_: 1e9)
    quick = config_of(photos, minutes=8)[0].student.steps
    monkeypatch.setattr(photographs, "reading_speed", lambda *_: 100)
    assert config_of(photos, minutes=8)[0].student.steps == pytest.approx(quick / 2, rel=0.1)


def test_a_cpu_reads_in_the_time_of_passes_and_a_gpu_meanwhile() -> None:
    cpu, gpu = (Given(None, {}, None, Runtime(device=device), 1, "uda", None) for device in ("cpu", "cuda"))  # type: ignore[arg-type]
    overhead = photographs._OVERHEAD
    assert photographs._with_reading(cpu, 10, 40) == pytest.approx(overhead * 0.125)
    assert photographs._with_reading(gpu, 10, 40) == pytest.approx(overhead * 0.1)
    assert photographs._with_reading(gpu, 40, 10) == pytest.approx(overhead * 0.1)


def test_predictions_are_measured_as_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """With folded BatchNorm: the 20 of the pass that finds out what to fold are all that run."""
    calls, batch_norm = [], torch.batch_norm
    monkeypatch.setattr(torch, "batch_norm", lambda *given: calls.append(given) or batch_norm(*given))
    images = np.zeros((2, 32, 32, 3), np.uint8)
    assert speed.prediction_speed(speed.Network("resnet18", {}, 2), images, resolve(Runtime(device="cpu"))) > 0
    assert len(calls) == 20


def test_larger_images_are_read_more_slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_MEASURE_S", 0.3)

    def speed_at(side: int) -> float:
        dataset = open_split(Data(root=packed(tmp_path / str(side), side, (8, 8), carve=False)), "labeled")
        read = partial(Reader(dataset, 64, Data(cache="never")).read, np.arange(len(dataset)))
        return speed.reading_speed(read, resolve(Runtime(device="cpu")))

    assert speed_at(64) > 4 * speed_at(1024)
