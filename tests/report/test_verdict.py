"""What a report concludes, and when it does not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.run_folder import edit, text_of

from pipeline.config import Config, Data, changed, dump_yaml
from pipeline.report.record import TrainRecord, read_run
from pipeline.report.verdict import judge


def test_the_verdict_follows_the_interval_over_the_control(run: Path) -> None:
    assert judge(read_run(run)).sentences[-1] == "So the unlabeled images helped."
    evaluation = next(run.glob("evaluate-*"))
    edit(evaluation / "stage.json", lambda record: record.pop("digests"))
    answers = {p.stem: p for p in evaluation.glob("*.npz")}
    shutil.copy(answers["predictions-final"], answers["predictions-control"])
    assert "within chance" in judge(read_run(run)).sentences[-1]
    shutil.copy(answers["predictions-teacher"], answers["predictions-final"])
    shutil.copy(answers["predictions-final"], answers["predictions-control"])
    with np.load(answers["predictions-final"]) as arrays:
        values = dict(arrays)
    np.savez(answers["predictions-control"], **{**values, "pred": values["label"]})
    assert judge(read_run(run)).sentences[-1] == "So the unlabeled images did harm."


def test_without_control_the_verdict_says_what_is_open(run: Path) -> None:
    evaluation = next(run.glob("evaluate-*"))
    edit(evaluation / "test.json", lambda t: t.pop("control"))
    edit(run / "result.json", lambda r: r["final"]["test"].pop("control"))
    assert judge(read_run(run)).sentences[-1] == "The control is missing: the gain may come from longer training alone."
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

    def name_it_so(ledger: dict) -> None:
        of_round_2 = [entry for entry in ledger["stages"] if entry["folder"].startswith("rounds/2/")]
        *labels_and_selection, trained = of_round_2
        ledger["stages"] = [entry for entry in ledger["stages"] if entry not in labels_and_selection]
        trained.update(role="finetune")

    edit(run / "result.json", finetune)
    edit(run / "stages.json", name_it_so)
    teacher = read_run(run).rounds[0].train
    assert teacher is not None
    digest = teacher.record["outputs"]["model_sha256"]
    edit(next(run.glob("rounds/2/train-*")) / "stage.json", lambda r: r["inputs"].update(start=digest))
    verdict = judge(read_run(run))
    assert "so the teacher, fine-tuned, is the final model" in verdict.sentences[0]
    assert not verdict.gains


def test_a_teacher_trained_together_with_its_student_is_held_against_the_control(run: Path) -> None:
    edit(run / "result.json", lambda r: r["final"].update(round=0))
    edit(next(run.glob("rounds/0/train-*")) / "stage.json", lambda r: r["inputs"].update(unlabeled="images"))
    seen = read_run(run)
    verdict = judge(replace(seen, config=Config(method="meta", data=seen.config.data)))
    assert set(verdict.gains) == {"control"}
    assert "a control trained as long" in verdict.sentences[0]


def test_a_student_that_never_had_a_teacher_is_held_against_the_control_alone(run: Path) -> None:
    """As UDA's."""

    def without_others(ledger: dict) -> None:
        of_round_1 = [entry for entry in ledger["stages"] if entry["folder"].startswith("rounds/1/train-")]
        ends = [entry for entry in ledger["stages"] if not entry["folder"].startswith("rounds/")]
        ledger["stages"] = [*of_round_1, *ends]

    def of_one_model(result: dict) -> None:
        entry = {**result["rounds"][1], "label_dir": None, "select_dir": None}
        result.update(rounds=[entry], final={**result["final"], "round": 1})
        result["final"]["test"].pop("teacher")

    config = Config(method="uda", data=read_run(run).config.data)
    (run / "config.yaml").write_text(dump_yaml(config))
    edit(run / "stages.json", without_others)
    edit(run / "result.json", of_one_model)
    edit(next(run.glob("evaluate-*")) / "test.json", lambda t: t.pop("teacher"))
    edit(next(run.glob("rounds/1/train-*")) / "stage.json", lambda r: r.update(inputs={"unlabeled": "images"}))
    verdict = judge(read_run(run))
    assert set(verdict.gains) == {"control"}
    assert "The final model, of round 1, " in verdict.sentences[0]
    assert "Round 0 teacher" not in text_of(run)
    edit(next(run.glob("evaluate-*")) / "test.json", lambda t: t.pop("control"))
    edit(run / "result.json", lambda r: r["final"]["test"].pop("control"))
    last = judge(read_run(run)).sentences[-1]
    assert last == "The control is missing: what the unlabeled images were worth is not known.", "no gain is shown"


def test_a_teacher_that_is_a_probe_has_one_name_and_each_doubt_is_said_once(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainRecord, "is_probe", property(lambda train: train.role == "teacher"))
    assert "above the round 0 teacher (a probe of the labels alone) and " in judge(read_run(run)).sentences[0]
    evaluation = next(run.glob("evaluate-*"))
    edit(evaluation / "stage.json", lambda record: record.pop("digests"))
    for name in ("teacher", "control"):
        shutil.copy(evaluation / "predictions-final.npz", evaluation / f"predictions-{name}.npz")
    *_, of_control, of_probe = judge(read_run(run)).sentences
    assert of_control.endswith("test does not show that the unlabeled images helped.")
    assert of_probe == "Nor does test show that the final model is better than a probe of the labels alone."


def test_without_a_test_split_the_run_is_finished_all_the_same(run: Path) -> None:
    edit(run / "result.json", lambda r: r["final"].update(test={}))
    seen = read_run(run)
    verdict = judge(replace(seen, config=changed(seen.config, data=Data(labeled=(Path("a.tar"),)))))
    assert verdict.finished
    assert "no test split" in verdict.sentences[-1]


def spoil_class(run: Path, name: str, changes: dict[int, int], keep: dict[int, int]) -> None:
    """Let a model take all images of some classes for others, of test images of which some classes have few."""
    path = next(run.glob("evaluate-*")) / f"predictions-{name}.npz"
    edit(path.parent / "stage.json", lambda record: record.pop("digests", None))
    with np.load(path) as arrays:
        values = dict(arrays)
    for of, instead in changes.items():
        values["pred"][values["label"] == of] = instead
    few = np.ones(len(values["label"]), bool)
    for of, count in keep.items():
        few[np.flatnonzero(values["label"] == of)[count:]] = False
    np.savez(path, **{key: value[few] for key, value in values.items()})


def test_of_uneven_classes_the_verdict_says_what_accuracy_hides(run: Path) -> None:
    assert "uneven" not in " ".join(judge(read_run(run)).sentences)
    for name in ("final", "teacher", "control"):
        spoil_class(run, name, {9: 0} if name == "final" else {}, {9: 5})
    last = judge(read_run(run)).sentences[-1]
    assert "The classes are uneven (5 to " in last
    assert "counting each alike, its balanced accuracy is " in last
    assert "the teacher" in last
    assert "balanced accuracy on test<br>" in text_of(run)


def test_a_run_that_is_judged_by_another_figure_is_concluded_by_it(run: Path) -> None:
    seen = read_run(run)
    by = changed(seen.config, rounds=changed(seen.config.rounds, judge_by="balanced_accuracy"))
    (run / "config.yaml").write_text(dump_yaml(by))
    for name in ("final", "teacher", "control"):
        spoil_class(run, name, {c: 0 for c in range(1, 10)} if name == "final" else {}, dict.fromkeys(range(1, 10), 4))
    verdict = judge(read_run(run))
    assert "balanced accuracy on " in verdict.sentences[0]
    assert verdict.gains["control"].points < -0.2
    assert "points of balanced accuracy over" in text_of(run)
