"""The config that `selftrain init` prints: sized to a packed data set and to this machine, with a comment per key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pipeline.arrays import F64Array, I64Array, U8Array
from pipeline.config import SPLITS, Data, Runtime, Split, changed
from pipeline.errors import UserError, escaped
from pipeline.shards.dataset import Dataset, open_split
from pipeline.shards.manifest import Manifest, read_manifest
from pipeline.shards.reader import Reader
from pipeline.stages.machine import resolve
from pipeline.starter.recipe import recipe
from pipeline.starter.speed import training_speed

_NUM_IMAGES = 500  # to take mean and standard deviation of
_COMMENT_COLUMN = 54
_OVERHEAD = 1.3  # time with views, labeling and evaluation, relative to the training passes


def starting_config(folder: Path) -> str:
    """A commented YAML config for `selftrain run`, sized to the packed `folder` and to this machine.

    Counts, classes and image size come from the manifest, mean and standard deviation from some labeled images. The
    speed is measured for about a second, to estimate the time in the first lines.

    Raises:
        UserError: the folder is not a packed one, or it lacks a split that a run needs.
    """
    manifest = read_manifest(folder)
    counts = _count(folder, manifest)
    machine = resolve(Runtime())
    plan = recipe(min(manifest.image_size), str(machine.device))
    precision = machine.precision if plan.precision == "auto" else plan.precision
    processes = max(torch.cuda.device_count(), 1) if machine.device == "cuda" else 1
    num_rounds = 3 if machine.device == "cuda" else 2
    batch_size = _round_up(min(plan.batch_size, counts["labeled"]), processes)
    student_batch = batch_size * (1 + plan.ratio)
    teacher_steps = _clamp(60 * counts["labeled"] // batch_size, plan.teacher_steps)
    student_steps = _clamp(20 * counts["unlabeled"] // (batch_size * plan.ratio), plan.student_steps)
    labeled = open_split(Data(root=folder), "labeled")
    images = _some_images(labeled, plan.image_size)
    num_trained = teacher_steps * batch_size + (num_rounds + 1) * student_steps * student_batch  # + 1 for the control
    speed = processes * training_speed(
        plan.model,
        plan.model_args,
        images[: 32 if machine.device == "cpu" else student_batch],
        len(manifest.classes),
        changed(machine, precision=precision, threads=plan.threads or machine.threads),
    )
    balance, prior, why_balance = _balance(labeled, open_split(Data(root=folder), "val"))
    mean, std = _mean_and_std(images)
    height, width = manifest.image_size
    return _render(
        plan=plan,
        folder=folder,
        splits=", ".join(f"{count:,} {split}" for split, count in counts.items()),
        num_classes=len(manifest.classes),
        height=height,
        width=width,
        device=machine.device,
        precision=precision,
        threads=machine.threads,
        gpus=f", {processes} GPUs" if processes > 1 else "",
        duration=_duration(num_trained / speed * _OVERHEAD),
        speed=f"{speed:,.0f}",
        mean=mean,
        std=std,
        batch_size=batch_size,
        teacher_steps=teacher_steps,
        student_steps=student_steps,
        ema_decay=_ema_decay,
        threshold=0.0 if manifest.carves else threshold_for(len(manifest.classes)),
        balance=balance,
        prior=prior,
        why_balance=why_balance,
        num_rounds=num_rounds,
        processes=processes,
    )


def _render(**values: object) -> str:
    """Fill in the template, and align the comments of values in one column."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipeline.starter", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # A JSON string is a YAML string, too, also with what a terminal must not get. Jinja's own filter is for HTML.
    environment.filters["tojson"] = lambda value: escaped(json.dumps(value, ensure_ascii=False))
    text = environment.get_template("starter.yaml.j2").render(values)
    return "\n".join(map(_align, text.split("\n"))) + "\n"


def _align(line: str) -> str:
    value, mark, comment = line.rpartition("  # ")
    is_section = value.endswith(":") or not value.strip()
    return line if is_section or not mark else f"{value.ljust(_COMMENT_COLUMN)}{mark}{comment}"


def _count(folder: Path, manifest: Manifest) -> dict[Split, int]:
    counts: dict[Split, int] = {s: sum(e.num_used for e in manifest.of_split(s)) for s in SPLITS}
    missing = [split for split in SPLITS if not counts[split] and split != "test"]
    if missing:
        raise UserError(
            f"{folder} has no {' and no '.join(missing)} images, which a run needs; add them with "
            f"`selftrain pack IMAGES --out {folder} --split {missing[0]}`, or carve all splits from one labeled source "
            "with `--labels N` into a new folder"
        )
    return counts


def _some_images(labeled: Dataset, size: int) -> U8Array:
    rows = np.unique(np.linspace(0, len(labeled) - 1, _NUM_IMAGES).astype(np.int64))
    return Reader(labeled, size, Data(cache="never")).read(rows)


def _mean_and_std(images: U8Array) -> tuple[str, str]:
    pixels = images.reshape(-1, 3) / 255
    mean, std = pixels.mean(0), np.maximum(pixels.std(0), 0.01)  # because a channel may be constant
    return _numbers(mean), _numbers(std)


def _numbers(values: F64Array) -> str:
    return f"[{', '.join(f'{value:.3f}' for value in values)}]"


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


def _clamp(value: int, bounds: tuple[int, int]) -> int:
    return min(max(value, bounds[0]), bounds[1])


def _round_up(value: int, factor: int) -> int:
    return -(-value // factor) * factor


def _duration(seconds: float) -> str:
    if seconds < 90 * 60:
        return "a minute" if seconds < 90 else f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours"
