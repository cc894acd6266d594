"""A stage that stands still is found, ended, and told from one that is stopped."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.parents import SAVES_ON_SIGTERM, running, script
from support.waiting import FOREVER_S

from pipeline.config import Data, Label, Runtime
from pipeline.stages import launch
from pipeline.stages.jobs import LabelJob
from pipeline.stages.launch import StageStalled, run_child, run_job
from pipeline.stages.progress import Progress
from pipeline.stages.stall import Stall


def at(step: int) -> Progress:
    return Progress("train", step, 100, "steps", "loss 0.1")


def test_only_a_report_that_stays_the_same_for_too_long_is_a_stall() -> None:
    now = [0.0]
    stall = Stall(60, clock=lambda: now[0])
    for now[0], step in ((50.0, 1), (100.0, 1), (110.0, 1), (115.0, 2), (174.0, 2)):
        assert not stall.sees(at(step))
    now[0] = 176.0
    assert stall.sees(at(2))
    assert str(stall) == "stood still for 1 minutes at 2 of 100 steps (runtime.stall_minutes)"
    assert stall.sees(at(3))  # it was asked to stop by then


def test_a_stage_that_never_reports_stands_still_too_and_0_is_never() -> None:
    now = 0.0
    stalls, never = Stall(60, clock=lambda: now), Stall(0, clock=lambda: now)
    now = 61.0
    assert stalls.sees(None)
    assert "before its first report" in str(stalls)
    now = 1e9
    assert not never.sees(None)


@pytest.mark.process
@pytest.mark.parametrize("code", [SAVES_ON_SIGTERM, f"import time; time.sleep({FOREVER_S})"], ids=["saves", "dies"])
def test_a_child_that_stands_still_is_ended_with_an_error_of_its_own(tmp_path: Path, code: str) -> None:
    with pytest.raises(StageStalled, match=r"train stood still for .* before its first report .*the same command"):
        run_child(script(tmp_path, code), tmp_path, title="train", stall_s=0.5)
    assert running(tmp_path) == []


@pytest.mark.process
def test_the_limit_is_that_of_the_jobs_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "CHILD", (sys.executable, "-c", f"import time; time.sleep({FOREVER_S})"))
    runtime = Runtime(device="cpu", threads=1, stall_minutes=0.01)
    job = LabelJob(out=tmp_path / "label", round=0, data=Data(), label=Label(), runtime=runtime, teachers=())
    with pytest.raises(StageStalled, match=r"label .*stood still for 0\.01 minutes"):
        run_job(job)


@pytest.mark.process
def test_a_stalled_child_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    code = f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep({FOREVER_S})"
    with pytest.raises(StageStalled):
        run_child(script(tmp_path, code), tmp_path, title="train", stall_s=0.5, grace_s=0.2)
    assert running(tmp_path) == []
