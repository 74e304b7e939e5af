"""The candidates that `qgraph tune` has measured, and their file, from which a later run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import qgraph
from qgraph.commands.goal import Standing
from qgraph.errors import FormatError, OptionError
from qgraph.files import read_at_most, write_files
from qgraph.quant.recipe import Recipe

FORMAT = "qgraph-tune"
MAX_BYTES = 64 << 20
HOLDS, FAILS, HOPELESS = "holds", "fails", "hopeless"
STATES = (HOLDS, FAILS, HOPELESS)


@dataclass(frozen=True)
class Row:
    """A candidate. what: in words.  state: one of `STATES`; a hopeless one was not measured on all images.

    images: so many were judged.  standings: by bound.  size: bytes.  ms: of an image, as predicted.
    quantized: layers.
    """

    recipe: Recipe
    what: str
    state: str
    images: int
    standings: Mapping[str, Standing]
    size: int
    ms: float
    quantized: int

    @property
    def holds(self) -> bool:
        return self.state == HOLDS

    @property
    def beyond(self) -> float:
        """How far it is beyond the bound that it misses most, in the unit of that; below 0 where it keeps all."""
        return max(found.beyond for found in self.standings.values())

    @property
    def surely_holds(self) -> bool:
        """Whether it keeps all bounds by an error bar or more."""
        return self.keeps and all(found.error < float("inf") for found in self.standings.values())

    @property
    def keeps(self) -> bool:
        """The same, as far as error bars are known."""
        return self.holds and all(found.beyond <= (0 if found.error == float("inf") else -found.error)
                                  for found in self.standings.values())

    def cost(self, minimize: str) -> float:
        return float(self.size) if minimize == "size" else self.ms

    def to_dict(self) -> dict[str, Any]:
        standings = {name: {key: _plain(value) for key, value in asdict(found).items()}
                     for name, found in self.standings.items()}
        return {"what": self.what, "state": self.state, "images": self.images, "standings": standings,
                "size": self.size, "ms": self.ms, "quantized": self.quantized, "recipe": self.recipe.to_dict()}


def _plain(value: float) -> float | None:
    """Infinity is no JSON."""
    return None if value == float("inf") else value


@dataclass
class Rows:
    """Measured candidates by recipe, in their order. about: what they depend on besides.  path: of their file.

    costs: of layers, as they were measured.  result: of a search that has ended.
    """

    path: str
    about: dict[str, Any]
    found: dict[Recipe, Row] = field(default_factory=dict)
    result: dict[str, Any] | None = None
    costs: dict[str, Any] | None = None

    def add(self, row: Row) -> None:
        """Keep a row, in the file too: at any moment that holds all finished ones."""
        self.found[row.recipe] = row
        self.write()

    def write(self) -> None:
        write_files({self.path: self.to_json()})

    def to_json(self) -> str:
        body = {"format": FORMAT, "qgraph": qgraph.__version__, "about": self.about, "costs": self.costs,
                "rows": [row.to_dict() for row in self.found.values()], "result": self.result}
        return json.dumps(body, indent=1) + "\n"

    def take(self) -> int:
        """Read the rows of an earlier run, if there are some: how many.

        Raises OptionError where they are of another run, FormatError for a damaged file.
        """
        if not os.path.isfile(self.path):
            return 0
        where = f"{self.path}: not the finished rows of qgraph tune"
        try:
            body = json.loads(read_at_most(self.path, MAX_BYTES).decode("utf-8"))
            if not isinstance(body, dict) or body.get("format") != FORMAT:
                raise ValueError(f'want a JSON object with "format": "{FORMAT}"')
            about, rows, costs = dict(body["about"]), [_row(row) for row in body["rows"]], _costs(body["costs"])
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError, FormatError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            raise FormatError(f"{where}: {what}") from None
        for key, value in self.about.items():
            if about.get(key) != value:
                raise OptionError(f"{self.path}: its rows are of another run ({key}: {about.get(key)!s:.80}, now "
                                  f"{value!s:.80}); choose another --output, or drop them with --restart")
        self.found, self.costs = {row.recipe: row for row in rows}, costs
        return len(rows)

    def front(self, minimize: str) -> list[Row]:
        """The rows, measured on all images, that no other one beats both in cost and in accuracy; cheapest first."""
        whole = sorted((row for row in self.found.values() if row.state != HOPELESS),
                       key=lambda row: (row.cost(minimize), row.beyond))
        front: list[Row] = []
        for row in whole:
            if not front or row.beyond < front[-1].beyond:
                front.append(row)
        return front


def _costs(body: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if body is None:
        return None
    return {"rest": int(body["rest"]), "other": float(body["other"]),
            "seconds": {str(layer): [float(low), float(high)] for layer, (low, high) in body["seconds"].items()}}


def _row(body: Mapping[str, Any]) -> Row:
    """Raises KeyError, TypeError, ValueError, FormatError for what `Row.to_dict` has not written."""
    if body["state"] not in STATES:
        raise ValueError(f"state is {body['state']!r:.40}")
    standings = {str(name): Standing(float(said["value"]), float(said["beyond"]),
                                     float("inf") if said["error"] is None else float(said["error"]))
                 for name, said in dict(body["standings"]).items()}
    return Row(Recipe.from_dict(body["recipe"]), str(body["what"]), str(body["state"]), int(body["images"]), standings,
               int(body["size"]), float(body["ms"]), int(body["quantized"]))


def markdown(rows: Sequence[Row], chosen: Row | None) -> str:
    """A table for people; the chosen row is marked."""
    names = list(dict.fromkeys(name for row in rows for name in row.standings))
    head = ["", "what", "images", *names, "size KB", "ms predicted", "state"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [_cell(row.standings.get(name)) for name in names]
        lines.append(["**>**" if row is chosen else "", row.what, str(row.images), *cells, f"{row.size / 1000:.1f}",
                      f"{row.ms:.3f}" if row.ms else "", row.state])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(found: Standing | None) -> str:
    if found is None:
        return ""
    return f"{found.value:.2f}" + (f" +- {found.error:.2f}" if found.error != float("inf") else "")
