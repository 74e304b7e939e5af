"""The images that freezing looks at: those given, those beside the model, or distilled ones."""

from __future__ import annotations

import logging
import os

import numpy as np

from qgraph.data.open import Batch, Data
from qgraph.errors import CalibrationError, OptionError
from qgraph.ir.graph import Graph
from qgraph.options import DEFAULT_IMAGES, FreezeOptions, Progress, parse_shapes
from qgraph.semantics.inputs import hinted_shapes, inputs_of, known_channels

log = logging.getLogger("qgraph")

DISTILLED = "distilled"  # how the name of such data begins
DISTILLED_IMAGES = 32
SAMPLE_IMAGES = 16  # on which passes may measure, such as limit-saturation
CHECK_IMAGES = 4


def find_data(prefix: str, bare: Graph, options: FreezeOptions, calib_data: object, needed: bool,
              progress: Progress | None) -> tuple[Data | None, dict[str, tuple[int, ...]]]:
    """(calibration data, shapes of a small batch). prefix: of the model's files, or "". bare: it, without labels.

    Data: what is given, else ``<prefix>-calib.npz``, else, if they are needed, images distilled from the BatchNorms.
    """
    names = inputs_of(bare)
    given = parse_shapes(options.input_shape, names)
    wanted = {name: given.get(name) or known_channels(bare).get(name, ()) for name in names}
    wanted = {name: (0, *shape[1:]) if shape else () for name, shape in wanted.items()}
    source = calib_data if calib_data is not None else options.calib_data
    beside = f"{prefix}-calib.npz"
    if source is None and prefix and os.path.isfile(beside):
        source = beside
        log.info("calibration data: %s", beside)
    limit = options.num_calib or DEFAULT_IMAGES
    if source is not None:
        data = options.open(source, wanted, limit)
        first = _peek(data)
        return data, {name: (min(len(first), CHECK_IMAGES), *first.feeds[name].shape[1:]) for name in names}
    shapes = {**hinted_shapes(bare), **given}
    unknown = [name for name in names if name not in shapes]
    if unknown:
        raise OptionError(f"the shape of input {unknown[0]!r} is not known: give --calib-data PATH, or "
                          f"--input-shape {unknown[0]}:1,3,224,224 with the right numbers")
    shapes = {name: shapes[name] for name in names}
    if not needed:
        return None, shapes
    return _distilled(bare, shapes, options, progress), shapes


def sample(data: Data) -> dict[str, np.ndarray]:
    """The first images, as many whatever the batch size."""
    batches: list[Batch] = []
    for batch in data:
        batches.append(batch)
        if sum(map(len, batches)) >= SAMPLE_IMAGES:
            break
    return {name: np.concatenate([b.feeds[name] for b in batches])[:SAMPLE_IMAGES] for name in batches[0].feeds}


def sample_of(model: object) -> dict[str, np.ndarray] | None:
    """Inputs of the last training step of a network of `qgraph.qat`, by name, or None."""
    control = getattr(model, "qat_control", None)
    return None if control is None else control.feeds() or None


def _peek(data: Data) -> Batch:
    for batch in data:
        return batch
    raise CalibrationError(f"{data.name}: no image was read")


def _distilled(bare: Graph, shapes: dict[str, tuple[int, ...]], options: FreezeOptions,
               progress: Progress | None) -> Data:
    if not bare.nodes("BatchNorm"):
        raise CalibrationError("there are no calibration data, and the network has no BatchNorm to distil images from: "
                               "give --calib-data PATH (.rec, image folder, .npz or .npy)")
    from qgraph.calibration.distill import distill, need_mxnet

    need_mxnet()
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
