"""The table of stage kinds, and the jobs that their processes are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.encoders import embed_job, probe_job
from support.processes import label_job, method_job, select_job, train_job

from pipeline.config import Config, Probe, Start, Training, changed
from pipeline.errors import UserError
from pipeline.stages.jobs import EvaluateJob, Job, MergeJob
from pipeline.stages.kinds import KINDS, kind_of, load_object, read_job
from pipeline.stages.launch import run_job
from pipeline.stages.progress import Progress

PROBING = Training(model="resnet9", start=Start(model="timm:resnet9"), probe=Probe())


def jobs(config: Config, folder: Path) -> dict[str, Job]:
    """Jobs of every kind."""
    out, uda, meta = folder / "out", changed(config, method="uda"), changed(config, method="meta")
    return {
        "teacher": train_job(config, out),
        "student": train_job(config, out, selection=folder / "select"),
        "uda": method_job(uda, out),
        "meta": method_job(meta, out),
        "embed": embed_job(config, out, PROBING),
        "probe": probe_job(config, out, PROBING, folder / "embed"),
        "label": label_job(config, out, folder / "teacher"),
        "merge": MergeJob.of(config, out, 1, folder / "label"),
        "select": select_job(config, out, folder / "label"),
        "evaluate": EvaluateJob.of(config, out, "test", {"final": folder / "train"}),
    }


NAMES = list(jobs(Config(), Path()))


def test_a_job_has_a_title_for_people() -> None:
    found = jobs(Config(), Path())
    assert {job.kind for job in found.values()} == set(KINDS)
    assert {name: job.title for name, job in found.items()} == {
        "teacher": "train teacher (round 0)",
        "student": "train student (round 1)",
        "uda": "train student (round 1)",
        "meta": "train teacher and student (round 1)",
        "embed": "embed with resnet9",
        "probe": "probe teacher (round 0)",
        "label": "label (round 1)",
        "merge": "merge labels (round 1)",
        "select": "select (round 1)",
        "evaluate": "evaluate on test",
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_job_is_read_as_it_was_written(tmp_path: Path, name: str) -> None:
    job = jobs(Config(), tmp_path)[name]
    (tmp_path / "job.json").write_text(job.model_dump_json())
    assert read_job(tmp_path / "job.json") == job


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_table_names_exists(kind: str) -> None:
    row = KINDS[kind]
    assert row.job.model_fields["kind"].default == kind
    assert callable(load_object(row.inputs_of))
    assert callable(load_object(row.function))


def test_a_job_of_a_kind_that_is_not_registered_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"kind": "lable", "out": "x"}')
    with pytest.raises(UserError, match=r"is of kind 'lable', did you mean `label`\?; a plugin's needs its --plugin"):
        read_job(tmp_path / "job.json")


def test_a_kind_that_needs_no_process_runs_in_this_one(
    digits: Config, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stages.launch.run_child", None)
    job, seen = select_job(digits, tmp_path / "select", labels), list[Progress]()
    assert not kind_of(job).process
    run_job(job, on_progress=seen.append)
    assert (job.out / "selection.arrow").exists()
    assert [(p.stage, p.done, p.total) for p in seen] == [("select (round 1)", 0, 1), ("select (round 1)", 1, 1)]
