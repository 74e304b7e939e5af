"""Time of one inference in every engine: float, the engine's own int8, and ours, on eight networks.

    python benchmarks/engines.py [--work FOLDER] [--only resnet18_v1/openvino] [--batch 1,16] [--rounds 15]
                                 [--clock cpu|wall] [--nncf FOLDER]

engine        float                       its own int8                                        ours
onnxruntime   folded, as ONNX             quantize_static (QDQ, u8 x s8, per channel, MinMax)  --target onnx
openvino      the same file               FOLDER/NETWORK.xml or .onnx, made by NNCF elsewhere  the same file
ncnn          folded                      (its quantizer is on no package index)               --target ncnn
mxnet         as MXNet binds it, fused    contrib.quantization (naive, channel-wise)           --target mxnet

All are calibrated on the same images.  Classifiers of the zoo have random weights and take noise of 224, the SSD has
weights of `zoo_coverage.randomize`; the trained ones are in QGRAPH_CASES.  Each network, engine and batch size has a
process of its own, with one thread; in it the forms run in a random order in every round.  Times are medians over the
rounds, ratios medians of the ratios within a round, and the spread is half of the interquartile range of ours / its own
(or ours / float) in percent of it.  Load is from the files to the end of the first inference.  The clock is the CPU
time of the process.

FOLDER keeps the models and `results.jsonl`, a line for each part; the same command goes on where it was stopped, and
--only takes the parts with this in their name (NETWORK/ENGINE/BATCH).  A part that fails has its error in the table.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _common import CASES, CLOCKS, TRAINED, module, mxnet_int8, noise, stacked, table, zoo_graph
from speed import times

NETWORKS = ("squeezenet1.1", "mobilenetv1_0.75_192_bn", "mobilenetv2_1.0", "resnet18_v1", "resnet50_v1", "densenet121",
            "retinaface_mnet025_16", "ssd_512_mobilenet1.0_voc")
ENGINES = ("onnxruntime", "openvino", "ncnn", "mxnet")
FORMS = ("float", "theirs", "ours")
IMAGES = 8
MAKE, MEASURE = "make", "measure"
Runner = Callable[[], object]


# ---- the models -----------------------------------------------------------------------------------------------------

def network(name: str) -> tuple[Any, dict[str, np.ndarray]] | None:
    """(graph, images by input), None if its files are not there. A detector ends at its heads."""
    from qgraph.formats.mxnet import load

    if name in TRAINED:
        case = TRAINED[name]
        return (case.graph(), {"data": stacked(case.data(case.calib, IMAGES))}) if case.found else None
    folder = CASES / "detectors" / name
    if folder.is_dir():
        with np.load(folder / "input.npz") as images:
            return (load(str(folder / f"{name}-symbol.json"), str(folder / f"{name}-0000.params")),
                    {"data": images["data"][:IMAGES].astype(np.float32)})
    if not name.startswith("ssd"):
        return zoo_graph(name), {"data": noise(IMAGES, 224, seed=1)}
    from zoo_coverage import build, randomize
    from zoo_coverage import noise as noise_like
    from zoo_freeze import SHIFT, judged

    from qgraph.formats.gluon import from_gluon

    rng = np.random.default_rng(0)
    net, shape = build(name)
    feeds = {"data": noise_like(rng, (IMAGES, *shape), smooth=True).astype(np.float32)}
    g = from_gluon(net, {"data": (4, *shape)})
    g.heads = judged(g)
    g.prune()
    randomize(g, {"data": feeds["data"][:4]}, rng, SHIFT)
    return g, feeds


def make(name: str, folder: Path) -> None:
    """Write every form that can be made, and images.npz. Those that cannot have their error in FORM.error."""
    from _onnx import float_model, folded, theirs

    from qgraph import FreezeOptions, freeze
    from qgraph.files import write_files
    from qgraph.formats.mxnet_writer import save, to_mxnet
    from qgraph.targets.ncnn.emit import to_ncnn

    found = network(name)
    if found is None:
        raise FileNotFoundError(f"{name}: its files are not in QGRAPH_CASES")
    graph, feeds = found
    images = feeds["data"]
    source = float_model(graph, images)

    def frozen(target: str) -> None:
        freeze(graph, FreezeOptions(target=target, batch_size=4), calib_data=feeds).save(str(folder / f"{target}-ours"))

    def mxnet_theirs() -> None:
        import mxnet as mx

        symbol, arg, aux = mxnet_int8(graph, images, "naive", batch_size=4)
        mx.model.save_checkpoint(str(folder / "mxnet-theirs"), 0, symbol, arg, aux)

    def files(model: Any, prefix: str) -> None:
        write_files(model.files(str(folder / prefix)))

    works: dict[str, Callable[[], object]] = {
        "onnx-float": lambda: files(source, "onnx-float"),
        "onnx-theirs": lambda: files(theirs(source, images, "MinMax", batch_size=4), "onnx-theirs"),
        "onnx-ours": lambda: frozen("onnx"),
        "ncnn-float": lambda: files(to_ncnn(folded(graph), {"data": images.shape}), "ncnn-float"),
        "ncnn-ours": lambda: frozen("ncnn"),
        "mxnet-float": lambda: save(graph, str(folder / "mxnet-float")),
        "mxnet-theirs": mxnet_theirs,
        "mxnet-ours": lambda: frozen("mxnet")}
    to_mxnet(graph)  # an error of the network itself, not of one form
    for form, work in works.items():
        try:
            work()
        except Exception as error:  # whatever an engine raises: the other forms are measured
            (folder / f"{form}.error").write_text(f"{type(error).__name__}: {error}"[:300])
    np.savez(folder / "images.npz", **{key: array[:1] for key, array in feeds.items()})


# ---- one engine -----------------------------------------------------------------------------------------------------

def on_onnxruntime(path: Path, feed: np.ndarray) -> Runner:
    from qgraph.targets.onnx.runtime import open_session

    session = open_session(path.read_bytes())
    feeds = {session.get_inputs()[0].name: feed}
    return lambda: session.run(None, feeds)


def on_openvino(path: Path, feed: np.ndarray) -> Runner:
    from qgraph.targets.onnx.openvino_runtime import import_openvino

    core = import_openvino().Core()
    model = core.read_model(path)
    model.reshape(list(feed.shape))
    options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(model, "CPU", options)
    return lambda: compiled([feed])


def on_ncnn(path: Path, feed: np.ndarray) -> Runner:
    from qgraph.targets.ncnn.model import load
    from qgraph.targets.ncnn.runtime import Executor

    model = load(str(path))
    run, name = Executor(model), next(iter(model.inputs))
    return lambda: run.run({name: feed})


def on_mxnet(path: Path, feed: np.ndarray) -> Runner:
    import mxnet as mx

    bound = module(mx.model.load_checkpoint(str(path).removesuffix("-symbol.json"), 0), feed.shape)
    batch = mx.io.DataBatch([mx.nd.array(feed)])

    def run() -> None:
        bound.forward(batch, is_train=False)
        for output in bound.get_outputs():
            output.wait_to_read()

    return run


RUN: dict[str, Callable[[Path, np.ndarray], Runner]] = {
    "onnxruntime": on_onnxruntime, "openvino": on_openvino, "ncnn": on_ncnn, "mxnet": on_mxnet}
SUFFIX = {"onnxruntime": "onnx-{}.onnx", "openvino": "onnx-{}.onnx", "ncnn": "ncnn-{}.param",
          "mxnet": "mxnet-{}-symbol.json"}
BESIDE = {".param": ".bin", "-symbol.json": "-0000.params", ".xml": ".bin"}  # where the weights are


def paths(name: str, engine: str, folder: Path, nncf: Path | None) -> dict[str, Path]:
    """Form -> its file, of those that are there."""
    found = {form: folder / SUFFIX[engine].format(form) for form in FORMS}
    if engine == "openvino":
        made = [] if nncf is None else [nncf / f"{name}{suffix}" for suffix in (".xml", ".onnx")]
        found["theirs"] = next((path for path in made if path.exists()), folder / "none")
    return {form: path for form, path in found.items() if path.exists()}


def size(path: Path) -> int:
    """Bytes of a model's files."""
    beside = [Path(str(path).removesuffix(end) + other) for end, other in BESIDE.items() if str(path).endswith(end)]
    return sum(each.stat().st_size for each in (path, *beside))


def measure(forms: dict[str, Path], engine: str, feed: np.ndarray, rounds: int, clock: str) -> dict[str, Any]:
    """{"seconds": {form: of each round}, "load": {form: seconds}, "bytes": {form: of its files}}"""
    runs, load = {}, {}
    for form, path in forms.items():
        started = time.perf_counter()
        runs[form] = RUN[engine](path, feed)
        runs[form]()
        load[form] = time.perf_counter() - started
    return {"seconds": times(runs, rounds, CLOCKS[clock]), "load": load,
            "bytes": {form: size(path) for form, path in forms.items()}}


# ---- the table ------------------------------------------------------------------------------------------------------

def child(*words: str) -> dict[str, Any]:
    """What a process of this script prints last, or its error."""
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    return json.loads((done.stdout.strip().splitlines() or ["{}"])[-1])


def row(part: str, found: dict[str, Any]) -> list[str]:
    if "error" in found:
        return [part, found["error"], *[""] * 8]
    seconds = found["seconds"]

    def ratios(a: str, b: str) -> list[float]:
        return [x / y for x, y in zip(seconds.get(a, ()), seconds.get(b, ()))]

    def ratio(a: str, b: str) -> str:
        return f"{statistics.median(ratios(a, b)):.3f}" if ratios(a, b) else ""

    spread = ratios("ours", "theirs") or ratios("ours", "float")
    low, middle, high = np.percentile(spread, (25, 50, 75)) if spread else (0, 0, 0)
    return [part, *(f"{1000 * statistics.median(seconds[form]):.2f}" if form in seconds else "" for form in FORMS),
            ratio("ours", "theirs"), ratio("ours", "float"), f"{50 * (high - low) / middle:.1f} %" if spread else "",
            " / ".join(f"{found['bytes'][form] / 2**20:.1f}" if form in seconds else "-" for form in FORMS),
            " / ".join(f"{found['load'][form]:.2f}" if form in seconds else "-" for form in FORMS),
            "; ".join(found["missing"])]


def run_part(part: str, args: argparse.Namespace) -> dict[str, Any]:
    name, engine, batch = part.split("/")
    folder = args.work / name
    if not (folder / "images.npz").exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = child(MAKE, "--only", name, "--work", str(args.work))
        if "error" in made:
            return made
    nncf = ["--nncf", str(args.nncf)] if args.nncf else []
    found = child(MEASURE, "--only", part, "--work", str(args.work), "--rounds", str(args.rounds), "--clock",
                  args.clock, *nncf)
    kind = SUFFIX[engine].split("-")[0]
    errors = {form: folder / f"{kind}-{form}.error" for form in FORMS}
    return {**found, "missing": [f"{form}: {path.read_text()}" for form, path in errors.items() if path.exists()]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", nargs="?", choices=(MAKE, MEASURE), help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--work", type=Path, default=Path("engines-work"))
    parser.add_argument("--only", default="")
    parser.add_argument("--batch", default="1,16")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--nncf", type=Path)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    if args.step == MAKE:
        make(args.only, args.work / args.only)
        return 0
    if args.step == MEASURE:
        name, engine, batch = args.only.split("/")
        with np.load(args.work / name / "images.npz") as images:
            feed = np.resize(images["data"], (int(batch), *images["data"].shape[1:]))
        print(json.dumps(measure(paths(name, engine, args.work / name, args.nncf), engine, feed, args.rounds,
                                 args.clock)))
        return 0
    args.work.mkdir(parents=True, exist_ok=True)
    results = args.work / "results.jsonl"
    lines = results.read_text().splitlines() if results.exists() else []
    done = {line["part"]: line for line in map(json.loads, lines)}
    parts = [f"{name}/{engine}/{batch}" for name in NETWORKS for engine in ENGINES for batch in args.batch.split(",")]
    rows = []
    for part in (part for part in parts if args.only in part):
        if part not in done:
            done[part] = {"part": part, **run_part(part, args)}
            with results.open("a") as stream:
                stream.write(json.dumps(done[part]) + "\n")
        rows.append(row(part, done[part]))
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    head = ["network/engine/batch", "float ms", "its own int8 ms", "ours ms", "ours/its own", "ours/float", "spread",
            "MiB float / its own / ours", "load s", "not made"]
    print(table(f"One thread, {args.clock} time", head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
