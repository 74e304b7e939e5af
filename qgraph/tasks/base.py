"""What a task is: the meaning of some of a model's outputs, and how these are judged.

Adding a task
-------------
A task is one file and one line.  The file holds a subclass of `Task`::

    class Depth(Task):
        name, help = "depth", "a distance per pixel"
        metrics = {"near": Metric("%", "pixels within 5 % of the float model's distance")}
        main, ruined = "near", 80.0

        @classmethod
        def claims(cls, heads):
            return [Claim((i,), 0.4) for i, head in enumerate(heads) if head.rank == 4 and head.shape[1] == 1]

        def agreement(self, want, found, first):
            near = np.abs(found[0] - want[0]) < 0.05 * want[0]
            return Ratios({"near": (100 * total(near.mean(axis=(1, 2, 3))), len(near))})

The line names the class: in `qgraph.tasks.registry.TASKS`, or, in a package of its own, as an entry point of the group
``qgraph.tasks``.  ``freeze``, ``eval``, ``compare`` and ``simulate`` then know it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar, NamedTuple, Union

from qgraph.arrays import Array
from qgraph.errors import DataError

SOFTMAX = ("softmax", "log_softmax", "SoftmaxOutput", "SoftmaxActivation")  # ops that make shares of scores

Outputs = Sequence[Array]  # of one batch: those that the task reads, in their order
Labels = Union[Array, Sequence[Array]]  # of one batch: an array, or one of its own for each image
Exact = Union[int, Fraction]
Result = dict[str, Union[float, None]]  # metric -> value


@dataclass(frozen=True)
class Head:
    """One output of a model, as tasks see it.

    shape: of its value for so many `images`.  behind: the ops that it comes out of, nearest first; () where the model
    is no graph of MXNet's ops.  like: the shapes of the model's inputs.
    """

    name: str
    shape: tuple[int, ...]
    images: int
    behind: tuple[str, ...] = ()
    like: tuple[tuple[int, ...], ...] = ()

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the first input that can be images."""
        return next(((shape[2], shape[3]) for shape in self.like if len(shape) == 4), None)


class Claim(NamedTuple):
    """That these outputs (numbers) are of a task. sure: 0 no .. 1 surely."""

    outputs: tuple[int, ...]
    sure: float


class Metric(NamedTuple):
    """unit: "%", "dB" or "".  help: what is counted.  up: whether more is better.  title: for people, else the name."""

    unit: str
    help: str
    up: bool = True
    title: str = ""


@dataclass(frozen=True)
class Marks:
    """What a model finds in one image, to be drawn on it. Coordinates are parts of its width (x) and height (y).

    boxes: (n, 4) x0, y0, x1, y1, of the `classes` (n,).  points: (n, 2) x, y.  pixels: (height, width), the class of
    each; any size.
    """

    boxes: Array | None = None
    classes: tuple[int, ...] = ()
    points: Array | None = None
    pixels: Array | None = None


class Tally(ABC):
    """What was counted over some images. It adds up exactly: any split over batches or workers gives the same bits."""

    @abstractmethod
    def __add__(self, other: Tally) -> Tally: ...

    @abstractmethod
    def result(self) -> Result:
        """Metric -> value; None where nothing was counted."""


@dataclass(frozen=True)
class Ratios(Tally):
    """Means and shares, and least values. sums: metric -> (sum, what it is divided by), both exact.

    least: metric -> the least value so far.
    """

    sums: Mapping[str, tuple[Exact, Exact]]
    least: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Tally) -> Ratios:
        assert isinstance(other, Ratios)
        sums = {name: (a + other.sums[name][0], n + other.sums[name][1]) for name, (a, n) in self.sums.items()}
        return Ratios(sums, {name: min(value, other.least[name]) for name, value in self.least.items()})

    def result(self) -> Result:
        shares = {name: float(Fraction(a) / Fraction(n)) if n else None for name, (a, n) in self.sums.items()}
        return {**shares, **self.least}


class Task(ABC):
    """The meaning of some outputs. heads: those outputs.

    name: the word of ``--task``.  metrics: those of `agreement` and of `score`, by name.  main: the metric of the
    agreement by which a frozen model is judged, and `ruined`: the value below which it is of no use.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    metrics: ClassVar[Mapping[str, Metric]]
    main: ClassVar[str]
    ruined: ClassVar[float]
    best: ClassVar[float] = 100.0
    labels: ClassVar[str] = ""  # what `score` wants, for messages; "" if there is none

    def __init__(self, heads: Sequence[Head]) -> None:
        self.heads = tuple(heads)

    @classmethod
    @abstractmethod
    def claims(cls, heads: Sequence[Head]) -> list[Claim]:
        """The outputs that look as if they were of this task."""

    @abstractmethod
    def agreement(self, want: Outputs, found: Outputs, first: int) -> Tally:
        """Two models' outputs of one batch; `want` is the truth. first: the number of its first image."""

    def score(self, found: Outputs, labels: Labels, where: Sequence[str], first: int) -> Tally:
        """A model's outputs of one batch against labels. where: names of the images.

        Raises DataError for labels that are not of this task, naming the image.
        """
        raise DataError(f"{where[0]}: has a label, but {self.name} knows no labels; --task chooses another")

    def answers(self, found: Outputs, images: int) -> list[str]:
        """What a model says of each image of a batch, in a word or two; [] where there are no words for it."""
        return []

    def marks(self, found: Outputs, number: int) -> Marks | None:
        """What a model finds in this image of a batch; None where there is nothing to draw."""
        return None

    def standing(self, value: float | None) -> float:
        """0 where the model is ruined, 1 where it could not be better. value: of the main metric; None is the best."""
        return 1.0 if value is None else (value - self.ruined) / (self.best - self.ruined)
