"""Checkpoints as files: whoever reads one, to resume or as a model, compares its bytes with their CRC-32 first."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.files import parsing

State = dict[str, Any]
BEST = "best.pt"


def check_checkpoint(path: Path) -> None:
    """Compare the bytes of a checkpoint with their CRC-32, which torch writes and never checks (38 ms per 100 MB).

    Raises:
        UserError: the file is damaged.
    """
    with parsing(f"{path} is not a readable checkpoint", _fix(path)), zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise UserError(f"{path} is damaged: its bytes are not those that were written; {_fix(path)}")


def read_checkpoint(path: Path) -> State | None:
    """The content of a checkpoint of ours (train/checkpoint.py); None if the file is none.

    Raises:
        UserError: it is damaged.
    """
    if path.suffix != ".pt":
        return None
    check_checkpoint(path)
    with parsing(f"{path} is not a readable checkpoint", _fix(path), tell=False):  # torch advises to load unsafely
        state = torch.load(path, map_location="cpu", weights_only=True)
    return state if isinstance(state, dict) and "fingerprint" in state else None


def _fix(path: Path) -> str:
    if path.parent.name != "checkpoints":  # a file of the user's
        return "copy it again, or save it anew"
    again = f"there is no other one, so delete {path.parent.parent} to train again"
    return again if path.name == BEST else "delete it to go on from the one before"
