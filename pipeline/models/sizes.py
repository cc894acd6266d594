"""Print the sizes of EfficientNets as a table: those that were published, or any compound coefficient for own images.

python -m pipeline.models.sizes
python -m pipeline.models.sizes --phi -2 -1 0 1 --image-size 64 --classes 10 --reduction 8
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping

from pipeline.config.growth import ALPHA, BETA, scaled_side
from pipeline.models.compound_scaling import PUBLISHED
from pipeline.models.cost import cost_at

HEAD = ("| network | width | depth | image_size | parameters | multiply-adds |", "|---|---|---|---|---|---|")


def published() -> str:
    """The table of the published networks, with 1,000 classes, at the sizes that they are trained on."""
    sizes = PUBLISHED.items()
    rows = [_row(name, s.width, s.depth, s.image_size, {"width": s.width, "depth": s.depth}, 1000) for name, s in sizes]
    return "\n".join([*HEAD, *rows])


def scaled(phis: Iterable[float], image_size: int = 224, num_classes: int = 1000, reduction: int = 32) -> str:
    """The table of the networks of equation 3, where that of phi 0 sees images of `image_size`."""
    rows = []
    for phi in phis:
        args: dict[str, float] = {"phi": phi, **({} if reduction == 32 else {"reduction": reduction})}
        rows.append(_row(f"phi {phi:g}", BETA**phi, ALPHA**phi, scaled_side(image_size, phi), args, num_classes))
    return "\n".join([*HEAD, *rows])


def _row(name: str, width: float, depth: float, side: int, args: Mapping[str, float], num_classes: int) -> str:
    cost = cost_at("efficientnet", num_classes, (3, side, side), tuple(args.items()))
    cells = (name, f"{width:.3g}", f"{depth:.3g}", side, f"{cost.parameters:,}", f"{cost.flops / 2e9:.3g}B")
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    """Print a table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.models.sizes", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--phi", type=float, nargs="+", help="compound coefficients, such as -1 0 1.5")
    parser.add_argument("--image-size", type=int, default=224, help="side of the images of phi 0")
    parser.add_argument("--classes", type=int, default=1000, help="number of classes")
    parser.add_argument("--reduction", type=int, default=32, choices=(32, 16, 8, 4), help="as in model_args")
    args = parser.parse_args()
    print(scaled(args.phi, args.image_size, args.classes, args.reduction) if args.phi else published())
    return 0


if __name__ == "__main__":
    sys.exit(main())
