"""Images/s of the weak and the strong view, side by side with a loop over PIL images that does the same.

    python benchmarks/bench_views.py [--size 32] [--batch 512] [--threads 2] [--device cpu]

Both run in turns, so that a busy machine slows both. The PIL loop is one process: with W loader processes, and a core
for each, it is W times as fast.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance, ImageOps

from pipeline.config import StrongView, WeakView
from pipeline.views import OPS, RandAugment, Views
from pipeline.views.geometry import FILL
from pipeline.views.ops import GEOMETRIC

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
STRONG = StrongView(num_ops=2, magnitude=9, cutout=16)


class PilViews:
    """The same noise, one PIL image after the other, with numpy's generator."""

    def __init__(self, size: int):
        self.size = size
        self.randaugment = RandAugment(2, STRONG.magnitude, size)
        self.random = np.random.default_rng(0)

    def weak(self, image: npt.NDArray[np.uint8]) -> Image.Image:
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        top, left = self.random.integers(0, 9, 2)
        view = Image.fromarray(padded[top : top + self.size, left : left + self.size])
        return ImageOps.mirror(view) if self.random.random() < 0.5 else view

    def strong(self, image: npt.NDArray[np.uint8]) -> Image.Image:
        view = self.weak(image)
        for op, sign in zip(self.random.integers(0, len(OPS), 2), self.random.integers(0, 2, 2), strict=True):
            view = self.apply(view, OPS[op], int(sign))
        top, left = self.random.integers(0, self.size, 2) - STRONG.cutout // 2
        view.paste((FILL,) * 3, (left, top, left + STRONG.cutout, top + STRONG.cutout))
        return view

    def apply(self, view: Image.Image, name: str, sign: int) -> Image.Image:
        levels = self.randaugment.levels
        if name in GEOMETRIC:
            plan = self.randaugment.plan(np.array([[OPS.index(name)]]), np.array([[sign]]))
            affine = tuple(plan.parameters[0, 0].tolist())
            how = Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
            return view.transform(view.size, *how, fillcolor=(FILL,) * 3)
        if name in ("autocontrast", "equalize", "invert"):
            return getattr(ImageOps, name)(view)
        if name == "identity":
            return view
        if name == "posterize":
            return ImageOps.posterize(view, levels.bits)
        if name == "solarize":
            return ImageOps.solarize(view, levels.threshold)
        if name == "solarize_add":
            return view.point([min(v + levels.added, 255) if v < 128 else v for v in range(256)] * 3)
        return getattr(ImageEnhance, name.title())(view).enhance(levels.factors[sign])

    def batch(
        self, images: npt.NDArray[np.uint8], view: Callable[[npt.NDArray[np.uint8]], Image.Image]
    ) -> torch.Tensor:
        stacked = torch.from_numpy(np.stack([np.asarray(view(image)) for image in images]))
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        return stacked.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    size, batch = arguments.size, arguments.batch
    rows = np.random.default_rng(1).integers(0, 256, (batch, size, size, 3), np.uint8)
    images = torch.from_numpy(rows).to(arguments.device)
    positions = np.arange(batch, dtype=np.uint64)
    ours = Views(WeakView(), STRONG, size, mean=MEAN, std=STD, device=arguments.device)
    theirs = PilViews(size)

    def timed(make: Callable[[], torch.Tensor]) -> float:
        start = time.perf_counter()
        make()
        if arguments.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    pairs: dict[str, tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]] = {
        "weak": (lambda: ours.weak(images, positions), lambda: theirs.batch(rows, theirs.weak)),
        "strong": (lambda: ours.strong(images, positions), lambda: theirs.batch(rows, theirs.strong)),
    }
    print(
        f"{batch} images of {size} x {size}, {arguments.threads} threads, {arguments.device}, torch {torch.__version__}"
    )
    print(f"{'view':8}{'selftrain':>14}{'best':>12}{'PIL loop':>14}{'ratio':>8}   (images/s: median, best, median)")
    for name, (device_views, pil_loop) in pairs.items():
        timed(device_views)
        times = [(timed(device_views), timed(pil_loop)) for _ in range(arguments.repeats)]
        median, pil = (statistics.median(column) for column in zip(*times, strict=True))
        best = min(times)[0]
        print(f"{name:8}{batch / median:14,.0f}{batch / best:12,.0f}{batch / pil:14,.0f}{pil / median:8.1f}")


if __name__ == "__main__":
    main()
