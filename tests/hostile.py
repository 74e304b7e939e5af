"""Hostile files of every kind that qgraph reads: sound ones, ways to damage them, and reading them as a user does.

    how, file = mutated(KINDS["onnx"], make_seeds()["onnx"], number, seed)
    attempt(KINDS["onnx"], write(KINDS["onnx"], file, folder), number)    "read" or "refused", else it raises

Everything depends on the kind and the numbers alone, so a failure is found again.  `tests/formats/test_fuzz.py` reads
some hundreds of each kind, `benchmarks/fuzz.py` as many as one likes.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import qgraph
from qgraph.errors import QGraphError
from qgraph.ir import ops

DIGITS = Path(__file__).resolve().parent.parent / "examples" / "digits" / "digits"
LONGEST_MESSAGE = 3000

NUMBERS = ("nan", "inf", "-inf", "1e999", "-1", "-0", "0", "1", "2", "3", "33", "1.5", "-1e-320", "11.46<3", "3e38",
           "2147483647", "2147483648", "-2147483649", "9223372036854775807", "99999999999999999999", "9" * 5000,
           "1" * 39, "0x10", "1_000", "3L", "٣", "½", "", " ", "None", "True", "null", "(", "(1, 2", "(9999999999, 3)",
           "(-1, -1)", "(0, 0)", "(1000000, 1000000)", "[2, 3", "\x00", "é" * 2000)
INTEGERS = (0, 1, 2, 3, 4, 7, 8, 12, 31, 33, 127, 255, 256, 65535, 1 << 20, 0x7FFFFFFF, 1 << 31, 0xFFFFFFFF, 1 << 40,
            (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 0xF993FAC8, 0xF993FACA, 0x0002C056, 0x000D4B38, 0x01306B47)

Mutator = Callable[[bytes, bytes, random.Random], bytes]  # (a file, another one of its kind, chance)


# ---- bytes ----------------------------------------------------------------------------------------------------------

def flip_bits(data: bytes, other: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        out[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(out)


def _place(data: bytes, rng: random.Random) -> int:
    """Anywhere, or near an end, where headers are."""
    window = rng.choice((len(data), 64, 2048))
    at = rng.randrange(min(window, len(data)))
    return len(data) - 1 - at if rng.random() < 0.3 else at


def run(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Some bytes in a row become zeros, ones, or noise."""
    at, length = _place(data, rng), rng.choice((1, 2, 4, 8, 64, 1000))
    piece = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))
    return data[:at] + piece + data[at + length:]


def truncate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    return data[:_place(data, rng)]


def insert(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Noise between, or a part of the file again."""
    at, start, length = _place(data, rng), _place(data, rng), rng.choice((1, 2, 4, 16, 300))
    return data[:at] + rng.choice((rng.randbytes(length), data[start:start + length])) + data[at:]


def remove(data: bytes, other: bytes, rng: random.Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + rng.choice((1, 2, 4, 16, 300)):]


def splice(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """The beginning of one file, the end of another, or a part of that between."""
    at, start = _place(data, rng), _place(other, rng)
    return data[:at] + other[start:] if rng.random() < 0.5 else data[:at] + other[start:start + 64] + data[at + 64:]


def lie(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A claim in place of 4 or 8 bytes: counts, dimensions, flags, lengths."""
    width, code = rng.choice(((4, "<I"), (8, "<Q")))
    at = _place(data, rng) // 4 * 4
    value = rng.choice((*INTEGERS, len(data), rng.randrange(1 << 32)))
    return data[:at] + struct.pack(code, value & (1 << 8 * width) - 1) + data[at + width:]


BYTES: tuple[Mutator, ...] = (flip_bits, run, truncate, insert, remove, splice)


# ---- text -----------------------------------------------------------------------------------------------------------

def numbers(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Numbers become nasty ones."""
    return _tokens(data, rng, rb"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", [number.encode() for number in NUMBERS])


def words(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Words become other words of the file, or of another."""
    return _tokens(data, rng, rb"[\w.+-]+", re.findall(rb"[\w.+-]+", rng.choice((data, other))) or [b"x"])


def _tokens(data: bytes, rng: random.Random, pattern: bytes, new: Sequence[bytes]) -> bytes:
    found = list(re.finditer(pattern, data))
    chosen = sorted(rng.sample(found, min(len(found), rng.choice((1, 1, 2, 5)))), key=lambda match: -match.start())
    for match in chosen:
        data = data[:match.start()] + rng.choice(new) + data[match.end():]
    return data


def garble_json(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One value of the document, somewhere, becomes another; or a key goes, or a list repeats itself."""
    document = json.loads(data)
    places: list[tuple[Any, Any]] = []
    pending = [document]
    while pending:
        value = pending.pop()
        for key in value if isinstance(value, dict) else range(len(value)):
            places += [(value, key)] * (5 if key in ("op", "attrs") else 1)
            if isinstance(value[key], (dict, list)):
                pending.append(value[key])
    for _ in range(rng.choice((1, 1, 2, 5))):
        where, key = rng.choice(places)
        odd = rng.choice((None, True, -1, 0, 3, 1 << 31, 10**18, 1.5, 1e300, "_foreach", "L" * 50, [], [[0, 0, 0]],
                          [[0, 0]], {}, {"mxnet_version": ["int", 1]}, rng.choice(NUMBERS), rng.choice(NUMBERS),
                          rng.choice([*ops.OPS, *ops.ALIASES]), rng.choice(places)[1]))
        if isinstance(where, dict) and rng.random() < 0.2:
            where.pop(key, None)
        elif isinstance(where, list) and rng.random() < 0.2:
            where.extend(where[:20])
        elif key in where if isinstance(where, dict) else key < len(where):
            where[key] = odd
    return json.dumps(document, ensure_ascii=rng.random() < 0.5).encode()


def garble_attrs(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Attributes of a symbol's nodes get nasty numbers, or nodes get another op, with the attributes that it reads."""
    document = json.loads(data)
    for node in rng.sample(document["nodes"], rng.choice((1, 1, 2, 5))):
        attrs = node.setdefault("attrs", {})
        if rng.random() < 0.5:
            node["op"] = rng.choice([*ops.OPS, *ops.ALIASES])
        for key in [*attrs, *ops.info(node["op"]).defaults]:
            if rng.random() < 0.3:
                attrs[key] = rng.choice(NUMBERS)
    return json.dumps(document).encode()


def nest(data: bytes, other: bytes, rng: random.Random) -> bytes:
    depth = rng.choice((3, 900, 5_000, 100_000))
    start, end = rng.choice(("[]", ('{"a":', "}"), ('[{"nodes":', "}]")))
    at = rng.choice([i for i, c in enumerate(data) if c in b"[{0123456789"])
    return data[:at] + (start * depth + "0" + end * rng.choice((0, depth))).encode() + data[at:]


TEXT: tuple[Mutator, ...] = (numbers, numbers, words, words)
JSON: tuple[Mutator, ...] = (*TEXT, garble_json, garble_json, garble_json, nest)


# ---- containers: what is inside is damaged, and the outside fits it -------------------------------------------------

def garble_onnx(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Fields of messages get other values, go, or come twice; strings become those of other fields, or no text."""
    import onnx

    proto = onnx.ModelProto.FromString(data)
    messages, texts, pending = [], ["", "QuantizeLinear", "Clip", "Constant"], [proto]
    while pending:
        message = pending.pop()
        messages.append(message)
        for field, value in message.ListFields():
            values = list(value) if _repeated(value) else [value]
            if field.type == field.TYPE_MESSAGE:
                pending += values
            elif field.type == field.TYPE_STRING:
                texts += values
    for _ in range(rng.choice((1, 1, 2, 5))):
        message = rng.choice(messages)
        field = rng.choice([field for field, _ in message.ListFields()] if rng.random() < 0.7 and message.ListFields()
                           else message.DESCRIPTOR.fields)
        with contextlib.suppress(TypeError, ValueError, AttributeError):  # a value that the field cannot have
            _garble_field(message, field, texts, rng)
    spoiled = proto.SerializeToString()
    return spoiled.replace(_NO_TEXT, b"\xff" * len(_NO_TEXT))


_NO_TEXT = b"<no text>"


def _repeated(value: Any) -> bool:
    return not isinstance(value, (str, bytes, int, float)) and not hasattr(value, "ListFields")


def _garble_field(message: Any, field: Any, texts: Sequence[str], rng: random.Random) -> None:
    value = getattr(message, field.name)
    if field.type == field.TYPE_MESSAGE:
        if not _repeated(value):
            message.ClearField(field.name) if rng.random() < 0.5 else value.SetInParent()
        elif value and rng.random() < 0.5:
            del value[rng.randrange(len(value))]
        elif value:
            value.add().CopyFrom(rng.choice(value))
        else:
            value.add()
        return
    new: Any = {field.TYPE_STRING: rng.choice((rng.choice(texts), _NO_TEXT.decode(), "x" * 5000)),
                field.TYPE_BYTES: rng.randbytes(rng.randrange(20)),
                field.TYPE_FLOAT: rng.choice((0.0, 1e38, float("nan"), float("inf")))}.get(
        field.type, rng.choice((*INTEGERS, *range(30), -1, -(1 << 31), -(1 << 63))))
    if not _repeated(value):
        setattr(message, field.name, new)
    elif value and rng.random() < 0.7:
        value[rng.randrange(len(value))] = new
    else:
        value.extend([new] * rng.choice((1, 1, 40)))


def garble_record(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One record of a .rec is damaged inside; its length fits."""
    contents = records(data)
    at = rng.randrange(len(contents))
    contents[at] = _garble_image(contents[at], rng.choice(contents), rng)
    return pack_records(contents)


def _garble_image(data: bytes, other: bytes, rng: random.Random) -> bytes:
    start = data.find(b"\x89PNG\r\n\x1a\n")
    if start < 0 or rng.random() < 0.2:
        return rng.choice((*BYTES, lie))(data, other, rng)
    chunks = _png_chunks(data[start + 8:])
    at = rng.randrange(len(chunks))
    kind, content = chunks[at]
    chunks[at] = kind, rng.choice((*BYTES, lie))(content, content, rng) if content else b"\0"
    return data[:start + 8] + b"".join(struct.pack(">I", len(body)) + name + body
                                       + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks)


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4:at + 8], data[at + 8:at + 8 + length]))
        at += 12 + length
    return chunks


def garble_member(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One array of an .npz is damaged, or its header claims something; the archive around it fits."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    content = members[name]
    if rng.random() < 0.6:
        end = content.index(b"\n") + 1
        header = rng.choice((numbers, words))(content[10:end], content[10:end], rng)
        members[name] = content[:8] + struct.pack("<H", len(header) & 0xFFFF) + header + content[end:]
    else:
        members[name] = rng.choice(BYTES)(content, content, rng)
    return pack_npz(members, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


# ---- sound files ----------------------------------------------------------------------------------------------------

_REC_MAGIC = struct.pack("<I", 0xCED7230A)


def pack_records(contents: Sequence[bytes]) -> bytes:
    return b"".join(_REC_MAGIC + struct.pack("<I", len(content)) + content + bytes(-len(content) % 4)
                    for content in contents)


def records(data: bytes) -> list[bytes]:
    contents, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        contents.append(data[at + 8:at + 8 + length])
        at += 8 + length + -length % 4
    return contents


def pack_npz(members: dict[str, bytes], how: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _pickled_pairs(protocol: int) -> bytes:
    """Two pairs of images as InsightFace packs them, one image as the array of bytes that OpenCV makes."""
    from PIL import Image

    images: list[Any] = []
    for seed in range(4):
        stream = io.BytesIO()
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)).save(stream, "JPEG")
        images.append(stream.getvalue())
    images[3] = np.frombuffer(images[3], np.uint8)
    return pickle.dumps((images, [True, False]), protocol)


def _image_records(labels: bytes) -> bytes:
    """An image in every format and mode that is read. labels: as they lie in front of it."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 3), np.uint8)
    grey = pixels[:, :, 0]
    deep = Image.fromarray(grey.astype(np.uint16) * 200)
    images = [("JPEG", Image.fromarray(pixels)), ("JPEG", Image.fromarray(grey)), ("PNG", Image.fromarray(pixels)),
              ("PNG", Image.fromarray(pixels).convert("P")), ("PNG", Image.fromarray(pixels).convert("RGBA")),
              ("PNG", deep), ("BMP", Image.fromarray(pixels)), ("GIF", Image.fromarray(pixels)),
              ("WEBP", Image.fromarray(pixels)), ("PPM", Image.fromarray(pixels)), ("PPM", deep)]
    contents = []
    for number, (kind, image) in enumerate(images):
        stream = io.BytesIO()
        image.save(stream, kind, **({"progressive": True} if number == 1 else {}))
        contents.append(labels + stream.getvalue())
    return pack_records(contents)


def _box_records() -> bytes:
    """Images with im2rec's labels of detection."""
    labels = [(2, 5, 1, 0.25, 0.5, 0.75, 1), (4, 6, 40, 30, 0, 0, 0, 1, 1, 1, 2, 0.5, 0.5, 1, 1, 0), (2, 5)]
    return pack_records([struct.pack(f"<IfQQ{len(label)}f", len(label), 0, 0, 0, *label) + _image()
                         for label in labels])


def _image() -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (40, 30)).save(stream, "PNG")
    return stream.getvalue()


_COCO = {"images": [{"id": 5, "file_name": "a.png", "width": 40, "height": 30}, {"id": 6, "file_name": "b.png"}],
         "categories": [{"id": 90, "name": "dog"}, {"id": 2, "name": "cat"}],
         "annotations": [{"id": 1, "image_id": 5, "category_id": 90, "bbox": [20, 10, 10.5, 20], "iscrowd": 0},
                         {"id": 2, "image_id": 6, "category_id": 2, "bbox": [0, 0, 40, 30], "iscrowd": 1}]}
_KEYPOINTS = {**_COCO, "annotations": [{**row, "area": 50.5, "keypoints": [20, 10, 2, 22.5, 12, 1, 0, 0, 0]}
                                       for row in _COCO["annotations"]]}
_VOC = b"""<?xml version="1.0"?>
<annotation><filename>x.jpg</filename><size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>dog</name><difficult>1</difficult><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
</object><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object>
</annotation>"""
_ENTITIES = b'<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;&x;&x;">]>'


def garble_xml(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A declaration of entities, or an element inside another one, many times."""
    if rng.random() < 0.3:
        return data.replace(b"\n", b"\n" + _ENTITIES, 1).replace(b"dog", b"&y;" * rng.choice((1, 1000)))
    element = rng.choice(re.findall(rb"<(\w+)>[^<]*</", data))
    found = re.search(rb"<%s>.*?</%s>" % (element, element), data, re.S)
    depth = rng.choice((0, 1, 10, 100_000))
    inner = found[0] * rng.choice((1, 2))
    return data.replace(found[0], b"<%s>" % element * depth + inner + b"</%s>" % element * depth)


Seed = tuple[bytes, dict[str, bytes]]  # a sound file, and what lies beside it: name -> content


def make_seeds() -> dict[str, list[Seed]]:
    """Kind -> sound files of it: the digits network as every target freezes it, and small networks in float."""
    import networks

    from qgraph import FreezeOptions

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = np.load(f"{DIGITS}-calib.npz")["data"][:32]
        for target in ("mxnet", "mxnet-sim", "onnx", "ncnn", "tengine"):
            options = FreezeOptions(target=target, calib="kl" if target == "mxnet" else "naive")
            qgraph.freeze(str(DIGITS), options, calib_data={"data": data}).save(folder / target)
        for small in ("conv_pool_conv", "residual_downsample"):
            g, feeds = networks.build(small)
            shape = "data:1," + ",".join(map(str, feeds["data"].shape[1:]))
            for target in ("onnx", "ncnn", "tengine"):
                qgraph.convert(g, target, input_shape=[shape]).save(folder / f"{small}-{target}")
            qgraph.convert(g, "mxnet").save(folder / small)
        test = np.load(f"{DIGITS}-test.npz")
        simulation = qgraph.simulate(str(DIGITS), {key: test[key][:8] for key in test},
                                     [qgraph.Strategy(), qgraph.Strategy(weight_bits=4)],
                                     calib_data={"data": data}).to_json()

        def files(pattern: str, *beside: tuple[str, str]) -> list[Seed]:
            found = sorted(folder.glob(pattern))
            return [(path.read_bytes(), {own: Path(str(path).replace(*change)).read_bytes()
                                         for own, change in zip(("x.bin", "x.param"), beside)}) for path in found]

        def checkpoint(prefix: Path) -> tuple[bytes, bytes]:
            return Path(f"{prefix}-symbol.json").read_bytes(), Path(f"{prefix}-0000.params").read_bytes()

        floats = [checkpoint(prefix) for prefix in (DIGITS, folder / "residual_downsample")]
        frozen = {target: checkpoint(folder / target) for target in ("mxnet", "mxnet-sim")}
        npz = io.BytesIO()
        np.savez(npz, data=data[:4], label=np.arange(4))
        images = io.BytesIO()
        np.savez_compressed(images, data=(data[:4].transpose(0, 2, 3, 1) * 255).astype(np.uint8), label=np.arange(4.0))
        return {
            "symbol": [(symbol, {"x-0000.params": params}) for symbol, params in floats],
            "params": [(params, {"x-symbol.json": symbol}) for symbol, params in (*floats, frozen["mxnet"])],
            **{f"frozen-{target}": [(symbol, {"x-0000.params": params})]
               for target, (symbol, params) in frozen.items()},
            "table": files("*.calib.json")[:2],
            "simulation": [(simulation.encode(), {})],
            "onnx": files("*.onnx"),
            "param": files("*.param", (".param", ".bin")),
            "bin": [(beside["x.bin"], {"x.param": content})
                    for content, beside in files("*.param", (".param", ".bin"))],
            "tmfile": files("*.tmfile"),
            "rec": [(_image_records(struct.pack("<IfQQ", 0, 3, 0, 0)), {}),
                    (_image_records(struct.pack("<IfQQ2f", 2, 0, 0, 0, 1, 2)), {}), (_box_records(), {})],
            "coco": [(json.dumps(document).encode(), {"a.png": _image(), "b.png": _image()})
                     for document in (_COCO, _KEYPOINTS)],
            "voc": [(_VOC, {"x.png": _image(), "names.txt": b"dog\ncat"})],
            "npz": [(npz.getvalue(), {}), (images.getvalue(), {})],
            "pairs": [(_pickled_pairs(protocol), {}) for protocol in (0, 2, 4)],
        }


# ---- reading --------------------------------------------------------------------------------------------------------

def inspect(path: Path, number: int) -> bool:
    """`qgraph inspect`, with a table or as JSON in turns: whether it had something to say."""
    from qgraph.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["inspect", str(path), *(["--json"] if number % 2 else []), "-q"])
    said = err.getvalue()
    assert code in (0, 1), f"exit code {code}: {said}"
    last = (said.splitlines() or [""])[-1]
    assert code == 0 or (last.startswith("qgraph: error: ") and "out of memory" not in last), said
    assert len(said) < LONGEST_MESSAGE, f"{len(said)} characters: {said}"
    return code == 0


def inspect_symbol(path: Path, number: int) -> bool:
    from qgraph.formats.mxnet import load
    from qgraph.formats.mxnet_writer import split_params, to_json

    if number % 3 == 0:
        g = load(path)
        g.verify()
        to_json(g)
        split_params(g)
    return inspect(path, number)


def inspect_beside(suffix: str) -> Callable[[Path, int], bool]:
    """What is damaged lies beside the file that is named."""
    return lambda path, number: inspect(path.with_name(f"x{suffix}"), number)


def read_table(path: Path, number: int) -> bool:
    table = qgraph.CalibrationTable.load(path)
    assert qgraph.CalibrationTable.from_json(table.to_json()) == table
    return True


def read_simulation(path: Path, number: int) -> bool:
    from qgraph.commands.strategies import Simulation

    found = Simulation.from_json(path.read_text("utf-8", errors="replace"), str(path))
    assert found.to_json() and found.to_markdown() and found.to_csv()
    return True


def sweep(path: Path, number: int) -> bool:
    """Every batch of a data file, and its labels."""
    data = qgraph.open_data(path, decoders=1, batch_size=1)
    assert sum(len(batch) for batch in data) == len(data)
    data.labels()
    return True


def sweep_labels(path: Path, number: int) -> bool:
    """Every label of a .json for the images beside it, or of the folder for an .xml."""
    from qgraph.data.preprocess import Preprocess

    data = qgraph.open_data(path.parent, Preprocess(resize=15, crop=15), decoders=1,
                            labels=path if path.suffix == ".json" else path.parent)
    assert sum(len(batch.labels) for batch in data) == len(data) == len(data.labels())
    return True


class Peak:
    """The most memory that the process takes meanwhile, beyond what it has at the start: `mib`. Linux only.

    That of native code (the decoders of images, protobuf) counts, which tracemalloc does not see.
    """

    def __enter__(self) -> Peak:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self._start, self.mib = self._status("VmRSS"), 0.0
        return self

    def __exit__(self, *_: object) -> None:
        self.mib = max(0, self._status("VmHWM") - self._start) / 1024

    @staticmethod
    def _status(key: str) -> int:
        return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0])


@dataclass(frozen=True)
class Kind:
    """file: as the damaged one is called.  read: raises QGraphError, or says that something was read.

    mib: of memory that one file may take.
    """

    name: str
    file: str
    mutators: tuple[Mutator, ...]
    read: Callable[[Path, int], bool]
    mib: int = 64


KINDS = {kind.name: kind for kind in (
    Kind("symbol", "x-symbol.json", (*BYTES, *JSON, garble_attrs, garble_attrs), inspect_symbol),
    Kind("params", "x-0000.params", (*BYTES, lie, lie, lie), inspect_beside("-symbol.json")),
    Kind("frozen-mxnet", "x-symbol.json", (*BYTES, *JSON, garble_attrs, garble_attrs), inspect_symbol),
    Kind("frozen-mxnet-sim", "x-symbol.json", (*BYTES, *JSON, garble_attrs, garble_attrs), inspect_symbol),
    Kind("table", "x.calib.json", (*BYTES, *JSON), read_table),
    Kind("simulation", "x.json", (*BYTES, *JSON), read_simulation),
    Kind("onnx", "x.onnx", (*BYTES, *[garble_onnx] * 8), inspect),
    Kind("param", "x.param", (*BYTES, *TEXT, *TEXT), inspect),
    Kind("bin", "x.bin", (*BYTES, lie, lie), inspect_beside(".param")),
    Kind("tmfile", "x.tmfile", (*BYTES, *[lie] * 6), inspect),
    Kind("rec", "x.rec", (*BYTES, lie, *[garble_record] * 6), sweep, 1600),  # as floats, as many pixels as are decoded
    Kind("coco", "x.json", (*BYTES, *JSON), sweep_labels),
    Kind("voc", "x.xml", (*BYTES, *TEXT, garble_xml, garble_xml), sweep_labels),
    Kind("pairs", "x.bin", (*BYTES, *BYTES, lie, lie), sweep, 1600),
    Kind("npz", "x.npz", (*BYTES, lie, *[garble_member] * 6), sweep),
)}


def mutated(kind: Kind, seeds: Sequence[Seed], number: int, seed: int = 0) -> tuple[str, Seed]:
    """(how it was damaged, the file and what lies beside it)"""
    rng = random.Random(f"{kind.name} {seed} {number}")
    mutate = kind.mutators[number % len(kind.mutators)]
    content, beside = rng.choice(seeds)
    return mutate.__name__, (mutate(content, rng.choice(seeds)[0], rng), beside)


def write(kind: Kind, file: Seed, folder: Path) -> Path:
    content, beside = file
    for name, data in beside.items():
        (folder / name).write_bytes(data)
    path = folder / kind.file
    path.write_bytes(content)
    return path


def attempt(kind: Kind, path: Path, number: int) -> str:
    """Read a file as a user does: "read" or "refused". Anything else is raised."""
    try:
        return "read" if kind.read(path, number) else "refused"
    except QGraphError as error:
        assert 0 < len(str(error)) < LONGEST_MESSAGE, f"a message of {len(str(error))} characters"
        return "refused"
