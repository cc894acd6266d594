"""Students that grow from round to round: the configs of the rounds as values, and what cannot grow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.fake_stages import FakeStages, with_section
from support.processes import run

from pipeline.config import Config, Training, changed, parse, semantic, unread_keys
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.models.cost import cost_of
from pipeline.models.format import read_info
from pipeline.runs.loop import run_loop
from pipeline.stages.jobs import Job

SCALED = {"model": "efficientnet", "model_args": {"phi": -1}, "image_size": 64, "evaluation_size": 80}


def config_of(rounds: dict[str, Any], **student: Any) -> Config:
    return parse(Config, {"rounds": rounds, "student": {**SCALED, **student}}, "c.yaml")


def students(config: Config, key: str = "model_args") -> list[Any]:
    return [getattr(config.for_round(number).student, key) for number in (1, 2, 3)]


def test_each_student_is_a_step_larger_than_the_one_before() -> None:
    config = config_of({"grow": 1})
    assert students(config) == [{"phi": -1}, {"phi": 0}, {"phi": 1}]
    assert students(config, "image_size") == [64, 64, 64]
    assert students(config_of({"grow": 0.5})) == [{"phi": -1}, {"phi": -0.5}, {"phi": 0}]
    assert students(config_of({})) == [{"phi": -1}] * 3


def test_images_grow_along_when_asked() -> None:
    """64 * 1.15 is 73.6, and 64 * 1.15^2 is 84.64; of 80 they are 92 and 105.8. Sides are multiples of 4."""
    config = config_of({"grow": 1, "grow_image_size": True})
    assert students(config, "image_size") == [64, 72, 84]
    assert students(config, "evaluation_size") == [80, 92, 104]
    other = config_of({"grow": 1, "grow_image_size": True}, evaluation_size=0)
    assert students(other, "evaluation_size") == [0, 0, 0]


def test_other_arguments_and_keys_stay_as_they_are() -> None:
    config = config_of({"grow": 2}, model_args={"phi": 0, "reduction": 4, "bn_momentum": 0.01})
    grown = config.for_round(2)
    assert grown.student.model_args == {"phi": 2, "reduction": 4, "bn_momentum": 0.01}
    same = {"student": grown.student.model_copy(update={"model_args": config.student.model_args})}
    assert grown.model_copy(update={**same, "rounds": config.rounds}) == config
    assert grown.for_round(2) == grown, "a round does not grow twice"


def test_overrides_win_over_growth() -> None:
    config = config_of({"grow": 1, "overrides": [{}, {"student.model_args.phi": 7}, {"student.steps": 5}]})
    assert students(config) == [{"phi": -1}, {"phi": 7}, {"phi": 1}]


def test_rounds_on_features_do_not_count() -> None:
    teacher = {"model": "resnet18", "start": {"model": "timm:resnet18"}, "probe": {}}
    config = parse(Config, {"rounds": {"grow": 1, "on_features": 2}, "teacher": teacher, "student": SCALED}, "c.yaml")
    assert [config.for_round(number).student.model_args["phi"] for number in (1, 2, 3, 4, 5)] == [-1, -1, -1, 0, 1]


def test_off_it_is_in_no_fingerprint() -> None:
    assert {"grow", "grow_image_size"}.isdisjoint(semantic(Config().rounds))
    assert semantic(config_of({"grow": 1}).rounds)["grow"] == 1


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"rounds": {"grow": 1}}, r"rounds\.grow \(1\) is added to student\.model_args\.phi, but that is None; set it"),
        (
            {"rounds": {"grow": 1}, "student": {**SCALED, "model_args": {"phi": "2"}}},
            "but that is 2; set it to the size",
        ),
        ({"rounds": {"grow": 1, "start": "init"}, "student": SCALED}, "which is smaller; set start to scratch"),
        (
            {"rounds": {"grow": 1}, "student": {**SCALED, "start": {"model": "b0.safetensors"}}},
            r"student\.start has the weights of one size.*drop student\.start",
        ),
        ({"rounds": {"grow_image_size": True}}, "grow_image_size is true, but grow is 0; set grow to 1"),
        ({"rounds": {"grow": -1}, "student": SCALED}, "greater than or equal to 0"),
        ({"method": "uda", "rounds": {"grow": 1}}, r"rounds\.grow is set, but method uda has no rounds; drop it"),
    ],
)
def test_what_cannot_grow_is_explained(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(Config, raw, "c.yaml")


def test_noisy_student_reads_it() -> None:
    assert unread_keys(config_of({"grow": 1, "grow_image_size": True})) == []


def growing(digits: Config) -> Config:
    """Two students on digits, of phi -9 and -6, whose images grow from 8 to 12 pixels."""
    args = {"phi": -9, "reduction": 4}
    student = digits.student.model_copy(update={"model": "efficientnet", "model_args": args, "steps": 3})
    student = changed(student, warmup_steps=0, evaluations=1)
    config = changed(digits, student=student, evaluate=changed(digits.evaluate, control=False))
    return with_section(config, "rounds", num_rounds=2, grow=3, grow_image_size=True, tolerance=1.0, patience=2)


def test_a_run_asks_for_larger_networks(digits: Config, tmp_path: Path) -> None:
    stages = FakeStages(0.6, 0.7, 0.8)
    run_loop(growing(digits), tmp_path, run_stage=stages)
    trainings: list[Training] = [job.training for job in stages.of("train", "student")]
    assert [(t.model_args["phi"], t.image_size) for t in trainings] == [(-9, 8), (-6, 12)]


@pytest.mark.process
def test_a_run_trains_and_judges_larger_networks(digits: Config, tmp_path: Path) -> None:
    def run_stage(job: Job, lock_fd: int) -> None:
        run(job)

    result = run_loop(growing(digits), tmp_path / "run", run_stage=run_stage)
    folders = [tmp_path / "run" / entry["train_dir"] for entry in result["rounds"] if entry["role"] == "student"]
    costs = [cost_of(read_info(folder)) for folder in folders]
    assert [read_info(folder).input_size for folder in folders] == [(3, 8, 8), (3, 12, 12)]
    assert costs[0].parameters < costs[1].parameters
    assert costs[0].flops < costs[1].flops
    assert all(read_json(folder / "evaluation-val.json")["num_samples"] == 359 for folder in folders)
