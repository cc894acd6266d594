"""A whole run: data, the method's rounds, fine-tune, control, test, result. It is plain Python, also for the flow."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import SPLITS, Config, Split, dump_yaml, semantic, unread_beside, unread_keys
from pipeline.config.unread import by_fix
from pipeline.errors import UserError
from pipeline.files import write_bytes, write_csv, write_sealed
from pipeline.methods import METHODS
from pipeline.methods.method import Method, OnRound
from pipeline.methods.round import best_of
from pipeline.runs.beside import beside
from pipeline.runs.control import fit_probe, train_control
from pipeline.runs.dry_run import check_networks
from pipeline.runs.finetune import finetune
from pipeline.runs.folder import check_run_folder, earlier_config, resolve_config, set_aside
from pipeline.runs.inputs import files_of
from pipeline.runs.ledger import Ledger
from pipeline.runs.result import FINAL, models_of, result_of
from pipeline.runs.run import OnReuse, Run, RunStage
from pipeline.shards.dataset import Dataset, check_disjoint, has_test, left_out, open_split, warn_of_left_out
from pipeline.stages.fingerprint import digest
from pipeline.stages.kinds import KINDS
from pipeline.stages.lock import read_lock, run_lock
from pipeline.stages.nodes import leading

log = logging.getLogger("selftrain.loop")

LEFT_OUT = "left_out.csv"


def run_loop(
    config: Config,
    run_dir: Path,
    *,
    run_stage: RunStage,
    on_round: OnRound = lambda _: None,
    on_reuse: OnReuse = lambda _: None,
    accept_environment: bool = False,
    read_test: bool = True,
) -> dict[str, Any]:
    """Run or resume the whole loop in `run_dir`; returns the content of its result.json.

    Args:
        config: The config as the user wrote it. It is resolved for this machine and written into the run folder.
        run_dir: The run folder. Finished stages are reused, begun ones are resumed, and nothing is overwritten.
        run_stage: Runs one stage, as `launch.run_job` does.
        on_round: Is called with each round when its model is trained and evaluated.
        on_reuse: Is called with the job of each stage that was finished before, in place of `run_stage`.
        accept_environment: Whether to resume stages that were begun in another environment.
        read_test: Whether to measure the final model on test. Turn it off where runs are compared to choose one.

    Raises:
        UserError: the config or the data is bad, a network cannot take images of its size, a teacher is at chance, or
            another process uses the run folder.
        Interrupted: a signal stopped the run; the same call goes on.
    """
    run_dir = run_dir.resolve()
    check_run_folder(run_dir)
    method = METHODS[config.method]
    for fix, unread in by_fix(config, unread_keys(config)).items():
        log.warning("method %s does not read %s%s", method.name, ", ".join(unread), fix and f"; {fix} if it should")
    for sentence in unread_beside(config):
        log.warning("%s", sentence)
    with contextlib.ExitStack() as held:
        lock_fd = held.enter_context(run_lock(run_dir))
        held.enter_context(leading(run_dir, config.runtime.nodes))
        if isinstance(config.data.root, Path):
            held.enter_context(read_lock(config.data.root))  # images that come meanwhile wait until this run has ended
        earlier = earlier_config(run_dir)
        config = resolve_config(config, earlier)
        datasets = _check_data(config, method)
        check_networks(config, method, len(datasets["labeled"].classes))
        files = files_of(config)  # what is missing is told now, and not after the teacher was trained
        data = {split: dataset.fingerprint for split, dataset in datasets.items()}
        if earlier is not None:
            set_aside(run_dir, earlier, config, digest(data), files)
        versions = {name: kind.version for name, kind in KINDS.items()}
        ledger = Ledger(run_dir, digest([semantic(config), data, versions]))
        write_bytes(run_dir / "config.yaml", dump_yaml(config).encode())  # after the ledger
        _list_left_out(run_dir, datasets)

        run = Run(config, run_dir, run_stage, lock_fd, accept_environment, data, files, ledger, on_reuse)
        rounds = finetune(run, method, method.run_rounds(run, on_round), on_round)
        final = best_of(rounds)
        skipped: dict[str, int] = {split: len(d.skipped) for split, d in datasets.items() if d.skipped}
        more = beside(config, rounds, final)
        val = run.evaluate("val", {FINAL: final.train, **more.members}, **more.job()) if more else {}
        result = result_of(run, rounds, final, beside=more.to_json(run.folder, val), skipped=skipped)
        write_sealed(run_dir / "result.json", result)  # every choice is made and written before test is read

        sees_unlabeled = any(r.role == "student" for r in rounds)
        control = train_control(run, method, rounds, final) if config.evaluate.control and sees_unlabeled else None
        probe = fit_probe(run, method, final)
        tests = {}
        if read_test and "test" in data:
            models = models_of(rounds, final, control, probe)
            tests = run.evaluate("test", {**models, **more.members}, **more.job())
        elif read_test:
            log.warning("the data has no test split: result.json has val figures only")
        result = result_of(
            run,
            rounds,
            final,
            control=control,
            probe=probe,
            tests=tests,
            beside=more.to_json(run.folder, val),
            skipped=skipped,
        )
        write_sealed(run_dir / "result.json", result)
    return result


def _check_data(config: Config, method: Method) -> dict[Split, Dataset]:
    """Open every split; refuse splits that overlap, and classes without labels where the method needs them."""
    splits = [split for split in SPLITS if split != "test" or has_test(config.data)]
    datasets = {split: open_split(config.data, split) for split in splits}
    check_disjoint(datasets)
    if method.needs_every_class and method.recipe(config, 0).start is None:
        _check_classes(datasets["labeled"])
    return datasets


def _list_left_out(run_dir: Path, datasets: dict[Split, Dataset]) -> None:
    """Say what of the tars is not used, and list it in the run folder."""
    rows = [(split, *row) for split, dataset in datasets.items() for row in left_out(dataset)]
    if not rows:
        return
    write_csv(run_dir / LEFT_OUT, ("split", "member", "why"), rows)
    for dataset in datasets.values():
        warn_of_left_out(dataset)
    log.warning("%s lists them", run_dir / LEFT_OUT)


def _check_classes(labeled: Dataset) -> None:
    present = set(np.unique(labeled.labels).tolist())
    empty = [name for number, name in enumerate(labeled.classes) if number not in present]
    if empty:
        raise UserError(
            f"the labeled split has no image of {len(empty)} of {len(labeled.classes)} classes, such as {empty[0]!r}, "
            "which nothing else could teach; label some, or pack without these classes"
        )
