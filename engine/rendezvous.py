"""Meeting of the processes of a job: a key-value store that holds nothing of an earlier attempt.

torchrun keeps one store over all restarts of a job (seen in torch 2.14). A restarted process can
read there what a killed one wrote, such as its address, and then wait for it until the time limit.
The number of restarts in the environment does not tell attempts apart: each machine counts its own.
"""

import time
from datetime import timedelta
from uuid import uuid4

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from engine.errors import PeerError

_POLL_S = 0.02
_ROSTER = "resdet/roster"


def join_job(*, timeout_s: float) -> tuple[Store, int, int]:
    """Return a store of this attempt, this process's rank, and the number of processes.

    The processes are those of torchrun's environment variables.

    Raises:
        PeerError: another process did not come within `timeout_s`.
    """
    limit = timedelta(seconds=timeout_s)
    store, rank, size = next(iter(rendezvous("env://", timeout=limit)))
    store.set_timeout(limit)
    attempt = _agree(store, rank, size, timeout_s=timeout_s)
    return PrefixStore(attempt, store), rank, size


def _agree(store: Store, rank: int, size: int, *, timeout_s: float) -> str:
    """Return a name that all processes of this attempt have agreed on, and no others.

    Each process writes a random name of its own. Rank 0 publishes a roster: a random name of the
    attempt, then the names of all ranks. A process confirms a roster that holds its own name; one
    that holds the name of a dead process is never confirmed by all. When all have confirmed, rank 0
    says so.
    """
    own = uuid4().hex
    names = [f"resdet/name/{each}" for each in range(size)]
    store.set(names[rank], own)
    published: list[str] = []  # rank 0: the names in its newest roster
    attempt = ""  # the newest roster that holds this process's name
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if rank == 0 and store.check(names):
            present = [store.get(name).decode() for name in names]
            if present != published:
                published, attempt = present, uuid4().hex
                store.set(_ROSTER, " ".join([attempt, *present]))
            confirmed = [f"resdet/{attempt}/{each}" for each in range(1, size)]
            if store.check(confirmed):
                store.set(f"resdet/{attempt}/complete", "")
                return attempt
        elif rank > 0 and store.check([_ROSTER]):
            newest, *present = store.get(_ROSTER).decode().split()
            if newest != attempt and len(present) == size and present[rank] == own:
                attempt = newest
                store.set(f"resdet/{attempt}/{rank}", "")
            if attempt and store.check([f"resdet/{attempt}/complete"]):
                return attempt
        time.sleep(_POLL_S)
    raise PeerError(
        f"process {rank} of 0..{size - 1}: expected all processes of the job to start within "
        f"{timeout_s:g} s, got no answer from some"
    )
