"""What the page of a run shows: its name, its tags, tasks with edges, what was reused, and the pipeline's log."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from support import fake_run
from support.watched import last_flow_run, logs_of, run_watched

from pipeline.config import Config
from pipeline.stages.jobs import EvaluateJob, LabelJob, TrainJob

pytestmark = pytest.mark.usefixtures("prefect_server", "instant_stages")


def test_it_is_named_by_folder_and_method_and_tagged_by_data_method_and_code(tmp_path: Path) -> None:
    run_watched(tmp_path, "data: {root: /data/birds}\nmethod: uda\n", run_dir=str(tmp_path / "nightly"))
    run, _ = last_flow_run(num_tasks=2)
    assert run.name == "nightly: UDA"
    assert {"data:birds", "method:uda"} < set(run.tags)
    (code,) = set(run.tags) - {"data:birds", "method:uda"}
    assert code.startswith(("commit:", "selftrain:"))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"root": "shards/birds"}, "birds"),
        ({"labeled": "a/few/*.tar", "unlabeled": ["pool/part-0.tar", "pool"]}, "pool"),
        ({"labeled": "few"}, "few"),
    ],
)
def test_data_are_called_by_their_folder(data: dict[str, Any], name: str) -> None:
    from flows.run_name import data_name

    assert data_name(Config.model_validate({"data": data})) == name


def test_a_task_comes_after_those_whose_output_it_reads_and_the_state_says_the_result(tmp_path: Path) -> None:
    logger = logging.getLogger("selftrain")
    before = logger.level, logger.propagate, list(logger.handlers)
    run_watched(tmp_path)
    assert (logger.level, logger.propagate, logger.handlers) == before
    run, (first, second) = last_flow_run(num_tasks=2)
    assert run.state.message.startswith("test 75.0%")
    assert "wait_for" not in first.task_inputs
    assert [parent.id for parent in second.task_inputs["wait_for"]] == [first.id]


def test_a_job_reads_the_stages_that_it_names_or_names_something_of() -> None:
    from flows.edges import read_by

    run, config = Path("/runs/birds"), Config()
    names = ("features/embed-1", "rounds/1/train-2", "rounds/1/label-3", "rounds/1/select-4")
    embed, train, labels, select = folders = [run / name for name in names]
    student = TrainJob.of(config, run / "rounds/1/train-5", "student", 1, config.student, selection=select)
    assert read_by(student, folders) == [select]
    teachers = (train / "teacher", Path("/elsewhere/train-2"))  # a network that was trained along
    label = LabelJob.of(config, labels, 1, teachers, features={teachers[0]: embed})
    assert read_by(label, folders) == [embed, train]
    test = EvaluateJob.of(config, run / "evaluate-6", "test", {"final": train})
    assert read_by(test, folders) == [train]
    start = Config.model_validate({"student": {"start": {"model": str(train)}}}).student
    assert read_by(TrainJob.of(config, run / "x", "finetune", 2, start), folders) == [train]


def test_stages_that_were_finished_before_are_shown_as_reused(tmp_path: Path) -> None:
    run_watched(tmp_path)
    (tmp_path / "run/label-1/done").unlink()
    run_watched(tmp_path)
    run, (first, second) = last_flow_run(num_tasks=2)
    assert (first.name, first.state.name) == ("label (round 0)", "Reused")
    assert first.state.is_completed()
    assert str(tmp_path / "run/label-0") in first.state.message
    assert (second.name, second.state.name) == ("label (round 1)", "Completed")
    assert [parent.id for parent in second.task_inputs["wait_for"]] == [first.id]
    assert run.state.is_completed()


def test_a_stage_that_a_run_asks_for_twice_is_one_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import flow

    def twice(*arguments: Any, **options: Any) -> dict[str, Any]:
        fake_run.fake_loop(*arguments, **options)
        return fake_run.fake_loop(*arguments, **options)

    monkeypatch.setattr(flow, "run_loop", twice)
    run_watched(tmp_path)
    _, tasks = last_flow_run(num_tasks=2)
    assert [task.state.name for task in tasks] == ["Completed", "Completed"]


def test_the_log_has_what_stages_say_with_their_names_and_the_warnings_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any setting of Prefect's, as under a worker."""
    from flows import flow

    def warns(*arguments: Any, **options: Any) -> dict[str, Any]:
        logging.getLogger("selftrain.loop").warning("round 1: the student is worse on val than its teacher")
        logging.getLogger("selftrain.loop").debug("not for people")
        return fake_run.fake_loop(*arguments, **options)

    monkeypatch.setattr(flow, "run_loop", warns)
    run_watched(tmp_path)
    run, _ = last_flow_run(num_tasks=2)
    warning = "round 1: the student is worse on val than its teacher"
    stages = [f"label (round {number}): step 2 of 2: val_top1 0.8000" for number in range(2)]
    lines = logs_of(run, warning, *stages)
    assert all(lines.count(line) == 1 for line in (warning, *stages))
    assert not any("not for people" in line for line in lines)
