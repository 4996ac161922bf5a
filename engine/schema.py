"""Config schema shared by all tasks: seed, optimiser, schedule, loader and loop.

Defaults are defined here and nowhere else. Steps are optimiser updates, seconds are wall clock.
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
    """Return a path with `~` at its start, and `$NAME` at the start of a component, expanded.

    The shell expands neither after `=`, and nothing in a config file.

    Raises:
        UserError: a variable is not set, or there is no home folder for `~`.
    """

    def value_of(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise UserError(f"expected a path, got {text}: variable {name} is not set")
        return os.environ[name]

    path = _VARIABLE.sub(value_of, text)  # before `~`, which a variable's value may start with
    if path.split("/")[0] != "~":  # `~name` of other users is not expanded: it may be a file name
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise UserError(f"expected a path, got {text}: no home folder is known") from error


PathText = Annotated[str, AfterValidator(expanded_path)]
"""Path of a file or folder; `~` and `$NAME` are expanded, also in the resolved config."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInts = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
PositiveFloats = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
BadInputPolicy = Literal["error", "skip"]
"""For bad data: `error` stops the run with a one-line message, `skip` skips and counts them."""
Precision = Literal["fp32", "bf16"]
PrecisionSetting = Literal["fp32", "bf16", "auto"]
TrackerName = Literal["none", "wandb", "mlflow", "trackio"]


class Config(BaseModel):
    """Base of every section of a config: frozen; unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class OptimConfig(Config):
    """Optimiser and gradient clipping."""

    kind: Literal["sgd", "adamw"] = "sgd"
    """Update rule."""
    lr: PositiveFloat = 0.02
    """Peak learning rate for `loop.batch_size` images or, if set, `reference_batch_size` images."""
    reference_batch_size: PositiveInt | None = None
    """If set, the rate is `lr * loop.batch_size / reference_batch_size`; the log shows it."""
    momentum: Fraction = 0.9
    """SGD momentum."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW decay rates of the gradient's first and second moment."""
    weight_decay: NonNegativeFloat = 1e-4
    """L2 penalty (SGD) or decoupled decay (AdamW)."""
    decay_norm_and_bias: bool = True
    """Whether weight decay applies to norm parameters and biases too."""
    decay_norm: bool | None = None
    """Whether weight decay applies to the weights and biases of norm layers; null: as
    `decay_norm_and_bias` says."""
    backbone_lr_factor: PositiveFloat = 1.0
    """Learning rate of parameters under `backbone.`, relative to the others."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Layer-wise learning-rate decay: a backbone's last stage learns at this factor times the rate
    of the heads, and each stage before at this factor times the next one's; null: no decay."""
    clip_grad_norm: PositiveFloat | None = None
    """Largest global L2 norm of the gradient; null does not clip."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.layer_decay is not None and self.backbone_lr_factor != 1.0:
            raise ValueError(
                f"layer_decay: expected null with backbone_lr_factor={self.backbone_lr_factor:g}, "
                f"got {self.layer_decay:g}"
            )
        return self


class ScheduleConfig(Config):
    """Learning-rate schedule: a warm-up, then one of four shapes."""

    kind: Literal["steps", "cosine", "plateau", "constant"] = "steps"
    """Shape after the warm-up."""
    warmup_steps: NonNegativeInt = 0
    """Length of the warm-up, steps."""
    warmup_kind: Literal["linear", "constant"] = "linear"
    """Whether the rate rises linearly from `warmup_factor` to the peak, or stays and then jumps."""
    warmup_factor: Fraction = 0.001
    """Rate at step 0, relative to the peak."""
    milestones: tuple[PositiveFloat, ...] = ()
    """`steps`: when the rate drops: steps, or fractions of `loop.max_steps` if all are < 1."""
    gamma: Fraction = 0.1
    """Factor by which the rate is multiplied at each milestone (`steps`) or drop (`plateau`)."""
    plateau_evaluations: PositiveInt = 5
    """`plateau`: evaluations without a better main metric after which the rate drops."""
    final_factor: Fraction = 0.0
    """`cosine`: rate at the last step, relative to the peak."""


class LoaderConfig(Config):
    """Data loader."""

    workers: NonNegativeInt = 2
    """Worker processes per training process; 0 reads in the training process."""
    prefetch: PositiveInt = 2
    """Batches that each worker reads ahead."""
    read_timeout_s: PositiveInt = 600
    """Longest wait for a batch from the workers, seconds; then the run ends with a message."""
    repeats: PositiveInt = 1
    """Repeated augmentation: times that each image is used in a row, augmented differently."""


class LoopConfig(Config):
    """The training loop."""

    max_steps: PositiveInt = 1000
    """Optimiser updates in the whole run."""
    batch_size: PositiveInt = 16
    """Global batch size: images per update, over all processes and accumulated parts."""
    accumulate: PositiveInt = 1
    """Gradient accumulation: parts into which a process's share of a batch is split to save
    memory; losses are averaged. Batch norm takes its statistics from one part."""
    precision: PrecisionSetting = "fp32"
    """Precision of the forward pass. bf16 uses autocast, weights stay float32; `auto` is bf16 if
    the device supports it in hardware, otherwise fp32."""
    channels_last: bool = True
    """Whether images and convolution weights have the channels-last (NHWC) memory layout."""
    tf32: bool = True
    """On a GPU: compute float32 convolutions and matrix products in TF32, several times as fast,
    with 10 bits of mantissa. false: in full float32."""
    cudnn_benchmark: bool = False
    """On a GPU: try all algorithms for each new shape of a convolution and keep the fastest."""
    compile: bool = False
    """Compile the loss module with `torch.compile`: one graph for all sizes of images and
    numbers of objects; tiny images (fewer anchors than proposals or samples, a coarsest level of
    one cell) need more."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    """Mode of `torch.compile`; `reduce-overhead` replays CUDA graphs, for small networks. It and
    `max-autotune` require `accumulate=1`."""
    sync_batch_norm: bool = True
    """true: batch norm statistics over all processes; false: each process over its own share, and
    the running statistics are averaged over processes after each step."""
    ema_decay: Fraction | None = None
    """If set, an exponential moving average of the weights is kept, evaluated and exported. This is
    the final decay; after update n (from 0) it is at most (1 + n) / (10 + n)."""
    eval_every: NonNegativeInt = 0
    """Steps between evaluations; 0 evaluates only at the end."""
    eval_batch_size: PositiveInt = 4
    """Images in an evaluation batch, per process."""
    patience: PositiveInt | None = None
    """Early stopping: evaluations without a better main metric after which the run stops; null
    never stops early."""
    drawn_images: NonNegativeInt = 8
    """Predictions drawn into the run folder and TensorBoard at each evaluation."""
    log_every: PositiveInt = 20
    """Steps between log lines."""
    tracker: TrackerName = "none"
    """Experiment tracker that gets the config, metrics and drawn images too: a package of that name
    (`pip install 'resdet[track]'`). One that fails does not end the run."""
    checkpoint_every: PositiveInt = 1000
    """Steps between checkpoints."""
    export: Literal["best", "last"] = "best"
    """Weights that a finished run writes to model.safetensors: those of the step with the best main
    metric, or those of the last step, as in papers that train for a fixed number of steps."""
    keep_checkpoints: PositiveInt = 2
    """Number of newest checkpoints kept; the best one by the main metric is kept too."""
    max_bad_steps: PositiveInt = 10
    """Non-finite steps in a row after which the run stops with exit code 3."""
    deterministic: bool = False
    """Use deterministic kernels only (slower on a GPU, and an error where there is none); on a CPU
    runs always repeat bit for bit."""
    collective_timeout_s: PositiveInt = 1800
    """Longest wait of one process for the others, seconds; then the run ends with a message. On
    several GPUs a step, a batch of an evaluation and a checkpoint may not take longer either."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        # A replayed CUDA graph overwrites the gradients of the previous part.
        if self.compile and self.compile_mode != "default" and self.accumulate > 1:
            raise ValueError(
                f"accumulate: expected 1 with compile_mode={self.compile_mode}, "
                f"got {self.accumulate}"
            )
        return self


class RunConfig(Config):
    """Base of a run's config; a task adds its data and model."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of initial weights, order of images, augmentation and sampling."""
    optim: OptimConfig = OptimConfig()
    """Optimiser."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate over steps."""
    loader: LoaderConfig = LoaderConfig()
    """Reading of images."""
    loop: LoopConfig = LoopConfig()
    """Training loop."""
