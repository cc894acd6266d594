"""The flow on Prefect's test server, with the real launcher and fake stages."""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect import flow
from prefect.settings import get_current_settings, temporary_settings
from prefect.settings.models.root import Settings
from support import fake_run
from support.watched import last_flow_run, logs_of, run_watched

from flows.artifacts import artifact_key, show_selection, show_verdict
from pipeline.config import Config
from pipeline.errors import Interrupted, UserError
from pipeline.methods import METHODS
from pipeline.stages import launch
from pipeline.stages.lock import run_lock

pytestmark = pytest.mark.usefixtures("prefect_server", "fake_stages")


def artifacts() -> dict[str, Any]:
    """Newest artifact of each key."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = client.request("POST", "/artifacts/latest/filter", json={}).json()
    return {artifact["key"]: artifact for artifact in found}


def test_a_task_per_stage_and_the_result_comes_back(tmp_path: Path) -> None:
    result = run_watched(tmp_path, set=["seed=6"])
    assert result["final"]["test_top1"] == 0.75
    run, tasks = last_flow_run(num_tasks=2)
    assert run.state.is_completed()
    assert run.parameters["config"] == str(tmp_path / "birds.yaml")
    assert run.parameters["set"] == ["seed=6"]
    assert {task.name for task in tasks} == {"label (round 0)", "label (round 1)"}
    assert all(task.state.is_completed() for task in tasks)


@pytest.mark.usefixtures("instant_stages")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_the_same_flow(tmp_path: Path, method: str) -> None:
    from prefect.client.orchestration import get_client

    run_watched(tmp_path, f"method: {method}\n")
    run, _ = last_flow_run(num_tasks=2)
    assert run.name == f"run: {METHODS[method].title}"
    assert f"method:{method}" in run.tags
    with get_client(sync_client=True) as client:
        assert client.read_flow(run.flow_id).name == "self-train"


def test_a_run_has_progress_and_leaderboard_under_keys_of_its_own_and_its_state_says_the_result(tmp_path: Path) -> None:
    for name in ("one", "other"):
        result = run_watched(tmp_path, run_dir=str(tmp_path / name))
        assert result["final"]["test_top1"] == 0.75  # the flow returns the data of its state
    run, _ = last_flow_run(num_tasks=2)
    assert run.state.message == "test 75.0%, +5.0 over the teacher"
    found = artifacts()
    for name in ("one", "other"):
        assert found[artifact_key(tmp_path / name, "label (round 0)")]["data"] == 100
        rows = json.loads(found[artifact_key(tmp_path / name, "leaderboard")]["data"])
        assert [row["round"] for row in rows] == ["0", "1"]
        assert rows[1]["95% interval"] == "70.00 to 90.00%"


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
    logger = logging.getLogger("selftrain")  # which does not propagate while a flow runs
    logger.addHandler(caplog.handler)
    try:
        assert run_watched(tmp_path)["schema"] == 1
    finally:
        logger.removeHandler(caplog.handler)
    warnings = [r.getMessage() for r in caplog.records if r.name == "selftrain.flows"]
    assert any("leaderboard" in text and "the run goes on" in text for text in warnings)


def test_a_run_without_a_champion_goes_on_untagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import ends, flow

    def away(_: object) -> None:
        raise httpx.ConnectError("the server restarts")

    monkeypatch.setattr(flow, "tag_run", away)
    monkeypatch.setattr(ends, "PATIENCE_S", 0.0)
    assert run_watched(tmp_path)["schema"] == 1
    run, _ = last_flow_run(num_tasks=2)
    assert run.tags == []
    logs_of(run, "cannot tag the run in Prefect (ConnectError: the server restarts); the run goes on")


def test_what_displays_change_of_prefects_settings_is_made_once_per_settings() -> None:
    from flows.artifacts import never_fatal

    def inside() -> Settings:
        with never_fatal("look"):
            return get_current_settings()
        raise AssertionError

    before = get_current_settings()
    assert inside() is inside()
    assert inside().client.max_retries == 0
    assert get_current_settings() is before
    with temporary_settings({"client.max_retries": 3, "api.url": "http://elsewhere/api"}):
        assert inside().client.max_retries == 0
        assert inside().api.url == "http://elsewhere/api"
        assert get_current_settings().client.max_retries == 3
    assert inside().api.url == before.api.url


def test_a_ctrl_c_while_the_page_is_drawn_is_no_display_error() -> None:
    from flows.artifacts import never_fatal

    with pytest.raises(Interrupted), never_fatal("create the round report"):
        raise Interrupted("stopped")


def test_bad_input_fails_the_flow_and_comes_out_as_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pack first"):
        run_watched(tmp_path, "seed: 13\n")
    run, _ = last_flow_run(num_tasks=0)
    assert run.state.is_failed()
    assert run.state.message == "data.root: nothing there; pack first"
    said = "Finished in state Failed('data.root: nothing there; pack first')"
    assert not any("Traceback" in line for line in logs_of(run, said))


def test_a_failed_stage_fails_its_task_and_the_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "CHILD", (sys.executable, "-c", "raise ArithmeticError('a defect')"))
    with pytest.raises(launch.StageFailed, match="a defect"):
        run_watched(tmp_path)
    run, tasks = last_flow_run(num_tasks=1)
    assert run.state.is_failed()
    assert [task.state.is_failed() for task in tasks] == [True]
    assert run.state.message.startswith("label (round 0) failed (exit code 1)")
    assert "a defect" in run.state.message


def test_an_interrupted_stage_interrupts_the_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "CHILD", (sys.executable, "-c", "raise SystemExit(75)"))
    with pytest.raises(Interrupted):
        run_watched(tmp_path)


def test_an_unreachable_server_of_the_user_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(UserError, match=r"no Prefect server answers at http://127\.0\.0\.1:9/api"),
    ):
        run_watched(tmp_path)


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
    (tmp_path / "birds.yaml").write_text("seed: 5\n")
    text = watched(lambda: flow.ablate(str(tmp_path / "birds.yaml"), str(tmp_path / "out"), ["ema"], num_seeds=1))
    assert "| ema | +10.00 |" in text
    assert artifacts()[artifact_key(tmp_path / "out", "ablation")]["data"] == text
    run, tasks = last_flow_run(num_tasks=1)
    assert run.state.is_completed()
    assert [task.name for task in tasks] == ["label (round 1)"]


def test_the_handlers_of_signals_stay_ours_while_a_flow_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's own raises at each SIGTERM, also while it reports the one before."""
    from flows import flow

    seen: list[object] = []

    def look(*arguments: Any, **options: Any) -> dict[str, Any]:
        seen.append(signal.getsignal(signal.SIGTERM))
        return fake_run.fake_loop(*arguments, **options)

    monkeypatch.setattr(flow, "run_loop", look)
    before = signal.getsignal(signal.SIGTERM)
    run_watched(tmp_path)
    assert seen == [before]
