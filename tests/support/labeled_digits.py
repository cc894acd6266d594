"""Real packed digits in several shards, and label stages of invented teachers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipeline.config import Data
from pipeline.labels.store import LabelRows, label_path, label_provenance, summarize, write_labels
from pipeline.packing.carve import Carve
from pipeline.packing.pack import pack
from pipeline.shards.dataset import Dataset, open_split
from pipeline.stages.fingerprint import StageInputs
from pipeline.stages.folder import finish_folder, open_folder
from pipeline.stages.kinds import KINDS
from support.images import digit_files, write_files

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "[eight]", "nine $9$")

WriteStage = Callable[..., Path]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """400 digits: 40 labeled, the rest mostly unlabeled in shards of 100."""
    folder = tmp_path_factory.mktemp("digits")
    write_files(folder / "images", digit_files(stop=400, classes=CLASSES))
    carve = Carve(num_labeled=40, val_fraction=0.1, test_fraction=0.1, seed=0)
    pack(folder / "images", folder / "packed", shard_size=100, carve=carve, workers=1)
    return Data(root=folder / "packed", cache_dir=folder / "cache")


@pytest.fixture(scope="session")
def unlabeled(data: Data) -> Dataset:
    dataset = open_split(data, "unlabeled")
    assert len(dataset.shards) > 2
    return dataset


@pytest.fixture(scope="session")
def logits(unlabeled: Dataset) -> npt.NDArray[np.float32]:
    """A teacher that is mostly right, [N, 10]."""
    truth = unlabeled.truth()
    assert truth is not None
    logits = np.random.default_rng(0).normal(size=(len(unlabeled), 10))
    logits[np.arange(len(truth)), truth] += 4
    return logits.astype(np.float32)


def rows_of(logits: npt.NDArray[np.float32], ids: npt.NDArray[np.uint64], top_k: int = 10) -> LabelRows:
    fields = {name: tensor.numpy() for name, tensor in summarize(torch.from_numpy(logits), top_k).items()}
    return LabelRows(keys=[f"key {i}" for i in range(len(ids))], ids=ids, **fields)


def provenance_of(teacher: str = "t0", top_k: int = 10, num_classes: int = 10) -> dict[str, str]:
    return label_provenance(
        teachers=[teacher],
        view="center",
        precision="fp32",
        flip=False,
        batch_size=64,
        top_k=top_k,
        num_classes=num_classes,
        version=KINDS["label"].version,
    )


@pytest.fixture
def write_stage(tmp_path: Path, unlabeled: Dataset) -> WriteStage:
    """Writes the finished label stage of a teacher with these logits."""

    def write(logits: npt.NDArray[np.float32], name: str = "label", top_k: int = 10, teacher: str = "t0") -> Path:
        folder = tmp_path / name
        inputs = StageInputs({"top_k": top_k}, {"teacher0": teacher, "unlabeled": unlabeled.fingerprint})
        open_folder(folder, "label", KINDS["label"].version, inputs, {})
        provenance = provenance_of(teacher, top_k)
        for shard in unlabeled.shards:
            part = slice(shard.start, shard.start + shard.num_rows)
            rows = rows_of(logits[part], unlabeled.ids[part], top_k)
            write_labels(label_path(folder, shard.name), rows, {**provenance, "shard": shard.sha256})
        finish_folder(folder, [], provenance=provenance)
        return folder

    return write
