"""`qgraph.freeze`, `evaluate` and `compare` in Python, on the bundled digits network and small ones made here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import DIGITS

import qgraph
from qgraph import FreezeOptions, Graph, Pass, Port
from qgraph.analysis.difference import Difference
from qgraph.commands.departure import kernel_departure
from qgraph.commands.floatcheck import relative_error, run_checked
from qgraph.commands.frozen import Frozen
from qgraph.engines import runtime
from qgraph.errors import CalibrationError, FormatError, OptionError, PassError
from qgraph.ir.rewrite import register
from qgraph.passes import PIPELINES
from qgraph.targets.mxnet.model import MxnetModel

pytestmark = pytest.mark.mxnet

MODEL = str(DIGITS / "digits-symbol.json")
TARGETS = ("mxnet", "mxnet-sim")


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    with np.load(DIGITS / "digits-test.npz") as test:
        return test["data"][:96].astype(np.float32), test["label"][:96].astype(np.int64)


@pytest.fixture(scope="module")
def frozen() -> dict[str, Frozen]:
    return {t: qgraph.freeze(MODEL, FreezeOptions(target=t, exclude=("conv0",), calib="kl")) for t in TARGETS}


@pytest.mark.parametrize("options", [
    {"target": ["mxnet", "onnx"]}, {"exclude": None}, {"calib": None}, {"input_shape": (1, 1, 24, 24)},
    {"input_shape": {"data": (1, 1, 24, 24)}}, {"merge_bn": "no"}, {"runtime": 3}])
def test_options_of_the_wrong_kind_are_named(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        FreezeOptions(**options)  # type: ignore[arg-type]


def test_a_table_of_another_method_is_refused(frozen: dict[str, Frozen]) -> None:
    table = frozen["mxnet"].table
    assert table is not None and table.method == "kl"
    with pytest.raises(OptionError, match="by kl; leave one of them out"):
        qgraph.freeze(MODEL, FreezeOptions(calib="mse"), calib_table=table)
    qgraph.freeze(MODEL, FreezeOptions(calib="kl", exclude=("conv0",)), calib_table=table)


def test_means_may_be_numbers() -> None:
    assert FreezeOptions(mean=(0.5, 0.4, 0.3), std=(1, 1, 1)).mean == (0.5, 0.4, 0.3)  # type: ignore[arg-type]


def test_the_float_model_is_not_overwritten(tmp_path: Path) -> None:
    for name in ("symbol.json", "0000.params", "calib.npz"):
        shutil.copy(DIGITS / f"digits-{name}", tmp_path / f"m-{name}")
    before = (tmp_path / "m-0000.params").read_bytes()
    frozen = qgraph.freeze(str(tmp_path / "m-symbol.json"))
    with pytest.raises(OptionError, match="overwrite the model"):
        frozen.save(tmp_path / "m")
    assert (tmp_path / "m-0000.params").read_bytes() == before


@pytest.mark.parametrize("shapes", ["x", {"data": "1,1,24,24"}, {"data": None}])
def test_module_wants_shapes(shapes: object, frozen: dict[str, Frozen]) -> None:
    with pytest.raises(OptionError, match="want a shape"):
        frozen["mxnet"].module(shapes)  # type: ignore[arg-type]


def test_agreement_is_that_with_the_users_model() -> None:
    """Whatever a pass that promises nothing has done before."""
    class Sigmoids(Pass):
        name = "sigmoids-for-relus"

        def run(self, g: Graph) -> int:
            for node in g.nodes("Activation"):
                node.attrs["act_type"] = "sigmoid"
            return len(g.nodes("Activation"))

    register(Sigmoids)
    line = ("canonicalize,sigmoids-for-relus,fold-bn,fuse-relu,insert-fake-quantize,calibrate,share-scales,"
            "signed-residual,quantize-bias,bake-weights")
    report = qgraph.freeze(MODEL, FreezeOptions(target="mxnet-sim", passes=line)).report
    assert report["agreement"]["top1"] < 50


def float_graph() -> Graph:
    return qgraph.load(MODEL, str(DIGITS / "digits-0000.params"))


# ---- freeze ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("target", TARGETS)
def test_the_files_run_in_mxnet_as_the_checks_did(target: str, frozen: dict[str, Frozen], tmp_path: Path,
                                                  images: tuple[np.ndarray, np.ndarray]) -> None:
    import mxnet as mx

    data, labels = images
    paths = frozen[target].save(tmp_path / "m")
    assert [Path(p).name for p in paths] == ["m-symbol.json", "m-0000.params", "m.calib.json", "m.recipe.yaml",
                                              "m.report.json", "m.report.html"]
    loaded = mx.mod.Module.load(str(tmp_path / "m"), 0, data_names=["data"], label_names=None)
    loaded.bind(data_shapes=[("data", data.shape)], for_training=False)
    bound = frozen[target].module(data.shape)
    batch = mx.io.DataBatch([mx.nd.array(data)])
    outputs = []
    for module in (loaded, bound):
        module.forward(batch, is_train=False)
        outputs.append(module.get_outputs()[0].asnumpy())
    watched = runtime("test")(frozen[target].model.ir).run({"data": data})[0]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_allclose(outputs[0], watched, atol=1e-4 * np.abs(watched).max())
    assert (outputs[0].argmax(1) == labels).mean() > 0.96


@pytest.mark.parametrize("target", TARGETS)
def test_the_report(target: str, frozen: dict[str, Frozen], tmp_path: Path) -> None:
    report = frozen[target].report
    assert len(report["quantized"]) == 8
    assert report["float"] == [{"name": "digits_conv0_fwd", "op": "Convolution", "reason": "excluded by 'conv0'"}]
    assert report["agreement"]["images"] == 100 and report["agreement"]["top1"] >= 97
    assert report["departure"]["within_one"] >= 99.9 and len(report["departure"]["layers"]) >= 7
    assert report["ops"]["before"]["BatchNorm"] == 8 and not frozen[target].graph.nodes("BatchNorm")
    assert ("BatchNorm" in report["ops"]["after"]) is (target == "mxnet-sim")  # its steps are multiplied by such ops
    assert report["calibration"] == {"method": "kl", "images": 100, "data": "digits-calib.npz",
                                     "preprocess": frozen[target].table.preprocess}  # type: ignore[union-attr]
    tensor = report["tensors"]["digits_depthwise_fwd"]
    assert tensor["dtype"] == "u8" and tensor["low"] == 0 and tensor["high"] == pytest.approx(255 * tensor["scale"])
    assert report["tensors"]["digits_dense_weight"]["source"] == ["weights"]
    assert [p["name"] for p in report["passes"]][:3] == ["canonicalize", "constants", "fold-bn"]
    frozen[target].save(tmp_path / "m")
    sizes = sum((tmp_path / f"m{s}").stat().st_size for s in ("-symbol.json", "-0000.params"))
    assert report["size"]["after"] == sizes
    assert json.loads((tmp_path / "m.report.json").read_text())["quantized"] == report["quantized"]


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        qgraph.freeze(MODEL, FreezeOptions(calib="kl", output=f"{tmp_path}/{name}")).save(tmp_path / name)
    for suffix in ("-symbol.json", "-0000.params", ".calib.json", ".recipe.yaml", ".report.json", ".report.html"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes(), suffix


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_the_batch_size_does_not_matter(target: str) -> None:
    """With one table, what passes measure on images is the same for every batch size."""
    table = qgraph.freeze(MODEL, FreezeOptions(target=target)).table
    runs = [qgraph.freeze(MODEL, FreezeOptions(target=target, batch_size=size), calib_table=table)
            for size in (4, 10, 50)]
    assert len({run.model.ir.digest() for run in runs}) == 1


@pytest.mark.parametrize("target", TARGETS)
def test_a_table_stands_in_for_the_data(target: str, frozen: dict[str, Frozen], tmp_path: Path) -> None:
    """The table of one target serves the other, without data; a table of another model is refused."""
    for suffix in ("-symbol.json", "-0000.params"):
        shutil.copy(DIGITS / f"digits{suffix}", tmp_path / f"n{suffix}")
    other = frozen[TARGETS[1 - TARGETS.index(target)]]
    other.save(tmp_path / "other")
    options = FreezeOptions(target=target, exclude=("conv0",), input_shape="data:1,1,24,24")
    again = qgraph.freeze(tmp_path / "n-symbol.json", options, calib_table=str(tmp_path / "other.calib.json"))
    assert again.report["agreement"] is None and again.report["calibration"]["method"] == "kl"
    assert again.report["tensors"].keys() == frozen[target].report["tensors"].keys()
    for name, row in frozen[target].report["tensors"].items():
        assert again.report["tensors"][name] == row, name
    # weights are rounded, and channels ordered, by what images show: with the same ones it is the same file
    again = qgraph.freeze(tmp_path / "n-symbol.json", options, calib_table=str(tmp_path / "other.calib.json"),
                          calib_data=str(DIGITS / "digits-calib.npz"))
    assert again.model.ir.digest() == frozen[target].model.ir.digest()
    with pytest.raises(OptionError, match="--input-shape data:"):
        qgraph.freeze(tmp_path / "n-symbol.json", FreezeOptions(), calib_table=other.table)
    changed = float_graph()
    changed.params["digits_dense_bias"] = changed.params["digits_dense_bias"] + 1
    with pytest.raises(CalibrationError, match="another model"):
        qgraph.freeze(changed, options, calib_table=other.table)


def test_a_graph_and_a_gluon_block(images: tuple[np.ndarray, np.ndarray], frozen: dict[str, Frozen]) -> None:
    import mxnet as mx

    options = FreezeOptions(target="mxnet-sim", exclude=("conv0",), calib="kl")
    with np.load(DIGITS / "digits-calib.npz") as file:
        calib = file["data"].astype(np.float32)
    g = float_graph()
    digest = g.digest()
    by_graph = qgraph.freeze(g, options, calib_data=calib)
    assert g.digest() == digest, "the user's graph was changed"
    assert by_graph.model.ir.digest() == frozen["mxnet-sim"].model.ir.digest()
    block = mx.gluon.SymbolBlock.imports(MODEL, ["data"], str(DIGITS / "digits-0000.params"))
    by_block = qgraph.freeze(block, options, calib_data=iter([calib[:50], calib[50:]]))
    assert by_block.model.ir.digest() == frozen["mxnet-sim"].model.ir.digest()
    with pytest.raises(OptionError, match="give a prefix"):
        by_graph.save()


def test_four_bits_per_layer_are_simulated(images: tuple[np.ndarray, np.ndarray]) -> None:
    found = qgraph.freeze(MODEL, FreezeOptions(target="mxnet-sim", weight_bits=4, act_bits=5, granularity="layer"))
    codes = found.model.ir.params["digits_res2_conv1_weight_codes"]
    assert 5 < len(np.unique(codes)) <= 15 and np.array_equal(codes, codes.astype(np.int8)) and np.abs(codes).max() == 7
    assert found.report["departure"]["within_one"] == 100.0
    assert found.report["quantized"][0]["weight"] == "s4" and found.report["quantized"][0]["granularity"] == "layer"


def test_all_excluded_is_said_and_stays_float(caplog: pytest.LogCaptureFixture) -> None:
    found = qgraph.freeze(MODEL, FreezeOptions(exclude=("op:Convolution", "op:FullyConnected")))
    assert found.table is None and found.report["quantized"] == [] and len(found.report["float"]) == 9
    assert "nothing is quantized" in caplog.text
    assert found.report["agreement"]["top1"] == 100


def test_frozen_models_are_refused(frozen: dict[str, Frozen], tmp_path: Path) -> None:
    frozen["mxnet"].save(tmp_path / "m")
    with pytest.raises(OptionError, match="quantized already"):
        qgraph.freeze(tmp_path / "m-symbol.json")


def test_a_label_needs_no_data(tmp_path: Path) -> None:
    """An old-style network with SoftmaxOutput: frozen, judged and evaluated without feeding its label."""
    import mxnet as mx

    data = mx.sym.Variable("data")
    net = mx.sym.Convolution(data, kernel=(3, 3), num_filter=8, name="c")
    net = mx.sym.Activation(mx.sym.BatchNorm(net, fix_gamma=False, name="b"), act_type="relu")
    net = mx.sym.FullyConnected(mx.sym.flatten(net), num_hidden=4, name="f")
    net = mx.sym.SoftmaxOutput(net, name="softmax")
    module = mx.mod.Module(net)
    module.bind(data_shapes=[("data", (8, 3, 8, 8))], label_shapes=[("softmax_label", (8,))])
    mx.random.seed(3)
    module.init_params(mx.init.Xavier(magnitude=8))
    module.save_checkpoint(str(tmp_path / "old"), 4)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 3, 8, 8)).astype(np.float32)
    found = qgraph.freeze(tmp_path / "old-symbol.json", calib_data=x)
    assert found.report["agreement"]["top1"] >= 95 and len(found.report["quantized"]) == 2
    judged = qgraph.evaluate(tmp_path / "old", x, reference=found)
    assert judged["agreement"] == found.report["agreement"]["top1"] and judged["top1"] is None


def test_no_data_and_no_batch_norm() -> None:
    g = Graph()
    data = g.add("null", name="data")
    weight = g.add_param("w", np.ones((4, 3, 1, 1), np.float32))
    g.heads = [Port(g.add("Convolution", [data, weight], "c", kernel=(1, 1), num_filter=4, no_bias=True))]
    with pytest.raises(CalibrationError, match="no BatchNorm.*--calib-data"):
        qgraph.freeze(g, FreezeOptions(input_shape="data:1,3,8,8"))
    with pytest.raises(OptionError, match="shape of input 'data' is not known"):
        qgraph.freeze(g)


def test_without_data_images_are_distilled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for suffix in ("-symbol.json", "-0000.params"):
        shutil.copy(DIGITS / f"digits{suffix}", tmp_path / f"n{suffix}")
    seen = set()
    options = FreezeOptions(input_shape="data:1,1,24,24", num_calib=16)
    found = qgraph.freeze(tmp_path / "n-symbol.json", options, progress=lambda what, *_: seen.add(what))
    assert seen == {"distilling images", "channels", "ranges", "histograms"}
    assert "WARNING: no calibration data" in caplog.text
    assert found.report["calibration"]["data"].startswith("distilled") and found.report["calibration"]["images"] == 16
    judged = qgraph.evaluate(found, str(DIGITS / "digits-test.npz"), reference=MODEL)
    assert judged["agreement"] > 70


def test_which_parameters(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without --epoch the highest one, said aloud; a truncated file is named."""
    from qgraph.commands.open_model import open_model

    shutil.copy(MODEL, tmp_path / "n[1]-symbol.json")
    for epoch in (0, 12, 3):
        shutil.copy(DIGITS / "digits-0000.params", tmp_path / f"n[1]-{epoch:04d}.params")
    assert open_model(tmp_path / "n[1]").files[1].endswith("n[1]-0012.params")
    assert "taking the last" in caplog.text
    assert open_model(tmp_path / "n[1]-symbol.json", epoch=3).files[1].endswith("-0003.params")
    path = tmp_path / "n[1]-0012.params"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FormatError, match="0012.params"):
        open_model(tmp_path / "n[1]")


# ---- float passes are checked ---------------------------------------------------------------------------------------

@register
class DoubleBias(Pass):
    """A wrong rewrite, for the tests."""

    name = "test-double-bias"
    preserves_float = True
    honest: bool = False

    def run(self, g: Graph) -> int:
        g.params["digits_dense_bias"] = g.params["digits_dense_bias"] * 2 + 1
        return 1


@register
class HonestDoubleBias(DoubleBias):
    """The same, but it does not promise anything."""

    name = "test-honest-double-bias"
    preserves_float = False


def test_a_wrong_pass_is_named() -> None:
    feeds = {"data": np.random.default_rng(0).standard_normal((2, 1, 24, 24)).astype(np.float32)}
    line = PIPELINES["float"]
    executor = runtime("test")
    assert run_checked(line, float_graph(), feeds, executor) < 1e-5
    with pytest.raises(PassError, match="pass test-double-bias changed the outputs"):
        run_checked((*line[:2], DoubleBias(), *line[2:]), float_graph(), feeds, executor)
    assert run_checked((*line[:2], HonestDoubleBias(), *line[2:]), float_graph(), feeds, executor) < 1e-5


@pytest.mark.parametrize("want, found, error", [
    ([1.0, -4.0], [1.0, -4.0], 0.0), ([1.0, -4.0], [1.4, -4.0], 0.1), ([0.0, 0.0], [0.0, 0.5], 0.5),
    ([1.0, np.nan], [1.0, 2.0], np.inf), ([1.0, np.inf], [1.0, np.inf], 0.0), ([1.0], [1.0, 2.0], np.inf)])
def test_relative_error(want: list[float], found: list[float], error: float) -> None:
    assert relative_error(np.array(want), np.array(found)) == pytest.approx(error)


# ---- departure, compare, evaluate -----------------------------------------------------------------------------------

def damage(lowered: Graph, layer: str, amount: float) -> None:
    """Adds to the layer's bias."""
    bias = next(name for name in lowered.params if layer in name and "bias" in name)
    step = next((array for name, array in lowered.params.items() if layer in name and name.endswith("_steps")), 1.0)
    lowered.params[bias] = lowered.params[bias] + (amount / step if bias.endswith("_codes") else amount)


@pytest.mark.parametrize("target", TARGETS)
def test_a_damaged_kernel_is_blamed_alone(target: str, frozen: dict[str, Frozen],
                                          images: tuple[np.ndarray, np.ndarray]) -> None:
    damaged = frozen[target].model.ir.copy()
    damage(damaged, "res1_conv1", 1.0)
    codes = {fq: Port(damaged.find(port.node.name), port.index) for fq, port in frozen[target].model.codes.items()}
    found = kernel_departure(frozen[target].graph, MxnetModel(damaged, codes), {"data": images[0][:2]},
                             "mxnet" if target == "mxnet-sim" else "half-even", lambda m, watch: m.executor(watch))
    bad = [name for name, row in found["layers"].items() if row["within_one"] < 99]
    assert bad == ["digits_res1_conv1_fwd"]
    assert found["within_one"] < 99


@pytest.mark.parametrize("target", TARGETS)
def test_compare_finds_the_damaged_layer(target: str, frozen: dict[str, Frozen], tmp_path: Path,
                                         images: tuple[np.ndarray, np.ndarray]) -> None:
    good = qgraph.compare(MODEL, frozen[target], images[0])
    rows = {row["name"]: row for row in good["layers"]}
    assert good["images"] == 96 and good["output"]["sqnr_db"] > 25 and good["agreement"] >= 97
    assert rows["digits_conv0_fwd"]["sqnr_db"] is None or rows["digits_conv0_fwd"]["sqnr_db"] > 100  # excluded
    assert all(row["sqnr_db"] is None or row["sqnr_db"] > 25 for row in rows.values())
    damaged = frozen[target].model.ir.copy()
    damage(damaged, "res2_conv1", 0.5)
    bad = qgraph.compare(MODEL, damaged, images[0])
    after = {row["name"]: row for row in bad["layers"]}
    names = list(rows)
    for name in names[:names.index("digits_res2_conv1_fwd")]:
        assert after[name] == rows[name]
    assert after["digits_res2_conv1_fwd"]["sqnr_db"] < rows["digits_res2_conv1_fwd"]["sqnr_db"] - 10
    assert "digits_res2_conv1_fwd" in bad["worst"] and "--exclude digits_res2_conv1_fwd" in bad["exclude"]
    again = qgraph.freeze(MODEL, FreezeOptions(target=target, exclude=tuple(bad["exclude"].split()[1::2])))
    assert len(again.report["float"]) == len(bad["worst"])


def test_compare_an_integer_model_with_itself(frozen: dict[str, Frozen], images: tuple[np.ndarray, np.ndarray]) -> None:
    found = qgraph.compare(frozen["mxnet"], frozen["mxnet"], images[0])
    assert {"digits_conv0_fwd_q", "digits_res1_conv2_fwd", "digits_res2__plus0"} <= {r["name"] for r in found["layers"]}
    assert all(row["sqnr_db"] is None for row in [found["output"], *found["layers"]])


def test_compare_undoes_what_passes_did_to_codes(frozen: dict[str, Frozen], tmp_path: Path,
                                                 images: tuple[np.ndarray, np.ndarray]) -> None:
    """`signed-residual` shifts res1_conv2, in float too; `pair-channels` reorders conv0 and its quantizer."""
    onnx, other, excluded = (qgraph.freeze(MODEL, FreezeOptions(target=target, exclude=exclude))
                             for target, exclude in (("onnx", ()), ("mxnet", ()), ("mxnet", ("res1_conv2",))))
    excluded.save(tmp_path / "excluded")
    for a, b in ((frozen["mxnet"], onnx), (onnx, frozen["mxnet"]), (frozen["mxnet"], other),
                 (frozen["mxnet"], frozen["mxnet-sim"]), (MODEL, str(tmp_path / "excluded")), (excluded, onnx)):
        rows = {row["name"]: row["sqnr_db"] for row in qgraph.compare(a, b, images[0])["layers"]}
        assert "digits_res1_conv2_fwd" in rows
        assert all(sqnr is None or sqnr > 25 for sqnr in rows.values()), rows


@pytest.mark.parametrize("text", ["", "x", "nan", "1e400"])
def test_compare_refuses_a_file_with_a_wrong_shift(text: str, frozen: dict[str, Frozen], tmp_path: Path,
                                                   images: tuple[np.ndarray, np.ndarray]) -> None:
    frozen["mxnet"].save(tmp_path / "net")
    path = tmp_path / "net-symbol.json"
    symbol = json.loads(path.read_text())
    node = next(n for n in symbol["nodes"] if n["name"] == "digits_res1_conv2_fwd")
    assert float(node["attrs"]["__shift__"]) > 0
    node["attrs"]["__shift__"] = text
    path.write_text(json.dumps(symbol))
    with pytest.raises(FormatError, match="digits_res1_conv2_fwd.*__shift__.*want a number"):
        qgraph.compare(MODEL, str(tmp_path / "net"), images[0])


def test_difference_against_a_plain_computation() -> None:
    rng = np.random.default_rng(1)
    a = rng.standard_normal((6, 50)).astype(np.float32)
    b = a + 0.01 * rng.standard_normal(a.shape).astype(np.float32)
    total = Difference()
    total.update(a[:2], b[:2])
    total.update(a[2:], b[2:])
    noise = a.astype(np.float64) - b
    assert total.sqnr == pytest.approx(10 * np.log10((a.astype(np.float64) ** 2).sum() / (noise ** 2).sum()), abs=1e-6)
    assert total.cosine == pytest.approx(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
    assert total.largest == pytest.approx(np.abs(noise).max())
    same = Difference()
    same.update(a, a)
    assert same.sqnr is None and same.cosine == pytest.approx(1)


def test_evaluate_counts(images: tuple[np.ndarray, np.ndarray]) -> None:
    data, labels = images
    scores = runtime("test")(float_graph()).run({"data": data})[0]
    wrong = labels.copy()
    wrong[:24] = (scores[:24].argsort(axis=1)[:, -3])  # right only among the first five
    found = qgraph.evaluate(MODEL, {"data": data, "label": wrong}, reference=MODEL)
    assert found["images"] == 96 and found["agreement"] == 100.0
    assert found["top1"] == round(100 * (scores.argmax(1) == wrong).mean(), 2) <= 75.0
    assert found["top5"] == 100.0 and found["ms_per_image"] > 0
    with pytest.raises(qgraph.QGraphError, match="label 77, but the model has 10 classes"):
        qgraph.evaluate(MODEL, {"data": data, "label": np.where(labels == 9, 77, labels)})


@pytest.mark.parametrize("bad", [{"num_calib": 0}, {"seed": "a"}, {"weight_bits": "8"}, {"act_bits": 7.5}])
def test_options_that_are_no_whole_numbers_are_refused(bad: dict) -> None:
    with pytest.raises(OptionError, match="want a whole number from"):
        FreezeOptions(**bad)


def test_a_module_of_the_wrong_shape_is_an_error_of_the_caller(frozen: dict) -> None:
    with pytest.raises(OptionError, match="cannot bind"):
        frozen["mxnet"].module((1, 3, 24, 24))
    with pytest.raises(OptionError, match="none for data"):
        frozen["mxnet"].module({"dta": (1, 1, 24, 24)})
    assert len(repr(frozen["mxnet"])) < 300


def test_arrays_are_no_option() -> None:
    with pytest.raises(OptionError, match=r"calib_data is a ndarray, want a path; arrays .* qgraph.freeze"):
        FreezeOptions(calib_data=np.zeros((1, 1, 24, 24)))  # type: ignore[arg-type]


@pytest.mark.parametrize("head", ["LinearRegressionOutput", "MAERegressionOutput", "SVMOutput", "SoftmaxOutput"])
def test_heads_of_the_training_want_no_label(head: str) -> None:
    import mxnet as mx

    dense = mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=3, name="dense")
    symbol, rng = getattr(mx.sym, head)(dense, name="out"), np.random.default_rng(0)
    params = {"dense_weight": rng.standard_normal((3, 8)).astype(np.float32), "dense_bias": np.ones(3, np.float32)}
    data = {"data": rng.standard_normal((4, 8)).astype(np.float32)}
    made = qgraph.freeze(qgraph.load(symbol, params), calib_data=data)
    assert not [n for n in made.model.ir.data_inputs() if n.name != "data"]
