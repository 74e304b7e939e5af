"""Strategies of quantization and the table of what they cost: as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import qgraph
from qgraph.errors import FormatError, OptionError
from qgraph.options import ONLINE, FreezeOptions

FORMAT = "qgraph-simulation"
HEAD = ("IN dtype", "IN offline", "WT dtype", "WT qtype", "Merge BN", "w/o 1st conv")
_DTYPE = {"auto": "(u)int{}", "signed": "int{}", "unsigned": "uint{}"}
_METHOD = {ONLINE: "-", "naive": "naive", "ema": "naive (EMA)", "kl": "KL"}


@dataclass(frozen=True)
class Strategy:
    """How a network is quantized: the fields of `FreezeOptions`, and whether the first convolution stays in float."""

    granularity: str = "channel"
    act_signed: str = "auto"
    calib: str = "auto"
    weight_bits: int = 8
    act_bits: int = 8
    merge_bn: bool = True
    exclude_first: bool = False
    winograd: str = "none"

    def apply(self, options: FreezeOptions) -> FreezeOptions:
        """`options` with this strategy. Raises OptionError for a value that the field does not take."""
        values = dataclasses.asdict(self)
        first = ("first",) if values.pop("exclude_first") else ()
        return dataclasses.replace(options, exclude=(*first, *options.exclude), **values)

    def cells(self) -> tuple[str, ...]:
        """As in the columns of `HEAD`."""
        weights = f"int{self.weight_bits}" + (f" {self.winograd}" if self.winograd != "none" else "")
        return (_DTYPE[self.act_signed].format(self.act_bits), _METHOD.get(self.calib, self.calib), weights,
                self.granularity, "yes" if self.merge_bn else "-", "yes" if self.exclude_first else "-")


@dataclass
class Simulation:
    """The finished rows. about: what they depend on."""

    about: dict[str, Any]
    strategies: Sequence[Strategy]
    float_row: dict[str, Any] | None = None
    _rows: dict[Strategy, dict[str, Any]] = field(default_factory=dict, repr=False)

    def row(self, strategy: Strategy) -> dict[str, Any] | None:
        """Of a finished strategy: {"images", "top1", "top5", "scores": of all metrics, "agreement": in percent or None,
        "worst": an output, "sqnr_db": its}.
        """
        return self._rows.get(strategy)

    def set_float(self, row: dict[str, Any]) -> None:
        """A row without agreement: {"images", "top1", "top5", "scores"}."""
        self.float_row = row

    def add(self, strategy: Strategy, row: dict[str, Any]) -> None:
        self._rows[strategy] = row

    def take(self, kept: Simulation) -> None:
        """The rows of an earlier run. Raises OptionError if they are of another model or other images."""
        before = {"recipe": None, **kept.about}
        for key, value in self.about.items():
            if key in before and before[key] != value:
                raise OptionError(f"the finished rows are of another run ({key}: {before[key]}, now {value}); "
                                  "choose another --output, or drop them with --restart")
        self.float_row, self._rows = kept.float_row, dict(kept._rows)

    def only_float(self) -> Simulation:
        """The row of the float model alone, for a run of the same strategies with other ranges."""
        about = {key: value for key, value in self.about.items() if not key.startswith("calibration")}
        return Simulation(about, (), self.float_row)

    # ---- what people read -------------------------------------------------------------------------------------------

    def line(self, strategy: Strategy) -> str:
        cells = self._cells(strategy)
        return " | ".join(cell for cell in cells if cell)

    def _cells(self, strategy: Strategy | None) -> tuple[str, ...]:
        row = self.float_row if strategy is None else self._rows[strategy]
        assert row is not None
        what = ("float32", "", "float32", "", "", "") if strategy is None else strategy.cells()
        numbers = row["scores"].get(self.score), row.get(self._alike)
        return (*what, *("" if number is None else f"{number:.2f}" for number in numbers))

    @property
    def score(self) -> str:
        """The metric of the table and the plot: the first of the float model's scores."""
        return next(iter(self.float_row["scores"]), "top1") if self.float_row is not None else "top1"

    @property
    def _alike(self) -> str:
        return "agreement" if all(row["agreement"] is not None for row in self._rows.values()) else "sqnr_db"

    @property
    def head(self) -> tuple[str, ...]:
        """The titles of the columns."""
        score = {"top1": "Top-1"}.get(self.score, self.score)
        return (*HEAD, score, {"agreement": "Agreement"}.get(self._alike, "SQNR dB"))

    def table(self) -> list[tuple[str, ...]]:
        """The finished rows in the order of the strategies, the float model's first, as in `head`."""
        rows: list[Strategy | None] = [None] if self.float_row is not None else []
        rows += [s for s in self.strategies if s in self._rows]
        return [self._cells(row) for row in rows]

    def to_markdown(self) -> str:
        rows = [self.head, *self.table()]
        widths = [max(map(len, column)) for column in zip(*rows)]
        numbers = [column >= len(HEAD) for column in range(len(widths))]
        lines = [[cell.rjust(width) if number else cell.ljust(width)
                  for cell, width, number in zip(row, widths, numbers)] for row in rows]
        lines.insert(1, ["-" * (width - 1) + (":" if number else "-") for width, number in zip(widths, numbers)])
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def to_csv(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerows([self.head, *self.table()])
        return out.getvalue()

    # ---- what resuming reads ----------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        ordered = [*(s for s in self.strategies if s in self._rows),
                   *(s for s in self._rows if s not in self.strategies)]
        return {"format": FORMAT, "qgraph": qgraph.__version__, "about": self.about,
                "float": self.float_row,
                "rows": [{**dataclasses.asdict(s), **self._rows[s]} for s in ordered]}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "simulation") -> Simulation:
        """Raises FormatError for what `to_json` did not write."""
        try:
            body = json.loads(text)
            if not isinstance(body, dict) or body.get("format") != FORMAT:
                raise ValueError(f'want a JSON object with "format": "{FORMAT}"')
            found = cls(dict(body["about"]), [])
            if body["float"] is not None:
                found.set_float(_result(dict(body["float"]), compared=False))
            for row in body["rows"]:
                found.add(_strategy(row), _result(row, compared=True))
        except (KeyError, TypeError, ValueError, RecursionError, OverflowError, OptionError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            raise FormatError(f"{where}: not the finished rows of a simulation: {what}") from None
        found.strategies = list(found._rows)
        return found


def _result(row: Mapping[str, Any], compared: bool) -> dict[str, Any]:
    """The numbers of a row. One that was written before there were scores has those of classes, and no worst output."""
    found: dict[str, Any] = {key: _number(row[key], key) for key in ("images", "top1", "top5")}
    classes = {key: row[key] for key in ("top1", "top5") if row[key] is not None}
    scores = {str(name): _number(value, name) for name, value in dict(row.get("scores", classes)).items()}
    found["scores"] = scores
    if compared:
        found.update(agreement=_number(row["agreement"], "agreement"), worst=str(row.get("worst", "")),
                     sqnr_db=_number(row.get("sqnr_db"), "sqnr_db"))
    return found


def _strategy(row: Mapping[str, Any]) -> Strategy:
    """Read a row. Raises KeyError, ValueError, OptionError for a malformed one."""
    values = {f.name: row[f.name] for f in dataclasses.fields(Strategy)}
    for name, value in values.items():
        if type(value) is not type(getattr(Strategy, name)):
            raise ValueError(f"{name} is {value!r:.40}")
    found = Strategy(**values)
    found.apply(FreezeOptions())
    if found.act_signed not in _DTYPE:
        raise ValueError(f"act_signed is {found.act_signed!r:.40}, want {', '.join(_DTYPE)}")
    return found


def _number(value: Any, name: str) -> float | None:
    if value is not None and type(value) not in (int, float):
        raise ValueError(f"{name} is {value!r:.40}")
    number: float | None = value
    return number
