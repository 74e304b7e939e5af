"""Data that travel to workers: whole or in pieces, read again there or sent."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hostile import pack_records
from PIL import Image

from qgraph.data.open import Batch, Data, Preprocess, open_data
from qgraph.data.pieces import Piece, Pieces, over_pieces
from qgraph.errors import DataError
from qgraph.workers import Here

SIZE = Preprocess(resize=6, crop=6)


class _Apart(Here):
    """Workers whose items travel, in this process; they see the files, or not."""

    apart = True

    def __init__(self, seeing: bool) -> None:
        self.seeing = seeing

    def map(self, run, items, what):
        return (pickle.loads(pickle.dumps(run))(pickle.loads(pickle.dumps(item))) for item in items)

    def see(self, paths: Sequence[Path]) -> bool:
        assert all(path.is_absolute() for path in paths)
        return self.seeing


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with images/, labels.csv, val.rec and some.npz, each of 21 items."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for number in range(21):
        Image.fromarray(pixels(number)).save(f"images/{number:02}.png")
    Path("labels.csv").write_text("".join(f"{number:02}.png,{number % 4}\n" for number in range(21)))
    Path("val.rec").write_bytes(pack_records([struct.pack("<IfQQ", 0, number, number, 0)
                                              + Path(f"images/{number:02}.png").read_bytes() for number in range(21)]))
    np.savez("some.npz", data=np.stack([pixels(number) for number in range(21)]), label=np.arange(21))
    return tmp_path


def opened(source: str, **options: object) -> Data:
    return open_data(source, SIZE, batch_size=5, **options)  # type: ignore[arg-type]


def alike(one: Iterable[Batch], other: Iterable[Batch]) -> bool:
    """Whether batches are the same, bit for bit."""
    one, other = list(one), list(other)
    return len(one) == len(other) > 0 and all(
        a.ids == b.ids and a.feeds.keys() == b.feeds.keys() and np.array_equal(a.labels, b.labels)
        and all(np.array_equal(a.feeds[name], b.feeds[name]) for name in a.feeds) for a, b in zip(one, other))


def echo(shared: Data | None, told, piece: Piece) -> tuple[int, list[Batch]]:
    batches = list(piece.of(shared))
    for batch in batches:
        told(len(batch))
    return piece.first, batches


SOURCES = [("images", {}), ("images", {"labels": "labels.csv"}), ("some.npz", {}), ("val.rec", {})]


@pytest.mark.parametrize("seeing", [True, False])
@pytest.mark.parametrize(("source", "options"), SOURCES)
@pytest.mark.usefixtures("here")
def test_pieces_are_the_batches_of_the_data(source: str, options: dict[str, str], seeing: bool,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    data = opened(source, skip="3:5", select=":20", **options)
    told: list[tuple[str, int, int | None]] = []
    pieces = Pieces(data, _Apart(seeing))
    want = list(data)
    assert (pieces.shared is data) is seeing
    if seeing:
        monkeypatch.chdir(os.sep)  # workers are elsewhere; the images are called as before
    found = list(over_pieces(partial(echo, pieces.shared), pieces, "echoing", lambda *what: told.append(what)))
    assert [first for first, _ in found] == [0]  # 18 images in batches of 5: one piece of four batches
    assert alike(want, [batch for _, batches in found for batch in batches])
    assert told == [("echoing", 18, 18)]


def test_places_depend_on_the_batch_size_alone(here: Path) -> None:
    def places(batch_size: int, seeing: bool) -> list[tuple[int, int]]:
        pieces = Pieces(open_data("some.npz", SIZE, batch_size=batch_size), _Apart(seeing))
        return [(piece.first, sum(map(len, piece.of(pieces.shared)))) for piece in pieces]

    for seeing in (True, False):
        assert places(1, seeing) == places(4, seeing) == places(16, seeing) == [(0, 16), (16, 5)]
        assert places(6, seeing) == [(0, 18), (18, 3)]
        assert places(20, seeing) == [(0, 20), (20, 1)]


def test_here_all_data_are_one_piece(here: Path) -> None:
    data = opened("some.npz")
    pieces = Pieces(data, Here())
    assert list(pieces) == [pieces.whole()] == [Piece()] and Piece().of(pieces.shared) is data


def test_the_whole_is_sent_where_it_is_not_seen(here: Path) -> None:
    data = opened("some.npz")
    assert Pieces(data, _Apart(True)).whole() == Piece()
    pieces = Pieces(data, _Apart(False))
    assert alike(pickle.loads(pickle.dumps(pieces.whole())).of(pieces.shared), data)


def stream() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for count in (3, 4, 12, 1):
        yield np.full((count, 2), count, np.float32), np.arange(count)


def test_streams_and_arrays_are_sent() -> None:
    for source in (stream(), {"data": np.eye(20, dtype=np.float32)}):
        data = open_data(source, batch_size=5)
        pieces = Pieces(data, _Apart(True))
        assert pieces.shared is None
        sent = [batch for piece in pieces for batch in piece.of(None)]
        assert alike(sent, data)


def test_travelled_data_read_the_files_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pickle.dumps(opened("images", labels="labels.csv").part(2, 9))
    assert len(packed) < 2000  # no pixels, no list of files
    want = list(opened("images", labels="labels.csv", select="2:9"))
    monkeypatch.chdir(os.sep)
    assert alike(pickle.loads(packed), want)
    (here / "labels.csv").unlink()
    with pytest.raises(DataError, match="labels.csv"):
        pickle.loads(packed)


def test_a_part_is_of_numbered_items() -> None:
    with pytest.raises(DataError, match="is a stream, which has no numbered items"):
        open_data(stream()).part(0, 1)
