"""The run folder: whether it may be used, the config that it fixes, and what it ended with before a change."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pipeline.config import SPLITS, Config, Data, Training, changed, semantic
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.stages.fingerprint import digest
from pipeline.stages.machine import resolve

log = logging.getLogger("selftrain.loop")


def check_run_folder(run_dir: Path, config_path: Path | None = None) -> None:
    """Refuse a folder in which a run could replace or move files of the user's.

    Raises:
        UserError: it has files but is no run folder, or its config.yaml, which the run writes, is the user's config.
    """
    if config_path is not None and config_path.resolve() == (run_dir / "config.yaml").resolve():
        raise UserError(
            f"{config_path} is where the run in {run_dir} writes its resolved config; copy it elsewhere, or choose "
            "another --run-dir"
        )
    # Prefect's database may come before the run does.
    names = [p.name for p in run_dir.iterdir() if p.name[0] != "."] if run_dir.is_dir() else []
    other = next((name for name in ("manifest.json", "stage.json") if name in names), None)
    if other is not None:
        what = "a packed folder" if other == "manifest.json" else "a stage's folder"
        raise UserError(f"{run_dir} is {what}, not a run's; choose another --run-dir")
    if set(names) - {"prefect"} and not {"run.lock", "rounds"} & set(names):
        raise UserError(f"{run_dir} has files, such as {min(names)}, but is no run folder; choose another --run-dir")


def resolve_config(config: Config, earlier: Config | None) -> Config:
    """Fix what the config leaves to the machine. A run that exists keeps what it fixed when it was made."""
    runtime = config.runtime
    if earlier is not None:
        fixed: list[tuple[str, str | int]] = [("device", "auto"), ("precision", "auto")]
        if runtime.processes == earlier.runtime.processes:  # threads are those of a process
            fixed.append(("threads", 0))
        kept = {name: getattr(earlier.runtime, name) for name, unset in fixed if getattr(runtime, name) == unset}
        runtime = changed(runtime, **kept)
    return absolute(changed(config, runtime=resolve(runtime)))


def absolute(config: Config) -> Config:
    """A config with absolute paths: children and later commands may run elsewhere."""
    update: dict[str, Any] = {"data": absolute_data(config.data)}
    for name in ("teacher", "student"):
        training: Training = getattr(config, name)
        if training.start is not None and not training.start.model.startswith("timm:"):
            start = changed(training.start, model=str(Path(training.start.model).absolute()))
            update[name] = changed(training, start=start)
    return changed(config, **update)


def absolute_data(data: Data) -> Data:
    """Data with absolute paths."""
    update: dict[str, Any] = {split: tuple(p.absolute() for p in getattr(data, split)) for split in SPLITS}
    for name in ("root", "classes", "cache_dir"):
        path = getattr(data, name)
        update[name] = path.absolute() if path is not None else None
    return changed(data, **update)


def set_aside(run_dir: Path, earlier: Config, config: Config, data: str) -> None:
    """Keep what this run folder ended with before the config or the data changed; its stage folders stay in place."""
    result = run_dir / "result.json"
    earlier_data = read_json(result).get("data") if result.exists() else data
    if semantic(earlier) == semantic(config) and earlier_data == data:
        return
    folder = run_dir / "earlier" / digest([semantic(earlier), earlier_data])[:8]
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("result.json", "report.html", "config.yaml"):  # the config last: a kill in between repeats this
        if (run_dir / file).exists():
            (run_dir / file).rename(folder / file)
    what = "data" if semantic(earlier) == semantic(config) else "config"
    log.warning("the %s changed: the earlier result is now in %s; stages that do not change are reused", what, folder)
