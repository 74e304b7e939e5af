"""The images that freezing looks at: those given, those beside the model, or distilled ones."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import numpy as np

from qgraph.arrays import Array
from qgraph.data.open import Batch, Data
from qgraph.engines import Engine
from qgraph.errors import CalibrationError, DataError, GraphError, MissingInputError, OptionError, QGraphError
from qgraph.ir.graph import Graph
from qgraph.options import DEFAULT_IMAGES, FreezeOptions, Progress, parse_shapes
from qgraph.semantics.cut import cuts, flags
from qgraph.semantics.infer import infer
from qgraph.semantics.inputs import closed, hinted_shapes, inputs_of, known_channels
from qgraph.semantics.legal import legal_values
from qgraph.targets.base import Feeds
from qgraph.targets.registry import get_target, no_open_sizes

log = logging.getLogger("qgraph")

DISTILLED = "distilled"  # how the name of such data begins
DISTILLED_IMAGES = 32
SAMPLE_IMAGES = {"fast": 8, "standard": 16, "best": 64}  # on which passes may measure, for each effort
CHECK_IMAGES = 4


class CalibrationImages:
    """Images for calibration. What only the first of them are asked for is read once, whoever asks.

    given: the data, or what makes them when they are first asked for.  count: how many passes may measure on.
    single: the network takes one image at a time.  Raises CalibrationError where there is no image.
    """

    def __init__(self, given: Data | Callable[[], Data], count: int = SAMPLE_IMAGES["standard"],
                 single: bool = False) -> None:
        self._given, self.count, self.single = given, count, single

    @cached_property
    def data(self) -> Data:
        return self._given if isinstance(self._given, Data) else self._given()

    @cached_property
    def _head(self) -> list[Batch]:
        """Batches that hold the first `count` images."""
        head: list[Batch] = []
        for batch in self.data:
            head.append(batch)
            if sum(map(len, head)) >= self.count:
                break
        if not head:
            raise CalibrationError(f"{self.data.name}: no image was read")
        return head

    @property
    def first(self) -> Batch:
        return self._head[0]

    @cached_property
    def sample(self) -> Feeds:
        """The first images, as many whatever the batch size, or one where the network takes no more."""
        if self.single:
            return self.first.feeds
        return {name: np.concatenate([b.feeds[name] for b in self._head])[:self.count] for name in self.first.feeds}

    def of_count(self, count: int) -> CalibrationImages:
        """The same images, of which passes may measure on so many."""
        return CalibrationImages(self.data, count, self.single)

    def sampled(self) -> list[Batch]:
        """The images of `sample` as one batch."""
        names = self.first.ids if self.single else [name for batch in self._head for name in batch.ids][:self.count]
        return [Batch(dict(self.sample), None, names)]

    def left_out(self, count: int) -> Data | None:
        """At most so many images of the same data that are not calibrated on, None if there are none."""
        found = self.data.rest(count)
        return found.one_by_one() if found is not None and self.single else found

    def shapes(self, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Input -> shape of a small batch."""
        return {name: (min(len(self.first), CHECK_IMAGES), *self.first.feeds[name].shape[1:]) for name in names}


def sample_count(options: FreezeOptions) -> int:
    """On how many images passes may measure. Weights of few bits gain from more of them, as with the best effort."""
    bits = (options.weight_bits, *(choice.weight_bits or options.weight_bits for _, choice in options.layers))
    few_bits = options.effort == "standard" and min(bits) < 8
    return SAMPLE_IMAGES["best" if few_bits else options.effort]


def find_images(prefix: str, bare: Graph, options: FreezeOptions, calib_data: object, needed: bool,
                progress: Progress | None) -> tuple[CalibrationImages | None, dict[str, tuple[int, ...]]]:
    """(calibration images, shapes of a small batch). prefix: of the model's files, or "". bare: it, without labels.

    Images: what is given, else ``<prefix>-calib.npz``, else, if they are needed, images distilled from the BatchNorms.
    """
    names = inputs_of(bare)
    source = calib_data if calib_data is not None else options.calib_data
    beside = f"{prefix}-calib.npz"
    if source is None and prefix and os.path.isfile(beside):
        source = beside
        log.info("calibration data: %s", beside)
    limit, count = options.num_calib or DEFAULT_IMAGES, sample_count(options)
    if source is not None:
        try:
            images = CalibrationImages(options.open(source, wanted_shapes(bare, options), limit), count)
        except MissingInputError as error:
            readers = {node.name for node in bare.dag if any(p.node.name in error.names for p in bare.inputs(node))}
            way = f"; or end the network before they are read: {flags(ends)}" if (ends := cuts(bare, readers)) else ""
            raise DataError(f"{error}{way}") from None
        return images, images.shapes(names)
    shapes = {**hinted_shapes(bare), **_given_shapes(bare, options)}
    unknown = [name for name in names if name not in shapes]
    if unknown:
        raise OptionError(f"the shape of input {unknown[0]!r} is not known: give --calib-data PATH, or "
                          f"--input-shape {unknown[0]}:1,3,224,224 with the right numbers")
    shapes = {name: closed(shapes[name]) for name in names}
    if not needed:
        return None, shapes
    _check_distilled(bare, shapes)
    return CalibrationImages(lambda: _distilled(bare, shapes, options, progress), count), shapes


def wanted_shapes(bare: Graph, options: FreezeOptions) -> dict[str, tuple[int, ...]]:
    """Input -> the shape that data must have; 0 is any size, () any shape."""
    given, known = _given_shapes(bare, options), known_channels(bare)
    wanted = {name: given.get(name) or known.get(name, ()) for name in inputs_of(bare)}
    return {name: (0, *shape[1:]) if shape else () for name, shape in wanted.items()}


def _given_shapes(bare: Graph, options: FreezeOptions) -> dict[str, tuple[int, ...]]:
    return parse_shapes(options.input_shape, inputs_of(bare), no_open_sizes(get_target(options.target)))


def as_the_network_takes_them(images: CalibrationImages, g: Graph, engine: Engine) -> CalibrationImages:
    """The images one by one where a batch of one is fixed inside the float graph, else as they are."""
    feeds = {name: x[:2] for name, x in images.first.feeds.items()}
    if len(images.first) < 2 or _keeps_batch(g, feeds):
        return images
    try:
        alone = engine(g).run({name: x[:1] for name, x in feeds.items()})
    except QGraphError:  # whoever runs it next says so
        return images
    try:
        both = engine(g).run(feeds)
        why = "" if _are_for_two(alone, both) else "gives the outputs of one for two"
    except QGraphError as error:
        why = f"is refused more ({error})"
    if not why:
        return images
    log.warning("the network takes one image at a time: it %s; going on with a batch size of 1", why)
    return CalibrationImages(images.data.one_by_one(), images.count, single=True)


def _keeps_batch(g: Graph, feeds: Feeds) -> bool:
    """Whether the shapes alone tell that every output has a row for each image."""
    try:
        shapes = infer(g, {name: x.shape for name, x in feeds.items()})
    except GraphError:
        return False
    return all(shapes.get(head, ())[:1] == (2,) for head in g.heads)


def _are_for_two(alone: Sequence[Array], both: Sequence[Array]) -> bool:
    grown = [b for a, b in zip(alone, both) if a.size != b.size]
    return bool(grown) and not any(b.shape[:1] == (1,) for b in grown)


def sample_of(model: object) -> Feeds | None:
    """Inputs of the last training step of a network of `qgraph.qat`, by name, or None."""
    control = getattr(model, "qat_control", None)
    return None if control is None else control.feeds() or None


def _check_distilled(bare: Graph, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise CalibrationError, MissingDependencyError where no images can be distilled."""
    for name, wanted in legal_values(bare, shapes).items():
        raise CalibrationError(f"there are no calibration data, and input {name} is no image: {wanted.reader} reads "
                               f"{wanted.shown()} in it; give --calib-data PATH, an .npz with an array for every input")
    if not bare.nodes("BatchNorm"):
        raise CalibrationError("there are no calibration data, and the network has no BatchNorm to distil images from: "
                               "give --calib-data PATH (.rec, image folder, .npz or .npy)")
    from qgraph.calibration.distill import need_mxnet

    need_mxnet()


def _distilled(bare: Graph, shapes: dict[str, tuple[int, ...]], options: FreezeOptions,
               progress: Progress | None) -> Data:
    from qgraph.calibration.distill import distill

    count = options.num_calib or DISTILLED_IMAGES
    log.warning("WARNING: no calibration data were given: the ranges come from %d images distilled from the network's "
                "own BatchNorm statistics. Real images (--calib-data PATH) are better.", count)

    def report_step(done: int, total: int) -> None:
        if progress is not None:
            progress("distilling images", done, total)

    arrays = distill(bare, shapes, count, options.seed, progress=report_step)
    data = FreezeOptions(batch_size=options.batch_size).open(arrays, {name: () for name in shapes})
    data.name = f"{DISTILLED} from BatchNorm statistics, seed {options.seed}"
    return data
