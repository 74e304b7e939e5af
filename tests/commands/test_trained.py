"""Networks that come with quantizers which have their numbers, frozen: the codes are those of training."""

from __future__ import annotations

from pathlib import Path

import networks
import numpy as np
import pytest

import qgraph
from qgraph import FreezeOptions
from qgraph.semantics.interpreter import run

pytestmark = pytest.mark.mxnet

# a maximum, a Concat, a Flatten between quantized layers; sums of two convolutions that others read too
SHAPES = ("conv_pool_conv", "concats", "dense_behind_flatten", "residual_downsample", "residual_other_readers",
          "residual_signed_other_reader")


@pytest.mark.parametrize("name", SHAPES)
def test_integer_kernels_compute_what_was_trained(name: str) -> None:
    g, feeds = networks.trained(name)
    want = run(g, feeds)
    frozen = qgraph.freeze(g, FreezeOptions(target="mxnet"), calib_data=feeds)
    departure = frozen.report["departure"]
    assert departure["within_one"] == 100 and departure["output"] < 1e-4 and len(departure["layers"]) > 1
    for a, b in zip(want, run(frozen.graph, feeds)):
        assert np.abs(a - a[:1]).max() > 0.01 * np.abs(a).max() > 0
        # biases are rounded too, which turns a few codes
        assert np.abs(a - b).max() <= 0.01 * np.abs(a).max() and np.median(np.abs(a - b)) <= 1e-3 * np.abs(a).max()


@pytest.mark.parametrize("target", ["ncnn", "tengine"])
def test_what_engines_need_to_know_is_written_for_trained_networks_too(target: str, tmp_path: Path) -> None:
    """The preprocessing in the note, the facts in the report; the .tmfile is read back and compared."""
    g, _ = networks.trained("conv_pool_conv")
    images = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3)).astype(np.uint8)
    frozen = qgraph.freeze(g, FreezeOptions(target=target, mean="100,110,120", scale=0.5), calib_data=images)
    frozen.save(tmp_path / "net")
    note = (tmp_path / f"net.{target}.md").read_text()
    assert "200, 220, 240" in note and "stand for no preprocessing" not in note
    facts = frozen.report[target]
    assert facts["outputs"] == frozen.model.outputs and facts["equivalents"]
    assert facts.get("read_back_images", 4) == 4


def test_a_wrong_tmfile_of_a_trained_network_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from qgraph.targets.tengine import files

    read = files.from_bytes

    def damaged(data: bytes, where: str) -> files.Model:
        model = read(data, where)
        bias = next(t for t in model.tensors if t.array is not None and t.array.dtype == np.int32)
        bias.array = bias.array + 1000
        return model

    monkeypatch.setattr(files, "from_bytes", damaged)
    g, feeds = networks.trained("conv_pool_conv")
    with pytest.raises(qgraph.QGraphError, match="the .tmfile is wrong: .* read back, differs"):
        qgraph.freeze(g, FreezeOptions(target="tengine"), calib_data=feeds)
