"""Architectures trained for some hundred steps on real images: whether their loss falls, and accuracy against cost.

The data is a tar or folder of labeled images, such as cifar10-train.tar; a part of it is val, and nothing is chosen on
it. Networks see the same images in the same order, at a size of their own. What is finished is not run again, and what
was interrupted goes on: type the same command. Rows, table and plot are written after each network.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.polynet_variants import depths_and_widths, variants
from pipeline.config import Config, parse, semantic
from pipeline.config.growth import scaled_side
from pipeline.files import read_json, read_lines, write_bytes
from pipeline.models.cost import cost_of
from pipeline.models.format import read_info
from pipeline.packing.carve import Carve
from pipeline.packing.pack import pack
from pipeline.report.canvas import canvas, color_of
from pipeline.stages.fingerprint import digest
from pipeline.stages.jobs import TrainJob
from pipeline.stages.launch import run_job
from pipeline.stages.lock import run_lock
from pipeline.stages.machine import resolve

HELP = "architectures trained for some hundred steps: falling loss, and accuracy against operations"
BASE_SIDE = 32
"""The side of the images of phi 0."""
LOG_EVERY = 10
"""Steps per point of the curves of the loss."""
RECIPE: dict[str, Any] = {
    "batch_size": 64,
    "label_smoothing": 0.0,
    "ema_decay": 0.98,
    "evaluations": 1,
    "optimizer": {"lr": 0.1, "lr_batch_size": 64},
    "strong": {"num_ops": 0},
}
"""What all networks share, beside the steps."""


@dataclass(frozen=True)
class Network:
    """One point of the plot."""

    family: str
    """Points of one family are joined by a line."""
    model: str
    image_size: int
    model_args: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    """Keys of the training that differ from RECIPE."""


def _scaled(phi: float) -> Network:
    args = {"phi": phi, "width": 0.5, "depth": 0.5, "reduction": 8}
    return Network("compound scaling", "efficientnet", scaled_side(BASE_SIDE, phi), args)


def _alexnet(width: float, lr: float) -> Network:
    """Its gradients are small at first, as it has no BatchNorm, so its steps do not depend on their size."""
    optimizer = {"name": "adamw", "lr": lr, "lr_batch_size": 64, "weight_decay": 0.01}
    recipe = {"optimizer": optimizer, "weak": {"padding": 8}, "dropout": 0.5}
    return Network("AlexNet", "alexnet", 64, {"width": width, "grid": 3, "stride": 2}, recipe)


NETWORKS = {
    "scaled-0": _scaled(0),
    "scaled-1": _scaled(1),
    "scaled-2": _scaled(2),
    "alexnet-quarter": _alexnet(0.25, 1e-3),
    "alexnet": _alexnet(1.0, 3e-4),
    "resnet9": Network("ResNet-9", "resnet9", BASE_SIDE),
}
"""Name -> network."""
_POLYNET = {"optimizer": {"name": "adamw", "lr": 0.002, "lr_batch_size": 32}}
VARIANTS = {
    f"polynet-{name}": Network(
        "all stages of I + F" if name.startswith("ir") else f"stage {name[0].upper()} of others",
        model,
        BASE_SIDE,
        {**args},
        _POLYNET,
    )
    for name, model, args in variants()
}
"""Those of PolyNet's paper, which are trained when `--only` names them, as are all below."""
SIZES = {
    f"polynet-{name}": Network(f"PolyNet, {name.partition('-')[0]}", model, BASE_SIDE, {**args}, _POLYNET)
    for name, model, args in depths_and_widths()
}
"""PolyNet at several depths and widths."""
_ALEXNET = {
    "optimizer": {"name": "adamw", "lr": 3e-4, "lr_batch_size": 32, "weight_decay": 0.01},
    "weak": {"padding": 28},
    "dropout": 0.5,
}
FULL = {
    "alexnet-full": Network("AlexNet in full", "alexnet", 227, {}, {**_ALEXNET, "batch_size": 32}),
    "polynet-full": Network("Very Deep PolyNet", "polynet", 96, {}, {**_POLYNET, "batch_size": 16}),
}
"""The networks of the two papers, of which PolyNet sees smaller images than there: 331 pixels cost 13 times as much."""
ALL = {**NETWORKS, **VARIANTS, **SIZES, **FULL}


@dataclass(frozen=True)
class Row:
    """What came of one network and seed."""

    name: str
    family: str
    seed: int
    image_size: int
    parameters: int
    flops: int
    """Operations per image; a multiplication and an addition are two."""
    steps: int
    first_loss: float
    """The mean loss of the first tenth of the logged steps."""
    last_loss: float
    val_top1: float
    interval: tuple[float, float]
    """The 95% interval of `val_top1` by the number of val images."""
    seconds: float
    folder: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", type=Path, required=True, help="tar or folder of labeled images")
    parser.add_argument("--out", type=Path, required=True, help="folder of shards, trainings, rows, table and plot")
    parser.add_argument("--steps", type=int, default=300, help="steps of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the trainings")
    parser.add_argument("--only", nargs="+", default=list(NETWORKS), choices=list(ALL), help="networks to train")
    parser.add_argument("--val-fraction", type=float, default=0.04, help="share of the images that is val")
    parser.add_argument("--threads", type=int, default=1, help="threads of a training; more suit an idle machine")
    parser.add_argument("--precision", default="auto", help="as runtime.precision; where bf16 is slow, fp32 is quicker")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train every network with every seed; returns the exit code."""
    with run_lock(args.out) as lock_fd:
        root = args.out / "shards"
        if not (root / "manifest.json").exists():
            pack(args.images, root, carve=Carve(num_labeled="all", val_fraction=args.val_fraction))
        rows: list[Row] = []
        for seed in args.seeds:
            for name in args.only:
                job = job_of(name, seed, args.steps, root, args.out, args.threads, args.precision)
                run_job(job, lock_fd)
                rows.append(row_of(name, job, args.out))
                print(f"{name}, seed {seed}: loss {rows[-1].first_loss:.2f} to {rows[-1].last_loss:.2f}", flush=True)
                write_bytes(args.out / "rows.jsonl", "".join(json.dumps(asdict(r)) + "\n" for r in rows).encode())
                write_bytes(args.out / "table.md", f"{table(rows)}\n".encode())
                write_bytes(args.out / "architectures.png", draw(rows, args.out))
    print(table(rows))
    return 0


def job_of(
    name: str, seed: int, steps: int, root: Path, out: Path, threads: int = 1, precision: str = "auto"
) -> TrainJob:
    """The training of one network. Its folder is a function of its settings."""
    network = ALL[name]
    own = {"model": network.model, "model_args": network.model_args, "image_size": network.image_size}
    raw = {**RECIPE, **own, "steps": steps, "warmup_steps": steps // 10, **network.recipe}
    runtime = {"threads": threads, "precision": precision, "log_every": LOG_EVERY}
    given = {"seed": seed, "data": {"root": str(root)}, "teacher": raw, "runtime": runtime}
    config = parse(Config, given, f"network {name}")
    config = config.model_copy(update={"runtime": resolve(config.runtime)})
    folder = out / "trainings" / f"{name}-{digest([semantic(config.teacher), seed])[:8]}"
    return TrainJob.of(config, folder, "teacher", 0, config.teacher)


def row_of(name: str, job: TrainJob, out: Path) -> Row:
    """The figures of a finished training."""
    info, val = read_info(job.out), read_json(job.out / "evaluation-val.json")
    losses, cost = [loss for _, loss in losses_of(job.out)], cost_of(info)
    part = max(len(losses) // 10, 1)
    return Row(
        name=name,
        family=ALL[name].family,
        seed=job.seed,
        image_size=job.training.image_size,
        parameters=cost.parameters,
        flops=cost.flops,
        steps=job.training.steps,
        first_loss=statistics.mean(losses[:part]),
        last_loss=statistics.mean(losses[-part:]),
        val_top1=val["top1"],
        interval=tuple(val["interval"]),
        seconds=sum(line["seconds"] for line in read_lines(job.out / "timing.jsonl")),
        folder=str(job.out.relative_to(out)),
    )


def losses_of(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of each logged step of a training."""
    return [(line["step"], line["loss"]) for line in read_lines(folder / "metrics.jsonl") if "loss" in line]


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| network | seed | pixels | parameters | multiply-adds | loss, first and last tenth | val | seconds |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for r in rows:
        cost = f"{r.parameters / 1e6:.2f}M | {r.flops / 2e6:.1f}M"
        loss = f"{r.first_loss:.2f}, {r.last_loss:.2f}"
        lines.append(
            f"| {r.name} | {r.seed} | {r.image_size} | {cost} | {loss} | {100 * r.val_top1:.1f} | {r.seconds:.0f} |"
        )
    return "\n".join(lines)


def draw(rows: Sequence[Row], out: Path) -> bytes:
    """A PNG: accuracy against operations, a line per family, and the loss of the first seed over the steps."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    families = list(dict.fromkeys(r.family for r in rows))
    with canvas(2, transparent=False) as drawing:
        points, curves = drawing.axes
        for number, family in enumerate(families):
            own = sorted((r for r in rows if r.family == family), key=lambda r: r.flops)
            means = [(flops, statistics.mean(_accuracies(own, flops))) for flops in sorted({r.flops for r in own})]
            points.plot(*zip(*means, strict=True), color=color_of(number), label=family)
            for r in own:
                low, high = (100 * bound for bound in r.interval)
                points.plot([r.flops] * 2, [low, high], color=color_of(number), lw=1)
                points.plot(r.flops, 100 * r.val_top1, "o", color=color_of(number), ms=5)
            for r in own:
                if r.seed == rows[0].seed:
                    curves.plot(*zip(*losses_of(out / r.folder), strict=True), color=color_of(number), lw=1)
        points.set_xscale("log")
        points.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        points.xaxis.set_major_formatter(FuncFormatter(lambda flops, _: f"{flops / 1e6:g}M"))
        points.xaxis.set_minor_formatter(NullFormatter())
        points.set_xlabel("operations per image")
        points.set_title("Val accuracy, %")
        points.legend()
        curves.set_xlabel("step")
        curves.set_title("Training loss")
    return drawing.png


def _accuracies(rows: Iterable[Row], flops: int) -> list[float]:
    return [100 * r.val_top1 for r in rows if r.flops == flops]
