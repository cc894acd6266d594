"""The one model format: `model.safetensors` (EMA weights) beside `model.json` (all that is needed to use them).

An exported file is the same pair under another name, FILE.safetensors and FILE.json, and opens in plain timm:
`timm.create_model(architecture, num_classes=C, checkpoint_path=FILE, **model_args)`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any, Literal

import timm
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pipeline.config import Interpolation, Scalar, Section, changed, parse
from pipeline.errors import UserError
from pipeline.files import read_json, write_bytes, write_json
from pipeline.models.forward import check_forward
from pipeline.models.registry import build, plugins_of
from pipeline.stages.fingerprint import digest, digest_file

log = logging.getLogger("selftrain.models")

Numbers = tuple[float, float, float]


class ModelInfo(Section):
    """The content of model.json."""

    schema_version: int = Field(1, alias="schema")
    architecture: str
    model_args: dict[str, Scalar]
    classes: tuple[str, ...]
    input_size: tuple[int, int, int]
    """Channels, height and width."""
    mean: Numbers
    """Mean of RGB in [0, 1]."""
    std: Numbers
    crop: Literal["center"] = "center"
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Side of the centre square that the model sees, as a share of the image's shorter side."""
    interpolation: Interpolation = "bicubic"
    metrics: dict[str, Any]
    lineage: dict[str, Any]

    @property
    def read_size(self) -> int:
        """The side at which images are read, of which the model sees the centre (timm's rounding)."""
        return math.floor(self.input_size[-1] / self.crop_pct)

    def with_metrics(self, metrics: dict[str, Any]) -> ModelInfo:
        """The same description with these figures."""
        return changed(self, metrics=metrics)


def save_model(weights_path: Path, state: Mapping[str, Tensor], info: ModelInfo) -> None:
    """Write the weights first, then the JSON that makes them a model. Each file appears whole or not at all."""
    plugins = plugins_of(info.architecture)
    info = changed(info, lineage={**info.lineage, "plugins": plugins}) if plugins else info
    # Copies, because some architectures share weights between layers, which the format has no way to say.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }
    write_bytes(weights_path, save(tensors, metadata={"format": "pt"}))
    write_json(weights_path.with_suffix(".json"), info.model_dump(mode="json", by_alias=True))


def find_weights(path: Path) -> Path:
    """The .safetensors file that a run folder, a stage folder or a file stands for.

    Raises:
        UserError: there is no model at this path.
    """
    if path.is_file():
        return path
    if (path / "model.safetensors").exists():
        return path / "model.safetensors"
    if (path / "result.json").exists():
        final: str = read_json(path / "result.json")["final"]["model_dir"]
        return path / final / "model.safetensors"
    if not path.exists():
        raise UserError(f"no model at {path}: it does not exist")
    raise UserError(f"no model at {path}: expected a finished run, a train stage, or an exported .safetensors file")


def read_info(path: Path) -> ModelInfo:
    """The model.json of a run folder, a stage folder or an exported file. Raises UserError when there is none."""
    weights = find_weights(path)
    return parse(ModelInfo, read_json(weights.with_suffix(".json")), str(weights.with_suffix(".json")))


def read_state(path: Path) -> dict[str, Tensor]:
    """The weights in a .safetensors file, or in a .pth file as timm writes it. Raises UserError when it is broken."""
    weights = find_weights(path)
    try:
        if weights.suffix == ".safetensors":
            state: dict[str, Tensor] = load_file(weights)
        else:
            state = timm.models.load_state_dict(str(weights), weights_only=True)
    except (SafetensorError, OSError, UnpicklingError, RuntimeError, EOFError) as error:
        kind = "safetensors file" if weights.suffix == ".safetensors" else "file of PyTorch weights"
        raise UserError(f"{weights} is not a readable {kind}: {error}") from error
    return state


def load_model(path: Path) -> tuple[nn.Module, ModelInfo]:
    """Build the architecture and load its weights exactly; the model is in eval mode, on the CPU.

    Raises:
        UserError: there is no model, weights and architecture disagree, or it cannot take images of its input size.
    """
    info = read_info(path)
    size = {f"input_size in {find_weights(path).with_suffix('.json')}": info.input_size[-1]}
    check_forward(info.architecture, len(info.classes), size, model_args=info.model_args, trains=False)
    model = build(info.architecture, len(info.classes), model_args=info.model_args)
    if (trained := info.lineage.get("plugins", {})) != (here := plugins_of(info.architecture)):
        raise UserError(
            f"{path} was trained with {info.architecture} of {_named(trained)}, and here it is that of {_named(here)}; "
            "pass the plugin as it was, or train again"
        )
    try:
        model.load_state_dict(read_state(path))
    except RuntimeError as error:
        raise UserError(f"{find_weights(path)} does not fit {info.architecture}: {error}") from error
    return model.eval(), info


def _named(plugins: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({digest[:8]})" for name, digest in plugins.items()) or "no plugin"


_PREDICTS_BY = {"architecture", "model_args", "classes", "input_size", "mean", "std", "crop", "interpolation"}


def model_digest(path: Path) -> str:
    """A digest of all that a model's predictions depend on: its weights, how its model.json says that it sees images,
    and the plugin that defines its architecture, if one does.

    A stage and a file that was exported from it have the same digest.
    """
    weights = find_weights(path)
    sha256 = digest_file(weights)
    if not weights.with_suffix(".json").exists():
        return sha256
    info = read_info(path)
    sees = info.model_dump(mode="json", include=_PREDICTS_BY)
    if info.crop_pct != 1:  # else it is the digest from before there was a choice
        sees["crop_pct"] = info.crop_pct
    return digest({"weights": sha256, **sees, **plugins_of(info.architecture)})


def export_model(source: Path, out: Path) -> ModelInfo:
    """Write the model of a run or a stage as OUT and its JSON beside it.

    Raises:
        UserError: there is no model, `out` is not a .safetensors name, or it exists with other content.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out} must end in .safetensors")
    weights = find_weights(source)
    info = read_info(source)
    if out.exists() and digest_file(out) != digest_file(weights):
        raise UserError(f"{out} exists and holds another model; choose another name, or delete it")
    beside, content = out.with_suffix(".json"), info.model_dump(mode="json", by_alias=True)
    if beside.exists() and read_json(beside) != content:
        raise UserError(f"{beside} exists and is not of this model; choose another name, or delete it")
    write_bytes(out, weights.read_bytes())
    write_json(beside, content)
    return info
