"""Training of any task for the commands: `fit`, then training curves, even after a failure."""

from backbones.plots import plot_when_training_ends
from engine.cli import TrainingWords
from engine.schema import RunConfig
from engine.task import Task
from engine.trainer import fit


def train(task: Task, config: RunConfig, words: TrainingWords) -> dict[str, float]:
    """Train a task with the options of a command line; returns and raises as `fit` does."""
    with plot_when_training_ends(words.output, is_main=words.is_main):
        return fit(
            task,
            config,
            output=words.output,
            resume=words.resume,
            auto_resume=words.auto_resume,
            replace=True,
            device=words.device,
        )
