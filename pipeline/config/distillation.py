"""Knowledge distillation: a trained teacher's answers beside the labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Section

Weight = Annotated[float, Field(ge=0)]


class Distillation(Section):
    """Knowledge distillation (Hinton 2015, section 2; Bag of Tricks 5.3): beside the label, each image has the softened
    probabilities of a trained model as a second target."""

    model: str | None = None
    """The model to learn from: a run folder, a stage folder, an exported .safetensors file or a checkpoint, which knows
    the classes of the data. Without it, a student of Noisy Student learns from the teacher of its round."""
    source: Literal["model", "labels"] = "model"
    """The way to the teacher's answers. `model` passes the views of each step through it, labeled and unlabeled ones,
    which costs about a third of a step if both are of one size. `labels` takes those that its label files have, for
    pseudo-labeled images only; it costs nothing."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """The temperature T of both softmaxes. The larger it is, the more wrong classes count. 2 to 5 is usual; Bag of
    Tricks takes 20 for a thousand classes. The loss is multiplied by T^2, so that its gradient keeps its size."""
    weight: Weight = 1.0
    """Weight of the distillation loss. 1 is that of Bag of Tricks."""
    hard_weight: Weight = 1.0
    """Weight of the loss on labels and pseudo-labels, for images that have the other one. Lower it if the teacher is
    much better than the labels are many (Hinton 2015, section 2); with 0 the teacher's answers are all that counts."""

    @model_validator(mode="after")
    def _something_is_learned(self) -> Distillation:
        if not self.weight and not self.hard_weight:
            raise ValueError("weight and hard_weight are both 0, so nothing would be learned; raise one")
        if self.source == "labels" and self.model is not None:
            raise ValueError(
                f"model is {self.model}, but with source: labels the answers are those of the round's label files; "
                "drop model, or set source to model"
            )
        return self
