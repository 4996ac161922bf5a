"""A training as the commands run it: `fit`, and the run's curves however it ends."""

from backbones.curves import curves_at_the_end
from engine.cli import TrainingWords
from engine.schema import RunConfig
from engine.task import Task
from engine.trainer import fit


def train(task: Task, config: RunConfig, words: TrainingWords) -> dict[str, float]:
    """Train a task as a command line asks; return and raise what `fit` does."""
    with curves_at_the_end(words.output, is_main=words.is_main):
        return fit(
            task,
            config,
            output=words.output,
            resume=words.resume,
            auto_resume=words.auto_resume,
            replace=True,
            device=words.device,
        )
