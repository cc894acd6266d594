"""The contract of a method, and what methods share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pipeline.config import Config, NetworkSettings, Section, Training, changed
from pipeline.config.methods import METHOD_CONFIGS
from pipeline.config.unread import settings_of
from pipeline.stages.jobs import Role
from pipeline.stages.kinds import load_object

log = logging.getLogger("selftrain.loop")


@dataclass(frozen=True)
class Round:
    """One trained model of a run, as result.json and the artifacts show it."""

    round: int
    role: Role
    model: str
    val_top1: float
    interval: tuple[float, float]
    """Wilson 95% interval of val_top1."""
    num_selected: int | None
    """Distinct pseudo-labeled images it trained on; None without a selection."""
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


def best_of(rounds: Sequence[Round]) -> Round:
    """The best on val, the earliest on ties."""
    return max(rounds, key=lambda r: (r.val_top1, -r.round))


OnRound = Callable[[Round], None]
"""Called with every round when its model is trained and judged."""


class Stages(Protocol):
    """What a method may ask of a run. Each call runs a stage in its folder, or reuses what is finished there."""

    @property
    def config(self) -> Config:
        """The run's config, resolved for this machine."""

    @property
    def num_classes(self) -> int:
        """Classes of the labeled split."""

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
    ) -> Path:
        """Train in RUN/parent: by the method's learner, or without one as supervised trainings and students are."""

    def label(self, round: int, teachers: Sequence[Path]) -> Path:
        """Label the unlabeled images with the mean of these teachers, of which the newest come first."""

    def select(self, round: int, labels: Path) -> Path:
        """Choose pseudo-labels."""

    def judge(
        self, role: Role, round: int, train: Path, labels: Path | None = None, selection: Path | None = None
    ) -> Round:
        """What a finished training came to."""


@dataclass(frozen=True)
class Method:
    """One method."""

    name: str
    """As the config's `method` has it."""
    title: str
    """For people."""
    rounds: str
    """`module:function` (stages, on_round) -> rounds: what the run does between its data and its choice."""
    learner: str
    """`module:class` of what a step does, a subclass of `train.learner.Learner`."""
    recipe: Callable[[Config, int], Training]
    """The recipe of the model of a round."""
    control: Callable[[Config, Sequence[Round], Round], Training]
    """The supervised training that the model of a round is held against."""
    finetunes: Literal["best", "student"] = "best"
    """What a fine-tune takes: the best model on val, or the student even if it is not."""
    needs_every_class: bool = False
    """Whether every class must have labeled images, because nothing before a training could find that one has none."""
    panels: tuple[str, ...] = ()
    """Plots of the report, by their names in `report.panels`."""

    def run_rounds(self, stages: Stages, on_round: OnRound) -> list[Round]:
        """Run the rounds."""
        result: list[Round] = load_object(self.rounds)(stages, on_round)
        return result

    def settings(self, config: Config) -> Mapping[str, Section]:
        """The sections of the config that belong to the learner."""
        return settings_of(config)

    def reads(self, section: str) -> bool:
        """Whether it reads this section of the config."""
        return section in METHOD_CONFIGS[self.name].reads


# ------------------------------------------------------------------------------------------------ what methods share


def one_training(method: Method, stages: Stages, on_round: OnRound) -> list[Round]:
    """One training of the section `student` in place of rounds."""
    folder = stages.train("student", 1, stages.config.student, "rounds/1", method=method)
    student = stages.judge("student", 1, folder)
    warn_of_chance(student, stages.num_classes, fix_of("student"))
    on_round(student)
    return [student]


def supervised(training: Training, *, by_labels: bool) -> Training:
    """A supervised training at the budget of one with unlabeled images: its network, recipe, noise, optimizer steps and
    images per step, with a labeled image in every slot.

    Args:
        training: The one with unlabeled images.
        by_labels: Whether its learning rate is that of its labeled images alone, so that the control, which has more of
            them, must not get a larger one.
    """
    optimizer = training.optimizer
    if by_labels:
        size = round(optimizer.lr_batch_size * (1 + training.unlabeled_ratio))
        optimizer = changed(optimizer, lr_batch_size=size)
    return changed(
        training,
        batch_size=training.batch_size + training.unlabeled_batch_size,
        unlabeled_ratio=0.0,
        noise_labeled=True,
        optimizer=optimizer,
    )


def warn_of_chance(first: Round, num_classes: int, fix: str) -> None:
    """Warn of a first model whose accuracy on val could be luck."""
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
    """What to do about a model at chance, whose training is that section of the config."""
    return f"raise {section}.steps, check {section}.optimizer.lr, or look at the labels in the report"
