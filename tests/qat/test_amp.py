"""Quantization-aware training with MXNet's automatic mixed precision, in a process of its own: it changes MXNet."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from helpers import CPU_FLAGS, EXAMPLES

pytest.importorskip("sklearn")
pytestmark = [pytest.mark.mxnet, pytest.mark.slow, pytest.mark.skipif(
    "avx512bw" not in CPU_FLAGS, reason="MXNet's bfloat16 kernels need a CPU with AVX-512")]

SCRIPT = """
import json, logging, sys
logging.basicConfig(level=logging.WARNING)
sys.path.insert(0, {examples!r})
import mxnet as mx
from mxnet import autograd, gluon
from mxnet.contrib import amp
if {on}:
    amp.init(target_dtype="bfloat16")  # half precision of CPUs; float16 is for GPUs
import qat_digits, qgraph
from qgraph.engines import executor

split = qat_digits.load_digits_split()
mx.random.seed(0)
net = qat_digits.quantized_network(qat_digits.DEFAULT_OUTPUT, split, 8, "layer", {fake_bn})
trainer = gluon.Trainer(net.collect_params(), "sgd", {{"learning_rate": 0.001}})
if {on}:
    amp.init_trainer(trainer)
loss_of, losses = gluon.loss.SoftmaxCrossEntropyLoss(), []
for step in range(6):
    part = slice(32 * step, 32 * step + 32)
    with autograd.record():
        loss = loss_of(net(mx.nd.array(split.train_data[part])), mx.nd.array(split.train_label[part]))
        if {on}:
            with amp.scale_loss(loss, trainer) as scaled:
                autograd.backward(scaled)
    if not {on}:
        loss.backward()
    net.update_ema()
    trainer.step(32)
    losses.append(float(loss.mean().asscalar()))
net.quantize_offline()
images, labels = split.test_data[:300], split.test_label[:300]
want = qat_digits.logits(net, images)
frozen = qgraph.freeze(net, qgraph.FreezeOptions(target="mxnet-sim"))
got = executor(frozen.model, "").run({{"data": images}})[0]
print(json.dumps({{"losses": losses, "top1": float((want.argmax(1) == labels).mean()),
                   "agreement": float((got.argmax(1) == want.argmax(1)).mean()), "equal": bool((got == want).all())}}))
"""


@pytest.mark.parametrize("fake_bn", [False, True])
def test_mixed_precision_trains_and_says_what_it_does(fake_bn: bool) -> None:
    found = {}
    for on in (False, True):
        done = subprocess.run([sys.executable, "-c", SCRIPT.format(examples=str(EXAMPLES), on=on, fake_bn=fake_bn)],
                              capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert ("AMP is on: layers compute in half precision" in done.stderr) is on
        found[on] = json.loads(done.stdout.splitlines()[-1])
    assert found[False]["equal"] and not found[True]["equal"]
    assert found[True]["agreement"] > 0.98 and found[True]["top1"] > 0.97
    assert found[True]["losses"][-1] < found[True]["losses"][0] / 2
    for plain, mixed in zip(found[False]["losses"], found[True]["losses"]):
        assert abs(plain - mixed) < 0.02
