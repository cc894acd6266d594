"""The walk over a tar's headers agrees with tarfile, and a damaged tar is told from a whole one."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.images import write_raw_tar

from pipeline.errors import UserError
from pipeline.shards.tar import CutTarError, walk, write_tar

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
NAMES = st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="\\"), min_size=1, max_size=130)


@pytest.mark.parametrize("form", FORMATS)
def test_walk_agrees_with_tarfile_in_every_format(tmp_path: Path, form: int) -> None:
    files = {"a.jpg": b"1" * 700, "deep/" * 15 + "\u00e9.jpg": b"", "x" * 99: b"2" * 512}
    if form != tarfile.USTAR_FORMAT:
        files["long/" * 60 + "name.jpg"] = b"3"
    path = write_raw_tar(tmp_path / "a.tar", files, format=form)
    data = path.read_bytes()
    assert {name: data[offset : offset + size] for name, offset, size in walk(path)} == files


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=50)
@given(names=st.lists(NAMES, unique=True, max_size=4), form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_walk_finds_every_name_that_tarfile_writes(tmp_path: Path, names: list[str], form: int) -> None:
    names = [name for name in names if not name.endswith("/")]
    path = write_raw_tar(tmp_path / "a.tar", [(name, name.encode()) for name in names], format=form)
    with tarfile.open(path) as tar:
        assert [(name, offset) for name, offset, _ in walk(path)] == [(m.name, m.offset_data) for m in tar]


@pytest.mark.parametrize("missing", [0, 1, 512, 1023, 1024, 1025, 1536, 2048])
def test_a_cut_tar_yields_what_is_whole_and_then_says_so(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, [("one.jpg", b"1" * 512), ("two.jpg", b"2" * 512)])
    os.truncate(path, 2048 - missing)  # two members of 1024 bytes each, then the end-of-archive mark
    found = []
    with pytest.raises(CutTarError, match=r"a\.tar is cut"):  # noqa: PT012 - what comes before the error matters
        for member in walk(path):
            found.append(member.name)
    assert found == ["one.jpg", "two.jpg"][: (2048 - missing) // 1024]


def test_damage_compression_and_other_files_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, [("one.jpg", b"1" * 512), ("two.jpg", b"2" * 512)])
    data = bytearray(path.read_bytes())
    compressed = tmp_path / "b.tar"
    compressed.write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(UserError, match=r"b\.tar is compressed"):
        list(walk(compressed))
    data[1024 + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.tar is damaged at byte 1024"):
        list(walk(path))
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(UserError, match=r"a\.tar is not a tar"):
        list(walk(path))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("evil.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(UserError, match=r"evil\.jpg is a link to /etc/passwd.*--(hard-)?dereference"):
        list(walk(path))


def test_files_of_8_gib_and_more_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("big.jpg")
    info.size = 9 << 30
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, 512 + (9 << 30) + 1024)  # sparse: takes no disk
    assert [tuple(member) for member in walk(path)] == [("big.jpg", 512, 9 << 30)]


def test_written_tars_are_reproducible_and_readable_by_tarfile(tmp_path: Path) -> None:
    files = [("a/1.cls", b"3"), ("a/1.jpg", b"data"), ("\u00e9" * 120 + ".jpg", b"x")]
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, files)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert [(m.name, tar.extractfile(m).read()) for m in tar] == files  # type: ignore[union-attr]


def test_what_lies_behind_the_end_is_not_passed_over(tmp_path: Path) -> None:
    """`cat a.tar b.tar` makes a tar of which readers see the first half."""
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", [(f"{name}.png", b"x")])
    joined = tmp_path / "joined.tar"
    joined.write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    with pytest.raises(UserError, match=r"goes on after its end, as tars that were joined do"):
        list(walk(joined))


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, b"A", b"M"])
def test_members_that_are_no_files_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("odd.png")
        info.type = kind
        tar.addfile(info)
    with pytest.raises(UserError, match=r"odd\.png is a pipe, a device or of a kind that is not known"):
        list(walk(tmp_path / "a.tar"))


@pytest.mark.parametrize("record", [b"9" * 5000 + b" size=1\n", b"5013 size=" + b"9" * 5002 + b"\n"])
def test_numbers_of_thousands_of_digits_are_damage(tmp_path: Path, record: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("x")
        info.type, info.size = tarfile.XHDTYPE, len(record)
        tar.addfile(info, io.BytesIO(record))
    with pytest.raises(UserError, match="pax"):
        list(walk(tmp_path / "a.tar"))
