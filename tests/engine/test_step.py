import pytest
import torch

from engine.step import HostCopy


def test_a_copy_holds_the_values_of_its_time() -> None:
    values = torch.tensor([True, False])
    copy = HostCopy(values)
    values.logical_not_()
    assert copy.tolist() == [True, False]


@pytest.mark.gpu
def test_reading_a_copy_waits_for_nothing_that_came_after() -> None:
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
