"""What is reported beside the final model and chooses nothing: an ensemble, and the mean of samples with dropout on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.evaluate.stage import ENSEMBLE, SAMPLED
from pipeline.methods.round import Round
from pipeline.models.format import read_info
from pipeline.runs.result import FINAL

log = logging.getLogger("selftrain.loop")


@dataclass(frozen=True)
class Beside:
    """The models whose mean is measured, and whether the final one is sampled."""

    members: Mapping[str, Path] = field(default_factory=dict)
    """Name in val.json and test.json -> folder, the final model first; empty without an ensemble."""
    samples: int = 0

    def __bool__(self) -> bool:
        return bool(self.members or self.samples)

    def job(self) -> dict[str, Any]:
        """What an evaluate job is told of it."""
        return {"ensemble": tuple(self.members), "sampled": FINAL if self.samples else None}

    def to_json(self, run: Path, val: Mapping[str, Any]) -> dict[str, Any]:
        """The entries in `final` of result.json, with figures on val and with paths relative to the run folder."""
        found: dict[str, Any] = {}
        if self.members:
            models = {name: str(path.relative_to(run)) for name, path in self.members.items()}
            found[ENSEMBLE] = {"models": models, "val": val[ENSEMBLE]}
        if self.samples:
            found[SAMPLED] = {"samples": self.samples, "val": val[SAMPLED]}
        return found


def beside(config: Config, rounds: Sequence[Round], final: Round) -> Beside:
    """What `evaluate.ensemble` and `evaluate.mc_dropout` ask for, as far as the run has it; warnings tell the rest."""
    asked, samples = config.evaluate.ensemble, config.evaluate.mc_dropout
    others = [r for r in reversed(rounds) if r is not final and r.kept and r.role != "teacher"]
    folders = [folder for r in (final, *others) for folder in (r.train, *r.judges)][:asked]
    if len(folders) < asked:
        log.warning(
            "evaluate.ensemble is %d, but the run has %d model%s to average; raise rounds.judges, or lower it",
            asked,
            len(folders),
            "" if len(folders) == 1 else "s",
        )
    names = [FINAL, *(f"member-{number}" for number in range(2, len(folders) + 1))]
    if samples and not _has_dropout(final.train):
        log.warning("evaluate.mc_dropout is %d, but the final model was trained without dropout", samples)
        samples = 0
    return Beside(dict(zip(names, folders, strict=True)) if len(folders) > 1 else {}, samples)


def _has_dropout(folder: Path) -> bool:
    info = read_info(folder)
    return any((info.dropout, info.block_dropout, info.dropout_at, info.model_args.get("drop_rate")))
