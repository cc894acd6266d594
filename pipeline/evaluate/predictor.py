"""Forward passes without noise, by which models label and are evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.arrays import F32Array, I64Array
from pipeline.config import Data, StrongView, WeakView
from pipeline.models.format import ModelInfo
from pipeline.models.forward import predict_both, predict_logits
from pipeline.models.mc_dropout import sample_logits
from pipeline.models.memory_format import channels_last
from pipeline.shards.dataset import Dataset
from pipeline.shards.decode import Pixels
from pipeline.shards.reader import Reader
from pipeline.threads import read_ahead
from pipeline.views import Views


def reader_of(info: ModelInfo, dataset: Dataset, data: Data) -> Reader:
    """The reader that reads the images of a data set as a model sees them."""
    return Reader(dataset, info.read_size, data, interpolation=info.interpolation, crop_mode=info.crop)


class Predictor:
    """A model in eval mode on a device. It sees a centre crop of each image, at its own input size, without noise.

    With `mc_dropout` a prediction is the mean of so many passes with dropout on.
    """

    def __init__(
        self,
        model: nn.Module,
        info: ModelInfo,
        *,
        device: torch.device,
        precision: str,
        flip: bool,
        mc_dropout: int = 0,
    ) -> None:
        # Always channels_last, so that a model predicts the same bits in training, labeling and evaluation.
        self.model = channels_last(model, device).eval()
        self.info = info
        self.device = device
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self.flip, self.mc_dropout = flip, mc_dropout
        self.views = Views(WeakView(), StrongView(), info.input_size[-1], mean=info.mean, std=info.std, device=device)

    def read(self, reader: Reader, rows: I64Array) -> Tensor:
        """The images of rows [B] on the host, uint8 [B, R, R, 3]; pinned for a GPU, which copies them by itself."""
        return self.on_host(reader.read(rows))

    def on_host(self, pixels: Pixels) -> Tensor:
        """Images as `logits` takes them, pinned for a GPU."""
        images = torch.from_numpy(pixels)
        return images.pin_memory() if self.device.type == "cuda" else images

    @torch.inference_mode()
    def logits(self, images_BHWC: Tensor, rows: I64Array | None = None) -> Tensor:
        """Images uint8 [B, R, R, 3], as `reader_of` reads them -> logits float32 [B, C] on the device.

        With `flip` they are the log of the mean probability of an image and its mirror image, which serves as logits.
        With `mc_dropout` it is that of samples, which need the images' rows [B].
        """
        if self.mc_dropout:
            assert rows is not None
            views = self._seen(images_BHWC)
            each = (sample_logits(self.model, view, self.dtype, rows, self.mc_dropout) for view in views)
            return mean_logits([logits for samples in each for logits in samples])
        return mean_logits([predict_logits(self.model, view, self.dtype) for view in self._seen(images_BHWC)])

    @torch.inference_mode()
    def logits_and_features(self, images_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """The same logits, and what the classifier sees of each image, not of its mirror image: float32 [B, D]."""
        centre, *mirrored = self._seen(images_BHWC)
        logits, features = predict_both(self.model, centre, self.dtype)
        return mean_logits([logits, *(predict_logits(self.model, view, self.dtype) for view in mirrored)]), features

    def _seen(self, images_BHWC: Tensor) -> list[Tensor]:
        """What the model sees of each image: the centre and, with `flip`, its mirror image."""
        views = self.views.center(self._crop(images_BHWC.to(self.device, non_blocking=True)))
        return [views, views.flip(3)] if self.flip else [views]

    def _crop(self, images: Tensor) -> Tensor:
        """The centre square of images that were read at the model's `read_size`, as timm cuts it."""
        size, read = self.info.input_size[-1], self.info.read_size
        if images.shape[1] != read:
            return images
        first = round((read - size) / 2)
        return images[:, first : first + size, first : first + size]


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
    reader: Reader,
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
