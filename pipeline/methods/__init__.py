"""The methods: how teacher and student learn from each other. Each is a folder with its rounds and its learner.

Nothing outside asks for a method by its name.
"""

from pipeline.config.methods import METHOD_CONFIGS, MethodConfig
from pipeline.methods.fixmatch.rounds import FIXMATCH
from pipeline.methods.meta.rounds import META
from pipeline.methods.method import Method
from pipeline.methods.noisy_student.rounds import NOISY_STUDENT
from pipeline.methods.uda.rounds import UDA

METHODS: dict[str, Method] = {method.name: method for method in (NOISY_STUDENT, UDA, FIXMATCH, META)}
"""`method` of the config -> the method."""


def register_method(method: Method, config: MethodConfig) -> None:
    """Make a method known: to the config, to runs and to reports."""
    METHOD_CONFIGS[method.name] = config
    METHODS[method.name] = method


__all__ = ["METHODS", "Method", "register_method"]
