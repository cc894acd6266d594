"""A network with its optimization: architecture, start, regularization, optimizer, average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config.base import NonNegative, Positive, Probability, Scalar, Section, operational, technique
from pipeline.config.init import AnyInit
from pipeline.config.schedule import AnySchedule

ActivationName = Literal["sigmoid", "tanh", "relu", "leaky_relu", "prelu", "elu", "selu", "gelu", "silu"]

_OF_THEIR_OWN: dict[str, dict[str, float]] = {
    "rmsproptf": {"lr": 0.016, "weight_decay": 1e-5},  # Tan and Le 2019 (EfficientNet), section 5.2: 0.256 for 4096
    "adamw": {"lr": 2.5e-4, "weight_decay": 0.05},  # Touvron 2021 (DeiT), table 9: 5e-4 for 512
    "alexnet": {"lr": 0.02, "weight_decay": 5e-4},  # Krizhevsky 2012, section 5: 0.01 for 128
    "lamb": {"lr": 6.25e-4, "weight_decay": 0.02},  # Wightman 2021 (ResNet strikes back), table 2, A2: 5e-3 for 2048
}
"""What optimizers take in place of sgd's learning rate and weight decay, which would be far too large or too small."""


class Optimizer(Section):
    """The optimizer and its learning rate. Without `lr` and `weight_decay` an optimizer has those of its paper: adamw
    2.5e-4 and 0.05, lamb 6.25e-4 and 0.02, rmsproptf 0.016 and 1e-5, alexnet 0.02 and 5e-4."""

    name: Literal["sgd", "rmsproptf", "adamw", "lamb", "alexnet"] = "sgd"
    """The update rule. `sgd` has Nesterov momentum. `rmsproptf` is TensorFlow's RMSProp (eps inside the root), as in
    EfficientNet. `adamw` suits transformers. `alexnet` is sgd whose momentum remembers each step at its own rate."""
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Peak learning rate for `lr_batch_size` images. It is scaled linearly with the images of a step (Goyal 2017): all
    of them, or only the labeled ones with `loss_normalization: labeled`."""
    lr_batch_size: Positive = 256
    """Number of images per step that `lr` is meant for. Change it if a recipe states its rate for another number."""
    momentum: Probability = technique(0.9, off=0.0)
    """Momentum of sgd, rmsproptf and alexnet, and beta1 of adamw and lamb. 0.9 is nearly always right. 0 turns it
    off."""
    nesterov: bool = technique(True, off=True)
    """Whether the momentum of sgd is Nesterov's, which takes the gradient at the point that momentum leads to. Set it
    to false for the classical momentum of most papers before 2015."""
    eps: Annotated[float, Field(gt=0)] | None = technique(None)
    """What rmsproptf adds to the mean square of the gradient before its root, and adamw and lamb to the root. Without
    it they have 1e-3, 1e-8 and 1e-6. 1, as in PolyNet, makes rmsproptf nearly sgd."""
    decay: Probability | None = technique(None)
    """What remains per step of the mean square of the gradient: beta2 of adamw and lamb, and the decay of rmsproptf.
    Without it they have 0.999 and 0.9."""
    weight_decay: Annotated[float, Field(ge=0)] = technique(5e-4, off=0.0)
    """Weight decay. Biases and normalization parameters do not decay, unless `decay_vectors` says so. 1e-4 to 5e-4 is
    usual with sgd, 0.05 with adamw. 0 turns it off."""
    decay_vectors: bool = technique(False, off=False)
    """Whether biases and normalization parameters decay too, as they did before Bag of Tricks (section 3.1) spared
    them. Set it to true to repeat an older recipe, or to measure what sparing them is worth."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_optimizer(cls, raw: Any) -> Any:
        return {**_OF_THEIR_OWN.get(raw.get("name", "sgd"), {}), **raw} if isinstance(raw, Mapping) else raw

    @model_validator(mode="after")
    def _keys_are_read(self) -> Optimizer:
        if not self.nesterov and self.name != "sgd":
            raise ValueError(
                f"nesterov is false, but {self.name} has no Nesterov momentum; drop it, or set name to sgd"
            )
        for key in ("eps", "decay"):
            if self.name in ("sgd", "alexnet") and (value := getattr(self, key)) is not None:
                raise ValueError(
                    f"{key} is {value:g}, which {self.name} does not read; drop it, or set name to rmsproptf"
                )
        return self

    def beside(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The values of a default beside given ones: those of one optimizer are none for another."""
        return super().beside(given) if given.get("name", self.name) == self.name else {}


class Start(Section):
    """The weights that a network starts from."""

    model: str
    """A run folder, a stage folder, an exported .safetensors file, a checkpoint (checkpoints/step-N.pt of a stage), or
    `timm:NAME` for timm's pretrained weights."""
    mode: Literal["use", "continue", "init", "insert"] = "init"
    """`use` takes the model as it is. `continue` goes on with its training up to `steps`; optimizer, size and
    normalization must be the same. `init` begins a new training with its weights. `insert` does so with a deeper
    PolyNet, whose new modules and paths change nothing at first."""
    allow_random: bool = operational(False)
    """Whether weights before the classifier may stay random with `init` because the start has none for them. If not,
    that is an error. Set it to true if you take a part of another architecture on purpose."""

    @model_validator(mode="after")
    def _weights_alone_can_only_begin(self) -> Start:
        if self.model.startswith("timm:") and self.mode in ("continue", "insert"):
            lacks = {"continue": "no checkpoint to go on from", "insert": "nothing that says which modules they have"}
            raise ValueError(f"mode is {self.mode}, but weights of timm have {lacks[self.mode]}; use mode: init")
        return self

    @property
    def begins_anew(self) -> bool:
        """Whether a new training begins with the weights, which is not so of `use` and `continue`."""
        return self.mode in ("init", "insert")


class Adaptation(Section):
    """How a network departs from the weights that it starts from."""

    freeze_norm: bool = technique(False, off=False)
    """Whether BatchNorm keeps the statistics and the parameters of the start. Turn it on to fine-tune pretrained
    weights on few images, whose own statistics would be too noisy."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = technique(1.0, off=1.0)
    """Factor on the learning rate per layer below the last one, so that early layers, which are general, change least.
    0.65 to 0.9 is usual in fine-tuning. 1 gives all layers the same rate."""
    head_lr: Annotated[float, Field(gt=0)] = technique(1.0, off=1.0)
    """Factor on the learning rate of the classifier. Raise it, e.g. to 10, if the classifier begins at random and what
    is before it does not. 1 gives it the rate of the last layer."""
    thaw_steps: NonNegative = technique(0, off=0)
    """Steps in which only the classifier trains, while all before it is frozen, in eval mode, as `frozen_layers` are.
    Then all trains, with an optimizer that begins anew. These steps cost about a third. 0 trains all from the start."""
    gradient_checkpointing: bool = operational(False)
    """Whether activations are computed again in the backward pass instead of being kept. It saves up to most of the
    memory of a step, takes a third to a half more time, and changes no result. Turn it on if a batch does not fit."""


class NetworkSettings(Adaptation):
    """A network with its optimization: architecture, start, regularization, optimizer, average."""

    model: str = "wide_resnet28_2"
    """The architecture: any of `timm.list_models()`, or one of ours: wide_resnet28_2, wide_resnet16_2, wide_resnet10_1,
    resnet9, mlp10, alexnet, resnet50_a to resnet50_d (depths 18 to 152), polynet, polynet_small, and efficientnet,
    whose size `model_args` set."""
    model_args: dict[str, Scalar] = Field(default_factory=dict)
    """More arguments for timm.create_model, such as `bn_momentum: 0.1`."""
    activation: ActivationName | None = technique(None)
    """The activation between layers, in place of the architecture's own, which null keeps. Change it to compare
    activations; weights that were trained with another one fit it badly."""
    start: Start | None = technique(None)
    """Weights to start from. Without it they are random."""
    init: AnyInit = technique(None)
    """The random weights that the network begins with, such as `kaiming`. Without it they are the architecture's
    own."""
    zero_gamma: bool | None = technique(None)
    """Whether residual branches begin at 0: the gamma of their last normalization, or the convolution that they end
    with. Without it that is as the architecture has it: true for most of timm's ResNets and for resnet50_a to
    resnet50_d, false for wide_resnet, resnet9 and polynet. Architectures that do not tell what their branches end with
    are refused. Set it to true for large batches or high learning rates."""
    fractional_pooling: Annotated[float, Field(gt=0.5, lt=1)] | None = technique(None)
    """Replace each max pooling with stride 2 by fractional max pooling, which shrinks maps to this share of their side,
    at random places. 0.7 is usual; maps are larger then, and steps slower. Null keeps the architecture's own."""
    dropout: Probability = technique(0.0, off=0.0)
    """Probability of dropping a feature before the last layer. Noisy Student takes 0.5 for large networks. 0 turns
    dropout off."""
    block_dropout: Probability = technique(0.0, off=0.0)
    """Probability of dropping a value before the last layer of each residual branch, as in wide residual networks. 0.3
    is usual. 0 turns it off."""
    dropout_at: dict[str, Probability] = technique({}, off={})
    """Dropout at any places: name of a module, with * for any part of it -> probability of dropping a value of what it
    gives, such as `{stages.1: 0.1, stages.2: 0.2}`. Without any it is off."""
    drop_connect: Probability = technique(0.0, off=0.0)
    """Probability of dropping a weight of the classifier, others for each image (DropConnect). 0.5 is usual. It holds
    the classifier's weights once per image of the batch. What EfficientNet's code calls drop connect is
    `stochastic_depth`. 0 turns it off."""
    stochastic_depth: Probability = technique(0.0, off=0.0)
    """Probability of dropping the last residual block. It is lower, linearly, for the blocks before (Huang 2016). Noisy
    Student takes 0.2. 0 turns stochastic depth off."""
    frozen_layers: NonNegative = technique(0, off=0)
    """Freeze the stem and this many blocks, in eval mode (BatchNorm, stochastic depth), as in Noisy Student's
    resolution fix. 0 freezes nothing."""
    label_smoothing: Probability = technique(0.1, off=0.0)
    """Probability that hard targets spread evenly over all classes. Soft pseudo-labels are never smoothed. 0 turns
    label smoothing off."""
    logit_adjustment: Annotated[float, Field(ge=0)] = technique(0.0, off=0.0)
    """Add this times the logarithm of the class's share to the logits in the labeled loss, so that rare classes are not
    given up. Set it to 1 if the labeled classes are uneven and each class matters alike. 0 turns it off."""
    optimizer: Optimizer = Optimizer()
    """The optimizer and its learning rate."""
    warmup_steps: NonNegative = technique(0, off=0)
    """Steps over which the learning rate rises linearly from 0, before it falls as `schedule` says. A twentieth of the
    steps is usual. 0 turns warm-up off."""
    schedule: AnySchedule = technique(None)
    """How the learning rate falls after the warm-up. Without this section it falls to 0 as half a cosine."""
    clip_norm: Annotated[float, Field(ge=0)] = technique(0.0, off=0.0)
    """Largest global norm of the gradient; larger ones are clipped to it. Set it to 5 if losses jump or stop being
    finite. 0 turns clipping off."""
    ema_decay: Probability = technique(0.999, off=0.0)
    """Decay of the weight average (EMA). The averaged weights are evaluated and produce labels. The decay is warmed up
    as min(decay, (1 + n) / (10 + n)). Lower it for trainings of under 10,000 steps. 0 turns the average off."""

    @model_validator(mode="after")
    def _begins_in_one_way(self) -> NetworkSettings:
        for key in ("init", "zero_gamma") if self.start is not None else ():
            if (value := getattr(self, key)) is not None:
                shown = str(getattr(value, "name", value)).lower()
                raise ValueError(f"{key} is {shown}, but start gives the network its weights; drop one of the two")
        return self

    @model_validator(mode="after")
    def _inserts_between_relus(self) -> NetworkSettings:
        activation = self.built_with.get("activation", "relu")
        if self.start is not None and self.start.mode == "insert" and activation != "relu":
            raise ValueError(
                f"activation is {activation}, but with start.mode: insert new modules change nothing at first, which "
                "only ReLU of what a ReLU gave does; set it to null or relu, or use mode: init"
            )
        return self

    @model_validator(mode="after")
    def _alterations_are_said_once(self) -> NetworkSettings:
        for name, value in self._altered().items():
            if (other := self.model_args.get(name, value)) != value:
                raise ValueError(f"{name} is {value}, but model_args says {name}: {other}; drop it from model_args")
        return self

    @property
    def built_with(self) -> dict[str, Scalar]:
        """All arguments that the network is built with, and that its model.json must have: `model_args` and what this
        config changes in the function of the architecture."""
        return {**self.model_args, **self._altered()}

    def _altered(self) -> dict[str, Scalar]:
        values: dict[str, Scalar | None] = {
            "activation": self.activation,
            "fractional_pooling": self.fractional_pooling,
        }
        return {name: value for name, value in values.items() if value is not None}
