"""What a person reads in the UI, as plain functions of a run folder."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.artifacts import artifact_key, final_verdict, result_message
from flows.artifacts.bar import words
from flows.artifacts.display import markdown_table, plain, plot
from flows.artifacts.final_verdict import verdict_page
from flows.artifacts.pseudo_labels import pool_page, selection_page
from pipeline.report.record import read_run
from pipeline.report.verdict import judge
from pipeline.stages.progress import Progress

PICTURE = re.compile(r"!\[[^\]]*\]\(data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)\)")


@pytest.mark.parametrize("name", ["birds", "Vögel 2", "a--b_c.d", "鳥", "x" * 300, "-", "digits <i>demo</i>"])
def test_a_key_is_what_prefect_takes_and_that_of_one_folder(tmp_path: Path, name: str) -> None:
    key = artifact_key(tmp_path / name, "train student (round 1)")
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*-train-student-round-1", key)
    assert len(key) < 80
    assert key == artifact_key(tmp_path / "elsewhere" / ".." / name, "train student (round 1)")
    assert key != artifact_key(tmp_path / "elsewhere" / name, "train student (round 1)")


def test_keys_read_like_the_run(tmp_path: Path) -> None:
    assert re.fullmatch(r"vogel-2-[0-9a-f]{4}-leaderboard", artifact_key(tmp_path / "Vögel 2", "leaderboard"))


def result(**final: Any) -> dict[str, Any]:
    rounds = [{"round": 0, "role": "teacher"}, {"round": 1, "role": "student", "interval": [0.9, 0.95]}]
    known = {"round": 1, "val_top1": 0.93, "test_top1": 0.971, "teacher_test_top1": 0.944}
    return {"rounds": rounds, "final": {**known, "test": {"final": {"interval": [0.956, 0.981]}}, **final}}


@pytest.mark.parametrize(
    ("final", "said"),
    [
        ({}, "test 97.1% (95.6 to 98.1), +2.7 over the teacher"),
        ({"control_test_top1": 0.98}, "test 97.1% (95.6 to 98.1), +2.7 over the teacher, \u22120.9 over the control"),
        ({"probe_test_top1": 0.971}, "test 97.1% (95.6 to 98.1), +2.7 over the teacher, 0.0 over the probe"),
        ({"round": 0}, "test 97.1% (95.6 to 98.1), of the teacher, which no student beat"),
        ({"test_top1": None, "test": {}}, "val 93.0% (90.0 to 95.0); test was not measured"),
    ],
)
def test_the_message_of_the_final_state_is_the_result(final: dict[str, Any], said: str) -> None:
    assert result_message(result(**final)) == said


def test_progress_is_said_with_the_time_left() -> None:
    progress = Progress("train student (round 1)", 1200, 5000, "steps", "loss 0.41", left_s=600.0)
    assert words(progress) == "train student (round 1): 1,200/5,000 steps, 10 min left, loss 0.41"


def test_the_verdict_is_the_sentences_of_the_report_with_the_figures_of_test(run: Path) -> None:
    record = read_run(run)
    verdict = judge(record)
    page = verdict_page(record, verdict, run / "report.html")
    assert " ".join(verdict.sentences) in page
    for name, title in (("final", "Final model (round 2)"), ("teacher", "Round 0 teacher"), ("control", "Supervised")):
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {title}")]
        assert f"{100 * record.test[name].top1:.1f}%" in row
    gain = verdict.gains["control"]
    assert f"{100 * gain.points:+.1f} (" in row
    assert f"`{(run / 'report.html').resolve()}`" in page


def test_the_verdict_shows_the_surest_the_least_sure_and_the_wrong_pseudo_labels(run: Path) -> None:
    record = read_run(run)
    page = verdict_page(record, judge(record), None)
    for title in ("The surest", "The least sure that were kept", "Kept, but wrong"):
        section = page.split(f"### {title}")[1].split("\n#")[0]
        pictures = PICTURE.findall(section)
        assert len(pictures) == final_verdict.NUM_TILES
        for _, data in pictures:
            assert Image.open(io.BytesIO(base64.b64decode(data, validate=True))).size == (64, 64)
    wrong = page.split("### Kept, but wrong")[1].split("\n#")[0]
    labels = re.findall(r"<br>\*\*(.+?)\*\* [>\d.]+%<br>truth: (.+?) \|", wrong)
    assert len(labels) == final_verdict.NUM_TILES
    assert all(label != truth for label, truth in labels)
    assert len(page) < final_verdict.MAX_PAGE


def test_pictures_that_would_make_the_page_too_long_are_left_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(final_verdict, "MAX_PAGE", 4_000)
    record = read_run(run)
    page = verdict_page(record, judge(record), None)
    assert len(page) < 4_000
    assert "### The surest" not in page
    assert "Supervised control" in page


def test_an_unfinished_run_has_a_page_that_says_so(run: Path) -> None:
    (run / "result.json").unlink()
    record = read_run(run)
    page = verdict_page(record, judge(record), None)
    assert "This run is not finished" in page
    assert "test accuracy" not in page


def test_the_pool_page_has_the_funnel_and_the_selection_page_the_classes(run: Path) -> None:
    record = read_run(run)
    newest = record.rounds[-1]
    summary = newest.summary
    assert summary is not None
    page = pool_page(record, newest, summary)
    assert [kind for kind, _ in PICTURE.findall(page)] == ["png", "png"]
    assert len(page) < 200_000
    for name in ("num_rows", "num_left", "num_selected", "num_copies"):
        assert f"| {summary[name]:,} |" in page  # type: ignore[literal-required]
    assert "Labeled by: Round 1 student." in page
    page = selection_page(newest, summary)
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(summary["classes"])
    kept = [int(row.split("|")[5].replace(",", "")) for row in rows]
    assert kept == sorted(c["kept"] for c in summary["classes"])


def test_names_of_the_user_are_no_markup() -> None:
    assert plain("<b>a|b\n*c*") == r"\<b\>a\|b \*c\*"
    assert markdown_table(("", "n"), [("a", "1")]) == ["|  | n |", "| :--- | ---: |", "| a | 1 |"]


def test_a_plot_is_shown_on_white() -> None:
    """The UI is dark for some, and so is the ink of a plot."""
    clear = Image.fromarray(np.zeros((4, 4, 4), np.uint8))
    buffer = io.BytesIO()
    clear.save(buffer, "png")
    ((_, data),) = PICTURE.findall(plot("a plot", buffer.getvalue()))
    shown = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")
    assert shown.getpixel((0, 0)) == (255, 255, 255, 255)
