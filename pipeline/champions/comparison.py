"""A challenger against the champion: a paired test of both on the same images, those of val.

It is the interval of `pipeline/evaluate/judging.py`, by which a run judges its students. Of accuracy it is that of
McNemar's test: what counts are the images on which one model alone is right.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from pipeline.config import JudgeBy, load_config
from pipeline.errors import UserError
from pipeline.evaluate.judging import TITLES, compare, figure_of
from pipeline.evaluate.on_demand import how_to_see, labels_as
from pipeline.evaluate.predictor import predict_by
from pipeline.models.format import read_info
from pipeline.shards.dataset import open_split
from pipeline.stages.lock import find_run


@dataclass(frozen=True)
class Comparison:
    """What two models were found to do on the same images."""

    by: JudgeBy
    """The figure that they are compared by: `rounds.judge_by` of the challenger's run."""
    challenger: float
    champion: float
    difference: float
    low: float
    high: float
    level: float
    """The level of the two-sided test: the interval from low to high holds the true difference with 1 - level."""
    gained: int
    """The images on which the challenger alone is right."""
    lost: int
    """Those on which the champion alone is."""
    num_samples: int
    val: str
    """The fingerprint of val: its images, their labels and classes."""
    run: str
    """The challenger's run, whose config says where val lies."""

    @property
    def is_better(self) -> bool:
        """Whether the challenger is better by more than chance. Of challengers that are no better than the champion,
        half of `level` pass."""
        return self.low > 0

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        what = TITLES[self.by]
        return (
            f"{what[0].upper()}{what[1:]} on the {self.num_samples:,} val images of {self.run}: "
            f"{100 * self.challenger:.2f}% against {100 * self.champion:.2f}% of the champion, "
            f"{100 * self.difference:+.2f} points ({100 * self.low:+.2f} to {100 * self.high:+.2f}, paired, "
            f"level {self.level:g}; alone right on {self.gained} images against {self.lost})"
        )


def compare_on_val(challenger: Path, champion: Path, level: float | None = None) -> Comparison:
    """Let both models predict val of the challenger's run, in the way of that run; classes are matched by name.

    The level of the test is that run's `rounds.promotion_level`, unless it is given.

    Raises:
        UserError: the challenger is in no run, val is not there any more, or the models know different classes.
    """
    run = find_run(challenger)
    if run is None:
        raise UserError(
            f"{challenger} is in no run, whose val images would tell if it is better; name its run folder, or leave "
            "--if-better out"
        )
    classes, theirs = read_info(challenger).classes, read_info(champion).classes
    if strangers := sorted(set(classes) ^ set(theirs)):
        who = "the challenger" if strangers[0] in classes else "the champion"
        raise UserError(
            f"{challenger} and {champion} know different classes: only {who} knows {strangers[0]!r}, so no val is fair "
            "to both; leave --if-better out to promote it all the same"
        )
    config = load_config(run / "config.yaml")
    evaluate, runtime = how_to_see(challenger)
    val = open_split(config.data, "val")
    torch.set_num_threads(max(runtime.threads, 1))
    label = labels_as(val, classes, run / "config.yaml")
    ids = np.array([classes.index(name) for name in theirs], np.int32)
    ours = predict_by(challenger, val, config.data, evaluate, runtime).argmax(1)
    others = ids[predict_by(champion, val, config.data, evaluate, runtime).argmax(1)]
    by, level = config.rounds.judge_by, config.rounds.promotion_level if level is None else level
    difference, low, high = compare(label, ours, others, by, NormalDist().inv_cdf(1 - level / 2))
    right, right_before = ours == label, others == label
    return Comparison(
        by=by,
        challenger=figure_of(label, ours, by),
        champion=figure_of(label, others, by),
        difference=difference,
        low=low,
        high=high,
        level=level,
        gained=int((right & ~right_before).sum()),
        lost=int((right_before & ~right).sum()),
        num_samples=len(val),
        val=val.fingerprint,
        run=str(run),
    )
