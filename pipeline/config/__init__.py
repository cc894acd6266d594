"""The whole configuration tree: frozen pydantic models in which an unknown key is an error; one file per section.

Precedence: defaults < YAML < `--set key.path=value`. A field is semantic (it changes results and so enters the
fingerprints of the stages that read it) unless it is declared `operational()`; one that is declared `technique()`
enters them unless it is off. Of `runtime`, precision and compile enter; device, threads and processes are part of a
stage's environment, which a resume must meet. The same models are the parameters of the Prefect flow.
"""

from pipeline.config.base import (
    CropMode,
    Interpolation,
    JudgeBy,
    Precision,
    Probability,
    Scalar,
    Section,
    changed,
    dump_yaml,
    parse,
    semantic,
)
from pipeline.config.config import Config, Rounds
from pipeline.config.data import SPLITS, Data, Split
from pipeline.config.distillation import Distillation
from pipeline.config.evaluate import Evaluate
from pipeline.config.init import Init
from pipeline.config.label import Label, OtherLabels
from pipeline.config.learners import Adjuster, FixMatch, Meta, Uda
from pipeline.config.load import load, load_config
from pipeline.config.mixing import Cutmix, Mixup
from pipeline.config.network import ActivationName, Adaptation, NetworkSettings, Optimizer, Start
from pipeline.config.probe import Probe
from pipeline.config.runtime import Runtime
from pipeline.config.schedule import Schedule
from pipeline.config.selection import Select
from pipeline.config.training import Finetune, Training
from pipeline.config.unread import unread_beside, unread_keys
from pipeline.config.views import ColorJitter, StrongView, WeakView

__all__ = [
    "SPLITS",
    "ActivationName",
    "Adaptation",
    "Adjuster",
    "ColorJitter",
    "Config",
    "CropMode",
    "Cutmix",
    "Data",
    "Distillation",
    "Evaluate",
    "Finetune",
    "FixMatch",
    "Init",
    "Interpolation",
    "JudgeBy",
    "Label",
    "Meta",
    "Mixup",
    "NetworkSettings",
    "Optimizer",
    "OtherLabels",
    "Precision",
    "Probability",
    "Probe",
    "Rounds",
    "Runtime",
    "Scalar",
    "Schedule",
    "Section",
    "Select",
    "Split",
    "Start",
    "StrongView",
    "Training",
    "Uda",
    "WeakView",
    "changed",
    "dump_yaml",
    "load",
    "load_config",
    "parse",
    "semantic",
    "unread_beside",
    "unread_keys",
]
