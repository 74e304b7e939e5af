"""Calibration data: what comes out of every kind of source, in which order, and what is said about bad ones."""

from __future__ import annotations

import io
import itertools
import os
import struct
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qgraph.data.open import PRESETS, Preprocess, open_data, parse_slice
from qgraph.data.preprocess import decode
from qgraph.data.recordio import RecordFile, split_image_record
from qgraph.errors import DataError, OptionError, QGraphError

MAGIC = struct.pack("<I", 0xCED7230A)


# ------------------------------------------------------------------------------------------------- what tests need


def pixels(seed: int, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def image_record(image: bytes, *labels: float) -> bytes:
    if len(labels) == 1:
        return struct.pack("<IfQQ", 0, labels[0], 0, 0) + image
    return struct.pack(f"<IfQQ{len(labels)}f", len(labels), 0, 0, 0, *labels) + image


def part(flag: int, content: bytes) -> bytes:
    return MAGIC + struct.pack("<I", flag << 29 | len(content)) + content + bytes(-len(content) % 4)


def write_rec(path: Path, contents: list[bytes]) -> Path:
    path.write_bytes(b"".join(part(0, content) for content in contents))
    return path


@pytest.fixture
def rec(tmp_path: Path) -> Path:
    return write_rec(tmp_path / "val.rec", [image_record(png(pixels(i)), i % 5) for i in range(23)])


def everything(data) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    batches = list(data)
    labels = None if batches[0].labels is None else np.concatenate([b.labels for b in batches])
    return np.concatenate([b.feeds["data"] for b in batches]), labels, [i for b in batches for i in b.ids]


def raises(message: str, kind: type[QGraphError] = DataError):
    return pytest.raises(kind, match=message)


# ------------------------------------------------------------------------------------------------- preprocessing


def by_hand(image: np.ndarray, scale, mean, std, bgr=False) -> np.ndarray:
    x = image[:, :, ::-1] if bgr else image
    return (((x.astype(np.float64) * scale) - mean) / std).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("preset", "arithmetic"),
    [
        ("none", dict(scale=1, mean=0, std=1)),
        ("imagenet", dict(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))),
        ("cifar10", dict(scale=1 / 255, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))),
        ("tf", dict(scale=1, mean=127.5, std=127.5)),
        ("inception", dict(scale=1, mean=127.5, std=127.5)),
        ("caffe", dict(scale=1, mean=(104, 117, 123), std=1, bgr=True)),
    ],
)
def test_presets_are_the_arithmetic_they_name(preset, arithmetic):
    image = pixels(0, 300, 260)
    cropped = image[38:262, 18:242] if preset == "imagenet" else image
    preprocess = Preprocess.from_options(preset, resize=260 if preset == "imagenet" else None)
    got = preprocess(Image.fromarray(image))
    assert got.dtype == np.float32 and got.flags.c_contiguous
    np.testing.assert_allclose(got, by_hand(cropped, **arithmetic), rtol=1e-5, atol=2e-6)


def test_explicit_options_win_over_the_preset():
    p = Preprocess.from_options("imagenet", crop=192, mean="1,2,3", std=None, bgr=True)
    assert (p.resize, p.crop, p.mean, p.std, p.bgr) == (256, 192, (1, 2, 3), PRESETS["imagenet"].std, True)


def test_mean_and_std_are_in_the_order_in_which_channels_are_fed():
    got = Preprocess(bgr=True, mean=(1, 2, 3), scale=2)(Image.new("RGB", (1, 1), (10, 20, 30)))
    assert got.ravel().tolist() == [30 * 2 - 1, 20 * 2 - 2, 10 * 2 - 3]


@pytest.mark.parametrize(("height", "width", "out"), [(100, 200, (50, 100)), (200, 101, (99, 50)), (50, 70, (50, 70))])
def test_resize_sets_the_short_side_and_keeps_the_ratio(height, width, out):
    assert Preprocess(resize=50)(Image.fromarray(pixels(1, height, width))).shape == (3, *out)


def test_crop_is_the_centre():
    image = pixels(2, 13, 20)
    assert np.array_equal(Preprocess(crop=8)(Image.fromarray(image)), image[2:10, 6:14].transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_every_image_mode_becomes_three_channels(mode, tmp_path):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.fromarray(pixels(3)).convert(mode).save(tmp_path / f"a.{suffix}")
    assert everything(open_data(tmp_path))[0].shape == (1, 3, 12, 16)


def test_sixteen_bit_images_keep_their_upper_eight_bits():
    out = io.BytesIO()
    Image.fromarray(np.full((4, 5), 30000, np.uint16)).save(out, "PNG")
    assert np.unique(decode(out, "x", Preprocess())) == [30000 >> 8]


def test_a_model_with_one_channel_gets_grey_images(tmp_path):
    grey = pixels(4)[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    data = open_data(tmp_path, Preprocess(mean=1), input_shapes={"data": (0, 1, 12, 16)})
    assert np.array_equal(everything(data)[0][0, 0], grey - np.float32(1))


def test_a_preprocessing_as_plain_data_is_the_same_one():
    assert PRESETS["caffe"] == Preprocess(bgr=True, mean="104,117,123", std=1)
    assert Preprocess(**PRESETS["caffe"].to_dict()) == PRESETS["caffe"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(preset="imagnet"), "did you mean imagenet"),
        (dict(std="0.2,0,0.2"), "--std.*cannot be 0"),
        (dict(std=1e-60), "--std.*cannot be 0"),
        (dict(mean="0.2,0.3"), "--mean has 2 values, want 1 or 3"),
        (dict(mean="0.2,0.3", channels=1), "--mean has 2 values, want 1$"),
        (dict(mean="a,b,c"), "--mean is 'a,b,c', want numbers"),
        (dict(mean=float("nan")), "--mean.*not finite"),
        (dict(scale=0), "--scale is 0"),
        (dict(scale="1,2"), "--scale.*one number"),
        (dict(crop=0), "--crop is 0"),
        (dict(resize=1e9), "--resize"),
        (dict(sharpen=1), "unknown preprocessing option: sharpen"),
    ],
)
def test_bad_preprocessing_options(options, message):
    with raises(message, OptionError):
        Preprocess.from_options(**options)


@pytest.mark.parametrize(
    "options, what",
    [
        (dict(preset="imagenet"), "^--preprocess imagenet: its mean"),
        (dict(preset="caffe", bgr=False), "^--preprocess caffe: its mean"),
        (dict(preset="imagenet", mean=0.5), "^--preprocess imagenet: its std"),
        (dict(mean="1,2,3"), "^--mean"),
    ],
)
def test_values_per_channel_for_a_grey_network(options, what, tmp_path):
    Image.new("L", (32, 32)).save(tmp_path / "a.png")
    data = open_data(tmp_path, Preprocess.from_options(**options, crop=8), input_shapes={"data": (0, 1, 8, 8)})
    with raises(f"{what} has 3 values, want 1, as the network reads grey images: give --mean", OptionError):
        list(data)


def test_a_size_that_is_not_known_is_no_zero():
    with raises(r"has the shape \(1, 8, 8\) .*, want \(3, \?, \?\) as the model does", DataError):
        list(open_data(np.zeros((2, 1, 8, 8), np.float32), input_shapes={"data": (0, 3, 0, 0)}))


def test_slices_mean_what_they_mean_in_python():
    items = list(range(20))
    meant = {"::10": items[::10], "5:": items[5:], ":5": items[:5], "-3:": items[-3:], ":-3": items[:-3]}
    meant |= {"2:9:3": items[2:9:3], "::-1": items[::-1], ":": items[:], " 1 : 2 ": items[1:2]}
    assert {text: items[parse_slice(text)] for text in meant} == meant


@pytest.mark.parametrize("text", ["", "5", "a:b", "1:2:3:4", "::0", "1.5:", "9" * 30 + ":", "9" * 5000 + ":"])
def test_bad_slices(text):
    with raises("--select is .*want START:STOP:STEP", OptionError):
        parse_slice(text)


# ------------------------------------------------------------------------------------------------- .rec


def test_rec_gives_images_labels_and_names(rec):
    data = open_data(rec, batch_size=5)
    x, labels, ids = everything(data)
    assert [len(b) for b in data] == [5, 5, 5, 5, 3] and len(data) == data.num_items == 23
    assert all(np.array_equal(x[i], pixels(i).transpose(2, 0, 1)) for i in range(23))
    assert labels.dtype == np.int64 and labels.tolist() == [i % 5 for i in range(23)]
    assert ids[17] == "val.rec[17]"


@pytest.mark.parametrize("decoders", [2, 3, 8])
def test_decoders_change_nothing(rec, decoders, monkeypatch):
    import qgraph.data.image_files as image_files

    plain = image_files.decode

    def slow_on_even(file, where, preprocess):  # later items finish first
        time.sleep(0.004 if int(where[8:-1]) % 2 == 0 else 0)
        return plain(file, where, preprocess)

    one = everything(open_data(rec, PRESETS["tf"], batch_size=4, decoders=1))
    monkeypatch.setattr(image_files, "decode", slow_on_even)
    many = everything(open_data(rec, PRESETS["tf"], batch_size=4, decoders=decoders))
    assert np.array_equal(one[0], many[0]) and np.array_equal(one[1], many[1]) and one[2] == many[2]


def test_leaving_a_sweep_early_stops_the_threads_and_the_next_sweep_is_whole(rec):
    data = open_data(rec, batch_size=2, decoders=3)
    sweep = iter(data)
    first = next(sweep)
    sweep.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("qgraph-data")]
    assert np.array_equal(first.feeds["data"], everything(data)[0][:2])


def test_only_a_bounded_number_of_images_is_decoded_ahead(rec, monkeypatch):
    import qgraph.data.image_files as image_files

    decoded, plain = [], image_files.decode
    monkeypatch.setattr(image_files, "decode", lambda *a: (decoded.append(a[1]), plain(*a))[1])
    sweep = iter(open_data(rec, batch_size=2, decoders=2))
    next(sweep)
    time.sleep(0.05)
    assert 2 <= len(decoded) <= 2 + 2 + 2 * 2
    sweep.close()


def test_select_skip_and_limit(rec):
    assert everything(open_data(rec, select="::10"))[2] == ["val.rec[0]", "val.rec[10]", "val.rec[20]"]
    assert everything(open_data(rec, skip="::2", limit=3))[2] == ["val.rec[1]", "val.rec[3]", "val.rec[5]"]
    assert everything(open_data(rec, select="::-1", limit=2))[2] == ["val.rec[22]", "val.rec[21]"]
    assert everything(open_data(rec, select="-3:"))[2] == [f"val.rec[{i}]" for i in (20, 21, 22)]
    calib, evaluation = open_data(rec, select="::10"), open_data(rec, skip="::10")
    assert len(calib) == 3 and sorted(everything(calib)[2] + everything(evaluation)[2]) == sorted(
        f"val.rec[{i}]" for i in range(23)
    )
    with raises("keep none of its 23 items"):
        open_data(rec, select="100:")


def test_idx_gives_the_order(rec):
    starts = list(RecordFile(rec)._starts)
    rec.with_suffix(".idx").write_text("".join(f"{k}\t{starts[k]}\n" for k in (4, 2, 9)))
    x, labels, _ = everything(open_data(rec))
    assert labels.tolist() == [4, 2, 4] and np.array_equal(x[2], pixels(9).transpose(2, 0, 1))


@pytest.mark.parametrize("line", ["0\t99999999\n", "0\t-1\n", "nonsense\n", "x" * 5000 + "\n"])
def test_bad_idx(rec, line):
    rec.with_suffix(".idx").write_text("0\t0\n" + line)
    with raises(r"val.idx: line 2 .*remove the .idx"):
        open_data(rec)


def test_idx_of_another_file(rec):
    rec.with_suffix(".idx").write_text("0\t0\n1\t12\n")
    with raises(r"val.rec\[1\]: .*want the RecordIO magic.*val.idx may belong to another file"):
        list(open_data(rec))


def test_records_in_several_parts_and_magic_inside(tmp_path):
    path = tmp_path / "a.rec"
    path.write_bytes(part(1, b"abcd") + part(2, b"") + part(3, b"xyz") + part(0, b"whole"))
    file = RecordFile(path)
    assert [file.read(i) for i in range(len(file))] == [b"abcd" + MAGIC + MAGIC + b"xyz", b"whole"]


@pytest.mark.mxnet
def test_records_agree_with_mxnet(tmp_path):
    import mxnet as mx
    contents = [b"", b"abc", MAGIC, b"1234" + MAGIC + b"5", MAGIC * 3 + b"zz", os.urandom(1000)]
    writer = mx.recordio.MXRecordIO(str(tmp_path / "a.rec"), "w")
    for content in contents:
        writer.write(content)
    writer.close()
    file = RecordFile(tmp_path / "a.rec")
    assert [file.read(i) for i in range(len(file))] == contents
    packed = mx.recordio.pack(mx.recordio.IRHeader(0, [1.5, 2, 3], 7, 0), b"image")
    label, image = split_image_record(packed, "x")
    assert label.tolist() == [1.5, 2, 3] and image == b"image"


def test_labels_of_several_numbers(tmp_path):
    image = png(pixels(0))
    several = write_rec(tmp_path / "a.rec", [image_record(image, 1, 2.5), image_record(image, 3, 4)])
    assert everything(open_data(several))[1].tolist() == [[1, 2.5], [3, 4]]
    mixed = write_rec(tmp_path / "b.rec", [image_record(image, 1, 2), image_record(image, 3, 4, 5)])
    (batch,) = open_data(mixed)
    assert [label.tolist() for label in batch.labels] == [[1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"short", r"x.rec\[1\]: has 5 bytes, an image record at least 24"),
        (struct.pack("<IfQQ", 1 << 31, 0, 0, 0), r"x.rec\[1\]: claims 2147483648 label values"),
        (image_record(b"not an image", 0), r"x.rec\[1\]: cannot be decoded as an image"),
        (image_record(png(pixels(0))[:-300], 0), r"x.rec\[1\]: cannot be decoded as an image"),
    ],
)
@pytest.mark.parametrize("decoders", [1, 2])
def test_bad_record_is_named(tmp_path, content, message, decoders):
    path = write_rec(tmp_path / "x.rec", [image_record(png(pixels(0)), 0), content])
    with raises(message):
        list(open_data(path, decoders=decoders))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "holds no records"),
        (b"\0" * 64, r"\[0\]: found 00000000, want the RecordIO magic"),
        (part(0, b"abcd") + b"\n#", r"\[1\]: the file ends in a record header"),
        (MAGIC + struct.pack("<I", (1 << 29) - 1) + b"abcd", r"\[0\]: a record claims 536870911 bytes.* has 4 left"),
        (part(2, b"abcd"), r"\[0\]: found a part with flag 2, want 0 or 1"),
        (part(1, b"abcd") + part(0, b"abcd"), r"\[0\]: found a part with flag 0, want 2 or 3"),
        (part(1, b"abcd"), r"\[0\]: the file ends in a record header"),
    ],
)
def test_bad_rec_file(tmp_path, raw, message):
    path = tmp_path / "x.rec"
    path.write_bytes(raw)
    with raises(message):
        open_data(path)


_GOOD = (
    b"".join(part(0, image_record(png(pixels(i, 4, 4)), *range(1 + i % 2))) for i in range(3))
    + part(1, image_record(b"abc", 1))
    + part(3, b"defg")
)


@settings(max_examples=300)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(_GOOD) - 1), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, len(_GOOD)),
    idx=st.one_of(st.none(), st.binary(max_size=40), st.lists(st.integers(0, 400), max_size=4)),
)
def test_mutated_rec_is_read_or_refused(tmp_path, edits, cut, idx):
    raw = bytearray(_GOOD)
    for at, byte in edits:
        raw[at] = byte
    path = tmp_path / "x.rec"
    path.write_bytes(raw[:cut])
    path.with_suffix(".idx").unlink(missing_ok=True)
    if idx is not None:
        lines = idx if isinstance(idx, bytes) else "".join(f"{i}\t{at}\n" for i, at in enumerate(idx)).encode()
        path.with_suffix(".idx").write_bytes(lines)
    try:
        batches = list(open_data(path, Preprocess(), batch_size=1, decoders=1))
    except DataError as error:
        assert "x." in str(error)
    else:
        assert all(b.feeds["data"].dtype == np.float32 for b in batches)


def test_image_bomb_is_refused_before_it_is_decoded(tmp_path):
    def chunk(name: bytes, body: bytes) -> bytes:
        import zlib

        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")
    )
    path = write_rec(tmp_path / "x.rec", [image_record(bomb, 0)])
    tracemalloc.start()
    with raises(r"x.rec\[0\]: claims 9000x9000 pixels"):
        list(open_data(path))
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


# ------------------------------------------------------------------------------------------------- folders and paths


def test_folder_labels_are_subfolders_in_sorted_order(tmp_path):
    for i, name in enumerate(["zebra/2.png", "zebra/1.png", "ant/deep/x.png", "empty/readme.txt", ".hidden/h.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(pixels(i)) if name.endswith("png") else b"text")
    x, labels, ids = everything(open_data(tmp_path))
    assert [Path(i).relative_to(tmp_path).as_posix() for i in ids] == ["ant/deep/x.png", "zebra/1.png", "zebra/2.png"]
    assert labels.tolist() == [0, 2, 2]
    assert np.array_equal(x[1], pixels(1).transpose(2, 0, 1))


@pytest.mark.parametrize(("names", "labels"), [
    (["2", "10", "7"], [2, 7, 10]), (["02", "10"], [2, 10]), (["1", "01"], [0, 1]), (["1", "cat"], [0, 1])])
def test_names_of_folders_that_are_numbers_are_the_labels(tmp_path, names, labels):
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(png(pixels(0)))
    assert everything(open_data(tmp_path))[1].tolist() == labels


def test_the_fingerprint_tells_other_images_and_labels(tmp_path):
    x, y = np.random.RandomState(0).rand(200, 1, 4, 4).astype(np.float32), np.arange(200) % 10
    other, wrong = x.copy(), y.copy()
    other[150:], wrong[-1] = 0, 3
    pairs = ((x, y), (x.copy(), y.copy()), (other, y), (x, wrong))
    found = [open_data({"data": a, "label": b}).fingerprint() for a, b in pairs]
    assert found[0] == found[1] and len(set(found)) == 3
    batches = [(x[:50], y[:50]), (x[50:], y[50:])]
    stream = [open_data(iter(b), input_names=("data",)).fingerprint() for b in (batches, batches, batches[1:])]
    assert stream[0] == stream[1] != stream[2]


def test_flat_folder_has_no_labels(tmp_path):
    for i in (3, 1):
        (tmp_path / f"{i}.PNG").write_bytes(png(pixels(i)))
    _, labels, ids = everything(open_data(tmp_path))
    assert labels is None and [Path(i).name for i in ids] == ["1.PNG", "3.PNG"]


def test_mixed_empty_and_broken_folders(tmp_path):
    with raises("holds no images"):
        open_data(tmp_path)
    (tmp_path / "a.png").write_bytes(b"broken")
    with raises("a.png: cannot be decoded"):
        list(open_data(tmp_path))
    (tmp_path / "cats").mkdir()
    with raises("lie beside 1 sub-folders"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.rec", "no such file or folder"),
        ("a.jpg", "give the folder that holds it"),
        ("a.lst", "give the .rec made from it"),
        ("a.txt", "found .txt extension, want .rec, .npz, .npy"),
        ("a", "found no extension"),
    ],
)
def test_wrong_paths(tmp_path, name, message):
    if name != "nowhere.rec":
        (tmp_path / name).write_bytes(b"")
    with raises(message):
        open_data(tmp_path / name)


def test_crop_larger_than_an_image_names_it_and_the_sizes(rec):
    with raises(r"val.rec\[0\]: cannot crop 14x14 out of 16x12"):
        list(open_data(rec, Preprocess(crop=14)))


def test_images_of_different_sizes_need_a_crop(tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(png(pixels(i, 10 + i)))
    with raises(r"1.png: has the shape \(3, 11, 16\), but .*0.png \(3, 10, 16\).*--crop"):
        list(open_data(tmp_path))
    assert len(list(open_data(tmp_path, batch_size=1))) == 2
    assert len(list(open_data(tmp_path, Preprocess(crop=10)))) == 1


def test_the_model_shape_is_checked(rec):
    shapes = {"data": (0, 3, 0, 16)}
    assert len(list(open_data(rec, input_shapes=shapes))) == 1
    with raises(r"val.rec\[0\]: data has the shape \(3, 12, 16\) .* want \(3, 8, 8\).*--crop"):
        list(open_data(rec, input_shapes={"data": (1, 3, 8, 8)}))


# ------------------------------------------------------------------------------------------------- arrays


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"data": rng.normal(size=(11, 3, 4, 5)).astype(np.float32), "label": np.arange(11) % 4}


@pytest.mark.parametrize("kind", ["npz", "compressed", "npy", "dict", "array"])
def test_arrays_come_back(tmp_path, arrays, kind):
    if kind in ("npz", "compressed"):
        source = tmp_path / "a.npz"
        (np.savez if kind == "npz" else np.savez_compressed)(source, **arrays)
    elif kind == "npy":
        source = tmp_path / "a.npy"
        np.save(source, arrays["data"])
    else:
        source = arrays if kind == "dict" else arrays["data"]
    data = open_data(source, batch_size=4)
    for _ in range(2):
        x, labels, ids = everything(data)
        assert np.array_equal(x, arrays["data"]) and x.dtype == np.float32
        assert (labels is None) if kind in ("npy", "array") else np.array_equal(labels, arrays["label"])
    assert len(data) == 11 and ids[3].endswith("[3]")
    for select in ("2::3", "::-2"):
        x = everything(open_data(source, select=select, skip="5:6"))[0]
        keep = [i for i in range(11)[parse_slice(select)] if i != 5]
        assert np.array_equal(x, arrays["data"][keep])


def test_float64_is_fed_as_float32_and_what_overflows_is_named():
    x = np.ones((3, 1, 2, 2))
    assert everything(open_data(x))[0].dtype == np.float32
    x[2] = 1e300
    with raises(r"array\[2\]: data holds inf"):
        list(open_data(x))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["array", "iterable"])
def test_nan_and_inf_name_the_sample(arrays, bad, kind):
    arrays["data"][7, 1, 2, 3] = bad
    source = arrays["data"] if kind == "array" else [arrays["data"][:5], arrays["data"][5:]]
    with raises(rf"(array|list)\[7\]: data holds {bad}"):
        list(open_data(source, batch_size=3))


def test_several_inputs(tmp_path):
    np.savez(tmp_path / "a.npz", left=np.zeros((4, 2)), right=np.ones((4, 3, 2, 2)), label=np.arange(4))
    (batch,) = open_data(tmp_path / "a.npz", input_names=("left", "right"))
    assert {k: v.shape for k, v in batch.feeds.items()} == {"left": (4, 2), "right": (4, 3, 2, 2)}
    assert batch.labels.tolist() == [0, 1, 2, 3]
    with raises("a.npz: holds left, right, label; want data, middle: np.savez"):
        open_data(tmp_path / "a.npz", input_names=("data", "middle"))
    with raises("images feed one input"):
        open_data(tmp_path, input_names=("left", "right"))


def test_a_single_input_of_another_name_reads_data(arrays):
    (batch,) = open_data(arrays, input_names=("image",))
    assert list(batch.feeds) == ["image"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (dict(x=np.zeros((2, 3, 4, 4))), "holds x; want data"),
        (dict(data=np.zeros((2, 3, 4, 4)), label=np.zeros(3)), "the same number of items"),
        (dict(data=np.zeros((0, 3, 4, 4))), "at least 1"),
        (dict(data=np.float32(1)), "at least 1"),
        (dict(data=np.array([["a"]])), "real numbers"),
        (dict(data=np.zeros((2, 3), complex)), "real numbers"),
        (dict(data=np.asfortranarray(np.zeros((2, 3, 4, 5)))), "ascontiguousarray"),
    ],
)
def test_bad_npz(tmp_path, content, message):
    np.savez(tmp_path / "a.npz", **content)
    with raises(message):
        list(open_data(tmp_path / "a.npz"))


def test_pickles_are_never_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "a.npz", data=np.array([{}]))
    for name in ("a.npy", "a.npz"):
        with raises("a.np"):
            open_data(tmp_path / name)


def lying_npz(path: Path, shape: tuple[int, ...], body: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("data.npy", header.getvalue() + body)
    return path


def test_npz_claims_are_checked_against_the_file(tmp_path):
    for shape in [(10**9, 3, 224, 224), (2, 3), (-1, -4), (1 << 62, 1 << 62, 1 << 62)]:
        with raises("claims float32 .* but the file holds 16 bytes"):
            open_data(lying_npz(tmp_path / "a.npz", shape, bytes(16)))
    for shape, message in [((500, 1000, 1000), r"b.npz\[0\]: the data end here"), ((1, 500, 10**6), "over 1024 MiB")]:
        raw = bytearray(lying_npz(tmp_path / "b.npz", shape, bytes(16)).read_bytes())
        at = raw.rindex(b"PK\x01\x02") + 24  # the directory of the zip claims 2 GB too
        raw[at : at + 4] = struct.pack("<I", 4 * 500 * 10**6 + 128)
        (tmp_path / "b.npz").write_bytes(raw)
        with raises(message):
            list(open_data(tmp_path / "b.npz"))


def test_npz_sweeps_in_memory_of_one_batch(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", data=np.zeros((3000, 1, 32, 32), np.float32))  # 12 MB
    data = open_data(tmp_path / "a.npz", batch_size=10)
    tracemalloc.start()
    assert sum(len(batch) for batch in data) == 3000
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


_NPZ = io.BytesIO()
np.savez(_NPZ, data=np.ones((2, 1, 2, 2), np.float32), label=np.arange(2))


@settings(max_examples=200)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(_NPZ.getvalue()) - 1), st.integers(0, 255)), max_size=5),
    cut=st.one_of(st.none(), st.integers(0, len(_NPZ.getvalue()))),
    suffix=st.sampled_from([".npz", ".npy"]),
)
def test_mutated_npz_is_read_or_refused(tmp_path, edits, cut, suffix):
    raw = bytearray(_NPZ.getvalue())
    start = 38 if suffix == ".npy" else 0  # the member data.npy itself
    for at, byte in edits:
        raw[at] = byte
    path = tmp_path / f"x{suffix}"
    path.write_bytes(raw[start:cut])
    try:
        assert all(np.isfinite(batch.feeds["data"]).all() for batch in open_data(path))
    except DataError as error:
        assert "x.np" in str(error)


def test_ready_arrays_are_not_preprocessed_and_uint8_images_are(arrays):
    with raises("is taken as ready", OptionError):
        list(open_data(arrays, PRESETS["tf"]))
    images = np.stack([pixels(i) for i in range(3)])
    want = (images.transpose(0, 3, 1, 2) - np.float32(127.5)) / np.float32(127.5)
    for source in (images, [images]):
        assert np.array_equal(everything(open_data(source, PRESETS["tf"]))[0], want)


# ------------------------------------------------------------------------------------------------- Datasets, iterables


class Squares:
    """A Dataset of (array, label)."""

    def __getitem__(self, i):
        return np.full((1, 2, 2), i * i, np.float32), i

    def __len__(self):
        return 7


def test_dataset():
    data = open_data(Squares(), batch_size=3, select="1:")
    x, labels, ids = everything(data)
    assert x[:, 0, 0, 0].tolist() == [1, 4, 9, 16, 25, 36] and labels.tolist() == [1, 2, 3, 4, 5, 6]
    assert ids[0] == "Squares[1]" and [len(b) for b in data] == [3, 3]


def batches(arrays, size=4):
    for i in range(0, len(arrays["data"]), size):
        yield arrays["data"][i : i + size], arrays["label"][i : i + size]


@pytest.mark.parametrize("one_shot", [True, False])
def test_iterables_keep_their_batches_and_can_be_swept_twice(arrays, one_shot):
    data = open_data(batches(arrays) if one_shot else list(batches(arrays)))
    next(iter(data))  # a look at the first batch loses nothing
    for _ in range(2):
        x, labels, _ = everything(data)
        assert np.array_equal(x, arrays["data"]) and np.array_equal(labels, arrays["label"])
    assert [len(b) for b in data] == [4, 4, 3] and data.num_items is None and data
    with pytest.raises(TypeError, match="does not say"):
        len(data)


def test_a_one_shot_iterator_is_not_kept_in_memory():
    data = open_data(np.ones((10, 1, 64, 64), np.float32) for _ in range(60))  # 10 MB
    tracemalloc.start()
    assert sum(len(b) for _ in range(2) for b in data) == 1200
    assert tracemalloc.get_traced_memory()[1] < 3 << 20
    tracemalloc.stop()


def test_streams_select_skip_and_limit(arrays):
    def kept(**how):
        return everything(open_data(list(batches(arrays)), **how))[0]

    assert np.array_equal(kept(select="1::3", limit=3), arrays["data"][[1, 4, 7]])
    assert np.array_equal(kept(skip=":9"), arrays["data"][9:])
    endless = open_data((arrays["data"] for _ in itertools.count()), limit=25)
    assert [len(b) for b in endless] == [11, 11, 3]
    with raises("cannot count from its end", OptionError):
        open_data(batches(arrays), select="-3:")


def test_failing_iterator_fails_again_rather_than_ending_early(arrays):
    def failing():
        yield arrays["data"]
        raise RuntimeError("disk on fire")

    data = open_data(failing())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="disk on fire"):
            list(data)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([(np.zeros((2, 3, 4, 4)), np.zeros(3))], "want the batch axis first"),
        ([(np.zeros((2, 3)),) * 3], "found 3 arrays, want data and at most a label"),
        ([{"image": np.zeros((2, 3))}], "lacks data; it has image"),
        (["text"], "found a str"),
        ([], "gave no items"),
        (iter(()), "gave no items"),
        (42, "cannot read data from a int"),
        ([np.array([None])], "real numbers"),
    ],
)
def test_bad_iterables(source, message):
    with raises(message):
        list(open_data(source))


def test_bad_numbers(arrays):
    for option in ("batch_size", "limit", "decoders"):
        with raises("at least 1", OptionError):
            open_data(arrays, **{option: 0})


@pytest.mark.mxnet
def test_gluon_and_io_sources(arrays):
    import mxnet as mx
    x, label = arrays["data"], arrays["label"]
    dataset = mx.gluon.data.ArrayDataset(mx.nd.array(x), label.astype(np.float32))
    loader = mx.gluon.data.DataLoader(dataset, batch_size=4)
    padded = mx.io.NDArrayIter(x, label, batch_size=4)  # the last batch of 3 is filled up with 1 from the front
    for source in (dataset, loader, padded, {"data": mx.nd.array(x), "label": mx.nd.array(label)}):
        data = open_data(source, batch_size=4)
        for _ in range(2):
            got, labels, _ = everything(data)
            assert np.array_equal(got, x) and np.array_equal(labels, label)
    assert np.array_equal(everything(open_data(mx.nd.array(x)))[0], x)


# ------------------------------------------------------------------------------------------------- real files


IMAGENET, CIFAR10 = "imagenet1k_sample/val.rec", "cifar10/cifar10_test.rec"


@pytest.mark.cases(IMAGENET)
def test_imagenet_sample():
    path = CASES / IMAGENET
    calib = open_data(path, PRESETS["imagenet"], select="::10", limit=24, batch_size=8)
    x, labels, ids = everything(calib)
    assert x.shape == (24, 3, 224, 224) and labels.tolist() == list(range(0, 240, 10)) and ids[3] == "val.rec[30]"
    assert len(open_data(path, skip="::10")) == 900
    assert abs(x.mean()) < 0.5 and 0.8 < x.std() < 1.6


@pytest.mark.mxnet
@pytest.mark.cases(IMAGENET)
def test_decoding_agrees_with_mxnet():
    import mxnet as mx
    file = RecordFile(CASES / IMAGENET)
    for i in (0, 17, 999):
        _, image = split_image_record(file.read(i), "x")
        want = mx.image.imdecode(image).asnumpy().transpose(2, 0, 1)
        assert np.abs(decode(io.BytesIO(image), "x", Preprocess()) - want).mean() < 0.5  # libjpeg versions may round


@pytest.mark.cases(CIFAR10)
def test_scan_finds_what_the_idx_says(tmp_path):
    source = CASES / CIFAR10
    (tmp_path / "alone.rec").symlink_to(source.resolve())
    assert list(RecordFile(tmp_path / "alone.rec")._starts) == list(RecordFile(source)._starts)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("select", ["::4", "1::3", "::-2"])
def test_rows_of_several_arrays_are_read_with_steps(save, select, tmp_path):
    """Python 3.13 seeks within stored members of one archive from where another one was read."""
    rng = np.random.default_rng(0)
    data, label = rng.normal(size=(40, 3, 24, 24)).astype(np.float32), np.arange(40)
    save(tmp_path / "a.npz", data=data, label=label)
    found = list(open_data(str(tmp_path / "a.npz"), select=select, batch_size=4))
    wanted = np.arange(40)[slice(*(int(part) if part else None for part in select.split(":")))]
    assert np.array_equal(np.concatenate([batch.labels for batch in found]), wanted)
    assert np.array_equal(np.concatenate([batch.feeds["data"] for batch in found]), data[wanted])


@pytest.mark.parametrize("shape", [(6,), (6, 10), (6, 10, 7), (6, 3, 4, 5, 6, 2)])
def test_items_of_any_rank_are_taken(tmp_path, shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.savez(tmp_path / "a.npz", data=values)
    for source in (tmp_path / "a.npz", values, [values]):
        assert np.array_equal(np.concatenate([b.feeds["data"] for b in open_data(source, batch_size=4)]), values)


def test_a_missing_batch_axis_is_named_where_the_model_says_its_shape():
    with raises(r"\[0\]: data has the shape \(4, 4\).*want \(3, \?, \?\).*add the batch axis"):
        list(open_data(np.zeros((3, 4, 4)), input_shapes={"data": (0, 3, 0, 0)}))
