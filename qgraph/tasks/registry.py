"""Which tasks there are, and which of them a model's outputs are of. To add one, see `qgraph.tasks.base`.

Tasks of other packages come from the entry-point group ``qgraph.tasks``::

    [options.entry_points]
    qgraph.tasks =
        depth = my_package:Depth
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from qgraph.arrays import Array
from qgraph.errors import OptionError, suggest
from qgraph.ir.graph import Graph, Port
from qgraph.registry import Classes
from qgraph.tasks.base import Claim, Head, Task

GROUP = "qgraph.tasks"
TASKS = {  # name -> module:class, which is imported when it is asked for
    "classification": "qgraph.tasks.classification:Classification",
    "embedding": "qgraph.tasks.embedding:Embedding",
    "detection": "qgraph.tasks.detection:Detection",
    "segmentation": "qgraph.tasks.segmentation:Segmentation",
    "keypoints": "qgraph.tasks.keypoints:Keypoints",
    "text": "qgraph.tasks.text:Text",
    "values": "qgraph.tasks.values:Values",
}
_classes = Classes("task", GROUP, TASKS, Task)  # type: ignore[type-abstract]
task_class, names, all_classes = _classes.__getitem__, _classes.names, _classes.all
REACH = 12  # so many ops behind an output tell what it is


def heads_of(names: Sequence[str], outputs: Sequence[Array], images: int, g: Graph | None,
             like: Mapping[str, Array]) -> list[Head]:
    """The outputs of a model as tasks see them. g: its graph, where it has one.  like: what was fed."""
    behind = [ops_behind(g, head) for head in g.heads] if g is not None else [()] * len(outputs)
    shapes = tuple(array.shape for array in like.values())
    return [Head(name, array.shape, images, ops, shapes) for name, array, ops in zip(names, outputs, behind)]


def ops_behind(g: Graph, head: Port) -> tuple[str, ...]:
    """The ops that a tensor comes out of, nearest first, along the first input of each."""
    found: list[str] = []
    node = head.node
    while node.op != "null" and len(found) < REACH:
        found.append(node.op)
        inputs = g.inputs(node)
        if not inputs:
            break
        node = inputs[0].node
    return tuple(found)


class Assigned(NamedTuple):
    """outputs: their numbers.  sure: how sure it is that they are of this task, 1 where the user says so."""

    task: Task
    outputs: tuple[int, ...]
    sure: float


def check_chosen(chosen: Sequence[str], outputs: Sequence[str]) -> None:
    """Raise OptionError for a task or an output that is not there, or named twice. outputs: the model's."""
    named: set[str] = set()
    for text in chosen:
        name, _, parts = text.partition(":")
        task_class(name)
        for part in parts.split("+") if parts else ():
            if part not in outputs:
                raise OptionError(f"--task {text}: the model has no output {part!r}, it has {', '.join(outputs)}"
                                  + suggest(part, outputs, " (did you mean {}?)"))
            if part in named:
                raise OptionError(f"--task {text}: the output {part} is named twice, want one task for each")
            named.add(part)


def assign(heads: Sequence[Head], chosen: Sequence[str] = ()) -> list[Assigned]:
    """The tasks of a model, so that every output is of one, in the order of their first outputs.

    chosen: ``NAME`` for all outputs that can be of this task, or ``NAME:OUTPUT`` (several outputs are joined by +).
    Raises OptionError as `check_chosen` does.
    """
    names = [head.name for head in heads]
    check_chosen(chosen, names)
    taken: dict[int, None] = {}
    found: list[Assigned] = []

    def take(cls: type[Task], outputs: tuple[int, ...], sure: float) -> None:
        if not any(number in taken for number in outputs):
            taken.update(dict.fromkeys(outputs))
            found.append(Assigned(cls([heads[number] for number in outputs]), outputs, sure))

    wanted = [text.partition(":") for text in chosen]
    for name, _, outputs in sorted(wanted, key=lambda parts: not parts[2]):
        cls = task_class(name)
        if outputs:
            take(cls, tuple(names.index(part) for part in outputs.split("+")), 1.0)
            continue
        claims = sorted(cls.claims(heads), key=lambda claim: -claim.sure)
        for claim in claims or [Claim((number,), 0.0) for number in range(len(heads))]:
            take(cls, claim.outputs, 1.0)
    every = [(claim.sure, -order, claim, cls) for order, cls in enumerate(all_classes()) for claim in cls.claims(heads)]
    for sure, _, claim, cls in sorted(every, key=lambda row: (-row[0], -row[1])):
        take(cls, claim.outputs, sure)
    return sorted(found, key=lambda assigned: assigned.outputs)
