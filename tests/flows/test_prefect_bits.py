"""With and without Prefect a real run ends with the same bits."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
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


def selftrain(folder: Path, *arguments: str) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {**clean, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "flows.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def digests(run: Path) -> dict[str, str]:
    files = {path for pattern in COMPARED for path in run.rglob(pattern) if path.name not in NOT_COMPARED}
    kept = [path for path in files if "prefect" not in path.relative_to(run).parts]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images[:800], digits.target[:800], strict=True)):
        path = tmp_path / "images" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype("uint8")).convert("RGB").save(path)
    carve = ("--labels", "200", "--val-fraction", "0.2", "--test-fraction", "0.1")
    selftrain(tmp_path, "pack", "images", "--out", "shards", *carve)
    (tmp_path / "digits.yaml").write_text(CONFIG)
    return tmp_path


def test_a_run_is_bit_identical_with_and_without_prefect(data: Path) -> None:
    selftrain(data, "run", "digits.yaml", "--run-dir", "watched")
    selftrain(data, "run", "digits.yaml", "--run-dir", "plain", "--no-prefect")
    watched, plain = digests(data / "watched"), digests(data / "plain")
    assert sum(name.endswith(".safetensors") for name in plain) >= 2
    assert "result.json" in plain
    assert watched == plain
