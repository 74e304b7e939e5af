"""fold-pad: zeros that a Pad puts around an image become padding of the Convolution that reads it.

    before   %conv = Convolution(%pad, %w) {kernel=(3, 3) pad=(p, p)}
             %pad = Pad(%x) {mode=constant pad_width=(0, 0, 0, 0, t, b, l, r)}
    after    %conv = Convolution(%x, %w) {pad=(p + t, p + l)}                            where t = b and l = r

MXNet pads both sides alike, so uneven sides take a kernel enlarged with zeros (option `asymmetric`).  Along one axis
let L and R be the padding before and behind (p included), k the kernel, d the dilation.  With e = |R - L| / d new taps,

    R > L:  e zero taps in front, pad' = R:   tap j + e of output o reads  o * stride - R + (j + e) * d
                                                                         = o * stride - L + j * d,  as before
    L > R:  e zero taps behind,   pad' = L:   tap j of output o reads  o * stride - L + j * d,  as before

and H + 2 * pad' - d * (k + e - 1) = H + L + R - d * (k - 1): the output has its old size for every H and stride.
Refused: e not whole, a Pad of another mode, value or axis, negative widths, other readers.  A Pad before a Pooling
stays: an average counts it, and a maximum would see -inf in place of 0.
"""

from __future__ import annotations

import numpy as np

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

        pads, taps = [], []  # per spatial axis: the new padding, the zero taps (in front, behind)
        for own, before, behind, dilate in zip(ops.attr(conv, "pad"), widths[4::2], widths[5::2],
                                               ops.attr(conv, "dilate")):
            extra, odd = divmod(abs(behind - before), dilate)
            if odd:
                raise MatchFail(pad, f"pads {before} before and {behind} behind, which dilation {dilate} cannot bridge")
            pads.append(own + max(before, behind))
            taps.append((extra, 0) if behind > before else (0, extra))
        if np.any(taps):
            if not self.asymmetric:
                raise MatchFail(pad, f"pads {widths}, uneven sides, and asymmetric=false")
            weight, _bias = own_weights(g, conv)
            enlarged = np.pad(weight, [(0, 0), (0, 0), *taps])
            set_weights(g, conv, enlarged, None)
            conv.attrs["kernel"] = str(enlarged.shape[2:])
        conv.attrs["pad"] = str(tuple(pads))
        absorb(g, conv, pad)
        g.set_input(conv, 0, x)
