"""What training must not see is made unreadable, and nothing before the last stage notices."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from support.fake_stages import with_section
from support.processes import outputs, run, train_job

from pipeline.config import Config, parse
from pipeline.errors import UserError
from pipeline.runs.loop import run_loop
from pipeline.stages.launch import run_job

pytestmark = pytest.mark.process


@pytest.fixture
def packed(digits: Config, tmp_path: Path) -> Path:
    """A copy of the digits."""
    assert digits.data.root is not None
    return Path(shutil.copytree(digits.data.root, tmp_path / "packed"))


def on(config: Config, root: Path) -> Config:
    return with_section(config, "data", root=root)


def shorter_meta(config: Config) -> Config:
    """The same images by Meta Pseudo Labels."""
    raw = config.model_dump(mode="json")
    student = {**raw["student"], "steps": 20, "warmup_steps": 2, "loss_normalization": "labeled"}
    meta = {"method": "meta", "student": student, "teacher": {**raw["teacher"], "warmup_steps": 2}}
    return parse(Config, {**raw, **meta}, "tests")


def test_a_student_is_the_same_without_the_truth(
    digits: Config, selection: Path, student: Path, packed: Path, tmp_path: Path
) -> None:
    shutil.rmtree(packed / "truth")
    job = train_job(on(digits, packed), tmp_path / "train", selection=selection)
    assert outputs(run(job)) == outputs(student)


@pytest.mark.parametrize("method", ["noisy_student", "meta"])
def test_test_images_are_read_by_the_last_stage_alone(
    digits: Config, packed: Path, tmp_path: Path, method: str
) -> None:
    """And the truth about unlabeled images by none. Garbage of equal size and time in the place of the test shard: the
    index beside it still describes it."""
    for tar in packed.glob("test-*.tar"):
        before = tar.stat()
        tar.write_bytes(os.urandom(before.st_size))
        os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))
    shutil.rmtree(packed / "truth")
    config = on(digits if method == "noisy_student" else shorter_meta(digits), packed)
    config = with_section(config, "data", cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match=r"test-000000.*not a readable image"):
        run_loop(config, tmp_path / "run", run_stage=run_job)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [entry["role"] for entry in result["rounds"]] == ["teacher", "student"]
    assert result["final"]["test_top1"] is None
