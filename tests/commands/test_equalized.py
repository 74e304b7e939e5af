"""Networks whose channels `equalize` scales: every target, calibration tables, compare, and the batch size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from networks import Net

import qgraph
from qgraph import FreezeOptions, Graph
from qgraph.commands.frozen import Frozen
from qgraph.errors import FormatError, OptionError
from qgraph.files import write_files
from qgraph.formats.mxnet_writer import checkpoint_files

pytestmark = pytest.mark.mxnet

TARGETS = ("mxnet-sim", "mxnet", "onnx", "ncnn", "tengine")
LAYERS = ("first", "second", "third")


def uneven() -> Graph:
    """Convolutions whose channels are of 1/30 to 30, and readers that are trained to it."""
    n = Net(7, channels=3, size=8)
    x = n.conv(n.x, 16, name="first")
    x = n.conv(n.pool(x), 8, name="second")
    x = n.conv(x, 8, 1, name="third")
    sizes = np.logspace(-1.5, 1.5, 16).astype(np.float32)[np.random.default_rng(1).permutation(16)]
    n.g.params["first_weight"] *= sizes[:, None, None, None]
    n.g.params["first_bias"] *= sizes
    n.g.params["second_weight"] /= sizes[:, None, None]
    return n.done(n.head(x))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(48, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("uneven")
    write_files(checkpoint_files(uneven(), f"{folder}/net"))
    return f"{folder}/net-symbol.json"


@pytest.fixture(scope="module")
def frozen(model: str, images: np.ndarray) -> dict[str, Frozen]:
    return {target: qgraph.freeze(model, FreezeOptions(target=target), calib_data={"data": images[:32]})
            for target in TARGETS}


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_equalizes_and_compares_with_the_users_network(
        target: str, frozen: dict[str, Frozen], model: str, images: np.ndarray, tmp_path: Path) -> None:
    done = frozen[target]
    assert next(row["changed"] for row in done.report["passes"] if row["name"] == "equalize") >= 1
    assert max(row["scaled"][1] for row in done.report["tensors"].values() if "scaled" in row) > 20
    done.save(tmp_path / "frozen")
    ending = {"ncnn": ".param", "tengine": ".tmfile", "onnx": ".onnx"}.get(target, "-symbol.json")
    for b in (done, str(tmp_path / f"frozen{ending}")):
        found = qgraph.compare(model, b, {"data": images[32:]})
        rows = {row["name"]: row["sqnr_db"] for row in found["layers"]}
        assert {*LAYERS} <= rows.keys()
        assert all(sqnr > 25 for sqnr in rows.values()), rows
        assert found["output"]["sqnr_db"] > 25


@pytest.mark.parametrize("target", TARGETS)
def test_the_table_has_the_factors(target: str, frozen: dict[str, Frozen], model: str, images: np.ndarray,
                                   tmp_path: Path) -> None:
    """With its own table a file is the same again; with one of whichever target the same channels are scaled."""
    options = FreezeOptions(target=target)
    other = frozen[TARGETS[TARGETS.index(target) - 1]].table
    again = qgraph.freeze(model, options, calib_table=frozen[target].table, calib_data={"data": images[:32]})
    for folder, done in (("first", frozen[target]), ("again", again)):
        (tmp_path / folder).mkdir()
        done.save(tmp_path / folder / "net")
    for path in (tmp_path / "first").iterdir():
        if not path.name.endswith((".report.json", ".calib.json")):
            assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    options = FreezeOptions(target=target, input_shape="data:1,3,8,8")
    blind = qgraph.freeze(model, options, calib_table=other)
    assert blind.graph.find("first").scales == frozen[target].graph.find("first").scales


def test_a_table_without_factors_scales_nothing(model: str, images: np.ndarray) -> None:
    """As tables of earlier versions are."""
    line = "canonicalize,constants,fold-bn,fuse-relu,insert-fake-quantize,calibrate,bake-weights"
    plain = qgraph.freeze(model, FreezeOptions(target="mxnet-sim", passes=line), calib_data={"data": images[:32]})
    assert not plain.table.factors
    again = qgraph.freeze(model, FreezeOptions(target="mxnet-sim"), calib_table=plain.table,
                          calib_data={"data": images[:32]})
    assert again.graph.find("first").scales is None


def test_another_effort_does_not_take_its_table(model: str, frozen: dict[str, Frozen]) -> None:
    with pytest.raises(OptionError, match="equalized channels, which --effort fast leaves"):
        qgraph.freeze(model, FreezeOptions(target="onnx", effort="fast", input_shape="data:1,3,8,8"),
                      calib_table=frozen["mxnet-sim"].table)


def test_the_batch_size_does_not_matter(model: str, images: np.ndarray, frozen: dict[str, Frozen]) -> None:
    for size in (1, 5, 32):
        again = qgraph.freeze(model, FreezeOptions(target="mxnet-sim", batch_size=size),
                              calib_data={"data": images[:32]})
        assert again.table.factors == frozen["mxnet-sim"].table.factors


def test_simulate_is_what_freeze_makes(model: str, images: np.ndarray, frozen: dict[str, Frozen]) -> None:
    found = qgraph.simulate(model, {"data": images[32:]}, options=FreezeOptions(),
                            calib_data={"data": images[:32]})
    row, = (found.row(strategy) for strategy in found.strategies)
    judged = qgraph.compare(model, frozen["mxnet-sim"], {"data": images[32:]})
    assert row["sqnr_db"] == pytest.approx(judged["output"]["sqnr_db"], abs=0.01)


@pytest.mark.parametrize("text", ["", "x", "[]", "[0]", "[-1.0]", "[1e400]", "[[1]]", "{}"])
def test_a_file_with_wrong_factors_is_refused(text: str, frozen: dict[str, Frozen], tmp_path: Path, model: str,
                                              images: np.ndarray) -> None:
    frozen["mxnet-sim"].save(tmp_path / "net")
    path = tmp_path / "net-symbol.json"
    symbol = json.loads(path.read_text())
    node = next(n for n in symbol["nodes"] if n["name"] == "first")
    assert max(json.loads(node["attrs"]["__channel_scales__"])) > 20
    node["attrs"]["__channel_scales__"] = text
    path.write_text(json.dumps(symbol))
    with pytest.raises(FormatError, match="first.*__channel_scales__.*want factors"):
        qgraph.compare(model, str(path), {"data": images[32:]})
