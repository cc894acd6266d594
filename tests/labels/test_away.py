"""Labels in an object store (moto's S3 server): each shard is labeled once, on whatever machines, to equal bytes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from support.away import labeled, machine
from support.command import selftrain_here as selftrain
from support.object_store import BUCKET, ObjectStore
from support.processes import label_job, outputs

from pipeline.config import Config, changed, dump_yaml
from pipeline.errors import EXIT_USER_ERROR, UserError
from pipeline.files import read_json
from pipeline.remote import Remote, place
from pipeline.stages.away import fetch_stage
from pipeline.stages.jobs import LabelJob
from pipeline.stages.part import Part

pytestmark = pytest.mark.process


@pytest.fixture
def job(digits: Config, teacher: Path, tmp_path: Path) -> LabelJob:
    return label_job(digits, tmp_path / "unused", teacher)


@pytest.fixture
def address(tmp_path: Path) -> Remote:
    """A folder of its own per test."""
    found = place(f"s3://{BUCKET}/{tmp_path.name}/labels")
    assert isinstance(found, Remote)
    return found


def stored(address: Remote) -> dict[str, bytes]:
    """What is there of the whole stage."""
    return {name: (address / name).read() for name in sorted(address.files())}


def essence(labels: Path) -> dict[str, bytes]:
    """What a stage leaves on disk, without what is not stored."""
    return {name: data for name, data in outputs(labels).items() if name == "stage.json" or name.endswith(".arrow")}


@pytest.mark.parametrize("deaths", [(1, 3), (4, 1)], ids=str)
def test_machines_that_are_killed_label_each_shard_once_to_the_bytes_on_disk(
    job: LabelJob, labels: Path, address: Remote, bucket: ObjectStore, tmp_path: Path, deaths: tuple[int, ...]
) -> None:
    for number, stores in enumerate(deaths):
        process = machine(job, tmp_path / f"machine{number}", address, bucket, dies_after=stores)
        process.join()
        assert process.exitcode == -9
        assert not json.loads((address / "stage.json").read())["complete"]
    last = machine(job, tmp_path / "last", address, bucket)
    last.join()
    assert last.exitcode == 0
    assert stored(address) == essence(labels)
    caches = [*(tmp_path / f"machine{number}" for number in range(len(deaths))), tmp_path / "last"]
    lost = int(deaths[0] == 1)  # killed when stage.json alone was stored, with the first label file in its folder
    assert Counter(name for cache in caches for name in labeled(cache)).total() == 5 + lost


def test_a_machine_that_is_killed_goes_on_with_what_it_has(
    job: LabelJob, labels: Path, address: Remote, bucket: ObjectStore, tmp_path: Path
) -> None:
    for stores in (1, 2, 0):
        machine(job, tmp_path / "one", address, bucket, dies_after=stores).join()
    assert stored(address) == essence(labels)
    assert len(labeled(tmp_path / "one")) == 5


def test_parts_on_machines_that_share_nothing_but_the_store(
    job: LabelJob, labels: Path, address: Remote, bucket: ObjectStore, tmp_path: Path
) -> None:
    parts = [machine(job, tmp_path / f"part{k}", address, bucket, Part(k, 2)) for k in (1, 2)]
    assert [process.exitcode for process in parts if process.join() is None] == [0, 0]
    machine(job, tmp_path / "whole", address, bucket).join()
    assert stored(address) == essence(labels)
    assert [len(labeled(tmp_path / name)) for name in ("part1", "part2", "whole")] == [3, 2, 0]


@pytest.mark.slow
def test_the_commands_store_labels_and_select_from_them(
    digits: Config, teacher: Path, labels: Path, selection: Path, address: Remote, bucket: ObjectStore, tmp_path: Path
) -> None:
    config = tmp_path / "birds.yaml"
    config.write_text(dump_yaml(digits))
    cache = [["--set", f"data.cache_dir={tmp_path / name}"] for name in "ab"]
    said = selftrain("label", config, "--teacher", teacher, "--out", str(address), *cache[0])
    assert f"{address}: labels of " in said
    assert stored(address) == essence(labels)
    selftrain("select", config, "--labels", str(address), "--out", tmp_path / "selection", *cache[1])
    name = "selection.arrow"
    assert (tmp_path / "selection" / name).read_bytes() == (selection / name).read_bytes()


def test_what_else_is_at_the_address_is_refused(
    job: LabelJob, address: Remote, bucket: ObjectStore, tmp_path: Path
) -> None:
    def refused(job: LabelJob, cache: str, address: Remote = address) -> str:
        process = machine(job, tmp_path / cache, address, bucket)
        process.join()
        assert process.exitcode == EXIT_USER_ERROR
        assert not labeled(tmp_path / cache)
        message: str = read_json(tmp_path / cache / "error.json")["message"]
        return message

    (tmp_path / "mine.jpg").write_text("")
    (address / "mine.jpg").write(tmp_path / "mine.jpg")
    assert f"{address} is not empty and not a stage (mine.jpg)" in refused(job, "mine")
    other = address.parent / "other"
    machine(job, tmp_path / "first", other, bucket, dies_after=1).join()
    settings = changed(job, label=changed(job.label, flip=True))
    assert "holds a label stage with other settings (flip: not set -> True" in refused(settings, "settings", other)
    gone = place("s3://nobody-has-this/labels")
    assert isinstance(gone, Remote)
    assert "s3://nobody-has-this/labels cannot be listed" in refused(job, "gone", gone)


def test_other_commands_write_to_no_address(digits: Config, tmp_path: Path) -> None:
    config = tmp_path / "birds.yaml"
    config.write_text(dump_yaml(digits))
    for verb, option in (("train", "--out"), ("run", "--run-dir")):
        with pytest.raises(UserError, match=r"^s3://bucket/x is an address, where this command writes nothing"):
            selftrain(verb, config, option, f"s3://{BUCKET}/x")


def test_a_record_that_names_another_folder_is_damaged(
    labels: Path, address: Remote, bucket: ObjectStore, tmp_path: Path
) -> None:
    """Whoever may write to the store must not write elsewhere on the machines that read it."""
    record, stage = tmp_path / "record.json", json.loads((labels / "stage.json").read_text())
    for kind, fingerprint in (("label", "../../.."), ("/tmp/label", "0123abcd")):
        record.write_text(json.dumps({**stage, "kind": kind, "fingerprint": fingerprint}))
        (address / "stage.json").write(record)
        with pytest.raises(UserError, match=r"stage\.json is damaged .* names no stage"):
            fetch_stage(tmp_path / "cache", address)
    assert not (tmp_path / "cache").exists()
