"""One sweep of a float network over some images, for `qgraph doctor`: what its tensors and BatchNorms see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from qgraph.analysis.observed import observed_ports
from qgraph.analysis.sick_tensors import Seen
from qgraph.analysis.statistics import Moments, Stored, departures, stored_statistics
from qgraph.arrays import Array
from qgraph.data.candidates import Feeding, feedings, pixels_of
from qgraph.data.open import Data
from qgraph.engines import Engine
from qgraph.errors import DataError
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Port
from qgraph.options import Progress

TRIED_IMAGES = 16  # on which ways to feed are tried
BETTER = 0.6  # part of the departure that is left with a better way: by the first BatchNorm, and by all of them
ALIKE = 1.1  # ways whose departures differ by less are alike, and the simplest is taken
TRIED = 6  # ways that all BatchNorms judge


@dataclass
class Survey:
    """ids: of the images.  seen: by tensor.  stored, moments: of the BatchNorms.  fed: the first images, by input."""

    ids: list[str] = field(default_factory=list)
    seen: dict[Port, Seen] = field(default_factory=dict)
    stored: list[Stored] = field(default_factory=list)
    moments: list[Moments] = field(default_factory=list)
    fed: dict[str, Array] = field(default_factory=dict)

    @property
    def departures(self) -> list[float]:
        """Of the BatchNorms."""
        return departures(self.stored, self.moments)


def survey(g: Graph, data: Data, engine: Engine, progress: Progress | None = None) -> Survey:
    """Run `data` once. g: a float graph whose BatchNorms are not folded. Raises DataError without an image."""
    found = Survey(stored=stored_statistics(g))
    ports = [port for port in observed_ports(g) if ops.kind(port.node) != ops.COMPUTE]
    found.seen = {port: Seen() for port in ports}
    found.moments = [Moments() for _ in found.stored]
    run = engine(g, watch=[*(one.port for one in found.stored), *ports])
    for batch, values in run.stream(data):
        found.fed = found.fed or batch.feeds
        for moments, value in zip(found.moments, values):
            moments.update(value)
        for port, value in zip(ports, values[len(found.stored):]):
            found.seen[port].update(value, batch.ids)
        found.ids += batch.ids
        if progress:
            progress("looking at images", len(found.ids), data.num_items)
    if not found.ids:
        raise DataError(f"{data.name}: no image was read")
    return found


def better_feeding(g: Graph, found: Survey, data: Data, ready: bool, engine: Engine) -> tuple[Feeding, float] | None:
    """The common way to feed images that fits the BatchNorms much better than these data, and its mean departure.

    None where none does, or where it cannot be told (no BatchNorm, several inputs, no images).  ready: the data are
    arrays, which no preprocessing made.
    """
    images = [x for x in found.fed.values() if x.ndim == 4 and x.shape[1] in (1, 3)]
    if not found.stored or len(images) != 1 or len(found.fed) != 1:
        return None
    name, fed = next((name, x[:TRIED_IMAGES]) for name, x in found.fed.items())
    known = pixels_of(fed, data.preprocess, ready)
    if known is None:
        return None
    pixels, _ = known
    first = engine(g, watch=[found.stored[0].port])
    now = _departures(found.stored[:1], first.run({name: fed}))[0]
    ways = []
    for number, way in enumerate(feedings(fed.shape[1])):
        departure = _departures(found.stored[:1], first.run({name: way.apply(pixels)}))[0]
        if departure < BETTER * now:
            ways.append((departure, number, way))
    if not ways:
        return None
    run = engine(g, watch=[one.port for one in found.stored])
    tried = [(float(np.mean(_departures(found.stored, run.run({name: way.apply(pixels)})))), number, way)
             for _, number, way in sorted(ways, key=lambda row: row[:2])[:TRIED]]
    least = min(departure for departure, _, _ in tried)
    least, _, way = min((row for row in tried if row[0] <= ALIKE * least), key=lambda row: row[1])
    whole = float(np.mean(_departures(found.stored, run.run({name: fed}))))
    return (way, least) if least < BETTER * whole else None


def _departures(stored: Sequence[Stored], values: Sequence[Array]) -> list[float]:
    seen = [Moments() for _ in values]
    for moments, value in zip(seen, values):
        moments.update(value)
    return departures(stored, seen)
