"""The verbs about images: pack, verify (of runs too), init."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pipeline.cli.app import OutOption, app, as_split, bar, check_split, console
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.config import Split
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
    skip_bad_images: Annotated[bool, typer.Option(help="Leave undecodable images out and list them.")] = False,
    skip_duplicates: Annotated[
        bool, typer.Option(help="Leave images out that another split of DIR holds, and list them.")
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
    from pipeline.packing.pack import pack as pack_images
    from pipeline.shards.values import parse_range

    given = {"--val-fraction": val_fraction, "--test-fraction": test_fraction, "--seed": seed}
    carve = None
    if labels is not None:
        if split is not None:
            raise UserError("--labels carves all splits from one source; leave --split out")
        val = 0.1 if val_fraction is None else val_fraction
        carve = Carve(num_labeled=labels, val_fraction=val, test_fraction=test_fraction or 0.0, seed=seed or 0)
    elif unused := [f"{option} {value}" for option, value in given.items() if value is not None]:
        raise UserError(f"{' and '.join(unused)}: without --labels N nothing is carved; add it, or leave this out")
    with bar("packing") as progress:
        report = pack_images(
            source,
            out,
            split=None if carve else as_split(split or "labeled"),
            shard_size=shard_size,
            classes=classes,
            carve=carve,
            bad_images="skip" if skip_bad_images else "error",
            skip_duplicates=skip_duplicates,
            value_range=parse_range(value_range) if value_range is not None else None,
            zip_encoding=zip_encoding,
            workers=workers,
            progress=progress,
        )
    _print_pack(report)


@app.command()
def verify(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A packed folder, a run or a stage.")]) -> None:
    """Check every byte of a packed folder (hashes, keys, labels, images, overlap of splits) or of a run (digests).

    [bold]Example[/bold]: selftrain verify shards/birds
    """
    from pipeline.runs.ledger import FILE as LEDGER
    from pipeline.shards.manifest import MANIFEST
    from pipeline.stages.folder import RECORD

    is_run = not (folder / MANIFEST).exists() and any((folder / name).exists() for name in (LEDGER, RECORD))
    problems, good = _verify_run(folder) if is_run else _verify_packed(folder)
    for problem in problems:
        console.print(f"problem: {problem}", style="red", soft_wrap=True)
    if problems:
        again = "do what each says, and the command of the run goes on" if is_run else "pack it again from the images"
        raise UserError(f"{folder} has {len(problems)} problems; {again}")
    console.print(good, soft_wrap=True)


def _verify_packed(folder: Path) -> tuple[tuple[str, ...], str]:
    from pipeline.packing.verify import verify as verify_folder

    with bar("verifying") as progress:
        report = verify_folder(folder, progress=progress)
    return report.problems, f"{folder}: {report.num_samples} images in {report.num_shards} shards, all good"


def _verify_run(folder: Path) -> tuple[tuple[str, ...], str]:
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
    from pipeline.starter.plan import starting_config

    print(starting_config(folder, minutes=minutes, encoder=encoder, method=method), end="")


def _print_pack(report: PackReport) -> None:
    table = Table("split", "images added", title=str(report.out))
    for split, count in report.num_samples.items():
        table.add_row(split, f"{count:,}")
    console.print(table if report.num_samples else f"{report.out}: nothing added")
    notes = [
        (bool(report.num_present), f"{report.num_present:,} images were packed before"),
        (bool(report.classes), f"{len(report.classes)} classes: {', '.join(report.classes[:12])}"),
        (bool(report.ignored), "ignored: " + ", ".join(f"{n} {kind}" for kind, n in report.ignored.items())),
        (bool(report.skipped), f"skipped {len(report.skipped)} bad images, such as {_first(report.skipped.values())}"),
        (bool(report.elsewhere), f"left out {len(report.elsewhere)} images that another split holds"),
        (report.left_out is not None, f"{report.left_out} lists every file that was left out"),
        (report.value_range is not None, _scaled(report)),
        (bool(report.odd_metadata), f"{report.odd_metadata} images have damaged metadata; their pixels are there"),
        (bool(report.more_frames), f"{report.more_frames} files have several frames or pages; the first was taken"),
        (bool(report.empty_folders), f"no image in the folders: {', '.join(report.empty_folders[:12])}"),
        (
            bool(report.look_alikes),
            f"classes that differ in case or white space alone: {', '.join(report.look_alikes[:6])}; if they are one, "
            "rename one and pack again",
        ),
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
        *((True, _absent(report, split)) for split in report.absent_classes),
        (report.recovered, "an earlier pack into this folder had been killed; its leftovers were dealt with"),
    ]
    for applies, text in notes:
        if applies:
            console.print(text, soft_wrap=True)


def _scaled(report: PackReport) -> str:
    low, high = report.values_found
    return f"values were scaled: {report.value_range} became black and white; there are values from {low:g} to {high:g}"


def _first(values: Iterable[str]) -> str:
    return next(iter(values), "")


def _absent(report: PackReport, split: Split) -> str:
    names = report.absent_classes[split]
    some = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    enough = math.ceil(1000 * len(report.classes) / max(sum(report.num_samples.values()), 1)) / 1000
    carved = split in ("val", "test") and len(report.num_samples) > 1 and enough < 1
    fix = f"; with --{split}-fraction {enough:g} each has one, if it has enough" if carved else ""
    return f"{split} has no image of {len(names)} of {len(report.classes)} classes: {some}{fix}"
