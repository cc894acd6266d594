"""The folder of a stage: it is reused if finished, resumed if begun, and refused if it belongs to another stage."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from pipeline.errors import UserError
from pipeline.files import Json, append_json, fsync, read_as, write_sealed
from pipeline.stages.fingerprint import StageInputs, digest_file, digest_once, fingerprint, once
from pipeline.stages.part import PARTS

SCHEMA = 2
OWN_FILES = {"run.lock", "job.json", "output.log", "progress.json", "error.json", "messages.jsonl", PARTS, "nodes"}
"""The files that a launcher writes into a stage folder before the stage opens it."""
RECORD = "stage.json"


class RecordedConfig(TypedDict, total=False):
    """What is read of a stage's config."""

    training: dict[str, Json]


class Outputs(TypedDict, total=False):
    """What later stages and people read of a stage's outputs."""

    labels: str
    provenance: dict[str, str]
    classes: str
    """The digest of the names that class ids in it stand for."""
    model_sha256: str
    num_samples: int
    num_selected: int


class Record(TypedDict):
    """What is read of stage.json."""

    kind: str
    fingerprint: str
    config: RecordedConfig
    inputs: dict[str, str]
    environment: dict[str, Json]
    earlier_environments: NotRequired[list[dict[str, Json]]]
    complete: bool
    files: NotRequired[list[str]]
    """The names of the files without which the folder cannot be reused."""
    digests: NotRequired[dict[str, str]]
    """Name of an output -> the sha256 of its bytes."""
    outputs: NotRequired[Outputs]


METRICS = "metrics.jsonl"
"""An output that a stage adds to, and without which it can be reused. timing.jsonl is no output: it never repeats."""


def open_folder(
    path: Path,
    kind: str,
    version: int,
    inputs: StageInputs,
    env: Mapping[str, Json],
    *,
    accept_environment: bool = False,
    shared_with: Iterable[Path] = (),
) -> bool:
    """Open `path` for one stage; returns whether its finished output can be reused.

    If the same stage began in the folder, it is resumed, also if it was finished and a file was deleted since. If it
    began in another folder that it is shared with, it goes on from there, and is finished if it is finished there.

    Raises:
        UserError: one of the folders holds the output of another stage, a resume in another environment was not
            accepted, or what is left of a finished stage is damaged.
    """
    wanted = fingerprint(kind, version, inputs)
    config, read = dict(inputs.config), dict(inputs.inputs)
    if not (path / RECORD).exists():
        check_stage_folder(path, kind)
    records = {folder: read_record(folder) for folder in (path, *shared_with) if (folder / RECORD).exists()}
    for folder, record in records.items():
        if record["fingerprint"] != wanted:
            changed = _changes({**record["config"], **record["inputs"]}, {**config, **read})
            raise UserError(
                f"{folder} holds a {record['kind']} stage with other settings ({changed}); choose another folder"
            )
    if any(map(is_finished, records)):
        return True
    begun = {"schema": SCHEMA, "kind": kind, "fingerprint": wanted, "config": config, "inputs": read}
    own = records.get(path, {**begun, "environment": dict(env), "complete": False})
    history = list(own.get("earlier_environments", []))
    for folder, record in records.items():
        before = record["environment"]
        # Into how many processes its work is divided is no more to a stage in parts than how many parts there are.
        free = () if folder == path else ("processes",)
        if _without(before, free) == _without(env, free) or (folder != path and before in history):
            continue
        if not accept_environment:
            changed = _changes(_without(before, free), _without(env, free))
            raise UserError(
                f"{folder} was begun in another environment ({changed}), so its continuation would not be bit-exact; "
                "go back to that environment, or pass --accept-environment"
            )
        history.append(before)
    now = {**own, "environment": dict(env), **({"earlier_environments": history} if history else {})}
    if own["complete"]:  # a file was deleted, so the others are taken as they are, and written to
        for name in own.get("digests", {}):
            check_output(path / name)
        now |= {"digests": {}, "complete": False}
    if now != records.get(path):
        write_sealed(path / RECORD, now)
    return False


def _without(values: Mapping[str, Json], names: Sequence[str]) -> dict[str, Json]:
    return {name: value for name, value in values.items() if name not in names}


def finish_folder(path: Path, files: Sequence[str], *, complete: bool = True, **outputs: Json) -> None:
    """Mark a folder complete, which is the last write of a stage. Without one of `files` it cannot be reused.

    The digests of its outputs are recorded (73 ms per 100 MB), and `check_output` compares them. A part of a stage
    records them without `complete`.
    """
    lines = [METRICS] if (path / METRICS).exists() else []
    for name in lines:  # unlike the others it may not be on the disk yet, and after a power cut it would be another
        fsync(path / name)
    digests = {name: digest_file(path / name) for name in [*files, *lines]}
    record = {**read_record(path), "outputs": outputs, "files": list(files), "digests": digests}
    write_sealed(path / RECORD, {**record, "complete": complete})


def check_output(path: Path) -> Path:
    """Refuse a file of a stage whose bytes are not those that the stage wrote; returns the path.

    Whoever reads an output asks for it. A process reads a file once for that. Files that no finished stage lists pass,
    and so do those of stages from before digests were recorded.

    Raises:
        UserError: the file is damaged; the message says what to delete.
    """
    recorded = _digests(path.parent / RECORD) if (path.parent / RECORD).exists() else {}
    if path.name in recorded and path.exists() and digest_once(path) != recorded[path.name]:
        again = "and type the command that made it again, which goes on from the rest"
        if path.name == METRICS:
            again = f"to go without its curves, or delete {path.parent} and type the command again to train anew"
        raise UserError(f"{path} is damaged: its bytes are not those that its stage wrote; delete this file {again}")
    return path


@once
def _digests(record: Path) -> dict[str, str]:
    found: dict[str, str] = read_record(record.parent).get("digests", {})
    return found


def read_record(folder: Path) -> dict[str, Json]:
    """The stage.json of a folder, which has the keys of `Record`. Raises UserError when it is missing or damaged."""
    record: dict[str, Json] = read_as(Record, folder / RECORD)
    return record


def read_output(path: Path, shape: Any = dict) -> Json:
    """Read a JSON file of a stage, of this shape. Raises UserError as `check_output` and `read_as` do."""
    return read_as(shape, check_output(path))


def is_finished(path: Path) -> bool:
    """Whether a folder holds a finished stage with all of its files, of which a user may have deleted some."""
    if not (path / RECORD).exists():
        return False
    record = read_record(path)
    return bool(record["complete"]) and all((path / name).exists() for name in record.get("files", ()))


def check_stage_folder(path: Path, kind: str) -> None:
    """Refuse a folder with the user's files. A launcher's own files are recognised by a valid job.json.

    Raises:
        UserError: the folder is not empty and not a stage folder, or one of another kind.
    """
    if not path.exists():
        return
    if (path / RECORD).exists():
        if (other := read_record(path)["kind"]) != kind:
            raise UserError(f"{path} holds a {other} stage; choose another output folder")
        return
    names = {p.name for p in path.iterdir() if p.name[0] != "."}
    begun = "job.json" in names and _is_job(path / "job.json")
    if others := sorted(names - (OWN_FILES if begun else {"run.lock", PARTS, "nodes"})):
        fix = "choose another output folder"
        if begun:  # by a launcher, in a folder that held them already, or in one whose record is gone
            fix += (
                f", or if it is a stage that has lost its {RECORD}, delete the folder and type the same command again"
            )
        raise UserError(f"{path} is not empty and not a {kind} stage ({', '.join(others[:3])}); {fix}")


def _is_job(path: Path) -> bool:
    try:
        return {"kind", "out"} <= set(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return False


def stage_record(path: Path) -> dict[str, Json]:
    """The stage.json of a finished stage. Raises UserError when the folder is not a stage or is unfinished."""
    record = read_record(path)
    if not record["complete"]:
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
