"""The verbs about images: pack, verify (of runs too), init."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from pipeline.cli.app import OutOption, app, as_split, bar, check_split, console, read_here
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.config import Split
    from pipeline.packing.outcome import PackReport


@app.command()
def pack(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Folder, tar, zip or .tgz of images, or Parquet files.")
    ],
    out: OutOption,
    split: Annotated[
        str | None,
        typer.Option(
            callback=check_split, help="labeled, unlabeled, val or test.", show_default="SOURCE's own, else labeled"
        ),
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="At most this many images per shard.")] = 10_000,
    classes: Annotated[Path | None, typer.Option(help="Text file of class names in the order of their ids.")] = None,
    labels_csv: Annotated[
        str | None, typer.Option(metavar="FILE", help="Table of labels (CSV, TSV, JSON lines), on disk or in SOURCE.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Its column of images.", show_default="what is clear")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Its column of labels.", show_default="what is clear")
    ] = None,
    split_column: Annotated[str | None, typer.Option(help="Its column of splits, if these are to be taken.")] = None,
    drop: Annotated[
        str | None, typer.Option(metavar="A,B", help="Labels that are no classes: their images are unlabeled.")
    ] = None,
    keep_classes: Annotated[
        str | None, typer.Option(metavar="A,B", help="The labels that are classes: other images are unlabeled.")
    ] = None,
    leave_out: Annotated[bool, typer.Option(help="Leave the images of other labels out.")] = False,
    labels: Annotated[
        str | None, typer.Option(metavar="N", help="Carve: keep this many labels in total, or all that are left.")
    ] = None,
    proportional: Annotated[
        bool, typer.Option(help="Carve: draw labels as the classes are in SOURCE, not evenly.")
    ] = False,
    val_fraction: Annotated[
        float | None, typer.Option(min=0, max=1, help="Carve: share of the labels for validation.", show_default="0.1")
    ] = None,
    test_fraction: Annotated[
        float | None, typer.Option(min=0, max=1, help="Carve: share of the labels for test.", show_default="0")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Carve: seed of the draw.", show_default="0")] = None,
    skip_bad_images: Annotated[bool, typer.Option(help="Leave undecodable images out and list them.")] = False,
    skip_duplicates: Annotated[
        bool, typer.Option(help="Leave images out that equal another one, and list them; labeled ones stay.")
    ] = False,
    value_range: Annotated[
        str | None,
        typer.Option(metavar="LOW,HIGH", help="Values of deep images that become black and white, or auto."),
    ] = None,
    zip_encoding: Annotated[str | None, typer.Option(help="Code page of a zip's names, such as shift_jis.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Decoding threads; 0 means one per core.")] = 0,
) -> None:
    """Pack images into shards.

    [bold]Example[/bold]: selftrain pack photos/ --out shards/birds --labels 400 --val-fraction 0.1 --test-fraction 0.1
    """
    from pipeline.packing.carve import Carve
    from pipeline.packing.labeling import Labeling, split_names
    from pipeline.packing.pack import pack as pack_images
    from pipeline.shards.values import parse_range

    carved = {"--labels": labels, "--val-fraction": val_fraction, "--test-fraction": test_fraction}
    given = [option for option, value in carved.items() if value is not None]
    carve = None
    if given:
        if split is not None:
            raise UserError(f"{given[0]} carves all splits from one source; leave --split out")
        if proportional and labels is None:
            raise UserError("--proportional draws a number of labels; add --labels N, or leave this out")
        carve = Carve(
            num_labeled=_number_of_labels(labels or "all"),
            proportional=proportional,
            val_fraction=val_fraction,
            test_fraction=test_fraction or 0.0,
            seed=seed or 0,
        )
    elif seed is not None or proportional:
        option = f"--seed {seed}" if seed is not None else "--proportional"
        raise UserError(f"{option} is of a carve, which --labels N asks for; add it, or leave this out")
    labeling = Labeling(
        table=labels_csv,
        image_column=image_column,
        label_column=label_column,
        split_column=split_column,
        drop=split_names(drop),
        keep=split_names(keep_classes),
        leave_out=leave_out,
    )
    with bar("packing") as progress:
        report = pack_images(
            source,
            out,
            split=as_split(split),
            shard_size=shard_size,
            classes=classes,
            carve=carve,
            bad_images="skip" if skip_bad_images else "error",
            skip_duplicates=skip_duplicates,
            labeling=labeling,
            value_range=parse_range(value_range) if value_range is not None else None,
            zip_encoding=zip_encoding,
            workers=workers,
            progress=progress,
        )
    _print_pack(report)


def _number_of_labels(text: str) -> int | Literal["all"]:
    if text == "all":
        return "all"
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"--labels {text} is no number; give one, or all") from error


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A packed folder, a run, a stage or a registry.")],
) -> None:
    """Check every byte of a packed folder (hashes, keys, labels, images, overlap of splits), of a run, or of a registry
    of champions (digests).

    [bold]Example[/bold]: selftrain verify shards/birds
    """
    from pipeline.models.champion import is_registry
    from pipeline.runs.ledger import FILE as LEDGER
    from pipeline.shards.manifest import MANIFEST
    from pipeline.stages.folder import RECORD

    folder = read_here(folder)
    check, again = _verify_packed, "pack it again from the images"
    if is_registry(folder):
        check, again = _verify_registry, "do what each says"
    elif not (folder / MANIFEST).exists() and any((folder / name).exists() for name in (LEDGER, RECORD)):
        check, again = _verify_run, "do what each says, and the command of the run goes on"
    problems, good = check(folder)
    for problem in problems:
        console.print(f"problem: {problem}", style="red", soft_wrap=True)
    if problems:
        raise UserError(f"{folder} has {len(problems)} problems; {again}")
    console.print(good, soft_wrap=True)


def _verify_registry(folder: Path) -> tuple[Sequence[str], str]:
    from pipeline.champions.history import faults_of

    return faults_of(folder), f"{folder}: all good"


def _verify_packed(folder: Path) -> tuple[Sequence[str], str]:
    from pipeline.packing.verify import verify as verify_folder

    with bar("verifying") as progress:
        report = verify_folder(folder, progress=progress)
    return report.problems, f"{folder}: {report.num_samples} images in {report.num_shards} shards, all good"


def _verify_run(folder: Path) -> tuple[Sequence[str], str]:
    from pipeline.runs.damage import find_damage

    with bar("verifying") as progress:
        report = find_damage(folder, progress)
    rest = f"; no digests yet in {', '.join(map(str, report.unchecked))}" if report.unchecked else ""
    return report.problems, f"{folder}: {report.num_files} files, all good{rest}"


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A packed folder.")],
    minutes: Annotated[
        float | None, typer.Option(help="How long a run may take on this machine.", show_default="30 for photographs")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="timm:NAME|FILE", help="Pretrained weights for photographs; `none` for none.")
    ] = None,
    method: Annotated[str, typer.Option(help="The method to train by, such as fixmatch.")] = "noisy_student",
) -> None:
    """Print a commented starting config, sized to this data set, this machine and your time.

    [bold]Example[/bold]: selftrain init shards/birds > birds.yaml
    """
    from pipeline.stages.terminal import terminal

    with terminal().status("measuring how fast this machine trains"):  # on stderr: the config alone is on stdout
        from pipeline.starter.plan import starting_config

        text = starting_config(folder, minutes=minutes, encoder=encoder, method=method)
    print(text, end="")


def _print_pack(report: PackReport) -> None:
    table = Table("split", "images added", title=str(report.out))
    for split, count in report.num_samples.items():
        table.add_row(split, f"{count:,}")
    console.print(table if report.num_samples else f"{report.out}: nothing added")
    notes = [
        *((True, note) for note in report.notes),
        (
            bool(report.num_moved),
            f"{report.num_moved:,} images were unlabeled before and have left that split; runs label the rest anew",
        ),
        (bool(report.fewer_labels), _fewer(report)),
        (bool(report.num_present), f"{report.num_present:,} images were packed before"),
        (bool(report.classes), f"{len(report.classes)} classes: {_some(report.classes, 40)}"),
        (bool(report.ignored), "ignored: " + ", ".join(f"{n} {kind}" for kind, n in report.ignored.items())),
        (bool(report.skipped), f"skipped {len(report.skipped)} bad images, such as {_first(report.skipped.values())}"),
        (bool(report.elsewhere), f"left out {len(report.elsewhere)} images that equal another one"),
        (report.left_out is not None, _left_out(report)),
        (report.value_range is not None, _scaled(report)),
        (bool(report.odd_metadata), f"{report.odd_metadata} images have damaged metadata; their pixels are there"),
        (bool(report.more_frames), f"{report.more_frames} files have several frames or pages; the first was taken"),
        (bool(report.empty_folders), f"no image in the folders: {_some(report.empty_folders, 12)}"),
        (
            bool(report.look_alikes),
            f"classes that differ in case or white space alone: {', '.join(report.look_alikes[:6])}; if they are one, "
            "rename one and pack again",
        ),
        (bool(report.num_duplicates), f"{report.num_duplicates} images of SOURCE equal another one of it"),
        (
            report.duplicates is not None,
            f"{report.duplicates} lists equal images that share a split; --skip-duplicates leaves all but one out",
        ),
        (
            bool(report.conflicts),
            f"{len(report.conflicts)} images appear in several classes; a carve leaves them unlabeled",
        ),
        (
            bool(report.relabeled),
            f"{len(report.relabeled)} images were packed before under another class, which stays: "
            f"{', '.join(report.relabeled[:3])}",
        ),
        *((True, _absent(report, split)) for split in report.absent_classes),
        (report.recovered, "an earlier pack into this folder had been killed; its leftovers were dealt with"),
    ]
    for applies, text in notes:
        if applies:
            console.print(text, soft_wrap=True)


def _scaled(report: PackReport) -> str:
    low, high = report.values_found
    return f"values were scaled: {report.value_range} became black and white; there are values from {low:g} to {high:g}"


def _fewer(report: PackReport) -> str:
    some = [f"{name} {number}" for name, number in sorted(report.fewer_labels.items(), key=lambda one: one[1])]
    return f"fewer labels than an even share, as all that val and test leave of a rare class: {_some(some, 8)}"


def _left_out(report: PackReport) -> str:
    num = report.num_left_out
    return f"{num:,} file{'s were' if num > 1 else ' was'} left out; {report.left_out} says why"


def _some(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _first(values: Iterable[str]) -> str:
    return next(iter(values), "")


def _absent(report: PackReport, split: Split) -> str:
    names = report.absent_classes[split]
    enough = math.ceil(1000 * len(report.classes) / max(sum(report.num_samples.values()), 1)) / 1000
    carved = split in ("val", "test") and len(report.num_samples) > 1 and enough < 1
    fix = f"; with --{split}-fraction {enough:g} each has one, if it has enough" if carved else ""
    return f"{split} has no image of {len(names)} of {len(report.classes)} classes: {_some(names, 6)}{fix}"
