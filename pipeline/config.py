"""The whole configuration tree: frozen pydantic models in which an unknown key is an error.

Precedence: defaults < YAML < `--set key.path=value`. A field is semantic (it changes results and so enters the
fingerprints of the stages that read it) unless it is declared `operational()`. Of `runtime`, precision and compile
enter; device, threads and processes are part of a stage's environment, which a resume must meet. The same models are
the parameters of the Prefect flows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from pipeline.errors import UserError, did_you_mean

Split = Literal["labeled", "unlabeled", "val", "test"]
SPLITS: tuple[Split, ...] = ("labeled", "unlabeled", "val", "test")
Fraction = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Scalar = bool | int | float | str

_OPERATIONAL = {"operational": True}


def operational(default: Any, **kwargs: Any) -> Any:
    """A field that cannot change results (paths, workers, intervals), so it is left out of fingerprints."""
    return Field(default, json_schema_extra=dict(_OPERATIONAL), **kwargs)


class Section(BaseModel):
    """A frozen part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class Data(Section):
    """Where the images are: a packed folder, WebDataset tars that others made, or both."""

    root: Path | None = operational(None)
    """A folder written by `selftrain pack`; its manifest names the splits."""
    labeled: tuple[Path, ...] = operational(())
    """More labeled tars, folders of tars, or packed folders; tars need `classes` when there is no `root`."""
    unlabeled: tuple[Path, ...] = operational(())
    """More unlabeled tars, folders of tars, or packed folders."""
    val: tuple[Path, ...] = operational(())
    """More validation tars, folders of tars, or packed folders."""
    test: tuple[Path, ...] = operational(())
    """More test tars, folders of tars, or packed folders. A model sees them in the run's last stage only."""
    classes: Path | None = operational(None)
    """A text file with one class name a line, for tars without a manifest. Line numbers are the class ids."""
    window_shards: Positive = 64
    """Shards are permuted each epoch, then samples within windows of this many shards."""
    bad_images: Literal["error", "skip"] = "error"
    """What to do with images that cannot be decoded: stop, or count and skip them."""
    cache: Literal["auto", "always", "never"] = operational("auto")
    """Keep decoded uint8 images in memory-mapped files; `auto` does so while they take under 25% of memory."""
    cache_dir: Path | None = operational(None)
    """Folder of decoded images and of indexes of read-only tars. Default: `~/.cache/selftrain`, or
    below `$XDG_CACHE_HOME`."""
    decode_workers: NonNegative = operational(0)
    """Threads that decode images; 0 means one for each core that the process may use."""


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


def _off_is_a_word(value: Any) -> Any:
    return "off" if value is False else value  # which YAML makes of it without quotes


SHARED = (
    "image_size",
    "mean",
    "std",
    "steps",
    "batch_size",
    "unlabeled_ratio",
    "loss_normalization",
    "accumulation",
    "weak",
    "strong",
    "noise_labeled",
    "keep",
    "evaluations",
)
"""What a teacher has of its student's section when both are trained together."""

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


class Label(Section):
    """The teacher's pass over the unlabeled images."""

    batch_size: Positive = 512
    """Images a forward pass. Semantic: kernels, and so the last bits, depend on it."""
    flip: bool = False
    """Average the probabilities of the image and its mirror."""
    ensemble: Positive = 1
    """Average the probabilities of the teachers of this many last rounds."""
    top_k: Positive = 10
    """Classes stored per image; all of them when there are no more than this."""


class Select(Section):
    """Which pseudo-labels train the student, and how often (Noisy Student, section 2)."""

    threshold: Fraction = 0.0
    """Keep an image if its confidence is at least this."""
    per_class: NonNegative = 0
    """Keep at most this many images a class, the surest first. 0 keeps all."""
    balance: Literal["off", "uniform", "prior"] = "uniform"
    """Duplicate images of rare classes up to `per_class` (or up to the largest class): `uniform` for every class
    alike, `prior` in proportion to `prior`."""
    prior: tuple[float, ...] = ()
    """Share of each class, with `balance: prior`. Empty means the labeled set's."""
    max_copies: Positive = 5
    """No image appears more often than this in an epoch."""
    targets: Literal["soft", "hard"] = "soft"
    """Train on the teacher's probabilities or on its argmax."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Soft targets are p^(1/temperature), renormalized."""
    allow_empty_classes: bool = False
    """A class of which nothing is kept is an error unless this is set."""

    _off = field_validator("balance", mode="before")(_off_is_a_word)

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Select:
        if self.prior and self.balance != "prior":
            raise ValueError(f"prior is set, but balance is {self.balance}, which ignores it; set balance to prior")
        if self.temperature != 1 and self.targets == "hard":
            raise ValueError(
                f"temperature is {self.temperature}, but hard targets have none; set targets to soft, or drop it"
            )
        return self


class Rounds(Section):
    """The loop."""

    num_rounds: NonNegative = 3
    """Students after the round-0 teacher."""
    start: Literal["scratch", "init"] = "scratch"
    """Each student starts from random weights (the paper), or from its teacher's weights where shapes agree."""
    patience: Positive = 1
    """Stop after this many rounds in a row whose student is worse on val than its teacher."""
    tolerance: Fraction = 0.0
    """A student counts as not worse if its val accuracy is at least its teacher's minus this."""
    overrides: tuple[dict[str, Scalar], ...] = ()
    """What differs from round to round, as `key.path: value` of label, select or student: the first entry holds for
    round 1, the second for round 2, and the last for every later round."""


class Finetune(Section):
    """A last, short training of the best model at a higher resolution: the train-test resolution fix (Touvron 2019;
    Noisy Student 3.1).

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


class Adjuster(Section):
    """The small network of Reduced Meta Pseudo Labels, which adjusts a big teacher's stored predictions (Pham 2021,
    appendix E)."""

    hidden: Positive = 128
    """Units of its hidden layer."""
    optimizer: Optimizer = Optimizer(name="adamw", lr=1e-3, weight_decay=0.0)
    """Optimizer and learning rate."""


class Meta(Section):
    """Meta Pseudo Labels and UDA, with `method: meta` or `method: uda` (Pham 2021; Xie 2019).

    Teacher and student take their steps together: how many, on which images and views is the student's section; of the
    teacher's count its network, its noise and its optimization.
    """

    feedback: Literal["exact", "cosine", "finite-difference", "off"] = "exact"
    """How the student's progress on labeled images is measured: `exact` is the inner product of two gradients (eq. 12),
    `cosine` their cosine (appendix C.3), `finite-difference` the labeled loss before and after the student's step.
    With `off` the teacher learns nothing from its student, which still learns from it."""
    teacher: Literal["network", "adjuster"] = "network"
    """`network` trains the teacher along with the student. `adjuster` trains a small network on the stored predictions
    of a round-0 teacher, so that one big network is in memory (Reduced Meta Pseudo Labels)."""
    adjuster: Adjuster = Adjuster()
    """The small network, with `teacher: adjuster`."""
    scale: float = 1.0
    """Factor on the feedback. 0 measures it and does not use it; -1 is the wrong sign: controls, both."""
    baseline_decay: Probability = 0.99
    """Of the moving average of the feedback that is subtracted from it."""
    labeled_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the teacher's supervised loss. With 0, feedback is the only way in which labels reach it."""
    label_temperature: Annotated[float, Field(gt=0)] = 1.0
    """Labels are sampled from softmax(logits / temperature)."""
    joint_batch: bool = True
    """The teacher sees labeled images and both views of unlabeled ones in one forward pass, whose BatchNorm statistics
    they share, as in the paper's code. Without, weak views are passed by themselves, without gradients: faster."""
    uda_weight: Annotated[float, Field(ge=0)] = 8.0
    """Weight of the consistency loss between the teacher's predictions on weak and strong views."""
    uda_steps: NonNegative = 5000
    """Steps over which uda_weight rises from 0."""
    uda_temperature: Annotated[float, Field(gt=0)] = 0.7
    """The weak view's prediction is sharpened by this."""
    uda_threshold: Fraction = 0.6
    """Sharpened predictions below this confidence do not count."""
    student_wait: NonNegative = 0
    """Steps before the student takes its first."""

    _off = field_validator("feedback", mode="before")(_off_is_a_word)


class TwoMoons(Section):
    """Small networks on points in the plane, with `method: two_moons`; all seeds are trained side by side."""

    num_seeds: Positive = 20
    """Seeds, from the config's `seed` on: of weights, batches and jitter."""
    hidden: Positive = 8
    """Units in each of two hidden layers."""
    activation: Literal["sigmoid", "tanh", "relu"] = "sigmoid"
    """Between the layers."""
    init: Annotated[float, Field(gt=0)] = 0.1
    """Weights begin uniform in (-init, init)."""
    steps: Positive = 2000
    """Steps of each method."""
    batch_size: Positive = 128
    """Unlabeled points a step; the labeled ones are in every step, all of them."""
    jitter: Annotated[float, Field(ge=0)] = 0.1
    """Standard deviation of the strong view's noise; the weak view is the point."""
    teacher_lr: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate of plain gradient descent, for every network but the student."""
    student_lr: Annotated[float, Field(gt=0)] = 0.1
    """The student's."""
    separated: Fraction = 0.99
    """Accuracy on test from which the moons count as separated."""
    meta: Meta = Meta(uda_weight=1.0, uda_steps=0, uda_threshold=0.0, uda_temperature=1.0)
    """The feedback and the consistency loss."""


class Evaluate(Section):
    """The evaluation on test, after every choice is fixed."""

    batch_size: Positive = 512
    """Images a forward pass."""
    flip: bool = False
    """Average the probabilities of the image and its mirror, in every figure of the run (val too)."""
    control: bool = True
    """Train a supervised control at the final student's budget and report it beside."""


class Runtime(Section):
    """The machine."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU if there is one."""
    precision: Precision = "auto"
    """`auto` takes bf16 where the hardware has it, else fp32."""
    processes: Positive = 1
    """Training and labeling processes, one a GPU; on CPU they talk by gloo. Batch sizes must be multiples of it."""
    threads: NonNegative = 0
    """CPU threads a process; 0 means cores / processes, resolved once when the run is made."""
    compile: bool = False
    """torch.compile the model. Equal bits after a kill are promised with it off only."""
    log_every: Positive = operational(20)
    """Steps between metric lines. Every line costs one host sync."""
    checkpoint_every: Positive = operational(200)
    """Steps between checkpoints."""
    keep_checkpoints: Positive = operational(2)
    """Checkpoints kept beside the best on val."""


class Config(Section):
    """A whole run."""

    seed: int = 0
    """Every random number of the run is a function of this and of its position."""
    method: Literal["noisy_student", "meta", "uda", "two_moons"] = "noisy_student"
    """`noisy_student` repeats label, select and train; `meta` trains a teacher and its student together, the teacher by
    what its student learns; `uda` trains such a teacher alone; `two_moons` compares them on points in the plane."""
    data: Data = Data()
    """Images."""
    teacher: Training = Training()
    """Round 0, on labeled images only."""
    label: Label = Label()
    """The teacher's pass over the unlabeled images."""
    select: Select = Select()
    """The choice of pseudo-labels."""
    student: Training = Training(unlabeled_ratio=4.0)
    """Every later round, on labeled and pseudo-labeled images, with noise."""
    rounds: Rounds = Rounds()
    """The loop, with `method: noisy_student`."""
    meta: Meta = Meta()
    """With `method: meta` or `uda`."""
    two_moons: TwoMoons = TwoMoons()
    """With `method: two_moons`."""
    finetune: Finetune | None = None
    """An optional last training at a higher resolution."""
    evaluate: Evaluate = Evaluate()
    """The evaluation on test."""
    runtime: Runtime = Runtime()
    """The machine."""

    def for_round(self, number: int) -> Config:
        """The config with the overrides of a round (1 is the first student's)."""
        overrides = self.rounds.overrides
        if not overrides:
            return self
        raw = self.model_dump(mode="json")
        raw["rounds"]["overrides"] = []
        for key, value in overrides[min(number, len(overrides)) - 1].items():
            _set(raw, key, value, "rounds.overrides")
        return parse(Config, raw, f"rounds.overrides of round {number}")

    @model_validator(mode="before")
    @classmethod
    def _meta_defaults(cls, raw: Any) -> Any:
        """Other defaults for Meta Pseudo Labels: labeled images without noise, and what teacher and student share."""
        if not isinstance(raw, Mapping) or raw.get("method") not in ("meta", "uda"):
            return raw
        sections = [raw.get(name) for name in ("student", "teacher", "meta")]
        if not all(section is None or isinstance(section, Mapping | BaseModel) for section in sections):
            return raw  # which is told as such
        student: dict[str, Any] = {"unlabeled_ratio": 7.0, "noise_labeled": False, "loss_normalization": "labeled"}
        student |= dict(raw.get("student") or {})
        teacher = dict(raw.get("teacher") or {})
        if dict(raw.get("meta") or {}).get("teacher") != "adjuster":
            teacher = {key: student[key] for key in SHARED if key in student} | teacher
        return {**raw, "student": student, "teacher": teacher}

    @model_validator(mode="after")
    def _teacher_and_student_share(self) -> Config:
        if self.method not in ("meta", "uda"):
            return self
        if self.rounds.overrides:
            raise ValueError(f"rounds.overrides is set, but method {self.method} has no rounds; drop it")
        for name, training in (("teacher", self.teacher), ("student", self.student)):
            if training.start is not None and training.start.mode != "init":
                raise ValueError(f"{name}.start.mode is {training.start.mode}, but here it can be init only")
        if self.student.accumulation > 1:
            raise ValueError("student.accumulation is above 1, but feedback is taken of whole batches; set it to 1")
        if self.student.loss_normalization == "total":
            raise ValueError(f"method {self.method} weighs its losses by meta.uda_weight; drop loss_normalization")
        if self.meta.student_wait + self.student.warmup_steps >= self.student.steps:
            raise ValueError("meta.student_wait and student.warmup_steps leave the student no steps; lower them")
        if self.meta.teacher == "adjuster" and self.method == "uda":
            raise ValueError("meta.teacher is adjuster, which learns from a student; set method to meta")
        for name in SHARED if self.meta.teacher == "network" else ():
            ours, theirs = getattr(self.teacher, name), getattr(self.student, name)
            if ours != theirs:
                raise ValueError(f"teacher.{name} is {ours}, but teacher and student share the student's; drop it")
        return self

    @field_validator("rounds")
    @classmethod
    def _overrides_are_of_rounds(cls, rounds: Rounds) -> Rounds:
        for key in {key for entry in rounds.overrides for key in entry}:
            if key.split(".")[0] not in ("label", "select", "student") or "." not in key:
                raise ValueError(f"rounds.overrides may change keys of label, select and student only, not `{key}`")
        return rounds

    @field_validator("teacher")
    @classmethod
    def _teacher_has_no_unlabeled(cls, teacher: Training, info: ValidationInfo) -> Training:
        if teacher.unlabeled_ratio and info.data.get("method") == "noisy_student":
            raise ValueError("the round-0 teacher has no pseudo-labels to train on; set teacher.unlabeled_ratio to 0")
        return teacher

    @model_validator(mode="after")
    def _student_has_unlabeled(self) -> Config:
        if self.rounds.num_rounds and not self.student.unlabeled_batch_size:
            raise ValueError("student.unlabeled_ratio is 0, so students would see no pseudo-labels; set it, e.g. to 4")
        if self.rounds.start == "init" and self.student.start is not None:
            raise ValueError(
                f"student.start is {self.student.start.model}, but with rounds.start: init students start from their "
                "teacher; drop student.start, or set rounds.start to scratch"
            )
        for number in range(1, len(self.rounds.overrides) + 1):
            self.for_round(number)  # a wrong key or value shows before the first round
        return self


# ------------------------------------------------------------------------------------------------------------ reading


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config and apply `key.path=value` overrides.

    Raises:
        UserError: the file is missing or is no YAML mapping, a key is unknown (with the nearest valid one), or a value
            is wrong; the message names the key, the value and the fix.
    """
    try:
        raw = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError as error:
        raise UserError(f"config {path} does not exist; `selftrain init DATA > {path.name}` writes one") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"config {path} cannot be read as YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"config {path} must be a mapping of sections, not {type(raw).__name__}")
    for override in overrides:
        _apply(raw, override)
    return parse(Config, raw, str(path))


S = TypeVar("S", bound="Section")


def parse(section: type[S], raw: Mapping[str, Any], where: str) -> S:
    """Validate a mapping as a config section; errors become one UserError that lists every wrong key."""
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(section, dict(details)) for details in error.errors()]
        raise UserError(f"{where}: " + "; ".join(lines)) from error


def dump_yaml(section: Section) -> str:
    """The section as YAML with every default written out."""
    return yaml.safe_dump(section.model_dump(mode="json"), sort_keys=False)


def semantic(section: Section) -> dict[str, Any]:
    """The section's semantic fields as JSON: what its results depend on."""
    values = section.model_dump(mode="json")
    result: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("operational"):
            continue
        value = getattr(section, name)
        result[name] = semantic(value) if isinstance(value, Section) else values[name]
    return result


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"--set {override!r} must look like key.path=value, e.g. --set student.steps=2000")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {key}: {text!r} is not a YAML value: {error}") from error
    _set(raw, key, value, "--set")


def _set(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise UserError(f"{where} {key}: `{parent}` is a value, not a section")
        node = child
    node[last] = value


def _explain(section: type[Section], details: dict[str, Any]) -> str:
    location: tuple[int | str, ...] = details["loc"]
    key = ".".join(str(part) for part in location) or "config"
    if details["type"] == "extra_forbidden":
        siblings = _fields_at(section, location[:-1])
        return f"unknown key `{key}`, {did_you_mean(str(location[-1]), siblings)}"
    value = details.get("input")
    shown = "" if isinstance(value, dict | BaseModel) else f" (got {value!r})"
    return f"`{key}`: {details['msg'].removeprefix('Value error, ')}{shown}"


def _fields_at(section: type[Section], location: Sequence[int | str]) -> list[str]:
    current: type[Section] = section
    for part in location:
        annotation = current.model_fields[str(part)].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        current = next(o for o in options if isinstance(o, type) and issubclass(o, Section))
    return list(current.model_fields)
