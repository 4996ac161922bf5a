"""Precision of forward passes: float32, bfloat16, or bfloat16 where a device computes in it."""

import torch

from engine.schema import Precision, PrecisionSetting


def computes_in_bf16(device: torch.device) -> bool:
    """Return whether a device has bfloat16 instructions; without them torch emulates it, slowly."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # private, but no public function tells; without oneDNN the operators are not there
    has_onednn = torch.backends.mkldnn.is_available()
    return bool(has_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def chosen_precision(device: torch.device, setting: PrecisionSetting) -> Precision:
    """Return what a setting means on a device."""
    if setting != "auto":
        return setting
    return "bf16" if computes_in_bf16(device) else "fp32"


def autocast(device: torch.device, setting: PrecisionSetting) -> torch.autocast:
    """Return the context in which forward passes run."""
    enabled = chosen_precision(device, setting) == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def precision_note(device: torch.device, setting: PrecisionSetting) -> str | None:
    """Return a line for the log: what `auto` has chosen, or that `bf16` is emulated."""
    if setting == "auto":
        return f"loop.precision=auto: {chosen_precision(device, setting)}"
    if setting == "bf16" and not computes_in_bf16(device):
        return (
            "loop.precision=bf16: this device emulates it, several times slower than fp32; "
            "loop.precision=auto takes fp32 here"
        )
    return None
