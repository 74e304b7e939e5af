"""The calibration table: exact round trip, refusals that name what is wrong, and hostile files."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from helpers import calls
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.errors import CalibrationError, FormatError, QGraphError
from qgraph.quant import table as table_module
from qgraph.quant.table import LARGEST, CalibrationTable, Entry

NUMBERS = st.floats(-LARGEST, LARGEST)
NAMES = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=30)


def example(entries: int = 3) -> CalibrationTable:
    return CalibrationTable(
        method="kl", bits=8, signed=None, graph_hash="5f" * 32, images=100,
        preprocess={"mean": [123.68, 116.28, 103.53], "std": [1, 1, 1], "bgr": True, "resize": None, "layout": "NCHW"},
        data="val.rec, 0::10",
        entries={f"conv{i}_fwd": Entry(-0.1 * i, 1 / 3 + i, 0.0, 0.3 + i, "kl", f"image {i}") for i in range(entries)},
    )


@given(st.dictionaries(NAMES, st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS, NAMES), max_size=8))
@settings(max_examples=100)
def test_round_trip_is_exact_and_its_bytes_are_stable(entries):
    table = example(0)
    for name, (a, b, c, d, sample) in entries.items():
        table.entries[name] = Entry(min(a, b), max(a, b), min(c, d), max(c, d), "mse", sample)
    data = table.to_json()
    again = CalibrationTable.from_json(data)
    assert again == table and again.to_json() == data
    reversed_table = example(0)
    reversed_table.entries = dict(reversed(list(table.entries.items())))
    assert reversed_table.to_json() == data


def test_file_is_readable_text(tmp_path):
    path = tmp_path / "model.calib.json"
    example().save(path)
    assert CalibrationTable.load(path) == example()
    text = path.read_text()
    assert '"max": 0.3333333333333333' in text and text.endswith("}\n") and text.count("\n") > 20
    assert json.loads(text)["entries"]["conv1_fwd"]["min"] == -0.1


def test_numpy_numbers_and_aliases_become_plain():
    entry = Entry(np.float32(0.1), np.float32(2), np.float64(0), 2, "minmax")
    assert entry.min == float(np.float32(0.1)) and type(entry.min) is float and entry.method == "naive"


@pytest.mark.parametrize("change", [
    {"min": float("nan")}, {"high": float("inf")}, {"min": 3.0}, {"low": 2.5}, {"method": "magic"}, {"sample": 3},
    {"max": "1"},
])
def test_an_entry_that_is_not_a_range_is_refused(change):
    with pytest.raises(FormatError):
        Entry(**{**dict(min=0.0, max=2.0, low=0.0, high=2.0, method="kl"), **change})


def test_what_cannot_be_read_back_is_not_written():
    table = example()
    table.preprocess["mean"] = np.zeros(3)
    with pytest.raises(FormatError, match="ndarray"):
        table.to_json()
    table.preprocess["mean"] = [float("nan")]
    with pytest.raises(QGraphError):
        table.to_json()


def test_another_model_bits_and_missing_tensors_are_named():
    table = example()
    table.check("5f" * 32)
    with pytest.raises(CalibrationError, match=f"another model.*{'5f' * 32}.*abcd"):
        table.check("abcd")
    table.check_bits(8)
    with pytest.raises(CalibrationError, match="conv0_fwd.*8 bits, want 4; calibrate again"):
        table.check_bits(4)
    table.require(["conv0_fwd", "conv2_fwd"])
    with pytest.raises(CalibrationError, match="conv7_fwd, x; calibrate again"):
        table.require(["conv1_fwd", "conv7_fwd", "x"])
    for method in ("naive", "ema", "percentile"):
        table.entries = {"a": Entry(0, 1, 0, 1, method)}
        table.check_bits(4)


def edit(**changes) -> bytes:
    return json.dumps({**json.loads(example().to_json()), **changes}).encode()


ENTRY = json.loads(example().to_json())["entries"]["conv0_fwd"]


@pytest.mark.parametrize("data, message", [
    (b"", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b"[]", "want a JSON object"),
    (b"null", "want a JSON object"),
    (b"[" * 1_000_000, "nested too deeply"),
    (b'{"a":' * 1_000_000, "nested too deeply"),
    (b'{"format": ' + b"9" * 5_000_000 + b"}", "whole number of 5000000 digits"),
    (edit(version=2), "version: found 2, this qgraph reads 1"),
    (edit(version=True), "version"),
    (edit(version=1.0), "version"),
    (edit(surprise=1), "'surprise' missing or unknown"),
    (edit(bits="8"), "bits"),
    (edit(bits=True), "bits"),
    (edit(bits=1), "bits"),
    (edit(signed="auto"), "signed"),
    (edit(images=-1), "images"),
    (edit(graph_hash=None), "graph_hash"),
    (edit(graph_hash="\ud800"), "graph_hash"),
    (edit(method=["kl"]), "method"),
    (edit(preprocess={"a": {"b": 1}}), "preprocess a"),
    (edit(preprocess={"a": [[1]]}), "preprocess a"),
    (edit(entries=[]), "entries"),
    (edit(entries={"a": 1}), "tensor a"),
    (edit(entries={"a": {}}), "tensor a: 'high'"),
    (edit(entries={"a": {**ENTRY, "low": None}}), "tensor a: low"),
    (edit(entries={"a": {**ENTRY, "low": 10.0}}), "tensor a: .*want low <= high"),
    (edit(entries={"a": {**ENTRY, "max": float("inf")}}), "tensor a: max: found inf"),
    (edit(entries={"a": {**ENTRY, "max": float("nan")}}), "tensor a: max: found nan"),
    (edit(entries={"a": {**ENTRY, "max": 3e38}}), "tensor a: max: found 3e.38, want a finite number, up to 1e.37"),
    (edit(entries={"a": ENTRY}).replace(b'"max": 0.3', b'"max": 1e999, "x": 0.3'), "tensor a"),
    (edit(entries={"a": ENTRY}).replace(b'"max": 0.3', b'"min": 0.0, "max": 0.3'), "twice"),
    (edit()[:-40], "not JSON"),
])
def test_a_malformed_table_is_a_format_error(data, message):
    with pytest.raises(FormatError, match="(?s)calibration table: .*" + message) as info:
        CalibrationTable.from_json(data)
    assert len(str(info.value)) < 500


def test_a_file_is_never_read_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(table_module, "MAX_BYTES", 1000)
    path = tmp_path / "big.calib.json"
    path.write_bytes(b" " * 1001)
    with pytest.raises(FormatError, match="more than 1000 bytes"):
        CalibrationTable.load(path)
    with pytest.raises(FormatError, match="cannot be read"):
        CalibrationTable.load(tmp_path / "none.json")
    with pytest.raises(FormatError, match="cannot be read"):
        CalibrationTable.load(tmp_path)


def mutate(data: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(6)
    at, b = rng.randrange(len(data)), bytearray(data)
    if kind == 0:
        b[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del b[at:]
    elif kind == 2:
        del b[at : at + rng.randrange(1, 40)]
    elif kind == 3:
        b[at:at] = rng.choice([b"[" * 50_000, b'{"a":' * 50_000, b"9" * 100_000, b"1e999", b"NaN", b"-Infinity",
                               b"\x00", b'"\\ud800"'])
    elif kind == 4:
        end = rng.randrange(at, min(len(data), at + 200))
        b[at:at] = data[at:end] * rng.randrange(1, 50)
    else:
        digits = [i for i, c in enumerate(data) if chr(c).isdigit()]
        for i in rng.sample(digits, 5):
            b[i : i + 1] = rng.choice([b"9", b"-", b".", b"e", b"null", b"true", b"{}", b"[]", b'"x"'])[:1] or b"0"
    return bytes(b)


def test_mutated_tables_are_refused_or_load(tmp_path):
    rng, good = random.Random(7), example().to_json()
    loaded: list[bytes] = []

    def read(data: bytes) -> None:
        try:
            table = CalibrationTable.from_json(data)
        except (FormatError, CalibrationError) as error:
            assert len(str(error)) < 1000
        else:
            loaded.append(data)
            assert CalibrationTable.from_json(table.to_json()) == table

    for _ in range(1200):
        data = mutate(good, rng)
        if rng.random() < 0.2:
            data = mutate(data, rng)
        assert calls(lambda data=data: read(data)) < 10_000
    assert 0 < len(loaded) < 600


def test_factors_come_back_and_tables_without_any_are_as_before():
    table = example()
    assert b"factors" not in table.to_json()
    table.factors = {"conv0": [1.0, 2.5, 1 / 3]}
    again = CalibrationTable.from_json(table.to_json())
    assert again == table and again.to_json() == table.to_json()


@pytest.mark.parametrize("bad", [[], {}, 3, "x", [0.0], [-1.0], [1e9], ["1"], [True], [None], [[1.0]]])
def test_factors_that_are_none_are_refused(bad):
    body = json.loads(example().to_json())
    body["factors"] = {"conv0": bad}
    with pytest.raises(FormatError, match="calibration table: factors of conv0: found"):
        CalibrationTable.from_json(json.dumps(body).encode())
