"""The passes: one file each, named as the pass. PIPELINES says which run, in which order.

Importing this package registers the float passes; `qgraph.commands.line` adds the quantization passes.
"""

from __future__ import annotations

from qgraph.ir.rewrite import Pass
from qgraph.passes.bn_to_affine import BNToAffine
from qgraph.passes.canonicalize import Canonicalize
from qgraph.passes.fold_bn import FoldBN
from qgraph.passes.fold_bn_forward import FoldBNForward
from qgraph.passes.fold_input_norm import FoldInputNorm
from qgraph.passes.fold_pad import FoldPad
from qgraph.passes.fuse_relu import FuseRelu

PIPELINES: dict[str, tuple[Pass, ...]] = {
    # the outputs in float stay the same
    "float": (
        Canonicalize(),
        FoldBN(),
        FoldPad(),
        FoldBNForward(),   # for what fold-bn left
        BNToAffine(),      # for what is left after that
        FoldInputNorm(),   # behind bn-to-affine: its convolutions do not pad and take shifts too
        FuseRelu(),
    ),
}
