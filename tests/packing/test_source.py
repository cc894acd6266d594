"""SOURCE in all the shapes that people have: nesting, litter, modes, links, zips, odd names."""

from __future__ import annotations

import os
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.images import as_nobody, class_files, png, write_files, write_raw_tar, write_zip

from pipeline.errors import UserError
from pipeline.packing.item import sample_key
from pipeline.packing.layout import arrange
from pipeline.packing.source import open_source
from pipeline.shards.manifest import read_classes

FILES = {
    "cat/a.JPG": b"1",
    "cat/deep/er/b.Png": b"2",
    "dog/a.jpeg": b"3",
    "dog/notes.txt": b"",
    "dog/.hidden.jpg": b"",
    "__MACOSX/dog/._a.jpeg": b"",
    "Thumbs.db": b"",
}
KEYS = [("cat/a", "cat"), ("cat/deep/er/b", "cat"), ("dog/a", "dog")]


def command(folder: Path, split: str) -> str:
    return f"pack {folder} --split {split}"


def keys(path: Path, *, labeled: bool = True, known: tuple[str, ...] = ()) -> list[tuple[str, str | None]]:
    with open_source(path) as source:
        return [(item.key, item.class_name) for item in arrange(source, labeled=labeled, known=known, command=command)]


@pytest.mark.parametrize("top", ["", "train/", "./", "data/train/"])
@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_nesting_and_litter_are_understood_in_every_kind(tmp_path: Path, kind: str, top: str) -> None:
    files = {f"{top}{name}": data for name, data in FILES.items()}
    path = {
        "folder": lambda: write_files(tmp_path / "in", files),
        "tar": lambda: write_raw_tar(tmp_path / "in.tar", files),
        "zip": lambda: write_zip(tmp_path / "in.zip", files),
    }[kind]()
    assert keys(path) == KEYS
    with open_source(path) as source:
        assert Counter(source.ignored.values()) == {"hidden": 3, ".txt": 1}
        assert [source.read(name) for name in source.names] == [b"1", b"2", b"3"]


def test_a_flat_folder_is_unlabeled_only(tmp_path: Path) -> None:
    path = write_files(tmp_path / "in", {"1.jpg": b"1", "2.png": b"2"})
    assert keys(path, labeled=False) == [("1", None), ("2", None)]
    with pytest.raises(UserError, match=r"1\.jpg is in no class folder(.|\n)*--split unlabeled"):
        keys(path)


def test_a_shard_given_as_source_is_recognized(tmp_path: Path) -> None:
    path = write_raw_tar(tmp_path / "in.tar", {"1.jpg": b"1", "1.cls": b"0"})
    with pytest.raises(UserError, match="a shard already"):
        keys(path)


def test_a_single_known_class_is_not_taken_for_a_top_folder(tmp_path: Path) -> None:
    path = write_files(tmp_path / "in", {"cat/x/1.jpg": b"1", "cat/x/2.jpg": b"2"})
    assert keys(path, known=("cat", "dog"))[0] == ("cat/x/1", "cat")


def test_folders_of_splits_are_not_taken_for_classes(tmp_path: Path) -> None:
    path = write_files(tmp_path / "in", {"train/cat/1.jpg": b"1", "test/cat/2.jpg": b"2"})
    with pytest.raises(UserError, match=r"test, train, which look like splits"):
        keys(path)


def test_what_a_file_is_decides_and_neither_its_name_nor_an_archive_at_its_end(tmp_path: Path) -> None:
    """A tar whose last member is a zip, such as an .xlsx, looks like a zip from behind."""
    sheet = write_zip(tmp_path / "sheet.zip", {"a.xml": b"x"}).read_bytes()
    files = {**class_files(2), "zz/sheet.xlsx": sheet}
    for name in ("photos.tar", "photos", "photos.zip"):
        with open_source(write_raw_tar(tmp_path / name, files)) as source:
            assert set(source.names) == set(class_files(2))
            assert source.ignored == {"zz/sheet.xlsx": ".xlsx"}
    with open_source(write_zip(tmp_path / "other.tar", class_files(2))) as source:
        assert set(source.names) == set(class_files(2))
    (tmp_path / "cut.zip").write_bytes(sheet[:40])
    with (
        pytest.raises(UserError, match=r"cut\.zip is a damaged zip .*copy it again"),
        open_source(tmp_path / "cut.zip"),
    ):
        pass


def test_a_zip_member_that_inflates_past_its_size_is_refused_without_inflating_it(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "bomb.zip", {"cat/1.png": bytes(1 << 26), "dog/2.png": png(2)})
    data = path.read_bytes().replace((1 << 26).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    path.write_bytes(data)
    tracemalloc.start()
    with open_source(path) as source, pytest.raises(UserError, match=r"cat/1\.png cannot be read"):
        source.read("cat/1.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 23


def test_ways_of_compression_that_are_not_read_are_named_with_the_fix(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("cat/1.png", png(1))
    with open_source(tmp_path / "b.zip") as source, pytest.raises(UserError, match=r"\(method 12\); extract the zip"):
        source.read("cat/1.png")


def test_folders_of_a_zip_from_windows_are_folders(tmp_path: Path) -> None:
    path = tmp_path / "win.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in class_files(2).items():
            info = zipfile.ZipInfo("x")
            info.filename = name.replace("/", "\\")
            archive.writestr(info, data)
    with open_source(path) as source:
        assert set(source.names) == set(class_files(2))
        assert {name: source.read(name) for name in source.names} == class_files(2)


def test_classes_are_equal_in_every_unicode_form(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    write_files(tmp_path / "in", {f"{decomposed}/1.png": png(1), "tea/2.png": png(2)})
    with open_source(tmp_path / "in") as source:
        assert {item.class_name for item in arrange(source, labeled=True, known=(), command=command)} == {
            composed,
            "tea",
        }
        known = (decomposed, "tea")  # as an older pack has stored them
        assert {item.class_name for item in arrange(source, labeled=True, known=known, command=command)} == set(known)
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbf" + f"{decomposed}\r\ntea\r\n".encode())
    assert read_classes(tmp_path / "classes.txt") == (composed, "tea")


def test_pipes_and_devices_are_no_images(tmp_path: Path) -> None:
    """A pipe would be waited for, for ever, and /dev/zero has no end."""
    write_files(tmp_path, class_files(2))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with open_source(tmp_path) as source:
        for name in ("pipe.png", "zero.png"):
            with pytest.raises(UserError, match=f"{name} is a pipe or a device and no file; remove it"):
                source.read(name)
    with pytest.raises(UserError, match="is a pipe or a device"), open_source(tmp_path / "pipe.png"):
        pass


def test_equal_keys_are_an_error_with_both_names(tmp_path: Path) -> None:
    path = write_files(tmp_path / "in", {"cat/1.jpg": b"1", "cat/1.png": b"2", "dog/1.png": b"3"})
    with pytest.raises(UserError, match=r"cat/1\.jpg and cat/1\.png would share the key `cat/1`"):
        keys(path)


@pytest.mark.parametrize("name", ["../evil.jpg", "/etc/evil.jpg", "cat/../../evil.jpg"])
def test_members_that_point_outside_are_refused(tmp_path: Path, name: str) -> None:
    for path in (write_raw_tar(tmp_path / "in.tar", {name: b"1"}), write_zip(tmp_path / "in.zip", {name: b"1"})):
        with pytest.raises(UserError, match="points outside"):
            keys(path)


def test_a_name_twice_in_a_tar_is_an_error(tmp_path: Path) -> None:
    path = write_raw_tar(tmp_path / "in.tar", [("cat/1.jpg", b"1"), ("./cat/1.jpg", b"2")])
    with pytest.raises(UserError, match=r"cat/1\.jpg twice"):
        keys(path)


def test_missing_empty_and_other_sources_are_named(tmp_path: Path) -> None:
    for make, message in (
        (lambda: tmp_path / "absent", "does not exist"),
        (lambda: write_files(tmp_path / "empty", {}) or tmp_path / "empty", "does not exist|holds no images"),
        (lambda: write_files(tmp_path / "text", {"a.txt": b"", "b.txt": b""}), r"holds no images; found: 2 \.txt"),
        (lambda: write_files(tmp_path, {"in.rar": b"Rar!\x1a\x07x"}) / "in.rar", "is a rar archive; extract it"),
    ):
        with pytest.raises(UserError, match=message):
            keys(make())
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="it is empty"):
        keys(tmp_path / "nothing")


def test_an_image_that_is_given_alone_is_not_called_damaged(tmp_path: Path) -> None:
    source = write_files(tmp_path, {"a.png": png(1)}) / "a.png"
    with pytest.raises(UserError, match=r"a\.png is a single image; SOURCE must be a folder"), open_source(source):
        pass


def test_unreadable_files_and_folders_are_named(tmp_path: Path) -> None:
    path = write_files(tmp_path / "in", class_files(1))
    (path / "cat" / "0000.png").chmod(0)
    with (
        as_nobody(tmp_path),
        open_source(path) as source,
        pytest.raises(UserError, match=r"cat/0000\.png cannot be read"),
    ):
        source.read("cat/0000.png")
    (path / "dog").chmod(0)
    try:
        with as_nobody(tmp_path), pytest.raises(UserError, match="dog cannot be listed"):
            keys(path)
    finally:
        (path / "dog").chmod(0o755)


def test_links_to_files_and_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    real = write_files(tmp_path / "real", class_files(1))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cat").symlink_to(real / "cat")
    (tmp_path / "in" / "dog").mkdir()
    (tmp_path / "in" / "dog" / "1.png").symlink_to(real / "dog" / "0000.png")
    assert keys(tmp_path / "in") == [("cat/0000", "cat"), ("dog/1", "dog")]
    (tmp_path / "in" / "dog" / "again").symlink_to(tmp_path / "in")
    with pytest.raises(UserError, match="link to a folder that is in"):
        keys(tmp_path / "in")


def test_an_encrypted_or_broken_zip_names_the_member(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "in.zip", {"cat/1.png": png(1) * 3, "dog/1.png": png(2)})
    data = bytearray(path.read_bytes())
    data[80] ^= 0xFF
    path.write_bytes(data)
    with open_source(path) as source, pytest.raises(UserError, match=r"cat/1\.png cannot be read"):
        source.read("cat/1.png")


@given(st.text(min_size=1))
def test_keys_are_reversible_and_hold_no_dots(name: str) -> None:
    assume(name.rpartition("/")[2].strip("."))  # else the file is hidden, and is no image
    name = name.encode("utf-8", "replace").decode()
    key = sample_key(f"{name}.jpg")
    assert "." not in key
    assert unquote_to_bytes(key.encode()).decode() == name


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines"])
def test_class_names_that_no_classes_file_could_hold_are_refused(tmp_path: Path, name: bytes) -> None:
    os.makedirs(os.fsencode(tmp_path / "in") + b"/" + name)
    write_files(tmp_path / "in", {f"{os.fsdecode(name)}/1.png": png(1), "dog/1.png": png(2)})
    with pytest.raises(UserError, match="unprintable name"):
        keys(tmp_path / "in")


def test_odd_bytes_in_names_survive(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "in" / "cat")
    os.makedirs(folder)
    with open(folder + b"/caf\xe9 1.5.jpg", "wb") as file:
        file.write(b"1")
    write_files(tmp_path / "in", {"dog/1.jpg": b"2"})
    assert keys(tmp_path / "in")[0][0] == "cat/caf%E9 1%2E5"
