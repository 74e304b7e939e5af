"""Times are those of forward passes alone: in alternation, without rounds that warm up, as medians."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from qgraph.commands.timing import ResidentSize, Timing

MIB = 2**20


class World:
    """A clock and a memory that only executors move. log: which executor ran, in order."""

    def __init__(self) -> None:
        self.now, self.log = 100.0, []
        self.size, self.high = 50 * MIB, 0


class Fake:
    """Takes so many seconds, one after another and then the last again. needs, keeps: MiB while it runs and behind."""

    inputs = ("data",)

    def __init__(self, world: World, name: str, seconds: Sequence[float], needs: int = 0, keeps: int = 0) -> None:
        self.world, self.name, self.needs, self.keeps = world, name, needs, keeps
        self._seconds: Iterator[float] = iter(seconds)
        self._last = 0.0

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        self._last = next(self._seconds, self._last)
        self.world.now += self._last
        self.world.log.append(self.name)
        self.world.high = max(self.world.high, self.world.size + self.needs * MIB)
        self.world.size += self.keeps * MIB
        self.keeps = 0
        return [feeds["data"] + len(self.name)]


class Memory(ResidentSize):
    def __init__(self, world: World) -> None:
        self.world = world

    def now(self) -> int:
        return self.world.size

    def restart(self) -> None:
        self.world.high = self.world.size

    def peak(self) -> int:
        return self.world.high


def feeds(images: int = 4, size: int = 2) -> dict[str, np.ndarray]:
    return {"data": np.zeros((images, size), np.float32)}


def measured(world: World, executors: dict[str, Fake], rounds: int, warm_up: int = 1,
             memory: Memory | None = None) -> dict:
    """Of so many rounds on one batch."""
    timing = Timing(executors, warm_up=warm_up, clock=lambda: world.now, memory=memory or Memory(world))
    for _ in range(warm_up + rounds):
        timing.run(feeds())
    return timing.to_dict()


def test_the_order_alternates():
    world = World()
    measured(world, {name: Fake(world, name, [1]) for name in "AB"}, rounds=4, warm_up=0)
    assert "".join(world.log) == "ABBAABBA"
    world.log.clear()
    measured(world, {name: Fake(world, name, [1]) for name in "ABC"}, rounds=2, warm_up=1)
    assert "".join(world.log) == "ABCCBAABC"


def test_rounds_that_warm_up_do_not_count():
    world = World()
    found = measured(world, {"A": Fake(world, "A", [50, 20, 0.4])}, rounds=5, warm_up=2)
    assert len(world.log) == 7
    assert found == {"batch_size": 4, "threads": found["threads"], "warm_up": 2, "rounds": 5, "models": {
        "A": {"ms_per_image": 100.0, "ms_spread": 0.0, "images_per_s": 10.0, "memory_growth_mb": 0.0, "ratio": 1.0}}}


def test_medians_spread_and_ratio():
    """One slow round of a busy machine moves neither the median nor the ratio."""
    world = World()
    found = measured(world, {"float": Fake(world, "float", [0.4, 0.8, 0.4, 0.4, 80]),
                             "int8": Fake(world, "int8", [0.1, 0.2, 0.1, 0.2, 0.16])}, rounds=5, warm_up=0)
    a, b = found["models"]["float"], found["models"]["int8"]
    assert (a["ms_per_image"], b["ms_per_image"]) == (100.0, 40.0)
    assert (a["ms_spread"], b["ms_spread"]) == (100.0, 25.0)
    assert (a["ratio"], b["ratio"]) == (1.0, 0.4) and b["images_per_s"] == 25.0


def test_the_outputs_are_those_of_each_executor_in_the_given_order():
    world = World()
    timing = Timing({"long": Fake(world, "long", [1]), "a": Fake(world, "a", [1])}, clock=lambda: world.now)
    for _ in range(2):
        outputs = timing.run(feeds())
        assert list(outputs) == ["long", "a"]
        assert outputs["long"][0].max() == 4 and outputs["a"][0].max() == 1


def test_a_new_shape_warms_up_again():
    """The last batch is smaller: an engine compiles for it, and that is not the time of a forward pass."""
    world = World()
    timing = Timing({"A": Fake(world, "A", [90, 0.4, 0.4, 30])}, warm_up=1, clock=lambda: world.now)
    for images in (4, 4, 4, 3):
        timing.run(feeds(images))
    found = timing.to_dict()
    assert found["rounds"] == 2 and found["batch_size"] == 4 and found["models"]["A"]["ms_per_image"] == 100.0


def test_what_is_not_known_is_none(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    world = World()
    timing = Timing({"A": Fake(world, "A", [1])}, warm_up=1, clock=lambda: world.now)
    timing.run(feeds())
    found = timing.to_dict()
    assert found["rounds"] == 0 and found["batch_size"] is None and found["threads"] is None
    assert {found["models"]["A"][key] for key in ("ms_per_image", "ms_spread", "images_per_s", "ratio")} == {None}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert timing.to_dict()["threads"] == 3


def test_memory_is_that_of_an_executor_itself_with_what_it_keeps():
    world = World()
    executors = {"A": Fake(world, "A", [1], needs=100, keeps=30), "B": Fake(world, "B", [1], needs=8, keeps=8)}
    models = measured(world, executors, rounds=3, warm_up=1)["models"]
    assert models["A"]["memory_growth_mb"] == 130 and models["B"]["memory_growth_mb"] == 16


def test_no_memory_without_proc():
    class Unknown(ResidentSize):
        def _read(self, field: str) -> None:
            return None

    world = World()
    found = measured(world, {"A": Fake(world, "A", [1])}, rounds=1, memory=Unknown())
    assert found["models"]["A"]["memory_growth_mb"] is None and found["models"]["A"]["ms_per_image"] == 250


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_size_sees_a_peak_that_is_gone_again():
    memory = ResidentSize()
    memory.restart()
    before = memory.now()
    with mmap.mmap(-1, 64 * MIB) as pages:  # of the system, not of what the process has freed
        for start in range(0, len(pages), mmap.PAGESIZE):
            pages[start] = 1
        assert memory.now() > before + 50 * MIB
    assert not memory._watched or memory.peak() > before + 50 * MIB
    assert memory.now() < before + 50 * MIB
