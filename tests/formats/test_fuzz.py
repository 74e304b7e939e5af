"""Hostile files: each mutated symbol or params file gives a QGraphError or loads, in bounded time and memory."""

from __future__ import annotations

import json
import random
import struct
import time
import tracemalloc

import numpy as np
import pytest

from qgraph.errors import QGraphError
from qgraph.formats.mxnet import load, split_params, to_json
from qgraph.formats.ndarray import read_params
from qgraph.ir.graph import Graph, Port

FILES = 1500  # of each kind
SECONDS = 2.0  # for one file; they take about a millisecond
BYTES = 64 << 20  # peak memory for one file of a few KB


def seed_graph() -> Graph:
    """conv+relu - bn - split - concat - softmax, with a fused node: every part of the reader has work."""
    rng = np.random.default_rng(0)
    g = Graph()

    def param(name: str, *shape: int) -> Port:
        return Port(g.add_param(name, rng.normal(size=shape).astype(np.float32)))

    conv = g.add("Convolution", [g.add("null", name="data"), param("w", 4, 3, 3, 3), param("b", 4)], "conv",
                 kernel=(3, 3), num_filter=4, act_type="relu")
    bn = g.add("BatchNorm", [conv, *(param(f"bn_{n}", 4) for n in ("gamma", "beta", "mean", "var"))], "bn", eps=1e-5)
    split = g.add("SliceChannel", [bn], "split", n_out=2, num_outputs=2)
    inner = {"nodes": [{"op": "null", "name": "x", "inputs": []}, {"op": "null", "name": "w", "inputs": []},
                       {"op": "Convolution", "name": "c", "attrs": {"num_filter": "2"}, "inputs": [[0, 0], [1, 0]]}],
             "heads": [[2, 0]]}
    fused = g.add("_sg_mkldnn_conv", [Port(split, 1), param("fused_w", 2, 2, 1, 1)], "fused", n_out=3,
                  __subgraphs__=json.dumps([inner]))
    cat = g.add("Concat", [Port(split), fused], "cat", num_args=2)
    g.heads = [Port(g.add("SoftmaxOutput", [cat, g.add("null", name="label")], "softmax")), Port(fused, 2)]
    return g


GRAPH = seed_graph()
TEXT = to_json(GRAPH)


def params_bytes() -> bytes:
    """The seed's params, with arrays of every generation and type."""
    from io import BytesIO

    from qgraph.formats.ndarray import dump_params

    arg, aux = split_params(GRAPH)
    stream = BytesIO()
    dump_params(stream, {**{f"arg:{k}": v for k, v in arg.items()}, **{f"aux:{k}": v for k, v in aux.items()},
                         "arg:i8": np.ones(3, np.int8), "arg:f16": np.ones(3, np.float16)})
    content = stream.getvalue()
    old = struct.pack("<Iiii", 1, 2, 1, 0) + struct.pack("<iff", 0, 1.0, 2.0)  # V0
    v3 = struct.pack("<Iiiqiiiff", 0xF993FACA, 0, 1, 2, 1, 0, 0, 1.0, 2.0)
    names_at = content.index(struct.pack("<QQ", len(arg) + len(aux) + 2, 5))
    count = len(arg) + len(aux) + 4
    names = content[names_at + 8:] + b"".join(struct.pack("<Q", 2) + n for n in (b"v0", b"v3"))
    number = struct.pack("<Q", count)
    return content[:16] + number + content[24:names_at] + old + v3 + number + names


PARAMS = params_bytes()


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[:rng.randrange(len(data))]


def splice(data: bytes, rng: random.Random) -> bytes:
    a, b, n = rng.randrange(len(data)), rng.randrange(len(data)), rng.randrange(64)
    return data[:a] + data[b:b + n] + data[a + rng.randrange(64):]


def lie(data: bytes, rng: random.Random) -> bytes:
    """A claim in place of 4 or 8 bytes: counts, dimensions, flags, lengths."""
    width, code = rng.choice(((4, "<I"), (8, "<Q")))
    top = (1 << 8 * width) - 1
    value = rng.choice((0, 1, 2, 12, 33, 0x7FFFFFFF, 1 << 31, top, top - 1, top >> 1, rng.randint(0, top),
                        0xF993FAC8, 0xF993FACA, len(data)))
    at = rng.randrange(0, len(data) - width, 4)
    return data[:at] + struct.pack(code, value & top) + data[at + width:]


def garble_json(data: bytes, rng: random.Random) -> bytes:
    """One value of the document, somewhere, becomes another; or a key goes, or a list repeats itself."""
    document = json.loads(data)
    places: list[tuple] = []
    pending = [document]
    while pending:
        value = pending.pop()
        for key in value if isinstance(value, dict) else range(len(value)):
            places += [(value, key)] * (5 if key in ("op", "attrs") else 1)
            if isinstance(value[key], (dict, list)):
                pending.append(value[key])
    for _ in range(rng.choice((1, 1, 2, 5))):
        where, key = rng.choice(places)
        odd = rng.choice((None, True, -1, 0, 3, 1 << 31, 10**18, 1.5, "", "null", "_foreach", "(9999999999, 3)",
                          "((((", "L" * 50, [], [[0, 0, 0]], [[0, 0]], {}, {"mxnet_version": ["int", 1]}, "\x00",
                          "é" * 2000, "999999999999", "SliceChannel", "BatchNorm", "Convolution", "fake_quantize"))
        if isinstance(where, dict) and rng.random() < 0.2:
            where.pop(key, None)
        elif isinstance(where, list) and rng.random() < 0.2:
            where.extend(where[:20])
        elif key in where if isinstance(where, dict) else key < len(where):
            where[key] = odd
    return json.dumps(document, ensure_ascii=rng.random() < 0.5).encode()


def nest(data: bytes, rng: random.Random) -> bytes:
    depth = rng.choice((3, 900, 5_000, 100_000))
    start, end = rng.choice(("[]", ('{"a":', "}"), ('[{"nodes":', "}]")))
    at = rng.choice([i for i, c in enumerate(data) if c in b"[{0123456789"])
    return data[:at] + (start * depth + "0" + end * rng.choice((0, depth))).encode() + data[at:]


def check(name: str, load_file) -> str:
    """Load one file under watch; returns "loaded" or the error's class."""
    start = time.process_time()
    tracemalloc.reset_peak()
    base = tracemalloc.get_traced_memory()[0]
    try:
        load_file()
        outcome = "loaded"
    except QGraphError as error:
        assert str(error) and len(str(error)) < 3000, name
        outcome = type(error).__name__
    assert tracemalloc.get_traced_memory()[1] - base < BYTES, name
    assert time.process_time() - start < SECONDS, name
    return outcome


@pytest.fixture
def traced():
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_the_seed_loads():
    g = load(TEXT, PARAMS)
    assert to_json(g) == TEXT
    assert set(read_params(PARAMS)) > {"v0", "v3", "arg:i8", "aux:bn_var"}


@pytest.mark.slow
def test_mutated_symbols(tmp_path, traced):
    path, data, outcomes = tmp_path / "m-symbol.json", TEXT.encode(), {}
    arrays = read_params(PARAMS)
    mutations = [flip_bits, truncate, splice, garble_json, garble_json, garble_json, nest]
    for number in range(FILES):
        rng = random.Random(number)
        mutate = mutations[number % len(mutations)]
        path.write_bytes(mutate(data, rng))

        def load_file(params=arrays if number % 3 else None):
            g = load(path, params)
            g.verify()
            to_json(g)
            split_params(g)

        outcome = check(f"{mutate.__name__} seed {number}", load_file)
        outcomes.setdefault(mutate.__name__, set()).add(outcome)
    assert outcomes["garble_json"] == {"loaded", "FormatError", "UnsupportedError"}
    assert "FormatError" in outcomes["nest"] and "FormatError" in outcomes["truncate"]


@pytest.mark.slow
def test_mutated_params(tmp_path, traced):
    path, outcomes = tmp_path / "m-0000.params", {}
    mutations = [flip_bits, truncate, splice, lie, lie]
    for number in range(FILES):
        rng = random.Random(number)
        mutate = mutations[number % len(mutations)]
        path.write_bytes(mutate(PARAMS, rng))
        read = read_params if number % 4 else lambda p: load(TEXT, p)
        outcome = check(f"{mutate.__name__} seed {number}", lambda read=read: read(path))
        outcomes.setdefault(mutate.__name__, set()).add(outcome)
    assert outcomes["truncate"] == {"FormatError"}
    assert {"loaded", "FormatError"} <= outcomes["lie"] and {"loaded", "FormatError"} <= outcomes["flip_bits"]


def test_every_claim_in_the_header_is_checked(tmp_path, traced):
    """Each 4-byte word of the file in turn claims as much as it can."""
    path = tmp_path / "m-0000.params"
    for at in range(0, len(PARAMS) - 8, 4):
        for value in (0x7FFFFFFF, 0xFFFFFFFF, 0xF993FAC9):
            path.write_bytes(PARAMS[:at] + struct.pack("<I", value) + PARAMS[at + 4:])
            check(f"word {at} = {value:#x}", lambda: read_params(path))
