"""Layouts that people have are understood, or refused with commands that work as they stand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.advice import run_advice
from support.images import class_files, png, write_files, write_raw_tar, write_zip

from pipeline.errors import UserError
from pipeline.packing.item import look_alikes
from pipeline.packing.pack import pack
from pipeline.shards.manifest import read_manifest

Tree = dict[str, bytes]


def below(folder: str, files: Tree) -> Tree:
    return {f"{folder}/{name}": data for name, data in files.items()}


def splits_of(out: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in read_manifest(out).shards:
        found[entry.split] = found.get(entry.split, 0) + entry.num_samples
    return found


CATS = "cat dog"
SPLITS = {
    "splits as folders": {
        **below("train", class_files(4, CATS)),
        **below("test", class_files(2, CATS, first=5000)),
        **below("val", class_files(1, CATS, first=7000)),
    },
    "splits below other folders": {
        **below("data/birds/train", class_files(4, CATS)),
        **below("data/birds/test", class_files(2, CATS, first=5000)),
        **below("data/birds/valid", class_files(1, CATS, first=7000)),
    },
    "splits with a prefix, in capitals": {
        **below("SEG_TRAIN", class_files(4, CATS)),
        **below("SEG_TEST", class_files(2, CATS, first=5000)),
        **below("SEG_VAL", class_files(1, CATS, first=7000)),
    },
    "splits beside another folder": {
        **below("train", class_files(4, CATS)),
        **below("test", class_files(2, CATS, first=5000)),
        **below("validation", class_files(1, CATS, first=7000)),
        **below("chest_xray/train", class_files(4, CATS)),
    },
}


@pytest.mark.parametrize("layout", SPLITS)
def test_splits_are_no_classes_and_the_commands_pack_each(tmp_path: Path, layout: str) -> None:
    source = write_files(tmp_path / "in put", SPLITS[layout])
    with pytest.raises(UserError, match="which look like splits and not classes") as caught:
        pack(source, tmp_path / "out", split="labeled")
    assert len(run_advice(caught.value)) == 3
    assert splits_of(tmp_path / "out") == {"labeled": 8, "test": 4, "val": 2}
    assert read_manifest(tmp_path / "out").classes == ("cat", "dog")


@pytest.mark.parametrize("name", ["unlabeled", "Unlabelled", "unsup"])
def test_an_unlabeled_folder_beside_classes_is_no_class(tmp_path: Path, name: str) -> None:
    source = write_files(
        tmp_path / "in", {**class_files(4, CATS), f"{name}/1.png": png(9001), f"{name}/2.png": png(9002)}
    )
    with pytest.raises(UserError, match=f"holds {name}, which look") as caught:
        pack(source, tmp_path / "out", split="labeled")
    run_advice(caught.value)
    assert splits_of(tmp_path / "out") == {"labeled": 8, "unlabeled": 2}


def test_splits_inside_class_folders_are_refused(tmp_path: Path) -> None:
    files = {
        f"{c}/{s}/{n}.png": png(hash((c, s, n)) % 10**6) for c in "ab" for s in ("train", "test") for n in range(2)
    }
    with pytest.raises(UserError, match=r"holds test, train inside its class folders, .*move them to SPLIT/CLASS"):
        pack(write_files(tmp_path / "in", files), tmp_path / "out", split="labeled")


@pytest.mark.parametrize("classes", ["cat train", "train tram", "extra plain", "valley testament"])
def test_words_of_splits_may_be_classes(tmp_path: Path, classes: str) -> None:
    """A train is a vehicle."""
    pack(write_files(tmp_path / "in", class_files(2, classes)), tmp_path / "out", split="labeled")
    assert read_manifest(tmp_path / "out").classes == tuple(sorted(classes.split()))


def test_names_in_a_classes_file_are_classes_whatever_they_look_like(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("test\nval\n")
    source = write_files(tmp_path / "in", class_files(2, "test val"))
    with pytest.raises(UserError, match="name them in --classes if they are classes"):
        pack(source, tmp_path / "out", split="labeled")
    pack(source, tmp_path / "out", split="labeled", classes=tmp_path / "classes.txt")
    assert read_manifest(tmp_path / "out").classes == ("test", "val")


@pytest.mark.parametrize("name", ["cat/{}.png", "cat/day1/{}.png", "all/cat/day1/{}.png"])
def test_one_class_alone_is_refused(tmp_path: Path, name: str) -> None:
    """Else the class would be called day1, or images."""
    source = write_files(tmp_path / "in", {name.format(number): png(number) for number in range(4)})
    with pytest.raises(UserError, match="images of one class alone") as caught:
        pack(source, tmp_path / "out", split="labeled")
    run_advice(caught.value)
    assert splits_of(tmp_path / "out") == {"unlabeled": 4}


@pytest.mark.parametrize(
    ("table", "folder"),
    [
        ("id,label\n{0}.png,cat\n{1}.png,dog\n{2}.png,cat\n", "images/"),
        ("path\tbreed\tage\nimages/{0}.png\tcat\t1\nimages/{1}.png\tdog\t2\nimages/{2}.png\tcat\t3\n", "images/"),
        ("\ufeffwhat,name\ncat,{0}\ndog,{1}\ncat,{2}\n", ""),
    ],
)
def test_labels_in_a_table_are_refused_with_the_command_that_reads_them(
    tmp_path: Path, table: str, folder: str
) -> None:
    files = {f"{folder}{number}.png": png(number) for number in range(3)}
    name = "labels.tsv" if "\t" in table else "it's.csv"
    source = write_files(tmp_path / "in", {**files, name: table.format(0, 1, 2).encode()})
    with pytest.raises(UserError, match=f"read the labels in {name}") as caught:
        pack(source, tmp_path / "out", split="labeled")
    run_advice(caught.value)
    assert read_manifest(tmp_path / "out").classes == ("cat", "dog")
    assert splits_of(tmp_path / "out") == {"labeled": 3}


def test_images_in_no_class_folder_have_a_command_without_labels(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", {"1.jpg": png(1), "cat/2.jpg": png(2)})
    with pytest.raises(UserError, match=r"1\.jpg is in no class folder") as caught:
        pack(source, tmp_path / "out", split="labeled")
    run_advice(caught.value)
    assert splits_of(tmp_path / "out") == {"unlabeled": 2}


def test_a_shard_with_folders_in_its_keys_is_a_shard(tmp_path: Path) -> None:
    files = [file for n in range(4) for file in ((f"cam{n % 2}/{n}.png", png(n)), (f"cam{n % 2}/{n}.cls", b"0"))]
    with pytest.raises(UserError, match=r"is a shard already; name it in the config"):
        pack(write_raw_tar(tmp_path / "in.tar", files), tmp_path / "out", split="labeled")


@pytest.mark.parametrize(
    "folders",
    ["train2017 val2017", "TrainData TestData", "trainset testset", "trainval eval", "train_0 train_1 test_0"],
)
def test_other_names_of_splits_are_splits(tmp_path: Path, folders: str) -> None:
    files = {
        f"{f}/{n}": d for k, f in enumerate(folders.split()) for n, d in class_files(2, CATS, first=9000 * k).items()
    }
    source = write_files(tmp_path / "in", files)
    with pytest.raises(UserError, match="which look like splits") as caught:
        pack(source, tmp_path / "out", split="labeled")
    assert [words[2].rpartition("/")[2] for words in run_advice(caught.value)] == sorted(folders.split())


def test_folders_that_all_hold_the_same_folders_are_no_classes(tmp_path: Path) -> None:
    """As fold1 and fold2, or color and grayscale."""
    files = {f"fold{k}/{n}": d for k in (1, 2) for n, d in class_files(2, CATS, first=9000 * k).items()}
    source = write_files(tmp_path / "in", files)
    with pytest.raises(UserError, match=r"fold1, fold2, which hold the same folders \(cat, dog\)") as caught:
        pack(source, tmp_path / "out", split="labeled")
    run_advice(caught.value)
    assert read_manifest(tmp_path / "out").classes == ("cat", "dog")
    (tmp_path / "classes.txt").write_text("fold1\nfold2\n")
    pack(source, tmp_path / "other", split="labeled", classes=tmp_path / "classes.txt")


def test_a_table_that_says_otherwise_than_the_folders_is_not_passed_over(tmp_path: Path) -> None:
    files = {f"images_{n // 2}/{n}.png": png(n) for n in range(4)}
    rows = "".join(f"{n}.png,{'cat' if n % 2 else 'dog'}\n" for n in range(4))
    source = write_files(tmp_path / "in", {**files, "labels.csv": f"id,label\n{rows}".encode()})
    with pytest.raises(UserError, match=r"labels\.csv, whose rows have other labels than the folders \(images_0"):
        pack(source, tmp_path / "out", split="labeled")
    same = "".join(f"{n}.png,images_{n // 2}\n" for n in range(4))
    write_files(source, {"labels.csv": f"id,label\n{same}".encode()})
    assert pack(source, tmp_path / "out", split="labeled").num_samples == {"labeled": 4}


# ---------------------------------------------------------------------------------------------------------------- names


def test_a_zip_in_a_code_page_says_so_and_is_read_with_the_option(tmp_path: Path) -> None:
    """Else the classes are called after the bytes of another alphabet."""
    path = write_zip(tmp_path / "in.zip", {"AAAA/1.png": png(1), "BBBB/2.png": png(2)})
    data = path.read_bytes().replace(b"AAAA/", "猫猫".encode("shift_jis") + b"/")
    path.write_bytes(data.replace(b"BBBB/", "犬犬".encode("shift_jis") + b"/"))
    with pytest.raises(UserError, match=r"names in a code page .*--zip-encoding, such as shift_jis"):
        pack(path, tmp_path / "out", split="labeled")
    with pytest.raises(UserError, match=r"--zip-encoding klingon is unknown"):
        pack(path, tmp_path / "out", split="labeled", zip_encoding="klingon")
    with pytest.raises(UserError, match=r"not in --zip-encoding utf-8"):
        pack(path, tmp_path / "out", split="labeled", zip_encoding="utf-8")
    assert pack(path, tmp_path / "out", split="labeled", zip_encoding="shift_jis").classes == ("犬犬", "猫猫")


def test_names_in_utf8_without_the_flag_are_read(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "in.zip", {"AAAAA/1.png": png(1), "dog/2.png": png(2)})
    path.write_bytes(path.read_bytes().replace(b"AAAAA/", "café".encode() + b"/"))
    assert pack(path, tmp_path / "out", split="labeled").classes == ("café", "dog")


def write_twice(path: Path) -> Path:
    path = write_zip(path, {"cat/1.png": png(1), "cat/2.png": png(2), "dog/3.png": png(3)})
    path.write_bytes(path.read_bytes().replace(b"cat/2.png", b"cat/1.png"))
    return path


@pytest.mark.parametrize(
    "write",
    [
        write_twice,
        lambda path: write_zip(path, {"cat/1.png": png(1), "cat\\1.png": png(2), "dog/3.png": png(3)}),
        lambda path: write_raw_tar(path, [("cat/1.png", png(1)), ("./cat/1.png", png(2)), ("dog/3.png", png(3))]),
    ],
    ids=["zip", "zip with backslashes", "tar"],
)
def test_a_name_twice_in_an_archive_is_refused(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    with pytest.raises(UserError, match=r"holds cat/1\.png twice"):
        pack(write(tmp_path / "in"), tmp_path / "out", split="labeled")


def test_names_that_differ_in_their_unicode_form_alone_share_a_key(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    source = write_files(
        tmp_path / "in", {f"{composed}/1.png": png(1), f"{decomposed}/1.png": png(2), "dog/1.png": png(3)}
    )
    if len(os.listdir(source)) < 3:
        pytest.skip("this file system has one form only")
    with pytest.raises(UserError, match="would share the key"):
        pack(source, tmp_path / "out", split="labeled")


def test_classes_that_differ_in_case_or_spaces_alone_are_told(tmp_path: Path) -> None:
    report = pack(write_files(tmp_path / "in", class_files(1, "Cat cat dog")), tmp_path / "out", split="labeled")
    assert report.look_alikes == ("`Cat` and `cat`",)
    assert look_alikes(["new york", "newyork", "A", "B"]) == ("`new york` and `newyork`",)


def test_letters_that_join_are_part_of_names(tmp_path: Path) -> None:
    """As in Persian, and in emoji of several parts."""
    names = ["\u0645\u06cc\u200c\u062e", "\U0001f468\u200d\U0001f33e"]
    report = pack(
        write_files(tmp_path / "in", {f"{n}/1.png": png(k) for k, n in enumerate(names)}), tmp_path / "out", split="val"
    )
    assert set(report.classes) == set(names)
