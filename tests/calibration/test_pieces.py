"""Images are run so few at a time that what is watched of them stays small; that changes no bit."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import normal
from networks import Net

from qgraph import Graph, Port
from qgraph.calibration import pieces
from qgraph.calibration.collect import collect
from qgraph.calibration.pieces import bytes_of_an_image, in_pieces, piece_size, regrouped
from qgraph.data.batches import Batch
from qgraph.data.open import open_data


def net() -> Graph:
    n = Net(11, channels=3, size=12)
    return n.done(n.head(n.conv(n.conv(n.x, 8, act="relu"), 4)))


def layers(g: Graph) -> list[Port]:
    return [Port(node) for node in g.toposort() if node.op in ("Convolution", "FullyConnected")]


def test_bytes_are_those_of_the_watched_tensors() -> None:
    g = net()
    feeds = {"data": normal(5, 3, 12, 12)}
    first, second, dense = layers(g)
    assert bytes_of_an_image(g, [first], feeds) == 4 * 8 * 144
    assert bytes_of_an_image(g, [first, second, first], feeds) == 4 * 12 * 144
    assert bytes_of_an_image(g, [dense], {"data": normal(1, 2, 12, 12)}) is None  # the graph refuses such images


@pytest.mark.parametrize(("room", "size"), [(4 * 8 * 144 - 1, 1), (4 * 8 * 144 * 3, 2), (1 << 30, 16)])
def test_a_piece_is_a_power_of_two(room: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", room)
    g = net()
    assert piece_size(g, layers(g)[:1], {"data": normal(2, 3, 12, 12)}) == size


def batches(*counts: int, sizes: tuple[int, ...] = (4,) * 9) -> list[Batch]:
    numbers = iter(range(99))
    found = []
    for count, size in zip(counts, sizes):
        rows = [next(numbers) for _ in range(count)]
        found.append(Batch({"data": np.array(rows, np.float32)[:, None] + np.zeros((1, size), np.float32)}, None,
                           [str(row) for row in rows]))
    return found


@pytest.mark.parametrize(("counts", "sizes", "want"), [
    ((3, 3, 3), (4, 4, 4), [4, 4, 1]), ((9,), (4,), [4, 4, 1]), ((1, 7, 1), (4, 4, 4), [4, 4, 1]),
    ((3, 3, 6), (4, 5, 5), [3, 4, 4, 1]), ((4, 4), (4, 4), [4, 4])])
def test_images_keep_their_order(counts: tuple[int, ...], sizes: tuple[int, ...], want: list[int]) -> None:
    found = list(regrouped(batches(*counts, sizes=sizes), 4))
    assert [len(batch) for batch in found] == want
    ids = [name for batch in found for name in batch.ids]
    assert ids == [str(number) for number in range(sum(counts))]
    assert [int(x) for batch in found for x in batch.feeds["data"][:, 0]] == list(range(sum(counts)))


def test_batches_of_one_and_of_unknown_growth_stay() -> None:
    g, images = net(), normal(6, 3, 12, 12)
    assert [len(b) for b in in_pieces(open_data(images, batch_size=1), g, layers(g))] == [1] * 6
    assert [len(b) for b in in_pieces(open_data(images, batch_size=4), g, layers(g))] == [6]
    g.add("Reshape", [layers(g)[1]], "two", shape="(2, -1)")  # as a network for batches of two has it
    two = Port(g.find("two"))
    g.heads = [two]
    assert [len(b) for b in in_pieces(open_data(images, batch_size=2), g, [two])] == [2, 2, 2]


@pytest.mark.parametrize("method", ["naive", "kl"])
@pytest.mark.parametrize("runtime", [pytest.param("mxnet", marks=pytest.mark.mxnet), "onnxruntime"])
def test_tables_do_not_depend_on_the_batch_size(method: str, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    g, images = net(), normal(21, 3, 12, 12)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 4 * bytes_of_an_image(g, layers(g), {"data": images}))  # type: ignore
    tables = [collect(g, open_data(images, batch_size=size), method, runtime=runtime) for size in (4, 5, 16)]
    assert tables[0].entries == tables[1].entries == tables[2].entries
    assert len(tables[0].entries) > 3
