"""One training: model, data mix, noise, optimization."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from pipeline.config.section import NonNegative, Positive, Probability, Scalar, Section


class WeakView(Section):
    """The weak view: random crop and flip (AlexNet 4.1; Bag of Tricks 2.1)."""

    crop: Literal["pad", "resized", "none"] = "pad"
    """`pad`: reflect-pad and crop, for small images. `resized`: crop of random area and aspect, for large ones."""
    padding: NonNegative = 4
    """Pixels of reflection on each side, with `crop: pad`."""
    min_area: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Smallest share of the image's area, with `crop: resized`. The aspect ratio is 3/4 to 4/3."""
    flip: bool = True
    """Mirror with probability 1/2. Turn off where left and right mean something, as in digits."""


class StrongView(Section):
    """The strong view on top of the weak one: RandAugment and cutout (Noisy Student, section 2)."""

    num_ops: NonNegative = 2
    """RandAugment's N: operations a sample, each drawn for itself. 0 turns RandAugment off."""
    magnitude: Annotated[float, Field(ge=0, le=30)] = 9.0
    """RandAugment's M in the papers' units, where 10 is the nominal maximum; above 10 each op clamps as documented."""
    cutout: NonNegative = 0
    """Side in pixels of a square of grey at a random place (DeVries 2017). 0 turns it off."""


class Optimizer(Section):
    """The optimizer and its learning rate."""

    name: Literal["sgd", "rmsproptf", "adamw", "lamb"] = "sgd"
    """`sgd` is with Nesterov momentum; `rmsproptf` is TensorFlow's (eps inside the root), as in EfficientNet."""
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Peak learning rate for `lr_batch_size` images, scaled linearly with the images of a step: all of them, or with
    `loss_normalization: labeled` the labeled ones (Goyal 2017)."""
    lr_batch_size: Positive = 256
    """The batch size that `lr` is meant for."""
    momentum: Probability = 0.9
    """Momentum of sgd and rmsproptf; beta1 of adamw and lamb."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Never applied to biases and normalization parameters (Bag of Tricks 3.1)."""


class Start(Section):
    """Where a stage's model comes from."""

    model: str
    """A run folder, a stage folder, an exported .safetensors file, or `timm:NAME` for timm's pretrained weights."""
    mode: Literal["use", "continue", "init"] = "init"
    """`use` it as it is, `continue` its training to `steps`, or `init`ialize a new training with its weights.
    `continue` needs the same optimizer, size and normalization."""


W = TypeVar("W", bound="Training | Finetune")


def _check_warmup(training: W) -> W:
    if training.warmup_steps >= training.steps:
        raise ValueError(
            f"warmup_steps is {training.warmup_steps}, not below steps ({training.steps}), so the learning rate would "
            "not come down; lower warmup_steps"
        )
    return training


class Training(Section):
    """One training: model, data mix, noise, optimization."""

    model: str = "wide_resnet28_2"
    """Any of `timm.list_models()`, or one of ours: wide_resnet28_2, wide_resnet16_2, wide_resnet10_1, resnet9."""
    model_args: dict[str, Scalar] = Field(default_factory=dict)
    """More arguments for timm.create_model."""
    image_size: Positive = 32
    """Side of the square input in pixels."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of RGB in [0, 1], subtracted from the input. ImageNet's by default, which pretrained weights expect."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of RGB, which divides the input."""
    dropout: Probability = 0.0
    """Dropout before the last layer."""
    stochastic_depth: Probability = 0.0
    """Probability of dropping the last residual block; grows linearly from 0 at the first (Huang 2016)."""
    steps: Positive = 10_000
    """Optimizer steps."""
    batch_size: Positive = 128
    """Labeled images a step, over all processes and accumulation micro-steps together."""
    unlabeled_ratio: Annotated[float, Field(ge=0)] = 0.0
    """Pseudo-labeled images a step, in units of `batch_size`. 0 for a teacher."""
    loss_normalization: Literal["total", "labeled"] = "total"
    """Divide the summed loss by all images of the step (the paper's text), or by the labeled ones only (its code),
    which makes the gradient about 1 + `unlabeled_ratio` times larger. The learning rate is scaled by the same
    count."""
    accumulation: Positive = 1
    """Micro-steps that a step's batch is split into, to fit in memory."""
    optimizer: Optimizer = Optimizer()
    """Optimizer and learning rate."""
    warmup_steps: NonNegative = 0
    """Linear warm-up of the learning rate, then cosine to 0."""
    label_smoothing: Probability = 0.1
    """On hard targets only; soft pseudo-labels are never smoothed."""
    ema_decay: Probability = 0.999
    """Of the averaged weights that are evaluated and that label; warmed up as min(decay, (1+n)/(10+n))."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Clip the gradient's global norm. 0 turns it off."""
    weak: WeakView = WeakView()
    """Crop and flip, on every training image."""
    strong: StrongView = StrongView()
    """RandAugment and cutout, on unlabeled images and, with `noise_labeled`, on labeled ones."""
    noise_labeled: bool = True
    """Labeled images get the strong view too, as in Noisy Student."""
    frozen_layers: NonNegative = 0
    """Freeze the stem and this many blocks, with their BatchNorm in eval mode (Noisy Student's resolution fix); 0
    freezes nothing."""
    start: Start | None = None
    """Weights to start from; without it, random ones."""
    keep: Literal["last", "best"] = "last"
    """Which weights are the stage's model: those of the last step, or the best on val."""
    evaluations: Positive = 10
    """Evaluations on val, evenly spread; the last is at the last step."""

    _warmup_ends = model_validator(mode="after")(_check_warmup)

    @model_validator(mode="after")
    def _strong_view_is_used(self) -> Training:
        is_set = self.strong != StrongView() and (self.strong.num_ops or self.strong.cutout)
        if is_set and not self.noise_labeled and not self.unlabeled_ratio:
            raise ValueError(
                "the strong view is set, but with noise_labeled false and unlabeled_ratio 0 no image gets it; set "
                "noise_labeled to true, or drop strong"
            )
        return self

    @property
    def unlabeled_batch_size(self) -> int:
        """Pseudo-labeled images a step."""
        return round(self.batch_size * self.unlabeled_ratio)


class Finetune(Section):
    """A last, short training of the best model at a higher resolution: the train-test resolution fix (Touvron 2019;
    Noisy Student 3.1). With `method: meta` it is the student's first sight of labels (Pham 2021).

    It sees labeled images without noise or augmentation, but for the mirror where the best model's training had it.
    Architecture and normalization are the best model's.
    """

    image_size: Positive
    """Side of the square input in pixels, usually above the students'."""
    steps: Positive = 500
    """Optimizer steps."""
    batch_size: Positive = 128
    """Labeled images a step, over all processes and accumulation micro-steps together."""
    accumulation: Positive = 1
    """Micro-steps that a step's batch is split into, to fit in memory."""
    optimizer: Optimizer = Optimizer(lr=0.01)
    """Optimizer and learning rate, which should be that of the end of a training."""
    warmup_steps: NonNegative = 0
    """Linear warm-up of the learning rate, then cosine to 0."""
    label_smoothing: Probability = 0.1
    """As in the trainings before."""
    ema_decay: Probability = 0.99
    """Of the averaged weights that are evaluated."""
    frozen_layers: NonNegative = 0
    """Freeze the stem and this many blocks, with their BatchNorm in eval mode. 0 freezes nothing."""

    _warmup_ends = model_validator(mode="after")(_check_warmup)
