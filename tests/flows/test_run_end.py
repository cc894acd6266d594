"""What `selftrain run` says when the loop is done: the table, and a report that fails changes nothing."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows import verbs
from flows.settings import SERVER_VARIABLES
from pipeline.report import page
from pipeline.runs import loop

ROUND = {"role": "student", "model": "wide_resnet28_2", "val_top1": 0.9, "interval": [0.885, 0.9125]}
RESULT: dict[str, Any] = {
    "rounds": [
        ROUND | {"round": 0, "role": "teacher", "num_selected": None},
        ROUND | {"round": 1, "num_selected": 41_000},
    ],
    "final": {
        "round": 1,
        "test_top1": 0.91,
        "teacher_test_top1": 0.85,
        "control_test_top1": 0.88,
        "probe_test_top1": 0.92,
    },
}


@pytest.fixture(autouse=True)
def _unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SERVER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    text = io.StringIO()
    Console(file=text, width=80).print(verbs.summary(RESULT))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("student wide_resnet28_2 " in line and "88.50-91.25%" in line and "41,000" in line for line in lines)
    assert sum("wide_resnet28_2" in line for line in lines) == 2
    assert "control 88.00%, probe 92.00%" in " ".join(text.getvalue().split())


def test_the_figure_that_models_were_chosen_by_is_in_the_table() -> None:
    text = io.StringIO()
    rounds = [{**entry, "judged": 0.6543} for entry in RESULT["rounds"]]
    Console(file=text, width=80).print(verbs.summary({**RESULT, "rounds": rounds}))
    assert "judged by" in text.getvalue()
    assert "65.43%" in text.getvalue()


def test_a_report_that_fails_is_a_warning_and_the_table_comes_all_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(run_dir: Path) -> Path:
        raise IndexError("a defect")

    monkeypatch.setattr(page, "write_report", fail)
    monkeypatch.setattr(loop, "run_loop", lambda *args, **kwargs: RESULT)
    config = tmp_path / "birds.yaml"
    config.write_text("seed: 1\n")
    with caplog.at_level(logging.WARNING, "selftrain"):
        verbs.run(config, tmp_path / "run")
    printed = capsys.readouterr().out
    assert "wide_resnet28_2" in printed
    assert "Report:" not in printed
    assert (
        f"IndexError: a defect); the result stands. Write it with: selftrain report {tmp_path / 'run'}" in caplog.text
    )
