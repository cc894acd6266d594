"""`selftrain run` as people type it: real processes, real signals, the embedded server; only the stages are fake."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support import fake_run
from support.command import environment, finish, type_command
from support.waiting import FOREVER_S, LIMIT_S, wait_for

from pipeline.errors import UserError

pytestmark = pytest.mark.process

SERVER = "flows.server"


def start(folder: Path, seconds: float, *options: str) -> subprocess.Popen[str]:
    """Type `selftrain run` with stages that take so long."""
    config = folder / "birds.yaml"
    config.write_text("seed: 1\n")
    return type_command("run", config, *options, cwd=folder, command=(sys.executable, fake_run.__file__, str(seconds)))


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def servers(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found += [process] if SERVER in process.cmdline() else []
    return found


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
    assert (tmp_path / "runs/birds/prefect/prefect.db").exists()
    assert (tmp_path / "runs/birds/prefect/server.log").read_text() == ""


def test_ctrl_c_saves_exits_75_and_the_same_command_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path, FOREVER_S)
    wait_for((tmp_path / "runs/birds/label-0/began").exists)
    everything = family(process)
    assert len(servers(everything)) == 1
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    code, _, err = finish(process)
    assert code == 75, err
    assert "Type the same command to go on" in err
    assert "Traceback" not in err
    assert (tmp_path / "runs/birds/label-0/saved").exists()
    assert_gone(everything)
    code, out, err = finish(start(tmp_path, 0.0, "--no-prefect"))
    assert code == 0, err
    assert "final model 75.00%" in out


def test_sigkill_leaves_no_stage_and_no_server(tmp_path: Path) -> None:
    process = start(tmp_path, FOREVER_S)
    wait_for((tmp_path / "runs/birds/label-0/began").exists)
    everything = family(process)
    assert len(everything) >= 2
    process.kill()
    process.communicate()
    assert_gone(everything)


def test_the_run_goes_on_when_the_server_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path, FOREVER_S)
    stages = [tmp_path / "runs/birds" / name for name in ("label-0", "label-1")]
    wait_for((stages[0] / "began").exists)
    (server,) = servers(family(process))
    server.kill()
    for stage in stages:
        wait_for((stage / "began").exists)
        (stage / "go").touch()
    code, out, err = finish(process)
    assert code == 0, err
    assert "final model 75.00%" in out
    assert "warning: Prefect's server is gone" in err


def test_a_server_that_does_not_start_in_time_costs_no_run(tmp_path: Path) -> None:
    config = tmp_path / "birds.yaml"
    config.write_text("seed: 1\n")
    command = (sys.executable, fake_run.__file__, "0.0")
    at_once = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "0"}
    code, out, err = finish(type_command("run", config, cwd=tmp_path, command=command, **at_once))
    assert code == 0, err
    assert err.splitlines()[0].startswith("warning: no Prefect server (it does not answer after 0 s); going on without")
    assert "Report: runs/birds/report.html" in out


def test_bad_input_prints_the_message_only_and_exits_2(tmp_path: Path) -> None:
    code, out, err = finish(start(tmp_path, 0.0, "--set", "seed=13"))
    assert code == 2
    assert out == ""
    assert err.splitlines() == ["error: data.root: nothing there; pack first"]


def test_a_run_folder_that_cannot_be_made_exits_2(tmp_path: Path) -> None:
    """Prefect's server is the first to write there."""
    (tmp_path / "file").write_text("")
    code, _, err = finish(start(tmp_path, 0.0, "--run-dir", "file/run"))
    assert code == 2, err
    assert err.startswith("error: cannot write in ")
    assert "choose another --run-dir" in err


def test_a_missing_config_exits_2_before_anything_starts(tmp_path: Path) -> None:
    code, _, err = finish(start(tmp_path, 0.0, "--set", "student.stpes=3"))
    assert code == 2
    assert "did you mean `steps`?" in err
    assert not (tmp_path / "runs").exists()


def test_a_terminated_run_without_prefect_exits_75(tmp_path: Path) -> None:
    process = start(tmp_path, FOREVER_S, "--no-prefect", "--run-dir", "elsewhere")
    wait_for((tmp_path / "elsewhere/label-0/began").exists)
    process.terminate()
    code, _, err = finish(process)
    assert code == 75, err
    assert (tmp_path / "elsewhere/label-0/saved").exists()


@pytest.mark.parametrize("variable", ["PREFECT_API_URL", "PREFECT_PROFILE"])
def test_a_prefect_of_the_user_is_left_as_it_is(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import settings

    environment = {variable: "theirs"}
    monkeypatch.setattr(settings.os, "environ", environment)
    assert settings.prepare(tmp_path) is False
    assert environment == {variable: "theirs", **settings.TERMINAL}


@pytest.mark.parametrize("name", ["what?", "50%", "#1"])
def test_a_run_folder_that_would_cut_the_address_of_the_database_is_refused(tmp_path: Path, name: str) -> None:
    from flows import settings

    with pytest.raises(UserError, match=r"Prefect's database would lie elsewhere; .*--no-prefect"):
        settings.prepare(tmp_path / name)


def test_the_embedded_server_lives_in_the_run_folder_and_settings_of_the_user_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import settings

    environment = {"PREFECT_LOGGING_LEVEL": "DEBUG", "DO_NOT_TRACK": "0", "no_proxy": "intranet"}
    monkeypatch.setattr(settings.os, "environ", environment)
    assert settings.prepare(tmp_path) is True
    assert environment["PREFECT_HOME"] == str(tmp_path / "prefect")
    assert environment["DO_NOT_TRACK"] == "0"
    assert environment["no_proxy"] == "intranet,127.0.0.1"
    assert not set(settings.TERMINAL) & set(environment)


IN_A_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_a_closed_terminal_ends_no_run(tmp_path: Path) -> None:
    """A real terminal, whose end the kernel tells by SIGHUP."""
    (tmp_path / "birds.yaml").write_text("seed: 1\n")
    typed = [fake_run.__file__, str(FOREVER_S), "run", "birds.yaml", "--no-prefect"]
    terminal, inside = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, *typed],
        cwd=tmp_path,
        env=environment(),
        stdin=inside,
        stdout=inside,
        stderr=inside,
    )
    os.close(inside)
    first, last = (tmp_path / "runs/birds" / name for name in ("label-0", "label-1"))
    wait_for((first / "began").exists)
    os.close(terminal)
    (first / "go").touch()
    wait_for(lambda: (last / "began").exists() or process.poll() is not None)
    assert process.poll() is None
    (last / "go").touch()
    process.wait()
    assert (last / "done").exists()
