"""What every run has, whatever its task: seed, optimiser, schedule, loader and loop.

Defaults live here and nowhere else. Units: steps are optimiser updates, seconds are wall clock.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from engine.errors import UserError

_VARIABLE = re.compile(r"(?:(?<=/)|^)\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")


def expanded_path(text: str) -> str:
    """Return a path with `~` at its start and `$NAME` at the start of a part written out.

    The shell leaves both alone after `=`, and a config file never meets a shell.

    Raises:
        UserError: a variable that is not set, or a `~` without a home.
    """

    def value_of(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise UserError(f"expected a path, got {text}: no variable {name} is set")
        return os.environ[name]

    path = _VARIABLE.sub(value_of, text)
    if path.split("/")[0] != "~":  # of other users `~name`, which a file may be called too
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise UserError(f"expected a path, got {text}: no home folder is known") from error


PathText = Annotated[str, AfterValidator(expanded_path)]
"""The path of a file or folder; `~` and `$NAME` are written out, as the resolved config shows."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInts = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
PositiveFloats = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
BadInputPolicy = Literal["error", "skip"]
"""What bad data do: stop the run with one line that names them, or get skipped and counted."""
Precision = Literal["fp32", "bf16"]
PrecisionSetting = Literal["fp32", "bf16", "auto"]


class Config(BaseModel):
    """Base of every part of a config: frozen, and a key that is not declared is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class OptimConfig(Config):
    """Optimiser and what is done to the gradient before it."""

    kind: Literal["sgd", "adamw"] = "sgd"
    """Update rule."""
    lr: PositiveFloat = 0.02
    """Peak learning rate, for `loop.batch_size` or, when set, `reference_batch_size` images."""
    reference_batch_size: PositiveInt | None = None
    """When set, the rate is `lr * loop.batch_size / reference_batch_size`, said at the start."""
    momentum: Fraction = 0.9
    """SGD momentum."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW averaging factors."""
    weight_decay: NonNegativeFloat = 1e-4
    """L2 penalty (SGD) or decoupled decay (AdamW)."""
    decay_norm_and_bias: bool = True
    """Whether norm parameters and biases decay as well."""
    backbone_lr_factor: PositiveFloat = 1.0
    """Rate of parameters under `backbone.` relative to the others."""
    clip_grad_norm: PositiveFloat | None = None
    """Largest global L2 norm of the gradient; none leaves it alone."""


class ScheduleConfig(Config):
    """Learning rate over steps: a warm-up, then one of four shapes."""

    kind: Literal["steps", "cosine", "plateau", "constant"] = "steps"
    """Shape after the warm-up."""
    warmup_steps: NonNegativeInt = 0
    """Length of the warm-up."""
    warmup_kind: Literal["linear", "constant"] = "linear"
    """Whether the rate rises from `warmup_factor` to the peak, or stays there and then jumps."""
    warmup_factor: Fraction = 0.001
    """Rate at step 0 relative to the peak."""
    milestones: tuple[PositiveFloat, ...] = ()
    """`steps`: where the rate drops; steps, or fractions of `loop.max_steps` when all are < 1."""
    gamma: Fraction = 0.1
    """`steps`: the factor at each milestone; `plateau`: at each drop."""
    plateau_evaluations: PositiveInt = 5
    """`plateau`: evaluations without a better main metric after which the rate drops."""
    final_factor: Fraction = 0.0
    """`cosine`: rate at the last step relative to the peak."""


class LoaderConfig(Config):
    """Reading of pictures."""

    workers: NonNegativeInt = 2
    """Worker processes for each training process; 0 reads in the training process."""
    prefetch: PositiveInt = 2
    """Batches that each worker prepares ahead."""
    read_timeout_s: PositiveInt = 600
    """Longest wait for a batch from the workers before the run ends with a message."""
    repeats: PositiveInt = 1
    """Times that a picture is drawn in a row, augmented differently (repeated augmentation)."""


class LoopConfig(Config):
    """The training loop."""

    max_steps: PositiveInt = 1000
    """Optimiser updates in the whole run."""
    batch_size: PositiveInt = 16
    """Global: images in one update, over all processes and accumulated parts."""
    accumulate: PositiveInt = 1
    """Parts into which a process's share of a batch is split, to save memory; losses average."""
    precision: PrecisionSetting = "fp32"
    """Arithmetic of the forward pass; bf16 is autocast, weights stay float32. `auto` is bf16 where
    the device computes in it, else fp32."""
    channels_last: bool = True
    """Memory layout of images and convolution weights."""
    compile: bool = False
    """Compile the loss module with `torch.compile`."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    """`torch.compile`'s mode; `reduce-overhead` replays CUDA graphs, for small networks. Both that
    and `max-autotune` want `accumulate` of 1."""
    sync_batch_norm: bool = True
    """Batch norm takes its statistics over all processes; else each takes its own share's."""
    ema_decay: Fraction | None = None
    """When set, an exponential moving average of the weights is kept, evaluated and exported."""
    eval_every: NonNegativeInt = 0
    """Steps between evaluations; 0 evaluates only at the end."""
    eval_batch_size: PositiveInt = 4
    """Images in one evaluation batch, for each process."""
    patience: PositiveInt | None = None
    """Evaluations without a better main metric after which the run stops; none never stops."""
    drawn_pictures: NonNegativeInt = 8
    """Predictions drawn into the run folder and TensorBoard at each evaluation."""
    log_every: PositiveInt = 20
    """Steps between lines in the log."""
    checkpoint_every: PositiveInt = 1000
    """Steps between checkpoints."""
    export: Literal["best", "last"] = "best"
    """Weights that a finished run leaves in model.safetensors: those of the step with the best main
    metric, or those of the last step, as papers report that train for a fixed time."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints kept; the best one by the main metric is kept besides."""
    max_bad_steps: PositiveInt = 10
    """Non-finite steps in a row after which the run stops with exit code 3."""
    deterministic: bool = False
    """Demand deterministic kernels (slower on a GPU); on a CPU runs repeat bit for bit anyway."""
    collective_timeout_s: PositiveInt = 1800
    """Longest wait of one process for the others before the run ends with a message."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        # A graph that is replayed writes its gradients over those of the part before.
        if self.compile and self.compile_mode != "default" and self.accumulate > 1:
            raise ValueError(
                f"accumulate: expected 1 with compile_mode={self.compile_mode}, "
                f"got {self.accumulate}"
            )
        return self


class RunConfig(Config):
    """Base of a run's config; a task adds its data and model."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of initial weights, order of pictures, augmentation and sampling."""
    optim: OptimConfig = OptimConfig()
    """Optimiser."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate over steps."""
    loader: LoaderConfig = LoaderConfig()
    """Reading of pictures."""
    loop: LoopConfig = LoopConfig()
    """Training loop."""
