"""The line of passes for a set of options, and how it is run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, Optional

from qgraph.analysis.codes import quantizers_behind, ranged
from qgraph.calibration.collect import Asked, collect
from qgraph.calibration.images import CalibrationImages
from qgraph.calibration.sweep import channel_ranges, watched_pieces
from qgraph.data.open import Data
from qgraph.engines import Engine
from qgraph.errors import OptionError, suggest
from qgraph.ir.graph import Graph, Port
from qgraph.ir.rewrite import Pass, PassManager, PassRecord, insert_after, load_user_pass, parse_pipeline, pass_class
from qgraph.options import ONLINE, FreezeOptions, Progress
from qgraph.passes import PIPELINES
from qgraph.passes._choices import check_choice, layer_choices
from qgraph.passes._readings import Look
from qgraph.passes.equalize import Equalize
from qgraph.passes.winograd_weights import NONE, check_domain
from qgraph.quant.ranges import method
from qgraph.quant.recipe import LayerChoice, Layers
from qgraph.quant.spec import QParams, QSpec, as_granularity
from qgraph.quant.table import CalibrationTable
from qgraph.targets.registry import check_legal, get_target
from qgraph.targets.spec import APART_FLAG, ONLINE_FLAG, WINOGRAD_FLAG
from qgraph.workers import Workers

log = logging.getLogger("qgraph")

FIRST_QUANTIZING = "insert-fake-quantize"
_FOLDING_BN = ("fold-bn", "fold-bn-forward", "bn-to-affine")
_LEFT_OUT: Mapping[str, tuple[str, ...]] = {  # effort -> passes of the standard lines that it does without
    "fast": ("equalize", "pair-channels", "round-weights"),
    "standard": (),
    "best": (),
}

Ranges = Callable[[Graph], Optional[CalibrationTable]]  # of a graph with quantizers; None: of the running batch


def pipeline(options: FreezeOptions) -> tuple[Pass, ...]:
    """Passes that are ready but for the calibration table. Raises OptionError, UnsupportedError for bad choices."""
    target = get_target(options.target)
    granularity = as_granularity(options.granularity)
    online = options.calib == ONLINE
    check_domain(options.winograd)
    if options.effort not in _LEFT_OUT:
        raise OptionError(f"--effort: found {options.effort!r}, want one of {', '.join(_LEFT_OUT)}"
                          + suggest(options.effort, _LEFT_OUT, " (did you mean {}?)"))
    weight_bits, act_bits = target.bits(options.weight_bits, options.act_bits)
    beyond = {ONLINE_FLAG: online, APART_FLAG: not options.merge_bn, WINOGRAD_FLAG: options.winograd != NONE}
    check_legal(target, granularity, weight_bits, act_bits, options.act_signed,
                tuple(flag for flag, asked in beyond.items() if asked))
    for pattern, said in options.layers:
        check_choice(pattern, target, LayerChoice(weight_bits, act_bits, granularity) | said)
        if online and said.calib is not None:
            raise OptionError(f"recipe, layer {pattern}: calib {said.calib} needs ranges that are observed, and "
                              f"--calib {ONLINE} has none")
    rounding = target.spec.rounding
    act = target.spec.act_spec(act_bits, options.act_signed, online)
    given: dict[str, dict[str, Any]] = {
        Equalize.name: {"weight_bits": weight_bits, "act_bits": act_bits, "granularity": granularity,
                        "between": target.quantizes_between, "symmetric": act.symmetric,
                        "signed_input_limit": target.spec.signed_input_limit},
        FIRST_QUANTIZING: {
            "target": target.name, "granularity": granularity, "exclude": options.exclude, "weight_bits": weight_bits,
            "act_bits": act_bits, "act_signed": options.act_signed, "online": online,
            "layers": options.layers},
        "quantize-everything": {"target": target.name},
        "winograd-weights": {"domain": options.winograd, "rounding": rounding},
        "calibrate": {"signed_input_limit": target.spec.signed_input_limit},
        "round-weights": {"rounding": rounding},
        "pair-channels": {"rounding": rounding},
        "limit-weights": {"rounding": rounding},
        "absorb-bn": {"rounding": rounding},
        "quantize-bias": {"limit": target.spec.bias_limit},
        "bake-weights": {"rounding": rounding},
    }
    of_target = target.pass_options()

    def make(cls: type[Pass], written: Mapping[str, Any]) -> Pass:
        return cls(**{**given.get(cls.name, {}), **of_target.get(cls.name, {}), **written})

    if options.passes is not None:
        steps = parse_pipeline(options.passes, make)
    else:
        steps = (*(step for step in PIPELINES["float"] if options.merge_bn or step.name not in _FOLDING_BN),
                 *(make(type(step), {}) for step in PIPELINES["measured"]),
                 *(make(pass_class(name), {}) for name in target.passes))
        steps = tuple(step for step in steps if step.name not in _LEFT_OUT[options.effort])
    for spec in options.user_passes:
        steps = insert_after(steps, *load_user_pass(spec))
    return steps


def split(steps: tuple[Pass, ...]) -> tuple[tuple[Pass, ...], tuple[Pass, ...]]:
    """(passes on the float graph, passes from the first one that quantizes)"""
    names = [step.name for step in steps]
    at = names.index(FIRST_QUANTIZING) if FIRST_QUANTIZING in names else len(steps)
    return steps[:at], steps[at:]


def quantize(g: Graph, steps: tuple[Pass, ...], ranges: Ranges, dump_dir: str = "",
             records: list[PassRecord] | None = None,
             **known: Any) -> tuple[CalibrationTable | None, tuple[Pass, ...]]:
    """Run the quantizing passes on `g`, in place: (the calibration table, the passes that read it).

    ranges: gives the calibration; it is asked if anything is quantized.
    known: what only a run can know, for the fields of the passes.
    """
    records = [] if records is None else records
    before, after = split_at_table(steps)
    PassManager(before, dump_dir, records).run(g)
    table = None
    if g.nodes("fake_quantize"):
        table = ranges(g)
    else:
        log.warning("warning: nothing is quantized: every layer is excluded or stays in float")
    after = tuple(bound(step, table=table, **known) for step in after)
    PassManager(after, dump_dir, records).run(g)
    for node in g.nodes("fake_quantize"):
        if not isinstance(node.quant, QParams) and not (node.quant and node.quant.online):
            raise OptionError(f"--passes: {node.name} has no range: end the line with calibrate,bake-weights")
    return table, after


def split_at_table(steps: tuple[Pass, ...]) -> tuple[tuple[Pass, ...], tuple[Pass, ...]]:
    """(passes before, passes from the first one that reads the calibration): of the quantizing ones."""
    for at, step in enumerate(steps):
        if "table" in step.fields():
            return steps[:at], steps[at:]
    return steps, ()


def bound(step: Pass, **known: Any) -> Pass:
    """The pass with what only a run can know in the fields that it has for it."""
    return step.with_fields(**{name: known[name] for name in step.fields() & known.keys()})


def scaling(images: CalibrationImages | None, given: CalibrationTable | None, options: FreezeOptions, engine: Engine,
            progress: Progress | None, workers: Workers | None = None) -> dict[str, Any]:
    """What `equalize` is told: the images, or the factors of the run that wrote the table which is given."""
    if given is not None:
        return {"factors": given.factors}
    if images is None:
        return {}

    def sweep(g: Graph, ports: Sequence[Port], look: Look) -> None:
        apart = workers is not None and workers.apart
        for piece in watched_pieces(g, images.sampled() if apart else images.data, ports, progress=progress,
                                    images=images.data.num_items, runtime=options.runtime):
            look.add(piece)
        if apart:  # values do not travel
            look.widen(dict(zip(ports, channel_ranges(g, images.data, ports, progress=progress,
                                                      runtime=options.runtime, workers=workers))))

    return {"feeds": images.sample, "sweep": sweep, "run_op": engine.run_op}


def range_spec(options: FreezeOptions) -> QSpec:
    """For which codes the ranges of these options are chosen."""
    return get_target(options.target).spec.range_spec(options.act_bits, options.act_signed)


def collect_table(float_graph: Graph, data: Data, options: FreezeOptions, progress: Progress | None,
                  wanted: Iterable[str], asked: Mapping[str, Asked] | None = None, workers: Workers | None = None,
                  codes: QSpec | None = None) -> CalibrationTable:
    """The ranges of a float graph. wanted: the tensors that must have one.  asked: of `asked_ranges`.

    codes: for which they are chosen [default: of `range_spec`].
    """
    codes = codes or range_spec(options)
    table = collect(float_graph, data, options.calib, act_bits=options.act_bits, act_signed=codes.signed,
                    symmetric=codes.symmetric, progress=progress, runtime=options.runtime, wanted=wanted, asked=asked,
                    workers=workers)
    log.info("calibrated %d tensors with %s on %d images (%s)", len(table.entries), table.method, table.images,
             table.data)
    return table


def asked_methods(quantized: Graph, layers: Layers) -> dict[str, str]:
    """Tensor -> method of its range, where a recipe says it of a layer that reads the tensor in codes."""
    return {name: said.calib for node, said in layer_choices(quantized, layers).items() if said.calib is not None
            for fq in quantizers_behind(quantized, quantized.inputs(node)[0]) for name in ranged(quantized, fq)}


def asked_ranges(quantized: Graph, options: FreezeOptions) -> dict[str, Asked]:
    """Tensor -> method and bits of its range, where the recipe wants others for it than for the rest."""
    general = Asked(method(options.calib).name, options.act_bits)
    methods = asked_methods(quantized, options.layers)
    bits: dict[str, int] = {}
    for fq in quantized.nodes("fake_quantize"):
        if fq.quant is not None and quantized.param(quantized.inputs(fq)[0]) is None:
            bits.update({name: max(fq.quant.bits, bits.get(name, 0)) for name in ranged(quantized, fq)})
    asked = {name: Asked(methods.get(name, general.method), bits[name]) for name in bits}
    return {name: way for name, way in asked.items() if way != general}
