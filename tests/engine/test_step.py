"""Asynchronous copies of step results to the host."""

import pytest
import torch

from engine.step import HostCopy


def test_host_copy_keeps_the_values_at_its_creation() -> None:
    values = torch.tensor([True, False])
    copy = HostCopy(values)
    values.logical_not_()
    assert copy.tolist() == [True, False]


@pytest.mark.gpu
def test_reading_a_host_copy_does_not_wait_for_later_work() -> None:
    values = torch.tensor([True, False], device="cuda")
    torch.cuda._sleep(1)  # the first call loads the kernel
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        copy = HostCopy(values)
        torch.cuda._sleep(2_000_000_000)  # about a second
        values.logical_not_()
        assert copy.tolist() == [True, False]
        assert not torch.cuda.current_stream().query(), "the sleep is over: tolist waited for it"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
