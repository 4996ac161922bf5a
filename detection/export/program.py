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
        """Return the graph of public operators, with symbols for what is dynamic."""
        export = torch.export
        # one symbol for all inputs
        batch = export.Dim("batch", min=1) if self.batch is None else export.Dim.STATIC
        shapes = {}
        for name, example in self.inputs.items():
            fixed = self.fixed[name]
            others = [
                export.Dim.STATIC if dim in fixed else export.Dim.DYNAMIC
                for dim in range(1, example.ndim)
            ]
            shapes[name] = dict(enumerate([batch, *others]))
        graph = self.graph.eval().requires_grad_(False)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's and torchvision's own code
            return export.export(
                graph,
                tuple(self.inputs.values()),
                dynamic_shapes=tuple(shapes.values()),
                strict=False,
            )


def image_example(batch: int | None, *, height: int = 96, width: int = 128) -> Tensor:
    """Return black images (B, height, width, 3) uint8; two if the number is dynamic."""
    # a batch of one would fix the dimension
    return torch.zeros(2 if batch is None else batch, height, width, 3, dtype=torch.uint8)
