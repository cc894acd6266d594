"""How the learning rate of a training falls after its warm-up."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.config.base import NonNegative, Positive, Section

_READS = {"cosine": (), "step": ("factor", "every", "milestones"), "plateau": ("factor", "patience")}


class Schedule(Section):
    """How the learning rate falls after the warm-up. Without this section it falls to 0 as half a cosine."""

    name: Literal["cosine", "step", "plateau"]
    """`cosine` is what is done without this section. `step` lowers the rate at steps that are known before. `plateau`
    lowers it where val stops improving (AlexNet, section 5), by top-1 or, with `keep: best`, by `rounds.judge_by`."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """What `step` and `plateau` multiply the rate by each time. 0.1 is usual."""
    every: NonNegative = 0
    """Number of steps from one fall of `step` to the next, counted from the first step of the training. 0 takes a
    quarter of the training, as 30 of 120 epochs (Bag of Tricks, section 2.1)."""
    milestones: tuple[Positive, ...] = ()
    """Steps before which `step` lowers the rate, in place of `every`, such as `[3000, 4500]`."""
    patience: Positive = 2
    """`plateau` lowers the rate after this many evaluations on val without a new best one. Raise it, with
    `evaluations`, if val goes up and down."""

    @model_validator(mode="after")
    def _keys_are_read(self) -> Schedule:
        for key, field in type(self).model_fields.items():
            if key not in ("name", *_READS[self.name]) and (value := getattr(self, key)) != field.default:
                raise ValueError(f"{key} is {value}, which {self.name} does not read; drop it, or set another name")
        if self.every and self.milestones:
            raise ValueError("every and milestones are both set; drop one of them")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones are {list(self.milestones)}, which do not rise; sort them")
        return self

    def falls(self, steps: int) -> tuple[int, ...]:
        """The steps, from 0, from which on `step` has a lower rate, in a training of so many steps."""
        every = self.every or -(-steps // 4)
        return self.milestones or tuple(range(every, steps, every))

    def check(self, *, steps: int, warmup_steps: int, evaluations: int, early_stop: int = 0, section: str = "") -> None:
        """Check that the learning rate of a training can fall, and only after it has risen.

        Raises:
            ValueError: it cannot. The message names the key, below `section` ("student.").
        """
        if self.name == "plateau":
            if self.patience > evaluations - 2:  # the first one is the best so far, and after the last one all is over
                raise ValueError(
                    f"{section}schedule.patience is {self.patience}, but there are only {evaluations} evaluations, so "
                    f"the learning rate could never fall; lower it, or raise evaluations to {self.patience + 2} or more"
                )
            if 0 < early_stop <= self.patience:
                raise ValueError(
                    f"early_stop is {early_stop}, not above schedule.patience ({self.patience}), so the training would "
                    "stop before its learning rate falls; raise early_stop, or drop it"
                )
            return
        falls = self.falls(steps)
        would = f"{section}schedule: the learning rate would fall at step"
        if not falls or falls[-1] >= steps:
            last = max(falls, default=self.every)
            raise ValueError(f"{would} {last}, but there are only {steps} steps; lower every or the milestones")
        if falls[0] <= warmup_steps:
            raise ValueError(
                f"{would} {falls[0]}, within the warm-up of {warmup_steps} steps; lower warmup_steps, or fall later"
            )


def _cosine_is_off(schedule: Schedule | None) -> Schedule | None:
    return None if schedule is None or schedule.name == "cosine" else schedule


AnySchedule = Annotated[Schedule | None, AfterValidator(_cosine_is_off)]
"""The key `schedule`, which is None for half a cosine, however that is written."""
