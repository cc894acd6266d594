"""Equal images are a list and not a wall, and images that get a label leave the unlabeled split."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from support.advice import run_advice
from support.images import class_files, left_out_of, png, snapshot, write_files

from pipeline.config import SPLITS, Data
from pipeline.errors import UserError
from pipeline.packing.carve import Carve
from pipeline.packing.pack import pack
from pipeline.packing.verify import verify
from pipeline.shards.dataset import check_disjoint, open_split
from pipeline.shards.manifest import MANIFEST, read_manifest


def used(out: Path) -> dict[str, int]:
    """The images of each split that an opened folder has."""
    data = Data(root=out)
    return {split: len(open_split(data, split)) for split in SPLITS if read_manifest(out).of_split(split)}


def duplicates_of(out: Path) -> list[tuple[str, str, str]]:
    with open(out / "duplicates.csv", newline="") as file:
        return [(row["file"], row["split"], row["equals"]) for row in csv.DictReader(file)]


def pool(folder: Path, numbers: range) -> Path:
    return write_files(folder, {f"{number}.png": png(number) for number in numbers})


def test_equal_images_of_a_pool_are_listed_and_left_out_on_request(tmp_path: Path) -> None:
    source, out = pool(tmp_path / "pool", range(5)), tmp_path / "out"
    write_files(source, {"again.png": png(3), "more.png": png(3)})
    assert pack(source, out, split="unlabeled").num_samples == {"unlabeled": 7}
    again, more = sorted([("again.png", "unlabeled", "3.png"), ("more.png", "unlabeled", "3.png")])
    assert sorted(duplicates_of(out)) == [again, more]
    report = pack(source, tmp_path / "two", split="unlabeled", skip_duplicates=True)
    assert (report.num_samples, report.duplicates) == ({"unlabeled": 5}, None)
    assert set(left_out_of(tmp_path / "two")) == {"again.png", "more.png"}
    for name in ("again.png", "more.png"):
        (source / name).unlink()
    pack(source, out, split="unlabeled")
    assert not (out / "duplicates.csv").exists()


@pytest.mark.parametrize("carve", [True, False])
def test_several_sources_share_images_and_labeled_wins(tmp_path: Path, carve: bool) -> None:
    first = write_files(tmp_path / "first", class_files(20))
    second = write_files(tmp_path / "second", {**class_files(5, first=50_000), **{"cat/same.png": png(7)}})
    out = tmp_path / "out"
    options = {"carve": Carve(num_labeled=6, val_fraction=0.2)} if carve else {"split": "labeled"}
    pack(first, out, **options)  # type: ignore[arg-type]
    crawl = write_files(tmp_path / "crawl", {f"{n}.png": png(n) for n in (*range(20), 90_001, 90_002)})
    with pytest.raises(
        UserError, match=r"images to be packed as unlabeled are in .* as (labeled|val) already"
    ) as caught:
        pack(crawl, out, split="unlabeled")
    run_advice(caught.value)
    before = used(out)
    check_disjoint({split: open_split(Data(root=out), split) for split in before})  # type: ignore[misc]
    assert sum(before.values()) == 62
    pack(second, out, skip_duplicates=True, **options)  # type: ignore[arg-type]
    check_disjoint({split: open_split(Data(root=out), split) for split in used(out)})  # type: ignore[misc]
    assert sum(used(out).values()) == 77
    assert verify(out).problems == ()


def test_newly_labeled_images_leave_the_unlabeled_split(tmp_path: Path) -> None:
    out = tmp_path / "out"
    files = class_files(10)
    crawl = write_files(tmp_path / "crawl", {name.replace("/", "-"): data for name, data in files.items()})
    pack(crawl, out, split="unlabeled", shard_size=16)
    before, whole = snapshot(out), open_split(Data(root=out), "unlabeled")
    chosen = {name: data for name, data in files.items() if name.endswith(("3.png", "4.png"))}
    report = pack(write_files(tmp_path / "labeled", chosen), out, split="labeled")
    assert (report.num_samples, report.num_moved) == ({"labeled": 6}, 6)
    assert used(out) == {"labeled": 6, "unlabeled": 24}
    after = snapshot(out)
    assert before.items() - after.items() == {(MANIFEST, before[MANIFEST])}  # no shard has changed
    rest = open_split(Data(root=out), "unlabeled")
    check_disjoint({"unlabeled": rest, "labeled": open_split(Data(root=out), "labeled")})
    assert set(rest.ids) < set(whole.ids)  # an image keeps its id
    assert rest.fingerprint != whole.fingerprint
    assert verify(out).problems == ()
    again = pack(tmp_path / "labeled", out, split="labeled")
    assert (again.num_samples, again.num_moved, again.num_present) == ({}, 0, 6)
    assert snapshot(out) == after
    with pytest.raises(UserError, match="6 images to be packed as unlabeled"):
        pack(crawl, out, split="unlabeled")
    pack(crawl, out, split="unlabeled", skip_duplicates=True)
    assert used(out) == {"labeled": 6, "unlabeled": 24}
    pack(write_files(tmp_path / "val", {k: v for k, v in files.items() if k.endswith("5.png")}), out, split="val")
    assert used(out) == {"labeled": 6, "unlabeled": 21, "val": 3}
    report_of_all = verify(out)
    assert (report_of_all.problems, report_of_all.num_samples) == ((), 30)


def test_a_kill_between_two_writes_leaves_every_image_in_one_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    files, replace, left = class_files(4), os.replace, 0

    def dying(source: Path, target: Path) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        replace(source, target)

    crawl = write_files(tmp_path / "crawl", {name.replace("/", "-"): data for name, data in files.items()})
    labeled = write_files(tmp_path / "labeled", {name: data for name, data in files.items() if name.endswith("3.png")})
    monkeypatch.setattr("pipeline.packing.staging.os.replace", dying)
    killed = 0
    for moment in range(1, 12):
        out, left = tmp_path / f"out{moment}", 0
        pack(crawl, out, split="unlabeled")
        left = moment
        try:
            pack(labeled, out, split="labeled")
        except Killed:
            killed += 1
            left = 0
            opened = {split: open_split(Data(root=out), split) for split in used(out)}  # type: ignore[arg-type]
            check_disjoint(opened)  # type: ignore[arg-type]
            assert sum(map(len, opened.values())) == 12
            pack(labeled, out, split="labeled")
        assert used(out) == {"labeled": 3, "unlabeled": 9}
        assert verify(out).problems == ()
    assert killed >= 3


def test_labels_of_a_shard_whose_images_moved_are_not_those_of_before(tmp_path: Path) -> None:
    """Labels are addressed by it, and equal numbers of rows may be other rows."""
    source, addresses = pool(tmp_path / "pool", range(9)), set()
    for first in (0, 2):
        out = tmp_path / f"out{first}"
        pack(source, out, split="unlabeled")
        addresses.add(open_split(Data(root=out), "unlabeled").shards[0].sha256)
        new = {"a/1.png": png(first), "b/1.png": png(first + 1)}
        pack(write_files(tmp_path / f"labeled{first}", new), out, split="labeled")
        (shard,) = open_split(Data(root=out), "unlabeled").shards
        assert shard.num_rows == 7
        addresses.add(shard.sha256)
    assert len(addresses) == 3


def test_a_shard_of_which_all_images_moved_is_not_read(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(pool(tmp_path / "pool", range(4)), out, split="unlabeled", shard_size=2)
    tar = open_split(Data(root=out), "unlabeled").shards[0]
    numbers = [int(key) for key in tar.index.key]
    source = write_files(tmp_path / "new", {f"{name}/1.png": png(n) for name, n in zip("ab", numbers, strict=True)})
    pack(source, out, split="labeled")
    assert [shard.name for shard in open_split(Data(root=out), "unlabeled").shards] == ["unlabeled-000001"]
    assert verify(out).problems == ()


def test_more_labels_of_the_same_carve_move_out_of_the_pool(tmp_path: Path) -> None:
    """Labeled sets of one seed are nested, so that a carve can grow."""
    source, out = write_files(tmp_path / "in", class_files(20)), tmp_path / "out"
    pack(source, out, carve=Carve(num_labeled=6, val_fraction=0.2))
    val = open_split(Data(root=out), "val").ids
    report = pack(source, out, carve=Carve(num_labeled=15, val_fraction=0.2))
    assert (report.num_samples, report.num_moved) == ({"labeled": 9}, 9)
    assert used(out) == {"labeled": 15, "unlabeled": 33, "val": 12}
    assert np.array_equal(open_split(Data(root=out), "val").ids, val)
    truth = open_split(Data(root=out), "unlabeled").truth()
    assert truth is not None
    assert len(truth) == 33


def test_a_carve_without_duplicates_has_as_many_labels_as_were_asked_for(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", class_files(10))
    write_files(source, {f"{name.replace('.png', '-again.png')}": data for name, data in class_files(10).items()})
    write_files(source, {"dog/cat.png": class_files(1)["cat/0000.png"]})
    report = pack(source, tmp_path / "out", carve=Carve(num_labeled=9, val_fraction=0.2), skip_duplicates=True)
    assert report.num_samples == {"labeled": 9, "unlabeled": 15, "val": 6}
    assert report.conflicts
    assert len(left_out_of(tmp_path / "out")) == 31


def test_images_that_are_left_out_count_in_no_split(tmp_path: Path) -> None:
    """A class whose only val image is left out is absent from val, and that is told."""
    files = {f"{split}/{name}/{number}.png": png(number) for split, name, number in (
        ("train", "cat", 1), ("train", "dog", 2), ("train", "cat", 3), ("val", "cat", 4), ("val", "dog", 5),
        ("test", "dog", 5), ("test", "cat", 6))}  # fmt: skip
    report = pack(write_files(tmp_path / "in", files), tmp_path / "out", skip_duplicates=True)
    assert report.num_samples == {"labeled": 3, "val": 1, "test": 2}
    assert report.absent_classes == {"val": ("dog",)}
    assert "val (1 val, 1 left out)" in report.notes[0]
