"""metrics.jsonl and timing.jsonl beside checkpoints: on disk before one, cut back to one after a kill."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pipeline.stage import write_bytes


def sync_lines(path: Path) -> None:
    """Bring the lines to the disk: a checkpoint that survives a power cut must find the lines that it goes on from."""
    for part in (path, path.parent):
        if part.exists():
            descriptor = os.open(part, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def cut_lines(path: Path, step: int | None = None) -> None:
    """Drop a last line that a kill cut short and, given a step, the lines of later steps."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in lines if step is None or json.loads(line)["step"] <= step]
        write_bytes(path, "".join(kept).encode())
