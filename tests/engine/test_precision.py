"""`loop.precision` on a device with bfloat16 and on one that emulates it."""

from pathlib import Path

import pytest
import torch

from engine.precision import autocast, computes_in_bf16
from engine.schema import LoaderConfig, LoopConfig, PrecisionSetting, RunConfig
from engine.trainer import fit
from tests.engine.toy import ToyTask

CPU = torch.device("cpu")


@pytest.fixture(params=[True, False], ids=["bf16 there", "bf16 emulated"])
def has_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Make torch say that the processor has bfloat16, or that it has not."""
    namespace = torch.ops.mkldnn
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(namespace, "_is_mkldnn_bf16_supported", lambda: request.param)
    return bool(request.param)


def enabled(precision: PrecisionSetting) -> bool:
    with autocast(CPU, precision):
        return torch.is_autocast_enabled("cpu")


def test_auto_is_what_the_processor_has(has_bf16: bool) -> None:
    assert computes_in_bf16(CPU) == has_bf16
    assert (enabled("fp32"), enabled("bf16"), enabled("auto")) == (False, True, has_bf16)


def test_without_onednn_bf16_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not computes_in_bf16(CPU)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
def test_the_log_says_what_is_chosen_or_emulated(
    precision: PrecisionSetting,
    has_bf16: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = RunConfig(
        loader=LoaderConfig(workers=0),
        loop=LoopConfig(precision=precision, max_steps=1, batch_size=4),
    )
    fit(ToyTask(), config, output=tmp_path, device="cpu")
    out = capsys.readouterr().out
    chosen = "bf16" if has_bf16 else "fp32"
    assert (f"loop.precision=auto: {chosen}\n" in out) == (precision == "auto")
    assert ("this device emulates it" in out) == (precision == "bf16" and not has_bf16)
