"""The contract between a method and a run, and the parts that methods share."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipeline.config import Config, NetworkSettings, Section, Split, Training, changed
from pipeline.config.methods import METHOD_CONFIGS
from pipeline.config.unread import settings_of
from pipeline.evaluate.metrics import MetricsJson
from pipeline.files import read_lines
from pipeline.methods.round import Round, judged
from pipeline.shards.dataset import open_split
from pipeline.stages.folder import check_output, read_output, stage_record
from pipeline.stages.jobs import EmbedJob, Job, LabelJob, MergeJob, ProbeJob, Role, SelectJob, TrainJob
from pipeline.stages.kinds import load_object

log = logging.getLogger("selftrain.loop")

_NEXT_DRAW = 1_000_003
"""Between the seeds of two draws, so that they are none of other runs that count from 0."""


OnRound = Callable[[Round], None]
"""It is called with each round when the round's model is trained and evaluated."""


@dataclass
class Stages(ABC):
    """The stages that a method may ask a run for. Each call runs a stage in its folder, or reuses a finished one."""

    config: Config
    """The run's config, resolved for this machine."""
    folder: Path
    """The run folder."""

    @cached_property
    def num_classes(self) -> int:
        """The number of classes of the labeled split."""
        return len(open_split(self.config.data, "labeled").classes)

    @abstractmethod
    def stage(self, job: Job, parent: str) -> Path:
        """Run a job of any kind in RUN/parent/KIND-FP8, where its fingerprint begins with FP8; returns the folder."""

    def train(
        self,
        role: Role,
        round: int,
        training: Training,
        parent: str,
        *,
        method: Method | None = None,
        teacher: NetworkSettings | None = None,
        selection: Path | None = None,
        labels: Path | None = None,
        draw: int = 0,
    ) -> Path:
        """Train in RUN/parent by the method's learner, else on labels and pseudo-labels; returns the stage folder.

        Draws from 1 on are the same training by seeds of their own.
        """
        values: dict[str, Any] = {"teacher": teacher, "selection": selection, "labels": labels}
        if method is not None:
            values |= {"method": method.name, "learner": method.learner, "settings": method.settings(self.config)}
        config = changed(self.config, seed=self.config.seed + _NEXT_DRAW * draw)
        return self.stage(TrainJob.of(config, self.folder, role, round, training, **values), parent)

    def embed(self, training: Training, splits: Sequence[Split] = ("labeled", "unlabeled", "val")) -> Path:
        """Store the features of the encoder that a training with a probe describes; returns the folder."""
        job = EmbedJob.of_run(self.config, out=self.folder, training=training, splits=tuple(splits))
        return self.stage(job, "features")

    def probe(
        self, role: Role, round: int, training: Training, parent: str, features: Path, selection: Path | None = None
    ) -> Path:
        """Fit a probe on stored features in RUN/parent, on labels and on a selection; returns the stage folder."""
        values = {"role": role, "round": round, "training": training, "features": features, "selection": selection}
        folder = self.stage(ProbeJob.of_run(self.config, out=self.folder, **values), parent)
        self._features[folder] = features
        return folder

    def label(self, round: int, teachers: Sequence[Path], committee: Sequence[Path] = ()) -> Path:
        """Label the unlabeled images with the mean of these teachers, the newest first, and of a committee; returns the
        folder. Probes that this run fitted label from their features. Labels of others are averaged with them."""
        features = {path: self._features[path] for path in (*teachers, *committee) if path in self._features}
        job = LabelJob.of(self.config, self.folder, round, teachers, committee, features=features)
        labels = self.stage(job, f"rounds/{round}")
        if not self.config.for_round(round).label.others:
            return labels
        return self.stage(MergeJob.of(self.config, self.folder, round, labels), f"rounds/{round}")

    @cached_property
    def _features(self) -> dict[Path, Path]:
        """Folder of a probe -> the embed stage that it read."""
        return {}

    def select(self, round: int, labels: Path) -> Path:
        """Choose pseudo-labels; returns the folder of the selection."""
        return self.stage(SelectJob.of(self.config, self.folder, round, labels), f"rounds/{round}")

    @abstractmethod
    def enter(self, train: Path, role: Role, round: int) -> None:
        """Note a model as one of the run, such as a teacher that a stage left beside its own model."""

    def judge(
        self,
        role: Role,
        round: int,
        train: Path,
        labels: Path | None = None,
        selection: Path | None = None,
        judges: Sequence[Path] = (),
    ) -> Round:
        """The round of a finished training, with its figures on val; with those of its judges, their mean decides."""
        self.enter(train, role, round)
        metrics = read_output(train / "evaluation-val.json", MetricsJson)
        low, high = metrics["interval"]
        outputs = stage_record(selection)["outputs"] if selection else {}
        return Round(
            round=round,
            role=role,
            model=read_output(train / "model.json")["architecture"],
            val_top1=metrics["top1"],
            interval=(low, high),
            num_selected=outputs.get("num_selected"),
            kept=True,
            train=train,
            label=labels,
            select=selection,
            judged=judged((train, *judges), self.config.rounds.judge_by),
            judges=tuple(judges),
        )


@dataclass(frozen=True)
class Method:
    """One method: what a run, a config and a report need to know of it."""

    name: str
    """The value of `method` in the config."""
    title: str
    """The name that people read."""
    rounds: str
    """`module:function` of (stages, on_round) -> rounds, which trains all models that the run chooses from."""
    learner: str
    """`module:class` of the learner that takes the steps, a subclass of `train.learner.Learner`."""
    recipe: Callable[[Config, int], Training]
    """(config, round) -> the settings that the round's model is trained with."""
    control: Callable[[Config, Sequence[Round], Round], Training]
    """(config, rounds, round) -> the supervised training that the round's model is compared with."""
    finetunes: Literal["best", "student"] = "best"
    """The model that is fine-tuned: the best one on val, or the student even if another is better."""
    needs_every_class: bool = False
    """Whether each class must have labeled images. Set it if nothing before the training would find a class without."""
    panels: tuple[str, ...] = ()
    """Its plots in the report: `module:function` from a RunRecord to a `report.panels.Panel`, or to None."""

    def run_rounds(self, stages: Stages, on_round: OnRound) -> list[Round]:
        """Run the method's rounds; returns one entry per trained model."""
        result: list[Round] = load_object(self.rounds)(stages, on_round)
        return result

    def settings(self, config: Config) -> Mapping[str, Section]:
        """The sections of the config that belong to the learner."""
        return settings_of(config)

    def reads(self, section: str) -> bool:
        """Whether the method reads this section of the config."""
        return section in METHOD_CONFIGS[self.name].reads


# ------------------------------------------------------------------------------------------------ what methods share


def one_training(method: Method, stages: Stages, on_round: OnRound) -> list[Round]:
    """Run one training, of the section `student`, in place of rounds."""
    folder = stages.train("student", 1, stages.config.student, "rounds/1", method=method)
    student = stages.judge("student", 1, folder)
    warn_of_chance(student, stages.num_classes, fix_of("student"))
    shares = [line["mask_rate"] for line in read_lines(check_output(folder / "metrics.jsonl")) if "mask_rate" in line]
    if shares and not any(shares):
        log.warning("no unlabeled image was ever sure enough to teach: lower the threshold, or raise student.steps")
    on_round(student)
    return [student]


def supervised(training: Training, *, by_labels: bool) -> Training:
    """A supervised training at the budget of one with unlabeled images.

    Network, recipe, optimizer steps and images per step are the same. All images are labeled and get the strong view.
    What is distilled from a round's teacher is left out, because it stems from unlabeled images.

    Args:
        training: The training with unlabeled images.
        by_labels: Whether the number of labeled images set its learning rate. The supervised training, which has more
            of them, then keeps that rate instead of a larger one.
    """
    optimizer = training.optimizer
    if by_labels:
        size = round(optimizer.lr_batch_size * (1 + training.unlabeled_ratio))
        optimizer = changed(optimizer, lr_batch_size=size)
    distills = training.distillation is not None and training.distillation.model is not None
    return changed(
        training,
        distillation=training.distillation if distills else None,
        batch_size=training.batch_size + training.unlabeled_batch_size,
        unlabeled_ratio=0.0,
        noise_labeled=True,
        optimizer=optimizer,
    )


def warn_of_chance(first: Round, num_classes: int, fix: str) -> None:
    """Log a warning if the first model's accuracy on val could be chance."""
    if first.interval[0] <= 1 / num_classes:
        log.warning(
            "the %s of round %d cannot be told from chance on val (%.1f%% of %d classes): too few val images, or %s",
            first.role,
            first.round,
            100 * first.val_top1,
            num_classes,
            fix,
        )


def fix_of(section: str) -> str:
    """The advice for a model at chance that this section of the config trained."""
    return f"raise {section}.steps, check {section}.optimizer.lr, or look at the labels in the report"
