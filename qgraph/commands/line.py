"""The whole line of passes for a set of options: what `qgraph freeze` runs, in order."""

from __future__ import annotations

from typing import Any

from qgraph.ir.rewrite import Pass, insert_after, load_user_pass, parse_pipeline, pass_class
from qgraph.options import ONLINE, FreezeOptions
from qgraph.passes import (  # noqa: F401  (the import registers them)
    PIPELINES,
    absorb_bn,
    bake_weights,
    calibrate,
    fit_bias,
    insert_fake_quantize,
    integer_flow,
    limit_saturation,
    limit_weights,
    pair_channels,
    quantize_between,
    quantize_bias,
    quantize_everything,
    round_weights,
    share_scales,
    signed_dense,
    signed_residual,
    wide_sums,
    winograd_weights,
)
from qgraph.quant.spec import as_granularity
from qgraph.targets import base as targets

# behind the float passes, by `Target.flow`
QUANTIZING = {
    # only what layers with weights read is quantized
    "simulated": ("insert-fake-quantize", "winograd-weights", "calibrate", "round-weights", "absorb-bn", "fuse-relu",
                  "quantize-bias", "bake-weights", "wide-sums"),
    # values stay integers from layer to layer, with sums and activations inside MXNet's kernels
    "fused": ("insert-fake-quantize", "integer-flow", "share-scales", "calibrate", "signed-residual", "signed-dense",
              "round-weights", "pair-channels", "limit-saturation", "quantize-bias", "bake-weights"),
    # the same with a quantizer behind every op, which the engine fuses as it likes
    "qdq": ("insert-fake-quantize", "quantize-between", "calibrate", "pair-channels", "limit-weights", "round-weights",
            "quantize-bias", "bake-weights"),
    # layers with weights read integers and write floats, biases among them
    "float-between": ("insert-fake-quantize", "calibrate", "round-weights", "bake-weights"),
    # every value is an integer, from the inputs to the outputs
    "whole": ("insert-fake-quantize", "quantize-everything", "calibrate", "fit-bias", "round-weights", "quantize-bias",
              "bake-weights"),
}
_FOLDING_BN = ("fold-bn", "fold-bn-forward", "bn-to-affine")
FIRST_QUANTIZING = "insert-fake-quantize"


def pipeline(options: FreezeOptions) -> tuple[Pass, ...]:
    """Passes that are ready but for the calibration table. Raises OptionError, UnsupportedError for bad choices."""
    target = targets.get_target(options.target)
    granularity = as_granularity(options.granularity)
    online = options.calib == ONLINE
    winograd_weights.check_domain(options.winograd)
    beyond = {targets.ONLINE_FLAG: online, targets.APART_FLAG: not options.merge_bn,
              targets.WINOGRAD_FLAG: options.winograd != winograd_weights.NONE}
    targets.check_legal(target, granularity, options.weight_bits, options.act_bits, options.act_signed,
                        tuple(flag for flag, asked in beyond.items() if asked))
    given: dict[str, dict[str, Any]] = {
        "insert-fake-quantize": {
            "target": target.name, "granularity": granularity, "exclude": options.exclude,
            "weight_bits": options.weight_bits, "act_bits": options.act_bits, "act_signed": options.act_signed,
            "activations": not options.int4, "online": online},
        "quantize-everything": {"target": target.name},
        "winograd-weights": {"domain": options.winograd, "rounding": target.rounding},
        "calibrate": {"signed_input_limit": target.signed_input_limit},
        "round-weights": {"rounding": target.rounding},
        "pair-channels": {"rounding": target.rounding, "active": options.isa != "vnni"},
        "limit-weights": {"rounding": target.rounding, "isa": options.isa},
        "absorb-bn": {"rounding": target.rounding},
        "quantize-bias": {"limit": target.bias_limit},
        "bake-weights": {"rounding": target.rounding},
    }

    def make(cls: type[Pass], written: dict[str, Any]) -> Pass:
        return cls(**{**given.get(cls.name, {}), **written})

    if options.passes is not None:
        steps = parse_pipeline(options.passes, make)
    else:
        steps = (*(step for step in PIPELINES["float"] if options.merge_bn or step.name not in _FOLDING_BN),
                 *(make(pass_class(name), {}) for name in QUANTIZING[target.flow]))
    for spec in options.user_passes:
        steps = insert_after(steps, *load_user_pass(spec))
    return steps


def split(steps: tuple[Pass, ...]) -> tuple[tuple[Pass, ...], tuple[Pass, ...]]:
    """(passes on the float graph, passes from the first one that quantizes)"""
    names = [step.name for step in steps]
    at = names.index(FIRST_QUANTIZING) if FIRST_QUANTIZING in names else len(steps)
    return steps[:at], steps[at:]
