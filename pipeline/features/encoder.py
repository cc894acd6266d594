"""A frozen encoder: a network without its classifier, as the weights of a start describe it.

Shapes: B images of R pixels as they are read, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import Probe, Training
from pipeline.errors import UserError
from pipeline.evaluate.predictor import Predictor
from pipeline.models import build
from pipeline.models.alterations import ALTERATIONS
from pipeline.models.format import ModelInfo
from pipeline.models.forward import predict_features
from pipeline.models.registry import plugins_of
from pipeline.models.weights import check_finite, load_start, semantic_settings


def probe_of(training: Training) -> Probe:
    """The probe of a training that has one."""
    assert training.probe is not None
    return training.probe


def encoder_settings(training: Training) -> dict[str, Any]:
    """All that features depend on beside the images and the machine: the network, its start, and what it sees."""
    settings, probe = semantic_settings(training), probe_of(training)
    altered = (name for name in ALTERATIONS if name in settings)
    named = ("model", "model_args", *altered, "start", *plugins_of(training.model))
    return {
        **{name: settings[name] for name in named},
        "image_size": training.seen_size,
        "mean": training.mean,
        "std": training.std,
        "crop_pct": training.crop_pct,
        "interpolation": training.interpolation,
        "crop_mode": training.crop_mode,
        "flip": probe.flip,
        "batch_size": probe.batch_size,
    }


def build_encoder(
    training: Training, classes: tuple[str, ...], lineage: Mapping[str, Any]
) -> tuple[nn.Module, ModelInfo]:
    """The network of a training with the weights of its start, and its model.json.

    Its classifier has one output per class; what it predicts means nothing until it is replaced.

    Raises:
        UserError: there is no such start, it does not fit, or the network has no linear classifier.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what `start.allow_random` leaves at random is the same to whoever builds the encoder
        model = build(training.model, len(classes), model_args=training.built_with)
    load_start(model, training)
    check_finite(model, training)
    linear_classifier(model, training.model)
    return model, ModelInfo.of(training, training, classes, dict(lineage))


def linear_classifier(model: nn.Module, name: str) -> nn.Linear:
    """The last layer of a network. Raises UserError when it is not one linear layer, which a probe could replace."""
    head = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    if not isinstance(head, nn.Linear) or head.bias is None:
        found = "no classifier" if head is None else f"{type(head).__name__} as classifier"
        raise UserError(
            f"`model`: {name} has {found}, which a probe cannot stand in for; choose a network that ends in one linear "
            "layer with a bias (nearly all of timm's do)"
        )
    return head


class Encoder(Predictor):
    """A network in eval mode on a device, of which the features before its classifier are taken."""

    @torch.inference_mode()
    def features(self, images_BHWC: Tensor) -> Tensor:
        """Images uint8 [B, R, R, 3], as `reader_of` reads them -> features float32 [B, D] on the device.

        With `flip` they are the mean over an image and its mirror image.
        """
        seen = [view for views in self._seen(images_BHWC) for view in views]
        with self.folded:
            features = [predict_features(self.model, view, self.dtype) for view in seen]
        return torch.stack(features).mean(0)

    def check(self) -> None:
        """Refuse a network whose classifier does not read the features as they are.

        Raises:
            UserError: something lies between them, such as a dropout that is active, or a second head.
        """
        head = linear_classifier(self.model, self.info.architecture)
        with torch.inference_mode():
            view = self.trial_view()
            features = predict_features(self.model, view)
            fits = features.shape == (1, head.in_features)
            whole = self.model(view)
            same = fits and torch.allclose(head(features), whole, rtol=1e-3, atol=1e-3 * float(whole.abs().max()))
        if not same:
            raise UserError(
                f"`model`: the classifier of {self.info.architecture} reads other values than its features before the "
                f"head (they are of shape {list(features.shape)}), so a probe cannot stand in for it; choose another "
                "encoder"
            )
