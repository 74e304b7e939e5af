"""The text form of a graph, one node a line, written by `Graph.text` and read by `Graph.parse`.

    %data = input
    %conv0_weight = param float32 (16, 3, 3, 3)
    %conv0 = Convolution(%data, %conv0_weight) {kernel=(3, 3) no_bias=True num_filter=16}
    %conv0_q = fake_quantize(%conv0) {u8 tensor scale=0.02353 zp=0}
    return %conv0_q

A node of several outputs says so (``-> 3``) and is read as ``%name:1``.  Names and values that are not plain words are
written as JSON strings.  Arrays are not part of the text: `parse_graph` fills parameters with noise that depends on
their name only.  More than 64 scales are abbreviated with a hash and cannot be read back.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zlib

import numpy as np

from qgraph.arrays import Array
from qgraph.errors import FormatError
from qgraph.ir import attributes
from qgraph.ir.graph import Graph, Node, Port
from qgraph.quant.spec import QParams, QSpec

_PLAIN_NAME = re.compile(r"[\w./\-]+\Z")
_PLAIN_VALUE = re.compile(r"(?:[\w.+\-]+|\([\d., \-]*\))\Z")
_STRING = r'"(?:[^"\\]|\\.)*"'
_NAME = rf"%(?P<{{}}>{_STRING}|[\w./\-]+)"
_REF = re.compile(rf"%({_STRING}|[\w./\-]+)(?::(\d+))?")
_LINE = re.compile(rf"{_NAME.format('name')} = (?P<op>[\w.]+)(?:\((?P<args>.*?)\))?(?: -> (?P<n_out>\d+))?"
                   rf"(?: (?P<param>[a-z]+\d* \([\d, ]*\)))?(?: \{{(?P<attrs>.*)\}})?\Z")
_ATTR = re.compile(rf"([\w.\-]+)=({_STRING}|\([\d., \-]*\)|\[[^\]]*\]|[^\s]+)|(\w+)")
_MANY = 64
_MOST_VALUES = 1 << 28  # of a parameter, which gets random values
_MOST_OUTPUTS = 1 << 16


def _name(name: str) -> str:
    return "%" + (name if _PLAIN_NAME.match(name) else json.dumps(name))


def _ref(port: Port) -> str:
    return _name(port.node.name) + (f":{port.index}" if port.index else "")


def _value(value: str) -> str:
    return value if _PLAIN_VALUE.match(value) else json.dumps(value)


def _unquote(text: str) -> str:
    return json.loads(text) if text.startswith('"') else text


def _numbers(values: Array) -> str:
    if values.ndim == 0:
        return f"{values[()]:.9g}"
    if len(values) <= _MANY:
        return "[" + ",".join(f"{v:.9g}" for v in values) + "]"
    return f"[{values.min():.6g}..{values.max():.6g} x{len(values)} #{hashlib.sha1(values.tobytes()).hexdigest()[:8]}]"


def format_quant(quant: QSpec) -> str:
    """``u8 tensor scale=0.02353 zp=0``: a spec or params on one line."""
    words = [quant.dtype, quant.granularity]
    words += [f"axis={quant.axis}"] if quant.granularity != "tensor" else []
    words += [f"groups={quant.groups}"] if quant.granularity == "group" else []
    words += [flag for flag in ("narrow", "whole", "online", "alone") if getattr(quant, flag)]
    words += [] if quant.symmetric else ["asymmetric"]
    words += [f"limit={quant.limit}"] if quant.limit else []
    words += [f"source={_value('|'.join(quant.source))}"] if quant.source else []
    if isinstance(quant, QParams):
        zero = quant.zero_point if quant.zero_point.any() else np.int64(0)
        words += [f"scale={_numbers(quant.scale)}", f"zp={_numbers(np.asarray(zero))}"]
    return " ".join(words)


def format_graph(g: Graph) -> str:
    """See the module's docstring."""
    lines = []
    for node in g.toposort():
        line = f"{_name(node.name)} = "
        if node.op == "null":
            array = g.params.get(node.name)
            line += "input" if array is None else f"param {array.dtype} ({', '.join(map(str, array.shape))})"
        else:
            line += f"{node.op}({', '.join(map(_ref, g.inputs(node)))})"
            line += f" -> {node.n_out}" if node.n_out != 1 else ""
        attrs = {**node.attrs, **attributes.written(node)}
        if node.quant is not None:
            line += f" {{{format_quant(node.quant)}}}"
        elif attrs:
            line += " {" + " ".join(f"{k}={_value(attrs[k])}" for k in sorted(attrs)) + "}"
        lines.append(line)
    lines.append("return " + ", ".join(map(_ref, g.heads)))
    return "\n".join(lines) + "\n"


def _parse_quant(text: str) -> QSpec:
    words, values = [], {}
    for match in _ATTR.finditer(text):
        if match.group(3):
            words.append(match.group(3))
        else:
            values[match.group(1)] = _unquote(match.group(2))
    signed = {"auto": None, "s": True, "u": False}[words[0].rstrip("0123456789")]
    found = QSpec(bits=int(re.sub(r"\D", "", words[0])), signed=signed, granularity=words[1],
                  narrow="narrow" in words, whole="whole" in words, online="online" in words, alone="alone" in words,
                  symmetric="asymmetric" not in words,
                  axis=int(values.get("axis", 0)), groups=int(values.get("groups", 1)),
                  source=tuple(values["source"].split("|")) if values.get("source") else (),
                  limit=int(values.get("limit", 0)))
    if "scale" not in values:
        return found
    if "#" in values["scale"]:
        raise FormatError(f"{values['scale']}: abbreviated scales cannot be read back")
    scale, zero = (np.array([float(v) for v in t.strip("[]").split(",")]).reshape(-1 if t.startswith("[") else ())
                   for t in (values["scale"], values.get("zp", "0")))
    return found.with_numbers(scale, zero.astype(np.int64))


def parse_graph(text: str) -> Graph:
    """Graph of a text as `format_graph` writes it. Blank lines and ``#`` comments are skipped.

    Raises FormatError with the line.
    """
    g = Graph()
    by_name: dict[str, Node] = {}

    def ports(args: str, where: str) -> list[Port]:
        _no_rest(_REF, args)
        found = []
        for match in _REF.finditer(args):
            name = _unquote(match.group(1))
            if name not in by_name:
                raise FormatError(f"{where}: %{name} is not defined above")
            found.append(Port(by_name[name], int(match.group(2) or 0)))
        return found

    def read(line: str, where: str) -> None:
        if line.startswith("return"):
            g.heads = ports(line[len("return"):], where)
            return
        match = _LINE.match(line)
        if not match:
            raise ValueError("no such line")
        name, op, attrs = _unquote(match["name"]), match["op"], match["attrs"] or ""
        _no_rest(_ATTR, attrs)
        quant = _parse_quant(attrs) if op == "fake_quantize" else None
        found = [] if quant is not None else list(_ATTR.finditer(attrs))
        if lone := [m.group(3) for m in found if m.group(3)]:
            raise ValueError(f"no value of {lone[0]}")
        pairs = {m.group(1): _unquote(m.group(2)) for m in found}
        n_out = int(match["n_out"] or 1)
        if not 1 <= n_out <= _MOST_OUTPUTS:
            raise ValueError(f"{n_out} outputs")
        node = g.add("null" if op in ("input", "param") else op, ports(match["args"] or "", where), name, n_out=n_out,
                     quant=quant, attrs=pairs)
        if node.name != name:
            raise FormatError(f"{where}: %{name} is defined twice")
        if op == "param":
            dtype, shape = (match["param"] or "float32 ()").split(" ", 1)
            size = tuple(int(d) for d in re.findall(r"\d+", shape))
            if math.prod(size) > _MOST_VALUES:
                raise ValueError(f"more than {_MOST_VALUES} values")
            noise = np.random.default_rng(zlib.crc32(name.encode())).uniform(0.5, 1.5, size)
            g.params[name] = noise.astype(dtype)
        attributes.take(node)
        by_name[name] = node

    for number, line in enumerate(text.splitlines(), 1):
        line, where = line.strip(), f"line {number}"
        if not line or line.startswith("#"):
            continue
        try:
            read(line, where)
        except (IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise FormatError(f"{where}: found {line[:80]!r}, want %name = op(%input, ...) {{key=value ...}} "
                              f"({type(error).__name__}: {error})") from None
    g.verify()
    return g


def _no_rest(pattern: re.Pattern[str], text: str) -> None:
    """ValueError for what lies between the matches."""
    if rest := pattern.sub("", text).replace(",", "").strip():
        raise ValueError(f"cannot read {rest[:40]!r}")
