"""Tengine's file: written and read back, and hostile ones."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.errors import FormatError
from qgraph.targets.tengine.files import (
    CONST,
    FP32,
    INPUT,
    INT8,
    INT32,
    TYPE_OF,
    Layer,
    Model,
    Tensor,
    from_bytes,
    to_bytes,
)


def sample() -> Model:
    """A small int8 network: a constant of each type, a list among the parameters, unequal scales."""
    one = np.float32([0.5])
    tensors = [
        Tensor("data", INPUT, (1, 3, 4, 5), INT8, scales=one),
        Tensor("conv_weight", CONST, (2, 3, 1, 1), INT8, np.arange(6, dtype=np.int8).reshape(2, 3, 1, 1),
               np.float32([0.25, 1e-3])),
        Tensor("conv_bias", CONST, (2,), INT32, np.int32([7, -1 << 30]), np.float32([0.125, 5e-4])),
        Tensor("conv", dtype=INT8, scales=np.float32([0.1])),
        Tensor("relu", dims=(1, 2, 4, 5), dtype=INT8, scales=np.float32([0.1])),
        Tensor("flat", dims=(1, 40), dtype=INT8, scales=np.float32([0.1])),
        Tensor("slope", CONST, (3,), FP32, np.float32([1, 2, 3])),
    ]
    layers = [
        Layer(TYPE_OF["InputOp"], "data", [], [0]), Layer(TYPE_OF["Const"], "conv_weight", [], [1]),
        Layer(TYPE_OF["Const"], "conv_bias", [], [2]),
        Layer(TYPE_OF["Convolution"], "conv", [0, 1, 2], [3], (1, 1, 1, 1, 1, 1, 3, 2, 1, -1, 0, 0, 0, 0)),
        Layer(TYPE_OF["ReLU"], "relu", [3], [4], (0.5,)),
        Layer(TYPE_OF["Reshape"], "flat", [4], [5], (1, 0, [0, -1])), Layer(TYPE_OF["Const"], "slope", [], [6]),
    ]
    return Model(layers, tensors, [0], [5], "sample")


def test_what_is_written_reads_back() -> None:
    model, data = sample(), to_bytes(sample())
    found = from_bytes(data, "m.tmfile")
    assert (found.layers, found.inputs, found.outputs, found.name) == (model.layers, [0], [5], "sample")
    for a, b in zip(model.tensors, found.tensors):
        assert (a.name, a.kind, a.dims, a.dtype) == (b.name, b.kind, b.dims, b.dtype)
        for x, y in ((a.array, b.array), (a.scales, b.scales)):
            assert (x is None) == (y is None)
            if x is not None and y is not None:
                assert x.dtype == y.dtype
                np.testing.assert_array_equal(x, y)
    assert to_bytes(found) == data


def test_the_bytes() -> None:
    """The header, and that the model it names lies at a multiple of four."""
    data = to_bytes(sample())
    version, _, _, root = struct.unpack("<HHHxxI", data[:12])
    assert version == 2 and root % 4 == 0 and len(data) % 4 == 0
    assert struct.unpack_from("<ii", data, root) == (4, 0)
    conv = struct.pack("<14i", 1, 1, 1, 1, 1, 1, 3, 2, 1, -1, 0, 0, 0, 0)
    assert data.find(conv) % 4 == 0 and struct.pack("<ifi", 0, np.float32(1e-3), 8) in data


@pytest.mark.parametrize(("at", "value", "words"), [
    (0, 1, "found version 1 in the header"), (8, 3, "the model: found offset 3"), (8, 1 << 30, "the model: wants 16"),
    (8, 4, "the model: found offset 4"),
])
def test_a_broken_header_is_named(at: int, value: int, words: str) -> None:
    data = bytearray(to_bytes(sample()))
    struct.pack_into("<I" if at else "<H", data, at, value)
    with pytest.raises(FormatError, match=f"m.tmfile: {words}"):
        from_bytes(bytes(data), "m.tmfile")


@pytest.mark.parametrize(("change", "words"), [
    (lambda m: m.layers[3].inputs.append(5), r"node 3 \(conv\): reads tensor 5, which no node before it makes"),
    (lambda m: m.layers[4].outputs.__setitem__(0, 3), r"node 4 \(relu\): writes tensor 3, want one .* no other"),
    (lambda m: m.layers[4].outputs.clear(), r"node 4 \(relu\): found no output"),
    (lambda m: m.outputs.append(99), r"found outputs \[5, 99\], want numbers of nodes"),
    (lambda m: m.inputs.clear(), r"found inputs \[\]"),
    (lambda m: setattr(m.tensors[1], "dims", (2, 4, 1, 1)), r"conv_weight\): found a buffer of 6 bytes, want 8"),
    (lambda m: setattr(m.tensors[1], "dims", (2, 2, 1, 1)), r"conv_weight\): found a buffer of 6 bytes, want 4"),
    (lambda m: setattr(m.tensors[1], "dims", (2, 0, 1, 1)), r"conv_weight\): found dims \(2, 0, 1, 1\)"),
    (lambda m: m.tensors[3].scales.__setitem__(0, 0), r"tensor 3 \(conv\): found 1 scales, want some, all finite"),
    (lambda m: setattr(m.tensors[3], "kind", 9), r"tensor 3 \(conv\): found id 3, type 9"),
    (lambda m: setattr(m.tensors[6], "kind", INPUT), "is Const and writes tensor 6 of type 3"),
])
def test_a_broken_model_is_named(change: object, words: str) -> None:
    model = sample()
    change(model)  # type: ignore[operator]
    with pytest.raises(FormatError, match=words):
        from_bytes(to_bytes(model), "m.tmfile")


@settings(max_examples=300)
@given(st.data())
def test_mutated_files_are_refused_or_read(data: st.DataObject) -> None:
    """No other error than FormatError, whatever the bytes."""
    found = bytearray(to_bytes(sample()))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(found) - 4))
        word = data.draw(st.sampled_from([0, 1, 4, 12, 0xFFFFFFFF, 0x7FFFFFFF, len(found), len(found) - 4]) |
                         st.integers(0, 0xFFFFFFFF))
        struct.pack_into("<I", found, at, word)
    cut = data.draw(st.integers(0, len(found)) | st.just(len(found)))
    try:
        model = from_bytes(bytes(found[:cut]), "m.tmfile")
    except FormatError as error:
        assert str(error).startswith("m.tmfile: ")
    else:
        assert model.layers


def test_lists_that_lie_on_each_other_end_early() -> None:
    """2000 tensors that all name one long list of scales: refused before they are 8 million numbers."""
    model = sample()
    model.tensors[3].scales = np.full(4000, 0.5, np.float32)
    data = to_bytes(model)
    shared = from_bytes(data, "m.tmfile")
    assert len(shared.tensors[3].scales) == 4000  # type: ignore[arg-type]
    vector = data.find(struct.pack("<I", 4000))
    tensors = b"".join(struct.pack("<IIIIIiii", i, 0, 0, 0, vector, 0, 1, 2) for i in range(2000))
    start = len(data)
    offsets = struct.pack("<I", 2000) + b"".join(struct.pack("<I", start + 32 * i) for i in range(2000))
    root = struct.unpack_from("<I", data, 8)[0]
    (subgraph,) = struct.unpack_from("<I", data, struct.unpack_from("<I", data, root + 8)[0] + 4)
    hostile = bytearray(data + tensors + offsets)
    struct.pack_into("<I", hostile, subgraph + 24, start + len(tensors))
    with pytest.raises(FormatError, match="lie on each other"):
        from_bytes(bytes(hostile), "m.tmfile")
