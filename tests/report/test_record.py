"""Reports of runs that are unfinished, changed or broken."""

from __future__ import annotations

import os
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
from matplotlib.layout_engine import ConstrainedLayoutEngine
from support.run_folder import edit, text_of

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.report import canvas
from pipeline.report.confusion import class_section
from pipeline.report.page import percent, write_report
from pipeline.report.record import read_run
from pipeline.report.verdict import judge
from pipeline.runs.ledger import Ledger
from pipeline.stages import progress
from pipeline.stages.jobs import LabelJob, SelectJob


def test_an_unfinished_run_claims_nothing_on_test(unfinished: Path) -> None:
    progress.report(next(unfinished.glob("rounds/2/train-*")), 900, 2000, "steps")
    page = text_of(unfinished)
    assert "This run is not finished: 6 of the 7 stages it began are complete" in page
    assert "(900 of 2,000 steps)" in page
    assert "have not been evaluated" in page
    assert "So the pseudo-labels" not in page


def test_every_stage_of_growth_gives_a_report(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "DPI", 20)  # drawn, but coarsely and as it falls, which is quicker
    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", lambda layout, figure: None)
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
    for number, part in enumerate(parts):
        for folder in run.glob(part):
            edit(folder / "stage.json", lambda record: record.update(complete=False))
        assert "not finished" in text_of(run, draw=number % 2 == 0)  # every other one, for they are alike
        for folder in run.glob(part):
            shutil.rmtree(folder)
    assert "No training has begun" in text_of(run)


def test_between_choice_and_test_the_choice_is_shown(run: Path) -> None:
    edit(run / "result.json", lambda r: r["final"].update(test={}))
    assert "The final model is that of round 2" in text_of(run)
    assert "test has not been evaluated" in text_of(run)


def test_the_classes_are_those_of_the_final_model_on_test_else_of_the_newest_on_val(run: Path) -> None:
    found = class_section(read_run(run))
    assert found is not None
    assert (found.model, found.split, len(found.rows), found.num_missing) == ("Round 2 student", "test", 10, 0)
    assert [row.recall for row in found.rows] == sorted(row.recall for row in found.rows)
    page = text_of(run)
    assert f"<b>{percent(found.figures.balanced_accuracy)}</b>, macro F1" in page
    assert "Mostly taken for" in page
    (run / "result.json").unlink()
    found = class_section(read_run(run))
    assert found is not None
    assert (found.model, found.split) == ("Round 2 student", "val")


def test_figures_that_earlier_versions_did_not_write_follow_from_the_answers(run: Path) -> None:
    path = next(run.glob("rounds/1/train-*")) / "evaluation-val.json"
    written = read_json(path)["balanced_accuracy"]
    edit(path, lambda figures: [figures.pop(name) for name in ("balanced_accuracy", "macro_f1")])
    train = read_run(run).rounds[1].train
    assert train is not None
    assert train.val is not None
    assert train.val.balanced_accuracy == pytest.approx(written)


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
    "name", ["result.json", "stages.json", "rounds/1/train-*/metrics.jsonl", "rounds/0/train-*/predictions-val.npz"]
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


def test_answers_that_were_cut_are_named_with_the_fix(run: Path) -> None:
    path = next(run.glob("rounds/0/train-*/predictions-val.npz"))
    os.truncate(path, 100)
    with pytest.raises(UserError, match=r"predictions-val\.npz is damaged: .*delete this file and type the command"):
        write_report(run)


def test_a_report_that_is_not_ours_is_left_alone(run: Path) -> None:
    (run / "report.html").write_text("<html>my thesis</html>")
    with pytest.raises(UserError, match=r"report\.html is not a report of selftrain; rename it"):
        write_report(run)
    assert (run / "report.html").read_text() == "<html>my thesis</html>"
    (run / "report.html").unlink()
    assert write_report(write_report(run).parent).exists()


def test_a_run_of_an_older_version_is_refused_with_the_fix(run: Path) -> None:
    (run / "stages.json").unlink()
    with pytest.raises(UserError, match=r"has no stages.json: .* an older version .*command of the run"):
        write_report(run)


def begin_anew(run: Path) -> Ledger:
    """What a run with other settings does first: all stages that are there are an earlier config's."""
    return Ledger(run, "another config")


def forget(run: Path, pattern: str) -> None:
    """As if the run had not asked for these stages: they are an earlier config's."""

    def without(ledger: dict) -> None:
        ledger["stages"] = [entry for entry in ledger["stages"] if not fnmatch(entry["folder"], pattern)]

    edit(run / "stages.json", without)


def begun(folder: Path) -> Path:
    """A stage of other settings beside this one, under way."""
    name = f"{folder.name.partition('-')[0]}-ffffffff"
    other = Path(shutil.copytree(folder, folder.with_name(name)))
    edit(other / "stage.json", lambda r: r.update(fingerprint="another", complete=False, outputs={}))
    return other


@pytest.mark.parametrize("method", ["meta", "uda"])
def test_after_a_change_of_method_only_its_own_stages_are_shown(unfinished: Path, method: str) -> None:
    root = read_run(unfinished).config.data.root
    together = begun(next(unfinished.glob("rounds/1/train-*")))
    (unfinished / "config.yaml").write_text(f"method: {method}\ndata: {{root: {root}}}\n")
    ledger = begin_anew(unfinished)
    assert read_run(unfinished).rounds == ()
    ledger.add_model(together, "student", 1)
    (round_,) = read_run(unfinished).rounds
    assert round_.number == 1
    assert round_.train is not None
    assert (round_.train.path, round_.train.role) == (together, "student")
    assert round_.label is None
    assert round_.select is None
    assert "not finished" in text_of(unfinished)


def test_a_training_of_an_earlier_selection_is_not_shown_beside_a_new_one(unfinished: Path) -> None:
    config = read_run(unfinished).config
    teacher, labels, select = (
        next(unfinished.glob(f"rounds/{stage}-*")) for stage in ("0/train", "1/label", "1/select")
    )
    selection = begun(select)
    ledger = begin_anew(unfinished)
    ledger.add_model(teacher, "teacher", 0)
    ledger.add(LabelJob.of(config, labels, 1, [teacher]))
    ledger.add(SelectJob.of(config, selection, 1, labels))
    round_ = read_run(unfinished).rounds[1]
    assert round_.label is not None
    assert round_.label.path == labels
    assert round_.select is not None
    assert round_.select.path == selection
    assert round_.train is None


def test_the_control_of_an_earlier_config_is_not_shown(run: Path) -> None:
    """Neither while the rounds are under way, nor where this config has none."""
    edit(run / "result.json", lambda r: r["final"].update(control_dir=None))
    edit(run / "result.json", lambda r: r["final"]["test"].pop("control"))
    edit(next(run.glob("evaluate-*")) / "test.json", lambda t: t.pop("control"))
    forget(run, "control/*")
    assert read_run(run).control is None
    (run / "result.json").unlink()
    assert read_run(run).control is None


def test_a_control_that_an_earlier_config_left_unfinished_is_not_shown(run: Path) -> None:
    edit(run / "result.json", lambda r: r["final"].update(control_dir=None, test={}))
    edit(next(run.glob("control/train-*")) / "stage.json", lambda r: r.update(complete=False))
    forget(run, "control/*")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("control: true", "control: false"))
    assert not read_run(run).config.evaluate.control
    assert read_run(run).control is None


def test_labels_of_an_earlier_teacher_are_not_shown_beside_a_new_one(unfinished: Path) -> None:
    teacher = begun(next(unfinished.glob("rounds/0/train-*")))
    begin_anew(unfinished).add_model(teacher, "teacher", 0)
    (round_,) = read_run(unfinished).rounds
    assert round_.number == 0
    assert round_.train is not None
    assert round_.train.path == teacher


def test_a_result_of_stages_that_are_made_anew_is_not_shown(run: Path) -> None:
    """It stays until the run ends: config and data are the same, the version of the stages or a start is not."""
    assert judge(read_run(run)).finished
    begin_anew(run).add_model(begun(next(run.glob("rounds/0/train-*"))), "teacher", 0)
    seen = read_run(run)
    assert seen.result is None
    assert not seen.test
    assert "0 of the 1 stages it began are complete" in text_of(run)


def test_a_model_of_the_result_that_is_gone_is_named(run: Path) -> None:
    folder = next(run.glob("rounds/2/train-*"))
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=re.escape(str(folder / "stage.json"))):
        write_report(run)


def test_a_control_under_way_is_shown_and_the_run_unfinished(run: Path) -> None:
    edit(run / "result.json", lambda r: r["final"].update(control_dir=None, test={}))
    edit(next(run.glob("control/train-*")) / "stage.json", lambda r: r.update(complete=False))
    seen = read_run(run)
    assert seen.control is not None
    verdict = judge(seen)
    assert not verdict.finished
    assert "its control is under way" in verdict.sentences[-1]


def test_a_comparison_on_the_two_moons_has_no_page(tmp_path: Path) -> None:
    for name in ("two_moons.json", "two_moons.png"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="is not a run folder"):
        write_report(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two_moons.json", "two_moons.png"]


def test_sibling_stages_of_other_settings_are_told(unfinished: Path) -> None:
    folder = next(unfinished.glob("rounds/1/select-*"))
    shutil.copytree(folder, folder.with_name("select-ffffffff"))
    assert "1 stages of other settings" in text_of(unfinished)


def test_a_lost_file_is_left_out_or_the_message_says_how_to_have_it_again(run: Path) -> None:
    way = r"; (delete .* and )?type the command (that made it|of the run) again|config\.yaml; give the --run-dir"
    for path in [path for path in run.rglob("*") if path.is_file() and path.suffix not in (".html", ".lock")]:
        content = path.read_bytes()
        for is_left in (False, True):
            path.write_bytes(b"") if is_left else path.unlink()
            try:
                read_run(run)
            except UserError as error:
                assert re.search(way, str(error)), (path, error)  # noqa: PT017 - most files raise nothing
            path.write_bytes(content)
