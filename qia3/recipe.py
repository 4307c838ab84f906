"""How vectors are trained: the keys of a build file's [train] table, and the presets that fill them.

`short` is what the demo uses: T-Few's three losses with AdamW, a higher learning rate and a tenth of the steps (how
losses and rates compare: docs/training.md, "Accuracy beside LoRA"). `t-few` is the recipe of Liu et al. 2022
(arXiv:2205.05638): Adafactor at 3e-3 with 60 warm-up steps and linear decay, 1000 steps of 8 examples, and three losses
(qia3.train.losses). The third trains the mean log-probability per token, so a task that uses it is ranked by that. The
paper's code and text differ in places. The text is followed, with one exception: Adafactor scales its steps by the size
of the parameters (`scale_parameter`), which only the code says. The code also leaves the dropout of T5's configuration
on (src/pl_train.py loads the model as it is, and Lightning puts it in training mode); the text does not mention it, and
here an encoder-decoder trains without (qia3.train.dropout). The paper's pre-training, 100,000 steps on T0's mixture, is
not part of the preset: `init_adapter` starts from such vectors. The paper's tasks are T0's held-out ones with 20 to 70
examples, and RAFT's with 50.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from qia3.parse import given


class Section(BaseModel):
    """A part of the build file: unknown keys and non-finite numbers are refused, and values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Loss = Literal["lm", "unlikelihood", "length-normalised"]
T_FEW: tuple[Loss, ...] = ("lm", "unlikelihood", "length-normalised")
PRESETS: dict[str, dict[str, Any]] = {
    # what the demo uses
    "short": {
        "steps": 96,
        "batch_size": 8,
        "learning_rate": 2e-2,
        "warmup_steps": 10,
        "optimizer": "adamw",
        "losses": T_FEW,
    },
    # Liu et al. 2022, arXiv:2205.05638, section 3; scale_parameter from github.com/r-three/t-few
    "t-few": {
        "steps": 1000,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "warmup_steps": 60,
        "optimizer": "adafactor",
        "losses": T_FEW,
        "answers": 10_000,  # i.e. all
    },
}


class Train(Section):
    """How the vectors are trained.

    `steps` are optimiser updates; `compute` is the type of matrix products, vectors are always bfloat16.
    """

    preset: Literal["short", "t-few"] | None = None
    steps: int = Field(default=120, ge=1, le=10**7)
    batch_size: int = Field(default=8, ge=1, le=2**16)
    accumulate: int = Field(default=1, ge=1, le=2**16)
    learning_rate: float = Field(default=2e-2, gt=0, le=10)
    warmup_steps: int = Field(default=10, ge=0)
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    losses: tuple[Loss, ...] = Field(default=T_FEW, min_length=1)
    answers: int = Field(default=16, ge=2)
    max_length: int = Field(default=256, ge=8)
    row_tokens: int = Field(default=512, ge=8)
    gradient_checkpointing: bool = False
    checkpoint_every: int = Field(default=25, ge=1)
    validation: float | Path | None = None
    patience: int = Field(default=3, ge=1)
    init_adapter: Path | None = None
    compute: Literal["auto", "float32", "bfloat16"] = "auto"

    @field_validator("losses")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("name each loss once")
        return value

    @field_validator("validation", mode="before")
    @classmethod
    def _fraction(cls, value: Any) -> Any:
        if value is None or isinstance(value, str | Path):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise ValueError(f"expected a fraction between 0 and 1 or the name of a file in quotes, not {given(value)}")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Train:
        """Fills keys that were not given from the preset; only given keys count as set."""
        for key, value in PRESETS.get(self.preset or "", {}).items():
            if key not in self.model_fields_set:
                self.__dict__[key] = value
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate = {self.accumulate} does not divide batch_size = {self.batch_size} into equal parts"
            )
        return self

    @property
    def ranked(self) -> bool:
        """Whether a loss needs the wrong answers."""
        return set(self.losses) != {"lm"}

    @property
    def ranking(self) -> Literal["sum", "mean"]:
        """The ranking of answers that the losses train."""
        return "mean" if "length-normalised" in self.losses else "sum"
