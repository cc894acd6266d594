"""Models of which it is known what they answer, and runs that end with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from pipeline.arrays import I64Array
from pipeline.config import Config, Data, Evaluate, Runtime, dump_yaml, parse
from pipeline.evaluate.predictor import predict_by
from pipeline.models.format import ModelInfo, read_info, save_model
from pipeline.packing.pack import pack
from pipeline.shards.dataset import open_split
from support.images import png, write_files
from support.saved import save_random

CLASSES = ("cat", "dog", "emu")
RUNTIME = Runtime(device="cpu", precision="fp32", threads=1)


def run_with(folder: Path, model: Path, data: Path | None = None) -> Path:
    """A finished run on packed images whose final model this is."""
    stage = folder / "rounds/0/train-0"
    save_model(stage / "model.safetensors", load_file(model), read_info(model))
    raw = {"data": {"root": str(data)} if data else {}, "runtime": RUNTIME.model_dump(mode="json")}
    (folder / "config.yaml").write_text(dump_yaml(parse(Config, raw, "tests")))
    figures = {"top1": 0.5, "top5": 1.0, "nll": 1.0, "ece": 0.1, "num_samples": 8, "interval": [0.2, 0.8]}
    final = {"round": 0, "val_top1": 0.5, "control_dir": None, "model_dir": "rounds/0/train-0"}
    result = {"rounds": [], "final": {**final, "test": {"final": figures}}}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "run.lock").touch()
    return folder


def answers(model: Path, data: Path) -> I64Array:
    """What a model answers on val, [N]."""
    given = Data(root=data, cache="never")
    return predict_by(model, open_split(given, "val"), given, Evaluate(), RUNTIME).argmax(1)


def pack_val(folder: Path, labels: Sequence[int]) -> Path:
    """Pack one image per label; images are the same whatever their labels are."""
    files = {f"{CLASSES[label]}/{number:03}.png": png(number) for number, label in enumerate(labels)}
    pack(write_files(folder / "images", files), folder / "packed", split="val", known=CLASSES)
    return folder / "packed"


def even_model(path: Path, data: Path, seed: int) -> Path:
    """A random model that names every class for about as many of these images."""
    save_random(path, CLASSES, seed=seed)
    given = Data(root=data, cache="never")
    log_probs = predict_by(path, open_split(given, "val"), given, Evaluate(), RUNTIME)
    state = load_file(path)
    (bias,) = (name for name, value in state.items() if name.endswith("bias") and value.shape == (len(CLASSES),))
    state[bias] = state[bias] - torch.from_numpy(np.median(log_probs, 0))
    save_model(path, state, read_info(path))
    return path


def reordered(path: Path, model: Path, order: Sequence[int]) -> Path:
    """The same model, with its classes in another order."""
    state, info = load_file(model), read_info(model)
    state = {
        name: value[list(order)] if len(value.shape) and len(value) == len(CLASSES) else value
        for name, value in state.items()
    }
    values = {**info.model_dump(by_alias=True), "classes": tuple(info.classes[i] for i in order)}
    save_model(path, state, ModelInfo(**values))
    return path
