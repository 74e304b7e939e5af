"""Work on processes of a Dask cluster: nothing depends on them, and nothing is lost when they die."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import mortal
import pytest

from qgraph.cluster import _check, _differing, open_workers
from qgraph.errors import ClusterError, MissingInputError, OptionError
from qgraph.surroundings import Surroundings, stamps, surroundings
from qgraph.workers import Here, Workers

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def two() -> Iterator[Workers]:
    with open_workers(count=2) as workers:
        yield workers


def test_results_come_in_order_from_several_processes(two: Workers) -> None:
    assert (two.count, two.apart) == (2, True)
    assert list(two.map(partial(pow, 2), range(40), "powers")) == [2**n for n in range(40)]
    processes = set(two.map(mortal.process, range(12), "who"))
    assert len(processes) == 2 and os.getpid() not in processes


def test_items_are_asked_for_as_results_are_taken(two: Workers) -> None:
    asked = []
    results = two.map(mortal.thousand, (asked.append(n) or n for n in range(1000)), "thousands")
    assert len(next(results)) == 1000
    assert len(asked) < 50
    results.close()


def test_a_worker_that_dies_loses_nothing(two: Workers, tmp_path: Path) -> None:
    assert list(two.map(partial(mortal.die_once, str(tmp_path / "died")), range(9), "dying")) == list(range(0, 90, 10))
    assert (tmp_path / "died").exists()


def test_an_error_of_the_input_is_the_same_here(two: Workers) -> None:
    results = two.map(mortal.refuse, range(3), "refusing")
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
