"""intake: what is new in a watched folder is packed once, and what is bad or unfinished harms nothing."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from support.images import class_files, png, snapshot, write_files
from support.mortal import mortal, run_mortal

from pipeline.config import Data
from pipeline.errors import UserError
from pipeline.packing import intake as intake_module
from pipeline.packing.intake import intake
from pipeline.packing.pack import pack
from pipeline.packing.verify import verify
from pipeline.packing.watched import read_known
from pipeline.shards.dataset import open_split
from pipeline.shards.manifest import MANIFEST, read_manifest
from pipeline.stages.lock import FolderInUse, read_lock, run_lock

take = functools.partial(intake, settle_s=0)


@pytest.fixture
def data(source: Path, tmp_path: Path) -> Path:
    """A packed folder of 60 labeled images."""
    pack(source, tmp_path / "data", split="labeled")
    return tmp_path / "data"


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    """A watched folder with 6 new images, two of them in a subfolder."""
    files = {f"{number}.png": png(9000 + number) for number in range(4)}
    return write_files(tmp_path / "incoming", {**files, "day2/a.png": png(9100), "day2/b.png": png(9101)})


def unlabeled(data: Path) -> list[str]:
    return sorted(key for shard in open_split(Data(root=data), "unlabeled").shards for key in shard.index.key)


def test_new_images_become_an_unlabeled_shard_and_the_rest_stays(data: Path, incoming: Path) -> None:
    before = snapshot(data)
    assert str(take(incoming, data)) == f"{data}: 6 new images in 1 shards"
    assert unlabeled(data) == ["0", "1", "2", "3", "day2/a", "day2/b"]
    assert {name: snapshot(data)[name] for name in before if name != MANIFEST} == {
        name: content for name, content in before.items() if name != MANIFEST
    }
    assert verify(data).problems == ()


def test_the_same_folder_again_is_a_no_op_that_reads_no_file(
    data: Path, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(incoming, data)
    before = snapshot(data)
    monkeypatch.setattr(intake_module, "open_folder", None)  # whoever calls it fails
    assert str(take(incoming, data)) == f"{data}: nothing new"
    assert snapshot(data) == before


def test_equal_images_under_other_names_are_a_no_op_by_their_content(data: Path, incoming: Path) -> None:
    take(incoming, data)
    manifest = (data / MANIFEST).read_bytes()
    write_files(
        incoming, {"again.png": png(9000), "labeled.png": class_files(1)["cat/0000.png"], "new/2.png": png(9101)}
    )
    done = take(incoming, data)
    assert (done.num_new, done.num_present) == (0, 3)
    assert (data / MANIFEST).read_bytes() == manifest
    assert read_known(data, incoming)["labeled.png"].became.startswith("equals labeled/labeled-000000/cat/0000")


def test_only_what_came_since_is_packed_into_a_shard_of_its_own(data: Path, incoming: Path) -> None:
    take(incoming, data)
    write_files(incoming, {"4.png": png(9200), "4-twin.png": png(9200)})
    done = take(incoming, data)
    assert (done.num_new, done.num_present, done.shards) == (1, 1, ["unlabeled-000001"])
    assert [entry.num_samples for entry in read_manifest(data).of_split("unlabeled")] == [6, 1]


def test_bad_files_go_to_a_list_and_stay_where_they_are_until_they_change(data: Path, incoming: Path) -> None:
    write_files(incoming, {"torn.png": png(1)[:60], "notes.txt": b"hello", "0.jpg": png(9300)})
    done = take(incoming, data)
    assert done.num_new == 6
    assert sorted(done.bad) == ["0.png", "torn.png"]
    quarantine = (data / "quarantine.csv").read_text()
    assert "torn.png" in quarantine
    assert "it has the name of 0.jpg but for the extension; rename it" in quarantine
    assert take(incoming, data).bad == {}
    assert (incoming / "torn.png").read_bytes() == png(1)[:60]
    (incoming / "torn.png").write_bytes(png(9400))
    (incoming / "0.png").rename(incoming / "zero.png")
    assert take(incoming, data).num_new == 2
    assert not (data / "quarantine.csv").exists()
    assert verify(data).problems == ()


def test_a_folder_of_bad_files_alone_is_no_error(data: Path, tmp_path: Path) -> None:
    write_files(tmp_path / "bad", {"torn.png": b"no image", "notes.txt": b""})
    assert list(take(tmp_path / "bad", data).bad) == ["torn.png"]
    (tmp_path / "empty").mkdir()
    assert str(take(tmp_path / "empty", data)).endswith("nothing new")


def test_files_that_changed_a_moment_ago_wait(data: Path, incoming: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = max(path.stat().st_ctime for path in incoming.rglob("*.png"))
    late = incoming / "3.png"
    while late.stat().st_ctime <= last:
        os.utime(late, (0, 0))  # as a copy that keeps the time of the original
    now, settle_s = late.stat().st_ctime, (late.stat().st_ctime - last) / 2
    monkeypatch.setattr("time.time", lambda: now)
    done = intake(incoming, data, settle_s=settle_s)
    assert (done.num_new, done.num_growing) == (5, 1)
    monkeypatch.setattr("time.time", lambda: now + 2 * settle_s)
    assert intake(incoming, data, settle_s=settle_s).num_new == 1


def test_few_images_wait_for_more(data: Path, incoming: Path) -> None:
    done = take(incoming, data, at_least=7)
    assert (done.num_new, done.num_waiting) == (0, 6)
    assert not (data / "intake.csv").exists()
    assert take(incoming, data, at_least=6).num_new == 6


def test_a_file_that_changes_while_it_is_packed_stops_the_intake_and_the_next_one_goes_on(
    data: Path, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(data)

    def meddling(*arguments: object, **options: object) -> object:
        checked = check(*arguments, **options)  # type: ignore[arg-type]
        (incoming / "2.png").write_bytes(png(9999))
        return checked

    check = intake_module.check_images
    with monkeypatch.context() as patched:
        patched.setattr(intake_module, "check_images", meddling)
        with pytest.raises(UserError, match=r"2\.png changed while it was packed"):
            take(incoming, data)
    assert snapshot(data) == {**before, "untold.json": snapshot(data)["untold.json"]}
    assert take(incoming, data).num_new == 6
    assert verify(data).problems == ()


def test_large_folders_are_packed_in_batches_that_each_stand(data: Path, incoming: Path) -> None:
    done = take(incoming, data, shard_size=4)
    assert [entry.num_samples for entry in read_manifest(data).of_split("unlabeled")] == [4, 2]
    assert len(done.shards) == 2
    assert np.unique(open_split(Data(root=data), "unlabeled").contents).size == 6


def test_while_a_run_reads_new_images_wait(data: Path, incoming: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "run_lock", functools.partial(run_lock, wait_s=0))
    with read_lock(data, wait_s=0):
        with pytest.raises(FolderInUse, match="data is read by a run"):
            take(incoming, data)
        assert not (data / "intake.csv").exists()
    take(incoming, data)
    with read_lock(data, wait_s=0):
        assert str(take(incoming, data)).endswith("nothing new")


def test_a_folder_that_is_none_and_data_that_are_not_packed_are_errors(
    data: Path, incoming: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is no folder; name the folder that images arrive in"):
        take(tmp_path / "typo", data)
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        take(incoming, tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def test_new_images_are_told_once_and_again_if_telling_failed(data: Path, incoming: Path) -> None:
    told: list[int] = []

    def fail(number: int) -> None:
        raise ConnectionError("no server")

    take(incoming, data, announce=told.append)
    take(incoming, data, announce=told.append)
    assert told == [6]
    write_files(incoming, {"4.png": png(9200)})
    with pytest.raises(ConnectionError):
        take(incoming, data, announce=fail)
    write_files(incoming, {"5.png": png(9201), "again.png": png(9200)})
    take(incoming, data)  # the verb, which tells nobody
    take(incoming, data, announce=told.append)
    assert told == [6, 2]
    write_files(incoming, {"6.png": png(9200)})
    take(incoming, data, announce=told.append)
    assert told == [6, 2]
    assert not (data / "untold.json").exists()


INTAKE = mortal("from pipeline.packing.intake import intake", "intake(source, out, settle_s=0, shard_size=4)")


@pytest.mark.process
def test_killed_at_any_file_operation_the_folder_is_valid_and_a_second_call_finishes(
    source: Path, incoming: Path, tmp_path: Path
) -> None:
    write_files(incoming, {"torn.png": b"no image"})

    def run(out: Path, kill_after: int) -> subprocess.CompletedProcess[str]:
        pack(source, out, split="labeled")
        return run_mortal(INTAKE, incoming, out, kill_after)

    whole = run(tmp_path / "whole", -1)
    assert whole.returncode == 0, whole.stderr
    expected = snapshot(tmp_path / "whole")
    for number, moment in enumerate((0.3, 0.6, 0.9)):
        out = tmp_path / f"out{number}"
        killed = run(out, int(moment * int(whole.stdout)))
        assert killed.returncode == -9, killed.stderr
        assert not [problem for problem in verify(out).problems if "a pack was killed" not in problem]
        take(incoming, out, shard_size=4)
        assert verify(out).problems == ()
        assert {n: c for n, c in snapshot(out).items() if n.startswith("unlabeled")} == {
            n: c for n, c in expected.items() if n.startswith("unlabeled")
        }
