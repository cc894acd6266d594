"""What the layers of a network give before and while it is trained, for several configs side by side."""

from pipeline.inspection.plot import draw
from pipeline.inspection.variants import Snapshot, inspect_variants, parse_variant

__all__ = ["Snapshot", "draw", "inspect_variants", "parse_variant"]
