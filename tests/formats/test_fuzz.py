"""Hostile files: each damaged file of each kind is read or refused with a QGraphError, in bounded time and memory."""

from __future__ import annotations

import json
import random
import re
import struct
import time
from collections.abc import Callable
from io import BytesIO

import hostile
import numpy as np
import pytest
from hostile import KINDS, Kind

from qgraph.errors import FormatError, QGraphError
from qgraph.formats.mxnet import load
from qgraph.formats.mxnet_writer import split_params, to_json
from qgraph.formats.ndarray import dump_params, read_params
from qgraph.ir.graph import Fused, Graph, Port

pytestmark = pytest.mark.slow
FILES = 100  # of each kind
SECONDS = 5.0  # for one file; they take about 15 milliseconds
MIB = 16  # peak memory for one small file of parameters


def seed_graph() -> Graph:
    """conv+relu - bn - split - concat - softmax, with a fused node: every part of the reader has work."""
    rng = np.random.default_rng(0)
    g = Graph()

    def param(name: str, *shape: int) -> Port:
        return Port(g.add_param(name, rng.normal(size=shape).astype(np.float32)))

    conv = g.add("Convolution", [g.add("null", name="data"), param("w", 4, 3, 3, 3), param("b", 4)], "conv",
                 kernel=(3, 3), num_filter=4)
    conv.fused = Fused("relu")
    bn = g.add("BatchNorm", [conv, *(param(f"bn_{n}", 4) for n in ("gamma", "beta", "mean", "var"))], "bn", eps=1e-5)
    split = g.add("SliceChannel", [bn], "split", n_out=2, num_outputs=2)
    inner = {"nodes": [{"op": "null", "name": "x", "inputs": []}, {"op": "null", "name": "w", "inputs": []},
                       {"op": "Convolution", "name": "c", "attrs": {"num_filter": "2"}, "inputs": [[0, 0], [1, 0]]}],
             "heads": [[2, 0]]}
    fused = g.add("_sg_mkldnn_conv", [Port(split, 1), param("fused_w", 2, 2, 1, 1)], "fused", n_out=3,
                  __subgraphs__=json.dumps([inner]), min_calib_range="-1.5", max_calib_range="1.5")
    cat = g.add("Concat", [Port(split), fused], "cat", num_args=2)
    g.heads = [Port(g.add("SoftmaxOutput", [cat, g.add("null", name="label")], "softmax")), Port(fused, 2)]
    return g


GRAPH = seed_graph()
TEXT = to_json(GRAPH)


def params_bytes() -> bytes:
    """The seed's params, with arrays of every generation and type."""
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


@pytest.fixture(scope="module")
def seeds() -> dict[str, list[hostile.Seed]]:
    found = hostile.make_seeds()
    found["symbol"].append((TEXT.encode(), {"x-0000.params": PARAMS}))
    found["params"].append((PARAMS, {"x-symbol.json": TEXT.encode()}))
    return found


def watched(name: str, mib: int, read: Callable[[], str]) -> str:
    """What `read` returns, under watch."""
    start = time.process_time()
    try:
        with hostile.Peak() as peak:
            outcome = read()
    except Exception as error:
        raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
    assert peak.mib < mib, name
    assert time.process_time() - start < SECONDS, name
    return outcome


def test_the_seed_loads():
    g = load(TEXT, PARAMS)
    assert to_json(g) == TEXT
    assert set(read_params(PARAMS)) > {"v0", "v3", "arg:i8", "aux:bn_var"}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_sound_files_are_read(tmp_path, seeds, kind: Kind):
    for number, file in enumerate(seeds[kind.name]):
        assert hostile.attempt(kind, hostile.write(kind, file, tmp_path), number) == "read"


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_damaged_files_are_read_or_refused(tmp_path, seeds, kind: Kind):
    outcomes = []
    hostile.attempt(kind, hostile.write(kind, seeds[kind.name][0], tmp_path), 0)  # modules are imported by then
    for number in range(FILES):
        how, file = hostile.mutated(kind, seeds[kind.name], number)
        path = hostile.write(kind, file, tmp_path)
        outcomes.append(watched(f"{kind.name} {number} ({how})", kind.mib,
                                lambda path=path, number=number: hostile.attempt(kind, path, number)))
    assert min(outcomes.count("read"), outcomes.count("refused")) > FILES // 20


def test_every_claim_in_the_header_is_checked(tmp_path):
    """Each 4-byte word of the file in turn claims as much as it can."""
    path = tmp_path / "m-0000.params"

    def read() -> str:
        try:
            return str(len(read_params(path)))
        except QGraphError as error:
            return str(error)

    for at in range(0, len(PARAMS) - 8, 4):
        for value in (0x7FFFFFFF, 0xFFFFFFFF, 0xF993FAC9):
            path.write_bytes(PARAMS[:at] + struct.pack("<I", value) + PARAMS[at + 4:])
            watched(f"word {at} = {value:#x}", MIB, read)


@pytest.mark.parametrize("text", ["11.46<3", "nan", "1e999", "1" * 50, "", "(1, 2)"])
def test_a_calibrated_range_is_a_number(tmp_path, text):
    path = tmp_path / "x-symbol.json"
    path.write_text(TEXT.replace('"min_calib_range": "-1.5"', f'"min_calib_range": "{text}"'))
    found = rf"x-symbol.json: node \d+ \(fused.*min_calib_range: found {re.escape(repr(text)[:30])}.* want a finite"
    with pytest.raises(FormatError, match=found):
        load(path)
    path.write_text(TEXT.replace('"-1.5"', '"None"'))
    load(path)


def test_mutations_differ_and_are_found_again():
    data = random.Random(0).randbytes(500)
    for number, mutate in enumerate(hostile.BYTES):
        made = [mutate(data, data[::-1], random.Random(f"{number} {i}")) for i in range(20)]
        assert len(set(made)) > 15 and sum(part != data for part in made) > 15
        assert made == [mutate(data, data[::-1], random.Random(f"{number} {i}")) for i in range(20)]
