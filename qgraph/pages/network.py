"""The overview of a network: boxes of a few layers each, for a drawing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_FEW = 24  # nodes that are drawn one by one
_IN_BOX = 6


def boxes(nodes: Sequence[Mapping[str, Any]], shown: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{"boxes": [{"label", "cells": rows of `shown`}], "edges": [[from, to]]}: chains of layers become boxes.

    nodes: of `qgraph.analysis.outline`.  shown: node -> what its cell says; others, such as activations, have none.
    A box begins behind a node with several readers, at one that reads several nodes, and where one is full.
    """
    readers = Counter(number for node in nodes for number in node["reads"])
    box_of: list[int] = []
    found: list[list[int]] = []
    in_box = _IN_BOX if len(nodes) > _FEW else 1
    for number, node in enumerate(nodes):
        before = node["reads"][0] if len(node["reads"]) == 1 else None
        follows = before is not None and readers[before] == 1
        cell = node["name"] in shown
        if follows and before is not None and not (cell and _cells(nodes, found[box_of[before]], shown) >= in_box):
            box_of.append(box_of[before])
            found[box_of[before]].append(number)
        else:
            box_of.append(len(found))
            found.append([number])
    edges = {(box_of[source], box_of[number]): None for number, node in enumerate(nodes) for source in node["reads"]
             if box_of[source] != box_of[number]}
    return {"boxes": [_box(nodes, members, shown) for members in found], "edges": [list(edge) for edge in edges]}


def _cells(nodes: Sequence[Mapping[str, Any]], members: Sequence[int], shown: Mapping[str, Any]) -> int:
    return sum(nodes[number]["name"] in shown for number in members)


def _box(nodes: Sequence[Mapping[str, Any]], members: Sequence[int],
         shown: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    names = [nodes[number]["name"] for number in members]
    cells = [shown[name] for name in names if name in shown]
    titles = [cell["name"] for cell in cells] or names
    label = titles[0] if len(titles) == 1 else f"{titles[0]} … {titles[-1]}"
    return {"label": label, "count": len(cells), "cells": cells}
