"""The passes: one file each, named as the pass. Importing this package registers them all.

    float, measured keep the outputs in float: PIPELINES says which run, in which order
    quantizing      decide, place quantizers, calibrate, round: `qgraph.targets.base.Target.passes` says which run
    of one target   integer_flow, share_scales, signed_dense, signed_residual, limit_saturation (mxnet),
                    winograd_weights, absorb_bn, wide_sums (mxnet-sim), quantize_between, limit_weights,
                    subsample_codes (onnx), quantize_everything, fit_bias (tengine)
"""

from __future__ import annotations

from qgraph.ir.rewrite import Pass
from qgraph.passes import (  # noqa: F401  (the import registers them)
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
    subsample_codes,
    wide_sums,
    winograd_weights,
)
from qgraph.passes.bn_to_affine import BNToAffine
from qgraph.passes.canonicalize import Canonicalize
from qgraph.passes.constants import Constants
from qgraph.passes.equalize import Equalize
from qgraph.passes.fold_bn import FoldBN
from qgraph.passes.fold_bn_forward import FoldBNForward
from qgraph.passes.fold_input_norm import FoldInputNorm
from qgraph.passes.fold_pad import FoldPad
from qgraph.passes.fuse_relu import FuseRelu

PIPELINES: dict[str, tuple[Pass, ...]] = {
    "canonical": (Canonicalize(),),
    "float": (
        Canonicalize(),
        Constants(),
        FoldBN(),
        FoldPad(),
        FoldBNForward(),   # for what fold-bn left
        BNToAffine(),      # for what is left after that
        FoldInputNorm(),   # behind bn-to-affine: its convolutions do not pad and take shifts too
        FuseRelu(),
    ),
    "measured": (Equalize(),),  # keep the outputs too, by what calibration images show
}
