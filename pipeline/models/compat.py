"""Let torchvision be imported beside a CPU-only torch.

torchvision 0.28 wheels are built against CUDA torch. Beside a CPU-only torch their C++ library does not load, and the
import then fails with "operator torchvision::nms does not exist", because torchvision registers fake kernels for two
operators that nobody declared. timm imports torchvision, so this stops every CPU-only user. Declaring the two schemas
first cures it. torchvision's own image operators stay absent, which does not matter: selftrain decodes with Pillow.

`pipeline.models` calls this before it imports timm. It does nothing where torchvision's operators exist.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_LIBRARY: torch.library.Library | None = None  # schemas live as long as this object


def declare_missing_ops() -> bool:
    """Declare `torchvision::nms` and `qnms` if torchvision's own library cannot load; returns whether it did so."""
    global _LIBRARY
    if _LIBRARY is not None or not _library_is_broken():
        return False
    _LIBRARY = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS.values():
        _LIBRARY.define(schema)
    return True


def ops_were_missing() -> bool:
    """Whether they had to be declared in this process, so that timm alone could not be imported."""
    return _LIBRARY is not None


def _library_is_broken() -> bool:
    """Whether torchvision is installed with a compiled library that does not load beside this torch."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return False
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return True
        return False
    return True
