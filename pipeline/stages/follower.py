"""A machine that takes part in the stages of a command that leads on another machine: `selftrain join RUN`."""

from __future__ import annotations

import re
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from pipeline.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR, Interrupted, UserError
from pipeline.files import read_as, write_bytes
from pipeline.stages.environment import stage_variables
from pipeline.stages.kinds import read_job
from pipeline.stages.launch import CHILD, StageFailed, run_child
from pipeline.stages.nodes import CALL, LEADER, NODES, POLL_S, SIGN, WAIT_S, Call, place_in
from pipeline.stages.signs import Observer, Sign


def join(folder: Path, tell: Callable[[str], None]) -> None:
    """Take part in the stages of the command that leads in `folder`, one command after the other, until one ends well.

    Args:
        folder: A run folder, or a stage folder, at the path that it has for the command.
        tell: Is called with a line for people when something begins or ends.

    Raises:
        UserError: the folder cannot be written.
        Interrupted: a signal came, or nobody led for a quarter of an hour.
    """
    nodes, signs = folder.resolve() / NODES, Observer()
    tell(f"waiting for a command that runs in {folder} with runtime.nodes above 1")
    _wait_for_leader(nodes, signs)
    done = ""
    own = nodes / f"{re.sub(r'[^A-Za-z0-9.-]', '-', socket.gethostname())}-{secrets.token_hex(3)}"
    with Sign(own / SIGN) as sign:
        tell(f"{own.name} is ready")
        while not (signs.lives(nodes / LEADER) and signs.see(nodes / LEADER).get("over")):
            _check_leader(nodes, signs)
            call = _call(nodes)
            if call is None or call["id"] == done or own.name not in call["numbers"]:
                time.sleep(POLL_S)
                continue
            done = call["id"]
            sign.say(busy=True)
            code, message = _part(call, own, signs, tell)
            sign.say(call=done, code=code, message=message)
            if code == EXIT_INTERRUPTED:
                raise Interrupted(message)
            tell(message)
    tell("the command has ended")


def _wait_for_leader(nodes: Path, signs: Observer) -> None:
    while not (nodes / LEADER).exists():
        _check_leader(nodes, signs)
        time.sleep(POLL_S)


def _check_leader(nodes: Path, signs: Observer) -> None:
    if signs.silent_s(nodes / LEADER) > WAIT_S:
        raise Interrupted(
            f"no command with runtime.nodes above 1 has run in {nodes.parent} for {WAIT_S / 60:g} minutes, as this "
            "machine sees the folder"
        )


def _call(nodes: Path) -> Call | None:
    """The call that stands, which its leader may take back at any moment."""
    try:
        return cast(Call, read_as(Call, nodes / CALL))
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _part(call: Call, own: Path, signs: Observer, tell: Callable[[str], None]) -> tuple[int, str]:
    """Run this machine's part of a called stage to its end; returns the exit code, and a sentence for people."""

    def is_over() -> bool:
        now = _call(own.parent)
        return now is None or now["id"] != call["id"] or signs.is_lost(own.parent / LEADER)

    title = Path(call["job"]).parent.name
    try:
        write_bytes(own / "job.json", Path(call["job"]).read_bytes())
        job = read_job(own / "job.json")
        title = job.title
        number = call["numbers"][own.name]
        tell(f"{title}: machine {number + 1} of {len(call['numbers']) + 1}")
        variables = {**stage_variables(job.runtime), **place_in(call, own.parent, number)}
        command = [*CHILD, str(own / "job.json")]
        run_child(command, own, title=title, env=variables, stop=is_over)
    except UserError as error:
        return EXIT_USER_ERROR, str(error)
    except Interrupted as stopped:
        return (EXIT_OK, f"{title} was ended") if is_over() else (EXIT_INTERRUPTED, str(stopped))
    except (StageFailed, OSError) as error:
        return EXIT_FAILURE, str(error)
    return EXIT_OK, f"{title} is finished"
