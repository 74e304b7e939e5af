"""The picture of the rooms, from the contract of imports in setup.cfg."""

from __future__ import annotations

import configparser

from _generate.root import ROOT

CONTRACT = "importlinter:contract:rooms"
WIDTH, HEIGHT, GAP = 640, 30, 6  # of a layer, in pixels


def layers() -> list[list[str]]:
    """The rooms of each layer, from the top."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return [[room.strip() for room in row.split("|")] for row in config[CONTRACT]["layers"].split("\n") if row]


def rooms() -> str:
    """An SVG: a row for each layer, each of which imports only those below it."""
    found = layers()
    parts = [f'<svg viewBox="-1 -1 {WIDTH + 2} {len(found) * (HEIGHT + GAP) + 2}" role="img" '
             'aria-label="The rooms of qgraph, from the top; each imports only those below it">']
    for row, names in enumerate(found):
        width = (WIDTH - GAP * (len(names) - 1)) / len(names)
        for column, name in enumerate(names):
            x, y = column * (width + GAP), row * (HEIGHT + GAP)
            parts.append(f'<rect x="{x:g}" y="{y}" width="{width:g}" height="{HEIGHT}" rx="4" fill="none" '
                         'stroke="currentColor"/>')
            parts.append(f'<text x="{x + width / 2:g}" y="{y + HEIGHT * 0.66:g}" text-anchor="middle" font-size="14" '
                         f'fill="currentColor">{name}</text>')
    return "".join([*parts, "</svg>"])
