"""What lies in the output folder of a pack is left alone, whatever goes wrong."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.images import as_nobody, class_files, snapshot, write_files, write_raw_tar

from pipeline.errors import UserError
from pipeline.packing.pack import pack
from pipeline.packing.verify import verify
from pipeline.stages.lock import run_lock


def test_a_file_of_the_user_is_never_overwritten(source: Path, tmp_path: Path) -> None:
    write_raw_tar(tmp_path / "out" / "labeled-000000.tar", {"mine": b"precious"})
    before = snapshot(tmp_path / "out")
    with pytest.raises(UserError, match="the manifest does not list it"):
        pack(source, tmp_path / "out", split="labeled")
    assert snapshot(tmp_path / "out") == before


def test_a_read_only_folder_is_a_clear_error(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o555)
    with as_nobody(tmp_path), pytest.raises(UserError, match="cannot write in"):
        pack(source, out, split="labeled")


def test_two_packs_into_one_folder_exclude_each_other(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.packing.pack.run_lock", functools.partial(run_lock, wait_s=0.1))
    with run_lock(tmp_path / "out"), pytest.raises(UserError, match="in use by process"):
        pack(source, tmp_path / "out", split="labeled")


@pytest.mark.process
def test_a_full_disk_is_a_clear_error_and_loses_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(write_files(tmp_path / "first", class_files(1, first=70_000)), out, split="labeled")
    before = snapshot(out)
    code = (
        "import resource, sys; from pathlib import Path; from pipeline.packing.pack import pack\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "pack(Path(sys.argv[1]), Path(sys.argv[2]), split='labeled')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "UserError: cannot write" in done.stderr
    assert "free space" in done.stderr
    assert snapshot(out) == before
    assert pack(source, out, split="labeled").num_samples == {"labeled": 60}
    assert not os.path.exists(out / ".packing")


def test_a_link_in_the_place_of_the_staging_folder_is_refused(source: Path, tmp_path: Path) -> None:
    """In a shared folder another user could have pack take over shards of theirs."""
    pack(source, tmp_path / "theirs", split="val")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".packing").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match=r"\.packing is not of a pack; rename it"):
        pack(source, tmp_path / "out", split="labeled")
    assert not list((tmp_path / "out").glob("*.tar"))
    assert verify(tmp_path / "theirs").problems == ()


@pytest.mark.parametrize("is_link", [False, True])
def test_a_folder_of_the_users_that_has_the_name_of_ours_is_left_alone(
    source: Path, tmp_path: Path, is_link: bool
) -> None:
    """Its files used to be deleted, or with a manifest.json among them to be moved."""
    out = tmp_path / "out"
    mine = tmp_path / "mine" if is_link else out / ".packing"
    mine.mkdir(parents=True)
    out.mkdir(exist_ok=True)
    if is_link:
        (out / ".packing").symlink_to(mine)
    for name in ("list.txt", "manifest.json"):
        (mine / name).write_text("socks")
    with pytest.raises(UserError, match=r"\.packing is not of a pack; rename it"):
        pack(source, out, split="val")
    assert sorted(path.name for path in mine.iterdir()) == ["list.txt", "manifest.json"]
    assert [path.name for path in out.iterdir() if path.name not in (".packing", "run.lock")] == []
