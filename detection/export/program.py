"""A model as a graph with named inputs and outputs, traced by torch.export."""

import io
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.errors import UserError

ImageSize = tuple[int, int]
"""(height, width) of images, in pixels."""


@dataclass(frozen=True)
class Program:
    """A model that can be exported.

    graph: the model; its parameters need no gradients. inputs: an example of each input, by name,
    in order. fixed: for each input the dimensions of fixed length besides the batch; the others may
    have any length. outputs: names, in order. batch: images in a batch; None: any number.
    """

    graph: nn.Module
    inputs: Mapping[str, Tensor]
    fixed: Mapping[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    batch: int | None = None

    def traced(self) -> torch.export.ExportedProgram:
        """Return the graph of public operators, with symbols for what is dynamic.

        Raises:
            UserError: this torch cannot trace the graph for images of any size.
        """
        from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

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
        # torch prints the graph when it fails
        with torch.no_grad(), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # about torch's and torchvision's own code
            try:
                return export.export(
                    graph,
                    tuple(self.inputs.values()),
                    dynamic_shapes=tuple(shapes.values()),
                    strict=False,
                )
            except GuardOnDataDependentSymNode as error:  # convolutions in torch 2.11
                raise UserError(
                    f"torch {torch.__version__} cannot trace this network for images of any size; "
                    "torch 2.14 can, or give --size HEIGHTxWIDTH"
                ) from error


def image_program(
    graph: nn.Module, outputs: tuple[str, ...], *, batch: int | None, size: ImageSize | None
) -> Program:
    """Return the program of a graph whose input is `images` (B, H, W, 3) uint8.

    batch: as in `Program`. size: (H, W); None: any.
    """
    # a batch of one would fix the dimension
    example = torch.zeros(batch or 2, *(size or (96, 128)), 3, dtype=torch.uint8)
    fixed = (3,) if size is None else (1, 2, 3)
    return Program(graph, {"images": example}, {"images": fixed}, outputs, batch)
