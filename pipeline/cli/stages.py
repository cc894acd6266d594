"""The verbs that run one stage each: train, label, merge, select."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.app import AcceptOption, ConfigArgument, OutOption, SetOption, app, console
from pipeline.config import Config, OtherLabels, Start, changed, load_config, parse
from pipeline.errors import UserError
from pipeline.remote import Place, Remote, place

if TYPE_CHECKING:
    from pipeline.stages.jobs import Job


@app.command()
def train(
    config: ConfigArgument,
    out: OutOption,
    selection: Annotated[Path | None, typer.Option(metavar="DIR", help="A select stage: trains a student.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A run, stage, file or timm:NAME to start from, by the config's start.mode, else init.",
        ),
    ] = None,
    overrides: SetOption = None,
    accept_environment: AcceptOption = False,
) -> None:
    """Train one model: the config's teacher, or with --selection its student.

    [bold]Example[/bold]: selftrain train birds.yaml --out work/teacher
    """
    from pipeline.methods import METHODS
    from pipeline.models.champion import pinned
    from pipeline.models.input import with_input_of
    from pipeline.runs.dry_run import check_training
    from pipeline.shards.dataset import open_split, warn_of_left_out
    from pipeline.stages.folder import read_output
    from pipeline.stages.jobs import Role, TrainJob

    settings = _load(config, overrides)
    if not METHODS[settings.method].reads("select"):
        raise UserError(
            f"{config} has `method: {settings.method}`, which `selftrain run` trains; for a supervised training set "
            "method to noisy_student"
        )
    role: Role = "student" if selection else "teacher"
    training = settings.for_round(1).student if selection else settings.teacher
    if start is not None:
        mode = training.start.mode if training.start else "init"
        training = training.model_copy(update={"start": Start(model=str(pinned(Path(start))), mode=mode)})
    elif selection and settings.rounds.start == "init":
        raise UserError(
            "rounds.start is init, so a student starts from its teacher, which this verb does not know; name it with "
            "--start, or pass --set rounds.start=scratch"
        )
    if training.probe is not None:
        raise UserError(
            f"{role}.probe is set, and this verb trains a network; use selftrain run, or --set {role}.probe=null"
        )
    training = with_input_of(training.start, training, role)
    labeled = open_split(settings.data, "labeled")
    warn_of_left_out(labeled)
    check_training(role, training, len(labeled.classes), settings.runtime.ranks)
    job = TrainJob.of(
        settings,
        out.absolute(),
        role,
        1 if selection else 0,
        training,
        selection=selection.absolute() if selection else None,
        accept_environment=accept_environment,
    )
    _run(job)
    metrics = read_output(out / "evaluation-val.json")
    low, high = metrics["interval"]
    console.print(f"{out}: val accuracy {metrics['top1']:.1%} ({low:.1%} to {high:.1%})")


@app.command()
def label(
    config: ConfigArgument,
    teacher: Annotated[Path, typer.Option(metavar="MODEL", help="A run folder, a stage folder or an exported file.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Output folder, or its address, such as s3://BUCKET/KEY."),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="Label one of N shares of the shards; the same command without it finishes."),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="With --part, in place of --out: a run, new or not, which takes these labels."
        ),
    ] = None,
    overrides: SetOption = None,
    accept_environment: AcceptOption = False,
) -> None:
    """Predict every unlabeled image with a teacher.

    Parts of it may run on many machines that share a file system, in any order; what one leaves, whoever labels next
    takes over. With --run-dir they label for a run: `selftrain run` finds them, also while it is under way.

    [bold]Example[/bold]: selftrain label birds.yaml --teacher work/teacher --out work/labels
    """
    from pipeline.models.champion import pinned
    from pipeline.stages.folder import check_stage_folder, stage_record
    from pipeline.stages.jobs import LabelJob
    from pipeline.stages.part import parse_part

    if (out is None) == (run_dir is None):
        raise UserError("give either --out DIR or, for the parts of a run's labels, --run-dir DIR")
    if run_dir is not None and part is None:
        raise UserError("--run-dir is for parts: give --part K/N too; `selftrain run` itself labels what they leave")
    number = parse_part(part) if part is not None else None
    settings = _load(config, overrides) if run_dir is None else _load_as_run(config, overrides, run_dir)
    if (ensemble := settings.for_round(1).label.ensemble) > 1:
        raise UserError(
            f"label.ensemble is {ensemble}, but this verb takes one teacher; pass --set label.ensemble=1, or use "
            "selftrain run"
        )
    if settings.committee:
        raise UserError(
            "committee is set, but this verb takes one teacher; pass --set committee=[], or use selftrain run"
        )
    at = None if out is None else _place(out, "--out")
    whole = at.absolute() if isinstance(at, Path) else Path().absolute()
    teachers = [pinned(teacher.absolute())]
    job = LabelJob.of(settings, whole, 1, teachers, accept_environment=accept_environment)
    if run_dir is not None:
        job = changed(job, out=_folder_in_run(job, run_dir))
    if isinstance(at, Remote):
        job = changed(job, out=_folder_of(job, at))
    check_stage_folder(job.out, job.kind)
    _run(job.of_part(number) if number else job, job.out, at if isinstance(at, Remote) else None)
    said = f"part {number} is labeled"
    if number is None:
        said = f"labels of {stage_record(job.out)['outputs']['num_samples']} images"
    console.print(f"{at or job.out}: {said}", soft_wrap=True)


@app.command()
def merge(
    config: ConfigArgument,
    labels: Annotated[
        list[str],
        typer.Option(
            metavar="LABELS[=WEIGHT]",
            help="A label stage, or a table of scores with a column `image` and one per class. Give several.",
        ),
    ],
    out: OutOption,
    overrides: SetOption = None,
    accept_environment: AcceptOption = False,
) -> None:
    """Average the labels of several teachers, without a pass over the images.

    [bold]Example[/bold]: selftrain merge birds.yaml --labels work/labels --labels clip.csv=0.5 --out work/merged
    """
    from pipeline.stages.folder import stage_record
    from pipeline.stages.jobs import MergeJob

    settings = _load(config, overrides)
    others = []
    for text in labels:
        path, _, weight = text.rpartition("=") if "=" in text and not Path(text).exists() else (text, "", "1")
        others.append(parse(OtherLabels, {"labels": str(Path(path).absolute()), "weight": weight}, "--labels"))
    settings = changed(settings, label=changed(settings.label, others=(*others, *settings.label.others)))
    _run(MergeJob.of(settings, out.absolute(), 1, accept_environment=accept_environment))
    console.print(f"{out}: labels of {stage_record(out)['outputs']['num_samples']} images")


@app.command()
def select(
    config: ConfigArgument,
    labels: Annotated[Path, typer.Option(metavar="DIR", help="A label stage, or its address.")],
    out: OutOption,
    overrides: SetOption = None,
    accept_environment: AcceptOption = False,
) -> None:
    """Choose pseudo-labels: filter by confidence, balance the classes. It prints a summary per class.

    [bold]Example[/bold]: selftrain select birds.yaml --labels work/labels --out work/selection
    """
    from pipeline.files import write_bytes
    from pipeline.report.plots import per_class
    from pipeline.selection.selection import read_selection
    from pipeline.shards.index import cache_folder
    from pipeline.stages.away import fetch_stage
    from pipeline.stages.jobs import SelectJob

    settings = _load(config, overrides)
    at = _place(labels, "--labels")
    folder = at.absolute() if isinstance(at, Path) else fetch_stage(cache_folder(settings.data.cache_dir), at)
    _run(SelectJob.of(settings, out.absolute(), 1, folder, accept_environment=accept_environment))
    write_bytes(out / "selection.png", per_class(read_selection(out).summary))


def _load(path: Path, overrides: list[str] | None) -> Config:
    from pipeline.runs.folder import absolute
    from pipeline.stages.machine import resolve

    config = load_config(path, overrides or [])
    return absolute(changed(config, runtime=resolve(config.runtime)))


def _load_as_run(path: Path, overrides: list[str] | None, run_dir: Path) -> Config:
    """The config as `selftrain run` resolves it in this folder."""
    from pipeline.runs.folder import check_run_folder, earlier_config, resolve_config

    check_run_folder(run_dir, path)
    return resolve_config(load_config(path, overrides or []), earlier_config(run_dir))


def _folder_in_run(job: Job, run_dir: Path) -> Path:
    """The folder in which a run makes this stage in its first round. The run may not have begun."""
    from pipeline.files import cannot_write
    from pipeline.stages.kinds import folder_name
    from pipeline.stages.lock import LOCK

    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / LOCK).touch()  # by which a run knows the folder for its own
    except OSError as error:
        raise cannot_write(run_dir / LOCK, error) from error
    return run_dir.resolve() / "rounds/1" / folder_name(job)


def _place(path: Path, option: str) -> Place:
    try:
        return place(path)
    except ValueError as error:
        raise UserError(f"{option}: {error}") from error


def _folder_of(job: Job, address: Remote) -> Path:
    """The folder of this machine in which the stage at an address is filled."""
    from pipeline.shards.index import cache_folder
    from pipeline.stages.away import work_folder
    from pipeline.stages.kinds import folder_name

    return work_folder(cache_folder(job.data.cache_dir), address, folder_name(job))


def _run(job: Job, whole: Path | None = None, address: Remote | None = None) -> None:
    """Run one stage in child processes, under the lock of its folder, with a progress bar. With an address, its outputs
    are stored there; `whole` is the folder of the whole stage, where this is a part."""
    from pipeline.stages.away import run_away
    from pipeline.stages.launch import run_job
    from pipeline.stages.lock import run_lock
    from pipeline.stages.nodes import leading
    from pipeline.stages.progress import show_progress

    if address is not None:
        if job.runtime.nodes > 1:
            raise UserError(
                f"runtime.nodes is {job.runtime.nodes}, but a stage at an address is filled by one machine; set it to "
                "1, and give each machine a --part"
            )
        with show_progress() as on_progress:
            run_away(job, whole or job.out, address, on_progress)
        return
    with run_lock(job.out) as lock_fd, leading(job.out, job.runtime.nodes), show_progress() as on_progress:
        run_job(job, lock_fd=lock_fd, on_progress=on_progress)
