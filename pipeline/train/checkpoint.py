"""Checkpoints are written whole or not at all; the last K and the best on val are kept."""

from __future__ import annotations

import io
import re
from pathlib import Path

import torch

from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.models.checkpoints import BEST, State, read_checkpoint

_NAME = re.compile(r"step-(\d{9})\.pt")


class Checkpoints:
    """The `checkpoints` folder of one train stage."""

    def __init__(self, stage: Path, fingerprint: str, keep: int) -> None:
        self.folder = stage / "checkpoints"
        self.fingerprint = fingerprint
        self.keep = keep

    def save(self, step: int, state: State) -> Path:
        """Write the state after `step` steps, then delete all but the last `keep`."""
        path = self.folder / f"step-{step:09d}.pt"
        self._write(path, {**state, "step": step})
        for old in self._list()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def save_best(self, step: int, state: State) -> None:
        """Write the weights that are the best on val so far."""
        self._write(self.folder / BEST, {**state, "step": step})

    def load_last(self) -> State | None:
        """The newest state, or None if there is none yet. Raises UserError as `load` does."""
        path = self.last_path()
        return self.load(path) if path else None

    def last_path(self) -> Path | None:
        """The path of the newest checkpoint, or None if there is none yet."""
        return next(reversed(self._list()), None)

    def load(self, path: Path) -> State:
        """The state in one of the files.

        Raises:
            UserError: the checkpoint is broken, or it belongs to another training.
        """
        state = read_checkpoint(path)
        if state is None or state["fingerprint"] != self.fingerprint:
            raise UserError(f"{path} belongs to another training; choose another folder")
        return state

    def load_best(self) -> State:
        """The weights that were the best on val. Raises UserError as `load` does."""
        return self.load(self.folder / BEST)

    def _list(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("step-*.pt") if _NAME.fullmatch(p.name))

    def _write(self, path: Path, state: State) -> None:
        buffer = io.BytesIO()  # torch.save's own error does not tell that a disk is full
        torch.save({**state, "fingerprint": self.fingerprint}, buffer)
        write_bytes(path, buffer.getvalue())
