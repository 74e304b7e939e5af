"""Texts: which outputs are some, greedy decoding, and error rates against a second implementation."""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby

import numpy as np
import pytest
from networks import Net

from qgraph.commands.judge import Judge
from qgraph.data.open import Batch
from qgraph.errors import DataError, OptionError
from qgraph.ir.graph import Graph
from qgraph.passes.canonicalize import Canonicalize
from qgraph.semantics.interpreter import run
from qgraph.tasks.base import Head, Tally
from qgraph.tasks.registry import assign, heads_of
from qgraph.tasks.text import Text, edit_distance, read

STEPS, CLASSES = 12, 7


def scores(best: np.ndarray, classes: int = CLASSES, seed: int = 0) -> np.ndarray:
    """(steps, images, classes) out of classes (images, steps): the best ones are well ahead."""
    noise = np.random.default_rng(seed).uniform(0, 1, (*best.T.shape, classes))
    return (noise + 2 * (best.T[..., None] == np.arange(classes))).astype(np.float32)


def task(images: int = 3, steps: int = STEPS, classes: int = CLASSES) -> Text:
    return Text([Head("out", (steps, images, classes), images)])


def ids(count: int) -> list[str]:
    return [f"lines[{number}]" for number in range(count)]


def written(rng: np.random.Generator, images: int, blank: int, steps: int = STEPS, classes: int = CLASSES,
            ) -> np.ndarray:
    """(images, steps): mostly blanks, letters in runs."""
    best = rng.integers(0, classes, (images, steps))
    best = np.where(rng.random((images, steps)) < 0.3, np.roll(best, 1, 1), best)
    return np.where(rng.random((images, steps)) < 0.45, blank, best)


# ------------------------------------------------------------------------------------------ a second implementation


def plain_read(best: np.ndarray, blank: int) -> list[list[int]]:
    return [[letter for letter, _ in groupby(row.tolist()) if letter != blank] for row in best]


def plain_distance(a: list[int], b: list[int]) -> int:
    @lru_cache(None)
    def away(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(away(i - 1, j) + 1, away(i, j - 1) + 1, away(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return away(len(a), len(b))


def test_edit_distance() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        a, b = (rng.integers(0, 4, rng.integers(0, 9)) for _ in range(2))
        assert edit_distance(a, b) == plain_distance(a.tolist(), b.tolist())
    kitten, sitting = (np.frombuffer(word, np.uint8) for word in (b"kitten", b"sitting"))
    assert edit_distance(kitten, sitting) == edit_distance(sitting, kitten) == 3


def test_reading() -> None:
    best = np.array([[0, 1, 1, 0, 1, 2, 2, 0], [0, 0, 0, 0, 0, 0, 0, 0], [3, 3, 3, 3, 3, 3, 3, 0]])
    assert [text.tolist() for text in read(best, 0)] == [[1, 1, 2], [], [3]]
    assert [text.tolist() for text in read(best, 3)] == [[0, 1, 0, 1, 2, 0], [0], [0]]
    rng = np.random.default_rng(2)
    best = rng.integers(0, 4, (200, 15))
    assert [text.tolist() for text in read(best, 2)] == plain_read(best, 2)


def plain_agreement(a: np.ndarray, b: np.ndarray, blank: int) -> dict[str, float]:
    texts = list(zip(plain_read(a, blank), plain_read(b, blank)))
    lengths = [max(1, len(want)) for want, _ in texts]
    kept = [max(0.0, length * (1 - plain_distance(*pair) / length)) for length, pair in zip(lengths, texts)]
    return {"characters": 100 * sum(kept) / sum(lengths), "lines": 100 * float(np.mean([x == y for x, y in texts]))}


@pytest.mark.parametrize("blank", [0, CLASSES - 1])
def test_agreement_is_that_of_a_second_implementation(blank: int) -> None:
    rng = np.random.default_rng(blank)
    a = written(rng, 40, blank)
    b = np.where(rng.random(a.shape) < 0.06, rng.integers(0, CLASSES, a.shape), a)
    found = task(40).agreement([scores(a)], [scores(b, seed=1)], 0).result()
    assert found == pytest.approx(plain_agreement(a, b, blank), abs=1e-9)
    assert 50 < found["characters"] < 100 and 10 < found["lines"] < 90
    same = task(40).agreement([scores(a)], [scores(a, seed=3)], 0).result()
    assert same == {"characters": 100.0, "lines": 100.0}


@pytest.mark.parametrize("blank", [0, CLASSES - 1])
def test_scores_are_those_of_a_second_implementation(blank: int) -> None:
    rng = np.random.default_rng(10 + blank)
    best = written(rng, 40, blank)
    truth = [[letter if rng.random() > 0.1 else 3 for letter in text] for text in plain_read(best, blank)]
    labels = np.full((40, STEPS), 0 if blank == 0 else -1, np.float32)
    for row, text in zip(labels, truth):
        row[:len(text)] = text
    found = task(40).score([scores(best)], labels, ids(40), 0).result()
    away = [plain_distance(a, b) for a, b in zip(truth, plain_read(best, blank))]
    assert found == pytest.approx({"cer": 100 * sum(away) / sum(map(len, truth)), "lines": 100 * away.count(0) / 40})
    assert 2 < found["cer"] < 40
    ragged = [np.array(text, np.int64) for text in truth]
    assert task(40).score([scores(best)], ragged, ids(40), 0).result() == found


def test_a_text_that_is_wholly_wrong_counts_as_nothing() -> None:
    a = np.array([[0, 1, 0, 0, 0, 0], [0, 1, 2, 3, 4, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    b = np.array([[2, 3, 4, 2, 3, 4], [0, 1, 2, 3, 4, 0], [0, 0, 0, 0, 0, 0], [0, 0, 5, 0, 0, 0]])
    found = task(4, 6).agreement([scores(a)], [scores(b)], 0).result()
    assert found == pytest.approx({"characters": 100 * (0 + 4 + 1 + 0) / (1 + 4 + 1 + 1), "lines": 50.0})
    empty = task(1, 6).score([scores(a[2:3])], np.array([[-1, -1]]), ids(1), 0).result()
    assert empty == {"cer": None, "lines": 100.0}


def test_the_layouts_say_the_same() -> None:
    rng = np.random.default_rng(4)
    a, b = scores(written(rng, 3, 0)), scores(written(rng, 3, 0), seed=1)
    labels = rng.integers(1, CLASSES, (3, 4))
    want = task().agreement([a], [b], 0).result(), task().score([a], labels, ids(3), 0).result()
    for shape, order in (((STEPS * 3, CLASSES), (0, 1, 2)), ((3, STEPS, CLASSES), (1, 0, 2))):
        other, (x, y) = Text([Head("out", shape, 3)]), (part.transpose(order).reshape(shape) for part in (a, b))
        assert (other.agreement([x], [y], 0).result(), other.score([x], labels, ids(3), 0).result()) == want
    rows = Text([Head("out", (STEPS * 3, CLASSES), 3)])  # the last batch is smaller
    assert rows.score([a[:, :2].reshape(-1, CLASSES)], labels[:2], ids(2), 0).result() == \
        task().score([a[:, :2]], labels[:2], ids(2), 0).result()


@pytest.mark.parametrize("blank", [0, CLASSES - 1])
def test_any_split_gives_the_same_bits(blank: int) -> None:
    rng = np.random.default_rng(6)
    best = written(rng, 50, blank)
    best[:7] = CLASSES - 1 - blank  # a part alone would take another blank
    a, b, labels = scores(best), scores(written(rng, 50, blank), seed=1), rng.integers(-1, CLASSES, (50, 5))
    want = task(50).agreement([a], [b], 0).result(), task(50).score([a], labels, ids(50), 0).result()
    for _ in range(3):
        cuts = [0, 7, *sorted(set(rng.integers(8, 50, 4).tolist())), 50]
        parts = [slice(x, y) for x, y in zip(cuts, cuts[1:])]
        pair: list[Tally] = []
        for part in (parts[i] for i in rng.permutation(len(parts))):
            new = [task().agreement([a[:, part]], [b[:, part]], part.start),
                   task().score([a[:, part]], labels[part], ids(50)[part], part.start)]
            pair = [x + y for x, y in zip(pair, new)] if pair else new
        assert tuple(tally.result() for tally in pair) == want


@pytest.mark.parametrize("labels, message", [
    ([[1, 2], [1, 7]], r"^b: found the class 7 in its text, but the model has 7 classes"),
    ([[1, 2], [-2, 1]], r"^b: found the class -2 in its text"),
    ([[1, 2], [1.5, 1]], r"^b: its label is no text, want a row of class numbers, filled up with -1"),
    ([[1, 2], [np.nan, 1]], r"^b: its label is no text"),
    ([[[1]], [[2]]], r"^a: its label is no text"),
])
def test_wrong_labels(labels: list, message: str) -> None:
    output = scores(np.zeros((2, STEPS), int))
    with pytest.raises(DataError, match=message) as raised:
        task(2).score([output], np.array(labels), ["a", "b"], 0)
    assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match="a: the output out holds 2 texts for 3 images"):
        task(2).score([output], np.zeros((3, 2)), list("abc"), 0)


# ------------------------------------------------------------------------------------------------- which outputs


def ocr(n: Net, end: str) -> Graph:
    """A line of 12 columns: convolution, the columns as steps, a recurrent layer, a dense one."""
    size, width = 8, 6
    x = n.op("Pooling", n.conv(n.x, size), kernel=(12, 1), stride=(1, 1), pool_type="max")
    x = n.op("transpose", n.op("squeeze", x, axis=2), axes=(2, 0, 1))
    count = width * (size + width + 2)
    x = n.g.add("RNN", [x, n.param("rnn_parameters", count), n.param("rnn_state", 1, 3, width)], "rnn", mode="rnn_tanh",
                state_size=width, num_layers=1)
    n.channels[x] = width
    weight, bias = n.param("fc_weight", CLASSES, width), n.param("fc_bias", CLASSES)
    x = n.op("FullyConnected", x, weight, bias, num_hidden=CLASSES, flatten=False)
    if end == "steps":
        return n.done(x)
    if end == "images":
        return n.done(n.op("transpose", x, axes=(1, 0, 2)))
    rows = n.op("Reshape", x, shape=(-1, CLASSES))
    return n.done(rows if end == "rows" else n.op("softmax", rows))


@pytest.mark.parametrize("end", ["steps", "rows", "images", "softmax"])
def test_a_network_that_reads_lines(end: str) -> None:
    g = ocr(Net(1), end)
    Canonicalize().run(g)
    feeds = {"data": np.random.default_rng(0).normal(size=(3, 3, 12, 12)).astype(np.float32)}
    output = np.asarray(run(g, feeds)[0])
    (found,) = assign(heads_of(["out"], [output], 3, g, feeds))
    assert found.task.name == "text" and 0.9 < found.sure < 1
    judge = Judge(["out"], g)
    judge.add(Batch(feeds, np.full((3, 4), -1), ids(3)), [output], [output])
    (row,) = judge.agreement()["tasks"]
    assert (row["characters"], row["lines"], row["ruined"]) == (100.0, 100.0, False)
    assert judge.scores()["cer"] is None or judge.scores()["lines"] < 100


def test_rows_without_a_recurrent_layer_are_classes() -> None:
    head = Head("out", (36, 7), 3, ("softmax", "FullyConnected", "Convolution"))
    assert Text.claims([head]) == [] and assign([head])[0].task.name == "classification"
    for shape, images in (((3, 7), 3), ((35, 7), 3), ((36,), 3), ((4, 5, 7), 3), ((4, 3, 7, 1), 3), ((36, 1), 3)):
        assert Text.claims([Head("out", shape, images, ("RNN",))]) == [], shape
    (claim,) = Text.claims([Head("out", (36, 7), 3, ("softmax", "WarpCTC"))])
    assert claim.sure > 0.9


def test_other_shapes_are_refused() -> None:
    with pytest.raises(OptionError, match=r"--task text: the output out has the shape \(3, 7\) for 3 images, want"):
        assign([Head("out", (3, 7), 3)], ["text"])


def test_an_unrolled_cell() -> None:
    """`mx.rnn.LSTMCell.unroll`, its steps joined along axis 0."""
    behind = ("softmax", "FullyConnected", "Concat", "elemwise_mul", "Activation", "SliceChannel", "elemwise_add")
    assert assign([Head("out", (10, 7), 2, behind)])[0].task.name == "text"
    assert assign([Head("out", (2, 7), 2, behind)])[0].task.name == "classification"
    assert Text.claims([Head("out", (2, 10, 7), 2, behind)]) == []
