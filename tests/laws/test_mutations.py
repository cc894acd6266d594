"""Whatever is done to a file that is read, the reader succeeds or raises UserError. Any other exception is a failure.

Files are taken as from an earlier version, without seals and digests, which would hide the parsers behind them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tiny_net
from support.damage import attempt, json_mutations, mutations, put
from support.images import class_files, write_files, write_raw_tar, write_zip
from support.run_folder import digits, finished_run

from pipeline.config import SPLITS, Data, Split, load_config
from pipeline.files import cut_lines, read_json, read_lines, write_json
from pipeline.labels.store import LabelStore, read_labels
from pipeline.models import build
from pipeline.models.format import ModelInfo, find_weights, load_model, model_digest, save_model
from pipeline.packing.carve import Carve
from pipeline.packing.pack import pack
from pipeline.packing.verify import verify
from pipeline.report.record import read_metrics, read_predictions, read_run, read_tests
from pipeline.runs.folder import set_aside
from pipeline.selection.selection import read_selection
from pipeline.selection.summary import summary_table
from pipeline.selection.targets import open_selection
from pipeline.shards.dataset import open_split
from pipeline.shards.decode import decode_sample
from pipeline.shards.index import build_index
from pipeline.stages.fingerprint import StageInputs
from pipeline.stages.folder import is_finished, open_folder, stage_record
from pipeline.stages.jobs import LabelJob
from pipeline.stages.kinds import read_job
from pipeline.stages.progress import read_progress

__all__ = ["digits", "finished_run"]


@pytest.fixture(scope="module")
def bare(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without seals and digests, with a model and a job in it."""
    run = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("bare") / "run"))
    for path in run.rglob("*.json"):
        value = read_json(path)
        value.pop("digests", None)
        write_json(path, value)
    result = read_json(run / "result.json")
    result["final"]["model_dir"] = "model"
    write_json(run / "result.json", {**result, "data": "d", "plugins": {}})
    tiny_net.register()
    numbers = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "metrics": {}, "lineage": {"plugins": {}}}
    classes = tuple("0123456789")
    info = ModelInfo(architecture="selftrain_tiny", model_args={}, classes=classes, input_size=(3, 8, 8), **numbers)
    save_model(run / "model" / "model.safetensors", build("selftrain_tiny", 10).state_dict(), info)
    job = LabelJob.of(load_config(run / "config.yaml"), run / "model", 1, [run / "model"])
    (run / "model" / "job.json").write_text(job.model_dump_json())
    (run / "model" / "progress.json").write_text('{"done": 1, "total": 2, "unit": "steps", "text": ""}')
    return run


def unlabeled_of(run: Path) -> Any:
    return open_split(load_config(run / "config.yaml").data, "unlabeled")


def all_of_report(run: Path) -> None:
    record = read_run(run)
    for training in record.trainings:
        assert [training.val, training.predictions, training.losses, training.architecture, training.fingerprint]
    for round_ in record.rounds:
        assert round_.summary is None or summary_table(round_.summary)


def any_stage(folder: Path) -> None:
    for read in (
        lambda: is_finished(folder),
        lambda: stage_record(folder),
        lambda: open_folder(folder, "select", 1, StageInputs({}, {}), {}),
        lambda: open_selection(folder, unlabeled_of(folder.parents[2])),
        lambda: all_of_report(folder.parents[2]),
    ):
        attempt(read)


def any_result(run: Path) -> None:
    """In the end the report, but find_weights and set_aside before, on a copy, which it moves."""
    attempt(lambda: find_weights(run))
    config, copy = load_config(run / "config.yaml"), run / "earlier" / "copy"
    copy.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "result.json", copy)
    attempt(lambda: set_aside(copy, config, config, "d", {}))
    shutil.rmtree(run / "earlier")
    all_of_report(run)


JSON_READERS: dict[str, Callable[[Path], Any]] = {
    "rounds/1/select-*/stage.json": lambda path: any_stage(path.parent),
    "rounds/1/label-*/stage.json": lambda path: LabelStore(path.parent, unlabeled_of(path.parents[3])),
    "rounds/1/train-*/stage.json": lambda path: all_of_report(path.parents[3]),
    "rounds/1/select-*/selection.json": lambda path: summary_table(read_selection(path.parent).summary),
    "rounds/1/train-*/evaluation-val.json": read_metrics,
    "evaluate-*/test.json": lambda path: read_tests(path.parent),
    "stages.json": lambda path: all_of_report(path.parent),
    "result.json": lambda path: any_result(path.parent),
    "model/model.json": lambda path: (attempt(lambda: model_digest(path.parent)), load_model(path.parent)),
    "model/job.json": read_job,
    "model/progress.json": lambda path: read_progress(path.parent, "s"),
}


@pytest.mark.parametrize("name", JSON_READERS)
def test_no_mutation_of_json_is_a_traceback(bare: Path, name: str) -> None:
    path = min(bare.glob(name))
    whole = path.read_bytes()
    texts = [json.dumps(value).encode() for value in json_mutations(json.loads(whole), 40)]
    num_refused = 0
    try:
        for text in [*texts, *mutations(whole, 20)]:
            put(path, text)
            num_refused += bool(attempt(lambda: JSON_READERS[name](path))[1])
            assert path.exists()
    finally:
        put(path, whole)
    assert num_refused > 10 or name.endswith(("select-*/stage.json", "progress.json"))
    JSON_READERS[name](path)


BYTE_READERS: dict[str, Callable[[Path], Any]] = {
    "rounds/1/label-*/*.arrow": lambda path: [np.array(column) for column in vars(read_labels(path)).values()],
    "rounds/1/select-*/selection.arrow": lambda path: any_selection(path.parent),
    "rounds/1/train-*/predictions-val.npz": read_predictions,
    "rounds/1/train-*/metrics.jsonl": lambda path: (attempt(lambda: cut_lines(path, 100)), read_lines(path)),
    "model/model.safetensors": lambda path: load_model(path.parent),
}


def any_selection(folder: Path) -> None:
    found = read_selection(folder)
    assert found.rows.dtype.kind == found.copies.dtype.kind == "u"
    assert found.rows.max(initial=0) < max(found.summary["num_rows"], 1)


@pytest.mark.parametrize("name", BYTE_READERS)
def test_no_mutation_of_bytes_is_a_traceback(bare: Path, name: str) -> None:
    path = min(bare.glob(name))
    whole = path.read_bytes()
    try:
        for content in mutations(whole, 300):
            put(path, content)
            attempt(lambda: BYTE_READERS[name](path))
    finally:
        put(path, whole)
    BYTE_READERS[name](path)


def test_no_mutation_of_a_npy_sample_is_a_traceback(tmp_path: Path) -> None:
    for array in (np.zeros((4, 5, 3), np.uint8), np.arange(7, dtype=np.float32)):
        np.save(tmp_path / "a.npy", array)
        for content in mutations((tmp_path / "a.npy").read_bytes(), 1000):
            attempt(partial(decode_sample, content, "a.npy"))


def truth_of(data: Data, split: Split) -> object:
    return open_split(data, split).truth()


def test_no_mutation_of_a_packed_folder_is_a_traceback(tmp_path: Path) -> None:
    pack(write_files(tmp_path / "in", class_files(4)), tmp_path / "out", carve=Carve(num_labeled=3, val_fraction=0.3))
    data = Data(root=tmp_path / "out", cache_dir=tmp_path / "cache", cache="always")

    def read() -> None:
        for split in SPLITS:
            attempt(partial(truth_of, data, split))
        verify(tmp_path / "out")

    manifest = tmp_path / "out" / "manifest.json"
    value = read_json(manifest)
    for path, number in ((manifest, 60), (min((tmp_path / "out" / "truth").iterdir()), 40)):
        whole = path.read_bytes()
        texts = [json.dumps(changed).encode() for changed in json_mutations(value, 60)] if path == manifest else []
        for content in [*texts, *mutations(whole, number)]:
            put(path, content)
            attempt(read)
        put(path, whole)
    assert verify(tmp_path / "out").problems == ()


def test_no_mutation_of_a_tar_is_a_traceback(tmp_path: Path) -> None:
    files = {**class_files(2), "cat/0000.cls": b"1", "x" * 120 + ".png": b"", "a.npy": b"\x93NUMPY"}
    path = write_raw_tar(tmp_path / "a.tar", files)
    whole = path.read_bytes()
    for content in mutations(whole, 300):
        put(path, content)
        attempt(lambda: build_index(path))
    put(path, whole)


@pytest.mark.parametrize(("kind", "number"), [("zip", 300), ("tar", 100)])
def test_no_mutation_of_a_source_is_a_traceback(tmp_path: Path, kind: str, number: int) -> None:
    write = write_zip if kind == "zip" else write_raw_tar
    path = write(tmp_path / f"in.{kind}", class_files(1, "cat dog"))
    for turn, content in enumerate(mutations(path.read_bytes(), number, seed=7)):
        put(path, content)
        attempt(partial(pack, path, tmp_path / f"out-{turn}", split="labeled", bad_images="skip"))
