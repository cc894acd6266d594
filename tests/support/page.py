"""What docs/extend.md says: its files, its commands, and runs of them with few steps."""

from __future__ import annotations

import json
import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config import Config, changed, load_config
from pipeline.stages.kinds import read_job
from support.command import ROOT
from support.command import selftrain_here as selftrain
from support.plugins import importing
from support.processes import has_come_to, kill, outputs, run, start
from support.waiting import wait_for

PAGE = (ROOT / "docs/extend.md").read_text()
FILES = {
    match[2]: match[1] for match in re.finditer(r"```\w+\n((?:# |<!-- )([\w.]+\.(?:py|yaml|md))\b.*?)```", PAGE, re.S)
}
COMMANDS = [shlex.split(line) for line in dict.fromkeys(re.findall(r"^selftrain --plugin .*$", PAGE, re.M))]
PLUGINS = ("my_net.py", "my_noise.py", "mean_teacher.py", "my_count.py")
FEW = ("student.steps=20", "student.evaluations=2", "runtime.precision=fp32", "runtime.log_every=5")
OFTEN = "runtime.checkpoint_every=5"


def run_page(plugin: str, *settings: str) -> str:
    """Every command of the page about a plugin, with few steps in its run; returns what they printed."""
    first, *others = (words[1:] for words in COMMANDS if words[2] == plugin)
    text = selftrain(*first, "--no-prefect", *(f"--set={one}" for one in (*FEW, *settings)))
    return text + "".join(selftrain(*words) for words in others)


def stage_in(run_dir: str, kind: str) -> Path:
    (found,) = Path(run_dir).glob(f"{kind}-*")
    return found.absolute()


def assert_same_after_kills(whole: Path) -> None:
    """That the training of a finished stage, killed twice, leaves the same bytes."""
    cut = changed(read_job(whole / "job.json"), out=Path("cut").absolute())
    for step in (5, 10):
        child = start(cut, importing())
        wait_for(partial(lambda child, step: has_come_to(cut, step) or not child.is_alive(), child, step))
        kill(child, 0.0)
    run(cut, importing())
    assert outputs(cut.out) == outputs(whole)


def noisy_config(noise: str = "") -> Config:
    """The page's config of the technique, with another section of the method."""
    section = f"noisy_uda: {noise}" if noise else ""
    text = re.sub(r"^noisy_uda: .*$", section, FILES["my_noise.yaml"], flags=re.M)
    Path("other.yaml").write_text(text)
    config = load_config(Path("other.yaml"), [*FEW, "student.steps=3"])
    return changed(config, runtime=changed(config.runtime, device="cpu"))


def record(job: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job / "stage.json").read_text())
    return found
