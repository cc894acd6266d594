"""One training: a network, and the stream of images that it sees."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from pipeline.config.base import CropMode, Interpolation, NonNegative, Positive, Probability, technique
from pipeline.config.distillation import Distillation
from pipeline.config.mixing import Cutmix, Mixup
from pipeline.config.network import Adaptation, NetworkSettings, Optimizer
from pipeline.config.probe import Probe
from pipeline.config.schedule import AnySchedule
from pipeline.config.views import StrongView, WeakView

Deviation = Annotated[float, Field(gt=0)]
Preprocessing = Literal["given", "mean", "mean_std", "mean_image", "pca_whitening"]
COMPUTED: dict[str, tuple[str, ...]] = {
    "given": (),
    "mean": ("mean",),
    "mean_std": ("mean", "std"),
    "mean_image": ("mean",),
    "pca_whitening": ("mean", "std"),
}
"""`preprocessing` -> the keys in whose place it computes values."""
LARGEST_WHITENED = 40
"""Side in pixels up to which images are whitened: the matrix has (3 * 40^2)^2 numbers, 92 MB."""
W = TypeVar("W", bound="Training | Finetune")


def _check_lengths(training: W) -> W:
    if training.warmup_steps >= training.steps:
        raise ValueError(
            f"warmup_steps is {training.warmup_steps}, not below steps ({training.steps}), so the learning rate would "
            "not come down; lower warmup_steps"
        )
    if training.thaw_steps >= training.steps:
        raise ValueError(
            f"thaw_steps is {training.thaw_steps}, not below steps ({training.steps}), so only the classifier would "
            "train; lower thaw_steps"
        )
    return training


class Training(NetworkSettings):
    """One training: a network, and the stream of images that it sees."""

    probe: Probe | None = technique(None)
    """Fit a classifier on the stored features of the frozen start, in place of a training; it takes seconds. Of the
    other keys only the network, its start, the input and the targets are read. Choose it for photographs with few
    labels."""
    image_size: Positive = 32
    """Side of the square input in pixels, to which images are resized. The time of a step grows with its square. With a
    `start`, the default is the size that its weights expect."""
    evaluation_size: NonNegative = technique(0, off=0)
    """Side of the square input in labeling and evaluation; 0 takes `image_size`. After trainings on random crops, in
    which objects look larger, a side 1.15 to 1.3 times as large is often better (FixRes), and costs its square."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of RGB in [0, 1], which is subtracted from the input. With a `start`, the default is what its weights
    expect, else ImageNet's."""
    std: tuple[Deviation, Deviation, Deviation] = (0.229, 0.224, 0.225)
    """Standard deviation of RGB in [0, 1], which divides the input. With a `start`, the default is what its weights
    expect."""
    preprocessing: Preprocessing = technique("given", off="given")
    """What is computed from the labeled images, before the training, in place of a key: `mean` and `mean_std` take the
    mean of each channel, and its deviation; `mean_image` takes the mean of each pixel (AlexNet), so `std` divides
    still; `pca_whitening` decorrelates all pixels and gives each direction one variance (up to 40 pixels). `given`
    computes nothing: `mean` and `std` are read."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] = technique(1.0, off=1.0)
    """Side of the centre square that the model sees in labeling and evaluation, as a share of the shorter side of the
    image. Lower it if what matters is in the middle. With a `start`, the default is what its weights expect."""
    crop_mode: CropMode = technique("center", off="center")
    """What becomes of an image that is no square, in labeling and evaluation: `center` takes the centre square, and
    `squash` squeezes the whole image into it. With a `start`, the default is what its weights expect."""
    interpolation: Interpolation = technique("bicubic", off="bicubic")
    """The filter by which images are resized, with antialiasing. With a `start`, the default is what its weights
    expect."""
    steps: Positive = 10_000
    """Number of optimizer steps. Raise it first for a better model, and lower it first for a quicker one."""
    batch_size: Positive = 128
    """Labeled images per step, over all processes and micro-steps together. The learning rate follows it."""
    balance_labeled: Positive = technique(1, off=1)
    """A labeled image of a rare class occurs up to this often per epoch, so that each class has as many as the largest
    one. Set it to 10 or more if the labeled classes are uneven and each matters alike. 1 turns it off."""
    unlabeled_ratio: Annotated[float, Field(ge=0)] = 0.0
    """Unlabeled images per step, in units of `batch_size`. It is 0 for the teacher of Noisy Student. Raise it if
    unlabeled images are many times as many as labeled ones."""
    accumulation: Positive = 1
    """Number of micro-steps that the batch of a step is split into. Raise it if a batch does not fit in memory."""
    loss_normalization: Literal["total", "labeled"] = "total"
    """The number that the summed loss is divided by. `total` is all images of the step (the text of Noisy Student).
    `labeled` is the labeled images only (its code), which makes the gradient about 1 + `unlabeled_ratio` times larger.
    The learning rate is scaled with the same number of images. Leave it as the method sets it."""
    targets: Literal["soft", "hard"] = "soft"
    """The target of a pseudo-labeled image: `soft` is the teacher's probabilities, `hard` its surest class. Choose
    `hard` if unlabeled images are of the same kind as the labeled ones."""
    target_temperature: Annotated[float, Field(gt=0)] = technique(1.0, off=1.0)
    """Soft targets are p^(1/temperature), renormalized. Values below 1 make them sharper. Lower it if unlabeled images
    are of the same kind as the labeled ones."""
    weak: WeakView = WeakView()
    """The weak view, crop, mirror and color noise, of every training image."""
    strong: StrongView = StrongView()
    """The strong view, RandAugment and cutout, of unlabeled images and, with `noise_labeled`, of labeled ones."""
    mixup: Mixup | None = technique(None)
    """Mix images of a batch as weighted means. Without this section mixup is off."""
    cutmix: Cutmix | None = technique(None)
    """Mix images of a batch by pasting rectangles. Without this section CutMix is off."""
    distillation: Distillation | None = technique(None)
    """Learn from the answers of a trained model, beside the labels. Without this section distillation is off."""
    noise_labeled: bool = True
    """Whether labeled images get the strong view too, as in Noisy Student. Otherwise they get the weak view. Turn it
    off if the training accuracy of labeled images (`labeled_top1`) stays low."""
    keep: Literal["last", "best"] = "last"
    """The weights that become the model: `last` takes those of the last step, `best` the best ones on val. Take `best`
    if val accuracy falls before the end."""
    evaluations: Positive = 10
    """Number of evaluations on val, evenly spread over the steps. The last one is at the last step. Lower it if val is
    large."""
    early_stop: NonNegative = technique(0, off=0)
    """Stop after this many evaluations on val without a new best one; the learning rate follows `steps` all the same.
    Take it with `keep: best`, and raise `evaluations`. 0 trains to the end."""

    _lengths_fit = model_validator(mode="after")(_check_lengths)

    @model_validator(mode="after")
    def _early_stop_can_come(self) -> Training:
        if self.early_stop >= self.evaluations:
            raise ValueError(
                f"early_stop is {self.early_stop}, but there are only {self.evaluations} evaluations, so it could "
                "never stop; lower it, or raise evaluations"
            )
        return self

    @model_validator(mode="after")
    def _learning_rate_can_fall(self) -> Training:
        if self.schedule is not None:
            self.schedule.check(
                steps=self.steps,
                warmup_steps=self.warmup_steps,
                evaluations=self.evaluations,
                early_stop=self.early_stop,
            )
        return self

    @model_validator(mode="after")
    def _strong_view_is_used(self) -> Training:
        is_set = self.strong != StrongView() and (self.strong.num_ops or self.strong.cutout)
        if is_set and not self.noise_labeled and not self.unlabeled_ratio:
            raise ValueError(
                "the strong view is set, but with noise_labeled false and unlabeled_ratio 0 no image gets it; set "
                "noise_labeled to true, or drop strong"
            )
        return self

    @model_validator(mode="after")
    def _probe_has_an_encoder(self) -> Training:
        if self.probe is not None and (self.start is None or self.start.mode != "init"):
            found = "no start" if self.start is None else f"start.mode {self.start.mode}"
            raise ValueError(
                f"a probe reads the features of weights that were trained, but here is {found}; set start.model, with "
                "mode: init, or drop probe"
            )
        return self

    @model_validator(mode="after")
    def _preprocessing_is_possible(self) -> Training:
        kind, fields = self.preprocessing, type(self).model_fields
        for key in COMPUTED[kind]:
            if (value := getattr(self, key)) != fields[key].default:
                raise ValueError(
                    f"{key} is {list(value)}, but preprocessing: {kind} computes it; drop {key}, or set preprocessing "
                    "to given"
                )
        if kind != "given" and self.probe is not None:
            raise ValueError(
                f"preprocessing is {kind}, but a probe's encoder sees images less the numbers in mean; drop it, or "
                "choose a start whose weights expect such images"
            )
        if kind in ("mean_image", "pca_whitening") and self.seen_size != self.image_size:
            raise ValueError(
                f"evaluation_size is {self.evaluation_size}, but preprocessing: {kind} has a value per pixel of "
                f"image_size ({self.image_size}); drop evaluation_size, or set preprocessing to mean_std"
            )
        if kind == "pca_whitening" and self.image_size > LARGEST_WHITENED:
            raise ValueError(
                f"preprocessing is pca_whitening, whose matrix has {3 * self.image_size**2:,}^2 numbers at image_size "
                f"{self.image_size}; set image_size to at most {LARGEST_WHITENED}, or preprocessing to mean_std"
            )
        return self

    @model_validator(mode="after")
    def _temperature_is_used(self) -> Training:
        if self.target_temperature != 1 and self.targets == "hard":
            raise ValueError(
                f"target_temperature is {self.target_temperature}, but hard targets have none; set targets to soft, or "
                "drop it"
            )
        return self

    @model_validator(mode="after")
    def _mixing_is_possible(self) -> Training:
        shares = [mixing.probability if mixing else 0.0 for mixing in (self.mixup, self.cutmix)]
        if sum(shares) > 1:
            raise ValueError(
                f"mixup.probability ({shares[0]:g}) and cutmix.probability ({shares[1]:g}) are more than all images; "
                "set both to 0.5"
            )
        if any(shares) and (self.batch_size + self.unlabeled_batch_size) // self.accumulation < 2:
            raise ValueError("mixup and cutmix have one image per micro-step to mix; raise batch_size")
        return self

    @model_validator(mode="after")
    def _distillation_has_answers(self) -> Training:
        found = self.distillation
        if found is None:
            return self
        if self.probe is not None:
            raise ValueError("distillation is set, but a probe learns from labels alone; drop one of the two")
        if found.source == "labels":
            if self.mixup is not None or self.cutmix is not None:
                raise ValueError(
                    "distillation.source is labels, but label files say nothing of mixed images; set it to model, or "
                    "drop mixup and cutmix"
                )
            if not self.unlabeled_batch_size:
                raise ValueError(
                    "distillation.source is labels, but with unlabeled_ratio 0 no image has a label file's; set it to "
                    "model"
                )
        return self

    @property
    def seen_size(self) -> int:
        """The side of the square that the model sees in labeling and evaluation."""
        return self.evaluation_size or self.image_size

    @property
    def unlabeled_batch_size(self) -> int:
        """Unlabeled images per step."""
        return round(self.batch_size * self.unlabeled_ratio)

    @property
    def peak_images(self) -> int:
        """Images per step that the learning rate is scaled with, over which the loss is averaged."""
        return self.batch_size + (self.unlabeled_batch_size if self.loss_normalization == "total" else 0)


class Finetune(Adaptation):
    """A last, short training of the best model at a higher resolution, which fixes the train-test resolution (Touvron
    2019; Noisy Student 3.1). With `method: meta` it is the first training of the student on labels (Pham 2021).

    It uses labeled images without noise or augmentation, except for mirroring if the model's training had that.
    Architecture and normalization are those of the model.
    """

    image_size: Positive
    """Side of the square input in pixels, usually larger than that of the students."""
    steps: Positive = 500
    """Number of optimizer steps. Raise it first for a better model, and lower it first for a quicker one."""
    batch_size: Positive = 128
    """Labeled images per step, over all processes and micro-steps together. The learning rate follows it."""
    accumulation: Positive = 1
    """Number of micro-steps that the batch of a step is split into. Raise it if a batch does not fit in memory."""
    optimizer: Optimizer = Optimizer(lr=0.01)
    """The optimizer and its learning rate, which should be as low as at the end of a training."""
    warmup_steps: NonNegative = 0
    """Steps over which the learning rate rises linearly from 0, before it falls as `schedule` says."""
    schedule: AnySchedule = technique(None)
    """How the learning rate falls after the warm-up. Without this section it falls to 0 as half a cosine."""
    label_smoothing: Probability = 0.1
    """Probability that targets spread evenly over all classes. 0 turns label smoothing off."""
    ema_decay: Probability = 0.99
    """Decay of the weight average (EMA), which is evaluated. 0 turns the average off."""
    frozen_layers: NonNegative = 0
    """Freeze the stem and this many blocks, in eval mode. 0 freezes nothing."""

    _lengths_fit = model_validator(mode="after")(_check_lengths)

    @model_validator(mode="after")
    def _learning_rate_can_fall(self) -> Finetune:
        if self.schedule is not None:
            evaluations = Training.model_fields["evaluations"].default  # which a fine-tune takes
            self.schedule.check(steps=self.steps, warmup_steps=self.warmup_steps, evaluations=evaluations)
        return self
