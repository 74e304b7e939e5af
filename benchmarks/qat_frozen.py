"""Frozen against trained: cifar_resnet20_v1, retrained for some steps on CIFAR-10, on each target.

    python benchmarks/qat_frozen.py [--steps 60] [--images 1000]

Prints, per kind of quantization and target, whether the logits of the test images equal those of the network in offline
mode, in how many predictions they agree, and, for MXNet, the time of a batch of 32 over that of the float network under
MXNet's default bind (one thread, medians of alternating runs).  Needs QGRAPH_CASES and gluoncv; about three minutes.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from typing import Any

import numpy as np
from _common import CASES, CIFAR_TRAIN, TRAINED, module, stacked, table
from speed import runner, times

import qgraph
from qgraph.engines import executor

KINDS = {"u8/s8 per layer": {"quant_type": "layer"},
         "u8/s8 per channel, folded": {"quant_type": "channel", "fake_bn": True},
         "u4/s4 per channel, folded": {"quant_type": "channel", "fake_bn": True, "in_width": 4, "wt_width": 4}}


def trained(options: dict[str, Any], data: np.ndarray, labels: np.ndarray, steps: int, batch: int = 32) -> Any:
    import mxnet as mx
    from gluoncv.model_zoo import get_model
    from mxnet.gluon import nn

    from qgraph.qat import convert_model, gen_conv2d_converter, gen_dense_converter, qparams_init

    net = get_model("cifar_resnet20_v1", pretrained=False)
    net.load_parameters(f"{TRAINED['cifar_resnet20_v1'].prefix}.gluon.params")
    dense = {k: v for k, v in options.items() if k != "fake_bn"}
    convert_model(net, exclude=[net.features[0]], convert_fn={nn.Conv2D: gen_conv2d_converter(**options),
                                                              nn.Dense: gen_dense_converter(**dense)})
    qparams_init(net, calib_data=data[:100])
    net.quantize_offline()
    net.hybridize(static_alloc=True, static_shape=True)
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.002, "momentum": 0.9})
    loss_of = mx.gluon.loss.SoftmaxCrossEntropyLoss()
    for step in range(steps):
        part = np.arange(step * batch, (step + 1) * batch) % len(data)
        with mx.autograd.record():
            loss = loss_of(net(mx.nd.array(data[part])), mx.nd.array(labels[part]))
        loss.backward()
        net.update_ema()
        trainer.step(batch)
    return net


def slowness(graph: Any, frozen: Any, images: np.ndarray, batch: int = 32, rounds: int = 15) -> float:
    shape = (batch, *images.shape[1:])
    runs = {name: runner(module(model, shape), images, batch) for name, model in (("float", graph), ("frozen", frozen))}
    seconds = times(runs, rounds, time.process_time)
    return statistics.median(a / b for a, b in zip(seconds["frozen"], seconds["float"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--images", type=int, default=1000)
    args = parser.parse_args()
    logging.getLogger("qgraph").setLevel(logging.ERROR)
    import mxnet as mx

    case = TRAINED["cifar_resnet20_v1"]
    opened = case.options({}).open(CASES / CIFAR_TRAIN, {"data": (0, 3, 32, 32)}, args.steps * 32)
    batches = list(opened)
    data = np.concatenate([b.feeds["data"] for b in batches])
    labels = np.concatenate([b.labels for b in batches])
    images = stacked(case.options({}).open(CASES / case.images, {"data": (0, 3, 32, 32)}, args.images))
    rows = []
    for kind, options in KINDS.items():
        net = trained(options, data, labels, args.steps)
        parts = range(0, len(images), 100)
        want = np.concatenate([net(mx.nd.array(images[i:i + 100])).asnumpy() for i in parts])
        for target in ("mxnet-sim", "onnx", "mxnet", "mxnet{fast=true}"):
            try:
                frozen = qgraph.freeze(net, qgraph.FreezeOptions(target=target))
            except qgraph.QGraphError as error:
                rows.append([kind, target, "", f"refused: {str(error).rpartition('which ')[2]}", ""])
                continue
            run = executor(frozen.model, "comparing")
            got = np.concatenate([run.run({"data": images[i:i + 100]})[0] for i in parts])
            same = "equal" if np.array_equal(got, want) else f"{np.abs(got - want).max() / np.abs(want).max():.1e}"
            rows.append([kind, target, same, f"{100 * (got.argmax(1) == want.argmax(1)).mean():.1f} %",
                         f"{slowness(case.graph(), frozen.model.ir, images):.2f}" if target != "onnx" else ""])
    print(table(f"{args.images} test images, {args.steps} steps",
                ["trained", "target", "logits", "agreement", "time / float"], rows))


if __name__ == "__main__":
    main()
