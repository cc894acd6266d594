"""verify lists every problem of a packed folder, whatever any index says."""

from __future__ import annotations

import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.images import png, write_raw_tar

from pipeline.config import Data
from pipeline.errors import UserError
from pipeline.packing.carve import Carve
from pipeline.packing.pack import pack
from pipeline.packing.verify import verify
from pipeline.shards.dataset import open_split
from pipeline.shards.index import index_path, read_index, write_index
from pipeline.shards.manifest import read_manifest, write_manifest


@pytest.fixture
def packed(source: Path, tmp_path: Path) -> Path:
    pack(source, tmp_path / "out", carve=Carve(num_labeled=6, val_fraction=0.2))
    return tmp_path / "out"


def test_a_sound_folder_has_no_problems(packed: Path) -> None:
    ticks: list[tuple[int, int]] = []
    report = verify(packed, progress=lambda done, total: ticks.append((done, total)))
    assert (report.problems, report.num_shards, report.num_samples) == ((), 3, 60)
    assert ticks[-1] == (60, 60)


def test_every_problem_is_listed(packed: Path) -> None:
    labeled = packed / "labeled-000000.tar"
    image = png(2005)
    write_raw_tar(labeled, {"x.png": image, "x.cls": b"9", "y.png": b"", "y.cls": b"0"})
    index_path(packed / "val-000000.tar").write_bytes(index_path(labeled).read_bytes())
    np.save(packed / "truth" / "unlabeled-000000.npy", np.zeros(3, np.int32))
    write_raw_tar(packed / "val-000007.tar", {})
    (packed / ".packing").mkdir()
    problems = verify(packed).problems
    for expected in (
        r"labeled-000000\.tar: sha256",
        r"labeled-000000\.tar: \d+ bytes",
        r"labeled-000000\.tar: 2 samples, the manifest says 6",
        r"labeled-000000\.tar: x: label 9 is out of range",
        r"labeled-000000\.tar: y: .*empty",
        r"val-000000\.tar: its stored index differs",
        r"truth/unlabeled-000000\.npy is damaged",
        r"val-000007\.tar: not listed",
        r"a pack was killed",
        r"share 1 images",
    ):
        assert sum(bool(re.search(expected, problem)) for problem in problems) >= 1, (expected, problems)


@pytest.mark.parametrize("column", ["label", "size", "offset", "content", "key"])
def test_a_stored_index_is_compared_column_by_column(packed: Path, column: str) -> None:
    path = index_path(packed / "labeled-000000.tar")
    index = read_index(path)
    assert index is not None
    values = list(getattr(index, column))
    changed = values[::-1] if column in ("content", "key") else np.array(values) + 1
    write_index(path, replace(index, **{column: np.array(changed, "S16") if column == "content" else changed}))
    assert verify(packed).problems == (
        f"{packed}/labeled-000000.tar: its stored index differs from its bytes in {column}; delete {path.name}",
    )


def test_a_shard_that_counts_twice_is_a_problem(packed: Path) -> None:
    manifest = read_manifest(packed)
    (val,) = manifest.of_split("val")
    write_manifest(packed, manifest.model_copy(update={"shards": (*manifest.shards, val)}))
    assert "manifest.json: val-000000 and val-000000 are one shard, listed 2 times" in verify(packed).problems
    shutil.copy(packed / "val-000000.tar", packed / "val-000001.tar")
    copy = val.model_copy(update={"name": "val-000001"})
    write_manifest(packed, manifest.model_copy(update={"shards": (*manifest.shards, copy)}))
    assert verify(packed).problems == ("manifest.json: val-000000 and val-000001 are one shard, listed 2 times",)


def test_truth_that_changed_since_it_was_packed_is_refused(packed: Path) -> None:
    path = packed / "truth" / "unlabeled-000000.npy"
    truth = np.load(path)
    np.save(path, truth[::-1])
    with pytest.raises(UserError, match=r"unlabeled-000000\.npy is damaged: .*restore it, or remove it to go without"):
        open_split(Data(root=packed), "unlabeled").truth()
    entries = [e.model_copy(update={"truth_sha256": None}) for e in read_manifest(packed).shards]  # as packed before
    write_manifest(packed, read_manifest(packed).model_copy(update={"shards": tuple(entries)}))
    assert np.array_equal(open_split(Data(root=packed), "unlabeled").truth(), truth[::-1])


def test_an_index_that_an_earlier_version_left_is_no_problem(packed: Path) -> None:
    (packed / "val-000000.selftrain.npz").write_bytes(b"rubbish")
    assert verify(packed).problems == ()


def test_missing_and_damaged_shards_do_not_hide_the_others(packed: Path) -> None:
    (packed / "labeled-000000.tar").unlink()
    (packed / "val-000000.tar").write_bytes(b"no tar" * 999)
    problems = verify(packed).problems
    assert any("labeled-000000.tar cannot be read" in problem for problem in problems)
    assert any("val-000000.tar is not a tar" in problem for problem in problems)


def test_labels_in_an_unlabeled_shard_are_a_problem(packed: Path) -> None:
    manifest = read_manifest(packed)
    moved = [e.model_copy(update={"split": "unlabeled"}) if e.split == "val" else e for e in manifest.shards]
    write_manifest(packed, manifest.model_copy(update={"shards": tuple(moved)}))
    assert any("has a .cls in an unlabeled shard" in problem for problem in verify(packed).problems)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 2}', '{"schema": 1, "shards": [{"name": "../x"}]}'])
def test_a_broken_manifest_is_a_clear_error(packed: Path, text: str) -> None:
    (packed / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        verify(packed)


def test_a_vector_among_the_images_of_a_shard_is_named(packed: Path) -> None:
    vector = io.BytesIO()
    np.save(vector, np.ones(3, np.float32))
    write_raw_tar(packed / "val-000000.tar", {"a.png": png(1), "b.npy": vector.getvalue()})
    assert any("b is a vector, and 1 other samples are images" in problem for problem in verify(packed).problems)
