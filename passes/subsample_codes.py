"""subsample-codes: what strided 1x1 convolutions leave out is left out before them."""

from __future__ import annotations

from qgraph.analysis.codes import quantizer_name
from qgraph.ir import ops
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import Pass, register


@register
class SubsampleCodes(Pass):
    """Subsample a quantized tensor that integer 1x1 convolutions of one stride alone read: the same codes.

        conv{1x1 stride=2}(fq(x))  ->  conv{1x1}(fq'(maxpool{1x1 stride=2}(fq(x)))), fq' like fq

    OpenVINO moves such strides in front of the dequantization otherwise, where convolutions no longer find integers.
    """

    name = "subsample-codes"
    requires = ("calibrate",)

    def run(self, g: Graph) -> int:
        count = 0
        for fq in g.nodes("fake_quantize"):
            readers = g.readers(fq)
            strides = {_stride(g, reader, fq) for reader in readers}
            if g.is_head(fq) or len(strides) != 1 or not (stride := strides.pop()):
                continue
            fewer = g.add("Pooling", [fq], f"{fq.name}_subsampled", origin=fq.origin, kernel=(1,) * len(stride),
                          stride=stride, pool_type="max")
            again = g.add("fake_quantize", [fewer], quantizer_name(Port(fewer)), quant=fq.quant, origin=fq.origin)
            for reader in readers:
                g.set_input(reader, 0, again)
                reader.attrs["stride"] = str((1,) * len(stride))
            count += 1
        return count


def _stride(g: Graph, reader: Node, fq: Node) -> tuple[int, ...]:
    """Of an integer 1x1 convolution that reads this and leaves some of it out; of anything else ()."""
    if reader.op != "Convolution" or g.inputs(reader)[0].node is not fq or g.inputs(reader)[1].node.quant is None:
        return ()
    kernel, stride, pad = (ops.attr(reader, key) for key in ("kernel", "stride", "pad"))
    return stride if max(kernel) == 1 and max(pad) == 0 and max(stride) > 1 else ()
