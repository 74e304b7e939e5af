"""The recipe, `<prefix>.recipe.yaml`: how a network is quantized, as a whole and layer by layer, for people to edit.

    format: qgraph-recipe
    version: 1
    graph: 5a0c...             # the model that it was made for; without this line it is for any
    effort: standard
    calib: naive
    granularity: channel
    bits: {weights: 8, activations: 8}
    exclude: [conv0]
    layers:                    # a pattern of `qgraph.ir.select`; of several that name a layer the last one decides
      '*dw*': {weights: 4, granularity: layer}
      conv3: {activations: 16, calib: kl}
      dense: {activations: float}
      last: {float: true}

Read as untrusted data: of bounded size, without anchors (which could grow without bounds) and without tags.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from qgraph.errors import CalibrationError, FormatError, OptionError, suggest
from qgraph.files import read_at_most
from qgraph.quant.ranges import method
from qgraph.quant.spec import as_granularity, shown_granularity

FORMAT, VERSION = "qgraph-recipe", 1
SUFFIX = ".recipe.yaml"
MAX_BYTES = 256 << 10
SCHEMA = "recipe.schema.json"
IN_FLOAT = 32
"""Bits of activations that are left in float, so that weights alone are quantized."""
_WORD = "float"  # how a file says it


@dataclass(frozen=True)
class LayerChoice:
    """What a recipe says of a layer; None leaves it as it is for the others.

    act_bits: of what the layer reads, or `IN_FLOAT`.  granularity: as in `QSpec`.  calib: how the range of what it
    reads is chosen.  in_float: the layer is not quantized.
    """

    weight_bits: int | None = None
    act_bits: int | None = None
    granularity: str | None = None
    calib: str | None = None
    in_float: bool | None = None

    def __or__(self, later: LayerChoice) -> LayerChoice:
        """This choice, but for what a later one says."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return LayerChoice(**{name: old if (new := getattr(later, name)) is None else new for name, old in own.items()})


Layers = tuple[tuple[str, LayerChoice], ...]  # pattern, what it says: the last one decides
_KEYS = {"weights": "weight_bits", "activations": "act_bits", "granularity": "granularity", "calib": "calib",
         "float": "in_float"}  # in a file -> in `LayerChoice`


@dataclass(frozen=True)
class Recipe:
    """What a file says. graph: digest of the model that it was made for, "" for any; None: it says nothing."""

    graph: str = ""
    effort: str | None = None
    calib: str | None = None
    granularity: str | None = None
    weight_bits: int | None = None
    act_bits: int | None = None
    exclude: tuple[str, ...] = ()
    layers: Layers = ()

    def to_dict(self) -> dict[str, Any]:
        """As in the file, without what is not said."""
        bits = _said({"weights": self.weight_bits, "activations": self.act_bits})
        return _said({"format": FORMAT, "version": VERSION, "graph": self.graph, "effort": self.effort,
                      "calib": self.calib, "granularity": _shown(self.granularity), "bits": bits,
                      "exclude": list(self.exclude),
                      "layers": {pattern: _written(choice) for pattern, choice in self.layers}})

    def to_yaml(self) -> str:
        """The text of its file."""
        import yaml

        return str(yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=120))

    def check(self, graph: str) -> None:
        """Raise CalibrationError for the recipe of another model. graph: the digest of this one."""
        if self.graph and self.graph != graph:
            raise CalibrationError(f"recipe belongs to another model: its graph is {self.graph}, this one is {graph}; "
                                   "take the line `graph` out of the recipe if it is meant for this one too")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a file. Raises FormatError for every defect."""
        where = f"recipe {os.fspath(path)}"
        try:
            data = read_at_most(path, MAX_BYTES)
        except OSError as error:
            raise FormatError(f"{where}: cannot be read: {error.strerror}") from None
        return cls.from_yaml(data, where)

    @classmethod
    def from_yaml(cls, data: bytes, where: str = "recipe") -> Recipe:
        """Parse and check; every defect is a `FormatError` that begins with `where`."""
        if len(data) > MAX_BYTES:
            raise FormatError(f"{where}: more than {MAX_BYTES} bytes, this is not a recipe")
        return cls.from_dict(_parsed(data, where), where)

    @classmethod
    def from_dict(cls, body: Any, where: str = "recipe") -> Recipe:
        """What `to_dict` gives, checked. Raises FormatError."""
        _check_schema(body, where)
        try:
            bits = body.get("bits", {})
            return cls(body.get("graph", ""), body.get("effort"), _method(body.get("calib")),
                       _granularity(body.get("granularity")), bits.get("weights"), bits.get("activations"),
                       tuple(body.get("exclude", ())),
                       tuple((pattern, _choice(said)) for pattern, said in body.get("layers", {}).items()))
        except OptionError as error:
            raise FormatError(f"{where}: {error}") from None


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, "", [], {})}


def _shown(granularity: str | None) -> str | None:
    return None if granularity is None else shown_granularity(granularity)


def _written(choice: LayerChoice) -> dict[str, Any]:
    found = _said({key: getattr(choice, name) for key, name in _KEYS.items()})
    if choice.act_bits == IN_FLOAT:
        found["activations"] = _WORD
    if choice.granularity is not None:
        found["granularity"] = shown_granularity(choice.granularity)
    return found


def _choice(said: Mapping[str, Any]) -> LayerChoice:
    values: dict[str, Any] = {name: said.get(key) for key, name in _KEYS.items()}
    values["act_bits"] = IN_FLOAT if values["act_bits"] == _WORD else values["act_bits"]
    return LayerChoice(**{**values, "calib": _method(said.get("calib")),
                          "granularity": _granularity(said.get("granularity"))})


def _method(name: str | None) -> str | None:
    return None if name is None else method(name).name


def _granularity(name: str | None) -> str | None:
    return None if name is None else as_granularity(name)


# ---- reading --------------------------------------------------------------------------------------------------------

def _parsed(data: bytes, where: str) -> dict[str, Any]:
    """The mapping that the YAML holds, of plain values."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
        """Refuses anchors, whose copies could grow without bounds, and keys that appear twice."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise FormatError("found an alias (*name), want every choice written out")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            found: dict[Hashable, Any] = super().construct_mapping(node, deep)
            if len(found) != len(node.value):
                raise FormatError(f"line {node.start_mark.line + 1}: a key appears twice in one mapping")
            return found

    try:
        body = yaml.load(data.decode("utf-8"), Loader)  # noqa: S506  (a SafeLoader)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from None
    except RecursionError:
        raise FormatError(f"{where}: nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:  # of scalars that claim a type: ValueError, TypeError
        raise FormatError(f"{where}: not YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(body, dict):
        raise FormatError(f"{where}: want a mapping with `format: {FORMAT}`")
    return body


@lru_cache(maxsize=1)
def _validator() -> Any:
    import jsonschema

    schema = json.loads(resources.files("qgraph.quant").joinpath(SCHEMA).read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)


def _check_schema(body: Mapping[str, Any], where: str) -> None:
    from jsonschema.exceptions import relevance

    try:
        errors = sorted(_validator().iter_errors(body), key=relevance)
    except (RecursionError, TypeError) as error:  # keys that are no texts
        raise FormatError(f"{where}: keys must be words: {error}") from None
    if errors:
        raise FormatError(f"{where}: {_told(errors[-1])}")


def _told(error: Any) -> str:
    """What the schema wanted, and where."""
    place = ".".join(map(str, error.absolute_path))
    at = f"{place}: " if place else ""
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        odd = next((key for key in error.instance if key not in known), "?")
        hint = suggest(str(odd), known, "; did you mean {}?")
        return f"{at}{odd!r:.60} is unknown here, want {_listed(known)}{hint}"
    if error.validator == "const":
        return f"{at}found {error.instance!r:.60}, want {error.validator_value}"
    if error.validator == "enum":
        return f"{at}found {error.instance!r:.60}, want one of {_listed(error.validator_value)}"
    if error.validator == "anyOf":
        return f"{at}found {error.instance!r:.60}, want 2 to 16 bits, or {_WORD}"
    return f"{at}{' '.join(str(error.message).split())[:200]}"


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)
