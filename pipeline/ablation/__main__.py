"""Draw the table and the plot of an ablation again: `python -m pipeline.ablation DIR/rows.jsonl`."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.ablation.ablate import write_figures
from pipeline.ablation.rows import read_rows, table
from pipeline.errors import EXIT_USER_ERROR, UserError

if __name__ == "__main__":
    try:
        if len(sys.argv) != 2:
            raise UserError("give one file, such as runs/digits-ablation-alone/rows.jsonl")
        rows = read_rows(Path(sys.argv[1]))
        write_figures(Path(sys.argv[1]).parent, rows)
        print(table(rows), end="")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
