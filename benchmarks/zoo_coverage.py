"""ONNX conversion on the GluonCV model zoo: does onnxruntime give what MXNet gives, for how many of the architectures?

    python benchmarks/zoo_coverage.py [MODEL ...] [--kind cls,seg,pose,det] [--jobs 2] [--resume FILE.json]

Every float image model of the zoo that can be built (classification, segmentation, pose, detection) gets random
weights, BatchNorm statistics near what the network sees, and under fix_gamma gammas that MXNet does not read. Its
graph, canonicalized, becomes one ONNX model, which onnxruntime runs on 1 and on 3 images; MXNet runs the graph as it
was, op by op. The figure is the largest difference over the largest value, worst of all outputs and both batches; a
model passes at 1e-5. Beyond it MXNet runs in float64 too: "rounding" is what differs from that truth no more than
MXNet's own float32 does (and did not pass), "numbers" all else.

Detectors end before the first op that sorts, suppresses or asks for equality (is this score a peak?): every tensor that
such an op reads, or anything behind it, is an output; those that are constant are left out. The tables say which op.
Parameters are random, so nothing is downloaded. Prints Markdown and exits 3 below what `WANTED` says. --resume keeps
the results in a file, and leaves out what it holds. About 12 minutes on two free cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import sys
import time
import warnings
from collections.abc import Mapping
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
from _common import table

from qgraph.formats.gluon import from_gluon
from qgraph.formats.mxnet_writer import to_mxnet
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.passes import Canonicalize
from qgraph.targets.mxnet import runtime as mxnet_runtime
from qgraph.targets.onnx.emit import to_onnx
from qgraph.targets.onnx.runtime import Executor

LIMIT, BATCHES = 1e-5, (1, 3)
TIMEOUT, MEMORY = 600, 14 << 30  # of one model: seconds, bytes
KINDS = {"cls": "Classification", "seg": "Segmentation", "pose": "Pose", "det": "Detection"}
WANTED = {"cls": 120, "seg": 30, "pose": 14, "det": 60}
# videos, tracking, depth, and what is quantized already
LEFT_OUT = re.compile(r"^i3d|^slowfast|kinetics|hmdb51|ucf101|sthsth|^monodepth2_resnet18_kitti|^siamrpn|_int8$")
KIND = (("det", r"ssd_|yolo3_|(custom_|doublehead_)?(faster_|mask_)?rcnn_|center_net_"), ("pose", r".*pose"),
        ("seg", r"(fcn|deeplab|psp|icnet|danet|fastscnn)_|hrnet_.*_s$"), ("cls", ""))
SIDES = (  # side of the input image: small where the net allows; the first that matches
    (r"cifar", 32), (r"alexnet|xception|center_net|yolo3|ssd_512_(mobile|res)|ssd_300_mobile|fastscnn", 128),
    (r".*rcnn", 192), (r"inceptionv3", 299), (r"ssd_", 300),
    (r"densenet|squeezenet|googlenet|shufflenet|residualattention|nasnet", 224), (r"psp|icnet|hrnet_.*_s$", 96),
    (r"fcn|deeplab|danet", 72), (r"", 64))
STOPS = ("_contrib_box_nms", "topk", "argsort", "broadcast_equal")
HEADS = {"transpose", "Reshape", "sigmoid", "SliceChannel", "slice_axis"}  # behind a layer: boxes, scores, offsets


def kind_of(name: str) -> str:
    return next(kind for kind, pattern in KIND if re.match(pattern, name))


def models() -> list[str]:
    from gluoncv.model_zoo import get_model_list

    return sorted(name for name in get_model_list() if not LEFT_OUT.search(name))


def build(name: str) -> tuple[Any, tuple[int, ...]]:
    """The block, its parameters made by itself, and the shape of one image."""
    side = next(side for pattern, side in SIDES if re.match(pattern, name))
    shape = (6 if "posenet" in name else 3, side, side)
    options: dict[str, Any] = {}
    if (kind_of(name) != "cls" or name == "googlenet") and not name.startswith("hrnet"):
        options["pretrained_base"] = False
        if kind_of(name) == "seg":
            options.update(base_size=side, crop_size=side)
    if "custom" in name and kind_of(name) == "det":
        options["classes"] = ["a", "b", "c"]
    return zeroed(zoo_block(name, **options), shape), shape


def zoo_block(name: str, **options: Any) -> Any:
    from gluoncv import model_zoo

    return model_zoo.get_model(name, pretrained=False, **options)


def zeroed(net: Any, *shapes: tuple[int, ...]) -> Any:
    """The block with parameters of zeros, where it does not want others. shapes: of one image, or of several inputs."""
    import mxnet as mx

    for parameter in net.collect_params().values():
        if "xavier" in str(parameter.init).lower() or isinstance(parameter.init, mx.init.Xavier):
            parameter.init = None  # given to biases too, which it refuses
    net.initialize(mx.init.Zero())
    try:
        net.infer_shape(*[mx.nd.zeros((1, *shape)) for shape in shapes])  # much faster than a forward pass
    except KeyError:  # of a parameter that is not used
        return net
    for parameter in net.collect_params().values():
        parameter._finish_deferred_init()
    return net


def noise(rng: np.random.Generator, shape: tuple[int, ...], smooth: bool) -> np.ndarray:
    """smooth: neighbours are alike, as in a photograph; on noise a resized image shows the rounding of coordinates."""
    x = rng.normal(size=shape)
    for axis in (2, 3) * 2 if smooth else ():
        x = sum(np.roll(x, step, axis) for step in range(-2, 3))
    return (x / x.std()).astype(np.float32)


def before_stops(g: Graph) -> str:
    """End the graph before `STOPS`; which ops they are."""
    behind, stops = set(), []
    for node in g.toposort():
        if node.op in STOPS or any(port.node in behind for port in g.inputs(node)):
            if not any(port.node in behind for port in g.inputs(node)):
                stops.append(node.op)
            behind.add(node)
    if stops:
        ends = [port for node in g.toposort() if node in behind for port in g.inputs(node)] + g.heads
        g.heads = [port for port in dict.fromkeys(ends) if port.node not in behind and port.node.op != "null"]
        g.prune()
    return ", ".join(dict.fromkeys(stops))


def randomize(g: Graph, feeds: Mapping[str, np.ndarray], rng: np.random.Generator, shift: float = 0.5) -> None:
    """Weights as He et al., gammas of both signs, statistics that are near those of these feeds but not equal.

    Networks of random weights are chaotic where nothing damps them, and would show the rounding of float32 instead of
    the conversion: residual branches are small, most units are open, and no statistic blows up small differences.
    """
    norms, unseen = [], set(g.params)
    heads = [node for node in g.toposort() if "weight" in ops.info(node.op).inputs
             and any(reader.op in HEADS for reader in g.readers(node))]
    damped = residual_branches(g).union(heads)
    for node in g.toposort():
        names = dict(zip(ops.info(node.op).inputs, (port.node.name for port in g.inputs(node))))
        scale = 0.2 if node in damped else 1.0
        if {"weight", "gamma"} & names.keys():
            unseen -= set(names.values())
        if "weight" in names:
            shape = g.params[names["weight"]].shape
            fan = np.prod(shape) / shape[ops.info(node.op).out_axis]
            if node.op == "Deconvolution":
                fan /= np.prod(ops.attr(node, "stride"))
            g.params[names["weight"]] = rng.normal(0, scale * np.sqrt(2 / fan), shape).astype(np.float32)
            if names.get("bias") in g.params:
                size = g.params[names["bias"]].shape
                g.params[names["bias"]] = (scale * rng.normal(0, 0.1, size)).astype(np.float32)
        if "moving_mean" in names:
            norms.append((node, names))
            size = g.params[names["gamma"]].size
            gamma = scale * rng.uniform(0.5, 1.5, size) * np.where(rng.random(size) < 0.1, -1, 1)
            g.params[names["gamma"]] = gamma.astype(np.float32)
            g.params[names["beta"]] = (scale * rng.normal(shift, 0.3, size)).astype(np.float32)
    for name in sorted(unseen):  # as the gate of an attention; constants, such as anchors, are no zeros
        if not g.params[name].any():
            shape = g.params[name].shape
            g.params[name] = rng.normal(0, 0.5 if len(shape) < 2 else shape[-1] ** -0.5, shape).astype(np.float32)
    for (node, names), x in zip(norms, batch_norm_inputs(g, [node for node, _ in norms], feeds)):
        axes = tuple(axis for axis in range(x.ndim) if axis != ops.attr(node, "axis") % x.ndim)
        mean, var = x.mean(axes, dtype=np.float64), x.var(axes, dtype=np.float64)
        var = np.maximum(var, 0.2 * np.mean(var + mean ** 2) + 1e-6) * rng.uniform(0.7, 1.5, var.shape)
        g.params[names["moving_mean"]] = (mean + rng.normal(0, 0.2, mean.shape) * np.sqrt(var)).astype(np.float32)
        g.params[names["moving_var"]] = var.astype(np.float32)
    sizes: dict[str, float] = {}  # of what the heads give, by parameter, which several may share
    for node, out in zip(heads, mxnet_runtime.run(g, feeds, [Port(n) for n in heads]) if heads else ()):
        for port in g.inputs(node):
            if g.param(port) is not None:
                sizes[port.node.name] = max(float(out.std()), sizes.get(port.node.name, 0.0))
    for name, size in sizes.items():  # boxes hold an exponential
        g.params[name] = (g.params[name] * min(1.0, 0.3 / size)).astype(np.float32)


def residual_branches(g: Graph) -> set[Node]:
    """Layers and BatchNorms that end in a sum with something else, the first where all terms do."""
    found = set()
    for node in g.toposort():
        if node.op in ("elemwise_add", "broadcast_add"):
            ends = []
            for port in g.inputs(node):
                while port.node.op in ("elemwise_mul", "broadcast_mul", "Activation", "Dropout"):  # gates
                    port = g.inputs(port.node)[0]
                ends.append(port.node)
            made = [end for end in ends if "gamma" in (slots := ops.info(end.op).inputs) or "weight" in slots]
            found.update(made[:1] if len(made) == len(ends) else made)
    return found


def batch_norm_inputs(g: Graph, norms: list[Any], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What these BatchNorms read when each normalizes by this batch."""
    import mxnet as mx

    twin = g.copy()
    same = {node.name: node for node in twin.dag}
    found = [same[node.name] for node in norms]
    twin.heads = [twin.inputs(node)[0] for node in found]
    if not norms:
        return []
    for node in found:
        node.op = "BatchNorm"
        node.attrs = {k: v for k, v in node.attrs.items() if k not in ("ndev", "key", "use_global_stats")}
    distinct = list(dict.fromkeys(twin.heads))
    order = [distinct.index(port) for port in twin.heads]
    twin.heads = distinct
    twin.prune()
    symbol, args, aux = to_mxnet(twin)
    with mxnet_runtime.subgraph_backend("NONE"):
        bound = symbol.bind(mx.cpu(), {**args, **{name: mx.nd.array(x) for name, x in feeds.items()}},
                            grad_req="null", aux_states=aux)
    outputs = [out.asnumpy() for out in bound.forward(is_train=True)]
    return [outputs[index] for index in order]


def truth(g: Graph, images: np.ndarray) -> list[np.ndarray]:
    """MXNet's outputs in float64."""
    import mxnet as mx

    g = g.copy()
    for node in g.dag:
        if node.op in ("_arange", "_zeros", "_ones", "Cast") and node.attrs.get("dtype", "float32") == "float32":
            node.attrs["dtype"] = "float64"
    symbol, args, aux = to_mxnet(g)
    args, aux = ({k: v.astype("float64") for k, v in part.items()} for part in (args, aux))
    with mxnet_runtime.subgraph_backend("NONE"):
        bound = symbol.bind(mx.cpu(), {**args, "data": mx.nd.array(images, dtype="float64")}, grad_req="null",
                            aux_states=aux)
    return [out.asnumpy() for out in bound.forward(is_train=False)]


def difference(want: list[np.ndarray], got: list[np.ndarray]) -> float:
    """Worst, over the outputs, of the largest difference relative to the largest value.

    Classes, scores and boxes lie side by side in a last axis of up to 6: each column counts as an output.
    """
    def one(a: np.ndarray, b: np.ndarray) -> float:
        if a.shape != b.shape or not np.isfinite(b).all():
            return float("inf")
        axes = tuple(range(a.ndim - 1)) if a.ndim > 2 and a.shape[-1] <= 6 else None
        size = np.abs(a).max(axes)
        return float((np.abs(a.astype(np.float64) - b).max(axes) / np.where(size == 0, 1, size)).max())
    return max(one(a, b) for a, b in zip(want, got))


def varies(out: np.ndarray) -> bool:
    size = np.abs(out).max() if out.size else 0.0
    return bool(out.ndim and len(out) == BATCHES[-1] and np.abs(out - out[:1]).max() > 1e-3 * size)


def check(name: str, seed: int = 0) -> dict[str, Any]:
    """Convert one architecture and compare: what becomes of it, see `main`. Needs mxnet and gluoncv."""
    stage, result = "construct", {"name": name, "kind": kind_of(name), "cut": "", "error": None, "reason": ""}
    started = time.perf_counter()
    rng = np.random.default_rng(seed)
    try:
        net, shape = build(name)
        images = noise(rng, (BATCHES[-1], *shape), smooth=kind_of(name) == "seg")
        stage = "trace"
        g = from_gluon(net, images[:1].shape)
        if result["kind"] == "det":
            result["cut"] = before_stops(g)
        stage = "mxnet"
        randomize(g, {"data": images}, rng)
        executor = mxnet_runtime.Executor(g)
        want = {n: executor.run({"data": images[:n]}) for n in BATCHES}
        last = want[BATCHES[-1]]
        kept = [i for i, out in enumerate(last) if varies(out) or not result["cut"]]
        result["outputs"] = f"{len(kept)} of {len(last)}"
        if not kept or not all(varies(last[i]) and np.isfinite(last[i]).all() for i in kept):
            raise ValueError("its outputs are not finite, or do not vary with the input")
        stage = "convert"
        canonical = g.copy()
        Canonicalize().run(canonical)
        model = to_onnx(canonical, {"data": images[:1].shape})
        stage = "onnxruntime"
        ours = Executor(model)
        got = {n: ours.run({"data": images[:n]}) for n in BATCHES}
        stage = "numbers"
        result["error"] = max(difference(want[n], got[n]) for n in BATCHES)
        if result["error"] > LIMIT:
            exact = truth(g, images)
            own, other = difference(exact, last), difference(exact, got[BATCHES[-1]])
            result["stage"] = "rounding" if other <= 1.5 * own else "numbers"
            result["reason"] = f"against float64: MXNet {own:.1e}, ours {other:.1e}"
        else:
            result["stage"] = "passed"
    except Exception as error:  # whatever it is, it belongs in the table
        text = " ".join(str(error).split())
        result.update(stage=stage, reason=f"{type(error).__name__}: {text[:300]}")
    result["seconds"] = round(time.perf_counter() - started, 1)
    return result


def _child(name: str, pipe: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    pipe.send(check(name))


def run_all(names: list[str], jobs: int, done: Any) -> None:
    """Each model in a process of its own, as gluoncv keeps what it built; `done` is called with every result."""
    import gluoncv  # noqa: F401  (once, here: the children are forks)
    import onnxruntime  # noqa: F401

    context = multiprocessing.get_context("fork")
    pending, running = list(names), {}
    while pending or running:
        while pending and len(running) < jobs:
            name = pending.pop(0)
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(name, writer))
            process.start()
            writer.close()
            running[reader] = (name, process, time.monotonic())
        for reader in wait(list(running), timeout=1):
            name, process, _ = running.pop(reader)
            try:
                result = reader.recv()
            except EOFError:
                process.join()
                result = _lost(name, f"the process ended with code {process.exitcode}")
            process.join(10)
            done(result)
        for reader, (name, process, since) in list(running.items()):
            if time.monotonic() - since > TIMEOUT:
                process.kill()
                process.join()
                del running[reader]
                done(_lost(name, f"took more than {TIMEOUT} s"))


def _lost(name: str, reason: str) -> dict[str, Any]:
    return {"name": name, "kind": kind_of(name), "cut": "", "error": None, "stage": "process", "reason": reason,
            "seconds": 0.0}


def report(results: list[dict[str, Any]]) -> str:
    """Markdown: a line per kind, where detectors were cut, and what did not pass, by cause."""
    rows, text = [], []
    for kind, title in KINDS.items():
        mine = [r for r in results if r["kind"] == kind]
        passed = [r for r in mine if r["stage"] == "passed"]
        built = [r for r in mine if r["stage"] not in ("construct", "trace")]
        if mine:
            rows.append([title, f"{len(passed)} / {len(built)}", str(len(mine) - len(built)),
                         f"{max((r['error'] for r in passed), default=0):.1e}",
                         str(sum(r["stage"] == "rounding" for r in mine))])
    text.append(table("ONNX against MXNet", ["kind", "passed / built", "not built", "worst that passed", "rounding"],
                      rows))
    cuts = sorted({r["cut"] for r in results if r["cut"]})
    if cuts:
        text.append(table("Detectors end before", ["op", "models", "outputs compared"], [
            [cut, str(sum(r["cut"] == cut for r in results)),
             ", ".join(sorted({r["outputs"] for r in results if r["cut"] == cut and "outputs" in r}))]
            for cut in cuts]))
    failed = [r for r in results if r["stage"] != "passed"]
    if failed:
        text.append(table("Did not pass", ["where", "model", "error", "reason"], [
            [r["stage"], r["name"], "" if r["error"] is None else f"{r['error']:.1e}", r["reason"].replace("|", "/")]
            for r in sorted(failed, key=lambda r: (r["stage"], r["reason"], r["name"]))]))
    return "\n".join(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--kind", default=",".join(KINDS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--resume", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    kinds = args.kind.split(",")
    names = args.models or [name for name in models() if kind_of(name) in kinds]
    results: dict[str, dict[str, Any]] = {}
    if args.resume and args.resume.exists():
        results = {r["name"]: r for r in json.loads(args.resume.read_text())}

    def done(result: dict[str, Any]) -> None:
        results[result["name"]] = result
        error = "" if result["error"] is None else f"{result['error']:.1e}"
        print(f"{len(results):>4} {result['name']:<44}{result['stage']:<12}{error:<9}{result['seconds']:>6.1f} s  "
              f"{result['reason'][:200]}", file=sys.stderr, flush=True)
        if args.resume:
            args.resume.write_text(json.dumps(list(results.values()), indent=1))

    run_all([name for name in names if name not in results], args.jobs, done)
    chosen = [results[name] for name in names]
    print(report(chosen))
    passed = {kind: sum(r["kind"] == kind and r["stage"] == "passed" for r in chosen) for kind in kinds}
    return 3 if not args.models and any(passed[kind] < WANTED[kind] for kind in kinds) else 0


if __name__ == "__main__":
    sys.exit(main())
