"""A whole run: data, the method's rounds, fine-tune, control, test, result. Plain Python, which the flow calls too."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import (
    SPLITS,
    Config,
    Finetune,
    Optimizer,
    Split,
    Start,
    StrongView,
    Training,
    WeakView,
    dump_yaml,
    load_config,
    unread_keys,
)
from pipeline.errors import UserError
from pipeline.jobs import Role
from pipeline.methods import METHODS
from pipeline.methods.meta import shared_teacher
from pipeline.run import RoundReport, Run, RunStage, best_of
from pipeline.run_folder import check_run_folder, resolve_config, set_aside
from pipeline.shards.dataset import Dataset, check_disjoint, has_test, open_split
from pipeline.stage import digest, run_lock, write_bytes, write_json

log = logging.getLogger("selftrain.loop")


def run_loop(
    config: Config,
    run_dir: Path,
    *,
    run_stage: RunStage,
    on_round: Callable[[RoundReport], None] | None = None,
    accept_environment: bool = False,
) -> dict[str, Any]:
    """Run or resume the whole loop in `run_dir`; returns the content of its result.json.

    Args:
        config: As the user wrote it; it is resolved for this machine and written into the run folder.
        run_dir: The run folder. What is finished there is reused, what was begun is resumed, nothing is overwritten.
        run_stage: Runs one stage, such as `launch.run_job`.
        on_round: Called with every round when its model is trained and judged.
        accept_environment: Resume stages that were begun in another environment.

    Raises:
        UserError: bad config or data, a teacher at chance, another process in this run folder.
        Interrupted: stopped by a signal; the same call goes on.
    """
    run_dir = run_dir.resolve()
    check_run_folder(run_dir)
    if unread := unread_keys(config):
        log.warning("method %s does not read %s", config.method, ", ".join(unread))
    with run_lock(run_dir) as lock_fd:
        earlier = load_config(run_dir / "config.yaml") if (run_dir / "config.yaml").exists() else None
        config = resolve_config(config, earlier)
        datasets = _check_data(config)
        data = {split: dataset.fingerprint for split, dataset in datasets.items()}
        skipped = {split: dataset.num_skipped for split, dataset in datasets.items() if dataset.num_skipped}
        if earlier is not None:
            set_aside(run_dir, earlier, config, digest(data))
        write_bytes(run_dir / "config.yaml", dump_yaml(config).encode())
        run = Run(config, run_dir, run_stage, lock_fd, accept_environment, data)
        if config.method == "two_moons":
            result = {"schema": 1, "data": digest(data), "rounds": [], "final": run.two_moons()}
            write_json(run_dir / "result.json", result)
            return result
        rounds, best = _rounds(run, on_round or (lambda report: None))
        result = {**_result(run, rounds, best, tests={}, control=None), "skipped": skipped}
        write_json(run_dir / "result.json", result)  # every choice is fixed and written before test is read
        has_unlabeled = config.method == "uda" or any(r.role == "student" for r in rounds)
        control = _control(run, rounds, best) if config.evaluate.control and has_unlabeled else None
        models = {"teacher": rounds[0].train, "final": best.train, **({"control": control} if control else {})}
        if "test" not in data:
            log.warning("the data has no test split: result.json has val figures only")
        tests = run.evaluate("test", models) if "test" in data else {}
        result |= _result(run, rounds, best, tests, control)
        write_json(run_dir / "result.json", result)
    return result


def _rounds(run: Run, on_round: Callable[[RoundReport], None]) -> tuple[list[RoundReport], RoundReport]:
    """The method's rounds and the fine-tune; returns all of them and the best on val (the earliest on ties).

    Fine-tuned is the best so far, but with `method: meta` the student, which has met no labeled image yet (Pham 2021).
    """
    config = run.config
    rounds = METHODS[config.method](run, on_round)
    if config.finetune is not None:
        number, base = rounds[-1].round + 1, rounds[-1] if config.method == "meta" else best_of(rounds)
        folder = _finetune(run, config.finetune, "finetune", number, base.round, base.train, f"rounds/{number}")
        finetuned = run.report("finetune", number, folder)
        rounds.append(finetuned)
        on_round(finetuned)
    return rounds, best_of(rounds)


def _training(config: Config, number: int) -> Training:
    """The training of a round as the config has it."""
    return config.teacher if number == 0 else config.for_round(number).student


def _finetune(run: Run, finetune: Finetune, role: Role, number: int, base_round: int, model: Path, parent: str) -> Path:
    """Fine-tune a model, whose recipe was that of `base_round`."""
    from pipeline.models.folder import read_info

    info = read_info(model)
    training = Training(
        model=info.architecture,
        model_args=info.model_args,
        mean=info.mean,
        std=info.std,
        weak=WeakView(crop="none", flip=_training(run.config, base_round).weak.flip),
        strong=StrongView(num_ops=0),
        noise_labeled=False,
        start=Start(model=str(model), mode="init"),
        **dict(finetune),
    )
    return run.train(role, number, training, None, parent)


def _control(run: Run, rounds: list[RoundReport], best: RoundReport) -> Path:
    """A supervised model at the final model's budget: its architecture, recipe, noise, optimizer steps and batch
    size, with labeled images in every slot; fine-tuned as well if the final model is.

    Where students start from their teacher's weights, the final one has the steps of all students before it behind it;
    the control then starts from the round-0 teacher and takes as many.
    """
    if best.role == "finetune" and run.config.method == "meta":
        base = next(r for r in rounds if r.role == "student")
    else:
        base = best_of([r for r in rounds if r.role != "finetune"])
    # A teacher that saw unlabeled images is held against its own recipe, one that saw none against its students'.
    last = max(base.round, 1)
    student = (
        shared_teacher(run.config)
        if base.round == 0 and run.config.teacher_sees_unlabeled
        else _training(run.config, last)
    )
    inherits = run.config.method == "noisy_student" and run.config.rounds.start == "init"
    ancestors = [r.round for r in rounds if r.role == "student" and r.kept and r.round < last]
    steps = student.steps + sum(run.config.for_round(number).student.steps for number in ancestors)
    training = student.model_copy(
        update={
            "batch_size": student.batch_size + student.unlabeled_batch_size,
            "unlabeled_ratio": 0.0,
            "noise_labeled": True,
            "optimizer": _control_optimizer(run.config, student),
            "steps": steps if inherits else student.steps,
            "start": Start(model=str(rounds[0].train), mode="init") if inherits else student.start,
        }
    )
    control = run.train("control", last, training, None, "control")
    if best.role == "finetune" and run.config.finetune is not None:
        return _finetune(run, run.config.finetune, "control", best.round, last, control, "control")
    return control


def _control_optimizer(config: Config, student: Training) -> Optimizer:
    """At the student's learning rate, where that is scaled with its labeled images alone.

    Not so for Noisy Student by sgd, whose gradient is then larger by as much (`loss_normalization`).
    """
    same = student.loss_normalization == "total" or (
        config.method == "noisy_student" and student.optimizer.name == "sgd"
    )
    if same:
        return student.optimizer
    size = round(student.optimizer.lr_batch_size * (1 + student.unlabeled_ratio))
    return student.optimizer.model_copy(update={"lr_batch_size": size})


def _result(
    run: Run, rounds: list[RoundReport], best: RoundReport, tests: dict[str, Any], control: Path | None
) -> dict[str, Any]:
    def top1(name: str) -> float | None:
        return tests[name]["top1"] if name in tests else None

    return {
        "schema": 1,
        "data": digest(run.data),
        "rounds": [r.to_json(run.folder) for r in rounds],
        "final": {
            "round": best.round,
            "val_top1": best.val_top1,
            "test_top1": top1("final"),
            "teacher_test_top1": top1("teacher"),
            "control_test_top1": top1("control"),
            "model_dir": str(best.train.relative_to(run.folder)),
            "control_dir": str(control.relative_to(run.folder)) if control else None,
            "test": tests,
        },
    }


def _check_data(config: Config) -> dict[Split, Dataset]:
    """Open every split, and refuse overlapping ones."""
    splits = [split for split in SPLITS if split != "test" or has_test(config.data)]
    datasets = {split: open_split(config.data, split) for split in splits}
    check_disjoint(datasets)
    if config.method != "noisy_student" and config.teacher.start is None:  # selections check it, and may allow it
        _check_classes(datasets["labeled"])
    for split, dataset in datasets.items():
        if dataset.num_skipped:
            log.warning("data.bad_images is skip: %d bad samples of %s are left out", dataset.num_skipped, split)
    return datasets


def _check_classes(labeled: Dataset) -> None:
    present = set(np.unique(labeled.labels).tolist())
    empty = [name for number, name in enumerate(labeled.classes) if number not in present]
    if empty:
        raise UserError(
            f"the labeled split has no image of {len(empty)} of {len(labeled.classes)} classes, such as {empty[0]!r}, "
            "which nothing else could teach; label some, or pack without these classes"
        )
