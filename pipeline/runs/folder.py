"""The run folder: whether a run may use it, the config that it fixes, and the results from before a change."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import SPLITS, Config, Data, Training, changed, load_config, semantic
from pipeline.errors import UserError
from pipeline.files import read_as
from pipeline.models.champion import FILE as CHAMPION
from pipeline.models.champion import pinned
from pipeline.models.weights import files_read
from pipeline.runs.inputs import with_inputs
from pipeline.runs.result import Result
from pipeline.stages.fingerprint import digest
from pipeline.stages.machine import resolve
from pipeline.stages.plugins import digests

log = logging.getLogger("selftrain.loop")


def check_run_folder(run_dir: Path, config_path: Path | None = None) -> None:
    """Refuse a folder in which a run could replace or move the user's files.

    Raises:
        UserError: the folder has files but is not a run folder, or its config.yaml, which a run writes, is the user's.
    """
    if config_path is not None and config_path.resolve() == (run_dir / "config.yaml").resolve():
        raise UserError(
            f"{config_path} is where the run in {run_dir} writes its resolved config; copy it elsewhere, or choose "
            "another --run-dir"
        )
    names = [p.name for p in run_dir.iterdir() if p.name[0] != "."] if run_dir.is_dir() else []
    others = {"manifest.json": "a packed folder", "stage.json": "a stage's folder", CHAMPION: "a registry of champions"}
    if (what := next((others[name] for name in others if name in names), None)) is not None:
        raise UserError(f"{run_dir} is {what}, not a run's; choose another --run-dir")
    if names and not {"run.lock", "stages.json"} & set(names):
        raise UserError(f"{run_dir} has files, such as {min(names)}, but is no run folder; choose another --run-dir")


def earlier_config(run_dir: Path) -> Config | None:
    """The config that the last command wrote into a run folder; None in a new one.

    Raises:
        UserError: it has keys of another version.
    """
    path = run_dir / "config.yaml"
    try:
        return load_config(path) if path.exists() else None
    except UserError as error:
        raise UserError(
            f"{error}. A run wrote this file, with another version of selftrain or with a plugin; choose another "
            "--run-dir, or pass its --plugin"
        ) from error


def resolve_config(config: Config, earlier: Config | None) -> Config:
    """Fix the values that the config leaves to the machine and to starts. An existing run keeps the machine's values of
    its first command."""
    runtime = config.runtime
    if earlier is not None:
        fixed: list[tuple[str, str | int]] = [("device", "auto"), ("precision", "auto")]
        if runtime.processes == earlier.runtime.processes:  # the number of threads is per process
            fixed.append(("threads", 0))
        kept = {name: getattr(earlier.runtime, name) for name, unset in fixed if getattr(runtime, name) == unset}
        runtime = changed(runtime, **kept)
    return with_inputs(absolute(changed(config, runtime=resolve(runtime))))


def absolute(config: Config) -> Config:
    """The config with absolute paths, because children and later commands may run in another folder. A registry to
    start from is the version that is champion now, for the whole run."""
    update: dict[str, Any] = {"data": absolute_data(config.data)}
    others = tuple(changed(one, labels=one.labels.absolute()) for one in config.label.others)
    update |= {"label": changed(config.label, others=others)}
    update |= {"teacher": _absolute(config.teacher), "student": _absolute(config.student)}
    return changed(config, **update, committee=tuple(map(_absolute, config.committee)))


def _absolute(training: Training) -> Training:
    update = {}
    for key, path in files_read(training):
        section = key.partition(".")[0]
        update[section] = changed(getattr(training, section), model=str(pinned(path.absolute())))
    return training.model_copy(update=update)  # which knows what the config set


def absolute_data(data: Data) -> Data:
    """The data with absolute paths."""
    update: dict[str, Any] = {split: tuple(p.absolute() for p in getattr(data, split)) for split in SPLITS}
    for name in ("root", "classes", "cache_dir"):
        path = getattr(data, name)
        update[name] = path.absolute() if path is not None else None
    return changed(data, **update)


def set_aside(run_dir: Path, earlier: Config, config: Config, data: str, files: dict[str, str]) -> None:
    """Move results from before a change of config, data, other files or plugins into RUN/earlier; stage folders stay in
    place. `files` is what lies at the paths of the config now, of which a result of an earlier version says nothing.

    Raises:
        UserError: a plugin that the results were made with is not here.
    """
    result = run_dir / "result.json"
    made: Mapping[str, Any] = read_as(Result, result) if result.exists() else {"data": data, "plugins": digests()}
    earlier_data, earlier_plugins = made.get("data"), made.get("plugins", {})
    earlier_files: dict[str, str] = made.get("files", files)
    changes = {
        "config": semantic(earlier) != semantic(config),
        "data": earlier_data != data,
        "file of " + ", ".join(k for k in files if earlier_files.get(k) != files[k]): earlier_files != files,
        "plugins": earlier_plugins != digests(),
    }
    if missing := sorted(set(earlier_plugins) - set(digests())):
        raise UserError(f"{run_dir} was made with --plugin {missing[0]}; pass it, or choose another --run-dir")
    what = " and ".join(name for name, is_changed in changes.items() if is_changed)
    if not what:
        return
    told_apart = [semantic(earlier), earlier_data, earlier_plugins, *([earlier_files] if earlier_files else [])]
    folder = run_dir / "earlier" / digest(told_apart)[:8]
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("result.json", "report.html", "config.yaml"):  # the config last, so that after a kill this is repeated
        if (run_dir / file).exists():
            (run_dir / file).rename(folder / file)
    log.warning("the %s changed: the earlier result is now in %s; stages that do not change are reused", what, folder)
