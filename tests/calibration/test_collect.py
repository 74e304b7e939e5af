"""Which tensors are observed, and those that cannot be."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

import qgraph
from qgraph import FreezeOptions, Graph, Port
from qgraph.analysis.observed import observed_ports, wanted_ranges
from qgraph.calibration.collect import collect
from qgraph.calibration.sweep import channel_ranges
from qgraph.data.open import Data, open_data
from qgraph.errors import CalibrationError

HEAD = """
%data = input
%w = param float32 (4, 3, 3, 3)
%b = param float32 (4)
%c = Convolution(%data, %w, %b) {kernel=(3, 3) num_filter=4}
"""
# a position for each pixel, of one image's shape; sizes that overflow; numbers of the best ones
DECODED = HEAD + """
%places = param float32 (1, 4, 16, 16)
%here = slice_like(%places, %c) {axes=(2, 3)}
%centre = broadcast_add(%c, %here)
%size = exp(%c)
%box = Concat(%centre, %size) {dim=1 num_args=2}
return %box
"""
CHOSEN = HEAD + """
%sum = broadcast_add(%c, %c)
%best = topk(%sum) {axis=1 k=2}
%two = broadcast_add(%best, %best)
%all = Concat(%two, %best) {dim=1 num_args=2}
return %all
"""
RUNTIMES = [pytest.param("mxnet", marks=pytest.mark.mxnet), "onnxruntime"]


def network(text: str, scale: float = 0.3) -> tuple[Graph, dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    g = Graph.parse(text)
    for name, array in g.params.items():
        g.params[name] = rng.normal(0, scale, array.shape).astype(np.float32)
    return g, {"data": rng.normal(size=(5, 3, 6, 6)).astype(np.float32)}


def data(feeds: Mapping[str, np.ndarray]) -> Data:
    return open_data(dict(feeds), input_names=tuple(feeds), batch_size=3)


@pytest.mark.parametrize("method", ["naive", "kl", "ema", "auto"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_tensor_without_the_batch_axis_has_a_range(runtime: str, method: str) -> None:
    g, feeds = network(DECODED)
    table = collect(g, data(feeds), method, runtime=runtime)
    seen = g.params["places"][:, :, :4, :4]
    entry = table.entries["here"]
    assert np.allclose((entry.min, entry.max), (seen.min(), seen.max()))
    assert table.images == 5


@pytest.mark.parametrize("method", ["naive", "kl", "auto"])
def test_infinity_counts_where_somebody_quantizes_it(method: str) -> None:
    g, feeds = network(DECODED, scale=30)
    with pytest.raises(CalibrationError, match="tensor box: found Inf for sample"):
        collect(g, data(feeds), method, runtime="onnxruntime")
    table = collect(g, data(feeds), method, runtime="onnxruntime", wanted=["data", "c"])
    assert set(table.entries) == {"data", "c", "here", "centre"}
    with pytest.raises(CalibrationError, match="tensor box: found Inf"):
        collect(g, data(feeds), method, runtime="onnxruntime", wanted=["data", "box"])


def test_ranges_beyond_codes_count_where_somebody_quantizes_them() -> None:
    g, feeds = network(DECODED)
    g.params["places"][:] = 2e38
    found = collect(g, data(feeds), runtime="onnxruntime", wanted=["c"]).entries
    assert "c" in found and not {"here", "centre"} & set(found)
    with pytest.raises(qgraph.errors.FormatError, match="tensor here: min: found .*, want a finite number"):
        collect(g, data(feeds), runtime="onnxruntime", wanted=["here"])


@pytest.mark.mxnet
@pytest.mark.parametrize("target", ["mxnet", "mxnet-sim", "onnx"])
def test_decoding_that_overflows_freezes(target: str) -> None:
    g, feeds = network(DECODED, scale=30)
    found = qgraph.freeze(g, FreezeOptions(target=target), calib_data=feeds)
    assert [layer["name"] for layer in found.report["quantized"]] == ["c"]


def test_what_follows_the_choice_of_boxes_is_not_observed() -> None:
    g, _ = network(CHOSEN)
    assert [port.key for port in observed_ports(g)] == ["data", "c", "sum"]


def test_what_a_layer_reads_is_observed_behind_a_choice_too() -> None:
    g = Graph.parse(CHOSEN.replace("return %all", "%u = param float32 (5, 64)\n"
                                   "%d = FullyConnected(%all, %u) {no_bias=True num_hidden=5}\nreturn %d"))
    assert [port.key for port in observed_ports(g)] == ["data", "c", "sum", "best", "two", "all", "d"]


def test_what_quantizers_ask_for() -> None:
    g, _ = network(DECODED)
    assert wanted_ranges(g) == []
    qgraph.passes.insert_fake_quantize.InsertFakeQuantize().run(g)
    assert wanted_ranges(g) == ["data"]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_ranges_of_channels_in_two_halves(batch_size: int) -> None:
    """Whatever the batches: images of even numbers are one half, those of odd ones the other."""
    g, feeds = network(DECODED)
    images = open_data(dict(feeds), input_names=("data",), batch_size=batch_size)
    ports = [Port(g.find("data")), Port(g.find("c")), Port(g.find("here"))]
    found = channel_ranges(g, images, ports, runtime="onnxruntime")
    pixels = feeds["data"]
    want = [[half.min(axis=(0, 2, 3)), half.max(axis=(0, 2, 3))] for half in (pixels[::2], pixels[1::2])]
    assert np.array_equal(found[0], np.array(want, np.float64))
    assert found[1].shape == (2, 2, 4) and (found[1][0] != found[1][1]).any()
    everywhere = g.params["places"][:, :, :4, :4]
    assert np.allclose(found[2], [[everywhere.min(axis=(0, 2, 3)), everywhere.max(axis=(0, 2, 3))]] * 2)


def test_one_image_has_no_second_half() -> None:
    g, feeds = network(DECODED)
    found = channel_ranges(g, data({"data": feeds["data"][:1]}), [Port(g.find("c"))], runtime="onnxruntime")
    assert np.isfinite(found[0][0]).all() and not np.isfinite(found[0][1]).any()


def test_auto_looks_at_the_channels_that_weights_read() -> None:
    """One channel is far wider than the others; what its codes should cover depends on whether anything reads it."""
    g, feeds = network(HEAD + "return %c", scale=1)
    feeds = {"data": np.random.default_rng(3).normal(size=(8, 3, 30, 30)).astype(np.float32)}
    feeds["data"][:, 0] *= 8
    found = []
    for scale in (1.0, 1e-6):
        g.params["w"] = g.params["w"].copy()
        g.params["w"][:, 0] *= np.float32(scale)
        tables = [collect(g, open_data(feeds, batch_size=size), "auto", act_bits=6, runtime="onnxruntime")
                  for size in (1, 3, 8)]
        assert len({table.entries["data"] for table in tables}) == 1
        found.append(tables[0].entries["data"])
    read, unread = found
    assert (read.min, read.max) == (unread.min, unread.max) and unread.high < 0.6 * read.high
