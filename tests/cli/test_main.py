"""The command line: words, exit codes, what goes to stdout and stderr, and that a mistake is one line."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import DIGITS, PLAIN, ROOT
from PIL import Image

from qgraph.cli import console
from qgraph.cli.freeze import command as freeze_command
from qgraph.cli.main import COMMANDS, cli, main
from qgraph.options import FreezeOptions
from qgraph.targets.registry import option_fields

SUFFIXES = ("-symbol.json", "-0000.params", ".calib.json", ".recipe.yaml", ".report.json", ".report.html")


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder with the digits network as net-*, its calibration images, and test.npz."""
    for name in ("-symbol.json", "-0000.params", "-calib.npz"):
        shutil.copy(f"{DIGITS}/digits{name}", tmp_path / f"net{name}")
    with np.load(f"{DIGITS}/digits-test.npz") as test:
        np.savez(tmp_path / "test.npz", data=test["data"][:64], label=test["label"][:64])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prefix of a frozen digits network."""
    prefix = str(tmp_path_factory.mktemp("frozen") / "digits-int8")
    assert main(["freeze", f"{DIGITS}/digits-symbol.json", "--output", prefix, "-q"]) == 0
    return prefix


def lines_of(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], list[str]]:
    captured = capsys.readouterr()
    return captured.out.splitlines(), captured.err.splitlines()


# ---- what goes right ------------------------------------------------------------------------------------------------

@pytest.mark.mxnet
def test_freeze_writes_its_files_and_says_so(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import mxnet as mx
    freeze = ["freeze", "net-symbol.json", "--exclude", "conv0", "--calib", "kl"]
    assert main(freeze) == 0
    out, err = lines_of(capsys)
    assert [line.split()[-1] for line in out if line.startswith("wrote")] == [f"net-quantized{s}" for s in SUFFIXES]
    assert any(line.startswith("quantized") and "8 of 9" in line and "conv0" in line for line in out)
    assert any(line.startswith("time ") and "calibrate" in line for line in out)
    assert len(out) + len(err) <= 24 and not any("fold-bn" in line for line in err)
    assert main([*freeze, "-v"]) == 0
    _, err = lines_of(capsys)
    assert any("fold-bn" in line for line in err) and any("excluded by 'conv0'" in line for line in err)
    assert {"layers", "ranges", "ops"} <= {line.strip() for line in err}
    module = mx.mod.Module.load("net-quantized", 0, data_names=["data"], label_names=None)
    module.bind(data_shapes=[("data", (2, 1, 24, 24))], for_training=False)


@pytest.mark.mxnet
def test_json_is_the_report_and_nothing_else(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["freeze", "net-symbol.json", "--json", "-q", "--output", "b"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out == (net / "b.report.json").read_text()
    assert json.loads(captured.out)["agreement"]["images"] == 100


@pytest.mark.mxnet
def test_eval_compare_inspect(net: Path, frozen: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", frozen, "--data", "test.npz", "--reference", "net", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"images", "top1", "top5", "agreement", "ms_per_image", "scores", "judged", "timing"}
    assert found["images"] == 64 and found["top1"] > 95 and found["agreement"] > 95 and found["ms_per_image"] > 0

    assert main(["compare", "net", frozen, "--data", "test.npz", "--json", "-q", "--html", "look.html"]) == 0
    found = json.loads(capsys.readouterr().out)
    page = Path("look.html").read_text(encoding="utf-8")
    assert all(x["name"] in page for x in found["layers"]) and '<figure class="chart" data-chart="added">' in page
    assert found["output"]["sqnr_db"] > 25 and found["exclude"].startswith("--exclude ")
    assert {"digits_depthwise_fwd", "digits_res1_conv2_fwd"} <= {x["name"] for x in found["layers"]}
    assert all(x["sqnr_db"] is None or x["sqnr_db"] > 25 for x in found["layers"])
    assert found["no_advice"] == "" and any(x["added_noise"] > 0 for x in found["layers"])

    assert main(["inspect", "net", "--exclude", "first", "--input-shape", "data:1,1,24,24", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["frozen"] is False and found["outputs"] == {"digits_dense_fwd": [1, 10]}
    assert [x["float"] for x in found["layers"]] == ["excluded by 'first'"] + [""] * 8
    assert main(["inspect", frozen, "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["frozen"] is True and found["ops"]["_sg_mkldnn_conv"] >= 8


@pytest.mark.parametrize(("target", "a", "kind", "added"), [
    ("onnx", "a.onnx", "an ONNX model", 0), ("tengine", "a.tmfile", "a Tengine model", 0),
    pytest.param("ncnn", "a.param", "an ncnn model", 0, marks=pytest.mark.ncnn), ("mxnet-sim", "a", "frozen", 1)])
def test_compare_says_why_it_has_no_advice(net: Path, target: str, a: str, kind: str, added: int,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["freeze", "net-symbol.json", "--target", target, *PLAIN, "--output", "a", "-q"]) == 0
    assert main(["convert", "net-symbol.json", "--to", "mxnet", "--output", "b", "-q"]) == 0
    capsys.readouterr()
    assert main(["compare", a, "b", "--data", "test.npz", "-q", "--html", "look.html"]) == 0
    out, _ = lines_of(capsys)
    assert out[-2:] == [f"no advice   A is {kind}, want the float MXNet model", "wrote       look.html"]
    assert ('<figure class="chart" data-chart="added">' in Path("look.html").read_text(encoding="utf-8")) is bool(added)
    row = next(line.split() for line in out if line.startswith("digits_res"))
    assert len(row) == 5 + added and float(row[3]) > 0.99
    assert not any(line.startswith(("worst", "try")) for line in out)
    assert main(["compare", a, "b", "--data", "test.npz", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all((x["added_noise"] is None) == (not added) for x in found["layers"]) and found["worst"] == []


@pytest.mark.mxnet
def test_checks_exit_with_3(net: Path, frozen: str, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load("test.npz") as test:  # one label is wrong
        np.savez("test.npz", data=test["data"], label=[(test["label"][0] + 1) % 10, *test["label"][1:]])
    assert main(["eval", frozen, "--data", "test.npz", "--min-top1", "50", "-q"]) == 0
    assert main(["eval", frozen, "--data", "test.npz", "--min-top1", "100", "-q"]) == 3
    assert main(["compare", "net", frozen, "--data", "test.npz", "--min-sqnr", "200", "-q"]) == 3
    _, err = lines_of(capsys)
    assert len(err) == 2 and all(line.startswith("qgraph: check failed: ") for line in err)


def test_passes_lists_and_explains(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passes"]) == 0
    names = [line.split()[0] for line in lines_of(capsys)[0]]
    assert names.index("fold-bn") < names.index("insert-fake-quantize") < names.index("calibrate")
    assert main(["passes", "insert-fake-quantize"]) == 0
    text = capsys.readouterr().out
    assert "weight_bits=8" in text and "act_signed" in text


@pytest.mark.mxnet
def test_dump_and_a_pass_of_ones_own(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine_cli.py").write_text(
        "from qgraph import Pass, register\n@register\nclass Nothing(Pass):\n    '''Does nothing.'''\n"
        "    name = 'nothing'\n    def run(self, g):\n        return 0\n")
    assert main(["freeze", "net-symbol.json", "--pass", "mine_cli:Nothing@fold-bn", "--dump-passes", "dump", *PLAIN,
                 "-q"]) == 0
    names = sorted(os.listdir("dump"))
    assert names[:5] == ["00-input.txt", "01-canonicalize.txt", "02-constants.txt", "03-fold-bn.txt", "04-nothing.txt"]
    assert names[-1].endswith("-bake-weights.txt") and len(set(n[:2] for n in names)) == len(names)


@pytest.mark.parametrize("data", ["net-calib.npz", "misnamed.npz", "flat"])
def test_eval_says_why_there_are_no_scores(data: str, net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load("test.npz") as test:
        np.savez("misnamed.npz", data=test["data"], labels=test["label"])
    Path("flat").mkdir()
    Image.new("L", (24, 24)).save("flat/0.png")
    assert main(["eval", "net", "--data", data, "-q"]) == 0
    line = lines_of(capsys)[0][1]
    assert line.startswith(f"scores        not known: {data} has no labels") and "`label` of an .npz" in line


def test_a_summary_of_nothing_quantized(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exclude = [word for op in ("Convolution", "FullyConnected") for word in ("--exclude", f"op:{op}")]
    assert main(["freeze", "net", "--target", "onnx", *exclude, *PLAIN, "-q"]) == 0
    assert "onnxruntime 0 integer ops: no layer is quantized" in lines_of(capsys)[0]


# ---- what goes wrong ------------------------------------------------------------------------------------------------

FREEZE = ["freeze", "net-symbol.json"]
MISTAKES = {
    "typo in --exclude": ([*FREEZE, "--exclude", "digits_res1_conv3"], "close names: digits_res1_conv"),
    "ambiguous --exclude": ([*FREEZE, "--exclude", "conv1"], "ambiguous"),
    "no model": (["freeze", "met-symbol.json"], "did you mean net-symbol.json"),
    "a folder": (["freeze", "."], "a folder"),
    "params for symbol": (["freeze", "net-0000.params"], "these are parameters"),
    "no params": ([*FREEZE, "--params", "nope.params"], "nope.params: no such file"),
    "params are a folder": ([*FREEZE, "--params", "."], ".: a folder"),
    "no epoch": ([*FREEZE, "--epoch", "3"], "--epoch can be 0"),
    "empty folder": ([*FREEZE, "--calib-data", "empty"], "holds no images"),
    "no data": ([*FREEZE, "--calib-data", "nope.rec"], "no such file"),
    "bad mean": ([*FREEZE, "--mean", "1,x,3"], "--mean is '1,x,3'"),
    "bad slice": ([*FREEZE, "--select", "a:b"], "--select is 'a:b'"),
    "bad preset": ([*FREEZE, "--preprocess", "imagnet"], "did you mean imagenet"),
    "no output folder": ([*FREEZE, "--output", "no/where"], "does not exist"),
    "output is a folder": ([*FREEZE, "--output", "empty/"], "want a prefix"),
    "output is the model": ([*FREEZE, "--output", "net"], "overwrite the model"),
    "output is its symbol": ([*FREEZE, "--output", "net-symbol.json"], "overwrite the model"),
    "output are the params": ([*FREEZE, "--params", "best-0000.params", "--output", "best"], "overwrite the model"),
    "output is a dot": ([*FREEZE, "--output", "."], "want a prefix"),
    "instructions of another target": ([*FREEZE, "--isa", "avx2"], "it is for --target onnx"),
    "bits that 4-bit storage ignores": ([*FREEZE, "--target", "onnx", "--int4", "--act-bits", "4"], "stay in float"),
    "two targets for one file": ([*FREEZE, "--target", "mxnet", "--target", "mxnet-sim"], "as another target does"),
    "bits": ([*FREEZE, "--weight-bits", "4"], "--target mxnet-sim"),
    "bits that only a simulation has": ([*FREEZE, "--target", "onnx", "--act-bits", "12"], "--target mxnet-sim"),
    "BatchNorms apart": ([*FREEZE, "--no-merge-bn"], "mxnet cannot carry --no-merge-bn; mxnet-sim can"),
    "bits that no target has": ([*FREEZE, "--weight-bits", "17"], "mxnet takes 8; mxnet-sim takes 2, 3"),
    "input name": ([*FREEZE, "--input-shape", "dat:1,1,24,24"], "did you mean data"),
    "input numbers": ([*FREEZE, "--input-shape", "data:1,1,x"], "--input-shape is"),
    "input that data contradict": ([*FREEZE, "--input-shape", "data:1,3,24,24"], "want (3, 24, 24)"),
    "pass": ([*FREEZE, "--passes", "fold-bm"], "did you mean fold-bn"),
    "pass without ranges": ([*FREEZE, "--passes", "fold-bn,insert-fake-quantize"], "calibrate"),
    "user's pass without a name": ([*FREEZE, "--pass", "nameless_cli:X@fold-bn"], "a pass needs a name"),
    "user's pass that wants arguments": ([*FREEZE, "--pass", "wanting_cli:X@fold-bn"], "needs arguments"),
    "user's pass": ([*FREEZE, "--pass", "nomodule:X@fold-bn"], "no module 'nomodule'"),
    "user's pass of a taken name": ([*FREEZE, "--pass", "taken_cli:X@fold-bn"], "is that of qgraph.passes.calibrate"),
    "user's pass that breaks": ([*FREEZE, "--pass", "breaking_cli:X@fold-bn"], "pass broken broke: ZeroDivisionError"),
    "user's pass that counts nothing": ([*FREEZE, "--pass", "none_cli:X@fold-bn"], "returned None, want the number"),
    "user's pass of a damaged file": ([*FREEZE, "--pass", "broken_cli:X@fold-bn"], "invalid syntax (broken_cli.py, "),
    "user's pass that imports nothing": ([*FREEZE, "--pass", "wanting2_cli:X@fold-bn"],
                                         "'wanting2_cli' cannot be imported: ModuleNotFoundError: No module named "
                                         "'no_such'"),
    "user's pass of no file in a package": ([*FREEZE, "--pass", "json.nomodule:X@fold-bn"],
                                            "no module 'json.nomodule'"),
    "table": ([*FREEZE, "--calib-table", "text"], "not JSON"),
    "no table": ([*FREEZE, "--calib-table", "none.json"], "none.json"),
    "dump into a file": ([*FREEZE, "--dump-passes", "text"],
                         "--dump-passes text: File exists, want a folder to write in"),
    "dump below a file": ([*FREEZE, "--dump-passes", "text/d"], "--dump-passes text/d: Not a directory, want a folder"),
    "damaged symbol": (["freeze", "bad-symbol.json", "--params", "net-0000.params"], "bad-symbol.json"),
    "damaged params": ([*FREEZE, "--params", "text"], "text"),
    "no labels": (["eval", "net", "--data", "net-calib.npz", "--min-top1", "1"],
                  "cannot be checked; labels come from"),
    "weights of ncnn": (["eval", "net.bin", "--data", "test.npz"], "these are the weights of an ncnn model, give"),
    "scales of ncnn": (["inspect", "net.table"], "these are the scales of an ncnn model, give its .param"),
    "scales of Tengine": (["inspect", "net.scale"], "these are the scales of a Tengine model, give its .tmfile"),
    "ranges": (["inspect", "net.calib.json"], "this is a table of ranges (for --calib-table), give a MODEL-symbol"),
    "no such params": (["inspect", "net.params"], "did you mean net-symbol.json or "),
    "no such epoch": (["inspect", "net-0003.params"], "did you mean net-symbol.json or "),
    "preset for ready data": (["eval", "net", "--data", "test.npz", "--preprocess", "imagenet"], "is taken as ready"),
    "missing reference": (["eval", "net", "--data", "test.npz", "--reference", "nett"], "nett"),
    "shape": (["inspect", "net", "--input-shape", "data:1,5,8,8"], "digits_conv0_fwd"),
    "no pass": (["passes", "fold-bm"], "did you mean fold-bn"),
}


@pytest.mark.mxnet
@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_old_files(case: str, net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    Path("text").write_text("this is not what you think")
    shutil.copy("net-0000.params", "best-0000.params")
    user_pass = "from qgraph import Pass, register\n@register\nclass X(Pass):\n  {}\n  def run(self, g): return 0\n"
    Path("nameless_cli.py").write_text(user_pass.format("k: int = 0"))
    Path("wanting_cli.py").write_text(user_pass.format("name = 'x'; k: int"))
    Path("taken_cli.py").write_text(user_pass.format("name = 'calibrate'"))
    Path("breaking_cli.py").write_text(user_pass.format("name = 'broken'").replace("return 0", "return 1 / 0"))
    Path("none_cli.py").write_text(user_pass.format("name = 'none'").replace("return 0", "pass"))
    Path("broken_cli.py").write_text("def x(:\n")
    Path("wanting2_cli.py").write_text("import no_such\n")
    for name in ("net.bin", "net.table", "net.scale", "net.calib.json", "net-folded-symbol.json"):
        Path(name).write_bytes(b"\xff")
    Path("bad-symbol.json").write_text(Path("net-symbol.json").read_text()[:500])
    for suffix in SUFFIXES:
        Path(f"net-quantized{suffix}").write_text("old")
    args, fragment = MISTAKES[case]
    before = sorted(os.listdir("."))
    quiet = [] if args[0] == "passes" else ["-q"]
    assert main([*args, *quiet]) == 1
    out, err = lines_of(capsys)
    assert out == [] and len(err) == 1, err
    assert err[0].startswith("qgraph: error: ") and fragment in err[0], err
    assert sorted(set(os.listdir(".")) - {"__pycache__"}) == before and os.listdir("empty") == []
    assert all(Path(f"net-quantized{suffix}").read_text() == "old" for suffix in SUFFIXES)


@pytest.mark.slow
def test_an_onnx_model_may_lie_beside_the_float_one(net: Path) -> None:
    before = Path("net-0000.params").read_bytes(), Path("net-symbol.json").read_bytes()
    for output in ("net", "net.onnx"):
        assert main(["freeze", "net-symbol.json", "--target", "onnx", *PLAIN, "--output", output, "-q"]) == 0
        assert {"net.onnx", "net.report.json"} <= set(os.listdir(".")) and "net.onnx.onnx" not in os.listdir(".")
    assert (Path("net-0000.params").read_bytes(), Path("net-symbol.json").read_bytes()) == before


@pytest.mark.parametrize("args", [["freez"], ["freeze"], ["freeze", "x", "--nosuch"],
                                  ["freeze", "x", "--calib", "best"], ["freeze", "x", "--target", "tpu"],
                                  ["inspect", "x", "--target", "tpu"],
                                  ["eval", "x"], ["passes", "a", "b"],
                                  ["freeze", "x", "-q", "-v"], ["freeze", "x", "--num-calib", "0"],
                                  ["eval", "x", "--data", "y", "--min-top1", "995"]])
def test_usage_errors_exit_with_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    out, err = lines_of(capsys)
    assert out == [] and err[-1].startswith("Error: ")


def test_the_choices_are_those_of_the_library() -> None:
    from qgraph.cli.freeze import command
    from qgraph.options import ONLINE
    from qgraph.quant.ranges import method
    from qgraph.targets.onnx.target import ISAS
    from qgraph.targets.registry import get_target

    choices = {p.name: list(p.type.choices) for p in command.params if hasattr(p.type, "choices")}
    assert choices["act_signed"] == list(get_target("mxnet-sim").spec.act_signed)
    assert choices["isa"] == list(ISAS)
    assert choices["calib"][-1] == ONLINE
    for name in choices["calib"][:-1]:
        assert method(name)


@pytest.mark.mxnet
def test_an_interrupt_keeps_the_old_files(net: Path, capsys: pytest.CaptureFixture[str],
                                          monkeypatch: pytest.MonkeyPatch) -> None:

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qgraph.commands.line.collect", interrupt)
    Path("net-quantized-symbol.json").write_text("old")
    assert main([*FREEZE, "-q"]) == 130
    _, err = lines_of(capsys)
    assert [line for line in err if line] == ["qgraph: interrupted: nothing was written"]
    assert Path("net-quantized-symbol.json").read_text() == "old"


@pytest.mark.mxnet
def test_our_own_bug_keeps_its_traceback(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qgraph.commands.line.collect", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([*FREEZE, "-q"])


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=ROOT)


def test_import_is_light() -> None:
    done = run("import sys, qgraph; qgraph.Graph; print(sorted({'mxnet', 'onnx', 'rich', 'click'} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stderr
    names = run("import qgraph\nfor name in qgraph.__all__: getattr(qgraph, name)")
    assert names.returncode == 0, names.stderr


def test_a_closed_pipe_is_quiet() -> None:
    done = subprocess.run(f"{sys.executable} -m qgraph passes | true", shell=True, capture_output=True, text=True,
                          cwd=ROOT)
    assert done.stderr == ""


# ---- the contract ---------------------------------------------------------------------------------------------------

def test_flags_are_the_fields_of_the_options() -> None:
    flags = {p.name: p for p in freeze_command.params}
    fields = {f.name: f for f in dataclasses.fields(FreezeOptions)}
    of_targets = option_fields()
    assert {"isa", "int4", "fast"} <= of_targets.keys()
    rest = {"model", "as_json", "quiet", "verbose", "strict", "targets", "threads", "workers", "scheduler",
            *of_targets}
    assert set(flags) - rest == set(fields) - {"target"}
    with freeze_command.make_context("freeze", ["x"]) as ctx:
        assert ctx.params.pop("targets") == (fields.pop("target").default,)
        assert all(ctx.params[name] is None for name in of_targets)
        for name, f in fields.items():
            assert ctx.params[name] == f.default, name


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Examples:" in out and f"qgraph {name}" in out
    assert cli.get_command(None, name).get_short_help_str(120).rstrip(".")  # type: ignore[union-attr, arg-type]


def test_help_of_compare_names_every_kind_of_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(suffix in out for suffix in ("-symbol.json", ".onnx", ".param", ".tmfile"))


def test_bars_show_rate_and_time_left_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich.console import Console

    for terminal in (True, False):
        text = io.StringIO()
        monkeypatch.setattr(console, "err", Console(file=text, force_terminal=terminal, width=100))
        console.set_up(False, False)
        with console.Bars() as bars:
            for done in (0, 20, 40):
                bars("ranges", done, 40)
        shown = text.getvalue()
        assert ("ranges" in shown and "40/40" in shown and "/s" in shown and ":" in shown) if terminal else shown == ""


@pytest.mark.parametrize("count, text", [(0, "0 B"), (999, "999 B"), (1000, "1 KB"), (348_700, "348.7 KB"),
                                         (4_980_000, "4.98 MB"), (12_345_678_901, "12.35 GB")])
def test_sizes(count: int, text: str) -> None:
    assert console.size(count) == text
