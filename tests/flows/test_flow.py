"""The flow on Prefect's test server, with the real launcher and fake stages."""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from support import fake_run
from support.waiting import wait_for

from flows.artifacts import artifact_key, show_selection, show_verdict
from pipeline.config import Config, parse
from pipeline.errors import Interrupted, UserError
from pipeline.methods import METHODS
from pipeline.stages import launch
from pipeline.stages.lock import run_lock

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import flow

    monkeypatch.setattr(flow, "run_loop", fake_run.fake_loop)
    set_stage_seconds(monkeypatch, 0.0)


def set_stage_seconds(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(launch, "CHILD", (sys.executable, fake_run.__file__, "stage", str(seconds)))


def artifacts() -> dict[str, Any]:
    """Newest artifact of each key."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = client.request("POST", "/artifacts/latest/filter", json={}).json()
    return {artifact["key"]: artifact for artifact in found}


def last_flow_run(num_tasks: int) -> tuple[Any, list[Any]]:
    """The newest flow run, and its task runs once the server has recorded so many, in order."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(limit=1, sort=FlowRunSort.EXPECTED_START_TIME_DESC)
        tasks: list[Any] = []

        def are_recorded() -> bool:
            tasks[:] = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
            return len(tasks) == num_tasks and all(task.state and task.state.is_final() for task in tasks)

        wait_for(are_recorded, poll_s=0.1)  # they arrive as events
    return run, sorted(tasks, key=lambda task: task.start_time or run.created)


def run_watched(config: Config, run_dir: Path) -> dict[str, Any]:
    """Call the flow as the command does."""
    from flows.flow import self_train
    from flows.watch import watched

    return watched(lambda: self_train(config, run_dir))


def test_a_task_per_stage_and_the_result_comes_back(tmp_path: Path) -> None:
    result = run_watched(Config(seed=5), tmp_path)
    assert result["final"]["test_top1"] == 0.75
    run, tasks = last_flow_run(num_tasks=2)
    assert run.state.is_completed()
    assert run.parameters["config"]["seed"] == 5
    assert run.parameters["run_dir"] == str(tmp_path)
    assert {task.name for task in tasks} == {"label (round 0)", "label (round 1)"}
    assert all(task.state.is_completed() for task in tasks)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_the_same_flow(tmp_path: Path, method: str) -> None:
    from prefect.client.orchestration import get_client

    run_watched(parse(Config, {"method": method}, "tests"), tmp_path)
    run, _ = last_flow_run(num_tasks=2)
    assert run.name
    assert run.parameters["config"]["method"] == method
    with get_client(sync_client=True) as client:
        assert client.read_flow(run.flow_id).name == "self-train"


def test_a_run_has_progress_and_leaderboard_under_keys_of_its_own_and_its_state_says_the_result(tmp_path: Path) -> None:
    for name in ("one", "other"):
        result = run_watched(Config(), tmp_path / name)
        assert result["final"]["test_top1"] == 0.75  # the flow returns the data of its state
    run, _ = last_flow_run(num_tasks=2)
    assert run.state.message == "test 75.0%, +5.0 over the teacher"
    found = artifacts()
    for name in ("one", "other"):
        assert found[artifact_key(tmp_path / name, "label (round 0)")]["data"] == 100
        rows = json.loads(found[artifact_key(tmp_path / name, "leaderboard")]["data"])
        assert [row["round"] for row in rows] == ["0", "1"]
        assert rows[1]["95% interval"] == "70.00-90.00%"


def test_the_pages_of_a_finished_run_are_shown_and_its_report_is_written(finished_run: Path) -> None:
    selection = next(finished_run.glob("rounds/2/select-*"))

    @flow
    def show() -> None:
        show_selection(finished_run, selection)
        show_verdict(finished_run)

    show()
    found = artifacts()
    keys = {what: artifact_key(finished_run, what) for what in ("pool", "selection", "verdict", "report")}
    assert set(keys.values()) <= set(found)
    assert found[keys["verdict"]]["description"].startswith(f"{finished_run.name}: test ")
    assert (finished_run / "report.html").resolve().as_uri() in found[keys["report"]]["data"]
    assert (finished_run / "report.html").exists()


def test_a_display_that_fails_costs_a_warning_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from flows.artifacts import bar, final_verdict, leaderboard

    def broken(*_: object, **__: object) -> None:
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(bar, "create_progress_artifact", broken)
    monkeypatch.setattr(leaderboard, "create_table_artifact", broken)
    monkeypatch.setattr(final_verdict, "create_markdown_artifact", broken)
    monkeypatch.setattr(logging.getLogger("selftrain"), "propagate", True)
    assert run_watched(Config(), tmp_path)["schema"] == 1
    warnings = [r.getMessage() for r in caplog.records if r.name == "selftrain.flows"]
    assert any("leaderboard" in text and "the run goes on" in text for text in warnings)


def test_a_ctrl_c_while_the_page_is_drawn_is_no_display_error() -> None:
    from flows.artifacts import never_fatal

    with pytest.raises(Interrupted), never_fatal("create the round report"):
        raise Interrupted("stopped")


def test_bad_input_fails_the_flow_and_comes_out_as_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pack first"):
        run_watched(Config(seed=13), tmp_path)
    run, _ = last_flow_run(num_tasks=0)
    assert run.state.is_failed()


def test_a_failed_stage_fails_its_task_and_the_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "CHILD", (sys.executable, "-c", "raise ArithmeticError('a defect')"))
    with pytest.raises(launch.StageFailed, match="a defect"):
        run_watched(Config(), tmp_path)
    run, tasks = last_flow_run(num_tasks=1)
    assert run.state.is_failed()
    assert [task.state.is_failed() for task in tasks] == [True]


def test_an_interrupted_stage_interrupts_the_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "CHILD", (sys.executable, "-c", "raise SystemExit(75)"))
    with pytest.raises(Interrupted):
        run_watched(Config(), tmp_path)


def test_an_unreachable_server_of_the_user_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(UserError, match=r"PREFECT_API_URL=http://127\.0\.0\.1:9/api"),
    ):
        run_watched(Config(), tmp_path)


def test_an_ablation_is_a_flow_whose_stages_are_tasks_and_whose_table_is_an_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import flow
    from flows.watch import watched
    from pipeline.ablation.rows import Row

    def one_stage(config: Config, out: Path, *_: object, run_stage: Any, **options: Any) -> list[Row]:
        with run_lock(out) as lock_fd:
            run_stage(fake_run.job(out, 1), lock_fd)
        common = {"mode": "alone", "on": (), "seed": 0, "num_val": 100, "seconds": 1.0, "tflops": 1.0}
        common |= {"machine": "a processor", "commit": "abc", "folder": "cells/x"}
        base = Row(technique="base", against="", val_top1=0.8, **common)  # type: ignore[arg-type]
        return [base, Row(technique="ema", against="base", val_top1=0.9, **common)]  # type: ignore[arg-type]

    monkeypatch.setattr(flow, "run_ablation", one_stage)
    text = watched(lambda: flow.ablate(Config(), tmp_path, ["ema"], "alone", 1))
    assert "| ema | +10.00 |" in text
    assert artifacts()[artifact_key(tmp_path, "ablation")]["data"] == text
    run, tasks = last_flow_run(num_tasks=1)
    assert run.state.is_completed()
    assert [task.name for task in tasks] == ["label (round 1)"]


def test_the_handlers_of_signals_stay_ours_while_a_flow_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's own raises at each SIGTERM, also while it reports the one before."""
    from flows import flow

    seen: list[object] = []

    def look(*_: object, **__: object) -> dict[str, Any]:
        seen.append(signal.getsignal(signal.SIGTERM))
        return {}

    monkeypatch.setattr(flow, "run_loop", look)
    before = signal.getsignal(signal.SIGTERM)
    run_watched(Config(), tmp_path)
    assert seen == [before]
