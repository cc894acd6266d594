"""With `rounds.judges` several students of one round decide, and label together. Stages are invented, folders real."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fake_stages import FakeStages, with_section

from pipeline.config import Config, NetworkSettings
from pipeline.files import read_json
from pipeline.methods.round import Round, is_surely_worse
from pipeline.runs.loop import run_loop
from pipeline.stages.jobs import LabelJob, TrainJob


class Draws(FakeStages):
    """Students whose accuracy on val depends on their seed: round -> one per draw."""

    def __init__(self, teacher: float, **of_round: tuple[float, ...]) -> None:
        super().__init__(teacher)
        self.of_round = {int(name[1:]): draws for name, draws in of_round.items()}

    def write(self, out: Path, job: TrainJob, settings: NetworkSettings, val: float) -> None:
        draws = self.of_round.get(job.round, ()) if job.role in ("student", "judge") else ()
        draw = job.seed // 1_000_003
        super().write(out, job, settings, draws[draw] if draws else val)


@pytest.fixture
def judged(config: Config) -> Config:
    return with_section(config, "rounds", num_rounds=2, judges=3, patience=2)


def test_the_mean_of_all_decides_not_the_luck_of_one(judged: Config, tmp_path: Path) -> None:
    stages = Draws(0.8, r1=(0.85, 0.7, 0.7), r2=(0.79, 0.86, 0.86))
    result = run_loop(judged, tmp_path, run_stage=stages)
    assert [entry["kept"] for entry in result["rounds"]] == [True, False, True]
    assert result["rounds"][1]["judged"] == pytest.approx((0.85 + 0.7 + 0.7) / 3, abs=0.005)
    assert result["final"]["round"] == 2
    assert len(result["rounds"][2]["judges"]) == 2


def test_students_differ_in_nothing_but_their_seeds(judged: Config, tmp_path: Path) -> None:
    stages = Draws(0.8, r1=(0.85, 0.85, 0.85), r2=(0.86, 0.86, 0.86))
    run_loop(judged, tmp_path, run_stage=stages)
    trained = [job for job in stages.jobs if isinstance(job, TrainJob) and job.role in ("student", "judge")]
    first, *others = [job for job in trained if job.round == 1]
    assert [job.role for job in others] == ["judge", "judge"]
    assert len({job.seed for job in (first, *others)}) == 3
    assert {job.training.model_dump_json() for job in (first, *others)} == {first.training.model_dump_json()}


def test_all_of_them_label_for_the_next_round(judged: Config, tmp_path: Path) -> None:
    stages = Draws(0.8, r1=(0.85, 0.84, 0.86), r2=(0.86, 0.86, 0.86))
    result = run_loop(judged, tmp_path, run_stage=stages)
    second = next(job for job in stages.jobs if isinstance(job, LabelJob) and job.round == 2)
    entry = result["rounds"][1]
    assert {path.relative_to(tmp_path.resolve()) for path in second.teachers} == {
        Path(entry["train_dir"]),
        *map(Path, entry["judges"]),
    }


def test_one_judge_is_the_run_as_it_was(config: Config, tmp_path: Path) -> None:
    first, second = FakeStages(0.8, 0.85), FakeStages(0.8, 0.85)
    run_loop(with_section(config, "rounds", num_rounds=1), tmp_path / "a", run_stage=first)
    run_loop(with_section(config, "rounds", num_rounds=1, judges=1), tmp_path / "b", run_stage=second)
    assert [job.out.name for job in first.jobs] == [job.out.name for job in second.jobs]
    assert read_json(tmp_path / "a" / "result.json")["rounds"][1]["judges"] == []


def test_several_students_on_the_same_images_do_not_make_val_larger(judged: Config, tmp_path: Path) -> None:
    """Three copies of one student are as surely worse as one."""
    stages = Draws(0.8, r1=(0.79, 0.79, 0.79), r2=(0.7, 0.7, 0.7))
    rounds: list[Round] = []
    run_loop(judged, tmp_path, run_stage=stages, on_round=rounds.append)
    for student in rounds[1:]:
        alone = Round(**{**vars(student), "judges": ()})
        assert is_surely_worse(student, rounds[0], "top1") == is_surely_worse(alone, rounds[0], "top1")
    assert [is_surely_worse(r, rounds[0], "top1") for r in rounds[1:]] == [False, True]
