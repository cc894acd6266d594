"""The random weights that a network begins with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipeline.config.base import Section, technique

_READS = {"gaussian": "std", "constant": "value", "kaiming": "fan"}
_OWN_BIASES = ("default", "alexnet")


class Init(Section):
    """The weights of convolutions and linear layers before the first step. Without this section they are the
    architecture's own. `init: xavier` is short for `init: {name: xavier}`."""

    name: Literal["default", "zero", "constant", "gaussian", "xavier", "kaiming", "alexnet"]
    """`xavier` (Glorot 2010, eq. 16) keeps the variance through tanh, and `kaiming` (He 2015, eq. 10) through ReLU.
    `gaussian` has the deviation `std`. `zero` and `constant` show why weights must differ. `alexnet` is that of its
    paper, with biases of 1 in some layers."""
    std: Annotated[float, Field(gt=0)] = 0.01
    """Standard deviation of `gaussian`."""
    value: float = 0.01
    """The weight of `constant`."""
    fan: Literal["in", "out"] = "in"
    """What `kaiming` keeps: `in` the variance of the forward pass (He 2015, eq. 10), `out` that of the backward pass
    (eq. 14)."""
    bias: float = technique(0.0, off=0.0)
    """All biases of convolutions and linear layers. A small positive one, such as 0.01, helps ReLUs to begin
    alive. Networks without biases before their classifier, as many with BatchNorm are, refuse it."""

    @model_validator(mode="after")
    def _keys_are_read(self) -> Init:
        for name, key in _READS.items():
            value = getattr(self, key)
            if self.name != name and value != type(self).model_fields[key].default:
                raise ValueError(f"{key} is {value}, which {self.name} does not read; drop it, or set name to {name}")
        if self.bias and self.name in _OWN_BIASES:
            raise ValueError(f"bias is {self.bias}, which {self.name} does not read; drop it, or set name to gaussian")
        return self


def _of_word(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _default_is_off(init: Init | None) -> Init | None:
    return None if init is None or init.name == "default" else init


AnyInit = Annotated[Init | None, BeforeValidator(_of_word), AfterValidator(_default_is_off)]
"""The key `init`, a section or its name alone, which is None for the architecture's own, however that is written."""
