"""PolyNet's ablation (Zhang 2017, section 3.2): Inception-ResNet-v2 with one stage replaced by modules of one kind.

Three stages and six kinds are 18 networks, beside the baseline IR 3-6-3. The paper then mixes kinds in stage B of a
deeper baseline, IR 6-12-6, in four triples of 3-way, mpoly-3 and poly-3.

Beside them, the mixture of the Very Deep PolyNet at several depths and widths.

`python -m benchmarks architectures --only polynet-b-3-way` trains them by these names, on images of 32 pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config import Scalar
from pipeline.models.poly_inception import KINDS

Variant = tuple[str, str, dict[str, Scalar]]
"""A name of the row, `model` and `model_args` of the config."""

BASE = {"a": 3, "b": 6, "c": 3}
MIXED = "3-way mpoly-3 poly-3 x 4"


def variants(*, width: float = 0.25, stem_stride: int = 2) -> Iterator[Variant]:
    """The baseline and its 18 variants, then IR 6-12-6 and the mixture, at a width and a stem for small images."""

    def row(name: str, **stages: str) -> Variant:
        return name, "polynet_small", {**stages, "width": width, "stem_stride": stem_stride}

    base = {f"stage_{stage}": f"ir x {number}" for stage, number in BASE.items()}
    yield row("ir-3-6-3", **base)
    for stage, number in BASE.items():
        for kind in KINDS:
            if kind != "ir":
                yield row(f"{stage}-{kind}", **{**base, f"stage_{stage}": f"{kind} x {number}"})
    twice = {f"stage_{stage}": f"ir x {2 * number}" for stage, number in BASE.items()}
    yield row("ir-6-12-6", **twice)
    yield row("b-mixed", **{**twice, "stage_b": MIXED})


def depths_and_widths() -> Iterator[Variant]:
    """One, two and four modules or pairs per stage, where the paper has 10, 10 and 5, at a quarter of its width; and
    two at an eighth and a half of it."""
    for depth, width in ((1, 0.25), (2, 0.25), (4, 0.25), (2, 0.125), (2, 0.5)):
        name = f"depth-{depth}" if width == 0.25 else f"width-{width}"
        pairs = f"poly-3 2-way x {depth}"
        stages = {"stage_a": f"2-way x {depth}", "stage_b": pairs, "stage_c": pairs}
        yield name, "polynet_small", {**stages, "width": width, "stem_stride": 2}
