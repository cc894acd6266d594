"""What a child tells its parent of its progress."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from support.parents import script

from pipeline.stages import progress
from pipeline.stages.launch import run_child
from pipeline.stages.progress import Progress, read_progress, report, show_progress


@pytest.mark.process
def test_progress_of_the_child_reaches_the_parent_in_order(tmp_path: Path) -> None:
    code = """
        import pathlib, time
        from pipeline.stages.progress import report
        for step in range(1, 5):
            report(pathlib.Path("."), step, 4, "steps", f"loss {step}")
            time.sleep(0.3)
    """
    seen: list[Progress] = []
    run_child(script(tmp_path, code), tmp_path, title="train", on_progress=seen.append)
    assert [p.done for p in seen] == sorted({p.done for p in seen})
    assert seen[-1] == Progress("train", 4, 4, "steps", "loss 4")


def test_progress_is_throttled_but_the_last_report_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    written = []
    for step in range(1, 1001):
        now[0] += progress.INTERVAL_S / 100
        report(tmp_path, step, 1000, "steps")
        found = read_progress(tmp_path, "s")
        assert found is not None
        written.append(found.done)
    assert len(set(written)) == 11  # of 10 intervals, and the last
    assert written[1] == 1
    assert written[-1] == 1000


def test_progress_to_a_missing_folder_is_no_error(tmp_path: Path) -> None:
    report(tmp_path / "absent", 1, 2, "steps")
    assert read_progress(tmp_path / "absent", "s") is None


def test_show_progress_names_each_stage_once_where_there_is_no_terminal() -> None:
    from io import StringIO

    from rich.console import Console

    console = Console(file=StringIO())
    with show_progress(console) as show:
        for done in (1, 2):
            show(Progress("train teacher (round 0)", done, 2, "steps", ""))
        show(Progress("label (round 0)", 1, 0, "images", ""))
    assert console.file.getvalue().splitlines() == ["train teacher (round 0)", "label (round 0)"]  # type: ignore[attr-defined]


def test_the_time_left_follows_from_the_rate_since_the_process_began_and_not_from_what_was_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    report(tmp_path, 100, 100, "images", "statistics")  # another unit says nothing of the steps

    def left_at(done: int, after_s: float) -> str:
        now[0] += after_s
        report(tmp_path, done, 1000, "steps")
        found = read_progress(tmp_path, "train")
        assert found is not None
        return found.left

    assert left_at(500, 60) == ""  # resumed there: no rate yet
    assert left_at(510, 10) == "8 min left"  # 490 steps at a step per second
    assert left_at(900, 3.5) == "4 s left"
    assert left_at(901, 40_000) == "2 h 45 min left"
    assert left_at(1000, 1) == ""


def test_a_report_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text('{"done": 1, "total": 2, "unit": "steps", "text": ""}')
    assert read_progress(tmp_path, "train") == Progress("train", 1, 2, "steps", "")


def test_the_bar_shows_the_time_left() -> None:
    from io import StringIO

    from rich.console import Console

    console = Console(file=StringIO(), force_terminal=True, width=160)
    with show_progress(console) as show:
        show(Progress("train teacher (round 0)", 1, 2, "steps", "", left_s=90.0))
    assert "90 s left" in console.file.getvalue()  # type: ignore[attr-defined]
