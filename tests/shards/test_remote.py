"""Shards in an object store (moto's S3 server) are those on disk: equal rows, fingerprints and bytes, in less room."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.command import selftrain_here as selftrain
from support.images import png, write_files
from support.object_store import BUCKET, ObjectStore, filesystem, make_bucket, object_store, upload
from support.processes import label_job, outputs, run, run_with_a_kill, train_job

from pipeline.config import Config, Data, changed
from pipeline.errors import UserError
from pipeline.packing.pack import pack
from pipeline.predict.batch import read_batch
from pipeline.predict.images import open_images
from pipeline.remote import Remote, RemoteError, place
from pipeline.shards.dataset import Dataset, has_test, open_split
from pipeline.shards.mirror import open_fetched
from pipeline.shards.reader import Reader
from pipeline.stages.kinds import folder_name

pytestmark = pytest.mark.process
SPLITS = ("labeled", "unlabeled", "val", "test")


@pytest.fixture(scope="module")
def remote(digits: Config, bucket: ObjectStore) -> Remote:
    """The packed digits, in the bucket."""
    assert isinstance(digits.data.root, Path)
    return upload(digits.data.root, f"{BUCKET}/of digits/packed")


@pytest.fixture
def data(remote: Remote, tmp_path: Path) -> Data:
    """With a cache that is empty."""
    return Data(root=remote, cache="never", cache_dir=tmp_path / "cache")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Name -> how often a file was read from the store."""
    found: Counter[str] = Counter()
    chunks = Remote.chunks

    def counted(self: Remote) -> Iterator[bytes]:
        found[self.name] += 1
        return chunks(self)

    monkeypatch.setattr(Remote, "chunks", counted)
    return found


def tars(data: Data) -> list[str]:
    assert data.cache_dir is not None
    return sorted(path.name for path in data.cache_dir.rglob("*.tar"))


def pixels(dataset: Dataset, data: Data, rows: list[int] | None = None) -> np.ndarray:
    return Reader(dataset, 8, data).read(np.arange(len(dataset)) if rows is None else np.array(rows))


def test_remote_data_are_those_on_disk(digits: Config, data: Data, reads: Counter[str]) -> None:
    for split in SPLITS:
        on_disk, there = open_split(digits.data, split), open_split(data, split)
        assert there.fingerprint == on_disk.fingerprint
        assert there.ids.tolist() == on_disk.ids.tolist()
        truth, same = there.truth(), on_disk.truth()
        assert truth is None if same is None else truth is not None and truth.tolist() == same.tolist()
    assert has_test(data)
    assert tars(data) == []  # opening reads the manifest and the indexes alone
    assert reads.pop("manifest.json") == 5
    assert set(reads.values()) == {1}  # each index once, however often the folder is opened
    there = open_split(data, "unlabeled")
    assert (pixels(there, data) == pixels(open_split(digits.data, "unlabeled"), digits.data)).all()
    assert len(tars(data)) == len(there.shards)


def test_a_stage_on_remote_data_is_the_stage_on_the_data_on_disk(
    digits: Config, data: Data, bucket: ObjectStore, teacher: Path, labels: Path, tmp_path: Path
) -> None:
    remote = changed(digits, data=data)
    training, same_training = (train_job(one, tmp_path / "train") for one in (remote, digits))
    assert folder_name(training) == folder_name(same_training)
    assert outputs(run(label_job(remote, tmp_path / "labels", teacher), bucket.found)) == outputs(labels)


def test_a_training_on_remote_data_that_is_killed_ends_with_the_bytes_of_one_on_disk(
    digits: Config, data: Data, bucket: ObjectStore, teacher: Path, tmp_path: Path
) -> None:
    job = train_job(changed(digits, data=data), tmp_path / "train")
    assert outputs(run_with_a_kill(job, 20, bucket.found)) == outputs(teacher)


def test_the_cache_keeps_the_shards_that_were_read_last_within_its_limit(data: Data, reads: Counter[str]) -> None:
    size = place_of(data).files()["unlabeled-000000.tar"].size  # and about that of the others
    data = changed(data, remote_cache_gb=2.5 * size / 1e9)
    dataset = open_split(data, "unlabeled")
    first = [[shard.start] for shard in dataset.shards]
    for rows, kept in ((0, "0"), (1, "01"), (0, "01"), (2, "02"), (3, "23")):
        pixels(dataset, data, first[rows])
        assert tars(data) == [f"unlabeled-00000{number}.tar" for number in kept]
    assert reads["unlabeled-000000.tar"] == 1


def test_with_room_for_all_the_cache_is_looked_through_once(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, walk = [], os.walk
    monkeypatch.setattr(os, "walk", lambda root: looks.append(root) or walk(root))
    dataset = open_split(data, "unlabeled")
    pixels(dataset, data)
    assert len(tars(data)) == 5
    assert len(looks) == 1


def test_a_shard_stays_while_it_is_read_whatever_the_limit(data: Data) -> None:
    data = changed(data, remote_cache_gb=1e-9)
    dataset = open_split(data, "unlabeled")
    descriptor = open_fetched(dataset.shards[0].path)
    for shard in dataset.shards[1:]:
        pixels(dataset, data, [shard.start])
        assert tars(data) == [dataset.shards[0].path.name, shard.path.name]
    os.close(descriptor)
    pixels(dataset, data, [dataset.shards[1].start])
    assert tars(data) == [dataset.shards[1].path.name]


def test_those_who_read_a_shard_at_one_time_fetch_it_once(data: Data, reads: Counter[str]) -> None:
    shard = open_split(data, "unlabeled").shards[0]
    threads = [threading.Thread(target=lambda: os.close(open_fetched(shard.path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads[shard.path.name] == 1


def test_what_a_killed_process_left_of_a_shard_is_not_taken_for_it(data: Data) -> None:
    dataset = open_split(data, "unlabeled")
    whole = pixels(dataset, data)
    path = dataset.shards[0].path
    path.write_bytes(path.read_bytes()[:-512])
    assert (pixels(dataset, data) == whole).all()


# --------------------------------------------------------------------------------------------------- what others made


@pytest.fixture(scope="module")
def foreign(bucket: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Remote:
    """Tars without a manifest, and the file of their classes."""
    folder = tmp_path_factory.mktemp("foreign")
    write_files(folder / "images", {f"{name}/{i}.png": png(i + 10 * (name == "b")) for name in "ab" for i in range(6)})
    pack(folder / "images", folder / "packed", shard_size=5, split="labeled", workers=1)
    tars = folder / "mine"
    tars.mkdir()
    for path in (folder / "packed").glob("*.tar"):
        path.rename(tars / path.name)
    (tars / "classes.txt").write_text("a\nb\n")
    return upload(tars, f"{BUCKET}/mine")


@pytest.mark.parametrize("which", ["", "/labeled-00000[01].tar", "/labeled-000000.tar"])
def test_foreign_tars_are_named_by_folder_pattern_or_file(foreign: Remote, which: str, tmp_path: Path) -> None:
    data = Data(labeled=(f"{foreign}{which}",), classes=f"{foreign}/classes.txt", cache_dir=tmp_path)
    names = [shard.name for shard in open_split(data, "labeled").shards]
    number = {"": 3, "/labeled-000000.tar": 1}.get(which, 2)
    assert names == [f"mine-labeled-00000{i}" for i in range(number)]


def test_a_foreign_tar_that_is_replaced_is_another_data_set(bucket: ObjectStore, tmp_path: Path) -> None:
    fingerprints = []
    for number in (2, 60):  # of other sizes: the clock of an object store may count seconds
        folder = tmp_path / str(number)
        write_files(folder / "images", {f"{i}.png": png(i) for i in range(number)})
        pack(folder / "images", folder / "packed", split="unlabeled", workers=1)
        (at := place(f"s3://{BUCKET}/replaced/x.tar")).write(folder / "packed" / "unlabeled-000000.tar")
        dataset = open_split(Data(unlabeled=(at,), cache_dir=tmp_path / "cache"), "unlabeled")
        assert len(dataset) == number
        fingerprints.append(dataset.fingerprint)
    assert fingerprints[0] != fingerprints[1]


def test_a_file_url_is_a_path(digits: Config) -> None:
    assert Data(root=f"file://{digits.data.root}") == Data(root=digits.data.root)


# ------------------------------------------------------------------------------------------------------------- commands


def test_commands_read_packed_folders_by_their_address(remote: Remote, teacher: Path, tmp_path: Path) -> None:
    assert "all good" in selftrain("verify", str(remote))
    assert "0.9" in selftrain("evaluate", teacher, str(remote), "--split", "val")
    selftrain("predict", teacher, str(remote), "--split", "val", "--out", tmp_path / "val.csv")
    assert len((tmp_path / "val.csv").read_text().splitlines()) > 100
    with pytest.raises(UserError, match=r"s3://bucket has no manifest\.json|s3://bucket holds no files"):
        selftrain("verify", f"s3://{BUCKET}")


# --------------------------------------------------------------------------------------------------------------- errors


def place_of(data: Data) -> Remote:
    assert isinstance(data.root, Remote)
    return data.root


def test_a_folder_that_is_not_there_is_an_error_with_its_address(bucket: ObjectStore, tmp_path: Path) -> None:
    for data, message in (
        (Data(root=f"s3://{BUCKET}/none"), r"^s3://bucket/none holds no files; fix the address"),
        (Data(unlabeled=(f"s3://{BUCKET}/none.tar",)), r"^s3://bucket holds no files|none\.tar does not exist"),
        (
            Data(root="s3://nobody-has-this/x"),
            r"^s3://nobody-has-this/x cannot be listed .*NO_SUCH_BUCKET.*fix the name",
        ),
    ):
        with pytest.raises(UserError, match=message):
            open_split(changed(data, cache_dir=tmp_path), "unlabeled")


def test_a_bucket_that_vanishes_stops_whoever_reads_it(digits: Config, bucket: ObjectStore, tmp_path: Path) -> None:
    make_bucket("vanishing")
    assert isinstance(digits.data.root, Path)
    data = Data(root=upload(digits.data.root, "vanishing/x"), cache="never", cache_dir=tmp_path)
    dataset = open_split(data, "unlabeled")
    pixels(dataset, data, [0])
    with open_images(dataset.shards[0].path.parent, "unlabeled") as images, ThreadPoolExecutor() as pool:
        filesystem().delete_dir("vanishing")
        pixels(dataset, data, [0])  # which is here
        anyone = SimpleNamespace(seen=((8,), "bicubic", "center"))
        with pytest.raises(RemoteError, match="NO_SUCH_BUCKET"):  # and no bad image
            read_batch(images, np.array([len(dataset) - 1]), [anyone], pool)  # type: ignore[list-item]
    with pytest.raises(RemoteError, match=r"^s3://vanishing.* cannot be listed .*NO_SUCH_BUCKET.*make the bucket"):
        pixels(dataset, data)
    with pytest.raises(RemoteError, match="NO_SUCH_BUCKET"):
        open_split(data, "unlabeled")


def test_a_shard_of_other_bytes_or_none_is_refused(digits: Config, bucket: ObjectStore, tmp_path: Path) -> None:
    assert isinstance(digits.data.root, Path)
    at = upload(digits.data.root, f"{BUCKET}/damaged")
    data = Data(root=at, cache="never", cache_dir=tmp_path / "cache")
    (tmp_path / "x").write_bytes(bytes((at / "unlabeled-000001.tar").status().size))  # type: ignore[union-attr]
    (at / "unlabeled-000001.tar").write(tmp_path / "x")
    dataset = open_split(data, "unlabeled")
    with pytest.raises(
        RemoteError, match=r"s3://bucket/damaged/unlabeled-000001\.tar is not the shard that was packed"
    ):
        pixels(dataset, data)
    assert "unlabeled-000001.tar" not in tars(data)
    filesystem().delete_file(f"{BUCKET}/damaged/unlabeled-000001.tar")
    with pytest.raises(UserError, match=r"s3://bucket/damaged has no unlabeled-000001\.tar"):
        open_split(data, "unlabeled")


@pytest.mark.slow  # pyarrow tries again for six seconds
def test_a_lost_connection_is_no_bad_image(digits: Config, teacher: Path, tmp_path: Path) -> None:
    assert isinstance(digits.data.root, Path)
    with object_store() as store:
        here = f"endpoint_override=127.0.0.1:{store.port}&scheme=http&region=us-east-1"
        data = Data(
            root=upload(digits.data.root, f"{BUCKET}/x?{here}"), bad_images="skip", cache="never", cache_dir=tmp_path
        )
        dataset = open_split(data, "unlabeled")
        store.stop()
        lost = r"s3://bucket/x/unlabeled-.*\.tar\?.* cannot be read .*NETWORK_CONNECTION.*; look after the connection"
        with pytest.raises(RemoteError, match=lost):
            pixels(dataset, data)
        assert tars(data) == []
