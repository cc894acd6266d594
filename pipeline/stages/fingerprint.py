"""Fingerprints: one digest of all that a stage's output is a function of."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from pipeline.files import Json

T = TypeVar("T")


class StageInputs(NamedTuple):
    """The settings and inputs that a stage's output is a function of, beside the version of its kind."""

    config: Mapping[str, Json]
    """The semantic part of its settings."""
    inputs: Mapping[str, str]
    """Name of an input -> its fingerprint or digest."""


def digest(value: Json) -> str:
    """A hex digest of any JSON value: equal values give equal digests, whatever their key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digest_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def once(function: Callable[[Path], T]) -> Callable[[Path], T]:
    """Let this process compute a function of a file's content once, until the file is replaced or written to."""

    @functools.cache
    def at(path: Path, *_state: int) -> T:
        return function(path)

    def cached(path: Path) -> T:
        now = path.stat()
        return at(path, now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)

    return cached


digest_once = once(digest_file)


def fingerprint(kind: str, version: int, inputs: StageInputs) -> str:
    """The digest of all that a stage's output is a function of: semantic config, inputs, and version of its kind."""
    return digest({"kind": kind, "version": version, "config": dict(inputs.config), "inputs": dict(inputs.inputs)})


@functools.cache
def code_version(checkout: Path) -> str:
    """The last commit that changed pipeline/ in a source checkout, with "-dirty" if it was edited since.

    Other commits change no bits. It is "unknown" without a checkout or git; the release number tells the code then.
    """
    if not (checkout / ".git").exists():
        return "unknown"

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments, "--", "pipeline"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("log", "-1", "--format=%H")[:12] + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
