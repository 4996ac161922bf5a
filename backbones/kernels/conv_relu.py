"""Fused convolution, addition and ReLU, in one pass over the feature map.

B images, C input channels, D output channels, H x W input cells, H' x W' output cells.
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

    The fast implementation is for CPUs: oneDNN adds and applies ReLU while it writes the map. That
    saves two passes over memory: a quarter of a prediction's time in bfloat16, and a tenth of a
    training step's (docs/LOG.md). oneDNN's ReLU turns NaN into 0, while torch's keeps NaN. Training
    still notices a NaN, because the gradient of `weight` is not finite then; weights are checked
    when they are loaded.

    Args:
        x: (B, C, H, W).
        weight: (D, C, kernel height, kernel width).
        bias: (D,).
        stride: (vertical, horizontal).
        padding: zeros around x, (above and below, left and right).
        add: (B, D, H', W'), added before ReLU; None: nothing is added.
    """
    if kernels_kind() == "reference":
        return add_relu(F.conv2d(x, weight, bias, stride, padding), add)
    # Under autocast all inputs are cast to its dtype, as conv2d would do. Otherwise they must have
    # one dtype already, or conv2d raises torch's own error.
    is_autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if is_autocast else x.dtype
    inputs = [each for each in (x, weight, bias, add) if each is not None]
    can_fuse = _fuses(x, add) and {dtype, *(each.dtype for each in inputs)} <= _DTYPES
    if not can_fuse or not (is_autocast or all(each.dtype == dtype for each in inputs)):
        return add_relu(F.conv2d(x, weight, bias, stride, padding), add)
    x, weight = (each.to(dtype, memory_format=torch.channels_last) for each in (x, weight))
    bias = None if bias is None else bias.to(dtype)
    add = None if add is None else add.to(dtype, memory_format=torch.channels_last)
    result: Tensor = _ConvReLU.apply(x, weight, bias, add, stride, padding)
    return result


def add_relu(y: Tensor, add: Tensor | None) -> Tensor:
    """Return relu(y + add), computed in place in `y`."""
    return F.relu(y if add is None else y.add_(add), inplace=True)


def _fuses(x: Tensor, add: Tensor | None) -> bool:
    """Return whether oneDNN supports a map of this device, size and layout, and is faster."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":  # the compiler fuses by itself
        return False
    if not _has_onednn():
        warn_of_fallback("convolution with ReLU", "because this torch has no oneDNN")
        return False
    return (
        bool(torch.backends.mkldnn.enabled)
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        # With one channel or one cell, contiguous and channels-last are the same memory; torch 2.11
        # then picks the wrong layout.
        and (add is None or min(add.shape[1], add.shape[2:].numel()) > 1)
    )


@functools.cache
def _has_onednn() -> bool:
    """Return whether torch was built with oneDNN and has the private operator used here."""
    return torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_convolution_pointwise"
    )


def _dtypes() -> set[torch.dtype]:
    """Return the dtypes that oneDNN's convolutions support on this machine."""
    if not torch.backends.mkldnn.is_available():
        return set()
    bf16 = computes_in_bf16(torch.device("cpu"))
    return {torch.float32, torch.bfloat16} if bf16 else {torch.float32}


_DTYPES = _dtypes()
_LEAST_SIDE = 16
"""Side of a map, in cells, from which copies are worth their time: not for 14x14 maps of RoIs."""
_Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


class _ConvReLU(torch.autograd.Function):
    """oneDNN's fused convolution, addition and ReLU forward; torch's own operators backward."""

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
        """Return relu(conv2d(x) + add); all tensors have the same dtype."""
        run = torch.ops.mkldnn._convolution_pointwise
        geometry = (padding, stride, (1, 1), 1)  # dilation 1, one group
        out: Tensor
        if add is None:
            out = run(x, weight, bias, *geometry, "relu", [], None)
        else:
            out = run.binary(x, add, weight, bias, *geometry, "add", None, "relu", [], None)
        # `out` is enough for the gradient of ReLU: it is positive exactly where its input was.
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
        grad = torch.ops.aten.threshold_backward(grad, out, 0)  # of ReLU: 0 where `out` is 0
        # From here `grad` is the gradient of the sum, so of `add` too. Three ways to compute the
        # convolution's gradients, each the fastest for its case.
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
    """Return the gradients of x, weight and bias; None for those not in `wanted`."""
    # dilation (1, 1), not transposed, no output padding, one group
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

    With contiguous maps oneDNN computes the gradient of the weights in half the time, copies
    included (docs/LOG.md; measured only on an AMD processor).
    """
    of_x = of_weight = of_bias = None
    geometry = {"stride": (2, 2), "padding": padding}
    if wanted[0]:
        of_x, _, _ = _conv_gradients(grad, x, weight, (True, False, False), **geometry)
    if any(wanted[1:]):
        # from channels-last to contiguous
        grad, x, weight = (each.contiguous() for each in (grad, x, weight))
        others = (False, *wanted[1:])
        _, of_weight, of_bias = _conv_gradients(grad, x, weight, others, **geometry)
    return of_x, of_weight, of_bias


def _product_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
) -> _Grads:
    """Return the gradients of a 1x1 convolution in bfloat16, as matrix products.

    The gradient of the weights takes as little as half the time. Not used in float32: there torch
    computes matrix products with MKL, less than half as fast as oneDNN on an AMD processor
    (docs/LOG.md).
    """
    # The convolution is y (cells, D) = x (cells, C) @ weight.T, one row per cell of each image.
    # For channels-last maps these reshapes copy nothing.
    rows, cells = (each.permute(0, 2, 3, 1).flatten(0, 2) for each in (grad, x))
    of_x = of_weight = of_bias = None
    if wanted[0]:
        of_cells = rows @ weight.flatten(1)  # (cells, D) @ (D, C)
        # (cells, C) -> (B, H, W, C) -> (B, C, H, W), channels-last in memory
        of_x = of_cells.unflatten(0, (x.shape[0], *x.shape[2:])).permute(0, 3, 1, 2)
    if wanted[1]:
        of_weight = (rows.T @ cells)[..., None, None]  # (D, cells) @ (cells, C) -> (D, C, 1, 1)
    if wanted[2]:
        of_bias = rows.sum(0)
    return of_x, of_weight, of_bias
