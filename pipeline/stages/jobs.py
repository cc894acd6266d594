"""Jobs: what the process of a stage is told, in the `job.json` of its output folder. A job is frozen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny

from pipeline.config import (
    Config,
    Data,
    Evaluate,
    JudgeBy,
    Label,
    NetworkSettings,
    OtherLabels,
    Runtime,
    Section,
    Select,
    Split,
    Training,
    changed,
)
from pipeline.config.methods import sections
from pipeline.errors import did_you_mean
from pipeline.stages.part import Part, parts_of
from pipeline.stages.plugins import digests

Role = Literal["teacher", "student", "control", "finetune", "committee", "judge", "probe"]


class Job(Section):
    """The fields that every job has."""

    kind: str
    """The kind of stage, a name in `kinds.KINDS`."""
    out: Path
    """The stage folder."""
    data: Data
    runtime: Runtime
    accept_environment: bool = False
    plugins: dict[str, str] = Field(default_factory=digests)
    """File name -> digest of the plugins that wrote the job. The process that runs it must have the same ones."""

    @classmethod
    def of_run(cls, config: Config, **values: Any) -> Self:
        """The job with what all jobs of a run share: data, runtime, and where they have them, evaluation and seed."""
        shared = cls.model_fields.keys() & {"data", "runtime", "evaluate", "seed"}
        return cls(**{name: getattr(config, name) for name in shared}, **values)

    @property
    def title(self) -> str:
        """A short name for people, such as `train teacher (round 0)`."""
        return self.kind

    @property
    def code(self) -> Sequence[str]:
        """The modules that run beside the kind's own function, as `x` or `x:name`. Plugins may define them."""
        return ()

    @property
    def shared_with(self) -> Iterable[Path]:
        """Other folders of the same stage: of its parts and, for a part, that of the whole."""
        return ()


def _as_sections(raw: Any) -> Any:
    known = sections()
    for name in raw:
        if name not in known:
            raise ValueError(f"no method has a section {name!r}, {did_you_mean(name, known)}; does its plugin still?")
    return {name: known[name].model_validate(value) for name, value in raw.items()}


class TrainJob(Job):
    """Train one model, or several together, on labeled images and on all else that the learner reads."""

    kind: Literal["train"] = "train"
    role: Role
    round: int
    seed: int
    training: Training
    """The stage's model, and the stream of images that it sees."""
    method: str = "noisy_student"
    """The method whose learner takes the steps."""
    learner: str = "pipeline.methods.noisy_student.learner:PseudoLabelLearner"
    """The class of that learner, as `module:class`."""
    settings: Annotated[dict[str, SerializeAsAny[Section]], BeforeValidator(_as_sections)] = Field(default_factory=dict)
    """The sections of the config that the learner reads beside `training`, by their names."""
    judge_by: JudgeBy = "top1"
    """The figure that chooses the best weights on val, with `keep: best`."""
    teacher: NetworkSettings | None = None
    """The settings of another network that is trained along; None without one."""
    evaluate: Evaluate
    selection: Path | None = None
    """A finished select stage. Its record names the label stage that it was made from."""
    labels: Path | None = None
    """A finished label stage, for learners that read stored predictions without a selection."""

    @property
    def best_by(self) -> JudgeBy:
        """The figure that a choice in the training is made by; without a choice it is none's business."""
        return self.judge_by if self.training.keep == "best" else "top1"

    @property
    def title(self) -> str:
        """The title with role and round, and with both roles if a teacher is trained along."""
        who = f"teacher and {self.role}" if self.teacher is not None and self.role == "student" else self.role
        return f"train {who} (round {self.round})"

    @property
    def code(self) -> Sequence[str]:
        """The learner, and the sections that it reads."""
        return (self.learner, *(type(section).__module__ for section in self.settings.values()))

    @classmethod
    def of(cls, config: Config, out: Path, role: Role, round: int, training: Training, **values: Any) -> TrainJob:
        """The job of one training of a run, with the run's data, evaluation and runtime."""
        judge_by = config.rounds.judge_by
        return cls.of_run(config, out=out, role=role, round=round, training=training, judge_by=judge_by, **values)


class EmbedJob(Job):
    """Pass every image of some splits through a frozen encoder once, and store the features."""

    kind: Literal["embed"] = "embed"
    training: Training
    """A training with a probe: its network and start are the encoder, and its input is what the encoder sees."""
    splits: tuple[Split, ...]
    """The splits; test is never among them."""

    @property
    def title(self) -> str:
        """The title with the encoder."""
        return f"embed with {self.training.model}"


class ProbeJob(Job):
    """Fit a probe on stored features, of labeled images and, with a selection, of pseudo-labeled ones."""

    kind: Literal["probe"] = "probe"
    role: Role
    round: int
    training: Training
    features: Path
    """A finished embed stage of the training's encoder."""
    selection: Path | None = None
    """A finished select stage; without one the probe sees labels alone."""

    @property
    def title(self) -> str:
        """The title with role and round."""
        return f"probe {self.role} (round {self.round})"


class LabelJob(Job):
    """Predict every unlabeled image with one teacher, or with the mean of several."""

    kind: Literal["label"] = "label"
    round: int
    label: Label
    teachers: tuple[Path, ...]
    """Stage folders or exported files, the newest first."""
    features: dict[Path, Path] = Field(default_factory=dict)
    """Teacher -> the embed stage of its encoder: a probe labels from features, without a pass over the images."""
    part: Part | None = None
    """The part of the shards that this process labels, in `part.folder(whole)`; None for all of them."""

    @property
    def title(self) -> str:
        """The title with the round, and of a part with its number."""
        return f"label (round {self.round}{f', part {self.part}' if self.part else ''})"

    @property
    def whole(self) -> Path:
        """The folder of the whole stage."""
        return self.out.parents[1] if self.part else self.out

    @property
    def shared_with(self) -> Iterable[Path]:
        """The folder of the whole stage and those of its parts, without this one."""
        return [folder for folder in (self.whole, *parts_of(self.whole)) if folder != self.out]

    def of_part(self, part: Part) -> LabelJob:
        """The job of a part of this one, for one machine: parts are how a labeling goes to many."""
        return changed(self, out=part.folder(self.out), part=part, runtime=changed(self.runtime, nodes=1))

    @classmethod
    def of(
        cls,
        config: Config,
        out: Path,
        round: int,
        teachers: Sequence[Path],
        committee: Sequence[Path] = (),
        **values: Any,
    ) -> LabelJob:
        """The job of a labeling pass by the newest teachers, as many as `label.ensemble` says, and the committee."""
        label = changed(config.for_round(round).label, others=())  # which are another stage's
        asked = (*teachers[: label.ensemble], *committee)
        return cls.of_run(config, out=out, round=round, label=label, teachers=asked, **values)


class MergeJob(Job):
    """Average the labels of several teachers, with weights and without a pass over the images."""

    kind: Literal["merge"] = "merge"
    round: int
    label: Label
    labels: tuple[OtherLabels, ...]
    """Label stages and tables of scores, with their weights."""

    @property
    def title(self) -> str:
        """The title with the round."""
        return f"merge labels (round {self.round})"

    @classmethod
    def of(cls, config: Config, out: Path, round: int, labels: Path | None = None, **values: Any) -> MergeJob:
        """The job that averages the labels of a round with those of `label.others`."""
        label = config.for_round(round).label
        own = [] if labels is None else [OtherLabels(labels=labels)]
        merged = (*own, *label.others)
        return cls.of_run(config, out=out, round=round, label=changed(label, others=()), labels=merged, **values)


class SelectJob(Job):
    """Choose pseudo-labels, and how often each occurs."""

    kind: Literal["select"] = "select"
    round: int
    seed: int
    select: Select
    labels: Path
    """A finished label stage."""

    @property
    def title(self) -> str:
        """The title with the round."""
        return f"select (round {self.round})"

    @classmethod
    def of(cls, config: Config, out: Path, round: int, labels: Path, **values: Any) -> SelectJob:
        """The job of a selection from the labels of a round."""
        select = config.for_round(round).select
        return cls.of_run(config, out=out, round=round, select=select, labels=labels, **values)


class EvaluateJob(Job):
    """Evaluate models on a split."""

    kind: Literal["evaluate"] = "evaluate"
    split: Split
    models: dict[str, Path]
    """Name of a model -> its stage folder."""
    evaluate: Evaluate
    ensemble: tuple[str, ...] = ()
    """The names of models whose mean of probabilities is measured too, as `ensemble`."""
    sampled: str | None = None
    """The name of a model that is measured with `evaluate.mc_dropout` too, as `mc_dropout`."""

    @property
    def title(self) -> str:
        """The title with the split."""
        return f"evaluate on {self.split}"

    @classmethod
    def of(cls, config: Config, out: Path, split: Split, models: dict[str, Path], **values: Any) -> EvaluateJob:
        """The job of an evaluation of a run's models, by their names."""
        return cls.of_run(config, out=out, split=split, models=models, **values)
