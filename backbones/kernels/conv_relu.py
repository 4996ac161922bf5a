"""A convolution and what follows it, in one pass over the map where the device can.

B images, C channels in, D channels out, H x W cells in, H' x W' out.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.precision import computes_in_bf16


def conv_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[int, ...] = (0, 0),
    add: Tensor | None = None,
) -> Tensor:
    """Return relu(conv2d(x, weight, bias, stride, padding) + add), (B, D, H', W').

    On a CPU, oneDNN adds and rectifies while it writes the map, which saves two passes over memory:
    a quarter of a prediction's time in bfloat16, a tenth of a training step's (docs/LOG.md).

    oneDNN's rectifier makes 0 of NaN, where torch's leaves it. Training sees it all the same, for
    the gradient of `weight` is not finite then; weights are checked where they are loaded.

    Args:
        x: (B, C, H, W).
        weight: (D, C, kernel height, kernel width).
        bias: (D,).
        stride: down and across, as `padding`.
        padding: zeros around x.
        add: of the result's shape.
    """
    mixes = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if mixes else x.dtype
    given = [each for each in (x, weight, bias, add) if each is not None]
    fuses = _fuses(x, add) and {dtype, *(each.dtype for each in given)} <= _DTYPES
    if not fuses or not (mixes or all(each.dtype == dtype for each in given)):
        return add_relu(F.conv2d(x, weight, bias, stride, padding), add)
    x, weight = (each.to(dtype, memory_format=torch.channels_last) for each in (x, weight))
    bias = None if bias is None else bias.to(dtype)
    add = None if add is None else add.to(dtype, memory_format=torch.channels_last)
    result: Tensor = _ConvReLU.apply(x, weight, bias, add, stride, padding)
    return result


def add_relu(y: Tensor, add: Tensor | None) -> Tensor:
    """Return relu(y + add), in place of y."""
    return F.relu(y if add is None else y.add_(add), inplace=True)


def onednn_may_take(x: Tensor) -> bool:
    """Whether oneDNN's operators may be called with a tensor here; not where torch compiles."""
    return (
        not torch.compiler.is_compiling()  # the compiler fuses and chooses by itself
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and x.device.type == "cpu"
        and x.numel() > 0
    )


def _fuses(x: Tensor, add: Tensor | None) -> bool:
    """Whether oneDNN takes maps of this place, size and layout, and gains by it."""
    return (
        onednn_may_take(x)
        and x.is_contiguous(memory_format=torch.channels_last)
        # one channel or one cell lies in memory either way: torch 2.11 takes it for the wrong one
        and (add is None or min(add.shape[1], add.shape[2:].numel()) > 1)
    )


def _dtypes() -> set[torch.dtype]:
    """Return what oneDNN's convolutions take on this machine."""
    if not torch.backends.mkldnn.is_available():
        return set()
    bf16 = computes_in_bf16(torch.device("cpu"))
    return {torch.float32, torch.bfloat16} if bf16 else {torch.float32}


_DTYPES = _dtypes()
_PICTURE_CELLS = 16
"""Along each side: on the 14x14 maps of 512 regions the copies take what they save."""
_Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


class _ConvReLU(torch.autograd.Function):
    """oneDNN's convolution, sum and rectifier; torch's own backward passes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        add: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        """Return the rectified map; all tensors are of one dtype."""
        run = torch.ops.mkldnn._convolution_pointwise
        geometry = (padding, stride, (1, 1), 1)  # dilation, groups
        out: Tensor
        if add is None:
            out = run(x, weight, bias, *geometry, "relu", [], None)
        else:
            out = run.binary(x, add, weight, bias, *geometry, "add", None, "relu", [], None)
        ctx.save_for_backward(x, weight, out)
        ctx.geometry = stride, padding
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight, bias and add."""
        x, weight, out = ctx.saved_tensors
        stride, padding = ctx.geometry
        wanted = ctx.needs_input_grad[:3]
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
        kernel = tuple(weight.shape[2:])
        if (kernel, stride, padding) == ((1, 1), (1, 1), (0, 0)) and x.dtype == torch.bfloat16:
            grads = _product_gradients(grad, x, weight, wanted)
        elif (
            (kernel, stride) == ((3, 3), (2, 2))
            and x.dtype == torch.float32
            and min(x.shape[2:]) >= _PICTURE_CELLS
        ):
            grads = _strided_gradients(grad, x, weight, wanted, padding=padding)
        else:
            grads = _conv_gradients(grad, x, weight, wanted, stride=stride, padding=padding)
        return *grads, grad if ctx.needs_input_grad[3] else None, None, None


def _conv_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    wanted: tuple[bool, bool, bool],
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> _Grads:
    """Return the gradients of x, weight and bias that are wanted."""
    grads: _Grads = torch.ops.aten.convolution_backward(
        grad, x, weight, weight.shape[:1], stride, padding, (1, 1), False, (0, 0), 1, wanted
    )
    return grads


def _strided_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    wanted: tuple[bool, bool, bool],
    *,
    padding: tuple[int, int],
) -> _Grads:
    """Return the gradients of a 3x3 convolution with stride 2, in float32.

    oneDNN takes half the time for those of weights from contiguous maps, copies included (measured
    on an AMD processor alone: docs/LOG.md).
    """
    of_x = of_weight = of_bias = None
    geometry = {"stride": (2, 2), "padding": padding}
    if wanted[0]:
        of_x, _, _ = _conv_gradients(grad, x, weight, (True, False, False), **geometry)
    if any(wanted[1:]):
        grad, x, weight = (each.contiguous() for each in (grad, x, weight))
        others = (False, *wanted[1:])
        _, of_weight, of_bias = _conv_gradients(grad, x, weight, others, **geometry)
    return of_x, of_weight, of_bias


def _product_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
) -> _Grads:
    """Return the gradients of a 1x1 convolution, products of matrices, in bfloat16.

    Those of weights take as little as half the time so. In float32 torch gives products to MKL, on
    an AMD processor less than half as fast as oneDNN's convolutions (docs/LOG.md).
    """
    rows, cells = (each.permute(0, 2, 3, 1).flatten(0, 2) for each in (grad, x))
    of_x = of_weight = of_bias = None
    if wanted[0]:
        of_cells = rows @ weight.flatten(1)
        of_x = of_cells.unflatten(0, (x.shape[0], *x.shape[2:])).permute(0, 3, 1, 2)
    if wanted[1]:
        of_weight = (rows.T @ cells)[..., None, None]
    if wanted[2]:
        of_bias = rows.sum(0)
    return of_x, of_weight, of_bias
