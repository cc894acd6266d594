"""What becomes of a run that ended early, decided without Prefect."""

from __future__ import annotations

import pytest

from flows.early_end import (
    ATTEMPTS,
    ATTEMPTS_VARIABLE,
    LONGEST_WAIT_S,
    RETRY,
    WAIT,
    WAIT_S,
    EarlyEnd,
    early_end,
    num_attempts,
    warnings_of,
)
from pipeline.errors import UserError

RUNNING = ("RUNNING", "Running")
RETRIED = [("SCHEDULED", RETRY), RUNNING]
WAITED = [("SCHEDULED", WAIT), RUNNING]


def after(*history: tuple[str, str], waits: bool = False, attempts: int = 3) -> EarlyEnd | None:
    return early_end(history, "the training is saved", waits=waits, attempts=attempts)


def test_a_stopped_run_starts_again_by_itself_and_says_how_often() -> None:
    first, third = after(RUNNING), after(RUNNING, *RETRIED, *RETRIED)
    assert first is not None
    assert third is not None
    assert (first.type, first.name) == ("SCHEDULED", RETRY)
    assert first.message == "the training is saved. Start 1 of 3 anew"
    assert third.message == "the training is saved. Start 3 of 3 anew"


def test_at_the_limit_it_fails_and_names_the_limit() -> None:
    end = after(RUNNING, *RETRIED * 3)
    assert end is not None
    assert end.type == "FAILED"
    assert f"{ATTEMPTS_VARIABLE}=3" in end.message
    assert "retry the run" in end.message


def test_who_retries_a_failed_run_gives_it_all_attempts_again() -> None:
    end = after(RUNNING, *RETRIED * 3, ("FAILED", "Failed"), ("SCHEDULED", "Scheduled"), RUNNING)
    assert end is not None
    assert end.name == RETRY


def test_a_crash_that_an_automation_retries_counts_on() -> None:
    end = after(RUNNING, *RETRIED * 2, ("CRASHED", "Crashed"), *RETRIED)
    assert end is not None
    assert end.type == "FAILED"


def test_a_cancel_wins_over_all_else() -> None:
    for waits in (False, True):
        end = after(RUNNING, *RETRIED * 3, ("CANCELLING", "Cancelling"), waits=waits)
        assert end is not None
        assert end.type == "CANCELLED"


def test_a_run_that_was_taken_for_dead_goes_on() -> None:
    """As after a long absence of the server, which then has heard of no heartbeat."""
    end = after(RUNNING, ("CRASHED", "Crashed"))
    assert end is not None
    assert (end.type, end.name) == ("SCHEDULED", RETRY)


@pytest.mark.parametrize("final", ["COMPLETED", "FAILED", "CANCELLED"])
def test_an_end_that_the_server_knows_stays(final: str) -> None:
    assert after(RUNNING, (final, final.title())) is None


def test_waits_for_a_folder_are_longer_each_time_and_use_up_no_attempt() -> None:
    delays = []
    for number in range(8):
        end = after(RUNNING, *WAITED * number, waits=True)
        assert end is not None
        assert (end.type, end.name) == ("SCHEDULED", WAIT)
        delays.append(end.delay_s)
    assert delays[:3] == [WAIT_S, 2 * WAIT_S, 4 * WAIT_S]
    assert delays[-1] == LONGEST_WAIT_S
    stopped = after(RUNNING, *WAITED * 8)
    assert stopped is not None
    assert stopped.message.endswith("Start 1 of 3 anew")


def test_the_limit_is_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ATTEMPTS_VARIABLE, raising=False)
    assert num_attempts() == ATTEMPTS
    monkeypatch.setenv(ATTEMPTS_VARIABLE, "30")
    assert num_attempts() == 30
    monkeypatch.setenv(ATTEMPTS_VARIABLE, "many")
    with pytest.raises(UserError, match="SELFTRAIN_ATTEMPTS='many' is no number"):
        num_attempts()


def test_a_limit_of_the_deployment_and_an_engine_that_nobody_keeps_are_warned_of() -> None:
    assert list(warnings_of(None, "process", kept=True)) == []
    assert list(warnings_of(None, "kubernetes", kept=False)) == []
    (limit,) = warnings_of(1, "process", kept=True)
    assert "concurrency_limit (1)" in limit
    assert "work-pool update" in limit
    (loose,) = warnings_of(None, "process", kept=False)
    assert "selftrain-engine" in loose
