"""What a GPU does in a few minutes: the student's step and the labeling beside the bare loop, the step of Meta Pseudo
Labels beside its unavoidable compute, then CIFAR-10 with 4,000 labels for the minutes that are left.

DATA holds cifar10-train.tar and cifar10-test.tar. Each part has a share of the minutes, and OUT gets every figure as
soon as it is known. On a CPU all sizes are tiny: that tries the benchmark, and measures nothing.
"""

from __future__ import annotations

import argparse
import logging
import platform
import tempfile
from pathlib import Path

import torch

from benchmarks.gpu import cifar, meta, steps
from benchmarks.gpu.data import pack_cifar, pack_random
from benchmarks.gpu.record import Clock, Record
from pipeline.config import Runtime, changed
from pipeline.stages.machine import environment, resolve
from pipeline.threads import num_cores

HELP = "what a GPU does in a few minutes"
ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "configs" / "cifar10_4k_uda.yaml"
STEPS_SHARE, META_SHARE = 0.35, 0.12
"""Of the time that is left when the part begins."""
PUBLISHED = ["student.unlabeled_ratio=7"]
"""On a GPU the recipe, made for CPUs, sees as many unlabeled images per step as in the papers."""
TINY = ["student.batch_size=8", "student.model_args={width: 8}", "student.strong.cutout=8", "evaluate.batch_size=64"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, required=True, help="folder of the two tars")
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures")
    parser.add_argument("--minutes", type=float, default=6.0, help="for everything together")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="config of the training on CIFAR-10")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="of the recipe")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Everything; returns the exit code, which is 1 if a part failed."""
    clock, record = Clock(60 * args.minutes), Record(args.out)
    runtime = resolve(Runtime(device=args.device))
    tiny = runtime.device == "cpu"
    runtime = changed(runtime, threads=1) if tiny else runtime  # which does not mind a busy machine
    torch.set_num_threads(runtime.threads)
    logging.getLogger("selftrain").setLevel(logging.ERROR)  # teachers of two steps label nonsense, as they should
    _say_where(record, runtime)
    with tempfile.TemporaryDirectory(prefix="selftrain-gpu-") as name:
        folder = Path(name)
        root = pack_cifar(args.data, folder, tiny=tiny)
        record.add("data", f"packed, {clock.left:.0f} s are left")
        steps_clock = clock.share(STEPS_SHARE)
        cases = steps.TINY_CASES if tiny else steps.CASES
        for number, case in enumerate(cases):
            with record.part("student step"):
                share = steps_clock.share(1 / (len(cases) - number))
                images = root if case.size == 32 else pack_random(folder, case.size * 8 // 7, tiny=tiny)
                steps.measure(record, share, case, images, runtime, folder / case.model)
        meta_clock = clock.share(META_SHARE)
        meta_cases = meta.TINY_CASES if tiny else meta.CASES
        for number, meta_case in enumerate(meta_cases):
            with record.part("meta step"):
                meta.measure(record, meta_clock.share(1 / (len(meta_cases) - number)), meta_case, runtime)
        with record.part("cifar10-4k"):
            own = [f"data.root={root}", f"data.cache_dir={folder / 'resnet9' / 'cache'}"]
            own += [f"runtime.{key}={value}" for key, value in runtime.model_dump().items()]
            own += [*(TINY if tiny else PUBLISHED), *args.set]
            time_left = Clock(10.0) if tiny else clock
            cifar.measure(record, time_left, args.recipe, own, folder / "cifar")
    record.add("end", f"{clock.left:.0f} s are left")
    return int(record.failed)


def _say_where(record: Record, runtime: Runtime) -> None:
    where = {**environment(runtime), "python": platform.python_version(), "cores": num_cores()}
    if runtime.device == "cuda":
        where |= {"cuda": str(torch.version.cuda), "cudnn": torch.backends.cudnn.version() or 0}
    record.add("machine", ", ".join(f"{name} {value}" for name, value in where.items()), **where)
