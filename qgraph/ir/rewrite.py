"""Passes and what runs them.

Guide to writing a pass
-----------------------
Subclass `RewritePass` when one local pattern tells the whole story, `Pass` otherwise::

    @register
    class Relu6ToRelu(RewritePass):
        \"\"\"clip(x, 0, 6) -> relu(x): an unsigned int8 activation already clips at its own qmax.\"\"\"
        name = "relu6-to-relu"
        preserves_float = False
        pattern = P("clip", "x", name="clip", a_min="0", a_max="6")

        def rewrite(self, g, x, clip):
            g.replace(clip, g.add("Activation", [x], act_type="relu"))

The graph is valid before and after; nothing is promised in between.  A pass works in place and returns how many things
it changed, 0 meaning untouched: `PassManager` verifies the graph and checks that the count is honest.  Fields of the
class are its options (a frozen dataclass), in Python ``InsertFakeQuantize(weight_bits=4)`` and on the command line
``insert-fake-quantize{weight_bits=4}``.  Never scan the whole graph per node.
"""

from __future__ import annotations

import logging
import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Callable, ClassVar, TypeVar, get_type_hints

from qgraph.errors import OptionError, PassError, QGraphError, suggest
from qgraph.ir.graph import Graph, Node
from qgraph.ir.pattern import MatchFail, P
from qgraph.registry import described, entry_points_of, user_attribute

log = logging.getLogger("qgraph.passes")


_AnyPass = TypeVar("_AnyPass", bound="Pass")


class Pass(ABC):
    """Valid graph in, valid graph out. Works in place.

    name: the word on the command line, the dump file, the log line.
    requires: names of passes that must have run before, checked by the PassManager.
    preserves_float: the outputs in float stay the same up to rounding; `freeze` checks it.
    findings: what it measured, for the report.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()
    preserves_float: ClassVar[bool] = False
    findings: Sequence[Any] = ()

    @abstractmethod
    def run(self, g: Graph) -> int:
        """Rewrite `g`; the number of things changed."""

    def fields(self) -> set[str]:
        """Names of its options, and of what only a run can know (such as ``table``)."""
        return {f.name for f in fields(self)} if is_dataclass(self) else set()

    def with_fields(self: _AnyPass, **values: Any) -> _AnyPass:
        """A copy with these values."""
        return replace(self, **values) if values else self  # type: ignore[type-var]


class RewritePass(Pass):
    """A pass that is one pattern and one local rewrite, tried once on every node from the inputs to the heads."""

    pattern: ClassVar[P]
    preserves_float: ClassVar[bool] = True

    def run(self, g: Graph) -> int:
        count = 0
        for node in g.toposort():
            if node not in g:
                continue
            try:
                bound = self.pattern.match(g, node)
                self.rewrite(g, **bound)
            except MatchFail as miss:
                if node.op in self.pattern.ops:
                    log.debug("%s: %s", self.name, miss)
                continue
            count += 1
        if count:
            g.prune()
        return count

    @abstractmethod
    def rewrite(self, g: Graph, *_: Any, **bound: Any) -> None:
        """Change the graph. Raise MatchFail, before changing anything, to refuse with a reason."""


GROUP = "qgraph.passes"
REGISTRY: dict[str, type[Pass]] = {}
_PassClass = TypeVar("_PassClass", bound=type[Pass])


def register(cls: _PassClass) -> _PassClass:
    """Class decorator: make the pass a frozen dataclass and known by its name. Raises PassError for a class without."""
    if not isinstance(getattr(cls, "name", None), str):
        raise PassError(f'{cls.__module__}.{cls.__name__}: a pass needs a name, such as name = "fold-bn"')
    if not issubclass(cls, Pass):
        raise PassError(f"{cls.__module__}.{cls.__name__}: want a class that is derived from qgraph.Pass")
    known = REGISTRY.get(cls.name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise PassError(f"{cls.__module__}.{cls.__name__}: the name {cls.name!r} is that of {known.__module__}."
                        f"{known.__name__}; choose another one")
    cls = dataclass(frozen=True)(cls)  # type: ignore[assignment]
    REGISTRY[cls.name] = cls
    return cls


@dataclass(frozen=True)
class PassRecord:
    """What one pass did, for the log and the report. ops: by how many nodes of each op the graph has grown."""

    name: str
    changed: int
    nodes: int
    seconds: float
    ops: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name:<22} {self.changed:>5} changed, {self.nodes} nodes, {self.seconds:.2f} s"


@dataclass(frozen=True)
class PassManager(Pass):
    """Runs passes once each, in the written order: verify, run, verify, honesty check, one log line, a dump on request.

    dump_dir: where ``NN-name.txt`` is written after every pass.
    records: what was done; given to a second manager it continues the first one's line.
    `run` raises PassError for a pass that breaks the graph, misreports its changes, or lacks one that it requires.
    """

    name: ClassVar[str] = "pipeline"
    passes: tuple[Pass, ...]
    dump_dir: str = ""
    records: list[PassRecord] = field(default_factory=list, compare=False)

    def run(self, g: Graph) -> int:
        g.verify()
        if not self.records:
            self._dump(g, 0, "input")
        known, done = g.fingerprint(), set(r.name for r in self.records)
        for number, step in enumerate(self.passes, len(self.records) + 1):
            missing = [name for name in step.requires if name not in done]
            if missing:
                raise PassError(f"{step.name}: needs {', '.join(missing)} before it in the pipeline")
            before = _op_counts(g)
            started = time.perf_counter()
            changed = run_pass(step, g)
            seconds = time.perf_counter() - started
            try:
                g.verify()
            except QGraphError as error:
                raise PassError(f"pass {step.name} left an invalid graph: {error}") from error
            after = g.fingerprint()
            if isinstance(changed, bool) or not isinstance(changed, int):
                raise PassError(f"pass {step.name} returned {changed!r}, want the number of changes it made")
            if (changed == 0) != (after == known):
                raise PassError(f"pass {step.name} reported {changed} changes, but the graph "
                                f"{'changed' if after != known else 'did not change'}")
            known = after
            done.add(step.name)
            counts = _op_counts(g)
            grown = {op: counts[op] - before[op] for op in sorted({*before, *counts}) if counts[op] != before[op]}
            record = PassRecord(step.name, changed, len(g), seconds, grown)
            self.records.append(record)
            log.info("%02d %s", number, record)
            self._dump(g, number, step.name)
        return sum(r.changed for r in self.records)

    def _dump(self, g: Graph, number: int, name: str) -> None:
        if not self.dump_dir:
            return
        folder = Path(self.dump_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:02d}-{name}.txt").write_text(g.text(), encoding="utf-8")
        except OSError as error:
            raise OptionError(f"--dump-passes {folder}: {error.strerror}, want a folder to write in, which is made if "
                              "it is not there; give another one") from error


def _op_counts(g: Graph) -> Counter[str]:
    """How many nodes of each op there are, parameters left out."""
    return Counter(node.op for node in g.dag if node.op != "null")


def run_pass(step: Pass, g: Graph) -> int:
    """Run one pass: PassError for what one of the user's own raises; ours show where they broke."""
    if type(step).__module__.startswith("qgraph."):
        return step.run(g)
    try:
        return step.run(g)
    except QGraphError:
        raise
    except Exception as error:
        raise PassError(f"pass {step.name} broke: {described(error)}") from error


# ---- passes from the command line -----------------------------------------------------------------------------------

_SPEC = re.compile(r"\s*([\w\-]+)\s*(?:\{([^}]*)\})?\s*(?:,|\Z)")


def parse_pipeline(text: str, make: Callable[..., Pass] | None = None) -> tuple[Pass, ...]:
    """``fold-bn,insert-fake-quantize{weight_bits=4 act_bits=6}`` -> passes. Raises OptionError with close names.

    make: called with (class, options) to build each pass, for callers that add options of their own.
    """
    found, position = [], 0
    while position < len(text):
        match = _SPEC.match(text, position)
        if not match:
            raise OptionError(f"--passes: cannot read {text[position:]!r}, want name{{option=value ...}},name,...")
        cls = pass_class(match.group(1))
        options = read_options(cls, match.group(2) or "")
        found.append(make(cls, options) if make else cls(**options))
        position = match.end()
    return tuple(found)


def registered() -> dict[str, type[Pass]]:
    """Name -> pass, those of other packages too: the entry points of the group ``qgraph.passes``."""
    for entry in entry_points_of(GROUP):
        if entry.name in REGISTRY:
            continue
        try:
            found = entry.load()
        except Exception as error:  # whatever the package raises
            log.warning("warning: pass %s: %s cannot be loaded: %s", entry.name, entry.value, described(error))
            continue
        if getattr(found, "name", None) != entry.name or entry.name not in REGISTRY:
            log.warning("warning: pass %s: %s is no pass of this name, want a class with @qgraph.register and "
                        "name = %r", entry.name, entry.value, entry.name)
    return REGISTRY


def pass_class(name: str) -> type[Pass]:
    """The registered pass of that name; OptionError names the close ones."""
    if name not in REGISTRY and name not in registered():
        guess = suggest(name, REGISTRY, "; did you mean {}?", count=3, between=", ")
        raise OptionError(f"no pass is called {name!r}{guess} (`qgraph passes` lists all)")
    return REGISTRY[name]


def option_types(cls: type[Any]) -> dict[str, type]:
    """Option name -> type, for the options of a pass (or a target) that can be written as text."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)
            if f.init and hints[f.name] in (int, float, bool, str)}


def read_options(cls: type[Any], text: str) -> dict[str, Any]:
    """``weight_bits=4 act_bits=6`` -> keyword arguments of the right types."""
    types, options = option_types(cls), {}
    for word in text.replace(",", " ").split():
        key, sep, value = word.partition("=")
        key = key.replace("-", "_")
        if key not in types or not sep:
            raise OptionError(f"{cls.name}: found {word!r}, want OPTION=VALUE with one of {', '.join(types) or 'none'}")
        try:
            options[key] = {"true": True, "false": False}[value.lower()] if types[key] is bool else types[key](value)
        except (KeyError, ValueError):
            raise OptionError(f"{cls.name}: {key}: found {value!r}, want {types[key].__name__}") from None
    return options


def load_user_pass(spec: str) -> tuple[Pass, str]:
    """``module:Class@after``, or ``name@after`` of a registered pass -> (pass, name of the pass it runs behind).

    The current folder is searched too.
    """
    match = re.fullmatch(r"([\w.\-]+)(?::(\w+))?@([\w\-]+)", spec)
    if not match:
        raise OptionError(f"--pass: found {spec!r}, want MODULE:CLASS@AFTER, such as my_passes:Relu6ToRelu@fold-bn")
    module_name, class_name, after = match.groups()
    if class_name is None:
        return _made(pass_class(module_name), module_name), after
    cls = user_attribute("--pass", module_name, class_name)
    if not (isinstance(cls, type) and issubclass(cls, Pass)):
        raise OptionError(f"--pass: {module_name}.{class_name} is not a subclass of qgraph.Pass")
    return _made(cls, class_name), after


def _made(cls: type[Pass], name: str) -> Pass:
    try:
        return cls()
    except TypeError as error:
        raise OptionError(f"--pass: {name} needs arguments that --pass cannot give: {error}") from None


def insert_after(passes: Sequence[Pass], new: Pass, after: str) -> tuple[Pass, ...]:
    """`passes` with `new` behind the pass called `after`."""
    names = [p.name for p in passes]
    if after not in names:
        raise OptionError(f"--pass: no pass {after!r} in this pipeline, which is {', '.join(names)}")
    position = names.index(after) + 1
    return (*passes[:position], new, *passes[position:])


__all__ = ["MatchFail", "Node", "P", "Pass", "PassManager", "PassRecord", "REGISTRY", "RewritePass", "insert_after",
           "load_user_pass", "option_types", "parse_pipeline", "pass_class", "read_options", "register"]
