"""Processes of a restarted job agree on a name, whatever killed processes left in the store."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch._C._distributed_c10d import HashStore, Store

from engine.errors import PeerError
from engine.rendezvous import _agree

SIZE = 3


def agree(store: Store, *ranks: int, timeout_s: float = 20.0) -> list[str]:
    """Return the names that processes of some ranks, here threads, agree on."""
    with ThreadPoolExecutor(SIZE) as threads:
        results = [threads.submit(_agree, store, rank, SIZE, timeout_s=timeout_s) for rank in ranks]
        return [each.result() for each in results]


def test_all_agree_on_one_name() -> None:
    assert len(set(agree(HashStore(), 0, 1, 2))) == 1


def test_each_restart_has_its_own_name() -> None:
    store = HashStore()  # torchrun keeps it over restarts
    names = [agree(store, *order) for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2))]
    assert [len(set(each)) for each in names] == [1, 1, 1]
    assert len({each[0] for each in names}) == 3


@pytest.mark.parametrize("started", [(0,), (1,), (0, 1), (1, 2)], ids=str)
def test_processes_killed_while_they_waited_are_not_taken_for_new_ones(
    started: tuple[int, ...],
) -> None:
    store = HashStore()
    with pytest.raises(PeerError, match=r"start within 0\.2 s"):
        agree(store, *started, timeout_s=0.2)
    assert len(set(agree(store, 2, 0, 1))) == 1


def test_a_stale_name_alone_completes_nothing() -> None:
    store = HashStore()
    agree(store, 0, 1, 2)
    with pytest.raises(PeerError):
        agree(store, 0, 1, timeout_s=0.3)  # rank 2 left its name and its confirmation
