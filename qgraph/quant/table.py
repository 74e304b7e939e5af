"""The calibration table, `<prefix>.calib.json`: the observed and the chosen range of each tensor, and their origin.

Written with sorted keys and with floats by `repr`, so equal tables are equal bytes and every number reads back exactly.
Read as untrusted data: bounded size, every type and number checked, nothing unknown accepted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, SupportsFloat, cast

from qgraph.errors import CalibrationError, FormatError
from qgraph.files import read_at_most
from qgraph.quant.ranges import ALIASES, METHODS

FORMAT = "qgraph-calibration"
VERSION = 1
MAX_BYTES = 64 << 20
LARGEST = 1e37  # of a range: with more, steps and codes leave float32
LARGEST_FACTOR = 1e6
_AGAIN = "calibrate again (without --calib-table)"


@dataclass(frozen=True)
class Entry:
    """One tensor. min, max: observed; low, high: chosen, by `method`. sample: the one with the largest magnitude.

    bits: for which the range was chosen, None as the table says.
    """

    min: float
    max: float
    low: float
    high: float
    method: str
    sample: str = ""
    bits: int | None = None

    def __post_init__(self) -> None:
        if self.bits is not None:
            _whole(self.bits, "bits", 2, 32)
        for name in ("min", "max", "low", "high"):
            object.__setattr__(self, name, _number(getattr(self, name), name))
        if self.min > self.max or self.low > self.high:
            raise FormatError(f"observed {self.min}..{self.max}, chosen {self.low}..{self.high}, want low <= high")
        object.__setattr__(self, "method", _method(self.method))
        _text(self.sample, "sample")


@dataclass
class CalibrationTable:
    """method, bits, signed: what was asked for (signed None is "auto"); an entry may have its own method.

    graph_hash: of the float graph that was run. images: how many were. preprocess: flat dict of plain values.
    data: description of the source of the images. entries: by tensor name. factors: by node name, of its output
    channels in the graph that was run; see `qgraph.passes.equalize`.
    histograms: by tensor name, of `qgraph.quant.shown`; a table that was read from a file has none.
    """

    method: str
    bits: int
    signed: bool | None
    graph_hash: str
    images: int
    preprocess: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    entries: dict[str, Entry] = field(default_factory=dict)
    factors: dict[str, list[float]] = field(default_factory=dict)
    histograms: dict[str, dict[str, Any]] = field(default_factory=dict, compare=False, repr=False)

    def to_json(self) -> bytes:
        """The file's bytes; raises `FormatError` if a field is not plain data."""
        body = {**asdict(replace(self, histograms={})), "format": FORMAT, "version": VERSION}
        del body["histograms"]
        if not self.factors:
            del body["factors"]
        for entry in body["entries"].values():
            if entry["bits"] is None:
                del entry["bits"]
        data = (json.dumps(body, indent=1, sort_keys=True, default=_refuse) + "\n").encode("ascii")
        self.from_json(data)  # what cannot be read back is not written
        return data

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the bytes of `to_json` to a file."""
        Path(path).write_bytes(self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CalibrationTable:
        """Read a file of at most 64 MB. Raises FormatError for a file that is no such table."""
        try:
            data = read_at_most(path, MAX_BYTES)
        except OSError as error:
            raise FormatError(f"calibration table {os.fspath(path)}: cannot be read: {error.strerror}") from None
        return cls.from_json(data, f"calibration table {os.fspath(path)}")

    @classmethod
    def from_json(cls, data: bytes, where: str = "calibration table") -> CalibrationTable:
        """Parse and check; every defect is a `FormatError` that begins with `where`."""
        if len(data) > MAX_BYTES:
            raise FormatError(f"{where}: more than {MAX_BYTES} bytes, this is not a calibration table")
        try:
            return cls._parse(json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_int=_int))
        except FormatError as error:
            raise FormatError(f"{where}: {error}") from None
        except RecursionError:
            raise FormatError(f"{where}: nested too deeply") from None
        except ValueError as error:  # JSON and UTF-8 errors are ValueErrors
            raise FormatError(f"{where}: not JSON: {error}") from None

    @classmethod
    def _parse(cls, body: object) -> CalibrationTable:
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise FormatError(f'want a JSON object with "format": "{FORMAT}"')
        if type(body.get("version")) is not int or body["version"] != VERSION:
            raise FormatError(f"version: found {body.get('version')!r:.40}, this qgraph reads {VERSION}; {_AGAIN}")
        body = {"factors": {}, **body}
        names = {f.name for f in fields(cls)} - {"histograms"}
        _keys(body, names | {"format", "version"}, "header")
        signed, entries = body["signed"], body["entries"]
        if not (signed is None or isinstance(signed, bool)):
            raise FormatError(f"signed: found {signed!r:.40}, want true, false or null")
        return cls(
            method=_method(body["method"]), bits=_whole(body["bits"], "bits", 2, 32), signed=signed,
            graph_hash=_text(body["graph_hash"], "graph_hash"), images=_whole(body["images"], "images", 0, 1 << 53),
            preprocess=_flat(body["preprocess"]), data=_text(body["data"], "data"),
            entries={_text(k, "tensor name"): _entry(k, v) for k, v in _object(entries, "entries").items()},
            factors={_text(k, "node name"): _numbers(k, v) for k, v in _object(body["factors"], "factors").items()},
        )

    def check(self, graph_hash: str) -> None:
        """Raise CalibrationError for the table of another model."""
        if self.graph_hash != graph_hash:
            raise CalibrationError(f"table belongs to another model: its graph is {self.graph_hash}, "
                                   f"this one is {graph_hash}; {_AGAIN}")

    def check_bits(self, bits: int, of: Mapping[str, int] | None = None) -> None:
        """Raise CalibrationError if ranges were chosen for another number of bits; naive, ema, percentile fit any.

        of: tensor -> the bits that it has instead.
        """
        wrong: dict[tuple[int, int], list[str]] = {}
        for name, entry in sorted(self.entries.items()):
            had, want = entry.bits or self.bits, (of or {}).get(name, bits)
            if had != want and METHODS[entry.method].per_bits:
                wrong.setdefault((had, want), []).append(name)
        for (had, want), names in wrong.items():
            raise CalibrationError(f"table: {len(names)} ranges (first {names[0]}, by {self.entries[names[0]].method}) "
                                   f"were chosen for {had} bits, want {want}; {_AGAIN}")

    def check_methods(self, wanted: Mapping[str, str]) -> None:
        """Raise CalibrationError if a range was chosen by another method than wanted. wanted: tensor -> method."""
        for name, how in wanted.items():
            if name in self.entries and self.entries[name].method != how:
                raise CalibrationError(f"table: the range of {name} was chosen by {self.entries[name].method}, and the "
                                       f"recipe says {how}; {_AGAIN}")

    def require(self, names: Iterable[str]) -> None:
        """Raise CalibrationError unless every one of `names` has an entry."""
        missing = [n for n in names if n not in self.entries]
        if missing:
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            raise CalibrationError(f"table: no range for {', '.join(missing[:8])}{more}; {_AGAIN}")


def factors_beside(prefix: str) -> dict[str, list[float]]:
    """The factors in the table beside a frozen model; none without a table."""
    path = f"{prefix}.calib.json"
    return CalibrationTable.load(path).factors if os.path.isfile(path) else {}


# ---- checks: value -> the same value, or FormatError ----------------------------------------------------------------

def _refuse(value: object) -> object:
    raise FormatError(f"calibration table: found a {type(value).__name__}, want plain data")


def _int(digits: str) -> int:
    if len(digits) > 64:  # int() takes quadratic time
        raise FormatError(f"found a whole number of {len(digits)} digits")
    return int(digits)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise FormatError("a key appears twice in one object")
    return result


def _object(value: object, name: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise FormatError(f"{name}: found {value!r:.40}, want an object")
    return value


def _keys(value: Mapping[str, object], wanted: set[str], name: str) -> None:
    odd = sorted(wanted ^ value.keys())
    if odd:
        raise FormatError(f"{name}: {', '.join(f'{k!r:.40}' for k in odd[:5])} missing or unknown")


def _number(value: object, name: str) -> float:
    if isinstance(value, (bool, str)):
        raise FormatError(f"{name}: found {value!r:.40}, want a number")
    try:
        number = float(cast(SupportsFloat, value))
    except (TypeError, ValueError, OverflowError):
        raise FormatError(f"{name}: found a {type(value).__name__}, want a finite number") from None
    if not abs(number) <= LARGEST:
        raise FormatError(f"{name}: found {number}, want a finite number, up to {LARGEST:g}")
    return number


def _numbers(name: str, value: object) -> list[float]:
    """Factors of channels."""
    if not isinstance(value, list) or not value:
        raise FormatError(f"factors of {name:.80}: found {value!r:.40}, want numbers")
    found = [_number(one, f"factors of {name:.80}") for one in value]
    if not 1 / LARGEST_FACTOR <= min(found) <= max(found) <= LARGEST_FACTOR:
        raise FormatError(f"factors of {name:.80}: found {min(found):g} to {max(found):g}, want "
                          f"{1 / LARGEST_FACTOR:g} to {LARGEST_FACTOR:g}")
    return found


def _whole(value: object, name: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise FormatError(f"{name}: found {value!r:.40}, want a whole number from {low} to {high}")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise FormatError(f"{name}: found {value!r:.40}, want a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate cannot be printed
        raise FormatError(f"{name}: found {value[:40]!r}, want valid Unicode") from None
    return value


def _method(value: object) -> str:
    name = ALIASES.get(value, value) if isinstance(value, str) else None
    if name not in METHODS:
        raise FormatError(f"method: found {value!r:.40}, want one of {', '.join(METHODS)}")
    return name


def _flat(value: object) -> dict[str, object]:
    """A preprocessing dict: strings, numbers, booleans, null, and lists of those."""
    flat = _object(value, "preprocess")
    for key, item in flat.items():
        _text(key, "preprocess")
        for one in item if isinstance(item, list) else [item]:
            if isinstance(one, str):
                _text(one, f"preprocess {key}")
            elif not (one is None or isinstance(one, bool)):
                _number(one, f"preprocess {key}")
    return flat


def _entry(name: str, value: object) -> Entry:
    found: dict[str, Any] = {"bits": None, **_object(value, f"tensor {name:.80}")}
    _keys(found, {f.name for f in fields(Entry)}, f"tensor {name:.80}")
    try:
        return Entry(**found)
    except FormatError as error:
        raise FormatError(f"tensor {name:.80}: {error}") from None
