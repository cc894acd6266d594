"""Benchmarks, which no test runs, name what exists."""

from __future__ import annotations

import ast
import runpy
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.command import ROOT
from support.imports import sources

from pipeline.config import Config, load_config
from pipeline.files import write_json
from pipeline.models import build
from pipeline.models.cost import cost_at
from pipeline.models.poly_inception import Inception
from pipeline.models.polynet import PolyNet
from pipeline.runs.dry_run import check_training
from pipeline.stages.jobs import TrainJob

architectures = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "architectures.py")))


@pytest.mark.parametrize("path", list(sources("benchmarks")), ids=lambda path: path.name)
def test_a_benchmark_imports_what_exists(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("pipeline", "flows"):
            module = import_module(node.module or "")
            names = [alias.name for alias in node.names]
            absent = [n for n in names if not hasattr(module, n) and find_spec(f"{node.module}.{n}") is None]
            assert absent == [], f"{path} imports {absent} from {node.module}"


def test_the_configs_of_the_comparison_of_methods_parse() -> None:
    comparison = runpy.run_path(str(ROOT / "benchmarks" / "compare_methods.py"))
    for method in comparison["METHODS"].values():
        load_config(comparison["CONFIGS"] / method.config, ["data.root=shards/cifar10_4k", *method.overrides])


def test_the_networks_of_the_benchmark_of_architectures_can_be_trained() -> None:
    """Each takes a step without values, at its size; those of one family grow in operations."""
    costs: dict[str, list[int]] = {}
    for name, network in architectures.NETWORKS.items():
        job = architectures.job_of(name, 0, 300, Path("shards"), Path("out"))
        check_training("teacher", job.training, 10, 1)
        side = (3, network.image_size, network.image_size)
        cost = cost_at(network.model, 10, side, tuple(network.model_args.items()))
        costs.setdefault(network.family, []).append(cost.flops)
    assert all(found == sorted(found) for found in costs.values())
    folders = {architectures.job_of("resnet9", seed, 300, Path("shards"), Path("out")).out for seed in (0, 1)}
    assert len(folders) == 2, "a seed has a folder of its own"


@pytest.mark.parametrize("name", architectures.VARIANTS)
def test_each_variant_of_polynet_can_be_trained(name: str) -> None:
    """All 18 of the ablation, its baseline, and the two of the mixture take a step without values."""
    training = architectures.job_of(name, 0, 300, Path("shards"), Path("out")).training
    asked = {key: value for key, value in training.model_args.items() if key.startswith("stage_")}
    assert asked == {key: value for key, value in architectures.VARIANTS[name].model_args.items() if key in asked} != {}
    check_training("teacher", training, 10, 1)


@pytest.mark.parametrize("name", [*architectures.SIZES, *architectures.FULL])
def test_each_depth_and_width_of_polynet_and_the_networks_of_the_papers_can_be_trained(name: str) -> None:
    check_training("teacher", architectures.job_of(name, 0, 300, Path("shards"), Path("out")).training, 10, 1)


def test_polynet_costs_more_the_deeper_and_the_wider_it_is() -> None:
    found = {name: (network.model, tuple(network.model_args.items())) for name, network in architectures.SIZES.items()}
    flops = {name: cost_at(model, 10, (3, 32, 32), args).flops for name, (model, args) in found.items()}
    for names in (("depth-1", "depth-2", "depth-4"), ("width-0.125", "depth-2", "width-0.5")):
        costs = [flops[f"polynet-{name}"] for name in names]
        assert costs == sorted(set(costs)), "strictly growing"


def test_a_finished_training_becomes_a_row_a_table_and_a_plot(teacher: Path, digits: Config) -> None:
    job = TrainJob.of(digits, teacher, "teacher", 0, digits.teacher)
    row = architectures.row_of("resnet9", job, teacher.parent)
    assert row.last_loss < row.first_loss
    assert row.steps == digits.teacher.steps
    assert row.interval[0] < row.val_top1 < row.interval[1]
    assert "| resnet9 | 0 | 8 | 0.08M |" in architectures.table([row])
    assert architectures.draw([row], teacher.parent).startswith(b"\x89PNG")


def test_the_variants_of_polynet_are_those_of_the_paper() -> None:
    """IR 3-6-3 with one stage replaced by each of six kinds, and the mixture in stage B of IR 6-12-6."""
    rows = list(runpy.run_path(str(ROOT / "benchmarks" / "polynet_variants.py"))["variants"]())
    assert len({name for name, _, _ in rows}) == len(rows) == 1 + 3 * 6 + 2
    blocks = {"poly-2": 1, "poly-3": 1, "mpoly-2": 2, "mpoly-3": 3, "2-way": 2, "3-way": 3}
    for name, model, args in rows[:-2]:
        expected = [3, 6, 3]
        stage, _, kind = name.partition("-")
        if stage in "abc":
            expected["abc".index(stage)] *= blocks[kind]
        assert _blocks(model, args) == expected, name
    assert [_blocks(model, args) for _, model, args in rows[-2:]] == [[6, 12, 6], [6, 4 * (3 + 3 + 1), 6]]


def _blocks(model: str, args: dict[str, object]) -> list[int]:
    """The Inception blocks with weights of their own in each stage of a PolyNet, which takes images of 32 pixels."""
    with torch.device("meta"):
        net = build(model, 10, model_args=args)  # type: ignore[arg-type]
        assert isinstance(net, PolyNet)
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    return [sum(isinstance(part, Inception) for part in stage.modules()) for stage in net.stages]


def test_the_plot_of_photographs_is_of_what_is_finished(tmp_path: Path) -> None:
    clothing = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "clothing.py")))
    finished = {"100-0-probe": 0.5, "300-0-probe": 0.75, "300-1-probe": 0.5, "300-0-committee": 0.875, "100-0-uda": 0.5}
    for name, test_top1 in finished.items():
        figures = {"test_top1": test_top1, "control_test_top1": None, "teacher_test_top1": 0.25}
        figures["model"] = "run/rounds/3/probe-1d6cd7a2"
        write_json(tmp_path / "figures" / f"{name}.json", figures)
    assert clothing._by_labels(tmp_path, "probe", "test_top1") == {(100, 0): 50, (300, 0): 75, (300, 1): 50}
    assert clothing._by_labels(tmp_path, "committee", "control_test_top1") == {(300, 0): 25}, "the probe is the control"
    gains = clothing._gains({(100, 0): 80.0, (300, 0): 85.0, (300, 1): 82.0}, {(300, 1): 80.0, (300, 0): 81.0})
    assert gains == {(300, 0): 4, (300, 1): 2}, "of equal carves, whatever their order; without a partner there is none"
    assert clothing.plot(tmp_path).startswith(b"\x89PNG")
