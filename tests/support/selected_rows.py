"""Invented rows of pseudo-labels, on which the laws of a selection are tried."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from pipeline.config import Select
from pipeline.selection.rules import select
from pipeline.selection.selection import Selection


@dataclass(frozen=True)
class Rows:
    label: npt.NDArray[np.int32]
    confidence: npt.NDArray[np.float32]
    log_odds: npt.NDArray[np.float32]
    ids: npt.NDArray[np.uint64]
    num_classes: int

    def take(self, order: npt.NDArray[np.int64]) -> Rows:
        return Rows(self.label[order], self.confidence[order], self.log_odds[order], self.ids[order], self.num_classes)

    def select(self, config: Select, seed: int = 0, prior: npt.NDArray[np.float64] | None = None) -> Selection:
        uniform = np.full(self.num_classes, 1 / self.num_classes)
        return select(
            self.label,
            self.confidence,
            self.log_odds,
            self.ids,
            config=config,
            classes=[f"class {c}" for c in range(self.num_classes)],
            labeled_prior=uniform if prior is None else prior,
            seed=seed,
        )

    def chosen(self, config: Select, seed: int = 0) -> dict[int, int]:
        selection = self.select(config, seed)
        return dict(zip(self.ids[selection.rows].tolist(), selection.copies.tolist(), strict=True))


@st.composite
def some_rows(draw: st.DrawFn) -> Rows:
    """Up to 120 rows of 1 to 6 classes; a coarse grid of log-odds makes many ties, and confidences saturate."""
    num_rows, num_classes = draw(st.integers(0, 120)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    grid = draw(st.sampled_from([0.0, 0.5, 30.0]))
    log_odds = rng.normal(0, 20, num_rows)
    if grid:
        log_odds = np.round(log_odds / grid) * grid
    confidence = 1 / (1 + np.exp(-log_odds))
    label = rng.choice(num_classes, num_rows, p=rng.dirichlet(np.ones(num_classes)))
    ids = rng.integers(0, 2**64, num_rows, np.uint64)
    return Rows(label.astype(np.int32), confidence.astype(np.float32), log_odds.astype(np.float32), ids, num_classes)


def order_of(rows: Rows, c: int, threshold: float | str) -> npt.NDArray[np.int64]:
    """Rows of a class that pass, by (log-odds descending, id ascending): the definition, by sorting."""
    members = np.flatnonzero((rows.label == c) & (rows.confidence >= np.float32(threshold)))
    return members[np.lexsort((rows.ids[members], -rows.log_odds[members].astype(np.float64)))]
