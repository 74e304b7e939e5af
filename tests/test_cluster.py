"""Work on processes of a Dask cluster: nothing depends on them, and nothing is lost when they die."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import errands
import numpy as np
import pytest
from helpers import DIGITS

from qgraph import FreezeOptions, Graph, Strategy, evaluate, simulate
from qgraph.analysis.observed import observed_ports
from qgraph.calibration.collect import collect
from qgraph.calibration.sweep import channel_ranges
from qgraph.cli.main import main
from qgraph.cluster import _check, _differing, _result, open_workers
from qgraph.commands.open_model import open_model
from qgraph.data.open import open_data
from qgraph.errors import ClusterError, MissingInputError, OptionError
from qgraph.options import JudgeOptions, Progress
from qgraph.surroundings import Surroundings, stamps, surroundings
from qgraph.workers import Here, Workers

distributed = pytest.importorskip("distributed")

MODEL = str(DIGITS / "digits-symbol.json")


@pytest.fixture(scope="module")
def two() -> Iterator[Workers]:
    with open_workers(count=2) as workers:
        yield workers


def test_results_come_in_order_from_several_processes(two: Workers) -> None:
    assert (two.count, two.apart) == (2, True)
    assert list(two.map(partial(pow, 2), range(40), "powers")) == [2**n for n in range(40)]
    processes = set(two.map(errands.process, range(12), "who"))
    assert len(processes) == 2 and os.getpid() not in processes


def test_items_are_asked_for_as_results_are_taken(two: Workers) -> None:
    asked = []
    results = two.map(errands.thousand, (asked.append(n) or n for n in range(1000)), "thousands")
    assert len(next(results)) == 1000
    assert len(asked) < 50
    results.close()


def test_what_a_worker_opened_outlasts_a_map_in_the_middle(two: Workers) -> None:
    told = []
    for number, found in enumerate(two.map(errands.Counting(), range(40), "counting")):
        told.append(found)
        if number == 8:  # as ranges are looked for while rows run
            list(two.map(errands.thousand, range(8), "ranges"))
            list(two.map(errands.process, range(8), "histograms"))
    assert len(set(told)) == 40


def test_arrays_of_workers_keep_their_memory(two: Workers) -> None:
    assert set(two.map(errands.variable, ["MALLOC_TRIM_THRESHOLD_"] * 8, "variables")) == {None}
    assert set(two.map(errands.variable, ["OMP_NUM_THREADS"] * 8, "variables")) == {"1"}


def test_an_error_of_the_input_is_the_same_here(two: Workers) -> None:
    results = two.map(errands.refuse, range(3), "refusing")
    assert next(results) == 0
    with pytest.raises(MissingInputError, match="^item 1 has no input b$") as caught:
        next(results)
    assert caught.value.names == ("b",)


def test_both_kinds_of_workers_exclude_each_other() -> None:
    with pytest.raises(OptionError, match="--scheduler and --workers exclude each other"), \
            open_workers("tcp://127.0.0.1:8786", 2):
        pass
    with open_workers() as workers:
        assert isinstance(workers, Here)


@pytest.mark.parametrize(("address", "told"), [("tcp://127.0.0.1:{}", "no Dask scheduler answers there"),
                                               ("nowhere", "missing port number")])
def test_a_scheduler_that_is_not_there(address: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qgraph.cluster.ANSWER_SECONDS", 0.5)
    with socket.socket() as silent:  # takes connections, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ClusterError, match=f"--scheduler {address.format('[0-9]+')}: .*{told}.*dask scheduler"), \
                open_workers(address.format(silent.getsockname()[1])):
            pass


class _Future:
    """Of a task that was lost."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def result(self) -> None:
        raise self.error


def test_what_is_lost_for_good_is_told() -> None:
    with pytest.raises(ClusterError, match="^ranges: 4 workers died one after the other while they ran the same part"):
        _result(_Future(distributed.KilledWorker("task", None, 3)), "ranges")
    with pytest.raises(ClusterError, match="^ranges: the connection to the Dask scheduler was lost"):
        _result(_Future(CancelledError()), "ranges")


class _Client:
    """A Dask client of workers with these surroundings, and so many threads."""

    def __init__(self, found: Surroundings | Exception, threads: int = 1) -> None:
        self.found, self.threads = found, threads

    def nthreads(self) -> dict[str, int]:
        return {"tcp://a:1": 1, "tcp://b:2": self.threads}

    def run(self, function: object, on_error: str) -> dict[str, object]:
        return {"tcp://a:1": surroundings(), "tcp://b:2": self.found}

    def run_on_scheduler(self, function: object) -> Surroundings:
        return surroundings()


def test_workers_are_compared_first(caplog: pytest.LogCaptureFixture) -> None:
    mine = surroundings()
    _check(_Client(mine))
    other = Surroundings({**mine.versions, "onnxruntime": "1.2.3"}, mine.processor)
    with pytest.raises(ClusterError, match=r"worker tcp://b:2 has onnxruntime 1.2.3 \(here [0-9.]+\): install"):
        _check(_Client(other))
    with pytest.raises(ClusterError, match=r"worker tcp://b:2 has no qgraph that works \(No module named 'qgraph'\)"):
        _check(_Client(ModuleNotFoundError("No module named 'qgraph'")))
    with pytest.raises(ClusterError, match="worker tcp://b:2 runs 8 items at a time, want 1.*--nworkers 8 --nthreads"):
        _check(_Client(mine, threads=8))
    assert not caplog.text
    _check(_Client(Surroundings(mine.versions, "pdp11")))
    assert "worker tcp://b:2 computes on pdp11" in caplog.text


def test_sources_and_versions_tell_processes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    before = surroundings()
    assert pickle.loads(pickle.dumps(before)) == before == surroundings()
    assert before.versions["numpy"][0].isdigit() and "sources" in before.versions["qgraph"]
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path.name == "cluster.py"))
    assert _differing(before.versions, surroundings().versions).startswith("qgraph ")


def test_stamps_tell_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"one")
    first = stamps([folder, folder / "a.png", tmp_path / "none"])
    assert first == stamps([folder, folder / "a.png", tmp_path / "none"]) and first[2] == "" != first[1]
    (folder / "a.png").write_bytes(b"two")
    assert stamps([folder, folder / "a.png"])[1] != first[1]
    (folder / "b.png").touch()
    assert stamps([folder])[0] != first[0]


# ---- what commands compute ------------------------------------------------------------------------------------------

def killer(what: str) -> tuple[list[int], Callable[[str, int, int | None], None]]:
    """A progress that kills a worker with -9 once `what` has begun, and the processes that it has killed."""
    killed: list[int] = []

    def progress(doing: str, done: int, total: int | None) -> None:
        if doing == what and not killed:
            killed.append(multiprocessing.active_children()[0].pid or 0)
            os.kill(killed[0], signal.SIGKILL)

    return killed, progress


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 images of digits, in a file."""
    path = tmp_path_factory.mktemp("images") / "test.npz"
    with np.load(f"{DIGITS}/digits-test.npz") as test:
        np.savez(path, data=test["data"][:80], label=test["label"][:80])
    return path


@pytest.fixture(scope="module")
def network() -> Graph:
    return open_model(MODEL).float_graph("testing", ())


def table(g: Graph, source: object, method: str, workers: Workers | None = None,
          progress: Progress | None = None) -> bytes:
    return collect(g, open_data(source, batch_size=8), method, runtime="onnxruntime", workers=workers,
                   progress=progress).to_json()


@pytest.fixture(scope="module")
def tables(network: Graph, images: Path) -> dict[str, bytes]:
    """Those of this process."""
    return {method: table(network, images, method) for method in ("kl", "ema")}


def test_ranges_are_the_same_bits_when_a_worker_dies(two: Workers, network: Graph, images: Path,
                                                     tables: dict[str, bytes]) -> None:
    killed, progress = killer("ranges")
    assert table(network, images, "kl", two, progress) == tables["kl"]
    assert killed


def test_moving_averages_stay_here(two: Workers, network: Graph, images: Path, tables: dict[str, bytes],
                                   caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "qgraph")
    assert table(network, images, "ema", two) == tables["ema"]
    assert "moving averages depend on the order of the batches: ranges are gathered in this process" in caplog.text


def test_ranges_of_channels(two: Workers, network: Graph, images: Path) -> None:
    ports = observed_ports(network)
    data = open_data(images, batch_size=8)
    here, apart = (channel_ranges(network, data, ports, runtime="onnxruntime", workers=workers)
                   for workers in (Here(), two))
    assert len(here) == len(ports) and all(np.array_equal(a, b) for a, b in zip(here, apart))


def judged(images: object, workers: Workers | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """What eval says of the network and one with other weights, but for times."""
    other = open_model(MODEL).float_graph("testing", ())
    other.params = {name: x * np.float32(0.97) if x.ndim == 4 else x for name, x in other.params.items()}
    found = evaluate(other, images, MODEL, options=JudgeOptions(batch_size=8), runtime="onnxruntime", workers=workers,
                     progress=progress)
    return {key: value for key, value in found.items() if key not in ("timing", "ms_per_image")}


@pytest.fixture(scope="module")
def judgement(images: Path) -> dict[str, Any]:
    found = judged(images)
    assert found["images"] == 80 and 80 < found["agreement"] <= 100 and found["judged"]["sqnr_db"] < 40
    return found


def test_metrics_are_the_same_bits_when_a_worker_dies(two: Workers, images: Path, judgement: dict[str, Any]) -> None:
    killed, progress = killer("evaluating")
    assert judged(images, two, progress) == judgement
    assert killed


STRATEGIES = [Strategy(weight_bits=bits) for bits in (8, 3)]


def rows(images: object, workers: Workers | None = None, progress: Progress | None = None) -> str:
    options = FreezeOptions(effort="fast", batch_size=8, runtime="onnxruntime")
    return simulate(MODEL, images, STRATEGIES, options, workers=workers, progress=progress).to_json()


@pytest.fixture(scope="module")
def simulated(images: Path) -> str:
    found = rows(images)
    assert len({row["sqnr_db"] for row in json.loads(found)["rows"]}) == len(STRATEGIES)
    return found


def test_rows_are_the_same_when_a_worker_dies(two: Workers, images: Path, simulated: str) -> None:
    killed, progress = killer("simulating")
    assert rows(images, two, progress) == simulated
    assert killed


# ---- the command line -----------------------------------------------------------------------------------------------

FLAGS = {"freeze": ["--workers", "2"], "simulate": ["--workers", "2"], "eval": ["--scheduler", "tcp://a:1"]}


def test_flags_of_the_command_line(two: Workers, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    @contextmanager
    def opened(*given: object) -> Iterator[Workers]:
        asked.append(given)
        yield two if any(given) else Here()

    monkeypatch.setattr("qgraph.cluster.open_workers", opened)
    common = ["--runtime", "onnxruntime", "--batch-size", "8"]
    shutil.copy(f"{DIGITS}/digits-calib.npz", tmp_path / "calib.npz")
    for command, suffix in ((["freeze", MODEL, "--target", "onnx", "--calib", "kl", "--calib-data",
                              str(tmp_path / "calib.npz"), "--effort", "fast"], ".calib.json"),
                            (["simulate", MODEL, "--data", str(images), "--effort", "fast"], ".json"),
                            (["eval", MODEL, "--data", str(images)], "")):
        told = []
        for flags in ([], FLAGS[command[0]]):
            prefix = tmp_path / "-".join(["out", *flags[:1]])
            assert main([*command, *common, *flags, *(["--output", str(prefix)] if suffix else [])]) == 0
            out = capsys.readouterr().out
            told.append(Path(f"{prefix}{suffix}").read_bytes() if suffix else [
                line for line in out.splitlines() if not line.startswith(("ms_per_image", "timed"))])
        assert told[0] == told[1] and len(told[0]) > 2
    assert asked == [(None, None), (None, 2), (None, None), (None, 2), (None, None), ("tcp://a:1", None)]


# ---- two machines ---------------------------------------------------------------------------------------------------

@contextmanager
def machine(kind: str, *args: str, cwd: Path) -> Iterator[None]:
    """A scheduler or a worker in a process of its own, in its own folder."""
    cwd.mkdir(exist_ok=True)
    process = subprocess.Popen([sys.executable, "-m", "dask", kind, *args, "--no-dashboard", "--host", "127.0.0.1"],
                               cwd=cwd, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def test_two_machines(network: Graph, images: Path, tables: dict[str, bytes], judgement: dict[str, Any],
                      tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level("INFO", "qgraph")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with machine("scheduler", "--port", address.rpartition(":")[2], cwd=tmp_path / "a"), \
            machine("worker", address, "--nthreads", "1", "--no-nanny", cwd=tmp_path / "b"), \
            machine("worker", address, "--nthreads", "1", "--no-nanny", cwd=tmp_path / "c"):
        wait_for_workers(address, 2)
        with open_workers(address) as workers:
            assert workers.count == 2
            assert table(network, images, "kl", workers) == tables["kl"]
            assert "are sent" not in caplog.text
        # a path that each process finds in its own current folder, which is there in this process alone
        shutil.copy(images, tmp_path / "test.npz")
        monkeypatch.chdir(tmp_path)
        with open_workers(address) as workers:
            assert judged("/proc/self/cwd/test.npz", workers) == judgement
        assert "images of test.npz are sent: not every worker finds the same at /proc/self/cwd" in caplog.text


def wait_for_workers(address: str, count: int) -> None:
    with distributed.Client(address, timeout=100, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=100)
