"""Meta Pseudo Labels on real digits: exact resume, any number of ranks, and the run around the stage."""

from __future__ import annotations

import json
import random
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.processes import HAS_BF16, method_job, outputs, run, signal_at
from support.ranks import in_two, run_ranks
from support.spoilers import record_draws
from support.tiny_net import register

from pipeline.config import Config, changed, parse, unread_keys
from pipeline.errors import EXIT_INTERRUPTED, UserError
from pipeline.models.format import load_model, model_digest
from pipeline.report import plots
from pipeline.report.lineage import draw
from pipeline.report.page import write_report
from pipeline.report.record import read_run
from pipeline.report.verdict import judge
from pipeline.runs.loop import run_loop
from pipeline.stages.folder import stage_record
from pipeline.stages.jobs import TrainJob
from pipeline.stages.launch import run_job
from pipeline.train.checkpoint import Checkpoints
from pipeline.train.schedule import lr_at

pytestmark = pytest.mark.process


def meta_job(config: Config, out: Path, *, tiny: bool = False, joint_batch: bool = True, **meta: object) -> TrainJob:
    if tiny:  # no BatchNorm, no dropout
        plain = {"model": "selftrain_tiny", "model_args": {}, "dropout": 0.0, "steps": 20}
        config = changed(config, **{name: changed(getattr(config, name), **plain) for name in ("teacher", "student")})
    uda = changed(config.uda, joint_batch=joint_batch)
    return method_job(changed(config, uda=uda, meta=changed(config.meta, **meta)), out)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A meta stage that nobody disturbed."""
    return run(meta_job(config, tmp_path_factory.mktemp("meta") / "whole"))


# -------------------------------------------------------------------------------------------------------------- outputs


def test_the_stage_holds_student_and_teacher_as_models(whole: Path) -> None:
    for folder in (whole, whole / "teacher"):
        assert stage_record(folder)["complete"]
        _, info = load_model(folder)
        assert info.metrics["val"]["num_samples"] > 300
    first, second = load_file(whole / "model.safetensors"), load_file(whole / "teacher" / "model.safetensors")
    assert not torch.equal(first["fc.weight"], second["fc.weight"])


def test_metrics_show_the_feedback_and_both_accuracies(config: Config, whole: Path) -> None:
    losses = [line for line in lines(whole) if "loss" in line]
    assert losses[0]["feedback"] is None  # the student waits for 5 steps
    for line in losses:
        assert line["teacher_lr"] == lr_at(line["step"] - 1, config.teacher, steps=40, num_images=32)
    waited = [lr_at(line["step"] - 6, config.student, steps=35, num_images=32) for line in losses[1:]]
    assert [line["lr"] for line in losses] == [0.0, *waited]
    for line in losses[1:]:
        assert {"feedback", "baseline", "cosine", "feedback_gradient", "uda_gradient", "mask_rate"} <= set(line)
        assert -1 <= line["cosine"] <= 1
        assert 0 <= line["mask_rate"] <= 1
    evaluations = [line for line in lines(whole) if "val_top1" in line]
    assert len(evaluations) == 4
    assert all(0 <= line["teacher_val_top1"] <= 1 for line in evaluations)


def test_every_image_of_every_step_has_a_draw_of_its_own(config: Config, tmp_path: Path) -> None:
    job = meta_job(config, tmp_path / "job", tiny=True)
    run(job, partial(record_draws, tmp_path / "draws.jsonl"))
    draws = np.array([json.loads(line) for line in (tmp_path / "draws.jsonl").read_text().splitlines()])
    assert draws.shape == (20, 64)
    assert len(np.unique(draws)) > 0.99 * draws.size
    assert abs(draws.mean() - 0.5) < 0.05
    assert abs(draws.std() - 12**-0.5) < 0.03


# --------------------------------------------------------------------------------------------------------------- resume


def test_resume_is_bit_exact_after_kill(config: Config, whole: Path, tmp_path: Path) -> None:
    """Both networks, both optimizers, averages and baseline: killed three times at random points."""
    job, moments = meta_job(config, tmp_path / "cut"), random.Random(0)
    for step in (10, 20, 30):
        assert signal_at(job, step, moments.uniform(0, 0.1)) == -9
    assert outputs(run(job)) == outputs(whole)


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16 units")
def test_resume_is_bit_exact_in_bf16_with_weak_views_apart(config: Config, tmp_path: Path) -> None:
    """What configs/cifar10_4k_meta.yaml is on a CPU with bf16."""
    settings = {"joint_batch": False, "label_temperature": 0.5}
    whole, cut = (meta_job(config, tmp_path / name, **settings) for name in ("whole", "cut"))
    whole, cut = (changed(job, runtime=changed(job.runtime, precision="bf16")) for job in (whole, cut))
    assert signal_at(cut, 25, 0.02) == -9
    assert outputs(run(cut)) == outputs(run(whole))


def test_a_stop_saves_and_goes_on_to_the_same_bytes(config: Config, whole: Path, tmp_path: Path) -> None:
    job = meta_job(config, tmp_path / "stopped")
    assert signal_at(job, 15, signum=signal.SIGTERM) == EXIT_INTERRUPTED
    assert outputs(run(job)) == outputs(whole)


# ---------------------------------------------------------------------------------------------------------------- modes


def test_off_equals_uda_bit_for_bit(config: Config, uda_config: Config, tmp_path: Path) -> None:
    off = run(meta_job(config, tmp_path / "off", feedback="off"))
    uda = run(method_job(uda_config, tmp_path / "uda"))
    weights = (folder / "model.safetensors" for folder in (off / "teacher", uda))
    first, second = (load_file(path) for path in weights)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "feedback" not in lines(off)[0]


@pytest.mark.parametrize("feedback", ["cosine", "finite-difference"])
def test_other_feedbacks_train_to_the_end(config: Config, tmp_path: Path, whole: Path, feedback: str) -> None:
    folder = run(meta_job(config, tmp_path / feedback, feedback=feedback))
    assert lines(folder)[-1]["step"] == 40
    assert (folder / "model.safetensors").read_bytes() != (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "meta", [{"feedback": "exact"}, {"feedback": "finite-difference", "joint_batch": False}, {"teacher": "adjuster"}]
)
def test_two_ranks_equal_one_process_feedback_included(
    config: Config, labels: Path, tmp_path: Path, meta: dict[str, Any]
) -> None:
    """Each rank has half of the batch, so equal feedback means averaged gradients and the same sampled labels."""
    one = meta_job(config, tmp_path / "one", tiny=True, **meta)
    if "teacher" in meta:
        one = changed(one, labels=labels)
    run(one, register)
    two = in_two(one, tmp_path, "two")
    assert run_ranks(two) == [0, 0]
    seen: set[str] = set()
    for first, second in zip(lines(one.out), lines(two.out), strict=True):
        for name, value in first.items():
            if value is not None:
                assert second[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
                seen.add(name)
    assert {"feedback", "baseline", "feedback_gradient", "uda_gradient", "student_loss", "val_top1"} <= seen
    for part in (".", "teacher") if "teacher" not in meta else (".",):
        first, second = (load_file(job.out / part / "model.safetensors") for job in (one, two))
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=1e-6)


def test_two_ranks_with_batchnorm_and_dropout_resume_bit_exact_after_kill(config: Config, tmp_path: Path) -> None:
    whole, cut = (in_two(meta_job(config, tmp_path / name), tmp_path, name) for name in ("whole", "cut"))
    assert run_ranks(whole) == [0, 0]
    assert run_ranks(cut, kill_at=25) == [-9, -9]
    assert run_ranks(cut) == [0, 0]
    assert outputs(cut.out) == outputs(whole.out)


# -------------------------------------------------------------------------------------------------------------- the run


def run_here(config: Config, folder: Path) -> dict[str, Any]:
    return run_loop(config, folder, run_stage=run_job)


def test_a_run_ends_with_teacher_student_and_finetune(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = config.model_dump(mode="json")
    raw["finetune"] = {"image_size": 8, "steps": 10, "batch_size": 32}
    raw["student"]["keep"] = raw["teacher"]["keep"] = "best"
    result = run_here(parse(Config, raw, "tests"), tmp_path / "run")
    assert [(r["round"], r["role"]) for r in result["rounds"]] == [(0, "teacher"), (1, "student"), (2, "finetune")]
    student, finetune = (tmp_path / "run" / entry["train_dir"] for entry in result["rounds"][1:])
    assert stage_record(finetune)["inputs"]["start"] == model_digest(student)
    last = Checkpoints(student, stage_record(student)["fingerprint"], keep=1).load_last()
    assert last is not None
    teacher = load_file(student / "teacher" / "model.safetensors")
    assert all(torch.equal(teacher[name], value) for name, value in last["teacher"]["ema"].items())
    final = result["final"]
    assert all(0 < final[key] <= 1 for key in ("test_top1", "teacher_test_top1", "control_test_top1"))
    record = stage_record(tmp_path / "run" / final["control_dir"])
    assert record["config"]["training"]["unlabeled_ratio"] == 0
    shown: dict[str, list[float]] = {}

    def learning_curves(losses: list[plots.Curve], *_: object) -> bytes:
        shown.update({name: list(values) for name, _, values in losses})
        return b""

    monkeypatch.setattr(plots, "learning_curves", learning_curves)
    page = write_report(tmp_path / "run").read_text()
    measured = [line for line in lines(student) if "loss" in line]
    assert shown["Round 0 teacher"] == [line["loss"] for line in measured]
    assert shown["Round 1 student"] == [line["student_loss"] for line in measured if line["student_loss"] is not None]
    assert "<h2>Meta Pseudo Labels</h2>" in page
    assert page.count("Curves of Meta Pseudo Labels") == 2


def test_uda_runs_alone_and_trains_the_teacher_of_a_run_without_feedback(
    config: Config, uda_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uda = run_here(uda_config, tmp_path / "uda")
    assert [(r["round"], r["role"]) for r in uda["rounds"]] == [(1, "student")]
    assert uda["final"]["teacher_test_top1"] is None
    assert all(0 < uda["final"][key] <= 1 for key in ("test_top1", "control_test_top1"))
    gains = judge(read_run(tmp_path / "uda")).gains
    assert set(gains) == {"control"}
    shown: list[str] = []
    monkeypatch.setattr(plots, "teacher_and_student", lambda _, curves: shown.extend(c[0] for c in curves) or b"")
    write_report(tmp_path / "uda")
    assert shown == ["student"]
    meta, evaluate = changed(config.meta, feedback="off"), changed(config.evaluate, control=False)
    off = run_here(changed(config, meta=meta, evaluate=evaluate), tmp_path / "off")
    of = [tmp_path / name / run["rounds"][0]["train_dir"] for name, run in (("uda", uda), ("off", off))]
    first, second = (load_file(folder / "model.safetensors") for folder in of)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_reduced_meta_adjusts_the_stored_labels_of_a_big_teacher(config: Config, tmp_path: Path) -> None:
    raw = config.model_dump(mode="json")
    own = {key: raw["student"][key] for key in ("image_size", "mean", "std", "weak")}
    warmup = 45  # longer than the whole of the student's training
    raw["teacher"] |= {"steps": 60, "warmup_steps": warmup, **own}
    raw["meta"] |= {"teacher": "adjuster"}
    result = run_here(parse(Config, raw, "tests"), tmp_path / "run")
    assert [r["role"] for r in result["rounds"]] == ["teacher", "student"]
    student = tmp_path / "run" / result["rounds"][1]["train_dir"]
    assert "labels" in stage_record(student)["inputs"]
    feedback = [line["feedback"] for line in lines(student) if line.get("feedback") is not None]
    assert np.any(np.array(feedback) != 0)
    assert result["rounds"][1]["val_top1"] > 0.3
    assert [line["teacher_lr"] for line in lines(student) if "loss" in line][1] > 0
    assert len(draw(read_run(tmp_path / "run"), {}).arrows) == 2  # from the teacher to its labels to the student


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("teacher", {"warmup_steps": 40}, r"teacher.warmup_steps is 40, not below student.steps \(40\), .* lower it"),
        ("student", {"accumulation": 2}, "student.accumulation is 2, but .* set it to 1"),
        ("meta", {"student_wait": 39}, r"student_wait \(39\) and .*warmup_steps \(5\) leave nothing of .*steps \(40\)"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    config: Config, section: str, values: dict[str, Any], message: str
) -> None:
    raw = config.model_dump(mode="json")
    raw[section] |= values
    with pytest.raises(UserError, match=message):
        parse(Config, raw, "my.yaml")


def test_the_stream_is_the_students_and_a_teachers_own_is_told_to_be_unread(config: Config, tmp_path: Path) -> None:
    """What had to be equal once plays no part now: the job is the same."""
    other = changed(config, teacher=changed(config.teacher, steps=70, keep="best", image_size=16))
    assert unread_keys(config) == []
    assert unread_keys(other) == ["teacher.image_size", "teacher.steps", "teacher.keep"]
    assert method_job(other, tmp_path) == method_job(config, tmp_path)
