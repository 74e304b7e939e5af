"""For every test: markers skip what this machine cannot run, and hypothesis tries the same examples each time."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

from qgraph.processor import choose_kernels

choose_kernels()  # as the command line does, which some tests run in a process of its own

import pytest
from helpers import CASES, MXNET, NCNN, OPENVINO
from hypothesis import HealthCheck, settings

# one example must not fail because the machine is busy, nor a fixture be made anew for each
settings.register_profile("qgraph", derandomize=True, deadline=None,
                          suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("qgraph")


def reasons(item: pytest.Item) -> Iterator[str]:
    """Why this test cannot run here."""
    if not MXNET and item.get_closest_marker("mxnet"):
        yield "MXNet is not installed"
    if not NCNN and item.get_closest_marker("ncnn"):
        yield "the package ncnn is not installed"
    if not OPENVINO and item.get_closest_marker("openvino"):
        yield "OpenVINO is not installed"
    for marker in item.iter_markers("cases"):
        for path in (CASES / name for name in marker.args):
            if not path.exists():
                yield f"{path} is not there: set QGRAPH_CASES"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that no worker begins one when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name != "test_core.py", item.path not in slow))
    for item in items:
        for reason in reasons(item):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def fresh_log() -> None:
    """What the command line set in an earlier test is undone: its handler, and how much is said."""
    for name in ("qgraph", "qgraph.passes"):
        log = logging.getLogger(name)
        log.handlers = []
        log.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True, scope="module")
def collected() -> Iterator[None]:
    """MXNet's executors hold much memory in few Python objects, so the collector would let them pile up."""
    yield
    gc.collect()
