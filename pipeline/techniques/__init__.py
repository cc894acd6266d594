"""The techniques: the refinements of a training, where each one's code is, and what switches it off.

Documentation, tests and ablations read the table; nothing dispatches by it. In the code a technique is a visible call
at its seam.
"""

from pipeline.techniques.catalog import PLUMBING, TECHNIQUES, register_technique
from pipeline.techniques.technique import Technique, field_of

__all__ = ["PLUMBING", "TECHNIQUES", "Technique", "field_of", "register_technique"]
