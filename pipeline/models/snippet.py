"""The lines of Python by which an exported file is used, as `selftrain export` prints them."""

from __future__ import annotations

from pathlib import Path

from pipeline.models.alterations import split_args
from pipeline.models.compat import ops_were_missing
from pipeline.models.format import ModelInfo
from pipeline.models.preprocessing import PREFIX
from pipeline.models.registry import import_of, is_known


def snippet(info: ModelInfo, path: Path) -> list[str]:
    """Lines that make `model` of an exported file; and `normalize`, where its images need arrays in the file.

    What timm can build is built by timm alone.
    """
    lines = []
    if (module := import_of(info.architecture)) is not None:
        lines.append(f"import {module}  # registers {info.architecture} with timm")
    elif not is_known(info.architecture):
        lines.append(f"# first import the plugin that registers {info.architecture} with timm")
    elif ops_were_missing():
        lines.append("import pipeline.models  # lets timm import torchvision beside this build of torch")
    has_arrays = info.preprocessing != "given"
    if altered := list(split_args(info.model_args)[1]):
        lines += [
            "from pathlib import Path",
            f"from pipeline.models.format import load_model  # timm has no argument for {', '.join(altered)}",
            f"model, info = load_model(Path({str(path)!r}))",
        ]
        return lines + (["from safetensors.torch import load_file", *_arrays(info, path)] if has_arrays else [])
    call = f"{info.architecture!r}, num_classes={len(info.classes)}"
    arguments = "".join(f", {key}={value!r}" for key, value in info.model_args.items())
    if not has_arrays:
        call += f", checkpoint_path={str(path)!r}{arguments}"
        return [*lines, "import timm", f"model = timm.create_model({call}).eval()"]
    return [
        *lines,
        "import timm",
        "from safetensors.torch import load_file",
        *_arrays(info, path),
        f"model = timm.create_model({call}{arguments}).eval()",
        f"model.load_state_dict({{name: tensor for name, tensor in state.items() if not name.startswith({PREFIX!r})}})",
    ]


def _arrays(info: ModelInfo, path: Path) -> list[str]:
    """Lines of a function that normalizes images by the arrays in the file."""
    size = info.input_size[-1]
    lines = [
        "import torch",
        f"state = load_file({str(path)!r})",
        f"def normalize(images):  # [B, 3, {size}, {size}] in 0..1 -> what the model is given",
        f"    pixels = images.permute(0, 2, 3, 1) - state['{PREFIX}mean']",
    ]
    if info.preprocessing == "mean_image":
        lines.append(f"    pixels = pixels / torch.tensor({list(info.std)})")
    else:
        lines.append(f"    pixels = (pixels.flatten(1) @ state['{PREFIX}whitening']).view(pixels.shape)")
    return [*lines, "    return pixels.permute(0, 3, 1, 2)", "# e.g. model(normalize(images)).softmax(1)"]
