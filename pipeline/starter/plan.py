"""The config that `selftrain init` prints: sized to a packed data set and to this machine, with a comment a key."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pipeline.arrays import F64Array, U8Array
from pipeline.config import SPLITS, Data, Runtime, Scalar, Split, changed
from pipeline.errors import UserError
from pipeline.shards.dataset import Dataset, open_split
from pipeline.shards.manifest import Manifest, read_manifest
from pipeline.shards.reader import Reader
from pipeline.stages.machine import resolve
from pipeline.starter.speed import training_speed

TINY, SMALL = 16, 64  # pixels: up to these, images keep their size and the networks are those for small images
_NUM_IMAGES = 500  # for mean and standard deviation
_COMMENT_COLUMN = 54
_OVERHEAD = 1.3  # views, labeling and evaluation, in units of the training passes


@dataclass(frozen=True)
class Recipe:
    """What depends on the images' size and on the device."""

    model: str
    image_size: int
    batch_size: int
    ratio: int
    teacher_steps: tuple[int, int]
    """Fewest and most."""
    student_steps: tuple[int, int]
    lr: float
    weak: str
    strong: str
    model_args: dict[str, Scalar] = field(default_factory=dict)
    weight_decay: str = "0.0005"
    precision: Literal["auto", "fp32"] = "auto"
    threads: int = 0


def recipe(side: int, device: str) -> Recipe:
    """The recipe for images whose shorter side has this many pixels."""
    if side <= TINY:
        size = max(side, 8)
        return Recipe(
            model="wide_resnet10_1",
            model_args={"bn_momentum": 0.1},
            image_size=size,
            batch_size=50,
            ratio=4,
            teacher_steps=(400, 4000),
            student_steps=(500, 6000),
            lr=0.2,
            weak=f"{{crop: pad, padding: {size // 8}, flip: true}}",
            strong=f"{{num_ops: 1, magnitude: 4, cutout: {size // 4}}}",
            precision="fp32",
            threads=1,  # handing so little work to a second thread costs more than it brings
        )
    if side <= SMALL:
        small = Recipe(
            model="resnet9",
            image_size=side,
            batch_size=100,
            ratio=4,
            teacher_steps=(1000, 3000),
            student_steps=(1500, 4000),
            lr=0.4,
            weak=f"{{crop: pad, padding: {side // 8}, flip: true}}",
            strong=f"{{num_ops: 2, magnitude: 5, cutout: {side // 2}}}",
            weight_decay="0.0007",
        )
        if device == "cpu":
            return small
        more = replace(small, teacher_steps=(4000, 20_000), student_steps=(10_000, 60_000))
        return replace(more, model="wide_resnet28_2", batch_size=128, ratio=5, lr=0.1, weight_decay="0.0005")
    large = Recipe(
        model="resnet18",
        image_size=min(side, 96),
        batch_size=32,
        ratio=3,
        teacher_steps=(600, 3000),
        student_steps=(1000, 4000),
        lr=0.1,
        weak="{crop: resized, min_area: 0.25, flip: true}",
        strong="{num_ops: 2, magnitude: 9, cutout: 0}",
        weight_decay="0.00005",
    )
    if device == "cpu":
        return large
    more = replace(large, teacher_steps=(5000, 20_000), student_steps=(10_000, 60_000))
    return replace(more, model="resnet50", image_size=min(side, 224), batch_size=128)


def starting_config(folder: Path) -> str:
    """A commented YAML config for `selftrain run`, sized to the packed `folder` and to this machine.

    Counts, classes and image size come from the manifest, mean and standard deviation from some labeled images. The
    speed is measured for a moment, for the estimated time in the first lines.

    Raises:
        UserError: the folder is no packed one, or lacks a split that a run needs.
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
    num_trained = teacher_steps * batch_size + (num_rounds + 1) * student_steps * student_batch  # 1 for the control
    speed = processes * training_speed(
        plan.model,
        plan.model_args,
        images[: 32 if machine.device == "cpu" else student_batch],
        len(manifest.classes),
        changed(machine, precision=precision, threads=plan.threads or machine.threads),
    )
    balance, why_balance = _balance(labeled)
    carved = bool(manifest.carves)
    height, width = manifest.image_size
    splits = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    gpus = f", {processes} GPUs" if processes > 1 else ""
    noise = [
        ("dropout", 0.2, "noise: on the last layer"),
        ("stochastic_depth", 0.1, "noise: drops residual blocks, the last this often"),
    ]
    mean, std = _mean_and_std(images)

    def training(steps: int, ratio: int) -> list[Line]:
        mix = ("unlabeled_ratio", ratio, "pseudo-labeled images a step, in units of batch_size")
        targets = ("targets", "soft", "the teacher's probabilities; `hard` takes its surest class")
        optimizer = f"{{name: sgd, lr: {plan.lr}, weight_decay: {plan.weight_decay}}}"
        return [
            ("model", plan.model, "any timm architecture, or one of ours"),
            ("model_args", json.dumps(plan.model_args), "more arguments for timm.create_model"),
            ("image_size", plan.image_size, "side of the square input in pixels"),
            ("mean", mean, "of RGB in [0, 1] over labeled images"),
            ("std", std, "of RGB"),
            ("steps", steps, "optimizer steps: the first thing to change"),
            ("batch_size", batch_size, "labeled images a step"),
            *([mix, targets] if ratio else []),
            ("optimizer", optimizer, "lr is for 256 images, scaled with the batch"),
            ("warmup_steps", steps // 20, "then the learning rate falls to 0 as a cosine"),
            ("ema_decay", _ema_decay(steps), "of the averaged weights, which label and count"),
            ("label_smoothing", 0.1, "on hard targets only"),
            ("weak", plan.weak, "flip: false for digits, text and the like"),
            ("strong", plan.strong, "noise: RandAugment's N and M; cutout in pixels"),
            *(noise if ratio else []),
            ("evaluations", 10, "on val, evenly spread over the steps"),
        ]

    return "\n".join(
        [
            f"# A starting point for {folder}, written by `selftrain init`.",
            "#",
            f"#   data      {splits}; {len(manifest.classes)} classes; {width}x{height} pixels",
            f"#   machine   {machine.device} in {precision}, {machine.threads} threads{gpus}",
            f"#   time      about {_duration(num_trained / speed * _OVERHEAD)}, for the {speed:,.0f} training images/s "
            "measured just now",
            "",
            _line("seed", 0, "of every random number", indent=""),
            *_section("data", "the images", [("root", _quoted(folder), "as seen from where you type `selftrain run`")]),
            *_section("teacher", "round 0, on labeled images only", training(teacher_steps, 0)),
            *_section(
                "label",
                "the teacher's pass over the unlabeled images",
                [
                    ("batch_size", 512, "images a forward pass"),
                    ("flip", "false", "average every image with its mirror: twice the time"),
                ],
            ),
            *_section(
                "select",
                "the choice of pseudo-labels",
                [
                    ("threshold", 0.0 if carved else 0.3, "least confidence; 0.3 or more for images of anything"),
                    ("balance", balance, why_balance),
                    ("max_copies", 5, "no image more often than this in an epoch"),
                ],
            ),
            *_section(
                "student", "later rounds, on labeled and pseudo-labeled images", training(student_steps, plan.ratio)
            ),
            *_section(
                "rounds",
                "the loop",
                [
                    ("num_rounds", num_rounds, "students; the next teacher, if not worse on val"),
                    ("patience", 1, "stop after this many worse students in a row"),
                ],
            ),
            *_section(
                "evaluate",
                "on test, once, at the end",
                [("control", "true", "also a supervised model at the same budget")],
            ),
            *_section(
                "runtime",
                "the machine",
                [
                    ("device", "auto", "a GPU if there is one"),
                    ("precision", plan.precision, "auto: bf16 where the hardware has it, else fp32"),
                    ("threads", plan.threads, "CPU threads a process; 0 means cores / processes"),
                    ("processes", processes, "training processes, one a GPU"),
                ],
            ),
            "",
        ]
    )


Line = tuple[str, object, str]
"""Key, value as YAML, comment."""


def _section(name: str, comment: str, lines: list[Line]) -> list[str]:
    return ["", f"{name}:  # {comment}", *(_line(*line) for line in lines)]


def _line(key: str, value: object, comment: str, indent: str = "  ") -> str:
    return f"{indent}{key}: {value}".ljust(_COMMENT_COLUMN) + f"  # {comment}"


def _quoted(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)  # a JSON string is a YAML string


def _count(folder: Path, manifest: Manifest) -> dict[Split, int]:
    counts: dict[Split, int] = {s: sum(e.num_samples for e in manifest.of_split(s)) for s in SPLITS}
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
    mean, std = pixels.mean(0), np.maximum(pixels.std(0), 0.01)  # a channel may be constant
    return _numbers(mean), _numbers(std)


def _numbers(values: F64Array) -> str:
    return f"[{', '.join(f'{value:.3f}' for value in values)}]"


def _balance(labeled: Dataset) -> tuple[Literal["uniform", "prior"], str]:
    counts = np.bincount(labeled.labels, minlength=len(labeled.classes))
    if counts.max() > 3 * max(counts.min(), 1):
        return "prior", "as among labels, which are uneven; or uniform, off"
    return "uniform", "rare classes get copies; or prior (as labeled), off"


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
