"""The verbs of the `selftrain` command, except for `run` and `ablate`, which flows/cli.py adds to this app.

The file is long because every verb has its options and their help here. Heavy imports are inside the functions, because
`selftrain --help` must be instant.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipeline.config import SPLITS, Config, Evaluate, Runtime, Split, Start, changed, load_config
from pipeline.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from pipeline.packing.pack import PackReport
    from pipeline.stages.jobs import Job

app = typer.Typer(
    name="selftrain",
    help="Turn a few labeled images and many unlabeled ones into a better classifier.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
console = Console(markup=False, emoji=False, highlight=False)  # paths and class names are shown as they are

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML config.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a config key.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder.")]
AcceptOption = Annotated[
    bool, typer.Option("--accept-environment", help="Resume what was begun with other versions or threads.")
]


@app.callback()
def selftrain(
    plugin: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE.py", help="A file of yours that registers methods, techniques, models or stages."),
    ] = None,
) -> None:
    """Turn a few labeled images and many unlabeled ones into a better classifier."""
    from pipeline.stages.plugins import add_plugins

    add_plugins(plugin or [])


def _split(value: str | None) -> str | None:
    if value is not None and value not in SPLITS:
        raise typer.BadParameter(f"{value!r} is no split, {did_you_mean(value, SPLITS)}")
    return value


# --------------------------------------------------------------------------------------------------------------- data


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Folder of class folders, flat folder, tar or zip.")],
    out: OutOption,
    split: Annotated[
        str | None, typer.Option(callback=_split, help="labeled, unlabeled, val or test.", show_default="labeled")
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="At most this many images per shard.")] = 10_000,
    classes: Annotated[Path | None, typer.Option(help="Text file of class names in the order of their ids.")] = None,
    labels: Annotated[int | None, typer.Option(min=1, help="Carve: keep this many labels in total.")] = None,
    val_fraction: Annotated[
        float | None, typer.Option(min=0, max=1, help="Carve: share of SOURCE for validation.", show_default="0.1")
    ] = None,
    test_fraction: Annotated[
        float | None, typer.Option(min=0, max=1, help="Carve: share of SOURCE for test.", show_default="0")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Carve: seed of the draw.", show_default="0")] = None,
    skip_bad_images: Annotated[bool, typer.Option(help="Leave undecodable images out and count them.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Decoding threads; 0 means one per core.")] = 0,
) -> None:
    """Pack images into shards.

    [bold]Example[/bold]: selftrain pack photos/ --out shards/birds --labels 400 --val-fraction 0.1 --test-fraction 0.1
    """
    from pipeline.packing.carve import Carve
    from pipeline.packing.pack import pack as pack_images

    given = {"--val-fraction": val_fraction, "--test-fraction": test_fraction, "--seed": seed}
    carve = None
    if labels is not None:
        if split is not None:
            raise UserError("--labels carves all splits from one source; leave --split out")
        val = 0.1 if val_fraction is None else val_fraction
        carve = Carve(num_labeled=labels, val_fraction=val, test_fraction=test_fraction or 0.0, seed=seed or 0)
    elif unused := [f"{option} {value}" for option, value in given.items() if value is not None]:
        raise UserError(f"{' and '.join(unused)}: without --labels N nothing is carved; add it, or leave this out")
    with _bar("packing") as progress:
        report = pack_images(
            source,
            out,
            split=None if carve else _as_split(split or "labeled"),
            shard_size=shard_size,
            classes=classes,
            carve=carve,
            bad_images="skip" if skip_bad_images else "error",
            workers=workers,
            progress=progress,
        )
    _print_pack(report)


@app.command()
def verify(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A packed folder.")]) -> None:
    """Check every byte of a packed folder: hashes, keys, labels, images, overlap of splits.

    [bold]Example[/bold]: selftrain verify shards/birds
    """
    from pipeline.packing.verify import verify as verify_folder

    with _bar("verifying") as progress:
        report = verify_folder(folder, progress=progress)
    for problem in report.problems:
        console.print(f"problem: {problem}", style="red", soft_wrap=True)
    if report.problems:
        raise UserError(f"{folder} has {len(report.problems)} problems; pack it again from the original images")
    console.print(f"{folder}: {report.num_samples} images in {report.num_shards} shards, all good")


@app.command()
def init(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A packed folder.")]) -> None:
    """Print a commented starting config, sized to this data set and this machine.

    [bold]Example[/bold]: selftrain init shards/birds > birds.yaml
    """
    from pipeline.starter.plan import starting_config

    print(starting_config(folder), end="")


# ------------------------------------------------------------------------------------------------------------- stages


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
        training = changed(training, start=Start(model=start, mode=mode))
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
    metrics = json.loads((out / "evaluation-val.json").read_text())
    low, high = metrics["interval"]
    console.print(f"{out}: val accuracy {metrics['top1']:.1%} ({low:.1%} to {high:.1%})")


@app.command()
def label(
    config: ConfigArgument,
    teacher: Annotated[Path, typer.Option(metavar="MODEL", help="A run folder, a stage folder or an exported file.")],
    out: OutOption,
    overrides: SetOption = None,
    accept_environment: AcceptOption = False,
) -> None:
    """Predict every unlabeled image with a teacher.

    [bold]Example[/bold]: selftrain label birds.yaml --teacher work/teacher --out work/labels
    """
    from pipeline.stages.jobs import LabelJob

    settings = _load(config, overrides)
    if (ensemble := settings.for_round(1).label.ensemble) > 1:
        raise UserError(
            f"label.ensemble is {ensemble}, but this verb takes one teacher; pass --set label.ensemble=1, or use "
            "selftrain run"
        )
    job = LabelJob.of(settings, out.absolute(), 1, [teacher.absolute()], accept_environment=accept_environment)
    _run(job)
    console.print(f"{out}: labels of {json.loads((out / 'stage.json').read_text())['outputs']['num_samples']} images")


@app.command()
def select(
    config: ConfigArgument,
    labels: Annotated[Path, typer.Option(metavar="DIR", help="A label stage.")],
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
    from pipeline.stages.jobs import SelectJob

    settings = _load(config, overrides)
    _run(SelectJob.of(settings, out.absolute(), 1, labels.absolute(), accept_environment=accept_environment))
    write_bytes(out / "selection.png", per_class(read_selection(out).summary))


# ------------------------------------------------------------------------------------------------------------- models


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A run folder, a stage folder or an exported file.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A packed folder, or any image folder or tar.")],
    split: Annotated[str, typer.Option(callback=_split, help="Split of a packed folder.")] = "test",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a model: top1, top5, nll, ece.

    [bold]Example[/bold]: selftrain evaluate runs/birds shards/birds --split test
    """
    from pipeline.evaluate.on_demand import evaluate_on
    from pipeline.stages.lock import find_run
    from pipeline.stages.machine import precision_here, resolve

    how, runtime = Evaluate(), Runtime()
    if (run := find_run(model)) is not None:  # a run's models are measured in the way of the run
        config = load_config(run / "config.yaml")
        how, runtime = config.evaluate, Runtime(precision=precision_here(config.runtime.precision))
    metrics = evaluate_on(model, data, _as_split(split) or "test", how, resolve(runtime))
    if as_json:
        print(json.dumps(metrics.to_json()))
        return
    table = Table("figure", "value")
    for name in ("top1", "top5", "nll", "ece"):
        table.add_row(name, f"{getattr(metrics, name):.4f}")
    table.add_row("num_samples", str(metrics.num_samples))
    console.print(table)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder or a train stage.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.safetensors", help="Where to write the weights.")],
) -> None:
    """Write the final model as FILE.safetensors and FILE.json, which plain timm loads.

    [bold]Example[/bold]: selftrain export runs/birds --out birds.safetensors
    """
    from pipeline.models.format import export_model
    from pipeline.models.registry import import_of, is_known

    info = export_model(run, out)
    arguments = "".join(f", {k}={v!r}" for k, v in info.model_args.items())
    call = f'"{info.architecture}", num_classes={len(info.classes)}, checkpoint_path="{out}"{arguments}'
    console.print(f"{out} and {out.with_suffix('.json')} written. In timm:", soft_wrap=True)
    if (module := import_of(info.architecture)) is not None:
        console.print(f"  import {module}  # registers {info.architecture} with timm")
    elif not is_known(info.architecture):
        console.print(f"  # first import the plugin that registers {info.architecture} with timm")
    console.print(f"  timm.create_model({call})", soft_wrap=True)


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Write RUN/report.html, one file that shows everything a run did, finished or not.

    [bold]Example[/bold]: selftrain report runs/birds
    """
    from pipeline.report import write_report

    console.print(f"report: {write_report(run)}", soft_wrap=True)


# ------------------------------------------------------------------------------------------------------------- shared


def _load(path: Path, overrides: list[str] | None) -> Config:
    from pipeline.runs.folder import absolute
    from pipeline.stages.machine import resolve

    config = load_config(path, overrides or [])
    return absolute(changed(config, runtime=resolve(config.runtime)))


def _run(job: Job) -> None:
    """Run one stage in child processes, under the lock of its folder, with a progress bar."""
    from pipeline.stages.launch import run_job
    from pipeline.stages.lock import run_lock
    from pipeline.stages.progress import show_progress

    with run_lock(job.out) as lock_fd, show_progress() as on_progress:
        run_job(job, lock_fd=lock_fd, on_progress=on_progress)


def _as_split(value: str | None) -> Split | None:
    return next((split for split in SPLITS if split == value), None)


@contextmanager
def _bar(text: str) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(text, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _print_pack(report: PackReport) -> None:
    table = Table("split", "images added", title=str(report.out))
    for split, count in report.num_samples.items():
        table.add_row(split, f"{count:,}")
    console.print(table if report.num_samples else f"{report.out}: all of it was packed before, nothing added")
    notes = [
        (bool(report.num_present), f"{report.num_present:,} images were packed before, left out"),
        (bool(report.classes), f"{len(report.classes)} classes: {', '.join(report.classes[:12])}"),
        (bool(report.ignored), "ignored: " + ", ".join(f"{n} {kind}" for kind, n in report.ignored.items())),
        (bool(report.skipped), f"skipped {len(report.skipped)} bad images, such as {next(iter(report.skipped), '')}"),
        (bool(report.num_duplicates), f"{report.num_duplicates} images equal an earlier one; they share a split"),
        (
            bool(report.conflicts),
            f"{len(report.conflicts)} images appear in several classes; a carve leaves them unlabeled",
        ),
        (
            bool(report.relabeled),
            f"{len(report.relabeled)} images were packed before under another class, which stays: "
            f"{', '.join(report.relabeled[:3])}",
        ),
        (bool(report.absent_classes), f"no image of: {', '.join(report.absent_classes)}"),
        (report.recovered, "an earlier pack into this folder had been killed; its leftovers were dealt with"),
    ]
    for applies, text in notes:
        if applies:
            console.print(text, soft_wrap=True)
