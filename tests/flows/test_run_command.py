"""`selftrain run` as people type it: real processes, real signals, a real server; only the stages are fake."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import fake_run
from support.command import finish, type_command
from support.server import prefect_server
from support.waiting import FOREVER_S, LIMIT_S, wait_for

pytestmark = pytest.mark.process


def start(folder: Path, seconds: float, *options: str, **variables: str) -> subprocess.Popen[str]:
    """Type `selftrain run` with stages that take so long."""
    config = folder / "birds.yaml"
    config.write_text("seed: 1\n")
    command = (sys.executable, fake_run.__file__, str(seconds))
    return type_command("run", config, *options, cwd=folder, command=command, **variables)


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as variables:
        yield variables


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def assert_gone(processes: list[psutil.Process]) -> None:
    assert processes
    _, alive = psutil.wait_procs(processes, timeout=LIMIT_S)
    assert alive == []


def test_it_ends_with_the_table_and_the_report_and_is_quiet(tmp_path: Path) -> None:
    process = start(tmp_path, 0.0)
    code, out, err = finish(process)
    assert code == 0, err
    assert "80.00%" in out
    assert "70.00-90.00%" in out
    assert "final model 75.00%" in out
    assert "Report: runs/birds/report.html" in out  # the default run folder
    assert err.splitlines() == ["label (round 0)", "label (round 1)"]


@pytest.mark.parametrize(("option", "variables"), [("", {}), ("--no-prefect", {"PREFECT_API_URL": "http://nowhere"})])
def test_a_run_without_a_server_reads_nothing_of_prefect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, variables: dict[str, str]
) -> None:
    (tmp_path / "prefect.py").write_text("raise AssertionError('it was imported')")
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.path.insert(0, {str(tmp_path)!r})")
    more = {**variables, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    code, out, err = finish(start(tmp_path, 0.0, *filter(None, [option]), **more))
    assert code == 0, err
    assert "final model 75.00%" in out


@pytest.mark.parametrize("watched", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ctrl_c_saves_exits_75_and_the_same_command_goes_on(
    tmp_path: Path, request: pytest.FixtureRequest, watched: bool
) -> None:
    variables = request.getfixturevalue("server") if watched else {}
    process = start(tmp_path, FOREVER_S, **variables)
    wait_for((tmp_path / "runs/birds/label-0/began").exists)
    everything = family(process)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    code, _, err = finish(process)
    assert code == 75, err
    assert "Type the same command to go on" in err
    assert "Traceback" not in err
    assert (tmp_path / "runs/birds/label-0/saved").exists()
    assert_gone(everything)
    code, out, err = finish(start(tmp_path, 0.0))
    assert code == 0, err
    assert "final model 75.00%" in out


def test_sigkill_leaves_no_stage(tmp_path: Path) -> None:
    process = start(tmp_path, FOREVER_S)
    wait_for((tmp_path / "runs/birds/label-0/began").exists)
    everything = family(process)
    process.kill()
    process.communicate()
    assert_gone(everything)


@pytest.mark.slow
def test_the_run_goes_on_when_the_server_is_killed(tmp_path: Path, server: dict[str, str]) -> None:
    process = start(tmp_path, FOREVER_S, **server, PREFECT_CLIENT_MAX_RETRIES="2")  # seconds, not minutes
    stages = [tmp_path / "runs/birds" / name for name in ("label-0", "label-1")]
    wait_for((stages[0] / "began").exists)
    psutil.Process(int(server["SERVER_PID"])).kill()
    for stage in stages:
        wait_for((stage / "began").exists)
        (stage / "go").touch()
    code, out, err = finish(process)
    assert code == 0, err
    assert "final model 75.00%" in out
    assert "warning: Prefect's server is gone" in err


def test_bad_input_prints_the_message_only_and_exits_2(tmp_path: Path) -> None:
    code, out, err = finish(start(tmp_path, 0.0, "--set", "seed=13"))
    assert code == 2
    assert out == ""
    assert err.splitlines() == ["error: data.root: nothing there; pack first"]


def test_a_run_folder_that_cannot_be_made_exits_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = finish(start(tmp_path, 0.0, "--run-dir", "file/run"))
    assert code == 2, err
    assert err.startswith("error: cannot ")


def test_a_missing_config_exits_2_before_anything_starts(tmp_path: Path) -> None:
    code, _, err = finish(start(tmp_path, 0.0, "--set", "student.stpes=3"))
    assert code == 2
    assert "did you mean `steps`?" in err
    assert not (tmp_path / "runs").exists()


def test_a_terminated_run_exits_75(tmp_path: Path) -> None:
    process = start(tmp_path, FOREVER_S, "--run-dir", "elsewhere")
    wait_for((tmp_path / "elsewhere/label-0/began").exists)
    process.terminate()
    code, _, err = finish(process)
    assert code == 75, err
    assert (tmp_path / "elsewhere/label-0/saved").exists()


@pytest.mark.parametrize("variable", ["PREFECT_API_URL", "PREFECT_PROFILE"])
def test_a_server_that_is_named_watches_and_settings_of_the_user_stay(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import settings

    environment = {variable: ""}
    monkeypatch.setattr(settings.os, "environ", environment)
    assert not settings.is_watched()
    environment |= {variable: "theirs", "PREFECT_LOGGING_EXTRA_LOGGERS": "birds"}
    assert settings.is_watched()
    settings.prepare()
    assert environment == {**settings.TERMINAL, variable: "theirs", "PREFECT_LOGGING_EXTRA_LOGGERS": "birds"}
    debug = {"PREFECT_LOGGING_LEVEL": "DEBUG"}
    monkeypatch.setattr(settings.os, "environ", debug)
    settings.prepare()
    assert debug == {"PREFECT_LOGGING_LEVEL": "DEBUG"}
