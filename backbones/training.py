"""Training of any task for the commands: `fit`, then training curves, even after a failure."""

from backbones.plots import plot_when_training_ends
from engine.cli import TrainingArguments
from engine.schema import RunConfig
from engine.task import Task
from engine.trainer import fit


def train(task: Task, config: RunConfig, arguments: TrainingArguments) -> dict[str, float]:
    """Train a task with the options of a command line; returns and raises as `fit` does."""
    with plot_when_training_ends(arguments.output, is_main=arguments.is_main):
        return fit(
            task,
            config,
            output=arguments.output,
            resume=arguments.resume,
            auto_resume=arguments.auto_resume,
            replace=True,
            device=arguments.device,
        )
