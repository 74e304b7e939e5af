"""Pairs of images: text files, and InsightFace's pickles, which are read without being unpickled."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import random
import struct
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qgraph.data.open import open_data
from qgraph.data.pairs import read_bin, read_pairs
from qgraph.errors import DataError


def jpeg(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (14, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


IMAGES, SAME = [jpeg(seed) for seed in range(6)], [True, False, True]


def write(folder: Path, content: bytes) -> Path:
    path = folder / "lfw.bin"
    path.write_bytes(content)
    return path


def python2(images: list[bytes], same: list[bool]) -> bytes:
    """What Python 2's cPickle writes with protocol 2: strings of bytes, with a memo of everything."""
    out, memo = [b"\x80\x02]q\x01("], iter(range(2, 200))
    for image in images:
        length = (b"U" + bytes([len(image)])) if len(image) < 256 else b"T" + struct.pack("<i", len(image))
        out.append(length + image + b"q" + bytes([next(memo)]))
    flags = b"".join(b"\x88" if flag else b"\x89" for flag in same)
    return b"".join([*out, b"e]q", bytes([next(memo)]), b"(", flags, b"e\x86q", bytes([next(memo)]), b"."])


# ------------------------------------------------------------------------------------------------- sound files


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(tmp_path: Path, protocol: int, kind: type) -> None:
    assert read_bin(write(tmp_path, pickle.dumps(kind((IMAGES, SAME)), protocol))) == (IMAGES, SAME)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_arrays_of_opencv(tmp_path: Path, protocol: int, shape: tuple[int, ...]) -> None:
    arrays = [np.frombuffer(bytearray(image), np.uint8).reshape(shape) for image in IMAGES]
    assert read_bin(write(tmp_path, pickle.dumps((arrays, SAME), protocol))) == (IMAGES, SAME)


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])  # of NumPy 1 and 2
def test_arrays_of_other_numpys(tmp_path: Path, module: str) -> None:
    arrays = [np.frombuffer(bytearray(image), np.uint8) for image in IMAGES]
    here = np.asarray(0).__reduce__()[0].__module__.rpartition(".")[0].encode()
    content = pickle.dumps((arrays, SAME), 2).replace(here, module.encode())
    assert module.encode() in content
    assert read_bin(write(tmp_path, content)).images == IMAGES


def test_python_2(tmp_path: Path) -> None:
    images = [*IMAGES[:4], b"short", IMAGES[5]]
    content = python2(images, SAME)
    assert pickle.loads(content, encoding="bytes") == (images, SAME)
    assert {"BINSTRING", "SHORT_BINSTRING"} <= {op.name for op, _, _ in pickletools.genops(content)}
    assert read_bin(write(tmp_path, content)) == (images, SAME)


def test_images_that_occur_twice(tmp_path: Path) -> None:
    images = [IMAGES[0], IMAGES[1], IMAGES[0], IMAGES[2]]
    for protocol in (0, 2, 4):
        assert read_bin(write(tmp_path, pickle.dumps((images, SAME[:2]), protocol))).images == images


def test_bin_as_data(tmp_path: Path) -> None:
    data = open_data(write(tmp_path, pickle.dumps((IMAGES, SAME), 4)), batch_size=4)
    batches = list(data)
    assert [len(batch) for batch in batches] == [4, 2]
    assert [name for batch in batches for name in batch.ids] == [f"lfw.bin[{i}]" for i in range(6)]
    want = np.asarray(Image.open(io.BytesIO(IMAGES[3])), np.float32).transpose(2, 0, 1)
    np.testing.assert_array_equal(batches[0].feeds["data"][3], want)
    labels = [[0, 1], [0, 1], [1, 0], [1, 0], [2, 1], [2, 1]]
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in batches]), labels)
    np.testing.assert_array_equal(data.labels(), labels)


def test_bin_that_is_no_image_names_the_item(tmp_path: Path) -> None:
    path = write(tmp_path, pickle.dumps(([*IMAGES[:3], b"no image"], SAME[:2])))
    with pytest.raises(DataError, match=r"^lfw.bin\[3\]: cannot be decoded"):
        list(open_data(path))


# ------------------------------------------------------------------------------------------------- others


class Reduced:
    """Pickles as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


def refuses(folder: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        read_bin(write(folder, content))
    assert "\n" not in str(raised.value) and "lfw.bin" in str(raised.value) and len(str(raised.value)) < 500


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_hostile_pickles_run_nothing(tmp_path: Path, protocol: int) -> None:
    made = tmp_path / "made"
    for call in ((os.system, (f"touch {made}",)), (subprocess.call, (["touch", str(made)],)),
                 (eval, (f"open({str(made)!r}, 'w')",)), (os.mkdir, (str(made),))):
        content = pickle.dumps(([Reduced(*call), b""], [True]), protocol)
        refuses(tmp_path, content, r"asks for \w+\.\w+, which is refused")
        assert not made.exists()
        pickle.loads(content)
        assert made.exists()  # it would have
        made.rmdir() if made.is_dir() else made.unlink()


def test_other_objects(tmp_path: Path) -> None:
    wanted = "want .*list of encoded images, list of booleans"
    for value, message in (
        ([1, 2, 3], f"holds a list, {wanted}"),
        (IMAGES, f"holds a list, {wanted}"),
        (b"x", f"holds a bytes, {wanted}"),
        (("ab", "cd"), f"holds a tuple, {wanted}"),
        (([*IMAGES[:5], "text"], SAME), f"image 5 is not bytes, {wanted}"),
        (([*IMAGES[:5], None], SAME), f"image 5 is not bytes, {wanted}"),
        ((IMAGES, [True, 2, True]), f"the flag of pair 1 is not a boolean, {wanted}"),
        ((IMAGES, SAME[:2]), "holds 6 images and 2 flags, want two images for each flag"),
        (([], []), "holds 0 images and 0 flags"),
        ({"a": 1}, "holds EMPTY_DICT"),
        (({1}, SAME), "holds EMPTY_SET"),
        ((IMAGES, [1.5] * 3), "holds BINFLOAT"),
        (([np.zeros(3, np.float32)] * 6, SAME), "with other than bytes"),
        (([np.array(b"xyz")] * 6, SAME), "with other than bytes"),
    ):
        refuses(tmp_path, pickle.dumps(value, 4), message)


def test_calls_of_what_is_known_with_something_else(tmp_path: Path) -> None:
    import _codecs

    refuses(tmp_path, pickle.dumps(([Reduced(_codecs.encode, ("00", "hex"))], SAME), 2), "with other than bytes")
    refuses(tmp_path, pickle.dumps(([Reduced(_codecs.encode, ("\u20ac", "latin1"))], SAME), 2), "damaged")
    refuses(tmp_path, b"\x80\x02c_codecs\nencode\n}b.", "holds EMPTY_DICT")
    refuses(tmp_path, b"\x80\x02c_codecs\nencode\n)b.", "damaged|state")
    refuses(tmp_path, b"\x80\x02]]R.", "calls a list")
    refuses(tmp_path, b"\x80\x02K\x01K\x02a.", "appends to a int")


def test_claims_of_what_is_not_there(tmp_path: Path) -> None:
    huge = {b"B": "<I", b"\x8e": "<Q", b"T": "<i", b"X": "<I", b"\x8d": "<Q", b"\x96": "<Q", b"\x95": "<Q"}
    tracemalloc.start()
    for op, width in huge.items():
        for claim in (1 << 30, (1 << 31) - 1, (1 << 60) if width == "<Q" else 1):
            refuses(tmp_path, b"\x80\x04](" + op + struct.pack(width, claim) + b"x", "damaged|want")
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


@pytest.mark.slow
def test_files_that_grow_when_they_are_read(tmp_path: Path) -> None:
    image = "x" * 100_000
    laughs = pickle.dumps(([Reduced(__import__("_codecs").encode, (image, "latin1")) for _ in range(3000)], SAME), 2)
    assert len(laughs) < 200_000
    refuses(tmp_path, laughs, "makes more bytes than it has")
    refuses(tmp_path, b"(" + b"N" * (1 << 22) + b"l.", "has more than 2097152 opcodes")
    refuses(tmp_path, b"I" + b"9" * 100_000 + b"\n.", "no newline found")  # slow to read as a number


@pytest.mark.slow
def test_truncated_and_garbled_files(tmp_path: Path) -> None:
    rng = random.Random(1)
    for content in (*(pickle.dumps((IMAGES[:2], SAME[:1]), protocol) for protocol in range(5)),
                    python2(IMAGES[:2], SAME[:1]),
                    pickle.dumps(([np.frombuffer(image, np.uint8) for image in IMAGES[:2]], SAME[:1]), 2)):
        for end in sorted({*range(40), *rng.sample(range(len(content)), 40), len(content) - 1}):
            refuses(tmp_path, content[:end], "damaged")
        for _ in range(150):
            garbled = bytearray(content)
            for _ in range(rng.choice((1, 2, 8))):
                garbled[rng.choice((rng.randrange(len(garbled)), rng.randrange(40)))] = rng.randrange(256)
            try:
                images, same = read_bin(write(tmp_path, bytes(garbled)))
            except DataError as error:
                assert "\n" not in str(error)
            else:
                assert len(images) == 2 * len(same)


# ------------------------------------------------------------------------------------------------- text


NAMES = ["/data/lfw/Ann/1.jpg", "/data/lfw/Ann/2.jpg", "/data/lfw/Bob/1.jpg", "/data/lfw/Cy Lee/3.jpg", "val.rec[17]"]


@pytest.mark.parametrize("text, want", [
    ("0 1 1\n0 2 0\n", [[0, 1, 1], [0, 2, 0]]),
    ("# two\n\nAnn/1.jpg Ann/2.jpg 1\nBob/1.jpg 4 0", [[0, 1, 1], [2, 4, 0]]),
    ("left,right,same\nAnn/1.jpg,\"Cy Lee/3.jpg\",0\n3.jpg, val.rec[17] ,1\n", [[0, 3, 0], [3, 4, 1]]),
    ("3.jpg\tCy Lee/3.jpg\t1\n2.jpg\tCy Lee/3.jpg\t0\n", None),
    ("2.jpg\tCy Lee/3.jpg\t0\r\n/data/lfw/Bob/1.jpg\t2.jpg\t0\r\n", [[1, 3, 0], [2, 1, 0]]),
    ("\ufeff0,1,1\n", [[0, 1, 1]]),
])
def test_text(tmp_path: Path, text: str, want: list[list[int]] | None) -> None:
    path = tmp_path / "pairs.txt"
    path.write_bytes(text.encode())
    if want is None:
        with pytest.raises(DataError, match="pairs the image '3.jpg' with itself"):
            read_pairs(path, NAMES)
        return
    found = read_pairs(path, NAMES)
    assert found.dtype == np.int64 and found.tolist() == want


@pytest.mark.parametrize("text, message", [
    ("", "holds no pairs"),
    ("left,right,same\n", "holds no pairs"),
    ("0 1 1\n0 1\n", "line 2: found '0 1', want two images and 0 or 1"),
    ("0 1 -1\n", "line 1: found '0 1 -1'"),
    ("0,1,same\n0,1,same\n", "line 2: found '0 1 same'"),
    ("0 5 1\n", "line 1: found the image number 5, but there are 5 images"),
    ("1.jpg 3.jpg 1\n", "line 1: several images are called '1.jpg'"),
    ("Bob/2.jpg 0 1\n", "line 1: no image is called 'Bob/2.jpg', want a name such as "),
    ("0 1 1\n" + "x" * 20_000, "line 2: has 20000 characters"),
    (b"\xff\xfe0\x00", "is not text .byte 0."),
])
def test_text_of_something_else(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message) as raised:
        read_pairs(path, NAMES)
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)


def test_text_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_pairs(tmp_path / "pairs.txt", NAMES)
