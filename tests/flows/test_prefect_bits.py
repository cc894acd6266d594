"""With and without Prefect a real run ends with the same bits."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from support.command import selftrain
from support.images import digit_files, write_files
from support.server import prefect_server

pytestmark = pytest.mark.process

COMPARED = ("*.safetensors", "*.arrow", "metrics.jsonl", "*.json")
NOT_COMPARED = {"stage.json", "job.json", "progress.json"}  # folders and times
CONFIG = """
data: {root: shards}
teacher: &training
  model: wide_resnet10_1
  image_size: 8
  steps: 60
  batch_size: 50
  ema_decay: 0.9
  weak: {padding: 1, flip: false}
  evaluations: 1
student:
  <<: *training
  steps: 4
  unlabeled_ratio: 1
select: {allow_empty_classes: true}
rounds: {num_rounds: 1}
evaluate: {control: false}
runtime: {precision: fp32, threads: 1, device: cpu}
"""


def digests(run: Path) -> dict[str, str]:
    files = {path for pattern in COMPARED for path in run.rglob(pattern) if path.name not in NOT_COMPARED}
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_files(tmp_path / "images", digit_files(stop=800))
    carve = ("--labels", "200", "--val-fraction", "0.2", "--test-fraction", "0.1")
    selftrain("pack", "images", "--out", "shards", *carve, cwd=tmp_path)
    (tmp_path / "digits.yaml").write_text(CONFIG)
    return tmp_path


@pytest.mark.slow
def test_a_run_is_bit_identical_with_and_without_prefect(data: Path) -> None:
    with prefect_server(data / "prefect") as variables:
        selftrain("run", "digits.yaml", "--run-dir", "watched", cwd=data, **variables)
    selftrain("run", "digits.yaml", "--run-dir", "plain", cwd=data)
    watched, plain = digests(data / "watched"), digests(data / "plain")
    assert sum(name.endswith(".safetensors") for name in plain) >= 2
    assert "result.json" in plain
    assert watched == plain
