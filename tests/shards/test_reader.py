"""The reader gives the same pixels from the cache and without it, fast, and whoever builds or breaks the cache."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support.images import class_files, write_raw_tar
from support.waiting import LIMIT_S

from pipeline.config import Data
from pipeline.errors import UserError
from pipeline.packing.pack import pack
from pipeline.shards.cache import Worth, worth_of
from pipeline.shards.dataset import Dataset, open_split
from pipeline.shards.decode import decode, resize_to
from pipeline.shards.reader import Reader


@pytest.fixture
def data(source: Path, tmp_path: Path) -> Data:
    """A packed folder of 60 images in 3 shards."""
    pack(source, tmp_path / "out", split="unlabeled", shard_size=20)
    return Data(root=tmp_path / "out", cache_dir=tmp_path / "cache", cache="always")


def expected(dataset: Dataset, size: int) -> np.ndarray:
    files = class_files(20)
    keys = [dataset.key(row).partition("/")[2] for row in range(len(dataset))]
    return np.stack([resize_to(decode(files[f"{key}.png"], key), size) for key in keys])


@pytest.mark.parametrize("size", [8, 5, 13])
@pytest.mark.parametrize("cache", ["always", "never"])
def test_pixels_are_those_of_the_files_in_any_order(data: Data, cache: str, size: int) -> None:
    data = data.model_copy(update={"cache": cache})
    dataset = open_split(data, "unlabeled")
    rows = np.random.default_rng(0).integers(0, 60, 200)
    assert np.array_equal(Reader(dataset, size, data).read(rows), expected(dataset, size)[rows])
    assert Reader(dataset, size, data).read(np.empty(0, np.int64)).shape == (0, size, size, 3)
    with pytest.raises(IndexError):
        Reader(dataset, size, data).read(np.array([60]))


def test_large_jpegs_are_equal_with_and_without_cache(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)).save(buffer, "JPEG")
    write_raw_tar(tmp_path / "a.tar", {"x.jpg": buffer.getvalue()})
    always = Data(unlabeled=(tmp_path / "a.tar",), cache_dir=tmp_path / "cache", cache="always")
    dataset = open_split(always, "unlabeled")
    never = always.model_copy(update={"cache": "never"})
    row = np.zeros(1, np.int64)
    assert np.array_equal(Reader(dataset, 32, always).read(row), Reader(dataset, 32, never).read(row))


def test_skipped_samples_do_not_shift_the_cache(tmp_path: Path) -> None:
    files = {"a.png": class_files(1)["cat/0000.png"], "b.png": b"", "c.png": class_files(1)["dog/0000.png"]}
    write_raw_tar(tmp_path / "a.tar", files)
    data = Data(unlabeled=(tmp_path / "a.tar",), cache_dir=tmp_path / "cache", cache="always", bad_images="skip")
    images = Reader(open_split(data, "unlabeled"), 8, data).read(np.arange(2))
    assert np.array_equal(images[1], decode(files["c.png"], "c"))


def test_a_shard_of_nothing_but_bad_images_is_no_obstacle(tmp_path: Path) -> None:
    write_raw_tar(tmp_path / "in" / "a.tar", {"a.png": b""})
    write_raw_tar(tmp_path / "in" / "b.tar", {"b.png": class_files(1)["cat/0000.png"]})
    data = Data(unlabeled=(tmp_path / "in",), cache_dir=tmp_path / "cache", cache="always", bad_images="skip")
    assert Reader(open_split(data, "unlabeled"), 8, data).read(np.zeros(3, np.int64)).shape == (3, 8, 8, 3)


def test_a_damaged_cache_is_made_anew(data: Data, tmp_path: Path) -> None:
    dataset = open_split(data, "unlabeled")
    Reader(dataset, 8, data)
    for number, path in enumerate(sorted((tmp_path / "cache" / "decoded").glob("*.npy"))):
        path.write_bytes([b"", path.read_bytes()[:500], b"rubbish"][number])
    assert np.array_equal(Reader(dataset, 8, data).read(np.arange(60)), expected(dataset, 8))


def test_a_cache_from_before_images_were_resized_otherwise_is_not_served(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_split(data, "unlabeled")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.shards.reader.RESIZE_VERSION", 0)
        patch.setattr("pipeline.shards.reader.resize_to", lambda *_: np.zeros((8, 8, 3), np.uint8))
        assert not Reader(dataset, 8, data).read(np.arange(60)).any()
    assert np.array_equal(Reader(dataset, 8, data).read(np.arange(60)), expected(dataset, 8))
    assert len(list((tmp_path / "cache" / "decoded").glob("*.npy"))) == 6


def test_a_damaged_image_of_the_cache_is_refused_with_what_to_delete(data: Data, tmp_path: Path) -> None:
    dataset = open_split(data, "unlabeled")
    Reader(dataset, 8, data)
    path = min((tmp_path / "cache" / "decoded").glob("*.npy"))
    content = bytearray(path.read_bytes())
    content[-20 * 4 - 3 * 8 * 8 * 3 - 1] ^= 1  # the last byte of image 16 of 20
    path.write_bytes(content)
    reader, image = Reader(dataset, 8, data), [shard.sha256[:16] in path.name for shard in dataset.shards].index(True)
    first = dataset.shards[image].start
    others = np.setdiff1d(np.arange(60), first + 16)
    assert np.array_equal(reader.read(others), expected(dataset, 8)[others])
    with pytest.raises(UserError, match=rf"{path.name} is damaged in image 16; delete this file"):
        reader.read(np.arange(60))
    path.unlink()
    assert np.array_equal(Reader(dataset, 8, data).read(np.arange(60)), expected(dataset, 8))


def test_a_cache_without_checksums_of_an_earlier_version_is_made_anew(data: Data, tmp_path: Path) -> None:
    dataset = open_split(data, "unlabeled")
    Reader(dataset, 8, data)
    for path in (tmp_path / "cache" / "decoded").glob("*.npy"):
        np.save(path, np.zeros_like(np.load(path)))
    assert np.array_equal(Reader(dataset, 8, data).read(np.arange(60)), expected(dataset, 8))


@pytest.mark.parametrize(
    ("num_bytes", "free", "decode_s", "read_s", "is_cached"),
    [
        (100, 400, 2e-3, 1e-3, True),
        (101, 400, 2e-3, 1e-3, False),  # the disk has no room
        (100, 400, 1.9e-3, 1e-3, False),  # it saves too little time
    ],
)
def test_auto_caches_what_saves_time_and_has_room(
    num_bytes: int, free: int, decode_s: float, read_s: float, is_cached: bool
) -> None:
    assert Worth(num_bytes, free, decode_s, read_s).is_cached == is_cached


def test_reading_is_slower_where_the_cache_does_not_fit_in_memory(tmp_path: Path) -> None:
    small, large = (worth_of(tmp_path / "not" / "yet", num, 150_528, 1e-3) for num in (1000, 10**8))
    assert small.free_bytes > 0
    assert small.read_s < 1e-4 < large.read_s
    assert not large.is_cached


def test_auto_says_in_one_line_how_it_decides(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a cache that is there already, it has nothing to decide."""
    dataset, auto = open_split(data, "unlabeled"), data.model_copy(update={"cache": "auto"})
    caplog.set_level("INFO", logger="selftrain.data")
    with monkeypatch.context() as full:
        full.setattr("pipeline.shards.cache.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
        images = Reader(dataset, 8, auto).read(np.arange(60))
        assert "at 8 px are decoded each time (1.2e-05 of 1e-06 GB that are free; an image takes" in caplog.text
        assert not (tmp_path / "cache" / "decoded").exists()
        always = Reader(dataset, 8, data.model_copy(update={"cache": "always"}))
        assert np.array_equal(always.read(np.arange(60)), images)
        caplog.clear()
        assert np.array_equal(Reader(dataset, 8, auto).read(np.arange(60)), images)
        assert caplog.text == ""


def test_a_cache_on_a_file_system_without_locks_names_the_config_key(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"has no locks \(.*\); set data\.cache_dir to a folder"):
        Reader(open_split(data, "unlabeled"), 8, data)


def test_a_cache_that_cannot_be_written_names_the_config_key(data: Data, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache_dir"):
        Reader(open_split(data, "unlabeled"), 8, data.model_copy(update={"cache_dir": tmp_path / "file"}))


BUILD = """
import os, signal, sys, hashlib, resource, numpy as np
from pathlib import Path
end = sys.argv[3] if len(sys.argv) > 3 else ""
if end.isdigit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(end), int(end)))
def progress(done, total):
    print("built", done, flush=True)
    if end == "killed":  # the shard is written and not yet in place
        os.kill(os.getpid(), signal.SIGKILL)
from pipeline.config import Data
from pipeline.shards.dataset import open_split
from pipeline.shards.reader import Reader
data = Data(root=Path(sys.argv[1]), cache_dir=Path(sys.argv[2]), cache="always")
reader = Reader(open_split(data, "unlabeled"), 64, data, progress=progress)
print(hashlib.sha256(reader.read(np.arange(60)).tobytes()).hexdigest())
"""


def build(data: Data, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(data.root), str(data.cache_dir), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.process
def test_two_ranks_build_one_cache_together(data: Data) -> None:
    outputs = [process.communicate(timeout=LIMIT_S)[0].split() for process in [build(data), build(data)]]
    assert outputs[0][-1] == outputs[1][-1]
    assert sum(words.count("built") for words in outputs) == 3  # each shard once


@pytest.mark.process
def test_a_killed_builder_leaves_nothing_wrong(data: Data) -> None:
    assert data.cache_dir is not None
    decoded = data.cache_dir / "decoded"
    killed = build(data, "killed")
    killed.communicate(timeout=LIMIT_S)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(decoded.glob(".*.tmp"))) == 1
    assert not list(decoded.glob("*.npy"))
    output = build(data).communicate(timeout=LIMIT_S)[0].split()
    dataset = open_split(data, "unlabeled")
    never = Reader(dataset, 64, data.model_copy(update={"cache": "never"})).read(np.arange(60))
    assert output[-1] == hashlib.sha256(never.tobytes()).hexdigest()
    assert not list(decoded.glob(".*.tmp"))


@pytest.mark.process
def test_a_full_disk_is_a_clear_error_and_leaves_no_file(data: Data, tmp_path: Path) -> None:
    _, errors = build(data, "100000").communicate(timeout=LIMIT_S)  # a shard takes 20 x 64 x 64 x 3 bytes
    assert "UserError: cannot write" in errors
    assert [path.suffix for path in (tmp_path / "cache" / "decoded").iterdir()] == [".lock"]
