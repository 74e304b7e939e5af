"""Labels that are more than one class number: boxes, points, masks and texts, out of every kind of file."""

from __future__ import annotations

import json
import logging
import struct
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from hostile import pack_records
from PIL import Image

from qgraph.data.annotations import Boxes, Points
from qgraph.data.geometry import Geometry
from qgraph.data.open import Batch, Preprocess, open_data
from qgraph.errors import DataError, OptionError
from qgraph.options import DataOptions, FreezeOptions

WIDTH, HEIGHT = 40, 30
SMALL = Preprocess(resize=15, crop=15)  # 20 x 15, of which the columns 2 to 16 are kept
Files = dict[str, Any]


def raises(message: str, kind: type[Exception] = DataError):
    return pytest.raises(kind, match=message)


def encoded(pixels: np.ndarray) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def picture(seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    return encoded(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write(folder: Path, files: Files) -> Path:
    """name -> bytes, text, or what becomes JSON"""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = content if isinstance(content, (bytes, str)) else json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with a.png, b.png and c.png."""
    return write(tmp_path / "images", {f"{name}.png": picture(number) for number, name in enumerate("abc")})


def labels_of(data: Any) -> list[np.ndarray]:
    """Of every item, the same from the sweep, from labels() and, but for vectors of one number, in batches of one."""
    swept = [label for batch in data for label in batch.labels]
    alone = [np.reshape(batch.labels[0], np.shape(label)) for batch, label in zip(data.one_by_one(), swept)]
    for other in (data.labels(), alone):
        assert len(swept) == len(other) and all(map(np.array_equal, swept, other))
    return swept


def opened(images: Path, labels: Path, preprocess: Preprocess = SMALL, **options: Any) -> Any:
    return open_data(images, preprocess, labels=labels, **options)


# ------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize(("resize", "crop"), [(None, None), (60, None), (None, 24), (45, 40), (15, 13)])
@pytest.mark.parametrize(("width", "height"), [(WIDTH, HEIGHT), (31, 53)])
def test_boxes_points_and_masks_go_where_the_pixels_go(resize, crop, width, height, tmp_path):
    left, top, right, bottom = 12, 10, 25, 20
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top:bottom, left:right] = 255
    images = write(tmp_path / "images", {"i.png": encoded(pixels)})
    masks = write(tmp_path / "masks", {"i.png": encoded(pixels[:, :, 0] // 51)})
    preprocess = Preprocess(resize=resize, crop=crop)
    (batch,) = open_data(images, preprocess)
    bright = batch.feeds["data"][0, 0] > 127
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    geometry = preprocess.geometry((width, height), "x")
    (box,) = Boxes(np.array([[3, left, top, right, bottom, 0]])).placed(geometry, "x")
    np.testing.assert_allclose(box[1:5], [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], atol=0.6)
    assert (box[0], box[5]) == (3, 0)
    (point,) = Points(np.array([[left, bottom, 2]])).placed(geometry, "x")
    np.testing.assert_allclose(point, [box[1], box[4], 2], rtol=1e-6)
    (mask,) = labels_of(opened(images, masks, preprocess))
    assert mask.shape == bright.shape and np.mean((mask == 5) != bright) < 0.02


@pytest.mark.parametrize("size", [(40, 30), (33, 47), (7, 5), (199, 101)])
@pytest.mark.parametrize("short", [3, 16, 30, 31, 97])
def test_a_mask_takes_the_nearest_pixels_as_pillow_does(size, short):
    mask = np.random.default_rng(0).integers(0, 255, size[::-1], dtype=np.uint8)
    geometry = Geometry.of(size, short, 3, "x")
    (left, top) = geometry.offset
    want = np.asarray(Image.fromarray(mask).resize(geometry.resized, 0))[top:top + 3, left:left + 3]
    assert np.array_equal(geometry.mask(mask), want)


def test_a_box_that_loses_more_than_three_quarters_is_difficult():
    geometry = Preprocess(crop=20).geometry((40, 20), "x")  # columns 10 to 29 are kept
    rows = np.array([[0, 7, 0, 11, 4, 0], [0, 6, 0, 11, 4, 0], [0, 0, 0, 5, 4, 0], [1, 12, 3, 32, 9, 0],
                     [2, 12, 3, 14, 9, 1], [2, 12, 3, 12, 9, 0]])
    found = Boxes(rows).placed(geometry, "x")
    assert found[:, 5].tolist() == [0, 1, 1, 0, 1, 1]  # 1/4, 1/5 and nothing are left; ...; nothing is there
    assert found[0].tolist() == [0, 0, 0, 1, 4, 0] and found[3].tolist() == [1, 2, 3, 20, 9, 0]


def test_a_point_outside_of_the_crop_is_not_labelled():
    geometry = Preprocess(crop=20).geometry((40, 20), "x")
    rows = np.array([[10, 5, 2], [9, 5, 2], [0, 0, 0], [15, 5, 0], [30, 20, 1]])
    assert Points(rows).placed(geometry, "x").tolist() == [[0, 5, 2], [0, 0, 0], [0, 0, 0], [0, 0, 0], [20, 20, 1]]


# ------------------------------------------------------------------------------------------------- .rec


def record(*label: float, image: bytes = picture()) -> bytes:
    return struct.pack(f"<IfQQ{len(label)}f", len(label), 0, 0, 0, *label) + image


def rec(tmp_path: Path, *records: bytes) -> Path:
    return write(tmp_path, {"x.rec": pack_records(records)}) / "x.rec"


def test_boxes_of_a_rec_are_in_the_pixels_of_the_input(tmp_path):
    path = rec(tmp_path, record(2, 5, 1, 0.25, 0.5, 0.75, 1, 0, 0, 0, 1, 1),
               record(4, 6, 640, 480, 2, 0.5, 0.5, 1, 1, 1), record(2, 5))
    for decoders in (1, 3):
        first, second, third = labels_of(open_data(path, SMALL, decoders=decoders))
        np.testing.assert_allclose(first, [[1, 3, 7.5, 13, 15, 0], [0, 0, 0, 15, 15, 0]])
        np.testing.assert_allclose(second, [[2, 8, 7.5, 15, 15, 1]])
        assert third.shape == (0, 6) and third.dtype == np.float32
    (batch,) = open_data(path, SMALL)
    assert isinstance(batch.labels, list)
    filled_up = rec(tmp_path, record(2, 5, 1, 0, 0, 1, 1, -1, -1, -1, -1, -1))
    assert len(labels_of(open_data(filled_up))[0]) == 1


@pytest.mark.parametrize("labels", [
    [[2, 5], [2, 5]], [[2, 5, 0, 0, 0, 1, 1], [2, 4, 0, 0, 0, 1, 1]], [[1, 5, 1, 0, 0, 1, 1]], [[2, 5, 1, 0, 0, 1]],
    [[2, 4, 1, 0, 1, 1]], [[2.5, 5, 1, 0, 0, 1, 1]], [[2, 1e30, 1, 0, 0, 1, 1]], [[8, 5, 1, 0, 0, 1, 1]]])
def test_other_vectors_stay_what_they_are(labels, tmp_path):
    found = labels_of(open_data(rec(tmp_path, *(record(*label) for label in labels))))
    assert np.array_equal(found, np.array(labels, np.float32))


@pytest.mark.parametrize(("label", "message"), [
    ((2, 5, 1, 0, 0, 1), "its label holds no boxes, but those of other records do"),
    ((2, 5, 1.5, 0, 0, 1, 1), "has the class 1.5"),
    ((2, 5, 1, 0, 0, 1, float("nan")), "holds nan"),
    ((2, 5, 1, 0.5, 0, 0.4, 1), r"the box \(20, 0, 16, 30\) ends before it begins"),
    ((2, 5, 1, 0, 0, 1, 30), r"the box \(0, 0, 40, 900\) lies outside of the image, which has 40x30 pixels"),
])
def test_bad_boxes_of_a_rec_are_named(label, message, tmp_path):
    records = [record(2, 5, 1, 0, 0, 1, 1)] * 20
    records[4] = record(*label)
    data = open_data(rec(tmp_path, *records))
    for read in (lambda: list(data), data.labels):
        with raises(r"x.rec\[4\]: .*" + message):
            read()


@pytest.mark.mxnet
def test_boxes_of_a_rec_are_those_of_mxnet(tmp_path):
    import mxnet as mx
    rng = np.random.default_rng(0)
    writer = mx.recordio.MXIndexedRecordIO(str(tmp_path / "a.idx"), str(tmp_path / "a.rec"), "w")
    for number in range(6):
        corners = np.sort(rng.uniform(0, 1, (number % 3 + 1, 2, 2)), axis=1).reshape(-1, 4)
        objects = np.column_stack([rng.integers(0, 9, len(corners)), corners])
        label = np.concatenate([[4, 5, 7, 7], objects.ravel()]).astype(np.float32)
        writer.write_idx(number, mx.recordio.pack(mx.recordio.IRHeader(0, label, number, 0), picture(number)))
    writer.close()
    theirs = mx.image.ImageDetIter(1, (3, HEIGHT, WIDTH), path_imgrec=str(tmp_path / "a.rec"))
    for label in labels_of(open_data(tmp_path / "a.rec")):
        want = theirs._parse_label(theirs.next_sample()[0])
        np.testing.assert_allclose(label[:, :5] / [1, WIDTH, HEIGHT, WIDTH, HEIGHT], want, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------- COCO


def coco(**parts: Any) -> Files:
    """a.png has two boxes, b.png none, c.png is in another folder and has one; nothing.png is not there."""
    images = [{"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}, {"id": 3, "file_name": "b.png"},
              {"id": 5, "file_name": "val/c.png"}, {"id": 6, "file_name": "nothing.png"}]
    annotations = [{"image_id": 7, "category_id": 90, "bbox": [20, 10, 10, 20], "iscrowd": 0},
                   {"image_id": 5, "category_id": 2, "bbox": [0, 0, 40.0, 30.0]},
                   {"image_id": 7, "category_id": 18, "bbox": [4, 2, 8, 4], "iscrowd": 1}]
    categories = [{"id": 90, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 18, "name": "cow"}]
    return {"images": images, "annotations": annotations, "categories": categories, **parts}


def test_coco_boxes(images, tmp_path, caplog):
    path = write(tmp_path, {"instances.json": coco()}) / "instances.json"
    with caplog.at_level(logging.WARNING):
        data = opened(images, path)
    assert f"{path}: 1 of its 4 entries belong to no image of {images}, such as 'nothing.png'" in caplog.text
    a, b, c = labels_of(data)
    np.testing.assert_allclose(a, [[2, 8, 5, 13, 15, 0], [1, 0, 1, 4, 3, 1]])
    assert b.shape == (0, 6)
    np.testing.assert_allclose(c, [[0, 0, 0, 15, 15, 0]])


def test_coco_keypoints_are_those_of_the_largest_person(images, tmp_path):
    people = [(3, 90.0, 0, 10), (3, 50.0, 0, 4), (3, 99.0, 1, 20), (7, 1.0, 0, 6)]
    annotations = [{"image_id": image, "category_id": 1, "area": area, "iscrowd": crowd, "bbox": [0, 0, 1, 1],
                    "keypoints": [x, 4, 2, x + 2, 6, 1, 0, 0, 0]} for image, area, crowd, x in people]
    path = write(tmp_path, {"k.json": coco(annotations=annotations)}) / "k.json"
    a, b, c = labels_of(opened(images, path))
    assert a.tolist() == [[1, 2, 2], [2, 3, 1], [0, 0, 0]] and b.tolist() == [[3, 2, 2], [4, 3, 1], [0, 0, 0]]
    assert c.tolist() == [[0, 0, 0]] * 3
    (batch,) = opened(images, path)
    assert isinstance(batch.labels, np.ndarray) and batch.labels.dtype == np.float32


def changed(key: str, number: int, **fields: Any) -> Files:
    document = coco()
    document[key][number].update(fields)
    return document


@pytest.mark.parametrize(("document", "message"), [
    ("{", "x.json: not JSON"),
    (b"\xff\xfe", "x.json: not JSON"),
    ("[" * 100_000, "x.json: .*nested too deep"),
    ("[1]", "not annotations of COCO"),
    ({"images": []}, 'has no list "annotations"'),
    (coco(images=[3]), r"images\[0\] is 3, want an object"),
    (coco(categories=[{"id": 1}, {"id": 1}]), "ids of its categories"),
    (changed("annotations", 1, category_id=4), r"annotations\[1\]: is of the category 4, which is not among"),
    (changed("annotations", 1, image_id=4), r"annotations\[1\]: is of the image 4, which is not among"),
    (changed("annotations", 1, image_id=[4]), r"annotations\[1\]: image_id is \[4\], want a number"),
    (changed("annotations", 2, bbox=[0, 1, 2]), r"annotations\[2\]: bbox is \[0, 1, 2\], want 4 finite numbers"),
    (changed("annotations", 2, bbox=[0, 1, 2, float("nan")]), r"bbox is \[0, 1, 2, nan\]"),
    (changed("annotations", 2, bbox=[0, 1, 2, True]), r"bbox is \[0, 1, 2, True\]"),
    (json.dumps(changed("annotations", 2, bbox=[0, 1, 2, 987])).replace("987", "9" * 5000), "number of 5000 digits"),
    (changed("annotations", 0, bbox=[20, 10, 90, 10]), r"'a.png': the box \(20, 10, 110, 20\) lies outside"),
    (changed("annotations", 0, bbox=[20, 10, -5, 10]), r"'a.png': the box \(20, 10, 15, 20\) ends before"),
    (changed("annotations", 0, bbox=[1e308, 1e308, 1e308, 1e308]), r"'a.png': a box holds inf"),
    (changed("annotations", 0, keypoints=[1, 2]), "keypoints is .*three for each point"),
    (changed("annotations", 0, keypoints=[1, 2, 2]), r"annotations\[2\]: keypoints is None, want 3 finite numbers"),
    (changed("images", 1, file_name="a.png"), r"images\[1\]: file_name is 'a.png', want .*another for each"),
    (changed("images", 1, file_name="val/a.png"), "b.png: has no label in .*x.json \\(2 images have none\\)"),
    (changed("images", 1, file_name="d.png"), "b.png: has no label in .*x.json: add it"),
])
def test_bad_coco_is_refused_when_it_is_opened(document, message, images, tmp_path):
    path = write(tmp_path, {"x.json": document}) / "x.json"
    with raises(message):
        opened(images, path)


def test_what_only_the_image_tells_names_both(images, tmp_path):
    path = write(tmp_path, {"x.json": changed("annotations", 1, bbox=[0, 0, 90, 10])}) / "x.json"
    data = opened(images, path)
    with raises(r"c.png \(label of .*x.json\): the box \(0, 0, 90, 10\) lies outside of the image, which has 40x30"):
        list(data)
    assert len(list(opened(images, path, select=":2"))) == 1


# ------------------------------------------------------------------------------------------------- VOC


def voc(*objects: tuple[str, Any, Any, Any, Any, str], size: str = "", head: str = "") -> str:
    items = "".join(f"<object><name>{name}</name>{more}<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
                    f"<ymax>{y1}</ymax></bndbox></object>" for name, x0, y0, x1, y1, more in objects)
    return f"{head}<annotation><filename>other.jpg</filename>{size}{items}</annotation>"


HARD = "<difficult>1</difficult><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
XMLS: Files = {"a.xml": voc(("dog", 21, 11, 30, 30, ""), ("cat", 5, 3, 12, 6, HARD)),
               "b.xml": voc(size="<size><width>40</width><height>30</height></size>"),
               "c.xml": voc(("cat", 1, 1, 40, 30, "<difficult>0</difficult>"))}


@pytest.mark.parametrize(("names", "cat", "dog"), [("", 0, 1), ("labels/names.txt", 2, 0), ("names.txt", 2, 0)])
def test_voc_boxes(names, cat, dog, images, tmp_path):
    folder = write(tmp_path / "labels", XMLS)
    if names:
        write(tmp_path, {names: "dog\r\ncow\n\ncat\n"})
    a, b, c = labels_of(opened(images, folder))
    np.testing.assert_allclose(a, [[dog, 8, 5, 13, 15, 0], [cat, 0, 1, 4, 3, 1]])
    assert b.shape == (0, 6)
    np.testing.assert_allclose(c, [[cat, 0, 0, 15, 15, 0]])


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "xxxxxxxx"><!ENTITY y "&x;&x;&x;&x;">]>'


@pytest.mark.parametrize(("text", "message"), [
    (voc(("&y;", 1, 1, 2, 2, ""), head=BOMB), "b.xml: found a DOCTYPE"),
    (voc(("&y;", 1, 1, 2, 2, ""), head=BOMB).encode("utf-16"), "b.xml: found a DOCTYPE"),
    ("<annotation>" * 30, "b.xml: found elements nested over 20 deep"),
    ("<annotation>", "b.xml: not XML"),
    (b"\x00\xff\xfe", "b.xml: not XML"),
    ("", "b.xml: not XML"),
    ('<?xml version="1.0" encoding="utf-99"?><annotation/>', "b.xml: not XML"),
    ("<html/>", "b.xml: found <html>, want the <annotation>"),
    (voc() + " " * (1 << 20), "b.xml: has over 1 MiB"),
    (voc(("cow", 1, 1, 2, 2, "")), "b.xml: found the class 'cow', which is not in names.txt"),
    (voc((" ", 1, 1, 2, 2, "")), "b.xml: found no name in an <object>"),
    (voc(("cat", "x", 1, 2, 2, "")), "b.xml: bndbox/xmin is 'x', want a finite number"),
    (voc(("cat", "nan", 1, 2, 2, "")), "b.xml: bndbox/xmin is 'nan'"),
    (voc(("cat", 9, 1, 2, 2, ""), size="<size><width>40</width><height>30</height></size>"), "ends before it begins"),
    (voc(("cat", 1, 1, 99, 2, ""), size="<size><width>40</width><height>30</height></size>"),
     r"b.xml: the box \(0, 0, 99, 2\) lies outside"),
])
def test_bad_voc_is_refused_when_it_is_opened(text, message, images, tmp_path):
    folder = write(tmp_path / "labels", {**XMLS, "b.xml": text, "names.txt": "cat\ndog"})
    with raises(message):
        opened(images, folder)


@pytest.mark.parametrize("names", ["cat\ncat\n", "\n", b"\xff"])
def test_bad_names_of_classes(names, images, tmp_path):
    with raises("names.txt: "):
        opened(images, write(tmp_path / "labels", {**XMLS, "names.txt": names}))


# ------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("mode", ["P", "L", "I;16", "1"])
def test_masks(mode, images, tmp_path):
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 256, (3, HEIGHT, WIDTH)).astype(np.uint16 if mode == "I;16" else np.uint8)
    masks = masks * 100 if mode == "I;16" else masks // 128 if mode == "1" else masks
    files: Files = {}
    for name, mask in zip("abc", masks):
        image = Image.fromarray(mask)
        if mode == "P":
            image.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
        if mode == "1":
            image = Image.fromarray(mask.astype(bool))
        stream = BytesIO()
        image.save(stream, "PNG")
        assert image.mode == mode
        files[f"{name}.png"] = stream.getvalue()
    data = opened(images, write(tmp_path / "masks", files), Preprocess())
    (batch,) = data
    assert batch.labels.dtype == np.int64 and np.array_equal(batch.labels, masks)
    assert np.array_equal(labels_of(data), masks)


@pytest.mark.parametrize(("mask", "message"), [
    (encoded(np.zeros((9, 9), np.uint8)), r"b.png \(label of .*masks\): the mask has 9x9 pixels, the image 40x30"),
    (picture(), "masks/b.png: found a PNG in mode RGB, want a PNG with a palette"),
    (b"broken", "masks/b.png: cannot be decoded"),
])
def test_bad_masks(mask, message, images, tmp_path):
    good = encoded(np.zeros((HEIGHT, WIDTH), np.uint8))
    data = opened(images, write(tmp_path / "masks", {"a.png": good, "b.png": mask, "c.png": good}))
    with raises(message):
        list(data)


# ------------------------------------------------------------------------------------------------- text, arrays


@pytest.mark.parametrize(("text", "labels"), [
    ("c.png,5\na.png,3\n\nb.png,-1", [3, -1, 5]),
    ("\ufeffname,label\r\nc.png,5\r\na.png, 3\r\nb.png,1\r\n", [3, 1, 5]),
    ("elsewhere/c.png,5\na.png,3\nb.png,123456789012", [3, 123456789012, 5]),
])
def test_text_with_a_number_for_each_image(text, labels, images, tmp_path):
    data = opened(images, write(tmp_path, {"l.csv": text}) / "l.csv")
    assert [int(label) for label in labels_of(data)] == labels
    (batch,) = data
    assert batch.labels.shape == (3,) and batch.labels.dtype == np.int64


def test_text_with_several_numbers(images, tmp_path):
    data = opened(images, write(tmp_path, {"l.txt": "a.png,3 1 4\nb.png,1\nc.png,5 9"}) / "l.txt")
    assert [label.tolist() for label in labels_of(data)] == [[3, 1, 4], [1], [5, 9]]
    assert all(label.dtype == np.int64 for batch in data for label in batch.labels)


def test_names_are_paths_where_names_alone_are_not_enough(tmp_path):
    people = write(tmp_path / "people", {f"{who}/{n}.png": picture(n) for who in ("ann", "bob") for n in range(2)})
    path = write(tmp_path, {"l.csv": "bob/1.png,4\nbob/0.png,3\nann/0.png,1\nann/1.png,2\n"}) / "l.csv"
    assert labels_of(opened(people, path)) == [1, 2, 3, 4]
    with raises(r"people/ann/0.png: has no label in .*l.csv \(4 images have none\)"):
        opened(people, write(tmp_path, {"l.csv": "0.png,1\n1.png,2"}) / "l.csv")
    same = write(tmp_path / "same", {"x.png": picture(), "x.jpg": picture()})
    with raises("same: has two images 'x'"):
        opened(same, write(tmp_path / "voc", {"x.xml": voc()}))


def test_items_without_names_go_by_number(tmp_path):
    arrays = np.zeros((3, 2), np.float32)
    path = write(tmp_path, {"l.csv": "2,7\n0,5\n1,6"}) / "l.csv"
    assert labels_of(open_data(arrays, labels=path)) == [5, 6, 7]
    assert labels_of(open_data(rec(tmp_path, record(1), record(2), record(3)), labels=path, select="::2")) == [5, 7]


@pytest.mark.parametrize(("text", "message"), [
    ("a.png", r"line 1 is b'a.png', want `name,label`"),
    ("a.png,1\nb.png,x", r"line 2 is b'b.png,x'"),
    ("a.png,1\nb.png,1.5", "line 2"),
    ("a.png,1\nb.png,--5", "line 2"),
    ("a.png,1\nb.png,٣", "line 2"),
    ("a.png,1\nb.png,", "line 2"),
    ("a.png,1\nname,label", "line 2"),
    ("a.png,1\nb.png," + "9" * 19, "line 2"),
    ("a.png,1\nb.png," + "9 " * 40_000, "line 2"),
    (b"\xff,1", "line 1 is not text in UTF-8"),
    ("\n\n", "is empty"),
    ("a.png,1\nb.png,1\na.png,2", "has two entries for 'a.png'"),
    ("a.png,1\nb.png,1", "c.png: has no label in .*l.csv: add it, or leave the image out"),
])
def test_bad_text_is_refused_when_it_is_opened(text, message, images, tmp_path):
    with raises(message):
        opened(images, write(tmp_path, {"l.csv": text}) / "l.csv")


def saved(path: Path, array: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        np.savez_compressed(path, label=array)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("shape", [(5,), (5, 7, 3), (5, 4), (5, HEIGHT, WIDTH)])
def test_arrays_by_number(suffix, shape, tmp_path, caplog):
    labels = np.random.default_rng(0).integers(0, 9, shape)
    path, data = saved(tmp_path / f"l{suffix}", labels), np.zeros((5, 2), np.float32)
    assert np.array_equal(labels_of(open_data(data, labels=path, batch_size=2)), labels)
    assert np.array_equal(labels_of(open_data(data, labels=path, select="::-2")), labels[::-2])
    assert not caplog.text
    assert np.array_equal(labels_of(open_data(data[:3], labels=path)), labels[:3])
    assert "2 of its 5 entries belong to no image of array" in caplog.text
    with raises(r"array\[5\]: has no label in .* \(3 images have none\)"):
        open_data(np.zeros((8, 2), np.float32), labels=path)


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 4), (5, 6, 8)])
@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.float32])
def test_labels_of_an_npz_may_be_points_letters_or_masks(shape, kind, tmp_path):
    labels = np.random.default_rng(0).integers(0, 9, shape).astype(kind)
    np.savez(tmp_path / "a.npz", data=np.zeros((5, 2)), label=labels)
    data = open_data(tmp_path / "a.npz", batch_size=2)
    assert np.array_equal(labels_of(data), labels)
    want = np.float32 if kind == np.float32 and len(shape) == 3 else np.int64
    assert all(batch.labels.dtype == want for batch in data)


# ------------------------------------------------------------------------------------------------- what else can be


class Ragged:
    """A Dataset whose i-th label has i numbers."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(2, np.float32), np.arange(index, dtype=np.float32) + 1

    def __len__(self) -> int:
        return 4


def test_labels_of_several_lengths_are_a_list():
    data = open_data(Ragged())
    assert [label.tolist() for label in labels_of(data)] == [[], [1], [1, 2], [1, 2, 3]]
    (batch,) = data
    rows = list(batch.rows())
    assert [row.labels[0].tolist() for row in rows] == [[], [1], [1, 2], [1, 2, 3]] and len(rows[2]) == 1
    assert isinstance(batch, Batch) and isinstance(batch.labels, list)


def test_batches_of_a_stream_may_differ_in_the_shape_of_their_labels():
    batches = [(np.zeros((2, 3)), np.ones((2, width))) for width in (2, 4)]
    data = open_data(batches)
    assert [label.shape for label in labels_of(data)] == [(2,), (2,), (4,), (4,)]
    assert isinstance(data.fingerprint(), str)


def test_the_fingerprint_tells_other_boxes(tmp_path):
    def digest(*boxes: float) -> str:
        return open_data(rec(tmp_path, record(2, 5, 1, 0, 0, 1, 1), record(2, 5, *boxes))).fingerprint()

    two = digest(1, 0, 0, 0.5, 0.5, 2, 0, 0, 1, 1)
    assert two == digest(1, 0, 0, 0.5, 0.5, 2, 0, 0, 1, 1) != digest(1, 0, 0, 0.5, 0.6, 2, 0, 0, 1, 1)


def test_a_label_that_is_not_finite_names_its_item():
    labels = np.zeros((4, 3), np.float32)
    labels[2, 1] = np.nan
    data = open_data({"data": np.zeros((4, 2), np.float32), "label": labels})
    for read in (lambda: list(data), data.labels):
        with raises(r"arrays\[2\]: its label holds a number that is not finite"):
            read()


@pytest.mark.parametrize(("name", "make", "message"), [
    ("l.xlsx", b"", "found .xlsx extension, want .json, .csv, .txt, .npz, .npy, or a folder"),
    ("l", b"", "found no extension"),
    ("none.csv", None, "there is no such file or folder"),
    ("l.npz", b"broken", "l.npz: not a readable .npz"),
    ("l.npy", b"broken", "l.npy: not a readable .npy"),
    ("empty/x.txt", b"", "empty: holds no labels, want an .xml of VOC or a .png mask"),
])
def test_bad_files_of_labels(name, make, message, images, tmp_path):
    if make is not None:
        write(tmp_path, {name: make})
    with raises(message):
        opened(images, tmp_path / name.partition("/x")[0])


def test_bad_arrays_of_labels(images, tmp_path):
    np.savez(tmp_path / "l.npz", labels=np.arange(3))
    np.save(tmp_path / "zero.npy", np.int64(3))
    np.save(tmp_path / "text.npy", np.array(["a", "b", "c"]))
    for name, message in (("l.npz", r"has no array `label`: np.savez\(path, label=...\)"),
                          ("zero.npy", "holds one number"), ("text.npy", "want real numbers")):
        with raises(message):
            opened(images, tmp_path / name)


def test_labels_that_do_not_fit_the_source(tmp_path):
    path = write(tmp_path, {"x.json": coco()}) / "x.json"
    stream: Callable[[], Any] = lambda: open_data([np.zeros((2, 3))], labels=path)  # noqa: E731
    for read, message in ((stream, "list is a stream, whose labels come with its batches"),
                          (lambda: open_data(np.zeros((2, 3)), labels=path), "array is no folder of images"),
                          (lambda: open_data(np.zeros((2, 3)), labels=3), "labels is a int, want a path")):
        with raises(message, OptionError):
            read()


def test_labels_are_an_option_of_every_command_that_reads_images(images, tmp_path):
    from qgraph.cli import compare, eval, freeze, simulate
    path = write(tmp_path, {"l.csv": "a.png,1\nb.png,2\nc.png,0"}) / "l.csv"
    for options in (DataOptions(labels=str(path)), FreezeOptions(labels=str(path))):
        assert labels_of(options.open(images, {"data": (0, 3, 0, 0)})) == [1, 2, 0]
    for module in (compare, eval, freeze, simulate):
        (option,) = (param for param in module.command.params if param.name == "labels")
        assert option.opts == ["--labels"]


def test_nothing_warns_but_the_log(images, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels_of(opened(images, write(tmp_path / "labels", XMLS)))
        labels_of(opened(images, write(tmp_path, {"x.json": coco()}) / "x.json"))
