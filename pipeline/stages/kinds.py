"""The kinds of stages: a table that says what runs a job, and how.

A kind of yours is one more row (docs/extend.md). Functions are named by strings, so that reading the table imports none
of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from pipeline.config import parse
from pipeline.errors import UserError, did_you_mean
from pipeline.files import read_as
from pipeline.stages.fingerprint import StageInputs, fingerprint
from pipeline.stages.jobs import EmbedJob, EvaluateJob, Job, LabelJob, MergeJob, ProbeJob, SelectJob, TrainJob
from pipeline.stages.plugins import check_plugins, sources_of

if TYPE_CHECKING:
    from pipeline.stages.preamble import Stage


@dataclass(frozen=True)
class Kind:
    """One kind of stage."""

    job: type[Job]
    """What its process is told."""
    inputs_of: str
    """`module:function` from the job to what the output is a function of."""
    function: str
    """`module:function` that fills the folder of an open stage: (job, stage) -> None."""
    version: int
    """Raised when the algorithm or the files change, so that old outputs are not taken for new ones."""
    ranks: bool = False
    """Whether it runs as `runtime.processes` processes."""
    process: bool = True
    """Whether it runs in child processes; without, in the process that asks for it, which then needs no torch."""

    def inputs(self, job: Job) -> StageInputs:
        """What the output of this job is a function of. The stages that it reads must be finished.

        The files of plugins that have a part in it are among its inputs.
        """
        found: StageInputs = load_object(self.inputs_of)(job)
        plugins = sources_of(self.job.__module__, self.inputs_of, self.function, *job.code)
        return StageInputs(found.config, {**found.inputs, **plugins})

    def run(self, job: Job, stage: Stage) -> None:
        """Fill the folder of the open stage."""
        load_object(self.function)(job, stage)


KINDS: dict[str, Kind] = {
    "embed": Kind(EmbedJob, "pipeline.features.stage:embed_inputs", "pipeline.features.stage:run_embed", 3, ranks=True),
    "probe": Kind(ProbeJob, "pipeline.probe.stage:probe_inputs", "pipeline.probe.stage:run_probe", 2),
    "train": Kind(TrainJob, "pipeline.train.stage:train_inputs", "pipeline.train.stage:run_train", 6, ranks=True),
    "label": Kind(LabelJob, "pipeline.labels.stage:label_inputs", "pipeline.labels.stage:run_label", 5, ranks=True),
    "merge": Kind(
        MergeJob, "pipeline.labels.merging:merge_inputs", "pipeline.labels.merging:run_merge", 1, process=False
    ),
    "select": Kind(
        SelectJob, "pipeline.selection.stage:select_inputs", "pipeline.selection.stage:run_select", 2, process=False
    ),
    "evaluate": Kind(EvaluateJob, "pipeline.evaluate.stage:evaluate_inputs", "pipeline.evaluate.stage:run_evaluate", 5),
}


def register_kind(kind: Kind) -> None:
    """Make a kind of stage known, by the name that its job has as `kind`.

    Raises:
        UserError: its job has no name, or that of another kind.
    """
    name, job = kind.job.model_fields["kind"].default, kind.job.__name__
    if not isinstance(name, str):
        raise UserError(f'{job}.kind has no default; write `kind: Literal["NAME"] = "NAME"`')
    if name in KINDS:
        raise UserError(f"{job}.kind is {name!r}, which is a kind of stage already; choose another name")
    KINDS[name] = kind


def kind_of(job: Job) -> Kind:
    """The row of a job's kind."""
    return KINDS[job.kind]


def fingerprint_of(job: Job, inputs: StageInputs | None = None) -> str:
    """The fingerprint of the stage that a job fills; `inputs` saves asking for them again."""
    kind = kind_of(job)
    return fingerprint(job.kind, kind.version, inputs or kind.inputs(job))


def folder_name(job: Job, inputs: StageInputs | None = None) -> str:
    """The name of the stage's folder in a run, KIND-FP8."""
    return f"{job.kind}-{fingerprint_of(job, inputs)[:8]}"


class _Job(TypedDict):
    kind: str
    plugins: NotRequired[dict[str, str]]


def read_job(path: Path, *, check: bool = True) -> Job:
    """Read a job.json. Without `check`, one that was written with other plugins is read too.

    Raises:
        UserError: it is of a kind that is not registered here, or was written with other plugins.
    """
    raw = read_as(_Job, path)
    kind = raw["kind"]
    if check:
        check_plugins(raw.get("plugins", {}), path)
    if kind not in KINDS:
        raise UserError(f"{path} is of kind {kind!r}, {did_you_mean(kind, KINDS)}; a plugin's needs its --plugin")
    return parse(KINDS[kind].job, raw, str(path))


def load_object(name: str) -> Any:
    """The object that `module:name` stands for.

    Raises:
        UserError: there is none.
    """
    module, _, attribute = name.partition(":")
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise UserError(f"`{name}`: there is no module {module!r}; a plugin's needs its --plugin") from error
    if not hasattr(found, attribute):
        raise UserError(f"`{name}`: {module} has no {attribute!r}, {did_you_mean(attribute, vars(found))}")
    return getattr(found, attribute)
