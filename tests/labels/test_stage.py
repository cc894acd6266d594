"""The label and select stages: killed anywhere, they end with the same bytes, and label no image twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.fake_stages import with_section
from support.processes import kill, label_job, outputs, run, select_job, start
from support.spoilers import be_of_the_version_before, die_after_2_label_files, die_before_rename, without_links
from support.waiting import wait_for

from pipeline.config import Config
from pipeline.errors import EXIT_INTERRUPTED, UserError
from pipeline.labels.store import LabelStore
from pipeline.models.format import export_model
from pipeline.shards.dataset import open_split
from pipeline.stages.jobs import LabelJob, SelectJob

pytestmark = pytest.mark.process


@pytest.fixture
def job(digits: Config, teacher: Path, tmp_path: Path) -> LabelJob:
    return label_job(digits, tmp_path / "label-a", teacher)


def arrows(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.arrow"))


def killed(job: LabelJob | SelectJob, how: object) -> None:
    process = start(job, how)  # type: ignore[arg-type]
    process.join()
    assert process.exitcode == -9


# -------------------------------------------------------------------------------------------------------------- kills


def test_label_resumes_after_kill_with_the_same_bytes_and_labels_no_shard_again(job: LabelJob, labels: Path) -> None:
    killed(job, die_after_2_label_files)
    before = {path.name: path.stat().st_ino for path in arrows(job.out)}
    assert len(before) == 2
    killed(job, die_before_rename)
    run(job)
    assert {path.name: path.stat().st_ino for path in arrows(job.out)[:2]} == before
    assert outputs(job.out) == outputs(labels)


def test_sigterm_stops_labeling_between_batches(digits: Config, teacher: Path, labels: Path, tmp_path: Path) -> None:
    job = label_job(digits, tmp_path / "label-a", teacher)
    process = start(job)
    wait_for(lambda: arrows(job.out) or not process.is_alive())
    assert kill(process, 0, 15) in (EXIT_INTERRUPTED, 0)
    assert outputs(run(job)) == outputs(labels)


@pytest.mark.parametrize("delay", [0.05, 0.3, 0.6])
def test_select_resumes_after_kill_with_the_same_bytes(
    digits: Config, labels: Path, selection: Path, delay: float, tmp_path: Path
) -> None:
    job = select_job(digits, tmp_path / "select", labels)
    kill(start(job), delay)
    run(job)
    same = outputs(selection)
    found = outputs(job.out)
    assert {**found, "stage.json": b""} == {**same, "stage.json": b""}  # it holds the relative path of the labels


def test_select_killed_before_its_file_is_in_place_ends_the_same(
    digits: Config, labels: Path, selection: Path, tmp_path: Path
) -> None:
    job = select_job(digits, tmp_path / "select", labels)
    killed(job, die_before_rename)
    assert not (job.out / "selection.arrow").exists()
    assert (run(job) / "selection.arrow").read_bytes() == (selection / "selection.arrow").read_bytes()


# ------------------------------------------------------------------------------------------------------ what is reused


def test_files_of_a_sibling_with_the_same_teacher_are_taken_over(job: LabelJob, labels: Path, tmp_path: Path) -> None:
    """As after a pack of more images: the fingerprint of the stage differs, the old shards' files do not."""
    sibling = tmp_path / "label-b"
    shutil.copytree(labels, sibling)
    inodes = {path.name: path.stat().st_ino for path in arrows(sibling)}
    run(job)
    assert {path.name: path.stat().st_ino for path in arrows(job.out)} == inodes


def test_a_teacher_that_stays_for_another_round_labels_no_image_again(
    digits: Config, teacher: Path, labels: Path, tmp_path: Path
) -> None:
    earlier = tmp_path / "rounds" / "1" / "label-b"
    shutil.copytree(labels, earlier)
    out = run(label_job(digits, tmp_path / "rounds" / "2" / "label-a", teacher))
    assert [path.stat().st_ino for path in arrows(out)] == [path.stat().st_ino for path in arrows(earlier)]


def test_files_are_copied_where_there_are_no_links(job: LabelJob, labels: Path, tmp_path: Path) -> None:
    shutil.copytree(labels, tmp_path / "label-b")
    stored = {path.name: path.stat().st_mtime_ns for path in arrows(tmp_path / "label-b")}
    assert outputs(run(job, without_links)) == outputs(labels)
    assert {path.name: path.stat().st_mtime_ns for path in arrows(tmp_path / "label-b")} == stored
    assert all(path.stat().st_nlink == 1 for path in arrows(job.out))


def test_files_of_a_sibling_with_another_teacher_are_not(
    digits: Config, labels: Path, student: Path, tmp_path: Path
) -> None:
    shutil.copytree(labels, tmp_path / "label-b")
    other = run(label_job(digits, tmp_path / "label-a", student))
    assert (other / labels_name(labels)).read_bytes() != (labels / labels_name(labels)).read_bytes()


def test_files_of_another_version_of_the_stage_are_not_taken_over_and_stay_readable(
    digits: Config, job: LabelJob, teacher: Path, tmp_path: Path
) -> None:
    earlier = run(label_job(digits, tmp_path / "label-b", teacher), be_of_the_version_before)
    run(job)
    assert not {path.stat().st_ino for path in arrows(job.out)} & {path.stat().st_ino for path in arrows(earlier)}
    both = [LabelStore(folder, open_split(digits.data, "unlabeled")) for folder in (earlier, job.out)]
    assert (both[0].label == both[1].label).all()


def labels_name(folder: Path) -> str:
    return arrows(folder)[0].name


def test_labels_of_another_teacher_in_the_folder_are_refused(job: LabelJob, digits: Config, student: Path) -> None:
    killed(job, die_after_2_label_files)
    with pytest.raises(UserError, match=r"holds a label stage with other settings \(teacher0"):
        run(label_job(digits, job.out, student))
    other = run(label_job(digits, job.out.parent / "label-b", student))
    (job.out / arrows(other)[0].name).write_bytes(arrows(other)[0].read_bytes())
    with pytest.raises(UserError, match="holds labels of another teachers"):
        run(job)


def test_a_deleted_file_is_labeled_again(job: LabelJob, labels: Path) -> None:
    run(job)
    arrows(job.out)[3].unlink()
    run(job)
    assert outputs(job.out) == outputs(labels)


def test_a_finished_stage_is_left_alone(job: LabelJob) -> None:
    run(job)
    before = {path: path.stat().st_mtime_ns for path in arrows(job.out)}
    run(job)
    assert {path: path.stat().st_mtime_ns for path in arrows(job.out)} == before


# ---------------------------------------------------------------------------------------------------------------- rows


def test_every_unlabeled_image_has_one_row_whatever_the_batch(
    digits: Config, teacher: Path, labels: Path, tmp_path: Path
) -> None:
    dataset = open_split(digits.data, "unlabeled")
    store = LabelStore(labels, dataset)
    assert len(store.label) == len(dataset)
    whole = with_section(digits, "label", batch_size=1000)
    other = LabelStore(run(label_job(whole, tmp_path / "label", teacher)), dataset)
    assert (store.label == other.label).mean() > 0.99  # the last bits may differ, hence the batch size is semantic
    truth = dataset.truth()
    assert truth is not None
    assert (store.label == truth).mean() > 0.6


def test_an_exported_teacher_gives_the_rows_of_its_stage(
    digits: Config, teacher: Path, labels: Path, tmp_path: Path
) -> None:
    export_model(teacher, tmp_path / "t.safetensors")
    out = run(label_job(digits, tmp_path / "label", tmp_path / "t.safetensors"))
    assert outputs(out) == outputs(labels)


def test_two_teachers_are_averaged(digits: Config, teacher: Path, student: Path, labels: Path, tmp_path: Path) -> None:
    out = run(label_job(with_section(digits, "label", ensemble=2), tmp_path / "label", student, teacher))
    assert json.loads((out / "stage.json").read_text())["outputs"]["provenance"]["teachers"].count(",") == 1
    assert (out / labels_name(out)).read_bytes() != (labels / labels_name(out)).read_bytes()


def test_a_missing_teacher_is_named(digits: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model at .*nowhere"):
        run(label_job(digits, tmp_path / "label", tmp_path / "nowhere"))
