"""Checkpoints are written whole or not at all; the last K and the best on val are kept."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.files import parsing, write_bytes

State = dict[str, Any]
_NAME = re.compile(r"step-(\d{9})\.pt")


_BEST = "best.pt"


def check_checkpoint(path: Path) -> None:
    """Compare the bytes of a checkpoint with their CRC-32, which torch writes and never checks (38 ms per 100 MB).

    Raises:
        UserError: the file is damaged.
    """
    with parsing(f"{path} is not a readable checkpoint", _fix(path)), zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise UserError(f"{path} is damaged: its bytes are not those that were written; {_fix(path)}")


def _fix(path: Path) -> str:
    again = f"there is no other one, so delete {path.parent.parent} to train again"
    return again if path.name == _BEST else "delete it to go on from the one before"


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
        self._write(self.folder / _BEST, {**state, "step": step})

    def load_last(self) -> State | None:
        """The newest state, or None if there is none yet.

        Raises:
            UserError: the checkpoint is broken, or it belongs to another training.
        """
        path = self.last_path()
        return self._read(path) if path else None

    def last_path(self) -> Path | None:
        """The path of the newest checkpoint, or None if there is none yet."""
        return next(reversed(self._list()), None)

    def load_best(self) -> State:
        """The weights that were the best on val. Raises UserError as `load_last` does."""
        return self._read(self.folder / _BEST)

    def _list(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("step-*.pt") if _NAME.fullmatch(p.name))

    def _write(self, path: Path, state: State) -> None:
        buffer = io.BytesIO()  # torch.save's own error does not tell that a disk is full
        torch.save({**state, "fingerprint": self.fingerprint}, buffer)
        write_bytes(path, buffer.getvalue())

    def _read(self, path: Path) -> State:
        check_checkpoint(path)
        with parsing(f"{path} is not a readable checkpoint", _fix(path), tell=False):  # torch advises to load unsafely
            state: State = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state.get("fingerprint") != self.fingerprint:
            raise UserError(f"{path} belongs to another training; choose another folder")
        return state
