"""Freezing networks that are no classifiers: detection, segmentation, poses, videos, sequences, attention.

    python benchmarks/zoo_freeze.py [--work FOLDER] [--only yolo,crnn] [--targets mxnet,onnx] [--quick]

60 networks (_zoo.py): members of all families of GluonCV at small inputs, and some that GluonCV does not have.  Their
weights are made by a script: random, with BatchNorm statistics of real activations and separated scores, see
`zoo_coverage.randomize`.  Each is frozen whole for every target, with 4 images, and judged on these: the worst SQNR in
dB of an output against the float network in MXNet.  Decoded boxes and classes are not judged by dB: what decoding
reads (the last layers before anything sorts, suppresses or asks for equality) is, and is an output of its own.

Targets: those of qgraph, with options or without (with `onnx{isa=avx2}` nothing can saturate), `onnx-alone` (in a
process that cannot import MXNet), `ncnn` up to the heads: at the outputs that qgraph itself names where it refuses.  A
network passes if it is frozen, and `kernels`, the codes within one of exact arithmetic, are at least 99.9 %, in the
worst of its tensors.  Beside them is what the report says of saturation on CPUs without VNNI: the most outputs of one
layer that are off, in percent.  Every tensor below 99.9 % is named, with the part of its wrong codes that a model of
the CPU's saturating instruction gives just so (_saturated.py).

Each network and target has a process of its own with a time limit.  FOLDER keeps the networks and `results.jsonl`, a
line each: the same command goes on where it was stopped; delete a line to run it again.  The whole takes hours; --quick
leaves out the adaptive rounding of weights, which takes half of the time, and what ran so is marked with *.
Prints Markdown; exit code 3 if fewer than 57 networks of 60 pass on mxnet, mxnet-sim or onnx.
"""

from __future__ import annotations

import sys

ALONE = "onnx-alone"
if ALONE in sys.argv[1:2]:
    sys.modules["mxnet"] = None  # type: ignore[assignment]  # import mxnet raises ImportError

import argparse  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import re  # noqa: E402
import resource  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
from _common import table  # noqa: E402
from _saturated import wrong_codes  # noqa: E402
from _zoo import NETWORKS, Network  # noqa: E402
from zoo_coverage import STOPS, randomize  # noqa: E402

import qgraph  # noqa: E402
from qgraph import FreezeOptions, Graph, engines  # noqa: E402
from qgraph.analysis.difference import Difference  # noqa: E402
from qgraph.commands.open_model import end_at  # noqa: E402
from qgraph.errors import UnsupportedError  # noqa: E402
from qgraph.formats.mxnet import load  # noqa: E402
from qgraph.formats.mxnet_writer import save  # noqa: E402
from qgraph.ir import ops  # noqa: E402
from qgraph.ir.graph import Node, Port  # noqa: E402
from qgraph.passes import PIPELINES  # noqa: E402
from qgraph.targets.registry import get_target  # noqa: E402

MAKE, IMAGES, KERNELS, WANTED = "make", 4, 99.9, 57
OF_SATURATION = 95  # percent of a tensor's wrong codes
SHIFT = 1.5  # of BatchNorms: with more closed units the noise of random networks grows from layer to layer
TARGETS = ("mxnet", "mxnet-sim", "onnx", ALONE, "ncnn")
BODY = {"Activation", "LeakyReLU", "Pooling", "BatchNorm"}  # behind layers, and not of the decoding
SLOW = "round-weights"
CUTS = 3  # so often is a network ended earlier
Feeds = dict[str, np.ndarray]


def judged(g: Graph) -> list[Port]:
    """The outputs that no decoding is in front of, and what the decoding reads: the last layers in front of it."""
    behind: set[Any] = set()
    for node in g.toposort():
        if node.op in STOPS or any(port.node in behind for port in g.inputs(node)):
            behind.add(node)
    found = {head: None for head in g.heads if head.node not in behind}
    waiting = [port for node in g.toposort() if node in behind for port in g.inputs(node) if port.node not in behind]
    seen = set(waiting)
    while waiting:
        port = waiting.pop(0)
        shortcut = port.node.op == "elemwise_add" and all(_in_body(p.node) for p in g.inputs(port.node))
        if shortcut or _in_body(port.node):
            found[port] = None
        else:
            fresh = [p for p in g.inputs(port.node) if p not in seen]
            seen.update(fresh)
            waiting += fresh
    return list(found)


def _in_body(node: Node) -> bool:
    return node.op in BODY or ops.kind(node) == ops.COMPUTE


def make(network: Network, prefix: str) -> dict[str, Any]:
    """Write the network, its images, and what MXNet gives for them; no figures."""
    from qgraph.formats.gluon import from_gluon

    rng = np.random.default_rng(0)
    net, shapes = network.make()
    feeds = network.feeds(shapes, IMAGES, rng)
    g = from_gluon(net, {name: (network.batch, *shape) for name, shape in shapes.items()})
    randomize(g, {name: x[:network.batch] for name, x in feeds.items()}, rng, SHIFT)
    ports = judged(g)
    g.heads = list(dict.fromkeys([*g.heads, *ports]))
    want = outputs(engines.runtime("making a network", "mxnet")(g), feeds, network.batch)
    names = [port.key for port in g.heads]
    kept = [name for name, port in zip(names, g.heads) if port in ports]
    for name, array in zip(names, want):
        if name in kept and not (np.isfinite(array).all() and array.std()):
            raise ValueError(f"output {name} is not finite or constant")
    np.savez(f"{prefix}-calib.npz", **feeds)
    np.savez(f"{prefix}-want.npz", **{name: array for name, array in zip(names, want) if name in kept})
    save(g, prefix)
    return {}


def outputs(executor: Any, feeds: Feeds, batch: int) -> list[np.ndarray]:
    """Of all images, in batches of so many; an output without a row per image is as of the last batch."""
    runs = [executor.run({name: x[start:start + batch] for name, x in feeds.items()})
            for start in range(0, IMAGES, batch)]
    return [np.concatenate(values) if values[0].ndim else values[-1] for values in zip(*runs)]


def freeze(network: Network, target: str, prefix: str, quick: bool) -> dict[str, Any]:
    """The figures of one network and target."""
    want = dict(np.load(f"{prefix}-want.npz"))
    feeds = dict(np.load(f"{prefix}-calib.npz"))
    kind = "onnx" if target == ALONE else target
    ends: tuple[str, ...] = tuple(want) if target == "ncnn" else ()
    passes = [step.name for step in PIPELINES["float"]] + [*get_target(kind).passes]
    options = FreezeOptions(target=kind, passes=",".join(n for n in passes if n != SLOW) if quick else None)
    started = time.perf_counter()
    for left in reversed(range(CUTS)):
        try:
            frozen = qgraph.freeze(prefix, replace(options, outputs=ends), calib_data=f"{prefix}-calib.npz")
            break
        except UnsupportedError as error:
            advised = tuple(re.findall(r"--outputs (\S+)", str(error).partition("the tensors in front:")[2]))
            if target != "ncnn" or not advised or not left:
                raise
            ends = advised
            g = end_at(load(f"{prefix}-symbol.json", f"{prefix}-0000.params"), ends)
            want = dict(zip(ends, outputs(engines.runtime("judging", "mxnet")(g), feeds, network.batch)))
    seconds = time.perf_counter() - started
    frozen.save(f"{prefix}-{target}")
    found = dict(zip(frozen_names(prefix, ends),
                     outputs(engines.executor(frozen.model, "judging"), feeds, network.batch)))
    decibels = {}
    for name, array in want.items():
        difference = Difference()
        difference.update(array, found[name])
        decibels[name] = 200.0 if difference.sqnr is None else difference.sqnr
    worst = min(decibels, key=lambda name: decibels[name])
    report = frozen.report
    layers = len(report["quantized"]) + len(report["float"])
    kernels = (report["departure"] or {}).get("within_one")
    some = {name: x[:network.batch] for name, x in feeds.items()}
    wrong = {} if kernels is None or kernels >= KERNELS else wrong_codes(
        frozen, some, get_target(kind), tap_major=kind.startswith("onnx"), least=KERNELS)
    return {"quantized": len(report["quantized"]), "layers": layers, "db": round(decibels[worst], 1), "output": worst,
            "outputs": len(want), "kernels": kernels, "wrong": wrong, "cut": len(ends),
            "why": sorted({layer["reason"] for layer in report["float"]}), "seconds": round(seconds, 1),
            "quick": quick, "saturates": max((f["missed_percent"] for f in report["saturation"]), default=0.0)}


def frozen_names(prefix: str, ends: tuple[str, ...]) -> list[str]:
    return [*ends] or [head.key for head in load(f"{prefix}-symbol.json", f"{prefix}-0000.params").heads]


def child(step: str, name: str, work: str, quick: str = "") -> int:
    """One step of one network, in this process; the last line that it prints is its result."""
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.WARNING)
    network, prefix = NETWORKS[name], f"{work}/{name}"
    result: dict[str, Any] = {"error": ""}
    try:
        result.update(make(network, prefix) if step == MAKE else freeze(network, step, prefix, bool(quick)))
    except Exception as error:  # whatever it is, it belongs in the table
        result["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"
        logging.exception("%s %s", name, step)
    result["mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print("\n" + json.dumps(result), flush=True)
    return 0


def run(step: str, name: str, work: Path, timeout: int, quick: bool) -> dict[str, Any]:
    """The result of a step, of a process of its own; what it logs goes to a file."""
    log = work / f"{name}.{step}.log"
    try:
        with log.open("w") as stderr:
            done = subprocess.run([sys.executable, __file__, step, name, str(work), *["quick"] * quick], text=True,
                                  stdout=subprocess.PIPE, stderr=stderr, timeout=timeout)
        result = json.loads(done.stdout.strip().splitlines()[-1]) if done.stdout.strip() else {
            "error": f"the process ended with code {done.returncode}", "mib": 0}
    except subprocess.TimeoutExpired:
        result = {"error": f"took more than {timeout} s", "mib": 0}
    for path in work.glob(f"{name}-{step}*"):
        path.unlink()
    return {"network": name, "target": step, **result}


def passes(result: dict[str, Any]) -> bool:
    return not result["error"] and (result["kernels"] is None or result["kernels"] >= KERNELS)


def saturates(result: dict[str, Any]) -> bool:
    """Whether it fails, and for no other reason than saturation."""
    wrong = result.get("wrong", {}).values()
    return not passes(result) and bool(wrong) and all(found["percent"] >= OF_SATURATION for found in wrong)


def row(result: dict[str, Any]) -> list[str]:
    if result["error"]:
        return [result["network"], result["target"], "", "", "", "", str(result["mib"]),
                result["error"][:160].replace("|", "/")]
    kernels = "" if result["kernels"] is None else f"{result['kernels']:.2f} ({result['saturates']:.2g})"
    wrong = "".join(f"; {name}: {found['wrong']} of {found['of']} codes, {found['percent']} % of them by saturation"
                    for name, found in result.get("wrong", {}).items())
    return [result["network"], result["target"], f"{result['quantized']} of {result['layers']}",
            f"{result['db']:.1f}" + "*" * result["quick"], kernels, f"{result['seconds']:.0f}", str(result["mib"]),
            f"{result['outputs']} outputs, worst {result['output']}{wrong}"]


def main() -> int:
    if sys.argv[1:2] and sys.argv[1].partition("{")[0] in (MAKE, *TARGETS):
        return child(*sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "qgraph-zoo",
                        help="folder of networks and results (default %(default)s)")
    parser.add_argument("--only", default="", help="parts of names or families, by comma")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--quick", action="store_true", help=f"without the pass {SLOW}")
    parser.add_argument("--timeout", type=int, default=900, help="seconds of one network and target")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    path, targets = args.work / "results.jsonl", args.targets.split(",")
    names = [name for name, network in NETWORKS.items()
             if any(part in name or part == network.family for part in args.only.split(","))]
    known: dict[tuple[str, str], dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        result = json.loads(line)
        known[result["network"], result["target"]] = result
    for name in names:
        for step in (MAKE, *targets):
            if (name, step) in known or step != MAKE and known[name, MAKE]["error"]:
                continue
            known[name, step] = run(step, name, args.work, args.timeout, args.quick)
            with path.open("a") as file:
                file.write(json.dumps(known[name, step]) + "\n")
            if step != MAKE or known[name, step]["error"]:
                print(" ".join(row(known[name, step])), file=sys.stderr, flush=True)
    results = [known[name, step] for name in names for step in (MAKE, *targets)
               if (name, step) in known and (step != MAKE or known[name, step]["error"])]
    print(table("Frozen", ["network", "target", "layers", "dB", "kernels %", "s", "MiB", ""], [*map(row, results)]))
    of = {target: [r for r in results if r["target"] == target] for target in targets}
    counts = {target: sum(map(passes, found)) for target, found in of.items()}
    print(table(f"Of {len(names)} networks", ["target", "ran", "frozen", "passed", "failed by saturation alone"], [
        [target, str(len(found)), str(sum(not r["error"] for r in found)), str(counts[target]),
         str(sum(map(saturates, found)))] for target, found in of.items()]))
    return 3 if not args.only and any(counts.get(t, WANTED) < WANTED for t in TARGETS[:3]) else 0


if __name__ == "__main__":
    sys.exit(main())
