"""fold-pad: zeros that a Pad puts around an image become padding of the Convolution that reads it.

    before   %conv = Convolution(%pad, %w) {kernel=(3, 3) pad=(p, p)}
             %pad = Pad(%x) {mode=constant pad_width=(0, 0, 0, 0, t, b, l, r)}
    after    %conv = Convolution(%x, %w) {pad=(p + t, p + l)}                            where t = b and l = r

MXNet pads both sides alike, so uneven sides take a kernel enlarged with zeros (option `asymmetric`), see
`qgraph.analysis.windows`; writers for engines that pad each side by itself leave the zeros out again.
Refused: a difference of sides that the dilation does not divide, a Pad of another mode, value or axis, negative widths,
other readers.  A Pad before a Pooling stays: an average counts it, and a maximum would see -inf in place of 0.
"""

from __future__ import annotations

import numpy as np

from qgraph.analysis.windows import evened, with_zero_taps
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import MatchFail, P, RewritePass, register
from qgraph.passes._affine import absorb, own_weights, set_weights


@register
class FoldPad(RewritePass):
    """Pad with zeros -> Convolution  becomes a Convolution that pads.

    asymmetric: also fold uneven sides, by a kernel enlarged with zeros.
    """

    name = "fold-pad"
    pattern = P("Convolution", P("Pad", "x", name="pad"), "w", ..., name="conv")
    asymmetric: bool = True

    def rewrite(self, g: Graph, x: Port, pad: Node, conv: Node, **_: Port) -> None:
        kernel = ops.attr(conv, "kernel")
        widths = ops.attr(pad, "pad_width")
        if ops.attr(pad, "mode") != "constant" or ops.attr(pad, "constant_value") != 0:
            raise MatchFail(pad, "does not pad with zeros")
        if len(widths) != 2 * len(kernel) + 4 or any(widths[:4]) or not ops.channels_first(conv):
            raise MatchFail(pad, f"pads {widths}, want the {len(kernel)} spatial axes of {conv} only")
        if min(widths) < 0:
            raise MatchFail(pad, f"pads {widths}, want no negative width")

        own, dilate = ops.attr(conv, "pad"), ops.attr(conv, "dilate")
        before, behind = ([p + w for p, w in zip(own, side)] for side in (widths[4::2], widths[5::2]))
        found = evened(before, behind, dilate)
        if found is None:
            raise MatchFail(pad, f"pads {widths}, uneven sides that dilation {dilate} cannot bridge")
        pads, taps = found
        if np.any(taps):
            if not self.asymmetric:
                raise MatchFail(pad, f"pads {widths}, uneven sides, and asymmetric=false")
            weight, _bias = own_weights(g, conv)
            enlarged = with_zero_taps(weight, taps)
            set_weights(g, conv, enlarged, None)
            conv.attrs["kernel"] = str(enlarged.shape[2:])
        conv.attrs["pad"] = str(tuple(pads))
        absorb(g, conv, pad)
        g.set_input(conv, 0, x)
