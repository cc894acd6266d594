"""Packed folders and foreign tars open as data sets, and what is wrong with them is said clearly."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import webdataset
from support.images import as_nobody, class_files, picture, png, snapshot, write_files, write_raw_tar

from pipeline.config import Data, changed
from pipeline.errors import UserError
from pipeline.packing.carve import Carve
from pipeline.packing.pack import pack
from pipeline.shards.dataset import check_disjoint, open_split
from pipeline.shards.index import index_path, load_index
from pipeline.shards.manifest import read_manifest, write_manifest


def foreign(path: Path, samples: dict[str, bytes | np.ndarray], classes: str = "cat\ndog\nemu\n") -> Data:
    """A tar that others made, and the config that names it as labeled."""
    (path.parent / "classes.txt").write_text(classes)
    write_raw_tar(path, samples)  # type: ignore[arg-type]
    return Data(labeled=(path,), classes=path.parent / "classes.txt", cache_dir=path.parent / "cache")


GOOD = {"a.png": png(1), "a.cls": b"0", "b.png": png(2), "b.cls": b"2"}


def test_tars_of_webdataset_work_as_they_are(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "train.tar")) as writer:
        for number, kind in enumerate(["png", "jpg", "webp", "npy"]):
            image = picture(number, 16) if kind == "npy" else png(number, 16)
            writer.write({"__key__": f"deep/{number:03d}", kind: image, "cls": number % 3, "json": {"a": 1}})
    (tmp_path / "classes.txt").write_text("cat\ndog\nemu\n")
    dataset = open_split(Data(labeled=(tmp_path / "train.tar",), classes=tmp_path / "classes.txt"), "labeled")
    assert dataset.labels.tolist() == [0, 1, 2, 0]
    assert dataset.key(1) == f"{tmp_path.name}-train/deep/001"
    assert index_path(tmp_path / "train.tar").exists()
    assert dataset.truth() is not None


def test_kinds_are_told_in_any_case_and_other_members_are_ignored(tmp_path: Path) -> None:
    data = foreign(
        tmp_path / "a.tar", {"a.PNG": png(1), "a.CLS": b"1", "a.mask.png": png(2), "a.txt": b"", "LICENSE": b""}
    )
    assert open_split(data, "labeled").labels.tolist() == [1]


BAD = {
    "a negative label": ({"c.png": png(3), "c.cls": b"-1"}, "label '-1' is not a class id"),
    "a name for a label": ({"c.png": png(3), "c.cls": b"cat"}, "label 'cat' is not a class id"),
    "no label": ({"c.png": png(3)}, "no label"),
    "an empty image": ({"c.png": b"", "c.cls": b"1"}, "is empty"),
    "no image": ({"c.cls": b"1"}, "no image"),
    "text for an image": ({"c.png": b"hello", "c.cls": b"1"}, "not a readable image"),
    "two images": ({"c.png": png(3), "c.jpg": png(3), "c.cls": b"1"}, "two images with one key"),
    "a pickle": ({"c.npy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O'", "c.cls": b"1"}, "not a readable"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_sample_is_named_or_skipped_and_counted(tmp_path: Path, what: str) -> None:
    samples, message = BAD[what]
    data = foreign(tmp_path / "a.tar", GOOD | samples)
    with pytest.raises(UserError, match=rf"a\.tar: sample c: .*{message}.*data\.bad_images"):
        open_split(data, "labeled")
    dataset = open_split(data.model_copy(update={"bad_images": "skip"}), "labeled")
    assert (len(dataset), len(dataset.skipped)) == (2, 1)
    assert dataset.labels.tolist() == [0, 2]


def test_duplicate_keys_are_named_or_skipped(tmp_path: Path) -> None:
    data = foreign(tmp_path / "a.tar", [*GOOD.items(), ("a.png", png(5))])  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"sample a: duplicate key: a\.png is there twice"):
        open_split(data, "labeled")
    dataset = open_split(data.model_copy(update={"bad_images": "skip"}), "labeled")
    assert [dataset.key(row).rpartition("/")[2] for row in range(len(dataset))] == ["b"]


def test_a_cut_tar_is_named_or_its_whole_samples_are_used(tmp_path: Path) -> None:
    data = foreign(tmp_path / "a.tar", GOOD)
    os.truncate(tmp_path / "a.tar", 2100)
    with pytest.raises(UserError, match=r"a\.tar is cut"):
        open_split(data, "labeled")
    dataset = open_split(data.model_copy(update={"bad_images": "skip"}), "labeled")
    assert (len(dataset), len(dataset.skipped)) == (1, 1)


def test_a_tar_without_a_good_image_is_passed_over(tmp_path: Path) -> None:
    """Nothing of it can be labeled, embedded or cached."""
    foreign(tmp_path / "a.tar", {"a.png": b"hello", "a.cls": b"1"})
    data = foreign(tmp_path / "b.tar", GOOD)
    data = data.model_copy(update={"labeled": (tmp_path / "a.tar", tmp_path / "b.tar"), "bad_images": "skip"})
    dataset = open_split(data, "labeled")
    assert ([shard.path.name for shard in dataset.shards], len(dataset), len(dataset.skipped)) == (["b.tar"], 2, 1)


def test_a_key_that_points_outside_is_refused_even_when_skipping(tmp_path: Path) -> None:
    data = foreign(tmp_path / "a.tar", {"../a.png": png(1), "../a.cls": b"0"})
    with pytest.raises(UserError, match="points outside"):
        open_split(data.model_copy(update={"bad_images": "skip"}), "labeled")


def test_a_pattern_stands_for_the_tars_that_it_matches(tmp_path: Path) -> None:
    for name in ("x-1.tar", "x-2.tar", "y.tar"):
        write_raw_tar(tmp_path / name, GOOD)
    dataset = open_split(Data(unlabeled=(tmp_path / "x-*.tar",)), "unlabeled")
    assert [shard.path.name for shard in dataset.shards] == ["x-1.tar", "x-2.tar"]


def test_missing_things_are_named_with_their_config_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither data\.root nor data\.val is set"):
        open_split(Data(), "val")
    with pytest.raises(UserError, match="does not exist"):
        open_split(Data(unlabeled=(tmp_path / "absent.tar",)), "unlabeled")
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        open_split(Data(root=tmp_path), "val")
    write_raw_tar(tmp_path / "a.tar", GOOD)
    with pytest.raises(UserError, match=r"name their classes in data\.classes"):
        open_split(Data(labeled=(tmp_path / "a.tar",)), "labeled")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no unlabeled tars"):
        open_split(Data(unlabeled=(tmp_path / "empty",)), "unlabeled")
    with pytest.raises(UserError, match=r"x-\*\.tar holds no unlabeled tars"):
        open_split(Data(unlabeled=(tmp_path / "x-*.tar",)), "unlabeled")
    (tmp_path / "void.tar").write_bytes(bytes(10240))
    with pytest.raises(UserError, match="the unlabeled split is empty"):
        open_split(Data(unlabeled=(tmp_path / "void.tar",)), "unlabeled")


def test_a_missing_or_changed_shard_is_named(source: Path, tmp_path: Path) -> None:
    data = Data(root=tmp_path / "out")
    pack(source, tmp_path / "out", split="val")
    with pytest.raises(UserError, match="has no test shards"):
        open_split(data, "test")
    tar = tmp_path / "out" / "val-000000.tar"
    content = bytearray(tar.read_bytes())
    status = tar.stat()
    content[-1] ^= 1  # in the padding: only the sha256 can tell
    tar.write_bytes(content)
    with pytest.raises(UserError, match=r"val-000000\.tar (is not the shard that was packed|goes on after its end)"):
        open_split(data, "val")
    pack_time = (status.st_atime_ns, status.st_mtime_ns)
    index_path(tar).unlink()
    tar.write_bytes(bytes(content[:-1]) + b"\0")
    os.utime(tar, ns=pack_time)
    open_split(data, "val")
    tar.write_bytes(content)
    os.utime(tar, ns=pack_time)  # hides the change from everything but `verify`
    open_split(data, "val")
    with pytest.raises(UserError, match="sha256"):
        open_split(data, "val", verify=True)
    tar.unlink()
    with pytest.raises(UserError, match=r"val-000000\.tar cannot be read"):
        open_split(data, "val")


def test_other_classes_are_refused_but_not_for_unlabeled_images(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "a", split="val")
    other = write_files(tmp_path / "other", class_files(2, "ant bee"))
    pack(other, tmp_path / "b", split="val")
    pack(write_files(tmp_path / "flat", {"x.png": png(8_888)}), tmp_path / "b", split="unlabeled")
    data = Data(root=tmp_path / "a", val=(tmp_path / "b",), unlabeled=(tmp_path / "b",))
    with pytest.raises(UserError, match=r"other classes than .*'ant' instead of 'cat'"):
        open_split(data, "val")
    assert len(open_split(data, "unlabeled")) == 1


def test_truth_is_of_packed_folders_alone_and_follows_class_names(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "a", split="labeled")
    other = write_files(tmp_path / "other", class_files(4, "ant cat dog", first=50_000))
    pack(other, tmp_path / "b", carve=Carve(num_labeled=3))
    write_raw_tar(tmp_path / "crawl" / "u.tar", {"q.png": png(7_777), "q.cls": b"777", "r.png": png(8_888)})
    data = Data(root=tmp_path / "a", unlabeled=(tmp_path / "b", tmp_path / "crawl" / "u.tar"))
    dataset = open_split(data, "unlabeled")
    truth = dataset.truth()
    assert truth is not None
    known = {dataset.key(row): dataset.classes[label] if label >= 0 else None for row, label in enumerate(truth)}
    for key, name in known.items():
        true_class = key.split("/")[1]
        assert name == (true_class if true_class in ("cat", "dog") else None), key
    assert sorted(filter(None, known.values())) == 3 * ["cat"] + 3 * ["dog"]
    assert open_split(data.model_copy(update={"unlabeled": data.unlabeled[1:]}), "unlabeled").truth() is None
    np.save(tmp_path / "b" / "truth" / "unlabeled-000000.npy", np.full(9, 3, np.int32))
    as_before = [changed(entry, truth_sha256=None) for entry in read_manifest(tmp_path / "b").shards]
    write_manifest(tmp_path / "b", changed(read_manifest(tmp_path / "b"), shards=tuple(as_before)))
    with pytest.raises(UserError, match=r"unlabeled-000000\.npy has ids out of range: there are 3 classes"):
        open_split(data, "unlabeled").truth()


def test_splits_that_share_an_image_are_named_whatever_its_format(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "out", split="labeled")
    buffer = io.BytesIO()
    np.save(buffer, picture(1003))
    write_raw_tar(tmp_path / "extra" / "u.tar", {"q.npy": buffer.getvalue(), "r.png": png(123_456)})
    data = Data(root=tmp_path / "out", unlabeled=(tmp_path / "extra",))
    datasets = {split: open_split(data, split) for split in ("labeled", "unlabeled")}
    with pytest.raises(
        UserError, match=r"labeled and unlabeled share 1 images, e\.g\. labeled-000000/dog/0003 and extra-u/q"
    ):
        check_disjoint(datasets)


def test_ids_do_not_depend_on_where_the_folder_is_or_on_other_shards(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "out", split="unlabeled", shard_size=25)
    first = open_split(Data(root=tmp_path / "out"), "unlabeled")
    shutil.copytree(tmp_path / "out", tmp_path / "moved")
    moved = open_split(Data(root=tmp_path / "moved"), "unlabeled")
    assert np.array_equal(first.ids, moved.ids)
    assert first.fingerprint == moved.fingerprint
    assert len(np.unique(first.ids)) == 60
    pack(write_files(tmp_path / "more", {"x.png": png(99_999)}), tmp_path / "out", split="unlabeled")
    grown = open_split(Data(root=tmp_path / "out"), "unlabeled")
    assert np.array_equal(grown.ids[:60], first.ids)
    assert grown.fingerprint != first.fingerprint


def test_rows_shards_and_keys_agree(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "out", carve=Carve(num_labeled=3), shard_size=20)
    dataset = open_split(Data(root=tmp_path / "out"), "unlabeled")
    assert dataset.shard_starts.tolist() == [0, 19, 38, 57]
    for shard in dataset.shards:
        keys = [dataset.key(shard.start + row) for row in range(shard.num_rows)]
        assert keys == [f"{shard.name}/{key}" for key in shard.index.key]


def test_an_index_is_never_silently_stale(tmp_path: Path) -> None:
    tar = write_raw_tar(tmp_path / "a.tar", GOOD)
    first = load_index(tar)
    os.utime(tar, ns=(1, 1))  # touched
    assert load_index(tar).content.tolist() == first.content.tolist()
    write_raw_tar(tar, GOOD | {"a.png": png(7)})  # other bytes of the same size or not
    assert load_index(tar).content[0] != first.content[0]
    index_path(tar).write_bytes(b"rubbish")
    assert load_index(tar).content.tolist() == load_index(tar).content.tolist()


def test_the_index_of_a_read_only_folder_goes_into_the_cache(tmp_path: Path) -> None:
    data = foreign(tmp_path / "sub" / "a.tar", GOOD) if (tmp_path / "sub").mkdir() is None else None
    assert data is not None
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o777)
    cache.chmod(0o777)
    (tmp_path / "sub").chmod(0o555)
    before = snapshot(tmp_path / "sub")
    with as_nobody(tmp_path):
        load_index(tmp_path / "sub" / "a.tar", cache_dir=cache)
        assert len(load_index(tmp_path / "sub" / "a.tar", cache_dir=cache)) == 2
    assert snapshot(tmp_path / "sub") == before
    assert len(list((cache / "index").iterdir())) == 1
    assert not index_path(tmp_path / "sub" / "a.tar").exists()
