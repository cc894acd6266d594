"""The recipe of a starting config for images of a size: model, lengths and noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from pipeline.config import Precision, Runtime, Scalar

TINY, SMALL = 16, 64
"""Sides in pixels. Images of up to SMALL keep their size (but at least 8) and get networks for small images."""


@dataclass(frozen=True)
class Recipe:
    """The values that depend on the size of the images and on the device."""

    model: str
    image_size: int
    batch_size: int
    ratio: int
    teacher_steps: tuple[int, int]
    """The fewest and the most steps."""
    student_steps: tuple[int, int]
    lr: float
    weak: str
    strong: str
    model_args: dict[str, Scalar] = field(default_factory=dict)
    weight_decay: str = "0.0005"
    optimizer: str = "sgd"
    lr_batch_size: int = 256
    """The images per step that `lr` is for."""
    dropout: float = 0.2
    stochastic_depth: float = 0.1
    adaptation: Mapping[str, Scalar] = field(default_factory=dict)
    """Keys that say how the network departs from the weights that it starts from."""
    precision: Literal["auto", "fp32"] = "auto"
    threads: int = 0

    def precision_on(self, machine: Runtime) -> Precision:
        """What the precision is on a machine."""
        return machine.precision if self.precision == "auto" else self.precision


def recipe(side: int, device: str) -> Recipe:
    """The recipe for images whose shorter side has `side` pixels, on a device."""
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
            threads=1,  # with so little work a second thread costs more than it gains
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
