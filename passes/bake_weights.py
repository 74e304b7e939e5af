"""Store the values that the quantized model computes with."""

from __future__ import annotations

import numpy as np

from qgraph.errors import CalibrationError
from qgraph.ir.graph import Graph
from qgraph.ir.rewrite import Pass, register
from qgraph.quant.spec import QParams, fake_quantize


@register
class BakeWeights(Pass):
    """Every parameter behind a fake_quantize becomes the nearest values that have a code.

    The node stays, and says which codes they are.  A parameter with another reader is copied first.
    """

    name = "bake-weights"
    requires = ("calibrate",)
    rounding: str = "half-even"

    def run(self, g: Graph) -> int:
        count = 0
        for node in g.nodes("fake_quantize"):
            source = g.inputs(node)[0]
            array = g.param(source)
            if array is None or (node.quant is not None and node.quant.online):  # such a bias follows the batch
                continue
            if not isinstance(node.quant, QParams):
                raise CalibrationError(f"{node.name}: not calibrated")
            baked = fake_quantize(array, node.quant, self.rounding)
            if np.array_equal(baked, array):
                continue
            if not g.has_one_use(source):
                source_name = source.node.name
                g.set_input(node, 0, g.add_param(source_name + "_baked", baked, origin=(source_name,)))
            else:
                g.params[source.node.name] = baked
            count += 1
        return count
