"""The model of `vpmaddubsw`, and the passes that lessen what it takes away.

``python test_saturation.py`` prints what the kernels do as JSON: oneDNN reads its instruction set from the environment
when a process starts.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from typing import Any

import networks
import numpy as np
import overflow
import pytest
from helpers import ROOT, VNNI
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Net, steps, table_of
from overflow import LAYERS, SIGNED, Feeds, all_facts, fused

from qgraph.analysis.channels import channel_orders
from qgraph.ir.graph import Graph, Node, Port
from qgraph.ir.rewrite import PassManager
from qgraph.passes.limit_saturation import FACTORS, NOTICED, LimitSaturation, error_with
from qgraph.passes.pair_channels import PairChannels
from qgraph.passes.signed_dense import SignedDense
from qgraph.quant.spec import QParams
from qgraph.semantics.interpreter import Executor as Reference
from qgraph.semantics.interpreter import run
from qgraph.semantics.saturation import Layer, pair_excess, pairs, sample_layers
from qgraph.targets.registry import get_target


def excess_by_loop(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """codes (P, C, taps) and (O, C, taps) -> (P, O), from what the instruction is said to do."""
    out = np.zeros((len(x), len(w)))
    channels, taps = x.shape[1:]
    for p, o, c, t in itertools.product(range(len(x)), range(len(w)), range(0, channels, 2), range(taps)):
        total = int(x[p, c, t]) * int(w[o, c, t])
        if c + 1 < channels:
            total += int(x[p, c + 1, t]) * int(w[o, c + 1, t])
        out[p, o] += total - min(max(total, -32768), 32767)
    return out


# ---- the model ------------------------------------------------------------------------------------------------------

@settings(max_examples=60)
@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 5), st.integers(1, 4), st.integers(0, 2**32 - 1),
       st.sampled_from([40, 130, 255]))
def test_excess_is_that_of_a_loop(channels: int, taps: int, positions: int, filters: int, seed: int, top: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.choice([0, top, top - 1, top // 2], (positions, channels, taps))
    w = rng.choice([-128, -127, -64, -3, 0, 64, 65, 126, 127], (filters, channels, taps))
    assert np.array_equal(pair_excess(pairs(x), pairs(w)), excess_by_loop(x, w))
    order = rng.permutation(channels)
    layer = Layer(None, x, w, np.full(filters, 0.5))  # type: ignore[arg-type]
    assert np.allclose(layer.excess(order), excess_by_loop(x[:, order], w[:, order]) / 2)
    if positions:
        assert layer.missed() == (np.abs(excess_by_loop(x, w)) > 2).mean()


def test_the_bounds_of_int16() -> None:
    """Just inside and just outside."""
    x = np.array([[[255], [255]]])
    for weights, want in (((127, 1), 0), ((127, 2), 128), ((-128, 0), 0), ((-128, -1), -127), ((127, -128), 0)):
        assert pair_excess(pairs(x), pairs(np.array(weights).reshape(1, 2, 1))) == want
    assert pair_excess(pairs(np.array([[[128], [255]]])), pairs(np.array([[[-1], [-128]]]))) == 0  # -32768
    assert pair_excess(pairs(np.array([[[129], [255]]])), pairs(np.array([[[-1], [-128]]]))) == -1


@pytest.fixture(scope="module")
def native() -> dict[str, Any]:
    return all_facts()


@pytest.fixture(scope="module")
def avx2() -> dict[str, Any]:
    env = {**os.environ, "DNNL_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, overflow.__file__], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.mxnet
@pytest.mark.parametrize(("kind", "channels"), LAYERS)
def test_the_model_foretells_what_a_cpu_without_vnni_gets_wrong(kind: str, channels: int, avx2: dict[str, Any]) -> None:
    facts = avx2[f"{kind} {channels}"]
    assert facts["missed"] > 0.1 and facts["inside"] > 0.9  # wrong indeed, and not because the range ends
    assert facts["exact"] > 10
    assert facts["model"] <= 1


@pytest.mark.mxnet
@pytest.mark.skipif(not VNNI, reason="this CPU has no VNNI")
@pytest.mark.parametrize(("kind", "channels"), LAYERS)
def test_with_vnni_nothing_saturates(kind: str, channels: int, native: dict[str, Any]) -> None:
    assert native[f"{kind} {channels}"]["exact"] <= 1


# ---- networks that saturate -----------------------------------------------------------------------------------------


def saturating(seed: int = 0, channels: int = 16) -> tuple[Graph, Feeds]:
    """Many activations at the top of their range, and pairs of channels with weights of one sign, in turn."""
    n = Net(seed, size=8)
    x = n.conv(n.x, channels, act="relu6")
    y = n.conv(n.pool(x), channels, 1, "relu6")
    g = n.done(n.head(n.conv(n.conv(y, channels, 3, "relu6", groups=channels), 12, 1)))
    signs = np.where(np.arange(channels) // 2 % 2, -1, 1)[:, None, None]
    for name in ("conv1", "conv3"):
        w = g.params[f"{name}_weight"]
        g.params[f"{name}_weight"] = (np.abs(w) + np.float32(0.7) * np.abs(w).max()) * signs.astype(np.float32)
    for name in ("conv0", "conv1", "conv2"):
        g.params[f"{name}_weight"] = g.params[f"{name}_weight"] * np.float32(6)
    return fused(g), {"data": n.rng.normal(size=(4, *n.shape)).astype(np.float32)}


def before(name: str, g: Graph, feeds: Feeds) -> Graph:
    """A copy behind the passes that come before the named one, with biases moved by none of the later."""
    q = g.copy()
    line = steps("mxnet", table_of(g, feeds))
    PassManager(tuple(line[:get_target("mxnet").passes.index(name)])).run(q)
    return q


def amount(g: Graph, feeds: Feeds) -> float:
    """What saturation takes from the pairs of all layers, in output codes: what `pair-channels` lowers."""
    total = 0.0
    for layer in sample_layers(g, feeds, "mxnet"):
        x, w = pairs(layer.x), pairs(layer.w)
        total += sum(float(np.abs(pair_excess(x[:, [m]], w[:, [m]]) * layer.unit).mean()) for m in range(x.shape[1]))
    return total


def rates(g: Graph, feeds: Feeds) -> dict[str, float]:
    return {layer.node.name: layer.missed() for layer in sample_layers(g, feeds, "mxnet")}


# ---- pair-channels --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(4))
def test_pairing_lowers_saturation(seed: int) -> None:
    g, feeds = saturating(seed)
    q = before("pair-channels", g, feeds)
    want, old, taken = run(q, feeds), rates(q, feeds), amount(q, feeds)
    assert max(old.values()) > 0.05
    changed = PairChannels(feeds=feeds).run(q)
    q.verify()
    assert 1 <= changed <= len(channel_orders(q))
    new = rates(q, feeds)
    assert new.keys() == old.keys()
    assert all(new[k] <= old[k] for k in old), (old, new)
    assert sum(new.values()) < 0.5 * sum(old.values())
    assert amount(q, feeds) < taken
    assert np.allclose(run(q, feeds)[0], want[0], atol=1e-6)
    once, left = amount(q, feeds), dict(new)
    PairChannels(feeds=feeds).run(q)
    assert amount(q, feeds) <= once * (1 + 1e-6)
    assert all(rates(q, feeds)[k] <= left[k] + 0.005 for k in left)


def test_pairing_is_deterministic() -> None:
    digests = set()
    for _ in range(2):
        g, feeds = saturating(1)
        q = before("pair-channels", g, feeds)
        PairChannels(feeds=feeds).run(q)
        digests.add(q.digest())
    assert len(digests) == 1


def test_without_images_or_without_saturation_nothing_is_paired() -> None:
    g, feeds = saturating()
    q = before("pair-channels", g, feeds)
    digest = q.digest()
    assert PairChannels().run(q) == LimitSaturation().run(q) == 0 and q.digest() == digest
    g, feeds = networks.build("conv_pool_conv")  # its neighbours have opposite signs
    q = before("pair-channels", g, feeds)
    digest = q.digest()
    assert PairChannels(feeds=feeds).run(q) == 0 and q.digest() == digest


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_pairing_never_raises_what_is_lost(name: str) -> None:
    """With weights of any sign, in networks of every shape."""
    g, feeds = networks.build(name)
    rng = np.random.default_rng(1)
    for key, array in g.params.items():
        if array.ndim == 4:
            flip = rng.random(array.shape) < 0.5
            g.params[key] = np.where(flip, np.abs(array), array).astype(np.float32)
    q = before("pair-channels", g, feeds)
    taken, want = amount(q, feeds), run(q, feeds)
    changed = PairChannels(feeds=feeds).run(q)
    after = amount(q, feeds)
    assert after < taken if changed else after == taken
    assert all(np.array_equal(a, b) for a, b in zip(run(q, feeds), want))


# ---- limit-saturation -----------------------------------------------------------------------------------------------

def pointwise(values: np.ndarray, weights: np.ndarray, act: str = "relu", readers: int = 1) -> tuple[Graph, Feeds]:
    """data -> conv0 (identity, activation) -> 1x1 convolutions with these weights (O, C) -> head.

    values: (N, C, H, W) >= 0; their largest is 255 steps.
    """
    n = Net(0, values.shape[1], values.shape[2])
    eye = n.g.add_param("eye", np.eye(values.shape[1], dtype=np.float32)[:, :, None, None])
    x = n.conv(n.x, values.shape[1], 1, act, name="conv0", bias=False, weight=eye)
    ends = []
    for i in range(readers):
        w = n.g.add_param(f"w{i}", weights[:, :, None, None].astype(np.float32))
        ends.append(n.conv(x, len(weights), 1, "", name=f"reader{i}", bias=False, weight=w))
    return fused(n.done(*ends)), {"data": values.astype(np.float32)}


def same_signs(rng: np.random.Generator, out: int, channels: int) -> np.ndarray:
    """Pairs of equal signs: the sums stay small while the pairs overflow."""
    signs = np.repeat(rng.choice([-1, 1], (out, channels // 2)), 2, axis=1)
    return signs * rng.uniform(0.9, 1, (out, channels))


def all_large() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    return rng.uniform(0.8, 1, (2, 8, 8, 8)) * 3, same_signs(rng, 6, 8)


def rarely_large() -> tuple[np.ndarray, np.ndarray]:
    """A few positions saturate a little; the others are small, where steps matter."""
    rng = np.random.default_rng(3)
    values = rng.uniform(0, 0.1, (2, 8, 16, 16))
    values.reshape(2, 8, -1)[0, :, :4] = 0.53
    values[0, 0, 0, 5] = 1
    return values, np.array([1, 1, -1, -1, 1, 1, -1, -1]) * rng.uniform(0.9, 1, (6, 8))


def widened(g: Graph, feeds: Feeds) -> tuple[Graph, Graph, LimitSaturation, int]:
    q = before("limit-saturation", g, feeds)
    old = q.copy()
    step = LimitSaturation(feeds=feeds)
    return old, q, step, step.run(q)


def scale_of_input(g: Graph, layer: str) -> float:
    node = g.inputs(g.find(layer))[0].node
    assert isinstance(node.quant, QParams)
    return float(node.quant.scale)


def by_hand(g: Graph, feeds: Feeds, layer: str, factor: float) -> tuple[float, float]:
    """(part missed, root mean square error in output codes) of a 1x1 convolution, from its codes."""
    conv = g.find(layer)
    x = Reference(g, [g.inputs(conv)[0]]).run_tensors(feeds)[0]
    w = Reference(g, [g.inputs(conv)[1]]).run_tensors({})[0]
    out = g.uses(conv)[0][0].quant
    assert isinstance(out, QParams) and x.qp is not None and w.qp is not None
    codes = x.codes.transpose(0, 2, 3, 1).reshape(-1, x.codes.shape[1], 1)
    weights = w.codes.reshape(*w.codes.shape[:2], 1)
    coarse = np.rint(codes / np.float32(factor)).astype(int)
    exact = codes[:, :, 0] @ weights[:, :, 0].T
    unit = float(x.qp.scale) * w.qp.scale.astype(float) / float(out.scale)
    found = (coarse[:, :, 0] @ weights[:, :, 0].T - excess_by_loop(coarse, weights)) * factor
    lost = excess_by_loop(codes, weights) * unit
    return float((np.abs(lost) > 1).mean()), float(np.sqrt((((found - exact) * unit) ** 2).mean()))


@pytest.mark.parametrize(("made", "wins"), [(all_large, True), (rarely_large, False)])
def test_the_range_is_widened_where_that_is_the_smaller_error(made: Any, wins: bool) -> None:
    g, feeds = pointwise(*made())
    old, q, step, changed = widened(g, feeds)
    (finding,) = step.findings
    assert finding.layer == "reader0" and finding.why == ""
    assert list(finding.errors) == [1.0, *FACTORS]
    assert finding.missed > NOTICED
    for factor, error in finding.errors.items():
        missed, want = by_hand(old, feeds, "reader0", factor)
        assert error == pytest.approx(want, rel=1e-4)
        assert finding.missed == pytest.approx(missed)
    assert finding.chosen == min(finding.errors, key=finding.errors.get)
    assert scale_of_input(q, "reader0") == pytest.approx(scale_of_input(old, "reader0") * finding.chosen)
    assert (finding.chosen > 1) == wins == (changed == 1)
    assert (q.digest() != old.digest()) == wins
    json.dumps(finding.to_dict())


def test_the_widened_range_is_nearer_to_the_float_network() -> None:
    """As the kernel would compute it: what the model takes away, taken away."""
    g, feeds = pointwise(*all_large())
    old, q, _, _ = widened(g, feeds)
    one, two = (rates(x, feeds)["reader0"] for x in (old, q))
    assert two < 0.1 * one


def test_all_readers_of_a_tensor_are_asked() -> None:
    g, feeds = pointwise(*all_large(), readers=2)
    g.params["w1"] = g.params["w1"] * np.where(np.arange(8) % 2, -1, 1).astype(np.float32)[:, None, None]
    old, q, step, changed = widened(g, feeds)
    assert [f.layer for f in step.findings] == ["reader0"]  # the other one does not saturate
    layers = {x.node.name: x for x in sample_layers(old, feeds, "mxnet")}
    cost = {f: sum(error_with(layers[k], f) ** 2 for k in ("reader0", "reader1")) for f in (1.0, *FACTORS)}
    assert step.findings[0].chosen == min(cost, key=lambda f: cost[f])
    assert changed == 1


def test_behind_a_fused_clip_there_is_no_choice() -> None:
    values, weights = all_large()
    g, feeds = pointwise(values * 3, weights, "relu6")
    old, q, step, changed = widened(g, feeds)
    (finding,) = step.findings
    assert finding.why == "the range of conv0 must end at its fused clip"
    assert (finding.chosen, list(finding.errors), changed) == (1.0, [1.0], 0)
    assert q.digest() == old.digest()


def test_inputs_of_a_concatenation_keep_one_scale() -> None:
    """One of them is read by a convolution that saturates, and all are read together by another."""
    values, weights = all_large()
    n = Net(5, 8, 8)
    eye = n.g.add_param("eye", np.eye(8, dtype=np.float32)[:, :, None, None])
    a = n.conv(n.x, 8, 1, name="a", bias=False, weight=eye)
    b = n.conv(n.x, 8, 1, name="b")
    w = n.g.add_param("w", weights[:, :, None, None].astype(np.float32))
    both = n.conv(n.concat(a, b), 6, 1, "", name="both")
    g = fused(n.done(n.conv(a, 6, 1, "", name="hot", bias=False, weight=w), both))
    old, q, step, changed = widened(g, {"data": values.astype(np.float32)})
    assert changed == 1 and {f.layer for f in step.findings} >= {"hot"}
    assert len({f.chosen for f in step.findings}) == 1
    scales = {float(p.node.quant.scale) for p in q.inputs(q.nodes("Concat")[0])}  # type: ignore[union-attr]
    assert scales == {scale_of_input(q, "hot")}
    assert scale_of_input(q, "hot") == pytest.approx(scale_of_input(old, "hot") * step.findings[0].chosen)


@pytest.mark.mxnet
def test_findings_are_in_the_report() -> None:
    import qgraph
    from qgraph.options import FreezeOptions

    for made, act in ((all_large, "relu"), (all_large, "relu6")):
        values, weights = made()
        g, feeds = pointwise(values * (3 if act == "relu6" else 1), weights, act)
        rows = qgraph.freeze(g, FreezeOptions(), calib_data=feeds).report["saturation"]
        assert [row["layer"] for row in rows] == ["reader0"]
        assert rows[0]["missed_percent"] > 10
        if act == "relu":
            assert rows[0]["chosen"] > 1 and rows[0]["why"] == ""
            assert list(rows[0]["rms_error_by_factor"]) == ["1.0", "1.25", "1.5", "2.0"]
        else:
            assert rows[0]["chosen"] == 1 and "fused clip" in rows[0]["why"]
    g, feeds = networks.build("conv_pool_conv")
    assert qgraph.freeze(g, FreezeOptions(), calib_data=feeds).report["saturation"] == []


# ---- signed codes ---------------------------------------------------------------------------------------------------


@pytest.mark.mxnet
@pytest.mark.parametrize("name", SIGNED)
def test_a_signed_input_does_not_saturate(name: str, native: dict[str, Any], avx2: dict[str, Any]) -> None:
    """Weights of one sign, large inputs: with weights of at most 64 all products of a pair fit."""
    assert avx2[f"signed {name}"]["max"] <= 1
    assert native[f"signed {name}"]["max"] <= (2 if VNNI else 1)  # the largest weight counts 63.5 there


def dense_inputs(g: Graph, name: str) -> list[Node]:
    return [p.node for p in g.inputs(g.find(name))]


def test_a_dense_layer_that_reads_signed_codes_is_computed_in_float() -> None:
    """The first of them reads the input, which is signed; the other reads what relu has made."""
    g, feeds = networks.build("dense_only")
    q = before("signed-dense", g, feeds)
    assert dense_inputs(q, "fc0")[0].op == "fake_quantize"
    assert SignedDense().run(q) == 1
    q.verify()
    assert [n.op for n in dense_inputs(q, "fc0")] == ["null"] * 3
    assert [n.op for n in dense_inputs(q, "fc1")[:2]] == ["fake_quantize"] * 2
    want, got = (run(x, feeds, [Port(x.find("fc0"))])[0] for x in (g, q))
    assert np.allclose(want, got, atol=1e-5)
    digest = q.digest()
    assert SignedDense().run(q) == 0 and q.digest() == digest


@pytest.mark.parametrize("name", ["signed_all_through", "residual_linear", "conv_pool_conv"])
def test_convolutions_are_left_alone(name: str) -> None:
    q = before("signed-dense", *networks.build(name))
    digest = q.digest()
    assert SignedDense().run(q) == 0 and q.digest() == digest
