"""Labels in parts: processes that know nothing of each other label together, with the bytes of one process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.command import selftrain_here as selftrain
from support.processes import kill, label_job, outputs, run, start
from support.spoilers import die_after_2_label_files
from support.waiting import wait_for

from pipeline.config import Config, Start, changed, dump_yaml, load_config
from pipeline.errors import UserError
from pipeline.labels.store import LabelStore
from pipeline.runs.loop import run_loop
from pipeline.shards.dataset import open_split
from pipeline.stages.folder import is_finished
from pipeline.stages.jobs import Job, LabelJob
from pipeline.stages.part import PARTS, Part

pytestmark = pytest.mark.process


@pytest.fixture
def job(digits: Config, teacher: Path, tmp_path: Path) -> LabelJob:
    return label_job(digits, tmp_path / "work", teacher)


def of_stage(folder: Path) -> dict[str, bytes]:
    """What a stage leaves in its own folder."""
    return {name: data for name, data in outputs(folder).items() if not name.startswith(f"{PARTS}/")}


def inodes(folder: Path, pattern: str) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob(pattern)}


def test_four_parts_of_which_one_is_killed_end_with_the_bytes_of_one_process(job: LabelJob, labels: Path) -> None:
    first, *others = (job.of_part(Part(number, 4)) for number in (1, 2, 3, 4))
    killed = start(first, die_after_2_label_files)
    together = [start(other) for other in others]
    assert [process.exitcode for process in (killed, *together) if process.join() is None] == [-9, 0, 0, 0]
    assert [path.name for path in job.out.iterdir()] == [PARTS]  # a part writes into its own folder alone
    made = inodes(job.out, f"{PARTS}/*/*.arrow")
    assert len(made) == 5
    run(first)  # typed again
    run(job.of_part(Part(2, 3)))  # and divided in another way: nothing is labeled again
    assert inodes(job.out, f"{PARTS}/*/*.arrow") == made
    run(job)
    assert of_stage(job.out) == of_stage(labels)
    assert inodes(job.out, "*.arrow") == made


def test_parts_help_a_stage_that_labels_beside_them(job: LabelJob, labels: Path) -> None:
    parts = [job.of_part(Part(number, 2)) for number in (2, 1)]
    processes = [start(one) for one in (parts[0], job, parts[1])]
    assert [process.exitcode for process in processes if process.join() is None] == [0, 0, 0]
    assert of_stage(job.out) == of_stage(labels)


def test_a_part_of_a_finished_stage_has_nothing_to_do(job: LabelJob, labels: Path) -> None:
    shutil.copytree(labels, job.out)
    run(job.of_part(Part(1, 2)))
    assert not list(job.out.glob(f"{PARTS}/*/*.arrow"))


def test_a_part_leaves_labels_for_its_stage_alone(job: LabelJob, digits: Config) -> None:
    part, empty = job.of_part(Part(5, 6)), job.of_part(Part(6, 6))
    run(part)
    run(empty)  # there are 5 shards
    assert [len(list(one.out.glob("*.arrow"))) for one in (part, empty)] == [1, 0]
    with pytest.raises(UserError, match="5-of-6 is an unfinished stage"):
        LabelStore(part.out, open_split(digits.data, "unlabeled"))
    (path,) = part.out.glob("*.arrow")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="is damaged: its bytes are not those that its stage wrote"):
        run(part)


def test_parts_by_another_teacher_or_of_other_settings_are_refused(
    job: LabelJob, digits: Config, student: Path
) -> None:
    run(job.of_part(Part(6, 6)))
    of_student = label_job(digits, job.out, student)
    with pytest.raises(UserError, match=r"6-of-6 holds a label stage with other settings \(teacher0"):
        run(of_student.of_part(Part(1, 6)))
    with pytest.raises(UserError, match=r"6-of-6 holds a label stage with other settings \(flip: not set -> True"):
        run(changed(job, label=changed(job.label, flip=True)))


@pytest.fixture
def config(digits: Config, teacher: Path, tmp_path: Path) -> Path:
    """A run that uses a teacher that was trained before."""
    start = Start(model=str(teacher), mode="use")
    path = tmp_path / "birds.yaml"
    path.write_text(dump_yaml(changed(digits, teacher=changed(digits.teacher, start=start))))
    return path


class Stopped(Exception):
    """The run has come as far as the test looks."""


def test_a_run_takes_the_labels_of_parts_that_were_made_before_it_began(
    config: Path, teacher: Path, labels: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    said = selftrain("label", config, "--teacher", teacher, "--run-dir", folder, "--part", "2/2")
    (whole,) = folder.glob("rounds/1/label-*")
    assert f"{whole}: part 2/2 is labeled" in said
    made = inodes(whole, f"{PARTS}/*/*.arrow")
    assert len(made) == 2

    def until_labeled(job: Job, _lock: int) -> None:
        run(job)
        if job.kind == "label":
            assert job.out == whole
            raise Stopped

    with pytest.raises(Stopped):
        run_loop(load_config(config), folder, run_stage=until_labeled)
    assert of_stage(whole) == of_stage(labels)
    assert made.items() < inodes(whole, "*.arrow").items()


def test_parts_by_the_command_and_then_the_command_without_them(
    config: Path, teacher: Path, labels: Path, tmp_path: Path
) -> None:
    command = ("label", config, "--teacher", teacher, "--out", tmp_path / "out")
    assert "part 1/2 is labeled" in selftrain(*command, "--part", "1/2")
    assert not is_finished(tmp_path / "out")
    selftrain(*command)
    assert of_stage(tmp_path / "out") == of_stage(labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x", "--part", "0/3"], r"--part '0/3' is no part; write K/N, from 1/N to N/N"),
        (["--out", "x", "--part", "4/3"], r"is no part"),
        (["--out", "x", "--part", "3"], r"is no part"),
        ([], r"give either --out DIR or"),
        (["--out", "x", "--run-dir", "y", "--part", "1/3"], r"give either --out DIR or"),
        (["--run-dir", "y"], r"--run-dir is for parts"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    config: Path, teacher: Path, options: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        selftrain("label", config, "--teacher", teacher, *options)


def test_a_part_takes_no_folder_of_the_users(config: Path, teacher: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "photo.jpg").write_text("")
    for option in ("--out", "--run-dir"):
        with pytest.raises(UserError, match=r"mine .*photo\.jpg"):
            selftrain("label", config, "--teacher", teacher, option, mine, "--part", "1/2")
    assert [path.name for path in mine.iterdir()] == ["photo.jpg"]


@pytest.mark.slow
def test_parts_killed_at_random_end_with_the_same_bytes(job: LabelJob, labels: Path) -> None:
    for number, delay in ((3, 0.2), (1, 0.9), (2, 1.4), (1, 0.5), (4, 1.8)):
        kill(start(job.of_part(Part(number, 4))), delay)
    whole = start(job)
    wait_for(lambda: list(job.out.glob("*.arrow")) or not whole.is_alive())
    kill(whole, 0)
    for number in (4, 2):
        run(job.of_part(Part(number, 4)))
    run(job)
    assert of_stage(job.out) == of_stage(labels)
