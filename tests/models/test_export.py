"""The lines that `export` prints, and those of the README, make the model as they stand, in a Python of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.command import environment
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.models import build
from pipeline.models.format import ModelInfo, save_model


def exported(folder: Path, architecture: str, model_args: dict[str, float]) -> tuple[str, Path]:
    """What `export` prints for a model with random weights, and the file."""
    info = ModelInfo(
        schema=1,
        architecture=architecture,
        model_args=model_args,
        classes=("cat", "it's"),
        input_size=(3, 32, 32),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        metrics={},
        lineage={},
    )
    (folder / "stage").mkdir()
    save_model(folder / "stage/model.safetensors", build(architecture, 2, model_args=model_args).state_dict(), info)
    out = folder / "bird's.safetensors"
    done = CliRunner().invoke(app, ["export", str(folder / "stage"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    return done.output, out


def run_python(code: str, folder: Path) -> str:
    code += "\nimport torch\nprint(model(torch.zeros(1, 3, 32, 32)).shape)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.process
@pytest.mark.parametrize(("architecture", "model_args"), [("resnet10t", {}), ("wide_resnet10_1", {"bn_momentum": 0.1})])
def test_what_export_prints_makes_the_model(tmp_path: Path, architecture: str, model_args: dict[str, float]) -> None:
    text, _ = exported(tmp_path, architecture, model_args)
    code = text.split("In Python:")[1]
    assert "torch.Size([1, 2])" in run_python(code, tmp_path)
