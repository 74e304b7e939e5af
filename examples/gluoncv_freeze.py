"""From GluonCV's model zoo to an int8 checkpoint, without files in between.

    python examples/gluoncv_freeze.py --model mobilenet1.0 --data val.rec     # pretrained weights are downloaded
    python examples/gluoncv_freeze.py --model mobilenet1.0 --no-pretrained    # random weights: speed, not accuracy

writes MODEL-quantized-symbol.json, -0000.params, .calib.json, .report.json and .report.html, and runs the result once
in ``mx.mod.Module``.  Without --data the ranges come from images distilled from the network's own BatchNorm statistics.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
from typing import Any

import click
import numpy as np

import qgraph


def build(name: str, pretrained: bool, size: int) -> Any:
    """The zoo's network, initialized."""
    try:
        import mxnet as mx
        from gluoncv.model_zoo import get_model, get_model_list
    except ImportError as error:
        sys.exit(f'{error}: pip install "qgraph[mxnet]" (Python 3.9 to 3.11, x86-64)')
    if name.lower() not in get_model_list():
        close = difflib.get_close_matches(name, get_model_list(), 3)
        sys.exit(f"gluoncv.model_zoo has no {name}; close names: {', '.join(close) or 'none'}")
    if pretrained:
        try:
            net = get_model(name, pretrained=True)
        except (OSError, RuntimeError, ValueError) as error:  # no network, a proxy, a wrong hash, no weights
            sys.exit(f"{name}: the pretrained weights could not be downloaded ({type(error).__name__}: "
                     f"{str(error).splitlines()[0][:120]}). With --no-pretrained the weights are random.")
    else:
        mx.random.seed(0)
        net = get_model(name, pretrained=False)
        net.initialize(mx.init.Xavier(magnitude=2.0))
    net.hybridize()
    net(mx.nd.zeros((1, 3, size, size)))  # gives the weights their shapes
    return net


@click.command()
@click.option("--model", default="mobilenet1.0", show_default=True, help="A name of gluoncv.model_zoo.")
@click.option("--pretrained/--no-pretrained", default=True, show_default=True)
@click.option("--data", metavar="PATH", help="Images to calibrate on: .rec, folder, .npz.  [default: distilled ones]")
@click.option("--num-calib", default=100, show_default=True, type=click.IntRange(1), metavar="N")
@click.option("--size", default=224, show_default=True, type=click.IntRange(32), metavar="N", help="Of the input.")
@click.option("--output", metavar="PREFIX", help="[default: MODEL-quantized]")
def main(model: str, pretrained: bool, data: str | None, num_calib: int, size: int, output: str | None) -> None:
    """Freeze a network of the GluonCV model zoo to int8."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("qgraph").setLevel(logging.INFO)
    net = build(model, pretrained, size)
    try:
        options = qgraph.FreezeOptions(input_shape=(f"data:1,3,{size},{size}",), preprocess="imagenet",
                                       num_calib=num_calib)
        frozen = qgraph.freeze(net, options, calib_data=data)
        for path in frozen.save(output or f"{model}-quantized"):
            print("wrote", path)
    except qgraph.QGraphError as error:
        sys.exit(f"{model}: {error}")

    import mxnet as mx

    image = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
    module = frozen.module((1, 3, size, size))
    module.forward(mx.io.DataBatch([mx.nd.array(image)]), is_train=False)
    scores = module.get_outputs()[0].asnumpy()
    print(f"output {scores.shape}, top class {scores.argmax()}; {len(frozen.report['quantized'])} layers in integers, "
          f"{frozen.report['agreement']['top1']} % top-1 agreement with float")


if __name__ == "__main__":
    os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")
    main()
