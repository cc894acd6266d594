"""The evaluation of a training's networks on val, while they are trained and at the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import torch
from torch import nn

from pipeline.arrays import F32Array
from pipeline.config import CropMode, Interpolation
from pipeline.evaluate.dead_units import DeadUnits
from pipeline.evaluate.judged import write_judged
from pipeline.evaluate.metrics import compute_metrics
from pipeline.evaluate.patches import Pyramid, patches_of
from pipeline.evaluate.predictor import Predictor, predict, reader_of
from pipeline.models.format import ModelInfo
from pipeline.shards.dataset import open_split
from pipeline.shards.reader import Reader
from pipeline.train.network import Network
from pipeline.train.setup import Setup

log = logging.getLogger("selftrain.train")


class Validation:
    """Evaluates networks on val, the split that every choice is made on. The ranks share the work."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.val = open_split(setup.job.data, "val")
        self._readers: dict[tuple[int, Interpolation, CropMode], Reader | Pyramid] = {}

    def evaluate(self, networks: Mapping[str, Network]) -> dict[str, float]:
        """The figures of the averaged weights, as columns of metrics.jsonl; after the first network only accuracies."""
        values: dict[str, float] = {}
        for number, (name, network) in enumerate(networks.items()):
            if network.info is None:
                continue
            counts = self.setup.job.evaluate.dead_units and not number
            predictor = self._predictor(network.ema.model, network.info)
            with DeadUnits(network.ema.model) if counts else nullcontext() as dead:
                log_probs = self._predict(predictor)
            if dead is not None:
                values |= self._share_of(dead, network.info.architecture)
            metrics = compute_metrics(log_probs, self.val.labels)
            if number:
                values[f"{name}_val_top1"] = metrics.top1
                continue
            by = self.setup.job.best_by
            values |= {"val_top1": metrics.top1, "val_nll": metrics.nll, f"val_{by}": metrics.to_json()[by]}
        return values

    def _share_of(self, dead: DeadUnits, architecture: str) -> dict[str, float]:
        share = dead.share(self.setup.ranks)
        if share is None:
            log.warning(
                "evaluate.dead_units: %s has no activation whose units could be dead; set it to false", architecture
            )
        return {} if share is None else {"dead_units": share}

    def write(self, out: Path, model: nn.Module, info: ModelInfo) -> None:
        """Evaluate a model and write it into a stage folder. Every rank takes part; the main rank writes."""
        log_probs = self._predict(self._predictor(model, info))
        if not self.setup.ranks.is_main:
            return
        write_judged(out, model.state_dict(), info, log_probs, self.val.labels)

    def _predictor(self, model: nn.Module, info: ModelInfo) -> Predictor:
        job = self.setup.job
        how = {"precision": job.runtime.precision, **patches_of(job.evaluate)}
        return Predictor(model, info, device=self.setup.accelerator.device, **how)

    def _predict(self, predictor: Predictor) -> F32Array:
        """The log-probabilities of val, [N, C]."""
        job, accelerator, seen = self.setup.job, self.setup.accelerator, predictor.info.seen
        if seen not in self._readers:
            self._readers[seen] = reader_of(predictor.info, self.val, job.data, job.evaluate.scales)
        mine = predict(
            predictor,
            self._readers[seen],
            len(self.val),
            job.evaluate.batch_size,
            rank=accelerator.process_index,
            num_ranks=accelerator.num_processes,
        )
        if accelerator.num_processes == 1:
            return mine
        total = accelerator.reduce(torch.from_numpy(mine).to(accelerator.device), "sum")
        return cast(F32Array, total.cpu().numpy())
