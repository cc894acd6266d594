"""The rows of an ablation: what they say together, what cannot be compared, and what is published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import pipeline
from pipeline.ablation.cells import BASE, Mode
from pipeline.ablation.plot import draw_effects
from pipeline.ablation.rows import Row, effects, read_rows, table, write_rows
from pipeline.errors import UserError
from pipeline.report.canvas import ACCENT, HARM, MUTED


def rows_of(mode: Mode, accuracies: dict[str, list[float]]) -> list[Row]:
    names = list(accuracies)
    return [
        Row(
            mode=mode,
            technique=name,
            against="" if name == BASE else names[names.index(name) - 1] if mode == "stack" else BASE,
            on=(),
            seed=seed,
            val_top1=value,
            num_val=1000,
            seconds=10.0 * (1 + names.index(name)),
            tflops=1.0,
            machine="a processor",
            commit="abc",
            folder=f"cells/{name}-{seed}",
        )
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


ACCURACIES = {BASE: [0.80, 0.82, 0.81], "mixup": [0.84, 0.85, 0.85], "ema": [0.81, 0.80, 0.83]}


def test_intervals_are_those_of_a_paired_t_test() -> None:
    for effect in effects(rows_of("alone", ACCURACIES)):
        pairs = 100 * np.array(ACCURACIES[effect.technique]) - 100 * np.array(ACCURACIES[BASE])
        expected = stats.ttest_1samp(pairs, 0).confidence_interval(0.95)
        assert effect.points == pytest.approx(pairs.mean())
        assert effect.interval == pytest.approx((expected.low, expected.high), abs=2e-3)


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_equal_differences_of_one_image_are_within_chance(num_seeds: int) -> None:
    """They have no spread, but an accuracy is known to one image only."""
    rows = rows_of("alone", {BASE: [0.800] * num_seeds, "mixup": [0.801] * num_seeds})
    (effect,) = effects(rows)
    assert effect.verdict == ("within chance" if num_seeds < 5 else "helps")


def test_drop_one_turns_the_difference_around() -> None:
    alone, dropped = (effects(rows_of(mode, ACCURACIES))[0] for mode in ("alone", "drop-one"))
    assert dropped.points == pytest.approx(-alone.points)
    assert dropped.time_ratio == pytest.approx(1 / alone.time_ratio)


def test_stack_compares_with_the_row_before() -> None:
    first, second = effects(rows_of("stack", ACCURACIES))
    assert first.points == pytest.approx(100 * (np.mean(ACCURACIES["mixup"]) - np.mean(ACCURACIES[BASE])))
    assert second.points == pytest.approx(100 * (np.mean(ACCURACIES["ema"]) - np.mean(ACCURACIES["mixup"])))


def test_a_technique_whose_interval_holds_zero_is_said_to_be_within_chance() -> None:
    text = table(rows_of("alone", ACCURACIES))
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "helps" in lines["mixup"]
    assert "within chance" in lines["ema"]
    one_seed = [row for row in rows_of("alone", ACCURACIES) if row.seed == 0]
    assert "one seed: nothing can be said" in table(one_seed)


def test_the_plot_is_redrawn_from_the_rows_alone(tmp_path: Path) -> None:
    rows = rows_of("alone", ACCURACIES)
    write_rows(tmp_path / "rows.jsonl", rows)
    again = read_rows(tmp_path / "rows.jsonl")
    assert again == rows
    assert draw_effects(again) == draw_effects(rows)
    assert draw_effects(rows)[:8] == b"\x89PNG\r\n\x1a\n"
    different = [replace(row, val_top1=0.5) if row.technique == "ema" else row for row in rows]
    assert draw_effects(different) != draw_effects(rows)


@pytest.mark.parametrize("mode", ["alone", "drop-one", "stack"])
def test_the_plot_says_in_words_and_colours_which_intervals_hold_0(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    said: list[tuple[str, str]] = []
    text = Axes.text

    def note(self: Axes, x: float, y: float, s: str, **options: Any) -> Any:
        said.append((s, options["color"]))
        return text(self, x, y, s, **options)

    monkeypatch.setattr(Axes, "text", note)
    rows = rows_of(mode, {**ACCURACIES, "cutout": [0.70, 0.71, 0.70]})
    draw_effects(rows)
    assert len(said) == 3
    for effect in effects(rows):
        ((words, color),) = [pair for pair in said if pair[0].startswith(f"{effect.points:+.2f} ")]
        low, high = effect.interval or (0, 0)
        holds_0 = low <= 0 <= high
        assert ("holds 0" in words) == holds_0 == (color == MUTED)
        assert holds_0 or words.endswith("helps" if low > 0 else "harms")
        assert color == {"helps": ACCENT, "harms": HARM}.get(effect.verdict, MUTED)


def test_a_file_without_rows_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="holds no rows of an ablation"):
        read_rows(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="is no file"):
        read_rows(tmp_path / "nothing.jsonl")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows[3:], "has no row of the base"),
        (lambda rows: [*rows, rows[0]], "holds rows of several ablations"),
        (lambda rows: [*rows, replace(rows[4], mode="stack", seed=9)], "holds rows of several ablations"),
        (lambda rows: [replace(rows[0], val_top1=None), *rows[1:]], "holds no rows of an ablation"),
        (lambda rows: [replace(rows[0], mode="x"), *rows[1:]], "holds no rows of an ablation"),
    ],
)
def test_rows_that_do_not_compare_are_refused(tmp_path: Path, spoil: Callable[..., list[Row]], message: str) -> None:
    write_rows(tmp_path / "rows.jsonl", spoil(rows_of("alone", ACCURACIES)))
    with pytest.raises(UserError, match=message):
        read_rows(tmp_path / "rows.jsonl")


# ------------------------------------------------------------------------------------------------- what is published

PUBLISHED = Path(pipeline.__file__).parents[1] / "docs" / "ablations"


@pytest.mark.parametrize("path", sorted(PUBLISHED.glob("*.jsonl")), ids=lambda path: path.stem)
def test_published_tables_are_those_of_their_rows(path: Path) -> None:
    """`python -m pipeline.ablation` draws them; nobody edits a figure."""
    page = (PUBLISHED.parent / "ablations.md").read_text()
    assert table(read_rows(path)) in page
    assert path.with_suffix(".png").exists()
    assert f"ablations/{path.stem}.png" in page
