"""What a target is: the interface between qgraph and the engines that run what it writes.

Adding a target
---------------
A target is one folder and one line.  The folder holds a subclass of `Target` (what the engine can carry, and how its
graph is written) and one of `Model` (what was written, or read back)::

    @dataclass(frozen=True)
    class Listing(Target):
        \"\"\"The frozen graph as text.\"\"\"
        name, help, suffix = "listing", "the frozen graph as text", ".listing"
        spec = Spec(rounding="half-even", weight=QSpec(bits=8, signed=True, narrow=True),
                    act=QSpec(bits=8, signed=None), granularities=("tensor", "channel"), weight_bits=(8,),
                    act_bits=(8,))
        passes = ("insert-fake-quantize", "calibrate", "bake-weights")

        def write(self, g, writing):
            return ListingModel(g)

The line names the class: in `qgraph.targets.registry.TARGETS`, or, in a package of its own, as an entry point of the
group ``qgraph.targets``.  `freeze` then knows it; fields of the class are its options (``--target
"listing{wide=true}"``).  `convert` knows it where it has `Target.convert`; `inspect`, `compare` and `eval` where it has
`Target.reads` and `Target.open`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from qgraph.analysis.difference import Difference
from qgraph.arrays import Array
from qgraph.errors import DataError, OptionError, UnsupportedError
from qgraph.files import Content, written_size
from qgraph.ir.graph import Graph, Node, Port
from qgraph.quant.table import CalibrationTable
from qgraph.targets.spec import Spec

if TYPE_CHECKING:  # reading images is imported where images are read
    from qgraph.data.open import Batch
    from qgraph.data.preprocess import Preprocess

Shapes = Mapping[str, Sequence[int]]
Feeds = Mapping[str, Array]
Facts = dict[str, Any]  # plain data for the report

KEEP_GRAPH, KEEP_CODES, KEEP_RANGES = "graph", "codes", "ranges"
"""What a target keeps of a network that was trained quantized: its graph as it is, the codes of weights and the ranges
of activations, or the ranges alone (weights are rounded again)."""


class Executor(Protocol):
    """What runs a model, whichever engine it is."""

    @property
    def inputs(self) -> Sequence[str]: ...

    def run(self, feeds: Feeds) -> list[Array]:
        """The values of the outputs, or of what is watched."""

    def stream(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, list[Array]]]:
        """(batch, values) for every batch. The arrays may be used again for the next one: copy what is to be kept."""


class Tensors(ABC):
    """The tensors of a model by the user's names, and how to read the real values that they stand for."""

    no_advice: str = ""
    """Why it cannot be told from this model which layers `freeze` should leave in float, or ""."""

    @abstractmethod
    def comparable(self) -> list[str]:
        """Layers, sums, concatenations and poolings, in order."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""

    @abstractmethod
    def watch(self, names: Sequence[str]) -> list[Hashable]:
        """What an executor must return: the outputs, then what `reals` reads."""

    @abstractmethod
    def reals(self, names: Sequence[str], values: Sequence[Array]) -> Iterator[Array]:
        """The real values of each, made as they are asked for. values: those of `watch` without the outputs."""

    @abstractmethod
    def op(self, name: str) -> str:
        """The op that writes the tensor."""

    def common(self, other: Tensors) -> list[str]:
        """Names that both models have, in this one's order."""
        return [name for name in self.comparable() if other.has(name)]

    def rows(self, differences: Mapping[str, Difference]) -> list[dict[str, Any]]:
        """One row per tensor; the noise that a layer adds is known only where there is a graph of ours."""
        return [{"name": name, "op": self.op(name), "origin": [name], **difference.to_dict(), "added_noise": None}
                for name, difference in differences.items()]


@dataclass
class Description:
    """What `inspect` shows. body: as JSON.  notes: lines on top.  columns, rows: a table.  remarks: lines below it."""

    body: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    remarks: list[str] = field(default_factory=list)


class Model(ABC):
    """A model of an engine in memory: just written, or read back from its files.

    kind: "an ONNX model", for messages.  engine: what runs it.  float_engine: the engine of `qgraph.engines` that alone
    runs it, "" if it does not depend on that choice.  has_kernels: False where the exact reference stands for the
    engine, so that there are no kernels to judge.  least_axes: every tensor of the engine has at least so many.
    """

    kind: ClassVar[str]
    engine: ClassVar[str]
    float_engine: ClassVar[str] = ""
    has_kernels: ClassVar[bool] = True
    least_axes: ClassVar[int] = 0

    @property
    @abstractmethod
    def inputs(self) -> Mapping[str, tuple[int, ...]]:
        """What is fed: name -> shape, 0 for a dimension that may vary, () where nothing is known."""

    @property
    @abstractmethod
    def outputs(self) -> list[str]:
        """Names of the outputs."""

    @property
    @abstractmethod
    def op_counts(self) -> dict[str, int]:
        """Op -> how many, by name."""

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return written_size(self.files(""))

    @property
    def codes(self) -> Mapping[Node, Hashable]:
        """fake_quantize node -> what to watch for its integer codes; {} if the model came from a file."""
        return {}

    centered: bool = False
    """Whether these codes are less their zero points."""

    @property
    def ir(self) -> Graph | None:
        """The graph of MXNet's ops that this model is, for passes to rewrite; None for another engine's model."""
        return None

    @property
    def frozen(self) -> bool:
        """Whether it is quantized."""
        return False

    @property
    def is_float_graph(self) -> bool:
        """Whether any engine for float graphs runs it."""
        return False

    @property
    def arrays(self) -> Mapping[str, Array]:
        """Its parameters by name, for `qgraph diff`; {} where they cannot be told."""
        return {}

    @property
    def heads(self) -> Sequence[Hashable]:
        """What to watch for the outputs."""
        return self.outputs

    @property
    def known_shapes(self) -> dict[str, list[int] | None]:
        """Input name -> shape as the files say it; None where they say nothing."""
        return {name: list(shape) if shape else None for name, shape in self.inputs.items()}

    @abstractmethod
    def files(self, prefix: str) -> dict[str, Content]:
        """Path -> content."""

    @abstractmethod
    def executor(self, watch: Sequence[Hashable] | None = None, *, precise: bool = False) -> Executor:
        """What runs it. watch: what to return instead of the outputs.  precise: floats of 32 bits throughout.

        Raises MissingDependencyError where the engine is not installed.
        """

    def executor_on(self, engine: str, watch: Sequence[Hashable] | None = None) -> Executor:
        """What runs it on an engine that the user asked for by name, where `refuse_engine` lets it."""
        return self.executor(watch)

    def tensors(self) -> Tensors:
        """For `compare`."""
        raise UnsupportedError(f"{self.kind} cannot be compared layer by layer")

    def describe(self, shapes: Shapes | None = None) -> Description:
        """For `inspect`. shapes: of inputs, where the model does not say them."""
        return Description({"frozen": self.frozen, "inputs": self.known_shapes, "outputs": dict.fromkeys(self.outputs),
                            "ops": self.op_counts, "params": counted([]), "layers": []})

    def logits(self, g: Graph) -> list[Hashable | None]:
        """For each output the tensor in front of its softmax, to be watched; None without one, or if it is fused away.

        g: the graph that `self` was written from, with the same outputs.
        """
        return [None] * len(self.outputs)

    def operator_seconds(self, feeds: Feeds, runs: int) -> Mapping[str, float]:
        """Node of the graph that it was written from -> seconds of a forward pass that its operators take.

        The median of so many runs; {} where the engine does not tell.
        """
        return {}

    def absent(self) -> str:
        """Why the engine does not run here, and what to do; "" if it does."""
        return ""

    def refuse_engine(self, name: str) -> None:
        """Raise OptionError if the user asked for an engine, by name, that cannot run this model."""

    def module(self, shapes: Mapping[str, Sequence[int]] | Sequence[int]) -> Any:
        """A bound `mx.mod.Module`, of a model that is frozen for MXNet. Raises OptionError for others."""
        raise OptionError(f"module: this model is not frozen for MXNet; {self.engine} runs it")


def model_of(value: object) -> Model | None:
    """Return the value if it is a model, else its attribute ``model`` if that is one, else None."""
    found = getattr(value, "model", value)
    return found if isinstance(found, Model) else None


def check_feeds(inputs: Sequence[str], feeds: Feeds) -> None:
    """Raise DataError, which names the inputs that are not fed."""
    missing = [name for name in inputs if name not in feeds]
    if missing:
        raise DataError(f"the model wants input {', '.join(missing)}; found {', '.join(feeds)}")


def unknown_shape(node: Node, port: Port) -> UnsupportedError:
    """The error of a converter that needs the shape of what `node` reads or writes."""
    return UnsupportedError(f"{node}: its conversion needs the shape of {port.key}, which is not known; "
                            "--input-shape data:1,3,224,224 (with the right numbers) may tell it")


def counted(arrays: Sequence[Array]) -> dict[str, int]:
    """How many arrays, numbers and bytes: what `inspect` says of parameters."""
    return {"arrays": len(arrays), "numbers": sum(a.size for a in arrays), "bytes": sum(a.nbytes for a in arrays)}


@dataclass(frozen=True)
class Writing:
    """What only a run knows, for a target that writes. shapes: of the inputs, with any batch size.  table: the ranges.
    preprocess: what made the images.  feeds: some of them.
    """

    shapes: Shapes = field(default_factory=dict)
    table: CalibrationTable | None = None
    preprocess: Preprocess | None = None
    feeds: Feeds | None = None


@dataclass(frozen=True)
class Target(ABC):
    """A kind of frozen model. Subclasses are frozen dataclasses whose fields are options.

    suffix: the ending of the file that a model is called by.  extra: the extra of qgraph that installs the engine.
    passes: names of the quantizing passes, in order.
    trained: what is kept of a network that was trained quantized, see `KEEP_GRAPH`.
    float_inputs: its quantized layers may read floats.  all_integers: none of its layers can be left in float.
    quantizes_between: it adds and activates codes, so that operands of sums and activations are quantized too.
    rewrites: `convert` writes other ops than MXNet's, which are compared with the original.
    float_passes: the line of `qgraph.passes.PIPELINES` that `convert` runs.
    keeps_simulation: it carries the float ops that simulate a quantization (mxnet-sim).
    reads: what `open` reads, such as "an .onnx model", "" if it reads nothing.  holds: where its parameters are.
    open_sizes: its files may leave sizes of inputs open (0 in a shape).
    beside: suffixes of further files that `open` needs.
    companions: suffix of a file that is written beside a model -> what it is.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    suffix: ClassVar[str]
    extra: ClassVar[str] = ""
    spec: ClassVar[Spec]
    passes: ClassVar[tuple[str, ...]]
    float_inputs: ClassVar[bool] = True
    all_integers: ClassVar[bool] = False
    quantizes_between: ClassVar[bool] = False
    rewrites: ClassVar[bool] = True
    float_passes: ClassVar[str] = "float"
    keeps_simulation: ClassVar[bool] = False
    open_sizes: ClassVar[bool] = False
    reads: ClassVar[str] = ""
    holds: ClassVar[str] = "inside"
    beside: ClassVar[tuple[str, ...]] = ()
    companions: ClassVar[Mapping[str, str]] = {}

    @property
    def trained(self) -> str:
        return KEEP_RANGES

    @property
    def parts_shortcuts(self) -> bool:
        """Whether a tensor that training quantized for some readers only gets a range of its own for them."""
        return False

    def __str__(self) -> str:
        """As on the command line: ``onnx{isa=avx2}``."""
        given = [f"{f.name}={getattr(self, f.name)}" for f in dataclasses.fields(self)
                 if getattr(self, f.name) != f.default]
        return self.name + (f"{{{' '.join(given)}}}" if given else "")

    def check_network(self, trained: bool) -> None:
        """Raise OptionError for an option that does not go with such a network."""

    def bits(self, weight: int, act: int) -> tuple[int, int]:
        """Bits of weights and activations, of those that were asked for. Raises OptionError for a contradiction."""
        return weight, act

    def refuse(self, g: Graph, layer: Node) -> str:
        """Why this layer stays in float, "" if it need not."""
        return ""

    def doubts(self, g: Graph) -> dict[Node, str]:
        """Layer that it does not refuse -> why it stays in float where its input is found to be signed."""
        return {}

    def check_integer(self, g: Graph, node: Node) -> None:
        """Raise UnsupportedError for a node that a model without floats cannot have."""

    def refused(self, g: Graph, shapes: Shapes, *, integer: bool) -> Mapping[Node, str]:
        """Node -> why `write` (integer) or `convert` cannot carry it: asked of the float graph, before any long work.

        What depends on such a node need not be told.  shapes: of the inputs, with any batch size.
        """
        return {}

    def pass_options(self) -> dict[str, dict[str, Any]]:
        """Pass -> options that follow from this target's own."""
        return {}

    def ops(self) -> Mapping[str, str]:
        """Op -> how `convert` and `write` carry it, in a word or two; {} where all of MXNet's ops are."""
        return {}

    @abstractmethod
    def write(self, g: Graph, writing: Writing) -> Model:
        """The model of a graph with fake_quantize nodes."""

    def convert(self, g: Graph, shapes: Shapes) -> Model:
        """The model of a float graph. Raises UnsupportedError."""
        raise UnsupportedError(f"target {self.name} has no float models; qgraph freeze --target {self.name} writes one")

    def open(self, path: str) -> Model:
        """Read a model. Raises FormatError for bad files."""
        raise OptionError(f"{path}: target {self.name} only writes such files")

    def check(self, model: Model, g: Graph, writing: Writing) -> dict[str, Facts]:
        """Facts for the report, under names of the target's own. Raises QGraphError where a written file is wrong."""
        return {}

    def summary(self, report: Mapping[str, Any]) -> list[str]:
        """Its own lines of what `qgraph freeze` prints, from the report."""
        return []
