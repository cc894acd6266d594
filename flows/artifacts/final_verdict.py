"""The verdict on a run: what the report says first, figures on test, and pseudo-labels to look at, on one page."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from prefect.artifacts import create_link_artifact, create_markdown_artifact

from flows.artifacts.display import image, markdown_table, never_fatal, plain, plot
from flows.artifacts.keys import artifact_key
from flows.artifacts.message import result_message
from pipeline.errors import UserError
from pipeline.evaluate.judging import TITLES
from pipeline.report.gallery import Gallery, inspect_pseudo_labels
from pipeline.report.page import percent, points, try_report
from pipeline.report.record import RunRecord, read_run
from pipeline.report.sections import accuracy_plot, models_on_test
from pipeline.report.verdict import Verdict, judge
from pipeline.shards.dataset import open_split

NUM_TILES, PER_ROW = 12, 6
MAX_PAGE = 200_000
"""Characters of the page, because it lies in the server's database."""


def show_verdict(run_dir: Path) -> None:
    """Write report.html, and show the verdict of a run with a link to it. Neither can fail the run."""
    report = try_report(run_dir)
    with never_fatal("show the verdict"):
        run = read_run(run_dir)
        verdict = judge(run)
        about = f"{run.path.name}: {result_message(run.result)}" if run.result else f"{run.path.name}: not finished"
        create_markdown_artifact(
            verdict_page(run, verdict, report), key=artifact_key(run_dir, "verdict"), description=about
        )
        if report is not None:
            create_link_artifact(
                report.resolve().as_uri(),
                link_text=f"{report.resolve()} on {socket.gethostname()}",
                key=artifact_key(run_dir, "report"),
                description=f"{run.path.name}: the report, a file on the disk of {socket.gethostname()}",
            )


def verdict_page(run: RunRecord, verdict: Verdict, report: Path | None) -> str:
    """The verdict as Markdown, at most MAX_PAGE long: pictures that would make it longer are left out."""
    head = [f"# {plain(run.path.name)}", "", " ".join(verdict.sentences), "", *_test_table(run, verdict)]
    foot = ["", "## Where it lies", "", *_places(run, report)]
    text = "\n".join([*head, *foot]) + "\n"
    pictures: list[str] = []
    for picture in _pictures(run):
        if len(text) + sum(map(len, pictures)) + len(picture) < MAX_PAGE:
            pictures.append(picture)
    return "\n".join([*head, *pictures, *foot]) + "\n"


def _test_table(run: RunRecord, verdict: Verdict) -> list[str]:
    if not run.test:
        return []
    rows = []
    for name, title, _ in models_on_test(run):
        metrics, gain = run.test.get(name), verdict.gains.get(name)
        if metrics is None:
            continue
        low, high = metrics.interval
        lead = points(gain.points) if gain else ""
        if gain and gain.interval:
            lead += f" ({points(gain.interval[0])} to {points(gain.interval[1])})"
        rows.append((title, percent(metrics.top1), f"{percent(low)} to {percent(high)}", lead))
    unit = TITLES[run.config.rounds.judge_by]
    columns = ("", "test accuracy", "95% interval", f"lead of the final model (points of {unit})")
    num = next(iter(run.test.values())).num_samples
    return [*markdown_table(columns, rows), "", f"On {num:,} images, measured after every choice was made."]


def _pictures(run: RunRecord) -> Iterator[str]:
    """Pictures as pieces of Markdown, the most telling first."""
    rounds = [r for r in run.rounds if r.summary is not None and r.select is not None]
    if rounds and rounds[-1].select is not None:
        number, selection = rounds[-1].number, rounds[-1].select.path
        yield f"\n## Pseudo-labels of round {number}\n"
        try:
            size = run.config.for_round(number).student.image_size
            dataset = open_split(run.config.data, "unlabeled")
            found = inspect_pseudo_labels(dataset, selection, run.config.data, size)
        except UserError as error:
            yield f"The images are not shown: {plain(str(error))}\n"
        else:
            if found.accuracy is not None:
                right = f"{percent(found.kept_accuracy)} of the {found.num_known_kept:,} kept are right"
                yield f"Where truth is known, {right}. Truth is read for this display only.\n"
            for gallery in found.galleries:
                yield "\n".join([f"### {gallery.title}, {gallery.note}", "", *_tiles(gallery), ""])
    if (png := accuracy_plot(run)) is not None:
        yield "\n".join(["", "## Rounds", "", plot("accuracy on val of each model, with 95% intervals", png), ""])


def _tiles(gallery: Gallery) -> list[str]:
    """A gallery as a table of pictures, each with its label, confidence and truth below it."""
    sprite = Image.open(io.BytesIO(gallery.sprite))
    side = gallery.tile_px
    nothing_known = all(tile.truth is None for tile in gallery.tiles)
    cells = []
    for number, tile in enumerate(gallery.tiles[:NUM_TILES]):
        picture = sprite.crop((number * side, 0, (number + 1) * side, side))
        truth = "" if nothing_known else f"<br>truth: {plain(tile.truth or 'unknown')}"
        cells.append(f"{_small(picture)}<br>**{plain(tile.label)}** {percent(tile.confidence)}{truth}")
    rows = [cells[start : start + PER_ROW] for start in range(0, len(cells), PER_ROW)]
    width = len(rows[0])
    first, *others = (f"| {' | '.join([*row, *[''] * (width - len(row))])} |" for row in rows)
    return [first, f"|{' :--- |' * width}", *others]


def _small(picture: Image.Image) -> str:
    """A picture as a data URI, in the smaller one of PNG and JPEG."""
    files = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        buffer = io.BytesIO()
        picture.save(buffer, format=kind, **options)
        files[kind] = buffer.getvalue()
    kind = min(files, key=lambda name: len(files[name]))
    return image("", files[kind], kind)


def _places(run: RunRecord, report: Path | None) -> list[str]:
    """Where the outputs are: paths on the disk of the machine that ran the flow, which no browser elsewhere opens."""
    lines = [f"On the disk of **{plain(socket.gethostname())}**, which ran this:", ""]
    if report is not None:
        lines.append(f"- the whole report, with every round and class: `{report.resolve()}`")
    if run.result is not None:
        final = next((t for t in run.trainings if t.round == run.result["final"]["round"]), None)
        if final is not None:
            lines.append(f"- the final model: `{final.path.resolve()}`")
    return [*lines, f"- the run: `{run.path.resolve()}` (`selftrain report` writes the report anew)"]
