"""The choice of pseudo-labels: threshold, exact top N per class, balance by duplication (Noisy Student, section 2).

The paper's code cuts at confidences rounded to 0.01; here the top N is exact, and copies are capped. The result is a
function of the set of rows: it depends neither on their order nor on shards or processes.
Shape legend: N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.arrays import BoolArray, F32Array, F64Array, I32Array, I64Array, U64Array
from pipeline.config import Select
from pipeline.errors import UserError
from pipeline.randomness import key_of, uniforms
from pipeline.selection.alignment import exact_units, from_units
from pipeline.selection.selection import Selection
from pipeline.selection.summary import Tally

_CHUNK = 1 << 12  # rows at a time, so that temporaries stay under 1 MB for any N


def select(
    label: I32Array,
    confidence: F32Array,
    log_odds: F32Array,
    ids: U64Array,
    *,
    config: Select,
    classes: Sequence[str],
    labeled_prior: F64Array,
    seed: int,
) -> Selection:
    """Select among N rows, given as arrays [N] with unique `ids`; `labeled_prior` is [C].

    A row is kept if its confidence is at least the threshold and it is among the first of its predicted class, up to
    the class's target. The threshold `adaptive` is the mean confidence of all rows of the predicted class, set once
    from these labels. Of the rows of a class that pass, `share` are left, rounded up. The order within a class is by
    log-odds (descending), then by id (ascending). A class below its target is duplicated: with
    r = min(target / kept, max_copies), a row has floor(r) copies, and one more if a uniform number keyed by (seed, id)
    is below the fraction of r.

    The targets depend on `balance`. With `off` they are `per_class` (0: no limit), and nothing is duplicated. With
    `uniform` they are `per_class` for every class (0: the size of the largest class). With `prior` they follow the
    prior and sum to `per_class` * C (0: the class with the largest ratio of rows to prior is kept whole, once).

    The memory that this takes beside its inputs is at most 8 bytes per row, and 1 MB.

    Raises:
        UserError: a log-odds is NaN, a label is not a class, two ids are equal, or the prior does not fit the classes.
    """
    num_classes = len(classes)
    predicted, mean_confidence = _predicted(label, confidence, log_odds, num_classes)
    fixed = 0.0 if config.threshold == "adaptive" else config.threshold
    adaptive = mean_confidence if config.threshold == "adaptive" else None
    threshold = np.full(num_classes, fixed, np.float32) if adaptive is None else adaptive
    passing = _passing(label, confidence, threshold)
    left = np.ceil(np.round(config.share * passing, 6)).astype(np.int64)  # 0.07 * 100 is a little more than 7
    target = _targets(left, config, labeled_prior)
    keep = np.minimum(left, target)
    keeps = _keep_rule(label, confidence, log_odds, ids, threshold, passing, keep)
    ratio = np.minimum(target / np.maximum(keep, 1), config.max_copies)

    rows = np.empty(keep.sum(), np.uint32)
    copies = np.empty(len(rows), np.min_scalar_type(config.max_copies))
    tally = Tally(num_classes)
    key = key_of(seed, "select")
    end = 0
    for part in _chunks(len(label)):
        kept = np.flatnonzero(keeps(part))
        kept_label, kept_confidence = label[part][kept], confidence[part][kept]
        begin, end = end, end + len(kept)
        if end > len(rows):
            raise UserError("two unlabeled images share an id; are the same shards given twice in data.unlabeled?")
        rows[begin:end] = kept + part.start
        copies[begin:end] = copies_of(ratio, kept_label, ids[part][kept], key)
        tally.add(confidence[part], kept_label, kept_confidence, copies[begin:end])
    summary = tally.summary(classes, predicted, labeled_prior)
    if config.threshold != 0 or config.share < 1:
        summary["num_left"] = int(left.sum())
    if adaptive is not None:
        for line, value in zip(summary["classes"], adaptive.tolist(), strict=True):
            line["cut"] = value
    return Selection(rows, copies, summary)


def copies_of(ratio: F64Array, label: I32Array, ids: U64Array, key: int) -> F64Array:
    """The copies of rows, given as labels [n] and ids [n], if those of a class are `ratio` [C] on average.

    A row has floor(ratio) copies, and one more if a uniform number keyed by its id is below the fraction.
    """
    whole = np.floor(ratio)
    extra = uniforms(key, ids)[:, 0] < (ratio - whole)[label]
    return np.asarray(whole[label] + extra)


def _chunks(length: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, length)) for start in range(0, length, _CHUNK))


def _predicted(
    label: I32Array, confidence: F32Array, log_odds: F32Array, num_classes: int
) -> tuple[I64Array, F32Array]:
    """The number of rows per predicted class, and their mean confidence, [C]; 0 of a class without rows.

    The mean is at most the largest confidence, because its sum is exact and rounded down.
    """
    predicted, units = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.uint64)
    for part in _chunks(len(label)):
        if np.isnan(log_odds[part]).any() or np.isnan(confidence[part]).any():
            row = part.start + int(np.argmax(np.isnan(log_odds[part]) | np.isnan(confidence[part])))
            raise UserError(f"the pseudo-label of row {row} has NaN log-odds; delete the label stage and label again")
        if not 0 <= label[part].min() <= label[part].max() < num_classes:
            raise UserError(
                f"pseudo-labels must be in 0..{num_classes - 1}, found {label[part].min()}..{label[part].max()}"
            )
        predicted += np.bincount(label[part], minlength=num_classes)
        np.add.at(units, label[part], exact_units(confidence[part]))
    return predicted, (from_units(units) / np.maximum(predicted, 1)).astype(np.float32)


def _passing(label: I32Array, confidence: F32Array, threshold: F32Array) -> I64Array:
    """The number of rows per predicted class that reach its threshold, [C]."""
    passing = np.zeros(len(threshold), np.int64)
    for part in _chunks(len(label)):
        inside = label[part][confidence[part] >= threshold[label[part]]]
        passing += np.bincount(inside, minlength=len(threshold))
    return passing


def _targets(passing: I64Array, config: Select, labeled_prior: F64Array) -> I64Array:
    """The number of rows wanted of each class, with their copies, [C]."""
    if config.balance == "off":
        return np.minimum(passing, config.per_class or passing)
    if config.balance == "uniform":
        return np.full_like(passing, config.per_class or passing.max())
    prior = prior_of(config, labeled_prior)
    wanted = prior > 0
    total = config.per_class * len(prior) or (passing[wanted] / prior[wanted]).max()
    return np.where(wanted, np.maximum(np.rint(total * prior), 1), 0).astype(np.int64)


def prior_of(config: Select, labeled_prior: F64Array) -> F64Array:
    """The shares of the classes that `balance: prior` and `align` aim at, [C], which sum to 1.

    Raises:
        UserError: they are not one share per class, or no shares.
    """
    prior = np.asarray(config.prior or labeled_prior, np.float64)
    num = len(labeled_prior)
    if len(prior) != num or prior.min() < 0 or not np.isfinite(prior).all() or prior.sum() == 0:
        raise UserError(
            f"select.prior needs {num} shares, one per class, none negative, not {[float(p) for p in prior]}"
        )
    return np.asarray(prior / prior.sum())


def _keep_rule(
    label: I32Array,
    confidence: F32Array,
    log_odds: F32Array,
    ids: U64Array,
    threshold: F32Array,
    passing: I64Array,
    keep: I64Array,
) -> Callable[[slice], BoolArray]:
    """The rule that tells which rows of a slice are kept, as a mask.

    Rows are ordered by log-odds (descending), then by id (ascending). The exact top N of a class are the rows up to its
    last kept one, so one pair (log-odds, id) per class describes them, and no sorted order of all rows is held.
    """

    def passes(part: slice) -> BoolArray:
        return confidence[part] >= threshold[label[part]]

    # A last log-odds of NaN keeps nothing; -inf with the largest id keeps all.
    last_odds = np.where(keep > 0, -np.inf, np.nan).astype(np.float32)
    last_id = np.full(len(keep), np.iinfo(np.uint64).max)
    cut = (keep > 0) & (keep < passing)
    ties = np.zeros_like(keep)  # rows whose log-odds equal those of the last kept row
    room = np.zeros_like(keep)  # how many of them are kept

    def find_last_odds(c: int, odds: npt.NDArray[Any]) -> None:
        nth = len(odds) - keep[c]
        odds.partition(nth)
        last_odds[c] = odds[nth]
        ties[c] = np.count_nonzero(odds == odds[nth])
        room[c] = keep[c] - np.count_nonzero(odds > odds[nth])

    def find_last_id(c: int, tied_ids: npt.NDArray[Any]) -> None:
        tied_ids.partition(room[c] - 1)
        last_id[c] = tied_ids[room[c] - 1]

    def is_tied(part: slice) -> BoolArray:
        tied: BoolArray = passes(part) & (room < ties)[label[part]] & (log_odds[part] == last_odds[label[part]])
        return tied

    sizes = np.where(cut, passing, 0)
    _visit_classes(log_odds, label, lambda part: passes(part) & cut[label[part]], sizes, find_last_odds)
    _visit_classes(ids, label, is_tied, np.where(room < ties, ties, 0), find_last_id)

    def keeps(part: slice) -> BoolArray:
        odds, last = log_odds[part], last_odds[label[part]]
        first: BoolArray = (odds > last) | ((odds == last) & (ids[part] <= last_id[label[part]]))
        return passes(part) & first

    return keeps


def _visit_classes(
    values: npt.NDArray[Any],
    label: I32Array,
    members: Callable[[slice], BoolArray],
    sizes: I64Array,
    visit: Callable[[int, npt.NDArray[Any]], None],
) -> None:
    """Call visit(class, values of its members) per class; `sizes` [C] counts the members. Values are copied once."""
    starts = np.cumsum(sizes) - sizes
    grouped = np.empty(sizes.sum(), values.dtype)
    next_free = starts.copy()
    for part in _chunks(len(label)) if len(grouped) else ():
        inside = np.flatnonzero(members(part))
        inside = inside[np.argsort(label[part][inside], kind="stable")]
        classes = label[part][inside]
        counts = np.bincount(classes, minlength=len(sizes))
        rank_in_class = np.arange(len(inside)) - (np.cumsum(counts) - counts)[classes]
        grouped[next_free[classes] + rank_in_class] = values[part][inside]
        next_free += counts
    for c in np.flatnonzero(sizes):
        visit(int(c), grouped[starts[c] : starts[c] + sizes[c]])
