"""Plots that the report and the pages in Prefect have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.report import canvas, plots
from pipeline.report.record import read_run
from pipeline.report.sections import accuracy_plot, confidence_plot


def test_an_equal_plot_is_drawn_once_and_another_one_anew(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "_drawn", {})
    opened = 0
    opening = plots.canvas

    def counted(*args: int, **options: float) -> object:
        nonlocal opened
        opened += 1
        return opening(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(plots, "canvas", counted)
    pictures = []
    for _ in range(2):  # read from the disk twice, as by the two pages
        record = read_run(run)
        round_ = next(r for r in record.rounds if r.summary is not None)
        assert round_.summary is not None
        pictures.append(
            (accuracy_plot(record), confidence_plot(round_, round_.summary), plots.per_class(round_.summary))
        )
    assert opened == 3
    assert pictures[0] == pictures[1]
    round_.summary["classes"][0]["kept"] += 1
    assert plots.per_class(round_.summary) != pictures[0][2]
    assert opened == 4


def test_no_more_than_a_few_plots_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "_drawn", {})
    monkeypatch.setattr(canvas, "MAX_DRAWN", 2)
    draw = canvas.drawn_once(lambda text: text.encode())
    assert [draw(text) for text in ("a", "b", "c", "a")] == [b"a", b"b", b"c", b"a"]
    assert len(canvas._drawn) == 2
