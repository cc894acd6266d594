"""The rows of an ablation, one per cell and seed, as JSON lines; and what they say together."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

from pydantic import TypeAdapter, ValidationError

from pipeline.ablation.cells import BASE, Mode
from pipeline.errors import UserError
from pipeline.files import read_lines, write_bytes

_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)
"""Student's t for a two-sided 95% interval, with 1, 2, ... degrees of freedom; 1.96 from there on."""


@dataclass(frozen=True)
class Row:
    """What the run of one cell and seed came to."""

    mode: Mode
    technique: str
    """`base`, or the technique that the cell is about."""
    against: str
    """The technique whose cell it is compared with; empty for the base."""
    on: tuple[str, ...]
    """The techniques of the ablation that are on."""
    seed: int
    val_top1: float
    """Accuracy on val, a fraction, of the best model after the teacher; of the teacher if it is all there is. Test is
    not read: an ablation is a choice."""
    num_val: int
    seconds: float
    """Time of its trainings and labelings, without the start of processes."""
    tflops: float
    """Floating-point operations of its training steps and labelings, in units of 10^12."""
    machine: str
    """The processor."""
    commit: str
    folder: str
    """The run folder, relative to the ablation's."""


_ROW = TypeAdapter(Row)


@dataclass(frozen=True)
class Effect:
    """What a technique is worth: with it minus without it."""

    technique: str
    num_seeds: int
    points: float
    """Mean difference of val accuracy, in percentage points, paired by seed."""
    interval: tuple[float, float] | None
    """Its 95% interval over seeds (Student's t); None for one seed."""
    time_ratio: float
    """Time with it over time without it."""
    flops_ratio: float

    @property
    def verdict(self) -> str:
        """In words; it claims nothing where the interval holds 0."""
        if self.interval is None:
            return "one seed: nothing can be said"
        low, high = self.interval
        if low <= 0 <= high:
            return "within chance"
        return "helps" if low > 0 else "harms"


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows as JSON lines, atomically."""
    write_bytes(path, "".join(json.dumps(asdict(row)) + "\n" for row in rows).encode())


def read_rows(path: Path) -> list[Row]:
    """Read the rows that `write_rows` wrote.

    Raises:
        UserError: the file is missing, empty, or holds something else.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; `selftrain ablate CONFIG --out DIR` writes DIR/rows.jsonl")
    try:
        rows = [_ROW.validate_python(line) for line in read_lines(path)]
    except ValidationError as error:
        raise UserError(f"{path} holds no rows of an ablation: {error}") from error
    cells = [(row.technique, row.seed) for row in rows]
    if BASE not in {row.technique for row in rows}:
        raise UserError(f"{path} has no row of the base, so nothing can be compared; type the ablation's command again")
    if len({row.mode for row in rows}) > 1 or len(set(cells)) < len(cells):
        raise UserError(f"{path} holds rows of several ablations; keep those of one, each technique and seed once")
    return rows


def effects(rows: Sequence[Row]) -> list[Effect]:
    """The effect of every technique of one ablation, in the order of its rows.

    With mode `drop-one` the base has the technique and the cell does not, so the difference is turned around.
    """
    found = []
    for name in dict.fromkeys(row.technique for row in rows if row.technique != BASE):
        cell = {row.seed: row for row in rows if row.technique == name}
        against = next(iter(cell.values())).against
        other = {row.seed: row for row in rows if row.technique == against}
        pairs = [(cell[seed], other[seed]) for seed in sorted(cell.keys() & other.keys())]
        if not pairs:
            continue
        if pairs[0][0].mode == "drop-one":
            pairs = [(without, with_it) for with_it, without in pairs]
        found.append(_effect(name, pairs))
    return found


def _effect(name: str, pairs: Sequence[tuple[Row, Row]]) -> Effect:
    differences = [100 * (a.val_top1 - b.val_top1) for a, b in pairs]
    middle, n, interval = mean(differences), len(differences), None
    if n > 1:
        t = _T[n - 2] if n - 2 < len(_T) else 1.96
        # Accuracies are multiples of one image: equal differences are no proof of an exact one.
        rounding = 100 * math.sqrt(2 / 12) / min(a.num_val for a, _ in pairs)
        reach = t * max(stdev(differences), rounding) / math.sqrt(n)
        interval = (middle - reach, middle + reach)
    return Effect(
        technique=name,
        num_seeds=n,
        points=middle,
        interval=interval,
        time_ratio=sum(a.seconds for a, _ in pairs) / max(sum(b.seconds for _, b in pairs), 1e-9),
        flops_ratio=sum(a.tflops for a, _ in pairs) / max(sum(b.tflops for _, b in pairs), 1e-9),
    )


def table(rows: Sequence[Row]) -> str:
    """The effects as a Markdown table, with the base's accuracy above it."""
    base = [row for row in rows if row.technique == BASE]
    modes = {
        "alone": "Each technique is added to a base that has none of them.",
        "drop-one": "Each technique is taken away from a base that has all of them; positive means that it is missed.",
        "stack": "Techniques are added one after another, in the order of the rows.",
    }
    first = rows[0]
    lines = [
        f"{modes[first.mode]} Val accuracy of the base: {100 * mean(row.val_top1 for row in base):.2f}% "
        f"({', '.join(f'{100 * row.val_top1:.2f}' for row in base)}; seeds {', '.join(str(r.seed) for r in base)}; "
        f"{first.num_val:,} val images). Differences are paired by seed; intervals are 95%, over seeds. "
        f"{', '.join(dict.fromkeys(row.machine for row in rows))}; commits "
        f"{', '.join(dict.fromkeys(row.commit for row in rows))}.",
        "",
        "| technique | points | 95% interval | seeds | time | FLOPs | |",
        "|---|---|---|---|---|---|---|",
    ]
    for e in effects(rows):
        interval = "" if e.interval is None else f"{e.interval[0]:+.2f} to {e.interval[1]:+.2f}"
        cost = f"{e.time_ratio:.2f}x | {e.flops_ratio:.2f}x"
        lines.append(f"| {e.technique} | {e.points:+.2f} | {interval} | {e.num_seeds} | {cost} | {e.verdict} |")
    return "\n".join(lines) + "\n"
