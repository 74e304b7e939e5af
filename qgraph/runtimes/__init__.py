"""What executes a graph: the NumPy reference and the engines, behind one interface."""

from __future__ import annotations

from typing import Any


def runtime(what_for: str) -> Any:
    """The `Executor` class of the engine that runs float and frozen models here.

    Raises MissingDependencyError, saying what it was needed for, where no engine is installed.
    """
    from qgraph.runtimes import mxnet

    mxnet.import_mxnet(what_for)
    return mxnet.Executor
