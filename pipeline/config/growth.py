"""Compound scaling as arithmetic (Tan 2019, section 3.3), and students that grow by it from round to round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

ALPHA, BETA, GAMMA = 1.2, 1.1, 1.15
"""The bases of depth, width and resolution. ALPHA * BETA^2 * GAMMA^2 is 1.92, so a step of 1 costs about twice."""


def scaled_side(side: int, phi: float) -> int:
    """The side of images, in pixels, for a network that is `phi` larger: side * 1.15^phi (equation 3), as the nearest
    multiple of 4, as all published sides are."""
    return max(4 * round(side * math.pow(GAMMA, phi) / 4), 4)


def grown(student: Mapping[str, Any], phi: float, *, image_size: bool) -> dict[str, Any]:
    """The keys of a student that is `phi` larger (Xie 2020, section 2: equal or larger than its teacher): its network,
    and with `image_size` the images that it sees. It has a `model_args.phi` to start from."""
    args = student["model_args"]
    changed: dict[str, Any] = {"model_args": {**args, "phi": args["phi"] + phi}}
    if image_size:
        sides = ("image_size", "evaluation_size")
        changed |= {key: scaled_side(student[key], phi) for key in sides if student[key]}
    return changed
