"""Promotion: a model becomes the champion of a registry; and rollback: the one before it is champion again."""

from __future__ import annotations

import datetime
import getpass
import os
import socket
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from pipeline.champions.comparison import Comparison, compare_on_val
from pipeline.champions.history import SCHEMA, Entry, Signature, check_folder, settle, succession, write_entry
from pipeline.errors import UserError
from pipeline.files import read_as
from pipeline.models.champion import fault_of, weights_of
from pipeline.models.format import export_model, find_weights, model_digest, read_info
from pipeline.runs.result import FINAL, Result
from pipeline.stages.fingerprint import digest_file, digest_once
from pipeline.stages.lock import run_lock


@dataclass(frozen=True)
class Promotion:
    """What became of a registry."""

    champion: Entry
    """The entry of the model that is champion now."""
    before: Entry | None
    """That of the model that was champion before; None if there was none."""
    why: str = ""
    """Why the champion stays, or by what comparison it was replaced; empty where nothing was compared."""

    @property
    def changed(self) -> bool:
        """Whether there is another champion than before."""
        return self.champion is not self.before

    def __str__(self) -> str:
        who = f"v{self.champion['version']} ({self.champion['source']})"
        again = " again" if self.champion["action"] == "rollback" else ""
        said = f"{who} is champion{again}" if self.changed else f"{who} stays champion"
        if self.changed and self.before is not None:
            said += f", in place of v{self.before['version']}"
        return f"{said}: {self.why}" if self.why else said


def promote(
    model: Path | None,
    champion: Path,
    reason: str = "",
    rollback: bool = False,
    *,
    if_better: bool = False,
    level: float | None = None,
) -> Promotion:
    """Make a model the champion of a registry, or with `rollback` the model that was champion before this one.

    Whoever reads the registry meanwhile sees the old champion or the new one. After a kill at any moment it is one of
    them, and the same call goes on. A second call at the same time waits for the first. The same call again changes
    nothing: a rollback after a rollback neither, unless the champion is damaged.

    Args:
        model: A run folder, a stage folder, another registry, an exported file or a checkpoint; None for a rollback.
        champion: The folder of the registry, which is made if it does not exist.
        reason: Why, for the history.
        rollback: Whether to go back; no model is judged then.
        if_better: Promote only a model that is better on val of its run than the champion, by more than chance.
        level: The level of that test; None takes `rounds.promotion_level` of the model's run.

    Raises:
        UserError: there is no such model, the folder is no registry or somebody edited it, another process keeps it
            locked, there is nothing to go back to, or the models cannot be compared.
    """
    if rollback and (model is not None or if_better):
        raise UserError("a rollback takes the champion before this one; leave MODEL and --if-better out")
    if level is not None and not 0 < level < 1:
        raise UserError(f"--level {level:g} must lie between 0 and 1; 0.05 is usual")
    if model is None:
        if not rollback:
            raise UserError("there is no model to promote; name a run, or pass --rollback")
        weights = None
    else:
        weights = find_weights(model)  # once, as a run and a registry may have another model a moment later
        read_info(weights)
    check_folder(champion)
    with run_lock(champion):
        history = settle(champion)
        if model is None or weights is None:
            return _roll_back(champion, history, reason)
        return _promote(model, weights, champion, history, reason, if_better, level)


def _promote(
    model: Path,
    source: Path,
    registry: Path,
    history: list[Entry],
    reason: str,
    if_better: bool,
    level: float | None,
) -> Promotion:
    digest = model_digest(source)
    now = history[-1] if history else None
    same = [entry for entry in reversed(history) if entry["model"] == digest]
    known = next((entry["version"] for entry in same if fault_of(registry, entry["digests"]) is None), None)
    if now is not None and known == now["version"]:
        return Promotion(now, now, f"{model} is the same model")
    comparison, why = None, ""
    if now is not None and if_better:
        comparison = compare_on_val(source, find_weights(registry), level)
        why = f"{model} is {'' if comparison.is_better else 'not '}better. {_told(comparison, now)}"
        if not comparison.is_better:
            return Promotion(now, now, why)
    weights = _written(source, registry, history) if known is None else weights_of(registry, known)
    info = read_info(weights)
    entry: Entry = {
        "schema": SCHEMA,
        **_signature(history, reason),
        "action": "promote",
        "version": int(weights.stem.removeprefix("v")),
        "model": digest,
        "digests": {file.name: digest_file(file) for file in (weights, weights.with_suffix(".json"))},
        "source": str(model.absolute()),
        "figures": {**info.metrics, **_on_test(model)},
        "lineage": info.lineage,
        "comparison": None if comparison is None else comparison.to_json(),
    }
    write_entry(registry, entry)
    return Promotion(entry, now, why)


def _roll_back(registry: Path, history: list[Entry], reason: str) -> Promotion:
    standing = succession(history)
    now = history[-1] if history else None
    if now is not None and now["action"] == "rollback" and fault_of(registry, now["digests"]) is None:
        earlier = (
            f"promote {weights_of(registry, standing[-2]['version'])}" if len(standing) > 1 else "there is no other"
        )
        return Promotion(now, now, f"a rollback made it so, and no second one follows; to go back further, {earlier}")
    if len(standing) < 2:
        what = f"no champion before v{history[-1]['version']}" if history else "no champion yet"
        raise UserError(f"{registry} has {what}, so there is nothing to go back to; promote the model that you want")
    target = standing[-2]
    if (fault := fault_of(registry, target["digests"])) is not None:
        raise UserError(f"{fault}, so it cannot be champion again; restore it, or promote the model that you want")
    entry: Entry = {**target, **_signature(history, reason), "action": "rollback", "comparison": None}
    write_entry(registry, entry)
    return Promotion(entry, history[-1])


def _signature(history: list[Entry], reason: str) -> Signature:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container may have a user without a name
        name = str(os.getuid())
    return {
        "number": len(history) + 1,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "who": f"{name}@{socket.gethostname()}",
        "reason": reason,
        "before": "",
    }


def _written(source: Path, registry: Path, history: list[Entry]) -> Path:
    """Write a model as the next version. A number that a killed promotion of another model took is left out."""
    highest = max((entry["version"] for entry in history), default=0)
    paths = (weights_of(registry, number) for number in count(highest + 1))
    sha256 = digest_once(source)
    out = next(path for path in paths if not path.exists() or digest_once(path) == sha256)
    export_model(source, out)
    return out


def _told(comparison: Comparison, now: Entry) -> str:
    earlier = now["comparison"]
    other = earlier is not None and earlier["val"] != comparison.val
    return f"{comparison}{'. The champion was chosen on another val' if other else ''}"


def _on_test(model: Path) -> dict[str, Any]:
    """The figures on test of a finished run's final model, which the run has measured."""
    path = model / "result.json"
    test = read_as(Result, path)["final"]["test"] if path.exists() else {}
    return {"test": test[FINAL]} if FINAL in test else {}
