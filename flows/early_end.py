"""What becomes of a run that was stopped before its end: decided here, without Prefect, and reported by `ends`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import UserError

ATTEMPTS_VARIABLE = "SELFTRAIN_ATTEMPTS"
ATTEMPTS = 10
"""How often a run is started anew by itself. A run that is preempted once per day gets through a long training."""
RETRY, WAIT = "AwaitingRetry", "AwaitingFolder"
"""The names of the two scheduled states that a run gives itself; Prefect has the first one, and people know it."""
RETRY_S = 10.0
"""The seconds until a stopped run starts again. Its old process is gone by then, or holds the lock a little longer."""
WAIT_S, LONGEST_WAIT_S = 60.0, 15 * 60.0
"""The seconds until a run looks again whether its folder is free: double each time, up to the longest wait. Each look
starts a process and leaves three states on the server, and the other run may take days."""

StateType = Literal["CANCELLED", "FAILED", "SCHEDULED"]
_FINAL = {"COMPLETED", "FAILED", "CANCELLED"}
"""The ends that somebody saw. A run that reports its end was not dead, so Crashed is none of them."""


@dataclass(frozen=True)
class EarlyEnd:
    """The next state of a run; a scheduled one begins after `delay_s` seconds."""

    type: StateType
    name: str
    message: str
    delay_s: float = 0.0


def early_end(history: Sequence[tuple[str, str]], message: str, *, waits: bool, attempts: int) -> EarlyEnd | None:
    """What a run becomes that ended early; None if the server knows its end already.

    Args:
        history: The types and names of its states, from the first one to the current one.
        message: Why it ended early, and what is saved.
        waits: Whether another run uses its folder. Such waits are not counted.
        attempts: How often it may be started anew, since the last end that somebody saw.
    """
    current = history[-1][0] if history else "RUNNING"
    if current == "CANCELLING":
        return EarlyEnd("CANCELLED", "Cancelled", message)
    if current in _FINAL:
        return None
    ends = [number for number, (kind, _) in enumerate(history) if kind in _FINAL]
    names = [name for _, name in history[ends[-1] + 1 if ends else 0 :]]
    if waits:
        return EarlyEnd("SCHEDULED", WAIT, message, min(LONGEST_WAIT_S, WAIT_S * 2.0 ** names.count(WAIT)))
    if (before := names.count(RETRY)) >= attempts:
        why = f"{message}. It was started anew {before} times, which is the limit ({ATTEMPTS_VARIABLE}={attempts})"
        return EarlyEnd("FAILED", "Failed", f"{why}; retry the run to go on from what is saved")
    return EarlyEnd("SCHEDULED", RETRY, f"{message}. Start {before + 1} of {attempts} anew", RETRY_S)


def num_attempts() -> int:
    """How often a run may be started anew, from the environment.

    Raises:
        UserError: the variable is no number.
    """
    text = os.environ.get(ATTEMPTS_VARIABLE, str(ATTEMPTS))
    if not text.isdecimal():
        raise UserError(f"{ATTEMPTS_VARIABLE}={text!r} is no number; set it to how often a run may be started anew")
    return int(text)


def warnings_of(limit: int | None, worker_type: str | None, *, kept: bool) -> Iterator[str]:
    """Yield what is risky in how a run was started.

    Args:
        limit: The concurrency limit of its deployment, if it has one.
        worker_type: The type of the worker that started it, if one did.
        kept: Whether `flows.engine` keeps its engine.
    """
    if limit is not None:
        yield (
            f"this deployment has a concurrency_limit ({limit}), whose lease is lost when the server restarts, and "
            "Prefect then crashes the run. Remove it, and limit the work pool: prefect work-pool update POOL "
            "--concurrency-limit N"
        )
    if worker_type == "process" and not kept:
        yield (
            "when its worker stops, this run is killed, and stays Running. Set the job variable `command` of the "
            "deployment to `selftrain-engine`, and it is saved and started again"
        )
