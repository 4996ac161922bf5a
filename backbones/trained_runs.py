"""Read a trained run: its config with changes, its class names, and its network with the weights.

Classifiers, detectors and localizers are read alike; what differs are the config and the network.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from torch import nn

from backbones.metadata import read_class_names, read_saved_config
from backbones.weights import build_and_load
from engine.checkpoint import read_trained_weights
from engine.errors import UserError
from engine.schema import RunConfig

C = TypeVar("C", bound=RunConfig)
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class TrainedRun(Generic[C, M]):
    """A trained run, read from its folder or a weights file.

    path: of the file that was read. metadata: of the weights file. config: with the
    changes; `without_writes` before data are read by it. class_names: by label. model: in eval
    mode, on the CPU.
    """

    path: Path
    metadata: Mapping[str, str]
    config: C
    class_names: tuple[str, ...]
    model: M


def read_run(
    path: Path,
    overrides: Sequence[str],
    *,
    schemas: Mapping[str, type[RunConfig]],
    kind: type[C],
    build: Callable[[C, int], M],
    what: str,
    needed: Sequence[str] = (),
    task: str | None = None,
) -> TrainedRun[C, M]:
    """Read a run folder (its model.safetensors), a checkpoint or a .safetensors file.

    Args:
        path: the folder or file. A checkpoint's averaged weights are used if it has them.
        overrides: `a.b.c=value`, changes to the config that the file holds.
        schemas: the config's schema for each task that the run may be of.
        kind: the expected class of the config.
        build: makes the network of a config and a number of classes, with random weights.
        what: kind of model, for messages.
        needed: metadata that must exist besides config and class names.
        task: the only task that the run may be of; None: any of `schemas`.

    Raises:
        UserError: there is no such file, it is damaged or of another kind, or an override is wrong.
    """
    path, state, metadata = read_trained_weights(path)
    got = metadata.get("task", "none")
    if task not in (None, got):
        raise UserError(f"{path}: expected a run of task {task}, got {got}")
    for key in ("config", "class_names", *needed):
        if key not in metadata:
            raise UserError(
                f"{path}: expected a {what}'s {key} in the metadata, got none (task: {got})"
            )
    config = read_saved_config(metadata, overrides, schemas=schemas, kind=kind, source=path)
    names = read_class_names(metadata, source=path)
    model = build_and_load(partial(build, config, len(names)), state, path=path)
    return TrainedRun(path, metadata, config, names, model.eval())
