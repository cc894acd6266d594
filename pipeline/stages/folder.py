"""The folder of a stage: it is reused if finished, resumed if begun, and refused if it belongs to another stage."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import Json, append_json, read_json, write_json
from pipeline.stages.fingerprint import StageInputs, fingerprint

SCHEMA = 2
OWN_FILES = {"run.lock", "job.json", "output.log", "progress.json", "error.json", "warnings.jsonl"}
"""The files that a launcher writes into a stage folder before the stage opens it."""
RECORD = "stage.json"


def open_folder(
    path: Path,
    kind: str,
    version: int,
    inputs: StageInputs,
    env: Mapping[str, Json],
    *,
    accept_environment: bool = False,
) -> bool:
    """Open `path` for one stage; returns whether its finished output can be reused.

    If the same stage began in the folder, it is resumed, also if it was finished and a file was deleted since.

    Raises:
        UserError: the folder holds the output of another stage, or a resume in another environment was not accepted.
    """
    wanted = fingerprint(kind, version, inputs)
    config, read = dict(inputs.config), dict(inputs.inputs)
    if not (path / RECORD).exists():
        check_stage_folder(path, kind)
        record = {"schema": SCHEMA, "kind": kind, "fingerprint": wanted, "config": config, "inputs": read}
        write_json(path / RECORD, {**record, "environment": dict(env), "complete": False})
        return False
    record = read_json(path / RECORD)
    if record["fingerprint"] != wanted:
        changed = _changes({**record["config"], **record["inputs"]}, {**config, **read})
        raise UserError(f"{path} holds a {record['kind']} stage with other settings ({changed}); choose another folder")
    if is_finished(path):
        return True
    if record["environment"] != dict(env):
        changed = _changes(record["environment"], env)
        if not accept_environment:
            raise UserError(
                f"{path} was begun in another environment ({changed}), so its continuation would not be bit-exact; "
                "go back to that environment, or pass --accept-environment"
            )
        history = [*record.get("earlier_environments", []), record["environment"]]
        write_json(path / RECORD, {**record, "environment": dict(env), "earlier_environments": history})
    return False


def finish_folder(path: Path, files: Sequence[str], **outputs: Json) -> None:
    """Mark a folder complete, which is the last write of a stage. Without one of `files` it cannot be reused."""
    record = read_json(path / RECORD)
    write_json(path / RECORD, {**record, "outputs": outputs, "files": list(files), "complete": True})


def is_finished(path: Path) -> bool:
    """Whether a folder holds a finished stage with all of its files, of which a user may have deleted some."""
    if not (path / RECORD).exists():
        return False
    record = read_json(path / RECORD)
    return bool(record["complete"]) and all((path / name).exists() for name in record["files"])


def check_stage_folder(path: Path, kind: str) -> None:
    """Refuse a folder with the user's files. A launcher's own files are recognised by a valid job.json.

    Raises:
        UserError: the folder is not empty and not a stage folder, or one of another kind.
    """
    if not path.exists():
        return
    if (path / RECORD).exists():
        if (other := read_json(path / RECORD)["kind"]) != kind:
            raise UserError(f"{path} holds a {other} stage; choose another output folder")
        return
    names = {p.name for p in path.iterdir() if p.name[0] != "."}
    begun = "job.json" in names and _is_job(path / "job.json")
    if names - (OWN_FILES if begun else {"run.lock"}):
        if begun:
            raise UserError(f"{path} has lost its {RECORD}; delete the folder and type the same command again")
        raise UserError(f"{path} is not empty and not a {kind} stage; choose another output folder")


def _is_job(path: Path) -> bool:
    try:
        return {"kind", "out"} <= set(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return False


def stage_record(path: Path) -> dict[str, Json]:
    """The stage.json of a finished stage. Raises UserError when the folder is not a stage or is unfinished."""
    record: dict[str, Json] = read_json(path / RECORD)
    if not record.get("complete"):
        raise UserError(f"{path} is an unfinished stage; type the command that began it again to go on")
    return record


def append_timing(stage: Path, step: int, seconds: float, images: int) -> None:
    """Add a line to the stage's timing.jsonl, which is never compared or cut back to a step."""
    append_json(stage / "timing.jsonl", {"step": step, "seconds": round(seconds, 6), "images": images})


def _changes(before: Mapping[str, Json], after: Mapping[str, Json]) -> str:
    def said(values: Mapping[str, Json], key: str) -> str:
        return repr(values[key]) if key in values else "not set"  # as for a technique that is off

    before, after = dict(_leaves(before)), dict(_leaves(after))
    changes = [(key, said(before, key), said(after, key)) for key in sorted({*before, *after})]
    shown = [f"{key}: {old} -> {new}" for key, old, new in changes if old != new]
    return ", ".join(shown[:4]) or "stage format"


def _leaves(values: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    """Dotted key -> value, of all that is no mapping."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
