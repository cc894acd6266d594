"""The loop: teacher, labels, selection, noisy student, again. Plain Python, which the Prefect flow calls too."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from pipeline.config import (
    SPLITS,
    Config,
    Finetune,
    Split,
    Start,
    StrongView,
    Training,
    WeakView,
    dump_yaml,
    load_config,
)
from pipeline.errors import UserError
from pipeline.jobs import EvaluateJob, Job, LabelJob, Role, SelectJob, TrainJob
from pipeline.run_folder import check_run_folder, resolve_config, set_aside
from pipeline.shards.dataset import Dataset, check_disjoint, open_split
from pipeline.stage import digest, fingerprint, read_json, run_lock, write_bytes, write_json

log = logging.getLogger("selftrain.loop")

RunStage = Callable[[Job, int], None]
"""Runs one stage to completion, or raises. The int is the run lock's file descriptor, for child processes."""


@dataclass(frozen=True)
class RoundReport:
    """One trained model of the run, as result.json and the artifacts show it."""

    round: int
    role: Role
    model: str
    val_top1: float
    interval: tuple[float, float]
    """Wilson 95% interval of val_top1."""
    num_selected: int | None
    """Distinct pseudo-labeled images it trained on; None for a supervised model."""
    kept: bool
    """Whether it became the next teacher."""
    train: Path
    label: Path | None
    select: Path | None

    def to_json(self, run_dir: Path) -> dict[str, Any]:
        """As an entry of result.json's `rounds`, with paths relative to the run folder."""
        entry = {**asdict(self), "interval": list(self.interval)}
        for name in ("train", "label", "select"):
            path: Path | None = entry.pop(name)
            entry[f"{name}_dir"] = str(path.relative_to(run_dir)) if path else None
        return entry


@dataclass
class Run:
    """A run in progress: the resolved config, and how to run a stage in its folder."""

    config: Config
    folder: Path
    run_stage: RunStage
    lock_fd: int
    accept_environment: bool
    data: str
    """Digest of the images and labels of all splits."""

    def stage(self, job: Job, inputs: tuple[dict[str, Any], dict[str, str]], parent: str) -> Path:
        """Run a job in RUN/parent/KIND-FP8, or reuse it if it is there, finished."""
        name = f"{job.kind}-{fingerprint(job.kind, *inputs)[:8]}"
        job = job.model_copy(update={"out": self.folder / parent / name})
        if _is_finished(job):
            log.info("%s is finished, reused", job.out)
        else:
            self.run_stage(job, self.lock_fd)
        return job.out

    def train(self, role: Role, round: int, training: Training, selection: Path | None, parent: str) -> Path:
        """A train stage."""
        from pipeline.train.stage import train_inputs

        job = TrainJob(
            out=self.folder,
            role=role,
            round=round,
            seed=self.config.seed,
            data=self.config.data,
            training=training,
            evaluate=self.config.evaluate,
            runtime=self.config.runtime,
            selection=selection,
            accept_environment=self.accept_environment,
        )
        return self.stage(job, train_inputs(job), parent)

    def label(self, round: int, teachers: list[Path]) -> Path:
        """A label stage."""
        from pipeline.labels.predict import label_inputs

        job = LabelJob(
            out=self.folder,
            round=round,
            data=self.config.data,
            label=self.config.for_round(round).label,
            runtime=self.config.runtime,
            teachers=tuple(teachers[: self.config.for_round(round).label.ensemble]),
            accept_environment=self.accept_environment,
        )
        return self.stage(job, label_inputs(job), f"rounds/{round}")

    def select(self, round: int, labels: Path) -> Path:
        """A select stage."""
        from pipeline.labels.select import select_inputs

        job = SelectJob(
            out=self.folder,
            round=round,
            seed=self.config.seed,
            data=self.config.data,
            select=self.config.for_round(round).select,
            labels=labels,
            accept_environment=self.accept_environment,
        )
        return self.stage(job, select_inputs(job), f"rounds/{round}")

    def evaluate(self, split: Split, models: dict[str, Path]) -> dict[str, Any]:
        """An evaluate stage; returns {name: metrics}."""
        from pipeline.evaluate.stage import evaluate_inputs

        job = EvaluateJob(
            out=self.folder,
            data=self.config.data,
            split=split,
            models=models,
            evaluate=self.config.evaluate,
            runtime=self.config.runtime,
            accept_environment=self.accept_environment,
        )
        return cast(dict[str, Any], read_json(self.stage(job, evaluate_inputs(job), ".") / f"{split}.json"))


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
    with run_lock(run_dir) as lock_fd:
        earlier = load_config(run_dir / "config.yaml") if (run_dir / "config.yaml").exists() else None
        config = resolve_config(config, earlier)
        data = _check_data(config)
        if earlier is not None:
            set_aside(run_dir, earlier, config, data)
        write_bytes(run_dir / "config.yaml", dump_yaml(config).encode())
        run = Run(config, run_dir, run_stage, lock_fd, accept_environment, data)
        rounds, best = _rounds(run, on_round or (lambda report: None))
        result = _result(run, rounds, best, tests={}, control=None)
        write_json(run_dir / "result.json", result)  # every choice is fixed and written before test is read
        has_students = any(r.role == "student" for r in rounds)
        control = _control(run, rounds, best) if config.evaluate.control and has_students else None
        models = {"teacher": rounds[0].train, "final": best.train, **({"control": control} if control else {})}
        if _has_test(config):
            result = _result(run, rounds, best, run.evaluate("test", models), control)
            write_json(run_dir / "result.json", result)
        else:
            log.warning("the data has no test split: result.json has val figures only")
    return result


def _is_finished(job: Job) -> bool:
    record = job.out / "stage.json"
    if not record.exists() or not read_json(record)["complete"]:
        return False
    if isinstance(job, LabelJob):
        from pipeline.labels.predict import missing_labels

        return not missing_labels(job)
    return True


def _rounds(run: Run, on_round: Callable[[RoundReport], None]) -> tuple[list[RoundReport], RoundReport]:
    """Teacher, students and fine-tune; returns all of them and the best on val (the earliest on ties)."""
    config = run.config
    teacher = _report(run, "teacher", 0, run.train("teacher", 0, config.teacher, None, "rounds/0"))
    _check_teacher(teacher, len(_open(config, "labeled").classes))
    on_round(teacher)
    rounds, teachers, num_worse = [teacher], [teacher], 0
    for number in range(1, config.rounds.num_rounds + 1):
        labels = run.label(number, [t.train for t in teachers])
        selection = run.select(number, labels)
        training = _student(config, number, teachers[0])
        folder = run.train("student", number, training, selection, f"rounds/{number}")
        student = _report(run, "student", number, folder, labels, selection)
        kept = student.val_top1 >= teachers[0].val_top1 - config.rounds.tolerance
        student = RoundReport(**{**vars(student), "kept": kept})
        rounds.append(student)
        on_round(student)
        if kept:
            teachers.insert(0, student)
            num_worse = 0
        else:
            num_worse += 1
            log.warning("round %d: the student is worse on val than its teacher, which stays", number)
            if num_worse >= config.rounds.patience:
                log.warning("stopped after round %d: rounds.patience is %d", number, config.rounds.patience)
                break
    if config.finetune is not None:
        number, base = rounds[-1].round + 1, _best(rounds)
        folder = _finetune(run, config.finetune, "finetune", number, base.round, base.train, f"rounds/{number}")
        finetuned = _report(run, "finetune", number, folder)
        rounds.append(finetuned)
        on_round(finetuned)
    return rounds, _best(rounds)


def _best(rounds: list[RoundReport]) -> RoundReport:
    return max(rounds, key=lambda r: (r.val_top1, -r.round))


def _training(config: Config, number: int) -> Training:
    """The training of a round as the config has it."""
    return config.teacher if number == 0 else config.for_round(number).student


def _student(config: Config, number: int, teacher: RoundReport) -> Training:
    student = _training(config, number)
    if config.rounds.start == "scratch":
        return student
    return student.model_copy(update={"start": Start(model=str(teacher.train), mode="init")})


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
    """A supervised model at the final student's budget: its architecture, recipe, noise, optimizer steps and batch
    size, with labeled images in every slot; fine-tuned as well if the final model is.

    Where students start from their teacher's weights, the final one has the steps of all students before it behind it;
    the control then starts from the round-0 teacher and takes as many.
    """
    last = max(_best([r for r in rounds if r.role != "finetune"]).round, 1)
    student = _training(run.config, last)
    inherits = run.config.rounds.start == "init"
    ancestors = [r.round for r in rounds if r.role == "student" and r.kept and r.round < last]
    steps = student.steps + sum(run.config.for_round(number).student.steps for number in ancestors)
    training = student.model_copy(
        update={
            "batch_size": student.batch_size + student.unlabeled_batch_size,
            "unlabeled_ratio": 0.0,
            "noise_labeled": True,
            "steps": steps if inherits else student.steps,
            "start": Start(model=str(rounds[0].train), mode="init") if inherits else student.start,
        }
    )
    control = run.train("control", last, training, None, "control")
    if best.role == "finetune" and run.config.finetune is not None:
        return _finetune(run, run.config.finetune, "control", best.round, last, control, "control")
    return control


def _report(
    run: Run, role: Role, round: int, folder: Path, labels: Path | None = None, selection: Path | None = None
) -> RoundReport:
    metrics = read_json(folder / "evaluation-val.json")
    low, high = metrics["interval"]
    info = read_json(folder / "model.json")
    outputs = read_json(selection / "stage.json")["outputs"] if selection else {}
    return RoundReport(
        round=round,
        role=role,
        model=info["architecture"],
        val_top1=metrics["top1"],
        interval=(low, high),
        num_selected=outputs.get("num_selected"),
        kept=True,
        train=folder,
        label=labels,
        select=selection,
    )


def _result(
    run: Run, rounds: list[RoundReport], best: RoundReport, tests: dict[str, Any], control: Path | None
) -> dict[str, Any]:
    def top1(name: str) -> float | None:
        return tests[name]["top1"] if name in tests else None

    return {
        "schema": 1,
        "data": run.data,
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


def _open(config: Config, split: Split) -> Dataset:
    return open_split(config.data, split)


def _has_test(config: Config) -> bool:
    from pipeline.shards.manifest import read_manifest

    root = config.data.root
    return bool(config.data.test) or (root is not None and any(s.split == "test" for s in read_manifest(root).shards))


def _check_data(config: Config) -> str:
    """Refuse overlapping splits; returns a digest of all of them."""
    splits = [split for split in SPLITS if split != "test" or _has_test(config)]
    datasets = {split: _open(config, split) for split in splits}
    check_disjoint(datasets)
    return digest({split: dataset.fingerprint for split, dataset in datasets.items()})


def _check_teacher(teacher: RoundReport, num_classes: int) -> None:
    found = f"on val ({teacher.val_top1:.1%} of {num_classes} classes)"
    fix = "raise teacher.steps, check teacher.optimizer.lr, or look at the labels in the report"
    if teacher.val_top1 <= 1 / num_classes:
        raise UserError(f"the round-0 teacher is at chance {found}, so its labels would teach nothing; {fix}")
    if teacher.interval[0] <= 1 / num_classes:
        log.warning("the round-0 teacher cannot be told from chance %s: too few val images, or %s", found, fix)
