"""The champion of a registry as the teacher of a run, and its succession at the end of the run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pipeline.champions.history import check_folder
from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.methods import METHODS
from pipeline.models.champion import champion_of, weights_of

Promote = Literal["never", "if better", "ask"]
_TAG = "teacher:v"


def champion_here(registry: Path | None, promotes: Promote, tags: Iterable[str]) -> Path | None:
    """The weights of the champion that a run begins with; None if there is none yet.

    A run that is started again has the champion of its first start, by its tag: it may have promoted its own student
    since, with which it would begin anew.

    Raises:
        UserError: there is to be a promotion, but no registry is named; or the folder is no registry, or is damaged.
    """
    if registry is None:
        if promotes != "never":
            raise UserError(
                f"promote is {promotes!r}, but champion names no registry; name its folder, such as champions/birds, "
                "which is made if it is new"
            )
        return None
    check_folder(registry)
    version = next((tag.removeprefix(_TAG) for tag in tags if tag.startswith(_TAG)), None)
    return champion_of(registry) if version is None else weights_of(registry, int(version))


def tag_of(champion: Path) -> str:
    """The tag of a run whose teacher is this version."""
    return f"{_TAG}{champion.stem.removeprefix('v')}"


def config_of(path: Path, overrides: Sequence[str], champion: Path | None) -> Config:
    """Load the config of a run, whose round-0 teacher is the champion, if there is one.

    The champion is used as it is, so what the config says of a teacher is moot, but for what a fine-tune of it would
    take. There are no rounds on features and no committee, which need a probe as the teacher. A method without rounds
    has no such teacher, and trains as its config says.

    Raises:
        UserError: the config is bad.
    """
    config = load_config(path, overrides)
    if champion is None or not METHODS[config.method].reads("rounds"):
        return config
    before = config.teacher
    teacher = {
        "start": {"model": str(champion.absolute()), "mode": "use"},
        "weak": {"flip": before.weak.flip},
        "balance_labeled": before.balance_labeled,
        "logit_adjustment": before.logit_adjustment,
    }
    changes = [f"teacher={json.dumps(teacher)}", "rounds.on_features=0", "committee=[]"]
    return load_config(path, [*overrides, *changes])


def asked(link: str | None, run_dir: Path, registry: Path) -> str:
    """How somebody who is asked makes the run's model champion, as Markdown."""
    form = f"open [this form, which is filled in]({link})" if link else "deploy `promote`, whose form a link would open"
    command = f"`selftrain promote {shlex.quote(str(run_dir))} --to {shlex.quote(str(registry))}`"
    return f"To make it champion, {form}, or type {command}"
