"""Run the cells of an ablation and collect their rows."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

from pipeline.ablation.cells import Cell, Mode, check_cells, folder_of, plan_cells
from pipeline.ablation.parallel import Locks, several_at_a_time
from pipeline.ablation.plot import draw_effects
from pipeline.ablation.rows import Row, read_rows, table, write_rows
from pipeline.config import Config, changed
from pipeline.errors import UserError
from pipeline.evaluate.metrics import MetricsJson
from pipeline.files import read_json, read_lines, write_bytes, write_json
from pipeline.runs.inputs import with_inputs
from pipeline.runs.loop import run_loop
from pipeline.runs.result import score_of
from pipeline.runs.run import RunStage
from pipeline.stages.fingerprint import digest_file
from pipeline.stages.folder import is_finished, read_output, read_record
from pipeline.stages.jobs import Job, LabelJob, ProbeJob, TrainJob
from pipeline.stages.kinds import read_job
from pipeline.stages.lock import run_lock

log = logging.getLogger("selftrain.ablation")

ROWS, TABLE, PLOT, CELLS, EARLIER = "rows.jsonl", "table.md", "ablation.png", "cells", "earlier"
COST = "cost.json"


def run_ablation(
    config: Config,
    out: Path,
    techniques: Sequence[str],
    mode: Mode,
    num_seeds: int,
    *,
    run_stage: RunStage,
    on_row: Callable[[Row], None] = lambda _: None,
    accept_environment: bool = False,
    parallel: int = 1,
    stop: threading.Event | None = None,
) -> list[Row]:
    """Run every cell for every seed; returns the rows, and leaves them in `out` with their table and plot.

    A run folder per cell and seed lies in `out`/cells. What is finished there is reused, what was begun is resumed, and
    a stage that another cell has finished is copied. The figures of another ablation are moved to `out`/earlier.

    Args:
        config: The config that the cells differ from.
        out: The folder of the ablation.
        techniques: Names in `TECHNIQUES`.
        mode: How they are combined.
        num_seeds: Seeds, from the config's on.
        run_stage: Runs one stage, such as `launch.run_job`.
        on_row: Called with every row when its run is finished.
        accept_environment: Whether to resume stages that were begun in another environment.
        parallel: Runs at a time. It changes no figure but seconds.
        stop: With several runs at a time, what tells `run_stage` that they are to save and stop.

    Raises:
        UserError: a bad technique or config, a network that cannot have one, `out` holds other files or is in use, or
            the data changed in between.
        Interrupted: stopped by a signal; the same call goes on.
    """
    if config.runtime.nodes > 1:
        raise UserError("`runtime.nodes`: the cells of an ablation run on one machine each; set it to 1")
    out = out.resolve()
    _check_out(out)
    config = with_inputs(changed(config, evaluate=changed(config.evaluate, control=False)))
    cells = plan_cells(config, techniques, mode)
    check_cells(cells)
    seeds = range(config.seed, config.seed + num_seeds)
    locks = Locks()
    share = _sharing(run_stage, out / CELLS, locks)
    rows: dict[tuple[int, str], Row] = {}
    data: set[str] = set()

    def folder(cell: Cell, seed: int) -> Path:
        return out / CELLS / folder_of(cell.for_seed(seed))

    def run(cell: Cell, seed: int) -> dict[str, Any]:
        own, where = cell.for_seed(seed), folder(cell, seed)
        with locks(where.name):  # cells of equal configs share a run
            return run_loop(own, where, run_stage=share, accept_environment=accept_environment, read_test=False)

    with run_lock(out):
        _set_aside(out, mode, {(cell.name, seed): folder(cell, seed).name for cell in cells for seed in seeds})
        every = [(cell, seed) for seed, cell in product(seeds, cells)]  # all cells of a seed, so that pairs come early
        with closing(several_at_a_time(every, lambda item: run(*item), parallel, stop)) as done:
            for (cell, seed), result in done:
                data.add(result["data"])
                if len(data) > 1:
                    raise UserError(
                        f"the data changed while the ablation in {out} was under way, so its runs would not compare; "
                        "pack between ablations, and type the command again to begin anew with the data as it is"
                    )
                rows[seed, cell.name] = _row(cell, mode, seed, folder(cell, seed), result)
                found = [rows[seed, cell.name] for cell, seed in every if (seed, cell.name) in rows]
                write_rows(out / ROWS, found)
                on_row(rows[seed, cell.name])
        write_figures(out, found)
    return found


def write_figures(out: Path, rows: Sequence[Row]) -> None:
    """Write the table and the plot of these rows into a folder."""
    write_bytes(out / TABLE, table(rows).encode())
    write_bytes(out / PLOT, draw_effects(rows))


def _check_out(out: Path) -> None:
    """Only what an ablation left is replaced."""
    names = {p.name for p in out.iterdir() if p.name[0] != "."} if out.is_dir() else set()
    ours = {ROWS, TABLE, PLOT, EARLIER, "prefect"} if CELLS in names else set()  # earlier versions had a server there
    if names - ours - {CELLS, "run.lock"}:
        raise UserError(f"{out} has files, such as {min(names)}, but is no ablation's folder; choose another --out")


def _set_aside(out: Path, mode: Mode, planned: Mapping[tuple[str, int], str]) -> None:
    """Move the figures of other techniques, another mode or other settings away; those of these cells are continued."""
    if not (out / ROWS).exists():
        return
    rows = read_rows(out / ROWS)
    if all(row.mode == mode and planned.get((row.technique, row.seed)) == Path(row.folder).name for row in rows):
        return
    folder = out / EARLIER / digest_file(out / ROWS)[:8]
    folder.mkdir(parents=True, exist_ok=True)
    for name in (TABLE, PLOT, ROWS):  # the rows last, so that after a kill this is repeated
        if (out / name).exists():
            (out / name).rename(folder / name)
    log.warning("the figures of another ablation are now in %s; its runs are reused where they are equal", folder)


def _sharing(run_stage: RunStage, cells: Path, locks: Locks) -> RunStage:
    """Copies a stage that another cell has finished instead of running it again, and waits for one that runs it now."""

    def run(job: Job, lock_fd: int) -> None:
        with locks(job.out.name):
            if not (job.out / "stage.json").exists():
                for other in cells.glob(f"*/*/*/{job.out.name}"):
                    if other != job.out and is_finished(other):
                        log.info("%s is copied from %s", job.out, other)
                        _copy(other, job.out)
                        return
            run_stage(job, lock_fd)

    return run


def _copy(source: Path, target: Path) -> None:
    """Copy a finished stage; its record comes last, so that a kill leaves none that looks finished."""
    shutil.rmtree(target, ignore_errors=True)
    staging = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(source, staging)
    staging.rename(target)


def _row(cell: Cell, mode: Mode, seed: int, folder: Path, result: dict[str, Any]) -> Row:
    judged = judged_of(result)
    evaluation = read_output(folder / judged["train_dir"] / "evaluation-val.json", MetricsJson)
    env = read_record(folder / judged["train_dir"])["environment"]
    seconds, tflops = _cost(folder, result)
    return Row(
        mode=mode,
        technique=cell.name,
        against=cell.against,
        on=cell.on,
        seed=seed,
        val_top1=judged["val_top1"],
        num_val=evaluation["num_samples"],
        seconds=round(seconds, 3),
        tflops=round(tflops, 6),
        machine=f"{env.get('processor', 'unknown')}, {env.get('threads', '?')} threads",
        commit=str(env.get("commit", "unknown")),
        folder=str(folder.relative_to(folder.parents[1])),
    )


def judged_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The model that a cell is judged by: the best on val of those after the teacher, if there are any.

    The best of all would be the teacher where a technique ruins its students, and so hide that it does.
    """
    rounds: list[dict[str, Any]] = result["rounds"]
    return max([entry for entry in rounds if entry["role"] != "teacher"] or rounds, key=score_of)


def _cost(folder: Path, result: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds and 10^12 operations of a cell's trainings and labelings.

    They are kept beside the result, because jobs name their inputs by absolute paths, which may be gone later.
    """
    stages = [name for entry in result["rounds"] for name in (entry["train_dir"], entry["label_dir"]) if name]
    path = folder / COST
    cost = read_json(path) if path.exists() else {}
    if cost.get("stages") != stages:
        seconds = tflops = 0.0
        for stage in (folder / name for name in stages if (folder / name / "job.json").exists()):
            lines = read_lines(stage / "timing.jsonl", torn=True)
            seconds += sum(line["seconds"] for line in lines)
            job = read_job(stage / "job.json", check=False)  # the fingerprint has the plugins that matter
            tflops += _flops(job, sum(line["images"] for line in lines), stage) / 1e12
        cost = {"stages": stages, "seconds": seconds, "tflops": tflops}
        write_json(path, cost)
    return cost["seconds"], cost["tflops"]


_FLOPS: dict[str, int] = {}


def _flops(job: Job, num_images: int, stage: Path) -> float:
    """Operations of a finished stage: those of the steps that it took, or its forward passes."""
    from pipeline.evaluate.patches import num_patches
    from pipeline.models.cost import cost_of
    from pipeline.models.format import read_info
    from pipeline.train.flops import flops_of

    if isinstance(job, TrainJob):
        record = read_record(stage)
        key = record["fingerprint"]
        if key not in _FLOPS:
            _FLOPS[key] = flops_of(job, record["outputs"]["steps"])
        return float(_FLOPS[key])
    if isinstance(job, ProbeJob):
        return 0.0  # it reads stored features, which are made once for all cells of an encoder
    assert isinstance(job, LabelJob)
    infos = [read_info(path) for path in job.teachers if path not in job.features]
    return float(sum(cost_of(info).flops * num_patches(job.label, info) for info in infos) * num_images)
