"""What pretrained weights expect to see, which is taken where the config does not set it, and told."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_args

import timm

from pipeline.config import CropMode, Start, Training
from pipeline.config.base import completed
from pipeline.config.training import COMPUTED
from pipeline.errors import UserError
from pipeline.models.format import find_weights, read_info
from pipeline.models.registry import suggest
from pipeline.models.weights import TIMM, tells_itself

log = logging.getLogger("selftrain.models")

KEYS = ("image_size", "mean", "std", "crop_pct", "crop_mode", "interpolation", "preprocessing")
"""The keys of a training that say what its model sees."""


def with_input_of(start: Start | None, training: Training, section: str) -> Training:
    """The training with the input that the weights of `start` expect, in those keys that its config does not set.

    What is taken is told. A key is set if the file or `--set` gave it, whatever its value.

    Raises:
        UserError: there is no such start, or what it expects does not go with what the config sets.
    """
    unset = _unset(training)
    if start is None or not unset:
        return training
    found = _without_conflict(input_of(start, training.model), training, unset)
    different = {key: value for key, value in found.items() if value != getattr(training, key)}
    if different:
        what = ", ".join(f"{key} {_shown(value)}" for key, value in different.items())
        level = logging.INFO if start.mode == "use" else logging.WARNING  # a model that is used as it is knows it best
        log.log(level, "%s: %s: so %s expects it, and the config does not set it", section, what, start.model)
    elif not found:
        what = ", ".join(f"{key} {_shown(getattr(training, key))}" for key in unset if key != "preprocessing")
        log.warning("%s: nothing says what %s expects; set it unless it is %s", section, start.model, what)
    return completed(training, f"{section}, with what {start.model} expects", **found)


def with_input_of_training(other: Training, training: Training) -> Training:
    """The training with the input of another one, whose weights it starts from, in those keys that are not set.

    Raises:
        UserError: the two do not go together.
    """
    found = _without_conflict({key: getattr(other, key) for key in KEYS}, training, _unset(training))
    return completed(training, "student, with what its teacher expects (rounds.start: init)", **found)


def _unset(training: Training) -> list[str]:
    return [key for key in KEYS if key not in (*training.model_fields_set, *COMPUTED[training.preprocessing])]


def _without_conflict(expected: Mapping[str, Any], training: Training, unset: Collection[str]) -> dict[str, Any]:
    """What is expected in the keys that are not set. A `mean` or `std` that is set stays, and nothing computes it."""
    found = {key: value for key, value in expected.items() if key in unset}
    if training.model_fields_set & {*COMPUTED[found.get("preprocessing", "given")]}:
        del found["preprocessing"]
    return found


def input_of(start: Start, architecture: str) -> dict[str, Any]:
    """Key of a training -> the value that weights expect, as far as it is known.

    A model of ours says it in its model.json. timm's weights have it in their pretrained_cfg, which needs no network. A
    file of weights has that of the name with a tag, such as `resnet50.a1_in1k`, that it or `model` has.

    Raises:
        UserError: there is no such start.
    """
    if start.model.startswith(TIMM):
        return _of_timm(start.model.removeprefix(TIMM))
    if tells_itself(start):
        info = read_info(Path(start.model))
        numbers = {key: getattr(info, key) for key in ("mean", "std") if key not in COMPUTED[info.preprocessing]}
        return {
            **numbers,
            **{key: getattr(info, key) for key in ("preprocessing", "crop_pct", "interpolation")},
            "crop_mode": info.crop,
            "image_size": info.input_size[-1],
        }
    stem = find_weights(Path(start.model)).stem
    return next((_of_timm(name) for name in (stem, architecture) if "." in name and _is_pretrained(name)), {})


def _is_pretrained(name: str) -> bool:
    return name in timm.list_pretrained(name.partition(".")[0])


def _of_timm(name: str) -> dict[str, Any]:
    if not timm.is_model(name):
        raise UserError(f"`start.model`: timm has no architecture {name!r}, {suggest(name)}")
    try:
        expected = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # an unknown tag
        raise UserError(f"`start.model`: {error} timm.list_pretrained() names all that have weights") from error
    if expected is None:
        return {}
    crop_mode = expected.crop_mode
    if crop_mode not in get_args(CropMode):
        log.warning("%s was evaluated with images cropped by %r; here the centre is taken", name, crop_mode)
        crop_mode = "center"
    return {
        "image_size": expected.input_size[-1],
        "mean": expected.mean,
        "std": expected.std,
        "crop_pct": expected.crop_pct,
        "crop_mode": crop_mode,
        "interpolation": expected.interpolation,
    }


def _shown(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple | list) else str(value)
