"""What can be asked of qgraph, as plain data: the flags of the command line are the fields of these classes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np

from qgraph.data.open import Data, open_data
from qgraph.data.preprocess import Preprocess
from qgraph.errors import OptionError, suggest
from qgraph.quant.ranges import ALIASES
from qgraph.quant.recipe import Layers, Recipe
from qgraph.quant.spec import as_granularity
from qgraph.semantics.inputs import closed

Progress = Callable[[str, int, Optional[int]], None]  # (what is done, how many so far, how many in all)
Shapes = Mapping[str, Sequence[int]]
DEFAULT_IMAGES = 512
ONLINE = "online"  # instead of a calibration method: ranges of the batch that is being run


@dataclass(frozen=True)
class DataOptions:
    """How images are chosen and made ready; None leaves a part to the preset. See `qgraph.data`.

    labels: a file or folder of labels, in place of those that the data hold.
    """

    select: str | None = None
    skip: str | None = None
    preprocess: str | None = None
    resize: int | None = None
    crop: int | None = None
    bgr: bool | None = None
    mean: str | Sequence[float] | None = None
    std: str | Sequence[float] | None = None
    scale: float | None = None
    batch_size: int = 16
    decoders: int | None = None
    labels: str | None = None

    def preprocessing(self) -> Preprocess:
        return Preprocess.from_options(self.preprocess, resize=self.resize, crop=self.crop, bgr=self.bgr,
                                       mean=self.mean, std=self.std, scale=self.scale)

    def open(self, source: Any, shapes: Shapes, limit: int | None = None) -> Data:
        """shapes: of the model's inputs, by name, in the model's order; 0 matches any size."""
        if isinstance(source, Data):
            return source
        return open_data(source, self.preprocessing(), labels=self.labels, select=self.select, skip=self.skip,
                         limit=limit, batch_size=self.batch_size, decoders=self.decoders, input_names=tuple(shapes),
                         input_shapes={name: shape for name, shape in shapes.items() if shape})


@dataclass(frozen=True)
class JudgeOptions(DataOptions):
    """How outputs are judged. task: ``NAME`` or ``NAME:OUTPUT``, of `qgraph.tasks.registry`; without, it is found.

    decode: ``MODULE:FUNCTION``, which makes boxes of the outputs (`qgraph.tasks.decoded`).
    """

    task: tuple[str, ...] = ()
    decode: str | None = None

    def __post_init__(self) -> None:
        _as_texts(self, task="detection")


@dataclass(frozen=True)
class FreezeOptions(JudgeOptions):
    """What `qgraph freeze` does. Every field is a flag of the command line, with ``-`` for ``_``.

    outputs: where the network ends, before anything else happens: a node's name, ``name:index`` or ``name_output``.
    input_shape: ``data:1,3,224,224``, one per input.  exclude: patterns of `qgraph.ir.select`.
    calib: a method of `qgraph.quant.ranges`, or online.  merge_bn: fold BatchNorms before weights are quantized.
    target: its name, with options or without: ``onnx``, ``onnx{isa=avx2}``.
    effort: ``fast`` measures nothing, and rounds weights to the nearest codes; ``standard`` equalizes channels and
    rounds by what calibration images show; ``best`` does so on more of the images.
    winograd: quantize weights in a domain of `qgraph.passes.winograd_weights`.
    passes: a pipeline of one's own instead of the standard one.  user_passes: ``--pass MODULE:CLASS@AFTER``.
    output: prefix of the files that are written.
    judge_data: images that the frozen model is judged on, instead of those that calibration did not take.
    recipe: the path of a recipe, or the recipe; `with_recipe` takes its choices over.
    report_images: show so many judged images, whose answers changed most, in the report.
    runtime: of `qgraph.engines`, the engine that runs models meanwhile.
    float_check: compare the outputs before and behind the passes that keep them.
    """

    params: str | None = None
    epoch: int | None = None
    output: str | None = None
    target: str = "mxnet"
    outputs: tuple[str, ...] = ()
    input_shape: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    granularity: str = "channel"
    weight_bits: int = 8
    act_bits: int = 8
    act_signed: str = "auto"
    calib: str = "auto"
    merge_bn: bool = True
    effort: str = "standard"
    winograd: str = "none"
    calib_data: str | None = None
    calib_table: str | None = None
    recipe: str | Recipe | None = None
    judge_data: str | None = None
    report_images: int = 0
    num_calib: int | None = None
    seed: int = 0
    passes: str | None = None
    user_passes: tuple[str, ...] = ()
    dump_passes: str | None = None
    runtime: str = "auto"
    float_check: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _as_texts(self, outputs="fc1", input_shape="data:1,3,224,224", exclude="conv0",
                  user_passes="my_passes:MyPass@canonicalize")
        for name in ("target", "granularity", "act_signed", "calib", "effort", "winograd", "runtime"):
            if not isinstance(getattr(self, name), str):
                raise OptionError(f"{name} is {getattr(self, name)!r}, want a text")
        for name in ("merge_bn", "float_check"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} is {getattr(self, name)!r}, want True or False")
        if self.recipe is not None and not isinstance(self.recipe, (str, os.PathLike, Recipe)):
            raise OptionError(f"recipe is a {type(self.recipe).__name__}, want a path")
        if self.calib_data is not None and not isinstance(self.calib_data, (str, os.PathLike)):
            raise OptionError(f"calib_data is a {type(self.calib_data).__name__}, want a path; arrays and datasets go "
                              "to qgraph.freeze(..., calib_data=...)")
        for name, least in (("weight_bits", 1), ("act_bits", 1), ("num_calib", 1), ("seed", 0),
                            ("report_images", 0)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, np.integer)) and value >= least):
                raise OptionError(f"{name} is {value!r}, want a whole number from {least}")

    @property
    def layers(self) -> Layers:
        """What the recipe says of single layers, once `with_recipe` has read it."""
        return self.recipe.layers if isinstance(self.recipe, Recipe) else ()

    def to_dict(self) -> dict[str, Any]:
        """What was asked for and is not the default, as plain values; where the files go is left out."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)
                 if f.name not in ("output", "dump_passes", "runtime") and getattr(self, f.name) != f.default}
        return {k: list(v) if isinstance(v, tuple) else v.to_dict() if isinstance(v, Recipe) else v
                for k, v in sorted(found.items())}


RECIPE_FIELDS = ("effort", "calib", "granularity", "weight_bits", "act_bits")  # of `FreezeOptions` and `Recipe`


def with_recipe(options: FreezeOptions) -> FreezeOptions:
    """The options with the choices of their recipe, which is read, in place of their defaults.

    What the recipe excludes is excluded too.  Raises OptionError for a flag that contradicts the recipe.
    """
    if options.recipe is None:
        return options
    recipe = options.recipe if isinstance(options.recipe, Recipe) else Recipe.load(options.recipe)
    taken: dict[str, Any] = {}
    for name in RECIPE_FIELDS:
        said, given = getattr(recipe, name), getattr(options, name)
        if said is None or _same(said, given):
            continue
        if given != getattr(FreezeOptions, name):
            raise OptionError(f"--{name.replace('_', '-')} {given}: the recipe says {said}; leave one of them out")
        taken[name] = said
    exclude = tuple(dict.fromkeys((*options.exclude, *recipe.exclude)))
    return dataclasses.replace(options, recipe=recipe, exclude=exclude, **taken)


def recipe_of(options: FreezeOptions, graph: str) -> Recipe:
    """The recipe that says what these options do. graph: the digest of the model."""
    return Recipe(graph, exclude=options.exclude, layers=options.layers,
                  **{name: getattr(options, name) for name in RECIPE_FIELDS})


def _same(a: Any, b: Any) -> bool:
    """Whether two names mean the same."""
    return bool(a == b) or isinstance(b, str) and a in (as_granularity(b), ALIASES.get(b))


def _as_texts(options: DataOptions, **examples: str) -> None:
    """Make tuples of texts of these fields; one text is a tuple of one."""
    for name, example in examples.items():
        value = getattr(options, name)
        texts = (value,) if isinstance(value, str) else value
        if not isinstance(texts, (tuple, list)) or not all(isinstance(text, str) for text in texts):
            raise OptionError(f"{name} is {value!r}, want texts, such as {example!r}")
        object.__setattr__(options, name, tuple(texts))


OPEN = "?"


def parse_shapes(texts: Iterable[str], inputs: Sequence[str],
                 no_open: str = "this command wants numbers") -> dict[str, tuple[int, ...]]:
    """``data:1,3,224,224`` (the name may be left out if there is one input) -> input name -> shape.

    ``data:1,3,?,?`` leaves sizes open, which are 0 then. no_open: why that cannot be, "" where it can.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, colon, numbers = text.rpartition(":")
        if not colon and len(inputs) == 1:
            name = inputs[0]
        try:
            sizes = [part.strip() for part in numbers.strip("() ").split(",")]
            shape = tuple(1 if part == OPEN and axis == 0 else 0 if part == OPEN else int(part) or -1
                          for axis, part in enumerate(sizes))
        except ValueError:
            shape = ()
        if not shape or any(not 0 <= d <= 1 << 31 for d in shape) or not name:
            raise OptionError(f"--input-shape is {text!r}, want NAME:N,C,H,W such as {inputs[0]}:1,3,224,224")
        if name not in inputs:
            raise OptionError(f"--input-shape: the model has no input {name!r}, it reads {', '.join(inputs)}"
                              + suggest(name, inputs, " (did you mean {}?)"))
        if no_open and 0 in shape:
            raise OptionError(f"--input-shape {text}: {no_open}")
        shapes[name] = shape
    return shapes


def block_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """As `parse_shapes`, for a Gluon block, whose inputs are not known yet: those that are named, or data."""
    names = [text.rpartition(":")[0] or "data" for text in texts]
    shapes = parse_shapes(texts, names, no_open="") if names else {}
    return {name: closed(shape) for name, shape in shapes.items()}
