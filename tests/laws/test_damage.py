"""Whatever byte of a finished run rots, whoever reads it refuses and says what to delete, or reads the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_net
from support.damage import attempt, put, rotten
from support.run_folder import digits, finished_run
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.labels.store import read_labels
from pipeline.models import build
from pipeline.models.format import ModelInfo, load_model, model_digest, save_model
from pipeline.report.record import read_metrics, read_predictions, read_run
from pipeline.runs.damage import find_damage
from pipeline.runs.ledger import read_ledger
from pipeline.selection.selection import read_selection
from pipeline.selection.targets import open_selection
from pipeline.shards.dataset import open_split
from pipeline.stages.fingerprint import StageInputs
from pipeline.stages.folder import finish_folder, open_folder, read_output, stage_record
from pipeline.train.checkpoint import Checkpoints

__all__ = ["digits", "finished_run"]


@pytest.fixture(scope="module")
def rotting(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run, with one more stage that has a real model and a checkpoint."""
    run = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("rotting") / "run"))
    open_folder(run / "model", "train", 1, StageInputs({}, {}), {})
    tiny_net.register()
    torch.manual_seed(0)
    model = build("selftrain_tiny", 10)
    classes = tuple("0123456789")
    numbers = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "metrics": {"val": {"top1": 0.9}}, "lineage": {}}
    info = ModelInfo(architecture="selftrain_tiny", model_args={}, classes=classes, input_size=(3, 8, 8), **numbers)
    save_model(run / "model" / "model.safetensors", model.state_dict(), info)
    Checkpoints(run / "model", "f", 1).save(5, {"model": model.state_dict()})
    finish_folder(run / "model", ["model.safetensors", "model.json"])
    return run


def plain(value: Any) -> Any:
    """A value that `==` compares, arrays and tensors by type and bytes."""
    if isinstance(value, torch.Tensor | np.ndarray):
        array = np.asarray(value)
        return str(array.dtype), array.shape, array.tobytes()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, torch.nn.Module):
        return plain(value.state_dict())
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return plain(vars(value)) if hasattr(value, "__dataclass_fields__") else value


NOT_SEALED = ("config.yaml", "job.json", "timing.jsonl")
"""What people may edit, what the next command writes again, and times, which are no results."""
READERS: dict[str, Callable[[Path], Any]] = {
    "model/model.safetensors": lambda path: (load_model(path.parent), model_digest(path.parent)),
    "model/model.json": lambda path: (load_model(path.parent), model_digest(path.parent)),
    "model/checkpoints/*.pt": lambda path: Checkpoints(path.parents[1], "f", 1).load_last(),
    "rounds/1/label-*/*.arrow": lambda path: [plain(np.array(c)) for c in vars(read_labels(path)).values()],
    "rounds/1/select-*/selection.arrow": lambda path: read_selection(path.parent),
    "rounds/1/select-*/selection.json": lambda path: read_selection(path.parent),
    "rounds/2/select-*/stage.json": lambda path: stage_record(path.parent),
    "rounds/1/train-*/evaluation-val.json": read_metrics,
    "rounds/1/train-*/predictions-val.npz": read_predictions,
    "evaluate-*/test.json": read_output,
    "evaluate-*/predictions-final.npz": read_predictions,
    "result.json": read_json,
    "stages.json": lambda path: read_ledger(path.parent),
}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_of_rotten_bytes_refuses_or_reads_the_same(rotting: Path, name: str) -> None:
    path = min(rotting.glob(name))
    whole, expected = path.read_bytes(), plain(READERS[name](path))
    num_refused = 0
    try:
        for damaged in rotten(whole, 60):
            put(path, damaged)
            found, refused = attempt(lambda: READERS[name](path))
            assert refused or plain(found) == expected, damaged
            assert not refused or (str(path) in refused and ("delete" in refused or "restore" in refused))
            num_refused += bool(refused)
    finally:
        put(path, whole)
    assert num_refused >= 30  # white space of JSON and padding of others make the rest


def test_the_report_of_a_rotten_run_is_refused_or_the_same(rotting: Path) -> None:
    """The values that the page is made of; each file of the run once."""

    def record() -> Any:
        run = read_run(rotting)
        trainings = [(t.losses, t.evaluations, t.val, t.predictions, t.loss) for t in run.trainings]
        rounds = [(r.number, r.summary) for r in run.rounds]
        return plain([run.result, trainings, rounds, dict(run.test), dict(run.test_predictions), list(run.test_reads)])

    expected = record()
    files = [path for path in rotting.rglob("*") if path.is_file() and path.name not in NOT_SEALED]
    assert len(files) > 25
    for number, path in enumerate(sorted(files)):
        whole = path.read_bytes()
        if not whole:
            continue
        put(path, next(rotten(whole, 1, seed=number)))
        found, refused = attempt(record)
        assert refused or found == expected, path
        put(path, whole)
    assert record() == expected


def test_verify_lists_every_damaged_file_and_what_to_delete(rotting: Path) -> None:
    sound = find_damage(rotting)
    assert (sound.problems, sound.unchecked) == ((), ())
    paths = [min(rotting.glob(name)) for name in READERS]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents, strict=True):
        middle = len(content) // 2
        changed = content[middle] ^ 1
        put(path, content[:middle] + bytes([changed]) + content[middle + 1 :])
    gone = min(rotting.glob("control/train-*/predictions-val.npz"))
    gone.rename(rotting / "moved")
    problems = find_damage(rotting).problems
    for path, content in zip([*paths, gone], [*contents, (rotting / "moved").read_bytes()], strict=True):
        (problem,) = [problem for problem in problems if problem.startswith(f"{path} ")]
        assert "delete" in problem or path == gone
        put(path, content)
    (rotting / "moved").unlink()
    assert find_damage(rotting).problems == ()


def test_a_stale_selection_is_refused_when_its_labels_rot(rotting: Path) -> None:
    """What a student is trained on is the selection and the labels below it."""
    folder, labels = min(rotting.glob("rounds/1/select-*")), min(rotting.glob("rounds/1/label-*/*.arrow"))
    unlabeled = open_split(load_config(rotting / "config.yaml").data, "unlabeled")
    open_selection(folder, unlabeled)
    whole = labels.read_bytes()
    put(labels, whole[:-2000] + bytes(1000) + whole[-1000:])
    assert "delete this file" in attempt(lambda: open_selection(folder, unlabeled))[1]
    put(labels, whole)


def test_the_verb_verify_takes_a_run_and_ends_with_2_if_it_is_damaged(rotting: Path) -> None:
    done = CliRunner().invoke(app, ["verify", str(rotting)])
    assert (done.exit_code, "all good" in done.stdout) == (0, True)
    path = rotting / "model" / "model.safetensors"
    whole = path.read_bytes()
    put(path, whole[:-1])
    done = CliRunner().invoke(app, ["verify", str(rotting / "model")])
    assert "model.safetensors is damaged" in "".join(done.stdout.split("\n"))
    assert isinstance(done.exception, UserError)
    put(path, whole)
