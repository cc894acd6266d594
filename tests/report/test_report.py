from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import progress
from pipeline.config import Data
from pipeline.errors import UserError
from pipeline.evaluate.metrics import Metrics
from pipeline.report.html import number, percent, points, write_report
from pipeline.report.images import make_sprite, spread_over_classes
from pipeline.report.lineage import draw, teachers_of
from pipeline.report.read import read_run
from pipeline.report.verdict import judge

EditJson = Callable[[dict], object]


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def unfinished(unfinished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unfinished_run, tmp_path / "unfinished"))


def edit(path: Path, change: EditJson) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def text_of(run: Path) -> str:
    return re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]*", "", write_report(run).read_text())


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


def test_the_same_run_gives_the_same_bytes(run: Path) -> None:
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


def test_test_reads_and_earlier_configs_are_shown(run: Path) -> None:
    (run / "test_reads.jsonl").write_text('{"time": "2026-11-22 10:00", "model": "rounds/1"}\n')
    other = shutil.copytree(next(run.glob("evaluate-*")), run / "evaluate-00000000")
    edit(other / "test.json", lambda t: t["final"].update(top1=0.4321))
    page = text_of(run)
    for found in ("2026-11-22 10:00", "Other evaluations on test", "Earlier configs of this run folder", "43.2%"):
        assert found in page


# -------------------------------------------------------------------------------------------------- unfinished, broken


def test_an_unfinished_run_claims_nothing_on_test(unfinished: Path) -> None:
    progress.report(next(unfinished.glob("rounds/2/train-*")), 900, 2000, "steps")
    page = text_of(unfinished)
    assert "This run is not finished: 6 of the 7 stages it began are complete" in page
    assert "(900 of 2,000 steps)" in page
    assert "have not been evaluated" in page
    assert "So the pseudo-labels" not in page


def test_every_stage_of_growth_gives_a_report(run: Path) -> None:
    (run / "result.json").unlink()
    parts = [
        "evaluate-*",
        "control/*",
        "rounds/2/train-*",
        "rounds/2/select-*",
        "rounds/2/label-*",
        "rounds/1/*",
        "rounds/0/*",
    ]
    for part in parts:
        for folder in run.glob(part):
            edit(folder / "stage.json", lambda record: record.update(complete=False))
        assert "not finished" in text_of(run)
        for folder in run.glob(part):
            shutil.rmtree(folder)
    assert "No training has begun" in text_of(run)


def test_between_choice_and_test_the_choice_is_shown(run: Path) -> None:
    edit(run / "result.json", lambda r: r["final"].update(test={}))
    assert "The final model is that of round 2" in text_of(run)
    assert "test has not been evaluated" in text_of(run)


def test_half_a_line_of_metrics_is_no_error(unfinished: Path) -> None:
    for name in ("metrics.jsonl", "timing.jsonl"):
        with open(next(unfinished.glob("rounds/2/train-*")) / name, "a") as file:
            file.write('{"step": 920, "lo')
    assert "not finished" in text_of(unfinished)


def test_a_timing_line_that_a_kill_cut_is_left_out(unfinished: Path) -> None:
    with open(next(unfinished.glob("rounds/2/train-*")) / "timing.jsonl", "a") as file:
        file.write('{"step": 9{"step": 920, "seconds": 1.0, "images": 2}\n')
    assert "not finished" in text_of(unfinished)


@pytest.mark.parametrize(
    "name", ["result.json", "rounds/1/train-*/metrics.jsonl", "rounds/0/train-*/predictions-val.npz"]
)
def test_a_broken_file_is_named(run: Path, name: str) -> None:
    path = next(run.glob(name))
    path.write_text("{broken\n")
    with pytest.raises(UserError, match=re.escape(str(path))):
        write_report(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("method", "shown"), [("meta", [1]), ("uda", [])])
def test_after_a_change_of_method_only_its_own_stages_are_shown(
    unfinished: Path, method: str, shown: list[int]
) -> None:
    folder = next(unfinished.glob("rounds/1/train-*"))
    together = Path(shutil.copytree(folder, folder.with_name("meta-ffffffff")))
    edit(together / "stage.json", lambda r: r.update(kind="meta", complete=False))
    root = read_run(unfinished).config.data.root
    (unfinished / "config.yaml").write_text(f"method: {method}\ndata: {{root: {root}}}\n")
    rounds = read_run(unfinished).rounds
    assert [round_.number for round_ in rounds] == shown
    for round_ in rounds:
        assert round_.train is not None
        assert (round_.train.path, round_.train.role) == (together, "student")
        assert round_.label is None
        assert round_.select is None


def test_a_training_of_an_earlier_selection_is_not_shown_beside_a_new_one(unfinished: Path) -> None:
    edit(next(unfinished.glob("rounds/1/select-*")) / "stage.json", lambda r: r.update(fingerprint="another"))
    round_ = read_run(unfinished).rounds[1]
    assert round_.select is not None
    assert round_.train is None


def test_the_control_of_an_earlier_config_is_not_shown(run: Path) -> None:
    """Neither while the rounds are under way, nor where this config has none."""
    edit(run / "result.json", lambda r: r["final"].update(control_dir=None))
    edit(run / "result.json", lambda r: r["final"]["test"].pop("control"))
    edit(next(run.glob("evaluate-*")) / "test.json", lambda t: t.pop("control"))
    assert read_run(run).control is None
    (run / "result.json").unlink()
    assert read_run(run).control is None


def test_a_control_that_an_earlier_config_left_unfinished_is_not_shown(run: Path) -> None:
    edit(run / "result.json", lambda r: r["final"].update(control_dir=None, test={}))
    edit(next(run.glob("control/train-*")) / "stage.json", lambda r: r.update(complete=False))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("control: true", "control: false"))
    assert not read_run(run).config.evaluate.control
    assert read_run(run).control is None


def test_labels_of_an_earlier_teacher_are_not_shown_beside_a_new_one(unfinished: Path) -> None:
    record = next(unfinished.glob("rounds/0/train-*")) / "stage.json"
    edit(record, lambda r: r.update(fingerprint="another", complete=False, outputs={}))
    assert [round_.number for round_ in read_run(unfinished).rounds] == [0]


def test_a_control_under_way_is_shown_and_the_run_unfinished(run: Path) -> None:
    edit(run / "result.json", lambda r: r["final"].update(control_dir=None, test={}))
    edit(next(run.glob("control/train-*")) / "stage.json", lambda r: r.update(complete=False))
    seen = read_run(run)
    assert seen.control is not None
    verdict = judge(seen)
    assert not verdict.finished
    assert "its control is under way" in verdict.sentences[-1]


def test_two_moons_have_no_page_finished_or_not(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("method: two_moons\n")
    with pytest.raises(UserError, match="a run of the two moons"):
        write_report(tmp_path)


def test_sibling_stages_of_other_settings_are_told(unfinished: Path) -> None:
    folder = next(unfinished.glob("rounds/1/select-*"))
    shutil.copytree(folder, folder.with_name("select-ffffffff"))
    assert "1 stages of other settings" in text_of(unfinished)


# ------------------------------------------------------------------------------------------------------- the verdict


def test_the_verdict_follows_the_interval_over_the_control(run: Path) -> None:
    assert judge(read_run(run)).sentences[-1] == "So the pseudo-labels helped."
    answers = {p.stem: p for p in next(run.glob("evaluate-*")).glob("*.npz")}
    shutil.copy(answers["predictions-final"], answers["predictions-control"])
    assert "within chance" in judge(read_run(run)).sentences[-1]
    shutil.copy(answers["predictions-teacher"], answers["predictions-final"])
    shutil.copy(answers["predictions-final"], answers["predictions-control"])
    with np.load(answers["predictions-final"]) as arrays:
        values = dict(arrays)
    np.savez(answers["predictions-control"], **{**values, "pred": values["label"]})
    assert judge(read_run(run)).sentences[-1] == "So the pseudo-labels did harm."


def test_without_control_the_verdict_says_what_is_open(run: Path) -> None:
    evaluation = next(run.glob("evaluate-*"))
    edit(evaluation / "test.json", lambda t: t.pop("control"))
    edit(run / "result.json", lambda r: r["final"]["test"].pop("control"))
    assert "The control is missing" in judge(read_run(run)).sentences[-1]
    assert "not measured" in text_of(run)


def test_a_teacher_that_no_student_beats_is_no_gain(run: Path) -> None:
    edit(run / "result.json", lambda r: r["final"].update(round=0))
    verdict = judge(read_run(run))
    assert "No student beat the round 0 teacher" in verdict.sentences[0]
    assert not verdict.gains


def test_a_fine_tuned_teacher_has_learned_from_no_pseudo_label(run: Path) -> None:
    """Round 2 made a fine-tune of round 0's model: its lead is not the pseudo-labels'."""

    def finetune(result: dict) -> None:
        result["rounds"][2].update(role="finetune", label_dir=None, select_dir=None)

    edit(run / "result.json", finetune)
    teacher = read_run(run).rounds[0].train
    assert teacher is not None
    digest = teacher.record["outputs"]["model_sha256"]
    edit(next(run.glob("rounds/2/train-*")) / "stage.json", lambda r: r["inputs"].update(start=digest))
    verdict = judge(read_run(run))
    assert "so the teacher, fine-tuned, is the final model" in verdict.sentences[0]
    assert not verdict.gains


def test_a_teacher_trained_together_with_its_student_is_held_against_the_control(run: Path) -> None:
    edit(run / "result.json", lambda r: r["final"].update(round=0))
    seen = read_run(run)
    config = seen.config.model_copy(update={"method": "meta"})
    verdict = judge(type(seen)(**{**vars(seen), "config": config}))
    assert set(verdict.gains) == {"control"}
    assert "a control trained as long" in verdict.sentences[0]


def test_without_a_test_split_the_run_is_finished_all_the_same(run: Path) -> None:
    edit(run / "result.json", lambda r: r["final"].update(test={}))
    seen = read_run(run)
    config = seen.config.model_copy(update={"data": Data(labeled=(Path("a.tar"),))})
    verdict = judge(type(seen)(**{**vars(seen), "config": config}))
    assert verdict.finished
    assert "no test split" in verdict.sentences[-1]


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
    edit(next(run.glob("rounds/2/train-*")) / "stage.json", lambda r: r["config"]["training"].update(model="larger"))
    edit(next(run.glob("rounds/2/select-*")) / "stage.json", lambda r: r["config"].update(threshold=0.75))
    (next(run.glob("control/train-*")) / "model.json").write_text('{"architecture": "taken"}')
    page = text_of(run)
    assert shown == [0.5, 0.75]
    assert page.count("larger") == page.count("taken") == 2, "in the table and in the lineage"


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
    from pipeline.labels.selection import Tally
    from pipeline.report import plots

    tally = Tally(3)
    names = ["猫" * 40, "$\\frac$", "a" * 200]
    report = tally.report(names, np.array([3, 0, 1]), np.array([0.5, 0.25, 0.25]))
    assert plots.per_class(report).startswith(b"\x89PNG")


def test_plots_survive_runs_of_any_length() -> None:
    from pipeline.report import plots

    val = Metrics(0.5, 0.9, 1.0, 0.1, 10, (0.4, 0.6))
    for n in (1, 12):
        assert plots.accuracy_by_round([plots.Point(f"Round {k} student", val, "kept") for k in range(n)])
        assert plots.learning_curves([("a", np.array([1.0]), np.array([2.0]))] * n, [])


def test_differences_have_a_sign_unless_they_are_nothing() -> None:
    assert [points(v) for v in (0.0441, -0.0441, 0.0, -0.0001)] == ["+4.4", "\u22124.4", "0.0", "0.0"]
