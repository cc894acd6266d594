"""pack under SIGKILL: what is there is always whole, and the same command typed again ends with the same bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.images import class_files, snapshot, write_files
from support.mortal import mortal, run_mortal
from support.waiting import wait_for

from pipeline.packing.carve import Carve
from pipeline.packing.pack import pack
from pipeline.packing.verify import verify
from pipeline.shards.manifest import MANIFEST

pytestmark = pytest.mark.process

PACK = mortal(
    "from pipeline.packing.carve import Carve; from pipeline.packing.pack import pack",
    "pack(source, out, carve=Carve(num_labeled=6, val_fraction=0.2), shard_size=20)",
)


def check_kills(source: Path, tmp_path: Path, moments: list[float]) -> None:
    """Kill at these shares of the file operations; then type the command again."""
    whole = run_mortal(PACK, source, tmp_path / "whole", -1)
    assert whole.returncode == 0, whole.stderr
    expected = snapshot(tmp_path / "whole")
    for number, moment in enumerate(moments):
        out = tmp_path / f"out{number}"
        killed = run_mortal(PACK, source, out, max(int(moment * int(whole.stdout)), 1))
        assert killed.returncode == -9, killed.stderr
        if (out / MANIFEST).exists():
            assert not [problem for problem in verify(out).problems if "a pack was killed" not in problem]
        pack(source, out, carve=Carve(num_labeled=6, val_fraction=0.2), shard_size=20)
        assert snapshot(out) == expected
        assert verify(out).problems == ()


def test_killed_at_any_file_operation_it_ends_with_the_same_bytes(source: Path, tmp_path: Path) -> None:
    check_kills(source, tmp_path, [0.02, 0.5, 0.8, 0.97])


@pytest.mark.slow
def test_killed_at_59_file_operations_it_ends_with_the_same_bytes(source: Path, tmp_path: Path) -> None:
    check_kills(source, tmp_path, [number / 60 for number in range(1, 60)])


def test_a_kill_while_appending_leaves_the_earlier_shards_alone(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(write_files(tmp_path / "first", class_files(2, first=500_000)), out, split="test")
    before = snapshot(out)
    process = subprocess.Popen([sys.executable, "-c", PACK, str(source), str(out), "-1"], stdout=subprocess.DEVNULL)
    wait_for(lambda: (out / ".packing").exists() or process.poll() is not None, poll_s=0.001)
    process.kill()
    process.wait()
    now = snapshot(out)
    if now["manifest.json"] == before["manifest.json"]:
        assert {name: now[name] for name in before} == before
    report = pack(source, out, carve=Carve(num_labeled=6, val_fraction=0.2), shard_size=20)
    assert report.recovered or report.num_present
    assert verify(out).problems == ()
