"""The methods: how teacher and student learn from each other. Each folder has a method's rounds and its learner.

Nothing outside asks for a method by its name.
"""

from pipeline.config import Config
from pipeline.config.methods import METHOD_CONFIGS, MethodConfig, sections
from pipeline.errors import UserError, did_you_mean
from pipeline.methods.fixmatch.rounds import FIXMATCH
from pipeline.methods.meta.rounds import META
from pipeline.methods.method import Method
from pipeline.methods.noisy_student.rounds import NOISY_STUDENT
from pipeline.methods.uda.rounds import UDA

METHODS: dict[str, Method] = {method.name: method for method in (NOISY_STUDENT, UDA, FIXMATCH, META)}
"""`method` of the config -> the method."""


def register_method(method: Method, config: MethodConfig) -> None:
    """Make a method known to the config, to runs and to reports.

    Raises:
        UserError: the name of the method or of one of its sections is taken, or it reads a section that does not exist.
    """
    if method.name in METHODS:
        raise UserError(f"there is a method {method.name!r} already; choose another name")
    taken = {**Config.known_keys(), **sections()}
    for name, section in config.settings.items():
        if taken.get(name, section) is not section:
            raise UserError(f"method {method.name}: the config has a section {name!r} already; choose another name")
    known = [*taken, *config.settings]
    for name in config.reads:
        if name not in known:
            raise UserError(f"method {method.name} reads a section {name!r}, {did_you_mean(name, known)}")
    METHOD_CONFIGS[method.name] = config
    METHODS[method.name] = method


__all__ = ["METHODS", "Method", "register_method"]
