"""Two pages per selection: the pool of unlabeled images as its teacher sees it, and what was selected of it."""

from __future__ import annotations

from pathlib import Path

from prefect.artifacts import create_markdown_artifact

from flows.artifacts.display import markdown_table, never_fatal, plain, plot
from flows.artifacts.keys import artifact_key
from pipeline.report.lineage import labeled_by
from pipeline.report.page import number, percent
from pipeline.report.plots import per_class
from pipeline.report.record import RoundRecord, RunRecord, read_run
from pipeline.report.sections import confidence_plot
from pipeline.selection.summary import Summary

MAX_CLASSES = 60


def show_selection(run_dir: Path, folder: Path) -> None:
    """Show the pages of a selection of a run, whose stage folder is finished."""
    with never_fatal("show the selection"):
        run = read_run(run_dir.resolve())
        round_ = next(r for r in run.rounds if r.select is not None and r.select.path == folder)
        summary = round_.summary
        assert summary is not None
        kept = f"{summary['num_selected']:,} of {summary['num_rows']:,} unlabeled images kept"
        about = f"{run.path.name}, round {round_.number}: {kept}"
        for what, page in (("pool", pool_page(run, round_, summary)), ("selection", selection_page(round_, summary))):
            create_markdown_artifact(page, key=artifact_key(run_dir, what), description=about)


def pool_page(run: RunRecord, round_: RoundRecord, summary: Summary) -> str:
    """Images per class, what is left of them from step to step, and how sure the teacher is, as Markdown."""
    lines = [
        f"# {plain(run.path.name)}: the unlabeled images in round {round_.number}",
        "",
        f"Labeled by: {plain(labeled_by(round_, run))}.{_on_val(summary)}",
        "",
        *markdown_table(("", "images", "of all"), _funnel(summary)),
        "",
        f"With copies they are worth {summary['effective_size']:,.0f} images without copies. The mix of "
        f"predicted classes is {percent(summary['total_variation'])} away from that of the labeled images "
        "(total variation: 0% if they are equal).",
        "",
        plot("pseudo-labels per class: predicted, kept, with copies", per_class(summary)),
        "",
        plot("histogram of confidences", confidence_plot(round_, summary)),
    ]
    return "\n".join(lines) + "\n"


def selection_page(round_: RoundRecord, summary: Summary) -> str:
    """The figures of each class and the warnings, as Markdown. Of many classes it has those with the fewest kept."""
    classes = sorted(summary["classes"], key=lambda c: c["kept"])[:MAX_CLASSES]
    rows = [
        (
            plain(c["name"]),
            number(c["predicted"]),
            percent(c["predicted_prior"]),
            percent(c["labeled_prior"]),
            number(c["kept"]),
            number(c["copied"]),
            percent(c.get("cut", c["threshold"])),
            percent(c["mean_confidence"]),
        )
        for c in classes
    ]
    columns = ("class", "predicted", "share", "share of labeled", "kept", "with copies", "lowest kept", "mean kept")
    left_out = len(summary["classes"]) - len(rows)
    lines = [
        f"# Selection of round {round_.number}: {summary['num_selected']:,} of {summary['num_rows']:,} images",
        "",
        *(f"- **{plain(w['name'])}**: {plain(w['text'])}" for w in summary.get("warnings", [])),
        "",
        "The class with the fewest kept images comes first; the last two columns are confidences.",
        "",
        *markdown_table(columns, rows),
        "",
        f"{left_out:,} classes with more are in selection.json." if left_out else "",
        f"Folder: `{round_.select.path}`" if round_.select is not None else "",
    ]
    return "\n".join(lines) + "\n"


def _funnel(summary: Summary) -> list[tuple[str, ...]]:
    """How many images are left after each step of the selection."""
    steps = [("unlabeled images", summary["num_rows"])]
    if (sure := summary.get("num_left")) is not None:
        steps.append(("sure enough", sure))
    steps += [("kept", summary["num_selected"]), ("shown per epoch, with copies", summary["num_copies"])]
    total = max(summary["num_rows"], 1)
    return [(name, number(count), percent(count / total)) for name, count in steps]


def _on_val(summary: Summary) -> str:
    on_val = summary.get("aligned_on_val") or summary.get("on_val")
    return f" On val {percent(on_val['top1'])} of such labels are right." if on_val is not None else ""
