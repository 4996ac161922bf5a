"""A model as a graph with named inputs and outputs, traced by torch.export."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Program:
    """A model that can be exported.

    graph: the model; its parameters need no gradients. inputs: an example of each input, by name,
    in order. fixed: for each input the dimensions whose length is fixed; the others are dynamic,
    except the batch if `batch` is given. outputs: names, in order. batch: images in a batch; None:
    any number.
    """

    graph: nn.Module
    inputs: Mapping[str, Tensor]
    fixed: Mapping[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    batch: int | None = None

    def traced(self) -> torch.export.ExportedProgram:
        """Return the graph of public operators, with dynamic shapes."""
        shapes = {}
        for name, example in self.inputs.items():
            still = {*self.fixed[name], *([] if self.batch is None else [0])}
            shapes[name] = {
                dim: torch.export.Dim.STATIC if dim in still else torch.export.Dim.DYNAMIC
                for dim in range(example.ndim)
            }
        graph = self.graph.eval().requires_grad_(False)
        examples = tuple(self.inputs.values())
        with torch.no_grad(), warnings.catch_warnings():
            # torchvision's NMS calls a function of torch by its old name
            warnings.simplefilter("ignore", FutureWarning)
            return torch.export.export(graph, examples, dynamic_shapes=shapes, strict=False)


def image_example(batch: int | None, *, height: int = 96, width: int = 128) -> Tensor:
    """Return black images (B, height, width, 3) uint8; two if the number is dynamic."""
    # a batch of one would fix the dimension
    return torch.zeros(2 if batch is None else batch, height, width, 3, dtype=torch.uint8)
