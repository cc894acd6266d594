"""Forward passes without noise, by which models label and are evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.arrays import F32Array, I64Array
from pipeline.config import CropMode, Data, Evaluate, Interpolation, Runtime, StrongView, WeakView
from pipeline.config.evaluate import Crops, Patches
from pipeline.evaluate.patches import Pyramid, cut, patches_of, reader_at, sides_of, unpacked
from pipeline.models.folding import FoldedBatchNorm
from pipeline.models.format import ModelInfo, load_model
from pipeline.models.forward import predict_both, predict_logits
from pipeline.models.mc_dropout import sample_logits
from pipeline.models.memory_format import channels_last
from pipeline.models.preprocessing import normalization_of
from pipeline.shards.dataset import Dataset
from pipeline.shards.decode import Pixels
from pipeline.shards.reader import Reader
from pipeline.stages.machine import device_of
from pipeline.threads import read_ahead
from pipeline.views import Views

Seen = tuple[tuple[int, ...], Interpolation, CropMode]
"""How images are read for a model: at which sides, and how they are resized."""


def reader_of(info: ModelInfo, dataset: Dataset, data: Data, scales: Sequence[float] = (1.0,)) -> Reader | Pyramid:
    """The reader that reads the images of a data set as a model sees them, at these scales."""
    return reader_at(info, dataset, data, sides_of(info.input_size[-1], info.crop_pct, "center", scales))


class Predictor:
    """A model in eval mode on a device. It sees a centre crop of each image, at its own input size, without noise; or,
    as `flip`, `crops` and `scales` say, several patches, whose probabilities are averaged.

    With `mc_dropout` a prediction is the mean of so many passes with dropout on. BatchNorm is folded into convolutions,
    which one pass of an image prepares; when the weights have changed since, predictions are errors.

    Raises:
        UserError: it cannot see such patches.
    """

    def __init__(
        self,
        model: nn.Module,
        info: ModelInfo,
        *,
        device: torch.device,
        precision: str,
        flip: bool,
        crops: Crops = "center",
        scales: Sequence[float] = (1.0,),
        mc_dropout: int = 0,
    ) -> None:
        # Always channels_last, so that a model predicts the same bits in training, labeling and evaluation.
        self.model = channels_last(model, device).eval()
        self.info = info
        self.device = device
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self.crops, self.mc_dropout = crops, mc_dropout
        self.mirrors = flip or crops == "ten"
        self.sides = sides_of(info.input_size[-1], info.crop_pct, crops, scales)
        normalization = normalization_of(model, info.mean, info.std)._asdict()
        self.views = Views(WeakView(), StrongView(), info.input_size[-1], device=device, **normalization)
        self.folded = FoldedBatchNorm(self.model, self.trial_view())

    @torch.inference_mode()
    def trial_view(self) -> Tensor:
        """What the model sees of an image of all brightnesses, [1, 3, S, S], to try it with."""
        size = self.info.input_size[-1]
        image = torch.linspace(0, 255, 3 * size * size, device=self.device).to(torch.uint8).view(1, size, size, 3)
        return self.views.center(image)

    @property
    def seen(self) -> Seen:
        """How images are read for it; predictors of which it is equal see the same pixels."""
        return self.sides, self.info.interpolation, self.info.crop

    def read(self, reader: Reader | Pyramid, rows: I64Array) -> Tensor:
        """The images of rows [B] on the host, uint8 [B, R, R, 3], or [B, P, 3] at several scales; pinned for a GPU,
        which copies them by itself."""
        return self.on_host(reader.read(rows))

    def on_host(self, pixels: Pixels) -> Tensor:
        """Images as `logits` takes them, pinned for a GPU."""
        images = torch.from_numpy(pixels)
        return images.pin_memory() if self.device.type == "cuda" else images

    @torch.inference_mode()
    def logits(self, images_BHWC: Tensor, rows: I64Array | None = None) -> Tensor:
        """Images uint8 as `reader_of` reads them, [B, R, R, 3] -> logits float32 [B, C] on the device.

        Of several patches they are the log of the mean probability, which serves as logits; scales count alike. With
        `mc_dropout` it is that of samples of each patch, which need the images' rows [B].
        """

        def logits_of(view: Tensor) -> Tensor:
            with self.folded:
                if not self.mc_dropout:
                    return predict_logits(self.model, view, self.dtype)
                assert rows is not None
                return mean_logits(sample_logits(self.model, view, self.dtype, rows, self.mc_dropout))

        return mean_logits([mean_logits([logits_of(view) for view in views]) for views in self._seen(images_BHWC)])

    @torch.inference_mode()
    def logits_and_features(self, images_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """The same logits, and what the classifier sees of each image's centre, at the first scale: float32 [B, D]."""
        features: list[Tensor] = []

        def logits_of(view: Tensor) -> Tensor:
            with self.folded:
                if features:
                    return predict_logits(self.model, view, self.dtype)
                logits, of_centre = predict_both(self.model, view, self.dtype)
            features.append(of_centre)
            return logits

        logits = mean_logits([mean_logits([logits_of(view) for view in views]) for views in self._seen(images_BHWC)])
        return logits, features[0]

    def _seen(self, images_BHWC: Tensor) -> Iterator[Iterator[Tensor]]:
        """Yield, per scale, what the model sees of each image, one after the other: the centre first."""
        images = images_BHWC.to(self.device, non_blocking=True)
        for level, side in zip(unpacked(images, self.sides), self.sides, strict=True):
            yield self._patches(level, side)

    def _patches(self, images: Tensor, side: int) -> Iterator[Tensor]:
        for patch in cut(images, side, self.info.input_size[-1], self.crops):
            views = self.views.center(patch)
            yield views
            if self.mirrors:
                yield views.flip(3)


def open_predictor(path: Path, section: Patches, runtime: Runtime, *, mc_dropout: int = 0) -> Predictor:
    """The predictor of a saved model, which sees images as a section of the config says, on the device of this process.

    Raises:
        UserError: there is no model, or it cannot see such patches.
    """
    model, info = load_model(path, dropout=mc_dropout > 0)
    how = {**patches_of(section), "precision": runtime.precision, "mc_dropout": mc_dropout}
    return Predictor(model, info, device=device_of(runtime), **how)


def batches_of(rows: I64Array, batch_size: int) -> Iterator[I64Array]:
    """Yield rows [N] in their order, in batches; the last one may be smaller."""
    return (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """The logits of an averaged prediction: the log of the mean softmax of several [B, C]. One stays as it is."""
    if len(logits) == 1:
        return logits[0]
    stacked = torch.stack([torch.log_softmax(z, dim=1) for z in logits])
    return torch.logsumexp(stacked, dim=0) - float(np.log(len(logits)))


def predict(
    predictor: Predictor,
    reader: Reader | Pyramid,
    num_rows: int,
    batch_size: int,
    *,
    rank: int = 0,
    num_ranks: int = 1,
    check_stop: Callable[[], None] = lambda: None,
) -> F32Array:
    """The log-probabilities [N, C] of a whole dataset. `check_stop` is called before each batch and may raise.

    A rank fills every num_ranks-th batch and leaves zeros elsewhere, so the sum over ranks is the whole result.
    """
    result = np.zeros((num_rows, len(predictor.info.classes)), np.float32)
    starts = range(rank * batch_size, num_rows, num_ranks * batch_size)
    batches = (np.arange(start, min(start + batch_size, num_rows), dtype=np.int64) for start in starts)
    for rows, images in read_ahead(batches, partial(predictor.read, reader)):
        check_stop()
        result[rows] = torch.log_softmax(predictor.logits(images, rows), dim=1).cpu().numpy()
    return result


def predict_by(
    path: Path,
    dataset: Dataset,
    data: Data,
    evaluate: Evaluate,
    runtime: Runtime,
    *,
    mc_dropout: int = 0,
    check_stop: Callable[[], None] = lambda: None,
) -> F32Array:
    """The log-probabilities [N, C] of a saved model on a whole data set, which it sees as a section says.

    Raises:
        UserError: there is no model, or it cannot see the images so.
    """
    predictor = open_predictor(path, evaluate, runtime, mc_dropout=mc_dropout)
    reader = reader_of(predictor.info, dataset, data, evaluate.scales)
    return predict(predictor, reader, len(dataset), evaluate.batch_size, check_stop=check_stop)
