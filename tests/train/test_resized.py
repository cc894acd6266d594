"""A training with resized crops cuts them from the stored images, where the data are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.processes import run, signal_at, train_job

from pipeline.config import Config, WeakView, changed
from pipeline.stages.jobs import TrainJob
from pipeline.stages.kinds import fingerprint_of
from pipeline.stages.ranks import Ranks
from pipeline.train.batches import Batch
from pipeline.train.joint import see
from pipeline.train.setup import Setup

RESIZED = WeakView(crop="resized", flip=False)


@pytest.fixture
def job(digits: Config, tmp_path: Path) -> TrainJob:
    training = changed(digits.teacher, image_size=14, weak=RESIZED, steps=6, batch_size=4, unlabeled_ratio=1.0)
    data = changed(digits.data, cache="auto", cache_dir=tmp_path / "cache")
    return train_job(digits, tmp_path / "train", training=training, data=data)


def batches(job: TrainJob, *, unlabeled: bool, workers: int = 0) -> list[Batch]:
    job = changed(job, data=changed(job.data, decode_workers=workers))
    return list(Setup(job, Ranks(), {}).batches(unlabeled=unlabeled).from_step(2, 4))


def test_images_without_targets_have_a_crop_per_view(job: TrainJob) -> None:
    found = batches(job, unlabeled=True, workers=1)
    for batch, again in zip(found, batches(job, unlabeled=True, workers=3), strict=True):
        assert batch.images.shape == (8, 2, 14, 14, 3)
        assert torch.equal(batch.images, again.images)
        assert (batch.images[:, 0] != batch.images[:, 1]).flatten(1).any(1).sum() > 6
    views, batch = Setup(job, Ranks(), {}).views(), found[0]
    seen = see(batch, batch.images, batch.labels, views, job.training)
    assert torch.equal(seen.weak, views.weak(batch.images[4:, 0], batch.positions[4:]))
    assert torch.equal(seen.strong, views.strong(batch.images[4:, 1], batch.positions[4:]))
    assert all(batch.images.shape == (4, 14, 14, 3) for batch in batches(job, unlabeled=False))


def test_labeled_and_unlabeled_images_of_one_position_have_crops_of_their_own(job: TrainJob) -> None:
    batch = batches(job, unlabeled=True)[0]
    assert len(np.unique(batch.positions)) == 8


@pytest.mark.process
def test_a_training_is_resumed_with_the_same_crops_and_caches_those_of_val_alone(job: TrainJob, tmp_path: Path) -> None:
    training = changed(job.training, unlabeled_ratio=0.0, steps=12)
    job = changed(job, training=training, runtime=changed(job.runtime, checkpoint_every=4))
    run(changed(job, out=tmp_path / "whole"))
    signal_at(job, 5)
    run(job)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "train")]
    assert weights[0] == weights[1]
    sizes = [np.load(path, mmap_mode="r").shape[:2] for path in (tmp_path / "cache" / "decoded").glob("*.npy")]
    assert {size for _, size in sizes} == {14}
    assert "data.cache auto: images of val at 14 px are kept in" in (tmp_path / "whole" / "output.log").read_text()


def test_only_trainings_with_resized_crops_depend_on_how_they_are_cut(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    padded = changed(job, training=changed(job.training, weak=WeakView()))
    before = fingerprint_of(job), fingerprint_of(padded)
    monkeypatch.setattr("pipeline.train.stage.CROPS", "otherwise")
    assert fingerprint_of(padded) == before[1]
    assert fingerprint_of(job) != before[0]
