"""Colours of charts, the same on every page and in `qgraph simulate --plot`."""

from __future__ import annotations

LIGHT = {
    "page": "#f5f5f2", "surface": "#ffffff", "ink": "#14140f", "soft": "#55544e", "grid": "#e0dfd8", "line": "#c9c8bf",
    "accent": "#1f66c1", "int8": "#2a78d6", "float": "#d98a00", "other": "#a3a199", "warn": "#b3261e",
    "noise0": "#d9e6d3", "noise1": "#f6dfa6", "noise2": "#f2ae72", "noise3": "#e0703c", "noise4": "#a92a17",
}
DARK = {
    "page": "#10100e", "surface": "#1b1b19", "ink": "#f4f3ee", "soft": "#b9b7ac", "grid": "#2e2e2a", "line": "#4a4943",
    "accent": "#6ea8f2", "int8": "#4a90e2", "float": "#e0a030", "other": "#77756c", "warn": "#ff8f80",
    "noise0": "#33412f", "noise1": "#5c4d20", "noise2": "#8a5424", "noise3": "#c8602f", "noise4": "#ff7d5e",
}
SERIES = ("#2a78d6", "#d98a00", "#1b9e77", "#a92a17", "#7355c4", "#55544e", "#c2528b", "#5f8a1d", "#0f8fa8", "#8a5a2b")
"""Lines of a plot, in their order."""
NOISE_LEVELS = (40.0, 30.0, 20.0, 10.0)
"""SQNR in dB from which the colours noise0, noise1, ... are taken; below the last one it is the last colour."""


def noise_level(sqnr_db: float | None) -> int:
    """The number of the colour. sqnr_db: None is without any noise."""
    return 0 if sqnr_db is None else sum(sqnr_db < least for least in NOISE_LEVELS)
