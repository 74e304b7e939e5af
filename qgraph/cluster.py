"""Workers on a Dask cluster: one that is running, or processes of this machine.

A worker runs one item at a time.  It is sent our own objects, pickled, and never what a file holds unread.  Dask starts
a worker that died again, and gives its items to others.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Callable

from qgraph.errors import ClusterError, MissingDependencyError, OptionError, QGraphError
from qgraph.surroundings import Surroundings, stamps, surroundings
from qgraph.workers import Here, Item, Result, Workers

log = logging.getLogger("qgraph")

ANSWER_SECONDS = 8  # in which a scheduler, and a first worker of it, must be there
_CONNECT_SECONDS = 3  # in which another process of this machine must take a connection, or counts as dead
_ENVIRONMENT = "distributed.nanny.pre-spawn-environ"  # of Dask's settings: of a worker's process
_TRIMMED = "MALLOC_TRIM_THRESHOLD_"  # Dask sets it, and glibc fetches new pages for each larger array then
_AHEAD = 4  # items of each worker that wait or run
_OPEN = 4  # functions that a worker keeps, with what they opened: of a map, and of those asked for in its middle


@contextmanager
def open_workers(scheduler: str | None = None, count: int | None = None) -> Iterator[Workers]:
    """Workers on the cluster of a scheduler (``tcp://HOST:PORT``), or `count` processes here; without both `Here`.

    Raises OptionError for both, MissingDependencyError without Dask, and ClusterError for a scheduler that does not
    answer, that has no workers, or one that has workers unlike this process.
    """
    if scheduler is not None and count is not None:
        raise OptionError("--scheduler and --workers exclude each other: a scheduler has its own workers")
    if scheduler is None and count is None:
        yield Here()
        return
    if count is not None and count < 1:
        raise OptionError(f"--workers {count}: want at least 1")
    distributed = _dask()
    with _local(distributed, count) if count is not None else _client(distributed, str(scheduler)) as client:
        _check(client)
        found = Cluster(client)
        log.info("%d workers; dashboard: %s", found.count, client.dashboard_link)
        yield found


class Cluster:
    """The workers of a Dask client; their number is that at the start.

    What is asked for while another map waits for its items is computed before these.
    """

    apart = True

    def __init__(self, client: Any) -> None:
        import dask

        self._client, self._config = client, dask.config
        self.count = len(client.nthreads())
        self._open = 0  # maps that are not at their end

    def map(self, run: Callable[[Item], Result], items: Iterable[Item], what: str) -> Iterator[Result]:
        packed = pickle.dumps(run)
        submit, of_this_map = partial(self._client.submit, priority=self._open, pure=False), uuid.uuid4().hex
        with self._config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):
            job = submit(_itself, packed, key=f"{what} (sent)-{of_this_map}")
        waiting: deque[Any] = deque()
        self._open += 1
        try:
            for number, item in enumerate(items):
                waiting.append(submit(_call, job, item, key=f"{what}-{of_this_map}-{number}"))
                if len(waiting) >= _AHEAD * self.count:
                    yield _result(waiting.popleft(), what)
            while waiting:
                yield _result(waiting.popleft(), what)
        finally:  # the caller may leave early
            self._open -= 1
            for future in (job, *waiting):
                future.release()

    def see(self, paths: Sequence[Path]) -> bool:
        mine = stamps(paths)
        return all(theirs == mine for theirs in self._client.run(stamps, paths).values())


def _itself(packed: bytes) -> bytes:
    """What all items of a map need, as a task: Dask computes it again where it was lost."""
    return packed


@dataclass(frozen=True)
class _Refused:
    """What a worker gives where the input is at fault: Dask logs errors that are raised there."""

    error: QGraphError


def _call(packed: bytes, item: Any) -> Any:
    try:
        return _unpacked(packed)(item)
    except QGraphError as error:
        return _Refused(error)


@lru_cache(maxsize=_OPEN)
def _unpacked(packed: bytes) -> Callable[[Any], Any]:
    """The function; it keeps what it opens for its next items."""
    try:
        run: Callable[[Any], Any] = pickle.loads(packed)
    except ImportError as error:
        raise ClusterError(f"a worker lacks a module that the work needs ({error}); install it there") from None
    return run


def _result(future: Any, what: str) -> Any:
    from distributed import KilledWorker

    try:
        found = future.result()
    except KilledWorker as error:
        raise ClusterError(f"{what}: {error.allowed_failures + 1} workers died one after the other while they ran the "
                           "same part; the log of the last one may say why (out of memory?)") from None
    except CancelledError:
        raise ClusterError(f"{what}: the connection to the Dask scheduler was lost; start it again, and repeat the "
                           "command") from None
    if isinstance(found, _Refused):
        raise found.error
    return found


# ---- opening --------------------------------------------------------------------------------------------------------

def _dask() -> Any:
    try:
        import distributed
    except ImportError:
        raise MissingDependencyError("Dask", "running on several processes or machines", "distributed") from None
    return distributed


@contextmanager
def _client(distributed: Any, scheduler: str) -> Iterator[Any]:
    """A client of a scheduler that is running and has a worker."""
    _reach(distributed, scheduler)
    with distributed.Client(scheduler, timeout=ANSWER_SECONDS, set_as_default=False) as client:
        try:
            client.wait_for_workers(1, timeout=ANSWER_SECONDS)
        except distributed.TimeoutError:
            raise ClusterError(f"--scheduler {scheduler}: has no workers; start some with dask worker {scheduler} "
                               "--nthreads 1") from None
        yield client


def _reach(distributed: Any, scheduler: str) -> None:
    """Raise ClusterError where no scheduler answers: a client would wait for minutes for what answers otherwise."""
    async def shake_hands() -> None:
        security = distributed.Security().get_connection_args("client")
        comm = await asyncio.wait_for(distributed.core.connect(scheduler, ANSWER_SECONDS, **security), ANSWER_SECONDS)
        await comm.close()

    try:
        with ThreadPoolExecutor(1) as apart:  # a notebook runs a loop of its own in this thread
            apart.submit(lambda: asyncio.run(shake_hands())).result()
    except Exception as error:  # whatever Dask makes of a foreign answer
        told = str(error) or "there was no answer"
        raise ClusterError(f"--scheduler {scheduler}: no Dask scheduler answers there ({told}); start one with dask "
                           "scheduler, which prints its address: tcp://HOST:8786") from None


@contextmanager
def _local(distributed: Any, count: int) -> Iterator[Any]:
    """A client of so many new processes of this machine, of one thread each, that nobody else reaches."""
    import dask

    variables = {name: value for name, value in dask.config.get(_ENVIRONMENT).items() if name != _TRIMMED}
    with dask.config.set({"distributed.comm.timeouts.connect": f"{_CONNECT_SECONDS}s", _ENVIRONMENT: variables}), \
            distributed.LocalCluster(n_workers=count, threads_per_worker=1, processes=True, memory_limit=0,
                                     host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster, \
            distributed.Client(cluster, set_as_default=False) as client:
        yield client


def _check(client: Any) -> None:
    """Raise ClusterError for a worker that is not like this process, or runs several items at a time."""
    for worker, threads in sorted(client.nthreads().items()):
        if threads > 1:
            raise ClusterError(f"worker {worker} runs {threads} items at a time, want 1, as engines are not made for "
                               f"that: start it with dask worker --nworkers {threads} --nthreads 1")
    mine = surroundings()
    for worker, theirs in sorted(_surroundings(client).items()):
        if differing := _differing(mine.versions, theirs.versions):
            raise ClusterError(f"worker {worker} has {differing}: install the same versions there, or results would "
                               "depend on who computes them")
        if theirs.processor != mine.processor:
            log.warning("warning: worker %s computes on %s, this process on %s: the last bits of floats may depend on "
                        "who computes them", worker, theirs.processor, mine.processor)


def _surroundings(client: Any) -> dict[str, Surroundings]:
    """Worker -> its surroundings."""
    try:
        client.run_on_scheduler(surroundings)
    except Exception as error:
        raise ClusterError(f"the scheduler has no qgraph that works ({error}): start it where the same qgraph is "
                           "installed as here") from None
    found: dict[str, Any] = client.run(surroundings, on_error="return")
    for worker, answer in sorted(found.items()):
        if isinstance(answer, BaseException):
            raise ClusterError(f"worker {worker} has no qgraph that works ({answer}): start it where the same qgraph "
                               "is installed as here")
    return found


def _differing(mine: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """onnxruntime 1.20.0 (here 1.22.1)"""
    return ", ".join(f"{name} {theirs.get(name, 'none')} (here {found})" for name, found in mine.items()
                     if theirs.get(name) != found)
