"""The whole configuration tree: frozen pydantic models in which an unknown key is an error.

Precedence: defaults < YAML < `--set key.path=value`. A field is semantic (it changes results and so enters the
fingerprints of the stages that read it) unless it is declared `operational()`. Of `runtime`, precision and compile
enter; device, threads and processes are part of a stage's environment, which a resume must meet. The same models are
the parameters of the Prefect flows.
"""

from pipeline.config.data import SPLITS, Data, Split
from pipeline.config.labels import Label, Select
from pipeline.config.meta import SHARED, Adjuster, Meta, TwoMoons
from pipeline.config.run import Config, Evaluate, Rounds, Runtime, load_config, unread_keys
from pipeline.config.section import Precision, Scalar, Section, dump_yaml, parse, semantic
from pipeline.config.training import Finetune, Optimizer, Start, StrongView, Training, WeakView

__all__ = [
    "SHARED",
    "SPLITS",
    "Adjuster",
    "Config",
    "Data",
    "Evaluate",
    "Finetune",
    "Label",
    "Meta",
    "Optimizer",
    "Precision",
    "Rounds",
    "Runtime",
    "Scalar",
    "Section",
    "Select",
    "Split",
    "Start",
    "StrongView",
    "Training",
    "TwoMoons",
    "WeakView",
    "dump_yaml",
    "load_config",
    "parse",
    "semantic",
    "unread_keys",
]
