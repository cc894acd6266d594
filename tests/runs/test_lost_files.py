"""Files of a run that were deleted or emptied: whoever does what the messages say ends with the same result."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.fake_stages import FakeStages, with_section

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.runs.loop import run_loop
from pipeline.stages.folder import check_stage_folder
from pipeline.stages.jobs import Job

FOLDERS = ("rounds/0/train", "rounds/1/label", "rounds/1/select", "rounds/1/train", "control/train", "evaluate")
FILES = ("stage.json", "model.json", "model.safetensors", "evaluation-val.json", "selection.json", "test.json")


def run(config: Config, folder: Path) -> dict[str, Any]:
    stages = FakeStages(0.6, 0.7)

    def launch(job: Job, lock_fd: int) -> None:
        check_stage_folder(job.out, job.kind)
        write_bytes(job.out / "job.json", job.model_dump_json().encode())
        stages(job, lock_fd)

    return run_loop(config, folder, run_stage=launch)


def follow(message: str) -> None:
    """Delete what a message says that one should delete, and nothing else."""
    assert "type the" in message, message
    if folder := re.search(r"delete the folder (/\S+) and type", message):
        shutil.rmtree(folder[1])
    elif "delete the folder and type" in message:
        shutil.rmtree(message.split()[0])
    elif "delete it and type" in message or "delete this file and type" in message:
        Path(message.split()[0]).unlink()


@pytest.fixture(scope="module")
def short(digits: Config) -> Config:
    """A run of one round."""
    return with_section(digits, "rounds", num_rounds=1)


@pytest.fixture(scope="module")
def whole(short: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(short, folder)
    return folder


@pytest.mark.parametrize("how", ["deleted", "emptied"])
def test_a_run_ends_as_before_when_its_messages_are_followed(
    short: Config, whole: Path, tmp_path: Path, how: str
) -> None:
    result = (whole / "result.json").read_bytes()
    of_stages = [path for part in FOLDERS for name in FILES for path in whole.glob(f"{part}-*/{name}")]
    assert len(of_stages) > len(FOLDERS)
    for number, lost in enumerate([*of_stages, whole / "result.json", whole / "stages.json"]):
        if how == "emptied" and lost.suffix != ".json":
            continue  # these weights are invented, and nothing reads them
        folder = Path(shutil.copytree(whole, tmp_path / str(number)))
        path = folder / lost.relative_to(whole)
        path.unlink() if how == "deleted" else path.write_bytes(b"")
        for _ in range(3):
            try:
                run(short, folder)
                break
            except UserError as error:
                follow(str(error))
        assert (folder / "result.json").read_bytes() == result, path
