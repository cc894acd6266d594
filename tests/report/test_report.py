from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.run_folder import edit, text_of

from pipeline.evaluate.metrics import Metrics
from pipeline.report import canvas, plots
from pipeline.report.gallery import make_sprite, spread_over_classes
from pipeline.report.lineage import draw, teachers_of, title_of
from pipeline.report.page import number, percent, points, write_report
from pipeline.report.panels import dead_units
from pipeline.report.record import read_run

# --------------------------------------------------------------------------------------------------------- the page


def test_the_page_needs_nothing_but_itself(run: Path) -> None:
    page = text_of(run)
    assert not re.search(r"https?://|<script|<link|@import|url\(\"(?!data:|\"\))", page.replace('url("")', ""))


def test_what_users_name_is_escaped(run: Path) -> None:
    (run / "test_reads.jsonl").write_text(json.dumps({"time": "now", "model": "<script>alert(1)</script>"}) + "\n")
    page = text_of(run)
    assert "&lt;script&gt;alert(1)" in page
    assert "&lt;b&gt;four" in page
    assert "<b>four" not in page
    assert "<script" not in page


def test_the_same_run_gives_the_same_bytes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "DPI", 20)  # coarsely, which is quicker
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_figures_are_those_of_the_files(run: Path) -> None:
    def spoil(result: dict) -> None:
        result["final"]["test"]["final"] |= {"top1": 0.12345, "interval": [0.111, 0.133], "nll": 7.654}

    edit(run / "result.json", spoil)
    edit(
        next(run.glob("evaluate-*")) / "test.json",
        lambda t: t["final"].update(top1=0.12345, interval=[0.111, 0.133], nll=7.654),
    )
    edit(
        next(run.glob("rounds/1/train-*")) / "evaluation-val.json",
        lambda m: m.update(top1=0.98765, interval=[0.9, 0.99]),
    )
    page = text_of(run)
    for figure in ("12.3%", "11.1% \u2013 13.3%", "7.654", "98.8%", "90.0% \u2013 99.0%"):
        assert figure in page


def test_pseudo_label_accuracy_is_that_of_the_truth(run: Path) -> None:
    from pipeline.labels.store import LabelStore
    from pipeline.shards.dataset import open_split

    dataset = open_split(read_run(run).config.data, "unlabeled")
    truth = dataset.truth()
    assert truth is not None
    right = (LabelStore(next(run.glob("rounds/1/label-*")), dataset).label == truth).mean()
    assert f"<b>{percent(float(right))}</b> of all pseudo-labels are right" in text_of(run)


def test_thresholds_alignment_and_warnings_of_a_selection_are_shown(run: Path) -> None:
    path = next(run.glob("rounds/1/select-*")) / "selection.json"
    assert "few-pseudo-labels" not in text_of(run)
    assert '<p class="warning"><b>confidences-not-calibrated</b>: select.threshold 0.5 is compared' in text_of(run)

    def of_classes(summary: dict) -> None:
        summary["warnings"] = [{"name": "few-pseudo-labels", "text": "lower it <now>"}]
        for i, line in enumerate(summary["classes"]):
            line |= {"cut": 0.321 + i / 1000, "weight": 1.0 + i / 100}

    edit(path, of_classes)
    page = text_of(run)
    assert '<p class="warning"><b>few-pseudo-labels</b>: lower it &lt;now&gt;</p>' in page
    assert "after distribution alignment" in page
    for shown in ("32.1%", "33.0%", "&times; 1.09"):
        assert shown in page


def test_what_labels_are_worth_on_val_is_shown_before_and_after_alignment(run: Path) -> None:
    assert "the stored labels" not in text_of(run)

    def measured(summary: dict) -> None:
        summary["on_val"] = {"top1": 0.912, "ece": 0.0312, "num_samples": 359, "teachers_top1": [0.9]}
        summary["aligned_on_val"] = {"top1": 0.934, "ece": 0.0278, "num_samples": 359}
        summary["scores_on_val"] = [{"table": "<clip>.csv", "temperature": 1.2, "top1": 0.815, "ece": 0.0456}]

    edit(next(run.glob("rounds/1/select-*")) / "selection.json", measured)
    assert (
        "On the validation images <b>91.2%</b> of the stored labels are right (ECE&nbsp;0.031), "
        "<b>93.4%</b> of those after alignment are right (ECE&nbsp;0.028), "
        "<b>81.5%</b> of those of &lt;clip&gt;.csv are right (ECE&nbsp;0.046)."
    ) in text_of(run)


def test_images_of_earlier_rounds_are_folded(run: Path) -> None:
    page = text_of(run)
    folded = [page.index(f"<details{how}><summary>Images</summary>") for how in ("", " open")]
    assert page.count("<summary>Images</summary>") == 2
    assert page.index("Pseudo-labels of round 1") < folded[0] < page.index("Pseudo-labels of round 2") < folded[1]


def test_the_time_of_stages_on_features_is_told_from_that_of_the_encoder(run: Path) -> None:
    assert "on stored features" not in text_of(run)
    teacher = next(run.glob("rounds/0/train-*"))
    edit(teacher / "stage.json", lambda record: record["inputs"].update(features="provenance"))
    assert f'<code>rounds/0/{teacher.name}</code> <span class="soft">on stored features</span>' in text_of(run)


def test_looking_at_images_does_not_decode_the_whole_data_set(run: Path) -> None:
    cache = read_run(run).config.data.cache_dir
    assert cache is not None
    write_report(run)
    assert not list(cache.glob("decoded/*.npy"))


def test_without_the_images_the_rest_is_shown(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(re.sub(r"root: .*", "root: /nowhere", config.read_text()))
    page = text_of(run)
    assert "The images are not shown: /nowhere" in page
    assert "Figures per class" in page
    assert 'class="tile' not in page


def test_a_torn_or_damaged_line_still_counts_as_a_read_of_test(run: Path) -> None:
    """Whoever read test cannot have it forgotten by spoiling a line."""
    whole = b'{"time": "2026-11-22 10:00", "model": "rounds/1"}\n'
    (run / "test_reads.jsonl").write_bytes(whole + whole[:30] + whole + bytes(40) + b"\n" + whole[:20])
    reads = read_run(run).test_reads
    assert [read["time"] for read in reads] == ["2026-11-22 10:00", "unknown", "unknown", "unknown"]
    assert "2026-11-22 10:00" in reads[1]["model"]
    assert text_of(run).count("in a damaged line") == 3


def test_test_reads_and_earlier_configs_are_shown(run: Path) -> None:
    (run / "test_reads.jsonl").write_text('{"time": "2026-11-22 10:00", "model": "rounds/1"}\n')
    other = shutil.copytree(next(run.glob("evaluate-*")), run / "evaluate-00000000")
    edit(other / "test.json", lambda t: t["final"].update(top1=0.4321))
    page = text_of(run)
    for found in ("2026-11-22 10:00", "Other evaluations on test", "Earlier configs of this run folder", "43.2%"):
        assert found in page


# ---------------------------------------------------------------------------------------------------- lineage, images


def test_lineage_follows_fingerprints(run: Path) -> None:
    seen = read_run(run)
    assert [t.round for t in teachers_of(seen.rounds[2], seen)] == [1]
    # the student of round 1 was not kept, so the teacher of round 0 labels again
    teacher = seen.rounds[0].train
    assert teacher is not None
    label = seen.rounds[2].label
    assert label is not None
    edit(label.path / "stage.json", lambda r: r["inputs"].update(teacher0=teacher.record["outputs"]["model_sha256"]))
    again = read_run(run)
    assert [t.round for t in teachers_of(again.rounds[2], again)] == [0]
    assert "Round 0 teacher labeled the images for round 2 student." in draw(again, {}).summary


def test_lineage_draws_what_a_training_started_from(run: Path) -> None:
    seen = read_run(run)
    before = len(draw(seen, {}).arrows)
    assert seen.rounds[0].train is not None
    start = seen.rounds[0].train.record["outputs"]["model_sha256"]
    for folder in ("rounds/1", "control"):
        edit(next(run.glob(f"{folder}/train-*")) / "stage.json", lambda r: r["inputs"].update(start=start))
    diagram = draw(read_run(run), {})
    assert len(diagram.arrows) == before + 2
    assert "Round 1 student started with the weights of round 0 teacher." in diagram.summary
    assert "Control started with the weights of round 0 teacher." in diagram.summary


def test_what_rounds_override_is_shown_as_it_was(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.report import plots

    shown: list[float] = []
    draw_histogram = plots.confidence_histogram
    monkeypatch.setattr(plots, "confidence_histogram", lambda h, at: (shown.append(at), draw_histogram(h, at))[1])
    edit(next(run.glob("rounds/1/train-*")) / "stage.json", lambda r: r["config"]["training"].update(model="larger"))
    next(run.glob("rounds/1/train-*/model.json")).unlink()
    edit(next(run.glob("rounds/2/select-*")) / "stage.json", lambda r: r["config"].update(threshold=0.75))
    edit(next(run.glob("control/train-*")) / "model.json", lambda r: r.update(architecture="another"))
    page = text_of(run)
    assert shown == [0.5, 0.75]
    assert page.count("larger") == page.count("another") == 2, "in the table and in the lineage"


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 40))
def test_images_are_spread_over_the_classes(labels: list[int], count: int) -> None:
    label = np.array(labels, np.int32)
    rows = np.random.default_rng(0).permutation(len(label))
    chosen = spread_over_classes(rows, label, count)
    assert len(set(chosen.tolist())) == len(chosen) == min(count, len(rows))
    taken, there = np.bincount(label[chosen], minlength=6), np.bincount(label, minlength=6)
    for c in range(6):
        assert taken[c] == there[c] or taken[c] >= taken.max() - 1
        of_class = [r for r in rows if label[r] == c]
        assert [r for r in chosen if label[r] == c] == of_class[: taken[c]]


@pytest.mark.parametrize(("size", "tile_px"), [(8, 64), (28, 56), (32, 64), (96, 96)])
def test_sprites_enlarge_pixels_without_blur(size: int, tile_px: int) -> None:
    import io

    from PIL import Image

    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    png, side = make_sprite(images)
    assert side == tile_px
    decoded = np.asarray(Image.open(io.BytesIO(png)))
    factor = tile_px // size
    for k in range(3):
        assert (decoded[::factor, k * side : (k + 1) * side : factor] == images[k]).all()


def test_percentages_never_round_up_to_certainty() -> None:
    assert [percent(v) for v in (1.0, 0.99999, 0.9994, 0.12345, 0.0, None)] == [
        "100.0%",
        ">99.9%",
        "99.9%",
        "12.3%",
        "0.0%",
        "\u2013",
    ]
    assert [number(v) for v in (1234567, 12.3456, 5432.1, None)] == ["1,234,567", "12.3", "5,432", "\u2013"]


def test_plots_draw_class_names_of_any_script() -> None:
    from pipeline.report import plots
    from pipeline.selection.summary import Tally

    tally = Tally(3)
    names = ["猫" * 40, "$\\frac$", "a" * 200]
    summary = tally.summary(names, np.array([3, 0, 1]), np.array([0.5, 0.25, 0.25]))
    assert plots.per_class(summary).startswith(b"\x89PNG")


def test_plots_survive_runs_of_any_length() -> None:
    from pipeline.report import plots

    val = Metrics(0.5, 0.9, 1.0, 0.1, 10, (0.4, 0.6))
    for n in (1, 12):
        assert plots.accuracy_by_round([plots.Point(f"Round {k} student", val, "kept") for k in range(n)])
        assert plots.learning_curves([("a", np.array([1.0]), np.array([2.0]))] * n, [])


def test_a_training_has_one_color_in_all_plots(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [("b", np.array([1.0, 2.0]), np.array([2.0, 1.0]))]
    assert plots.learning_curves(alone, [], ["a", "b"]) != plots.learning_curves(alone, []), "as beside a probe"
    order: list[list[str]] = []
    for name in ("learning_curves", "calibration"):
        monkeypatch.setattr(plots, name, lambda *args: order.append(args[-1]) or b"")
    assert "All together" in text_of(run)
    assert order == [[title_of(train) for train in read_run(run).trainings]] * 2


def test_differences_have_a_sign_unless_they_are_nothing() -> None:
    assert [points(v) for v in (0.0441, -0.0441, 0.0, -0.0001)] == ["+4.4", "\u22124.4", "0.0", "0.0"]


def test_dead_units_are_drawn_where_they_were_counted(run: Path) -> None:
    assert dead_units(read_run(run)) is None
    metrics = next(run.glob("rounds/1/train-*")) / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    counted = [{**line, "dead_units": 0.25} if "val_top1" in line else line for line in lines]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in counted))
    edit(metrics.parent / "stage.json", lambda stage: stage["digests"].pop("metrics.jsonl", None))
    assert dead_units(read_run(run)) is not None
