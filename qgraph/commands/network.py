"""How a float network goes through the line of `qgraph.freeze`; `qgraph.commands.trained` has the other kind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from qgraph.calibration.images import CalibrationImages
from qgraph.commands import floatcheck
from qgraph.commands.line import asked_methods, asked_ranges, bound, pipeline, split
from qgraph.engines import Engine
from qgraph.ir.graph import Graph
from qgraph.ir.rewrite import Pass, PassRecord
from qgraph.options import ONLINE, FreezeOptions
from qgraph.passes.canonicalize import Canonicalize
from qgraph.passes.insert_fake_quantize import InsertFakeQuantize, layer_verdicts
from qgraph.quant.table import CalibrationTable, Entry
from qgraph.semantics.inputs import hinted_shapes
from qgraph.targets.base import Executor, Feeds, Target
from qgraph.targets.registry import get_target

log = logging.getLogger("qgraph")


class FloatNetwork:
    """A network that was not trained quantized. quantizing: the passes from the first one that quantizes.

    shares_float: what `fold` and `truth` give does not depend on the target, once the table of ranges is given.
    entries: tensor -> the range that was chosen in training.  agreement_with: what else the report's agreement says.

    Raises OptionError for options that do not go with it.
    """

    quantizing: tuple[Pass, ...]
    shares_float: ClassVar[bool] = True
    entries: Mapping[str, Entry] = {}
    agreement_with: ClassVar[Mapping[str, str]] = {}

    def __init__(self, source: Graph, options: FreezeOptions, target: Target) -> None:
        target.check_network(trained=False)
        self.source, self.options, self.target = source, options, target
        self.float_steps, self.quantizing = split(pipeline(options))

    def bare(self) -> Graph:
        """A float copy without labels."""
        bare = self.source.copy()
        Canonicalize().run(bare)
        return bare

    def truth(self, engine: Engine) -> Executor:
        """What computes the outputs that the frozen model should have."""
        return engine(self.bare())

    def hinted_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs as the files say them."""
        return hinted_shapes(self.source)

    def reads_images(self, prefix: str, data: Any) -> bool:
        """Whether calibration images are looked for. prefix: of the model's files.  data: what was given."""
        return True

    def need(self, images: CalibrationImages | None) -> None:
        """Raise CalibrationError if ranges have to be observed and there are no images."""

    def warn_of(self, agreement: Mapping[str, Any] | None) -> None:
        """Say what the agreement of the frozen model means to the user, beyond the report."""

    def fold(self, feeds: Feeds, engine: Engine, dump_dir: str, records: list[PassRecord],
             known: Mapping[str, Any]) -> tuple[Graph, Graph]:
        """Run the float passes, checked on `feeds`: (the float graph, the graph to be quantized).

        known: what only a run can know, for the fields of the passes.
        """
        g = self.source.copy()
        steps = tuple(bound(step, **known) for step in self.float_steps)
        changed = floatcheck.run_checked(steps, g, feeds, engine, dump_dir, records, self.options.float_check)
        if self.options.float_check:
            log.info("float passes: outputs kept to %.1e of their size on a random batch", changed)
        return g, g.copy()

    def verdicts(self, float_graph: Graph) -> dict[str, str]:
        """Layer -> why it stays in float, "" if it is quantized."""
        for step in self.quantizing:
            if isinstance(step, InsertFakeQuantize):
                verdicts = layer_verdicts(float_graph, get_target(step.target), step.exclude, step.layers)
                for node, why in verdicts.items():
                    if why:
                        log.debug("stays in float: %s: %s", node.name, why)
                return {node.name: why for node, why in verdicts.items()}
        return {}

    def ranges(self, g: Graph, float_graph: Graph, given: CalibrationTable | None,
               observe: Callable[[], CalibrationTable]) -> CalibrationTable | None:
        """The calibration table of a graph with quantizers, None for ranges of the running batch."""
        if self.options.calib == ONLINE:
            log.info("ranges: of the batch that is being run")
            return None
        if given is None:
            return observe()
        given.check(float_graph.digest())
        given.check_bits(self.options.act_bits, {name: way.bits for name, way in asked_ranges(g, self.options).items()})
        given.check_methods(asked_methods(g, self.options.layers))
        return given
