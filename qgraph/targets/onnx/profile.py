"""How long each operator of an ONNX model takes in onnxruntime, by its own profiler."""

from __future__ import annotations

import json
import os
import tempfile

import numpy as np

from qgraph.errors import UnsupportedError
from qgraph.targets.base import Feeds
from qgraph.targets.onnx.fusion import node_of
from qgraph.targets.onnx.runtime import Runnable, first_line, session_options

_TIME = "_kernel_time"


def operator_seconds(model: Runnable, feeds: Feeds, runs: int) -> dict[str, float]:
    """Node of the graph -> seconds of a forward pass, the median over so many runs, after one that warms up.

    What onnxruntime fuses counts for the node that it is named after.
    """
    import onnxruntime as ort

    arrays = {name: np.ascontiguousarray(feeds[name], np.float32) for name in model.inputs}
    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(folder, "profile")
        try:
            session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
            for _ in range(runs + 1):
                session.run(None, arrays)
            with open(session.end_profiling(), encoding="utf-8") as file:
                events = json.load(file)
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            raise UnsupportedError(f"onnxruntime cannot time this model: {first_line(error)}") from error
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_TIME):
            times.setdefault(event["name"].removesuffix(_TIME), []).append(event["dur"] / 1e6)
    found: dict[str, float] = {}
    for name, seconds in times.items():
        node = node_of(name)
        found[node] = found.get(node, 0.0) + float(np.median(seconds[1:]))
    return found

