"""The verbs about images: pack, verify, init."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pipeline.cli.app import OutOption, app, as_split, check_split, console
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.packing.pack import PackReport


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Folder of class folders, flat folder, tar or zip.")],
    out: OutOption,
    split: Annotated[
        str | None, typer.Option(callback=check_split, help="labeled, unlabeled, val or test.", show_default="labeled")
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
            split=None if carve else as_split(split or "labeled"),
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


@contextmanager
def _bar(text: str) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from pipeline.stages.terminal import terminal

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal(), transient=True) as bars:
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
