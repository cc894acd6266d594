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
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from pipeline.config import NetworkSettings, Section, Training, changed, parse
from pipeline.config.base import CropMode, Interpolation, Probability, Scalar
from pipeline.errors import UserError
from pipeline.files import check_shape, read_as, read_json, write_bytes, write_json
from pipeline.models.champion import champion_of
from pipeline.models.checkpoints import read_checkpoint
from pipeline.models.dropping import add_dropout
from pipeline.models.forward import check_forward
from pipeline.models.preprocessing import make_room
from pipeline.models.registry import build, plugins_of
from pipeline.stages.fingerprint import digest, digest_once
from pipeline.stages.folder import check_output, read_output

log = logging.getLogger("selftrain.models")

NEIGHBORS = "neighbors.npz"  # which a probe by nearest neighbors leaves in the place of a model
Numbers = tuple[float, float, float]


class ModelInfo(Section):
    """The content of model.json."""

    schema_version: int = Field(1, alias="schema")
    architecture: str
    model_args: dict[str, Scalar]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    input_size: tuple[int, int, int]
    """Channels, height and width."""
    mean: Numbers
    """Mean of RGB in [0, 1]."""
    std: Numbers
    preprocessing: Literal["given", "mean_image", "pca_whitening"] = "given"
    """What takes the place of `mean`, and with `pca_whitening` of `std`, which are in this file: arrays beside the
    weights, `preprocessing.mean` [S, S, 3] and `preprocessing.whitening` [D, D]."""
    crop: CropMode = "center"
    """What becomes of an image that is no square (timm's `crop_mode`)."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Side of the centre square that the model sees, as a share of the image's shorter side."""
    interpolation: Interpolation = "bicubic"
    dropout: Probability = 0.0
    """What it was trained with. Predictions are without it, unless they are samples (`evaluate.mc_dropout`)."""
    block_dropout: Probability = 0.0
    dropout_at: dict[str, Probability] = Field({})
    metrics: dict[str, Any]
    lineage: dict[str, Any]

    @classmethod
    def of(
        cls, network: NetworkSettings, training: Training, classes: tuple[str, ...], lineage: dict[str, Any]
    ) -> ModelInfo:
        """The description of a network that sees what a training says."""
        return cls(
            schema=1,
            architecture=network.model,
            model_args=network.built_with,
            classes=classes,
            input_size=(3, training.seen_size, training.seen_size),
            mean=training.mean,
            std=training.std,
            crop=training.crop_mode,
            crop_pct=training.crop_pct,
            interpolation=training.interpolation,
            dropout=network.dropout,
            block_dropout=network.block_dropout,
            dropout_at=network.dropout_at,
            metrics={},
            lineage=lineage,
        )

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """model.json and digests are what they were before there was a key that is off."""
        off = {"dropout": 0.0, "block_dropout": 0.0, "dropout_at": {}, "preprocessing": "given"}
        return {name: value for name, value in dump(self).items() if name not in off or value != off[name]}

    @property
    def seen(self) -> tuple[int, Interpolation, CropMode]:
        """How images are read for the model; models of which it is equal see the same pixels."""
        return read_side(self.input_size[-1], self.crop_pct), self.interpolation, self.crop

    def with_metrics(self, metrics: dict[str, Any]) -> ModelInfo:
        """The same description with these figures."""
        return changed(self, metrics=metrics)


def read_side(size: int, crop_pct: float, scale: float = 1.0) -> int:
    """The side at which images are read for a model that sees the centre of `size` pixels: timm's rounding at scale 1,
    and else the nearest whole number."""
    return math.floor(size / crop_pct) if scale == 1 else round(scale * size / crop_pct)


class _Lineage(TypedDict, total=False):
    plugins: dict[str, str]


class _Final(TypedDict):
    model_dir: str


class _OfResult(TypedDict):
    """What is needed of a run's result.json."""

    final: _Final


def save_model(weights_path: Path, state: Mapping[str, Tensor], info: ModelInfo) -> None:
    """Write the weights first, then the JSON that makes them a model. Each file appears whole or not at all."""
    write_bytes(weights_path, _as_safetensors(state))
    write_json(weights_path.with_suffix(".json"), described(info))


def _as_safetensors(state: Mapping[str, Tensor]) -> bytes:
    # Copies, because some architectures share weights between layers, which the format has no way to say.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }
    data: bytes = save(tensors, metadata={"format": "pt"})
    return data


def described(info: ModelInfo) -> dict[str, Any]:
    """The content of model.json, with the plugin that defines the architecture, if one does."""
    plugins = plugins_of(info.architecture)
    info = changed(info, lineage={**info.lineage, "plugins": plugins}) if plugins else info
    return info.model_dump(mode="json", by_alias=True)


def find_weights(path: Path) -> Path:
    """The file that a run folder, a stage folder, a registry, an exported file or a checkpoint stands for.

    Raises:
        UserError: there is no model at this path, or it is damaged.
    """
    for file in (path, path / "model.safetensors"):
        if file.is_file():
            return check_output(file)
    if (champion := champion_of(path)) is not None:
        return champion
    if (path / "result.json").exists():
        final = read_as(_OfResult, path / "result.json")["final"]["model_dir"]
        weights = path / final / "model.safetensors"
        if not weights.exists():
            raise UserError(f"{weights} is gone; type the command of the run again, which makes it again")
        return check_output(weights)
    if (path / NEIGHBORS).exists():
        raise UserError(f"no model at {path}: a probe by nearest neighbors is none; set probe.classifier to logistic")
    if not path.exists():
        raise UserError(f"no model at {path}: it does not exist")
    raise UserError(f"no model at {path}: expected a run, a train stage, a registry, an exported file, or a checkpoint")


def has_info(path: Path) -> bool:
    """Whether a model says what it is; timm's weights, and checkpoints before version 0.2, do not."""
    weights = find_weights(path)
    state = read_checkpoint(weights)
    return weights.with_suffix(".json").exists() if state is None else state.get("info") is not None


def read_info(path: Path) -> ModelInfo:
    """What a run folder, a stage folder, an exported file or a checkpoint says of its model.

    Raises:
        UserError: it says nothing.
    """
    weights = find_weights(path)
    if (state := read_checkpoint(weights)) is not None:
        if state.get("info") is None:
            raise UserError(f"{path} does not say what its model is; name its stage, or start from it with mode: init")
        info, source = parse(ModelInfo, state["info"], str(weights)), weights
    else:
        source = weights.with_suffix(".json")
        info = parse(ModelInfo, read_output(source), str(source))
    check_shape(_Lineage, info.lineage, source)
    return info


def read_state(path: Path) -> dict[str, Tensor]:
    """The weights in a .safetensors file, in a .pth file as timm writes it, or the averaged ones of a checkpoint.

    Raises:
        UserError: the file is broken.
    """
    weights = find_weights(path)
    if (saved := read_checkpoint(weights)) is not None:
        network = saved if "ema" in saved else next(v for v in saved.values() if isinstance(v, dict) and "ema" in v)
        return dict(network["ema"])
    try:
        if weights.suffix == ".safetensors":
            state: dict[str, Tensor] = load_file(weights)
        else:
            state = timm.models.load_state_dict(str(weights), weights_only=True)
    except (SafetensorError, OSError, UnpicklingError, RuntimeError, EOFError) as error:
        kind = "safetensors file" if weights.suffix == ".safetensors" else "file of PyTorch weights"
        raise UserError(f"{weights} is not a readable {kind}: {error}") from error
    return state


def load_model(path: Path, *, dropout: bool = False) -> tuple[nn.Module, ModelInfo]:
    """Build the architecture and load its weights exactly; the model is in eval mode, on the CPU.

    With `dropout` it has that which it was trained with, for those who turn it on.

    Raises:
        UserError: there is no model, weights and architecture disagree, or it cannot take images of its input size.
    """
    weights = find_weights(path)  # once, as a registry may have another champion a moment later
    info = read_info(weights)
    size = {f"input_size in {weights.with_suffix('.json')}": info.input_size[-1]}
    check_forward(info.architecture, len(info.classes), size, model_args=info.model_args, trains=False)
    kept = info.dropout if dropout else 0.0
    model = build(info.architecture, len(info.classes), dropout=kept, model_args=info.model_args)
    if dropout:
        add_dropout(model, info.block_dropout, info.dropout_at)
    make_room(model, info.preprocessing, info.input_size[-1])
    if (trained := info.lineage.get("plugins", {})) != (here := plugins_of(info.architecture)):
        raise UserError(
            f"{path} was trained with {info.architecture} of {_named(trained)}, and here it is that of {_named(here)}; "
            "pass the plugin as it was, or train again"
        )
    try:
        model.load_state_dict(read_state(weights))
    except RuntimeError as error:
        raise UserError(f"{weights} does not fit {info.architecture}: {error}") from error
    return model.eval(), info


def _named(plugins: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({digest[:8]})" for name, digest in plugins.items()) or "no plugin"


_PREDICTS_BY = {
    *("architecture", "model_args", "classes", "input_size"),
    *("mean", "std", "preprocessing", "crop", "interpolation"),
}


def model_digest(path: Path) -> str:
    """A digest of all that a model's predictions depend on: its weights, how its model.json says that it sees images,
    and the plugin that defines its architecture, if one does.

    A stage and a file that was exported from it have the same digest.
    """
    weights = find_weights(path)
    sha256 = digest_once(weights)
    if not weights.with_suffix(".json").exists():
        return sha256
    info = read_info(weights)
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
    for path in (out, out.with_suffix(".json")):
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file; choose another name")
    weights = find_weights(source)
    info = read_info(weights)
    data = weights.read_bytes() if weights.suffix == ".safetensors" else _as_safetensors(read_state(weights))
    if out.exists() and out.read_bytes() != data:
        raise UserError(f"{out} exists and holds another model; choose another name, or delete it")
    beside, content = out.with_suffix(".json"), info.model_dump(mode="json", by_alias=True)
    if beside.exists() and read_json(beside) != content:
        raise UserError(f"{beside} exists and is not of this model; choose another name, or delete it")
    write_bytes(out, data)
    write_json(beside, content)
    return info
