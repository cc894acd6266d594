"""Images that have left the unlabeled split are not labeled, and the labels of untouched shards stay."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.images import write_files
from support.processes import label_job, run

from pipeline.config import Config, changed
from pipeline.labels.store import LabelStore
from pipeline.packing.pack import pack
from pipeline.shards.dataset import open_split
from pipeline.shards.index import read_sample
from pipeline.shards.tar import open_shard

pytestmark = pytest.mark.process


def test_only_the_shards_that_images_have_left_are_labeled_again(
    digits: Config, teacher: Path, labels: Path, tmp_path: Path
) -> None:
    assert digits.data.root is not None
    root = shutil.copytree(digits.data.root, tmp_path / "digits")
    config = changed(digits, data=changed(digits.data, root=root))
    pool = open_split(config.data, "unlabeled")
    truth, shard = pool.truth(), pool.shards[1]
    assert truth is not None
    files = {}
    with open_shard(shard.path) as tar:
        for row in range(3):
            name = pool.classes[truth[shard.start + row]]
            files[f"{name}/{row}.png"] = read_sample(tar, shard.index, row)
    assert pack(write_files(tmp_path / "new", files), root, split="labeled").num_moved == 3
    shutil.copytree(labels, tmp_path / "label-b")
    earlier = {path.name: path.stat().st_ino for path in (tmp_path / "label-b").glob("*.arrow")}
    out = run(label_job(config, tmp_path / "label-a", teacher))
    now = {path.name: path.stat().st_ino for path in out.glob("*.arrow")}
    assert {name for name in now if now[name] != earlier[name]} == {f"{shard.name}.arrow"}
    rest = open_split(config.data, "unlabeled")
    assert len(LabelStore(out, rest)) == len(rest) == len(pool) - 3
