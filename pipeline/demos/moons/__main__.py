"""Compare the methods on the two moons.

python -m pipeline.demos.moons.data shards/two_moons
python -m pipeline.demos.moons configs/two_moons.yaml --out runs/two_moons --set num_seeds=1
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from pipeline.config import load
from pipeline.demos.moons.compare import NUM_METHODS, Comparison, compare
from pipeline.demos.moons.config import TwoMoons
from pipeline.errors import EXIT_OK, EXIT_USER_ERROR, UserError
from pipeline.files import write_bytes, write_json

RESULT, PICTURE = "two_moons.json", "two_moons.png"


def main() -> int:
    """Run the comparison that the command line describes; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.demos.moons", description="Compare on the two moons.")
    parser.add_argument("config", type=Path, metavar="CONFIG")
    parser.add_argument("--out", type=Path, default=Path("runs/two_moons"), metavar="DIR")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE")
    arguments = parser.parse_args()
    try:
        config = load(TwoMoons, arguments.config, arguments.set)
        _check_out(arguments.out)
        with Progress(console=Console(stderr=True)) as bars:
            task = bars.add_task(f"two moons, {config.num_seeds} seeds", total=NUM_METHODS * config.steps)
            comparison = compare(config, lambda count: bars.advance(task, count))
        figures = {"accuracy": dict(comparison.accuracy), "num_separated": dict(comparison.num_separated)}
        write_json(arguments.out / RESULT, {"config": config.model_dump(mode="json"), **figures})
        write_bytes(arguments.out / PICTURE, comparison.picture)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    console = Console(markup=False, emoji=False, highlight=False)
    console.print(_table(comparison, config.num_seeds))
    console.print(f"Decision boundaries: {arguments.out / PICTURE}", soft_wrap=True)
    return EXIT_OK


def _check_out(folder: Path) -> None:
    """Refuse a folder with other files than those of an earlier comparison, which are replaced."""
    others = {path.name for path in folder.iterdir()} - {RESULT, PICTURE} if folder.is_dir() else set()
    if others:
        raise UserError(f"{folder} has files, such as {min(others)}; choose another --out")


def _table(comparison: Comparison, num_seeds: int) -> Table:
    """A table of the number of seeds that each method separates, and of its mean accuracy."""
    table = Table("method", "seeds separated", "mean accuracy on test")
    for name, values in comparison.accuracy.items():
        separated = f"{comparison.num_separated[name]} of {num_seeds}"
        table.add_row(name.replace("_", " "), separated, f"{100 * sum(values) / len(values):.1f}%")
    return table


if __name__ == "__main__":
    sys.exit(main())
