"""The launcher contract for a stage of several ranks."""

from __future__ import annotations

import contextlib
import os
import textwrap
from pathlib import Path

import psutil
import pytest
from support.command import finish, type_command
from support.parents import running, script
from support.storms import storm
from support.waiting import LIMIT_S, wait_for

from pipeline.errors import Interrupted, UserError
from pipeline.stages.launch import run_child

pytestmark = pytest.mark.process

AGENT = "import sys; from pipeline.stages.torchrun import run_ranks; sys.exit(run_ranks(2, [{rank!r}]))"
RANK_HEAD = """
    import os, pathlib, signal, sys, time
    from pipeline.stages.owner import die_with_parent
    die_with_parent(signal.SIGKILL)
    import torch
    import torch.distributed as dist
    from pipeline.stages.ranks import Ranks
    rank = Ranks.join("cpu").rank
"""


def ranks(folder: Path, code: str) -> list[str]:
    """A command that runs the code in two ranks."""
    rank = script(folder, textwrap.dedent(RANK_HEAD) + textwrap.dedent(code), "rank.py")[1]
    return script(folder, AGENT.format(rank=rank), "agent.py")


RANKS_THAT_SAVE = """
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    pathlib.Path(f"ready{rank}").touch()
    flag = torch.zeros(1)
    while not flag:
        flag = torch.tensor([float(bool(stop))])
        dist.all_reduce(flag)
        time.sleep(0.05)
    pathlib.Path(f"saved{rank}").touch()
    sys.exit(75)
"""


def test_two_ranks_reduce_and_hold_the_lock(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "run.lock", os.O_RDWR | os.O_CREAT)
    code = """
        total = torch.tensor([float(rank + 1)])
        dist.all_reduce(total)
        held = os.fstat(int(os.environ["SELFTRAIN_LOCK_FD"])).st_ino == os.stat("run.lock").st_ino
        pathlib.Path(f"result{rank}").write_text(f"{total.item()} {held}")
        dist.destroy_process_group()
    """
    run_child(ranks(tmp_path, code), tmp_path, title="train", lock_fd=descriptor)
    os.close(descriptor)
    assert [(tmp_path / f"result{rank}").read_text() for rank in (0, 1)] == ["3.0 True", "3.0 True"]


def test_ranks_and_their_agent_listen_on_loopback_alone(tmp_path: Path) -> None:
    """A socket of torch's has no password, and what is sent to the agent's is unpickled."""
    code = """
        import psutil
        dist.barrier()
        listening = [c.laddr.ip for pid in (os.getpid(), os.getppid())
                     for c in psutil.Process(pid).net_connections("inet") if c.status == "LISTEN"]
        pathlib.Path(f"listening{rank}").write_text(" ".join(listening))
        dist.destroy_process_group()
    """
    run_child(ranks(tmp_path, code), tmp_path, title="train")
    found = {ip for rank in (0, 1) for ip in (tmp_path / f"listening{rank}").read_text().split()}
    assert found <= {"127.0.0.1", "::1"}


def test_an_exception_in_one_rank_fails_the_stage_with_its_traceback(tmp_path: Path) -> None:
    code = """
        if rank == 1:
            raise ArithmeticError("defect in rank one")
        dist.barrier()
    """
    with pytest.raises(RuntimeError, match="exit code 1"):
        run_child(ranks(tmp_path, code), tmp_path, title="train")
    assert "defect in rank one" in (tmp_path / "output.log").read_text()
    assert running(tmp_path) == []


def test_a_user_error_in_ranks_is_a_user_error(tmp_path: Path) -> None:
    code = "pathlib.Path('error.json').write_text('{\"message\": \"loss is nan\"}'); dist.barrier(); sys.exit(2)"
    with pytest.raises(UserError, match="loss is nan"):
        run_child(ranks(tmp_path, code), tmp_path, title="train")


def test_a_stop_lets_all_ranks_save(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run_child(
            ranks(tmp_path, RANKS_THAT_SAVE),
            tmp_path,
            title="train",
            stop=lambda: (tmp_path / "ready0").exists() and (tmp_path / "ready1").exists(),
            grace_s=LIMIT_S,
        )
    assert (tmp_path / "saved0").exists()
    assert (tmp_path / "saved1").exists()
    assert running(tmp_path) == []


def test_a_storm_of_signals_over_the_agent_lets_all_ranks_save(tmp_path: Path) -> None:
    process = type_command(cwd=tmp_path, command=tuple(ranks(tmp_path, RANKS_THAT_SAVE)))
    wait_for(lambda: (tmp_path / "ready0").exists() and (tmp_path / "ready1").exists())
    storm(process, seed=3)
    code, _, err = finish(process)
    assert code == 75, err
    assert "Traceback" not in err
    assert (tmp_path / "saved0").exists()
    assert (tmp_path / "saved1").exists()


def test_sigkill_of_torchruns_agent_leaves_no_rank(tmp_path: Path) -> None:
    def kill_agent() -> bool:
        if not ((tmp_path / "ready0").exists() and (tmp_path / "ready1").exists()):
            return False
        for child in psutil.Process().children():  # none when it is asked again, after the kill
            with contextlib.suppress(psutil.ZombieProcess):
                if str(tmp_path / "agent.py") in child.cmdline():
                    child.kill()
        return False

    with pytest.raises(RuntimeError, match="killed by SIGKILL"):
        run_child(ranks(tmp_path, RANKS_THAT_SAVE), tmp_path, title="train", stop=kill_agent)
    wait_for(lambda: not running(tmp_path))
