"""Where the streaming pass runs: threads of this process, or a dask.distributed cluster."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from capture.errors import OutliersError


@contextmanager
def scheduler(address: str | None = None, workers: int | None = None) -> Iterator[None]:
    """Run every streaming pass inside the block on a cluster; on threads where neither is given.

    Parameters
    ----------
    address : of a running scheduler, such as `tcp://HOST:8786`
    workers : number of worker processes to start on this machine, and to stop afterwards

    Returns
    -------
    a context manager, for `with`

    Raises
    ------
    OutliersError
        Both are given, `workers` is no positive number, dask.distributed is not installed, or nobody answers.
    """
    if address is None and workers is None:
        yield
        return
    if address is not None and workers is not None:
        raise OutliersError("both --scheduler and --workers are given; expected one of them")
    if workers is not None and workers < 1:
        raise OutliersError(f"workers is {workers}; expected 1 or more")
    try:
        distributed: Any = import_module("distributed")
    except ImportError as error:
        raise OutliersError(
            "dask.distributed is not installed; install it with: pip install 'outlier-features[distributed]'"
        ) from error
    cluster: Any = None
    try:
        if workers is not None:
            # What fails in a worker is raised here, where it is told in one line; workers log its traceback as well.
            cluster = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            )
        try:
            # A default client outlives its failure to connect, and everything after would wait for it.
            client = distributed.Client(cluster if address is None else address, timeout="10s", set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise OutliersError(
                f"no scheduler answers at {address}; start one with: dask scheduler, or pass --workers N"
            ) from error
        try:
            if cluster is not None:
                client.run(_leave_interrupts)
            with client.as_current():
                yield
        except distributed.KilledWorker as error:
            raise OutliersError(
                "a worker ended again and again at the same work, most likely for want of memory; use fewer --workers, "
                "or a scheduler whose workers have more"
            ) from error
        finally:
            client.close()
    finally:
        if cluster is not None:
            cluster.close()


def _leave_interrupts() -> None:
    """Go on at a Ctrl-C, which a terminal sends to all: the process that started this one hears it, and ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
