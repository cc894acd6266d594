"""The config that `selftrain init` prints: sized to a packed data set and to this machine, with a comment per key."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pipeline.arrays import I64Array
from pipeline.config import SPLITS, Config, Data, Runtime, Split, parse
from pipeline.config.methods import METHOD_CONFIGS
from pipeline.errors import UserError, did_you_mean
from pipeline.remote import Place
from pipeline.shards.dataset import Dataset, open_split
from pipeline.shards.manifest import Manifest, read_manifest
from pipeline.shards.split import folder_of
from pipeline.stages.machine import resolve
from pipeline.starter.given import Given, Lengths
from pipeline.starter.photographs import MINUTES, fine_tuning
from pipeline.starter.recipe import SMALL
from pipeline.starter.render import render
from pipeline.starter.scratch import from_scratch

log = logging.getLogger("selftrain.init")

NO_ENCODER = "none"
"""What `--encoder` says to train photographs from random weights."""
_LONG_S = 3600.0


def starting_config(
    folder: Path, *, minutes: float | None = None, encoder: str | None = None, method: str = "noisy_student"
) -> str:
    """A commented YAML config for `selftrain run`, sized to the packed `folder` and to this machine.

    Counts, classes and image size come from the manifest. Photographs get a pretrained encoder (`encoder` names another
    one, or none), small images a network of their own. Speeds are measured for some seconds, to take as many steps as
    `minutes` allow; without them, photographs get half an hour, and small images what suits their number. A recipe of
    more than an hour says so first. No network is needed.

    Raises:
        UserError: the folder is not a packed one, or it lacks a split that a run needs; there is no such encoder or
            method; or minutes are not positive.
    """
    if minutes is not None and not 0 < minutes < math.inf:
        raise UserError(f"--minutes must be a positive number, not {minutes:g}")
    if method not in METHOD_CONFIGS:
        raise UserError(f"--method {method} is unknown; {did_you_mean(method, METHOD_CONFIGS)}")
    data = parse(Data, {"root": folder}, str(folder))
    assert data.root is not None
    manifest = read_manifest(folder_of(data.root, data))
    counts = _count(data.root, manifest)
    machine = resolve(Runtime())
    processes = max(torch.cuda.device_count(), 1) if machine.device == "cuda" else 1
    labeled = open_split(data, "labeled")
    given = Given(manifest, counts, labeled, machine, processes, method, minutes)
    balance, prior, why_balance = _balance(labeled, open_split(data, "val"))
    common = {
        "folder": data.root,
        "splits": ", ".join(f"{count:,} {split}" for split, count in counts.items()),
        "num_classes": given.num_classes,
        "size": "{1}x{0}".format(*manifest.image_size),
        "machine": machine,
        "processes": processes,
        "usual_method": Config.model_fields["method"].default,
        "has_rounds": given.has_rounds,
        "ema_decay": _ema_decay,
        "smoothing": METHOD_CONFIGS[method].defaults.get("student", {}).get("label_smoothing", 0.1),
        "balance": balance,
        "prior": prior,
        "why_balance": why_balance,
        "threshold": 0.0 if manifest.carves else threshold_for(given.num_classes),
    }
    if encoder == NO_ENCODER or (encoder is None and min(manifest.image_size) <= SMALL):
        small = from_scratch(given)
        return render(
            method,
            **common,
            **_times(small.lengths, minutes),
            plan=small.recipe,
            mean=small.mean,
            std=small.std,
            encoder=None,
            probe=False,
            evaluation_batch=512,
        )
    large = fine_tuning(given, encoder)
    return render(
        method,
        **common,
        **_times(large.lengths, minutes or MINUTES),
        plan=large.recipe,
        encoder=large.encoder,
        probe=given.has_rounds,
        evaluation_batch=64,
        parameters=f"{large.num_parameters / 1e6:.1f} million",
        megabytes=f"{4 * large.num_parameters / 1e6:.0f} MB",
    )


def _times(lengths: Lengths, minutes: float | None) -> dict[str, object]:
    """What the config says of its time; of one that is long, a warning, too."""
    warning, duration = "", _duration(lengths.seconds)
    if minutes is not None and lengths.seconds > 90 * minutes:
        warning = f"this takes about {duration} here, not {minutes:g} minutes: fewer steps would be of no use"
    elif lengths.seconds > _LONG_S:
        warning = f"this takes about {duration} here; `--minutes {MINUTES}` sizes it to half an hour"
    if warning:
        log.warning("%s", warning)
    return {
        "warning": warning,
        "lengths": lengths,
        "duration": duration,
        "speed": f"{lengths.speed:,.0f}",
    }


def _count(folder: Place, manifest: Manifest) -> dict[Split, int]:
    counts: dict[Split, int] = {s: sum(e.num_used for e in manifest.of_split(s)) for s in SPLITS}
    missing = [split for split in SPLITS if not counts[split] and split != "test"]
    if missing:
        raise UserError(
            f"{folder} has no {' and no '.join(missing)} images, which a run needs; add them with "
            f"`selftrain pack IMAGES --out {folder} --split {missing[0]}`, or carve all splits from one labeled source "
            "with `--labels N` into a new folder"
        )
    return counts


def threshold_for(num_classes: int) -> float:
    """The least confidence of pseudo-labels: Noisy Student's 0.3, which is for 1,000 classes, as far above chance."""
    chance = 1 / num_classes
    return round(chance + 0.3 * (1 - chance), 2)


def _balance(labeled: Dataset, val: Dataset) -> tuple[Literal["uniform", "prior"], str, str]:
    """The balance of classes, the shares of them to write, if any, and why.

    A carve takes as many labeled images of each class, so that val alone shows how uneven the source is.
    """
    counts, of_val = (np.bincount(split.labels, minlength=len(split.classes)) for split in (labeled, val))
    if _uneven(of_val) and not _uneven(counts):
        shares = (of_val + 1) / (of_val + 1).sum()  # a class that val lacks is rare, not absent
        return (
            "prior",
            f"[{', '.join(f'{share:.4g}' for share in shares)}]",
            "as in val, which is uneven; or uniform, off",
        )
    if _uneven(counts):
        return "prior", "", "as among labels, which are uneven; or uniform, off"
    return "uniform", "", "rare classes get copies; or prior (as labeled), off"


def _uneven(counts: I64Array) -> bool:
    return bool(counts.max() > 3 * max(counts.min(), 1))


def _ema_decay(steps: int) -> float:
    return 0.99 if steps <= 1000 else 0.997 if steps <= 5000 else 0.999


def _duration(seconds: float) -> str:
    if seconds < 90 * 60:
        return "a minute" if seconds < 90 else f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours"
