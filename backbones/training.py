"""A training as the commands run it: `fit`, and the run's curves however it ends."""

from backbones.curves import curves_at_the_end
from engine.cli import TrainingArguments
from engine.schema import RunConfig
from engine.task import Task
from engine.trainer import fit


def train(task: Task, config: RunConfig, arguments: TrainingArguments) -> dict[str, float]:
    """Train a task as a command line asks; return and raise what `fit` does."""
    with curves_at_the_end(arguments.output, is_main=arguments.is_main):
        return fit(
            task,
            config,
            output=arguments.output,
            resume=arguments.resume,
            auto_resume=arguments.auto_resume,
            replace=True,
            device=arguments.device,
        )
