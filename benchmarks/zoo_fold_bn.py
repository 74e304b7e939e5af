"""Float passes on the GluonCV model zoo: is the folded network still the same network?

    python benchmarks/zoo_fold_bn.py [MODEL ...]

Each architecture gets random weights and varied BatchNorm statistics, is exported to files, loaded, passed through the
float pipeline, saved, and run by MXNet before and after, op by op. Prints per model the largest difference relative to
the largest output, the BatchNorms before and after, and how they went.

Random deep networks amplify float32 rounding: some differ by 1e-5 from *themselves* in float64. A model beyond 1e-5 is
therefore also run in float64, and three more figures are printed: the original in float32 against the original in
float64, the folded one in float32 against the same, and both in float64 (what folding itself changed). It is called
"rounding" if the folded network is as near to the truth as the original, and WRONG otherwise, as is a model whose
output does not depend on its input. Exits 3 if one is WRONG. About 6 minutes on one free core. Downloads nothing.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402

from qgraph.formats.mxnet import load  # noqa: E402
from qgraph.formats.mxnet_writer import save  # noqa: E402
from qgraph.ir.rewrite import PassManager  # noqa: E402
from qgraph.passes import PIPELINES  # noqa: E402

LIMIT = 1e-5
MODELS = {  # name -> side of the input image: small where the net allows
    "alexnet": 224, "resnet18_v1": 64, "resnet50_v1": 64, "resnet18_v1b": 64, "resnet50_v1b": 64, "resnet50_v1d": 64,
    "resnet50_v1s": 64, "resnet18_v2": 64, "resnet50_v2": 64, "se_resnet18_v1": 64, "se_resnet50_v2": 64,
    "resnext50_32x4d": 64, "se_resnext50_32x4d": 64, "senet_154": 64, "resnest14": 64, "mobilenet1.0": 64,
    "mobilenet0.25": 64, "mobilenetv2_1.0": 64, "mobilenetv2_0.5": 64, "mobilenetv3_large": 64, "mobilenetv3_small": 64,
    "densenet121": 224, "densenet169": 224, "squeezenet1.0": 224, "squeezenet1.1": 224, "vgg11_bn": 64, "vgg16_bn": 64,
    "inceptionv3": 299, "googlenet": 224, "shufflenet_v1": 224, "shufflenet_v2": 224, "darknet53": 64, "xception": 128,
    "dla34": 64, "hrnet_w18_small_v1_c": 64, "residualattentionnet56": 224,
    "cifar_resnet20_v1": 32, "cifar_resnet20_v2": 32, "cifar_wideresnet16_10": 32, "cifar_resnext29_16x64d": 32,
}


@dataclass(frozen=True)
class Result:
    error: float      # largest difference / largest output
    varies: float     # largest difference between two samples / largest output
    norms: int        # BatchNorm nodes before
    left: int         # and after
    changes: dict[str, int]
    seconds: float
    truth: tuple[float, float, float] | None  # against float64, beyond LIMIT only: original, folded, both in float64

    @property
    def verdict(self) -> str:
        if self.varies <= 1e-3:
            return "WRONG: does not vary"
        if self.error <= LIMIT:
            return ""
        own, folded, exact = self.truth or (0.0, 1.0, 1.0)
        word = "rounding" if folded <= 1.5 * own and exact <= LIMIT else "WRONG"
        return f"{word}: against float64 {own:.1e}, folded {folded:.1e}, both float64 {exact:.1e}"


def randomize(net: Any, x: Any, seed: int) -> None:
    """Random weights; BatchNorm gammas also negative and zero, statistics near what the net sees, but not equal."""
    import mxnet as mx

    rng = np.random.default_rng(seed)
    mx.random.seed(seed)
    net.initialize(mx.init.MSRAPrelu(slope=0), ctx=mx.cpu(), force_reinit=True)
    net(x)  # makes deferred parameters
    norms: list[Any] = []
    net.apply(lambda block: norms.append(block) if isinstance(block, mx.gluon.nn.BatchNorm) else None)
    for bn in norms:
        size = bn.gamma.shape[0]
        gamma = rng.uniform(0.5, 1.5, size) * np.where(rng.random(size) < 0.1, -1, 1)
        gamma[rng.random(size) < 0.02] = 0
        bn.gamma.set_data(mx.nd.array(gamma))
        bn.beta.set_data(mx.nd.array(rng.normal(0, 0.3, size)))
        bn._kwargs["momentum"] = 0.0  # the running statistics become those of this batch
    with mx.autograd.record():
        out = net(x)
    mx.autograd.backward(out)  # MXNet updates the running statistics here
    mx.nd.waitall()
    for bn in norms:
        mean, var = bn.running_mean.data().asnumpy(), bn.running_var.data().asnumpy()
        var = np.maximum(var, 0.1 * var.mean() + 1e-6) * rng.uniform(0.5, 2, var.shape)
        bn.running_mean.set_data(mx.nd.array(mean + rng.normal(0, 0.3, mean.shape) * np.sqrt(var)))
        bn.running_var.set_data(mx.nd.array(var))


def outputs(prefix: str, x: np.ndarray, dtype: str = "float32") -> list[np.ndarray]:
    import mxnet as mx

    sym, arg, aux = mx.model.load_checkpoint(prefix, 0)
    arg, aux = ({k: v.astype(dtype) for k, v in part.items()} for part in (arg, aux))
    exe = sym.bind(mx.cpu(), {**arg, "data": mx.nd.array(x, dtype=dtype)}, grad_req="null", aux_states=aux)
    return [out.asnumpy() for out in exe.forward(is_train=False)]


def difference(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """Largest, over the outputs, of the largest difference relative to the largest value of `a`."""
    return max(float(np.abs(x - y).max() / np.abs(x).max()) for x, y in zip(a, b))


def check(name: str, seed: int = 0) -> Result:
    """Fold one architecture and compare. Needs mxnet and gluoncv."""
    started = time.perf_counter()
    import mxnet as mx
    from gluoncv import model_zoo

    side = MODELS[name]
    images = np.random.default_rng(seed).normal(size=(3, 3, side, side)).astype(np.float32)
    options = {"pretrained_base": False} if name == "googlenet" else {}
    net = model_zoo.get_model(name, pretrained=False, **options)
    randomize(net, mx.nd.array(images), seed)
    with tempfile.TemporaryDirectory() as folder:
        net.hybridize()
        net(mx.nd.array(images[:1]))
        net.export(f"{folder}/net")
        g = load(f"{folder}/net-symbol.json", f"{folder}/net-0000.params")
        norms = len(g.nodes("BatchNorm"))
        manager = PassManager(PIPELINES["float"])
        manager.run(g)
        save(g, f"{folder}/folded")
        want, got = outputs(f"{folder}/net", images), outputs(f"{folder}/folded", images)
        assert [a.shape for a in want] == [b.shape for b in got]
        error, truth = difference(want, got), None
        if error > LIMIT:
            exact, folded = (outputs(f"{folder}/{n}", images, "float64") for n in ("net", "folded"))
            truth = (difference(exact, want), difference(exact, got), difference(exact, folded))
    return Result(error=error, varies=min(float(np.abs(a[0] - a[1]).max() / np.abs(a).max()) for a in want),
                  norms=norms, left=len(g.nodes("BatchNorm")), truth=truth,
                  changes={r.name: r.changed for r in manager.records}, seconds=time.perf_counter() - started)


def main(names: list[str]) -> int:
    warnings.filterwarnings("ignore")
    os.environ["MXNET_SUBGRAPH_BACKEND"] = "NONE"  # op by op: MXNet's own fusing off; read at every bind
    unknown = sorted(set(names) - set(MODELS))
    if unknown:
        print(f"unknown: {', '.join(unknown)}; known: {', '.join(MODELS)}", file=sys.stderr)
        return 2
    print(f"{'model':<24}{'rel. error':>11}{'varies':>9}{'BN':>5}{'left':>5}   "
          "fold-bn fwd affine relu pad canon   seconds")
    results = []
    for name in names or MODELS:
        r = check(name)
        results.append(r)
        c = r.changes
        print(f"{name:<24}{r.error:>11.1e}{r.varies:>9.2g}{r.norms:>5}{r.left:>5}   {c['fold-bn']:>7}"
              f"{c['fold-bn-forward']:>4}{c['bn-to-affine']:>7}{c['fuse-relu']:>5}{c['fold-pad']:>4}"
              f"{c['canonicalize']:>6}{r.seconds:>10.1f}  {r.verdict}", flush=True)
    within = sum(not r.verdict for r in results)
    wrong = sum("WRONG" in r.verdict for r in results)
    print(f"{within} of {len(results)} within {LIMIT:g}, {len(results) - within - wrong} beyond it by the rounding of "
          f"float32 alone, {wrong} wrong")
    return 3 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
