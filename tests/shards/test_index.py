"""A stored index says what the tar says, to the last byte, and whatever is wrong with it, it is made anew."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support.damage import put, rotten
from support.images import png, write_raw_tar

from pipeline.shards.index import Index, build_index, index_path, keep_rows, load_index, read_index, write_index


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """A cut tar of good and bad samples, one of them with a name that is no UTF-8."""
    path = tmp_path / "a.tar"
    files = [("a.png", png(1)), ("a.cls", b"7"), ("b.png", b""), ("caf\udce9/c.png", png(2)), ("caf\udce9/c.png", b"")]
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    os.truncate(path, archive.offset - 1024)
    return path


def same(one: Index | None, other: Index) -> bool:
    """Equal in every field and type of column."""
    if one is None:
        return False
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Index)]
    return all(
        a.dtype == b.dtype and np.array_equal(a, b) if isinstance(b, np.ndarray) else a == b or list(a) == b
        for a, b in pairs
    )


def test_an_index_reads_as_it_was_written_without_a_copy(tar: Path) -> None:
    built = build_index(tar)
    assert built.cut
    assert sorted(built.problems) == [1, 2]
    assert "caf\udce9/c.png is there twice" in built.problems[2]
    write_index(index_path(tar), built)
    before = pa.total_allocated_bytes()
    read = read_index(index_path(tar))
    assert same(read, built)
    assert read is not None
    assert (read.key[2], list(read.key[:1])) == ("caf\udce9/c", ["a"])
    assert pa.total_allocated_bytes() - before < 8192
    assert not read.offset.flags.writeable


def test_an_index_that_rots_is_made_anew_or_says_the_same(tar: Path) -> None:
    built, num_damaged = build_index(tar), 0
    path = index_path(tar)
    write_index(path, built)
    for damaged in rotten(path.read_bytes(), 300):
        put(path, damaged)
        read = read_index(path)
        assert read is None or same(read, built)
        num_damaged += read is None
    assert num_damaged > 100
    assert same(load_index(tar), built)


def test_an_index_from_before_seals_is_read(tar: Path) -> None:
    built = build_index(tar)
    write_index(index_path(tar), built)
    batch = pa.ipc.open_file(index_path(tar).read_bytes()).get_batch(0)
    metadata = {key: value for key, value in batch.schema.metadata.items() if key != b"seal"}
    assert metadata.keys() < batch.schema.metadata.keys()
    with pa.ipc.new_file(str(index_path(tar)), batch.schema.with_metadata(metadata)) as out:
        out.write_batch(batch.replace_schema_metadata(metadata))
    assert same(read_index(index_path(tar)), built)


def test_the_rows_that_are_kept_are_those_of_the_index(tar: Path) -> None:
    write_index(index_path(tar), build_index(tar))
    for index in (build_index(tar), read_index(index_path(tar))):
        assert index is not None
        kept = keep_rows(index, np.array([2, 0]))
        assert (list(kept.key), kept.label.tolist(), kept.problems) == (["caf\udce9/c", "a"], [-1, 7], {})
        assert kept.offset.tolist() == index.offset[[2, 0]].tolist()


def test_an_index_of_no_samples_is_stored(tmp_path: Path) -> None:
    empty = build_index(write_raw_tar(tmp_path / "a.tar", {"LICENSE": b"text"}))
    write_index(tmp_path / "a.selftrain.arrow", empty)
    assert same(read_index(tmp_path / "a.selftrain.arrow"), empty)


def test_a_damaged_index_is_made_anew(tar: Path) -> None:
    built = load_index(tar)
    content, rng = index_path(tar).read_bytes(), np.random.default_rng(0)
    damaged = [b"", b"rubbish", content.replace(b"decoder ", b"decoder!"), content.replace(b"offset", b"offsat")]
    damaged += [content[: int(len(content) * share)] for share in (0.001, 0.1, 0.5, 0.9, 0.999)]
    for data in damaged:
        index_path(tar).write_bytes(data)
        assert read_index(index_path(tar)) is None, data[:80]
        assert same(load_index(tar), built)
    for _ in range(300):  # never an error; numbers have no checksum, but `selftrain verify` compares them with the tar
        where = int(rng.integers(0, len(content)))
        index_path(tar).write_bytes(content[:where] + rng.bytes(4) + content[where + 4 :])
        found = read_index(index_path(tar))
        assert found is None or len(list(found.key)) == len(built)
