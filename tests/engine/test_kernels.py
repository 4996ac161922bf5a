"""RESDET_KERNELS, and what a run says of it."""

import pytest

from engine.errors import UserError
from engine.kernels import kernels_kind, kernels_note, warn_of_fallback


def test_fast_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESDET_KERNELS", raising=False)
    assert kernels_kind() == "fast"


def test_the_variable_chooses_at_once(kernels: str) -> None:
    assert kernels_kind() == kernels
    assert kernels_note() == f"kernels: {kernels}"


@pytest.mark.parametrize("value", ["", "slow", "FAST"])
def test_another_value_is_one_line(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESDET_KERNELS", value)
    with pytest.raises(
        UserError, match=f"RESDET_KERNELS: expected fast or reference, got '{value}'"
    ):
        kernels_kind()


@pytest.mark.filterwarnings("default")
def test_a_fallback_is_told_once(recwarn: pytest.WarningsRecorder) -> None:
    warn_of_fallback.cache_clear()
    for _ in range(3):
        warn_of_fallback("NMS", "because this is a test")
    assert [str(each.message) for each in recwarn] == [
        "NMS: the reference kernel runs, because this is a test"
    ]
