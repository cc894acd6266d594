"""The verb that uses a model: predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli.app import app, as_split, bar, check_split, console, read_here
from pipeline.cli.models import OthersOption


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A run folder, a stage folder or an exported file.")],
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="A folder, .tar, .zip, or a packed folder.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The table: .csv, .tsv, .jsonl or .parquet.")],
    split: Annotated[
        str | None, typer.Option(callback=check_split, help="Split of a packed folder.", show_default="all")
    ] = None,
    others: OthersOption = None,
    top_k: Annotated[int, typer.Option(min=1, help="Columns for this many classes, the surest first.")] = 1,
    probabilities: Annotated[bool, typer.Option(help="A column for the probability of each class.")] = False,
    features: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write what the classifier sees: .npy or .npz, fp16.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace FILE, and what an unfinished prediction left.")] = False,
    bad_images: Annotated[
        Literal["skip", "error"], typer.Option(help="List bad images in FILE.left_out.csv, or stop at them.")
    ] = "skip",
    zip_encoding: Annotated[str | None, typer.Option(help="Code page of a zip's names, such as shift_jis.")] = None,
) -> None:
    """Write the class and the confidence of each image as a table, one row per image.

    With more models it is the mean of their probabilities.

    [bold]Example[/bold]: selftrain predict runs/birds photos/ --out predictions.csv
    """
    from pipeline.evaluate.on_demand import how_to_see
    from pipeline.predict.prediction import Wanted, predict_images

    wanted = Wanted(
        out=out,
        top_k=top_k,
        probabilities=probabilities,
        features=features,
        split=as_split(split),
        bad_images=bad_images,
        overwrite=overwrite,
        zip_encoding=zip_encoding,
        others=tuple(others or ()),
    )
    with bar("predicting") as progress:
        done = predict_images(model, read_here(images), wanted, *how_to_see(model), progress)
    console.print(f"{out}: {done.num_rows:,} images", soft_wrap=True)
    if done.left_out is not None:
        first = next(iter(done.bad.values()))
        console.print(f"{len(done.bad)} bad images have no row ({first}); all are in {done.left_out}", soft_wrap=True)
