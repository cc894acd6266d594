"""The parts that a learner is made of: the networks, batches and views of one train stage's job."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor

from pipeline.arrays import F64Array
from pipeline.config import NetworkSettings, Runtime, StrongView, WeakView, changed
from pipeline.errors import UserError
from pipeline.models import build
from pipeline.models.dropping import add_dropping
from pipeline.models.format import ModelInfo, read_info, read_state
from pipeline.models.initialization import initialize
from pipeline.models.memory_format import channels_last
from pipeline.models.preprocessing import Normalization, arrays_in, keep_arrays
from pipeline.models.weights import check_finite, load_start, tells_itself
from pipeline.randomness import key_of, reseed_torch
from pipeline.selection.targets import Targets
from pipeline.shards.dataset import Dataset, open_split
from pipeline.shards.order import Order
from pipeline.shards.reader import Reader
from pipeline.stages import progress
from pipeline.stages.jobs import TrainJob
from pipeline.stages.ranks import Ranks
from pipeline.train.batches import Batches, Stream
from pipeline.train.class_sizes import Copies, balanced_copies, shares_of
from pipeline.train.network import Network, prepare
from pipeline.views import ResizedCrops, Views
from pipeline.views.statistics import Statistics, measure

NUM_FIRST_IMAGES = 1000


class Setup:
    """Makes the networks, batches and views that a learner needs. Every rank has one."""

    def __init__(self, job: TrainJob, ranks: Ranks, lineage: dict[str, str]) -> None:
        self.job = job
        self.ranks = ranks
        self.lineage = lineage
        networks = [job.training] if job.teacher is None else [job.training, job.teacher]
        self.accelerator = make_accelerator(job.runtime, thaws=any(network.thaw_steps for network in networks))

    @cached_property
    def labeled(self) -> Dataset:
        """The labeled split."""
        return open_split(self.job.data, "labeled")

    @cached_property
    def unlabeled(self) -> Dataset:
        """The unlabeled split."""
        return open_split(self.job.data, "unlabeled")

    @cached_property
    def labeled_copies(self) -> Copies | None:
        """How often each labeled image occurs per epoch, [N]; None means once."""
        labeled, most = self.labeled, self.job.training.balance_labeled
        if most == 1:
            return None
        return balanced_copies(labeled.labels, labeled.ids, len(labeled.classes), most, self.job.seed)

    @cached_property
    def statistics(self) -> Statistics:
        """Those of the labeled images at the size of the training: one pass over them, which every rank makes."""
        job, labeled = self.job, self.labeled

        def report(done: int) -> None:
            progress.report(job.out, done, len(labeled), "images", "statistics of the labeled images")

        whitens = job.training.preprocessing == "pca_whitening"
        return measure(self._reader(labeled), len(labeled), report, products=whitens)

    @cached_property
    def normalization(self) -> Normalization:
        """How the pixels of the training become its networks' input: by its config, by the statistics of the labeled
        images, or as the model does it that the training uses or continues."""
        training, start = self.job.training, self.job.training.start
        if start is not None and not start.begins_anew and tells_itself(start):
            info = read_info(Path(start.model))
            given = Normalization(info.mean, info.std)
            is_given = info.preprocessing == "given"
            return given if is_given else arrays_in(read_state(Path(start.model)), info.std)
        if training.preprocessing == "given":
            return Normalization(training.mean, training.std)
        found = self.statistics
        if training.preprocessing in ("mean", "mean_std"):
            std = training.std if training.preprocessing == "mean" else found.std.tolist()
            return Normalization(found.mean.tolist(), std)
        mean = torch.from_numpy(found.mean_image).float()
        if training.preprocessing == "mean_image":
            return Normalization(mean, training.std)
        return Normalization(mean, (1.0, 1.0, 1.0), torch.from_numpy(found.whitening).float())

    @property
    def _components(self) -> F64Array | None:
        return self.statistics.components if self.job.training.weak.pca_color else None

    def network(self, settings: NetworkSettings, *name: str, role: str = "") -> Network:
        """A network to train, with random weights or with those of `settings.start`.

        Args:
            settings: The settings of the network.
            name: A name that gives a network of the stage random weights of its own.
            role: The role in its model.json; by default it is the job's role.

        Raises:
            UserError: the architecture or the start is missing or does not fit, or has numbers that are not finite.
        """
        info = self._info(settings, role or self.job.role)
        reseed_torch(key_of(self.job.seed, "init", self.job.round, *name))
        built = build(
            info.architecture,
            len(self.labeled.classes),
            dropout=settings.dropout,
            stochastic_depth=settings.stochastic_depth,
            model_args=info.model_args,
        )
        initialize(built, settings)  # on the CPU, so that the draws are the same on every device
        model = channels_last(add_dropping(built, settings), self.accelerator.device)
        if settings.init is None and hasattr(model, "init_from_images"):
            model.init_from_images(self.first_images()[0])  # type: ignore[operator]
        load_start(model, settings, info.classes)
        keep_arrays(model, self.normalization)
        check_finite(model, settings)
        made = prepare(model, settings, self.accelerator, self.ranks, info=info, compiled=self.job.runtime.compile)
        if settings.logit_adjustment:
            shares = shares_of(self.labeled.labels, self.labeled_copies, len(self.labeled.classes))
            adjustment = torch.from_numpy(settings.logit_adjustment * np.log(shares)).float()
            made.adjustment = adjustment.to(self.accelerator.device)
        return made

    def views(self) -> Views:
        """The maker of the views of the training's images."""
        training = self.job.training
        return Views(
            training.weak,
            training.strong,
            training.image_size,
            device=self.accelerator.device,
            **self.normalization._asdict(),
            key_coordinates=(self.job.seed, self.job.round),
            components=self._components,
        )

    def batches(
        self,
        *,
        unlabeled: bool = False,
        copies: npt.NDArray[np.integer] | None = None,
        targets: Targets | None = None,
    ) -> Batches:
        """The batches of the training.

        Args:
            unlabeled: Whether unlabeled images are among them.
            copies: How often each unlabeled image occurs per epoch, [N]; None means once.
            targets: The targets of the unlabeled images; None if they have none, but a weak and a strong view.
        """
        training = self.job.training
        crops = self._crops(num_views=2 if unlabeled and targets is None else 1)
        stream = self._stream(self.unlabeled, training.unlabeled_batch_size, crops, copies) if unlabeled else None
        return Batches(
            self._stream(self.labeled, training.batch_size, crops, self.labeled_copies),
            stream,
            targets,
            num_classes=len(self.labeled.classes),
            accumulation=training.accumulation,
            rank=self.accelerator.process_index,
            num_ranks=self.accelerator.num_processes,
            pin=self.accelerator.device.type == "cuda",
        )

    def first_images(self) -> tuple[Tensor, Tensor]:
        """Labeled images from all over the data set, normalized, [N, 3, S, S], and their labels [N]: for initialization
        that depends on the data, and for inspection."""
        training, device, num = self.job.training, self.job.runtime.device, len(self.labeled)
        rows = np.linspace(0, num - 1, min(num, NUM_FIRST_IMAGES)).astype(np.int64)  # rows may be sorted by class
        images = torch.from_numpy(self._reader(self.labeled).read(rows)).to(device)
        views = Views(WeakView(), StrongView(), training.image_size, device=device, **self.normalization._asdict())
        return views.center(images), torch.from_numpy(self.labeled.labels[rows]).long().to(device)

    def _info(self, settings: NetworkSettings, role: str) -> ModelInfo:
        """The model.json that a network is saved with: its own, or that of the model that it continues."""
        job, classes, start = self.job, self.labeled.classes, settings.start
        if start is not None and not start.begins_anew and tells_itself(start):
            info = read_info(Path(start.model))
            if info.classes != classes:
                raise UserError(
                    f"`start.model`: {start.model} knows other classes than the data "
                    f"({', '.join(info.classes[:5])}, ...); use mode: init to train it on these"
                )
            if start.mode == "use":
                return info
        lineage = {"role": role, **self.lineage, "round": job.round, "seed": job.seed}
        info, found = ModelInfo.of(settings, job.training, classes, lineage), self.normalization
        if isinstance(found.mean, Tensor):
            values: dict[str, Any] = {"mean": found.mean.mean((0, 1)).tolist()}
            values["preprocessing"] = "mean_image" if found.whitening is None else "pca_whitening"
        else:
            values = {"mean": found.mean}
        return changed(info, std=found.std, **values)

    def _reader(self, dataset: Dataset) -> Reader:
        training, data = self.job.training, self.job.data
        if training.weak.cuts_stored_images:  # which is cut from the stored images
            data = changed(data, cache="never")
        return Reader(
            dataset, training.image_size, data, interpolation=training.interpolation, crop_mode=training.crop_mode
        )

    def _crops(self, num_views: int) -> ResizedCrops | None:
        """What cuts the images of the training, with a crop per view; None if they are read whole."""
        job, training = self.job, self.job.training
        if not training.weak.cuts_stored_images:
            return None
        return ResizedCrops(
            training.image_size,
            training.weak,
            training.interpolation,
            key_coordinates=(job.seed, job.round),
            num_views=num_views,
        )

    def _stream(
        self,
        dataset: Dataset,
        batch_size: int,
        crops: ResizedCrops | None,
        copies: npt.NDArray[np.integer] | None = None,
    ) -> Stream:
        """An endless stream of a data set's rows. Each occurs as often per epoch as `copies` [N] says."""
        job = self.job
        order = Order(
            dataset.shard_starts,
            copies,
            seed=job.seed,
            stream=dataset.name,
            round=job.round,
            window_shards=job.data.window_shards,
        )
        return Stream(dataset, self._reader(dataset), order, batch_size, crops)


def make_accelerator(runtime: Runtime, *, thaws: bool = False) -> Accelerator:
    """An Accelerator for the resolved device and precision of a run; it uses the ranks that have joined.

    With `thaws`, a network has steps in which only its classifier trains.
    """
    precision = {"fp32": "no"}.get(runtime.precision, runtime.precision)
    # DDP would copy rank 0's BatchNorm statistics to the others before each step, but updates average them already.
    # To find out what has no gradient it walks over the graph of each step, without which it would wait for them all.
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=thaws)]
    return Accelerator(cpu=runtime.device == "cpu", mixed_precision=precision, kwargs_handlers=handlers)
