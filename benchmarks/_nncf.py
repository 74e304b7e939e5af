"""Quantizes an ONNX file by NNCF for OpenVINO, in an environment of its own: NNCF wants a newer NumPy than MXNet.

    python -m venv nncf && nncf/bin/pip install nncf openvino onnx
    nncf/bin/python benchmarks/_nncf.py float.onnx images.npy int8.xml

Without statistics of its own: the default preset, all of the images.  Prints JSON: CPU seconds, peak resident MiB;
imports are counted in neither.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import nncf
import numpy as np
import openvino


def main(source: str, images: str, target: str) -> None:
    array = np.load(images)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    model = openvino.Core().read_model(source)
    data = nncf.Dataset([array[i:i + 1] for i in range(len(array))])
    openvino.save_model(nncf.quantize(model, data, subset_size=len(array)), target)
    print(json.dumps({"cpu": time.process_time() - started, "steps": {}, "before": before / 1024,
                      "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    main(*sys.argv[1:])
