"""Rates that fall in steps and on plateaus of val, against torch's own schedulers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import outputs, run, signal_at, train_job
from support.ranks import in_two, run_ranks

from pipeline.config import Config, Finetune, Schedule, Training, changed, parse, semantic
from pipeline.errors import UserError
from pipeline.stages.jobs import TrainJob
from pipeline.train.schedule import lr_at, peak_lr

PATIENCE = 2


def rates(**values: Any) -> list[float]:
    training = Training(**values)
    return [lr_at(step, training, steps=training.steps, num_images=training.peak_images) for step in range(40)]


def torchs(make: Any, peak: float, steps: int = 40) -> list[float]:
    """The rates of a scheduler of torch over so many steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


# ---------------------------------------------------------------------------------------------------------------- step


def test_every_so_many_steps_and_at_milestones_the_rate_is_that_of_torch() -> None:
    peak = peak_lr(Training(), Training().peak_images)
    every = rates(steps=40, schedule={"name": "step", "every": 12, "factor": 0.5})
    assert every == pytest.approx(torchs(lambda o: torch.optim.lr_scheduler.StepLR(o, 12, 0.5), peak))
    at = rates(steps=40, schedule={"name": "step", "milestones": [7, 30]})
    assert at == pytest.approx(torchs(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [7, 30], 0.1), peak))


def test_by_default_it_falls_as_in_bag_of_tricks() -> None:
    """Section 2.1: divided by 10 at the 30th, 60th and 90th of 120 epochs."""
    assert Schedule(name="step").falls(120) == (30, 60, 90)


def test_warm_up_comes_before_every_schedule() -> None:
    warm = {"steps": 40, "warmup_steps": 8}
    first = rates(**warm)[:8]
    assert rates(**warm, schedule={"name": "step"})[:8] == first
    assert rates(**warm, schedule={"name": "plateau"})[:8] == first


def test_the_cosine_is_off_however_it_is_written() -> None:
    assert semantic(Training(schedule={"name": "cosine"})) == semantic(Training())  # type: ignore[arg-type]
    assert rates(schedule={"name": "cosine"}) == rates()


# ------------------------------------------------------------------------------------------------------------- plateau


def make(digits: Config, out: Path, **changes: Any) -> TrainJob:
    """A rate so high that val stalls now and then."""
    values = {"steps": 120, "evaluations": 40, "warmup_steps": 10, "ema_decay": 0.8, "optimizer": {"lr": 1.0}}
    schedule = {"name": "plateau", "factor": 0.5, "patience": PATIENCE}
    raw = {**digits.teacher.model_dump(), **values, "schedule": schedule, "keep": "best", **changes}
    return changed(train_job(digits, out, training=Training.model_validate(raw)), judge_by="macro_f1")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(digits: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training to its end, with a line per step."""
    job = make(digits, tmp_path_factory.mktemp("plateau") / "whole")
    return run(changed(job, runtime=changed(job.runtime, log_every=1)))


def expected_rates(found: list[dict[str, Any]], peak: float, rises: int) -> dict[int, float]:
    """Step -> the rate of torch's scheduler, which is shown each evaluation after the first `rises` steps. Its patience
    is the number of evaluations that it takes without lowering the rate, so one less than ours."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=PATIENCE - 1, threshold=0.0
    )
    rate_of = {}
    for line in sorted(found, key=lambda line: (line["step"], "val_macro_f1" in line)):
        if "lr" in line:
            rate_of[line["step"]] = optimizer.param_groups[0]["lr"]
        elif line["step"] <= rises:
            scheduler.best = max(scheduler.best, line["val_macro_f1"])
        else:
            scheduler.step(line["val_macro_f1"])
    return rate_of


@pytest.mark.process
def test_on_a_plateau_of_the_judged_figure_every_step_has_the_rate_of_torch(digits: Config, whole: Path) -> None:
    training = make(digits, whole).training
    found = {line["step"]: line["lr"] for line in lines(whole) if "lr" in line}
    expected = expected_rates(lines(whole), peak_lr(training, training.peak_images), rises=10)
    assert [found[step] for step in range(11, 121)] == pytest.approx([expected[step] for step in range(11, 121)])
    assert len({found[step] for step in range(11, 121)}) > 2, "it never falls: choose another rate"


@pytest.mark.process
def test_after_kills_the_rate_falls_at_the_same_steps(digits: Config, tmp_path: Path, whole: Path) -> None:
    """The steps at which it fell are in the checkpoints."""
    cut = make(digits, tmp_path / "cut")
    cut = changed(cut, runtime=changed(cut.runtime, log_every=1))
    for step in (45, 100):
        signal_at(cut, step)
    assert outputs(run(cut)) == outputs(whole)


@pytest.mark.slow
@pytest.mark.process
def test_two_ranks_fall_at_the_same_steps(digits: Config, tmp_path: Path) -> None:
    """If they did not, their weights would part, and a resume would not end with the same bytes."""
    job = make(digits, tmp_path / "one")
    first, cut = (in_two(job, tmp_path, name) for name in ("first", "cut"))
    assert run_ranks(first) == [0, 0]
    assert run_ranks(cut, kill_at=60) == [-9, -9]
    assert run_ranks(cut) == [0, 0]
    assert outputs(cut.out) == outputs(first.out)
    state = torch.load(first.out / "checkpoints/step-000000120.pt", weights_only=True)
    assert state["falls"]


@pytest.mark.process
def test_a_continued_training_goes_on_at_the_lowered_rate(digits: Config, tmp_path: Path, whole: Path) -> None:
    job = make(digits, tmp_path / "more", steps=129, evaluations=43, start={"model": str(whole), "mode": "continue"})
    falls = torch.load(whole / "checkpoints/step-000000120.pt", weights_only=True)["falls"]
    first = next(line for line in lines(run(job)) if "lr" in line)
    peak = peak_lr(job.training, job.training.peak_images)
    assert first["lr"] == pytest.approx(peak * 0.5 ** len(falls))
    assert falls


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"evaluations": 1, "schedule": {"name": "plateau"}}, r"patience is 2, .*only 1 evaluations.* to 4 or more"),
        ({"evaluations": 4, "schedule": {"name": "plateau", "patience": 3}}, r"patience is 3, .* to 5 or more"),
        ({"early_stop": 2, "schedule": {"name": "plateau"}}, r"early_stop is 2, not above schedule\.patience \(2\)"),
        ({"schedule": {"name": "step", "every": 20_000}}, r"fall at step 20000, but there are only 10000 steps"),
        ({"schedule": {"name": "step", "milestones": [3, 10_000]}}, r"fall at step 10000, but there are only 10000"),
        ({"warmup_steps": 5, "schedule": {"name": "step", "milestones": [5]}}, r"within the warm-up of 5 steps"),
        ({"schedule": {"name": "step", "every": 9, "milestones": [9]}}, r"every and milestones are both set; drop one"),
        ({"schedule": {"name": "step", "milestones": [9, 5]}}, r"milestones are \[9, 5\], .* sort them"),
        ({"schedule": {"name": "step", "patience": 5}}, r"patience is 5, which step does not read; drop it"),
        ({"schedule": {"name": "plateau", "every": 5}}, r"every is 5, which plateau does not read; drop it"),
        ({"schedule": {"name": "cosine", "factor": 0.5}}, r"factor is 0\.5, which cosine does not read; drop it"),
    ],
)  # fmt: skip
def test_a_rate_that_could_not_fall_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(Training, values, "x")


def test_a_fine_tune_has_a_schedule_too() -> None:
    assert Finetune(image_size=8, schedule={"name": "step"}).schedule == Schedule(name="step")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"patience is 9, but there are only 10 evaluations"):
        parse(Finetune, {"image_size": 8, "schedule": {"name": "plateau", "patience": 9}}, "x")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"teacher": {"schedule": {"name": "plateau"}}}, r"teacher\.schedule\.name is plateau, .* the student"),
        (
            {"meta": {"student_wait": 500}, "student": {"steps": 1000, "schedule": {"name": "step", "every": 600}}},
            r"student\.schedule: .* fall at step 600, but there are only 500 steps",
        ),
        (
            {"teacher": {"schedule": {"name": "step", "every": 300}}, "student": {"steps": 200}},
            r"teacher\.schedule: .* fall at step 300, but there are only 200 steps",
        ),
    ],
)  # fmt: skip
def test_the_schedules_of_meta_pseudo_labels_fit_their_steps(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(Config, {"method": "meta", **sections}, "x")
