"""Convolution, sum and ReLU in one pass over the map.

B images, C channels in, D channels out, H x W cells in, H' x W' out.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.kernels import kernels_kind, warn_of_fallback
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

    The fast body runs on a CPU: oneDNN adds and rectifies while it writes the map, which saves two
    passes over memory, a quarter of a prediction's time in bfloat16 and a tenth of a training
    step's (docs/LOG.md). Its ReLU makes 0 of NaN, where torch's keeps NaN. Training notices all the
    same, because the gradient of `weight` is not finite then; weights are checked when loaded.

    Args:
        x: (B, C, H, W).
        weight: (D, C, kernel height, kernel width).
        bias: (D,).
        stride: (down, across).
        padding: zeros around x, (above and below, left and right).
        add: (B, D, H', W').
    """
    if kernels_kind() == "reference":
        return add_relu(F.conv2d(x, weight, bias, stride, padding), add)
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


def _fuses(x: Tensor, add: Tensor | None) -> bool:
    """Whether oneDNN takes a map on this device, of this size and layout, and is faster."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":  # the compiler fuses by itself
        return False
    if not _has_onednn():
        warn_of_fallback("convolution with ReLU", "because this torch has no oneDNN")
        return False
    return (
        bool(torch.backends.mkldnn.enabled)
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        # one channel or one cell lies in memory either way: torch 2.11 takes it for the wrong one
        and (add is None or min(add.shape[1], add.shape[2:].numel()) > 1)
    )


@functools.cache
def _has_onednn() -> bool:
    """Whether torch was built with oneDNN, and has the private operator that is called here."""
    return torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_convolution_pointwise"
    )


def _dtypes() -> set[torch.dtype]:
    """Return the types that oneDNN's convolutions take on this machine."""
    if not torch.backends.mkldnn.is_available():
        return set()
    bf16 = computes_in_bf16(torch.device("cpu"))
    return {torch.float32, torch.bfloat16} if bf16 else {torch.float32}


_DTYPES = _dtypes()
_LEAST_SIDE = 16
"""Cells of a map's side from which copies pay: not on the 14x14 maps of 512 RoIs."""
_Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


class _ConvReLU(torch.autograd.Function):
    """oneDNN's convolution, sum and ReLU forward; torch's own operators backward."""

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
        """Return relu(conv2d(x) + add); all tensors are of one dtype."""
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
        grad = torch.ops.aten.threshold_backward(grad, out, 0)  # ReLU's: 0 where out is 0
        kernel = tuple(weight.shape[2:])
        if (kernel, stride, padding) == ((1, 1), (1, 1), (0, 0)) and x.dtype == torch.bfloat16:
            grads = _product_gradients(grad, x, weight, wanted)
        elif (
            (kernel, stride) == ((3, 3), (2, 2))
            and x.dtype == torch.float32
            and min(x.shape[2:]) >= _LEAST_SIDE
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

    Given contiguous maps, oneDNN takes half the time for the gradient of the weights, copies
    included (docs/LOG.md; measured on an AMD processor only).
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
    """Return the gradients of a 1x1 convolution in bfloat16, as products of matrices.

    That of the weights takes as little as half the time. Not in float32: there torch gives products
    of matrices to MKL, less than half as fast as oneDNN on an AMD processor (docs/LOG.md).
    """
    # y (cells, D) = x (cells, C) @ weight.T, a row for each cell of each image
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
