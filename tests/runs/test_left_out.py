"""What a run does not use of the tars that its config names is told and listed in the run folder."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from support.fake_stages import FakeStages, with_section
from support.images import png, write_raw_tar

from pipeline.config import Config
from pipeline.runs.loop import run_loop


def test_members_and_samples_that_are_not_used_are_listed(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {"1.png": png(1, 8), "1.json": b"{}", "1.seg.png": png(2, 8), "2.png": b"", "3.png": png(3, 8)}
    tar = write_raw_tar(tmp_path / "crawl" / "0.tar", files)
    other = with_section(config, "data", unlabeled=(tar,), bad_images="skip")
    run_loop(other, tmp_path / "run", run_stage=FakeStages(0.6, 0.7, 0.8, 0.9))
    with open(tmp_path / "run" / "left_out.csv", newline="") as file:
        rows = {row["member"]: (row["split"], row["why"]) for row in csv.DictReader(file)}
    assert rows == {
        f"{tar}: 2": ("unlabeled", "the sample is empty (0 bytes)"),
        f"{tar}: 1.json": ("unlabeled", "belongs to no sample"),
        f"{tar}: 1.seg.png": ("unlabeled", "belongs to no sample"),
    }
    assert "1 bad samples of unlabeled are left out" in caplog.text
    assert "tars that belong to no sample are not used: 1 .json, 1 .png" in caplog.text
    run_loop(config, tmp_path / "whole", run_stage=FakeStages(0.6, 0.7, 0.8, 0.9))
    assert not (tmp_path / "whole" / "left_out.csv").exists()
