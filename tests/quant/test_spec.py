"""The one arithmetic of quantization: its laws, and MXNet's own quantizers bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.errors import OptionError
from qgraph.ir.graph import Graph, Port
from qgraph.quant.spec import (
    ROUNDING,
    QParams,
    QSpec,
    dequantize,
    fake_quantize,
    mxnet_range,
    per_axis,
    quantize,
    with_range,
)
from qgraph.targets.mxnet import sim as mxnet_sim

BITS = tuple(range(2, 9))
SPECS = st.builds(QSpec, bits=st.integers(2, 16), signed=st.booleans(), narrow=st.booleans())
SCALES = st.floats(-20, 20).map(lambda e: np.float32(10.0 ** e))
ROUNDINGS = st.sampled_from(sorted(ROUNDING))
quick = settings(max_examples=150)


def params(spec: QSpec, scale: object = 1.0, zero_point: object = 0) -> QParams:
    return spec.with_numbers(scale, zero_point)  # type: ignore[arg-type]


def spread(qp: QParams, seed: int, count: int = 400) -> np.ndarray:
    """Values in and out of the range of `qp`, many of them on ties between two codes."""
    rng = np.random.default_rng(seed)
    low, high = qp.qmin - 3, qp.qmax + 3
    codes = np.concatenate([rng.uniform(low, high, count), rng.integers(low, high, count) + 0.5, [0.0]])
    return (codes * np.float64(qp.scale)).astype(np.float32)


# ---- ranges of codes ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("spec", "low", "high", "name"), [
    (QSpec(8, True), -128, 127, "s8"), (QSpec(8, True, narrow=True), -127, 127, "s8"), (QSpec(8, False), 0, 255, "u8"),
    (QSpec(2, True), -2, 1, "s2"), (QSpec(2, True, narrow=True), -1, 1, "s2"), (QSpec(2, False), 0, 3, "u2"),
    (QSpec(8, True, limit=64), -64, 64, "s8"), (QSpec(8, False, limit=127), 0, 127, "u8"),
    (QSpec(16, True), -32768, 32767, "s16"), (QSpec(8), 0, 255, "auto8"),
])
def test_range_of_codes(spec: QSpec, low: int, high: int, name: str) -> None:
    assert (spec.qmin, spec.qmax, spec.dtype) == (low, high, name)


@pytest.mark.parametrize("bits", [-1, 0, 1, 17, 31, 33])
def test_impossible_widths(bits: int) -> None:
    with pytest.raises(OptionError, match=f"found {bits}, want 2 to 16"):
        QSpec(bits)


def test_unknown_granularity() -> None:
    with pytest.raises(OptionError, match="found 'row', want one of tensor, group, channel"):
        QSpec(granularity="row")


@pytest.mark.parametrize(("scale", "granularity", "message"), [
    (0.0, "tensor", "want finite and > 0"), (-1.0, "tensor", "want finite"), (np.nan, "tensor", "want finite"),
    (np.inf, "tensor", "want finite"), ([1.0, 0.0], "channel", "want finite"), ([1.0], "tensor", "shape"),
    (1.0, "channel", "shape"), (1e-50, "tensor", "want finite and > 0"),
])
def test_impossible_scales(scale: object, granularity: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        params(QSpec(8, True, granularity=granularity), scale)


def test_params_know_their_sign_and_cannot_be_changed() -> None:
    with pytest.raises(OptionError, match="signed must be known"):
        QParams()
    qp = params(QSpec(8, True, granularity="channel"), [1.0, 2.0])
    with pytest.raises(ValueError, match="read-only"):
        qp.scale[0] = 3
    assert qp.zero_point.shape == (2,)
    assert qp.key == params(qp.spec, [1.0, 2.0]).key != params(qp.spec, [1.0, 2.5]).key


# ---- laws -----------------------------------------------------------------------------------------------------------

@quick
@given(spec=SPECS, scale=SCALES, rounding=ROUNDINGS, seed=st.integers(0, 999))
def test_codes_are_near_and_in_range(spec: QSpec, scale: np.float32, rounding: str, seed: int) -> None:
    qp = params(spec, scale)
    x = spread(qp, seed)
    q = quantize(x, qp, rounding)
    assert q.dtype == np.int32 and q.min() >= spec.qmin and q.max() <= spec.qmax
    position = np.clip(x.astype(np.float64) / np.float64(scale), spec.qmin, spec.qmax)
    assert np.abs(q - position).max() <= 0.5 + 1e-6 * spec.qmax
    order = np.argsort(x)
    assert (np.diff(q[order]) >= 0).all()


@quick
@given(spec=SPECS, scale=SCALES, rounding=ROUNDINGS)
def test_values_that_have_a_code_stay(spec: QSpec, scale: np.float32, rounding: str) -> None:
    qp = params(spec, scale)
    codes = np.unique(np.linspace(spec.qmin, spec.qmax, 600).astype(np.int32))
    x = dequantize(codes, qp)
    assert x.dtype == np.float32
    assert np.array_equal(quantize(x, qp, rounding), codes)
    assert np.array_equal(fake_quantize(x, qp, rounding), x)


@quick
@given(bits=st.integers(2, 16), scale=SCALES, rounding=ROUNDINGS, seed=st.integers(0, 99))
def test_narrow_signed_codes_are_symmetric(bits: int, scale: np.float32, rounding: str, seed: int) -> None:
    qp = params(QSpec(bits, True, narrow=True), scale)
    x = spread(qp, seed)
    assert np.array_equal(quantize(-x, qp, rounding), -quantize(x, qp, rounding))


def test_ties() -> None:
    x, qp = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32), params(QSpec(8, True))
    assert quantize(x, qp, "half-even").tolist() == [-2, -2, 0, 0, 2, 2]
    assert quantize(x, qp, "mxnet").tolist() == [-2, -2, 0, 0, 2, 2]
    assert quantize(x, qp, "half-away").tolist() == [-3, -2, -1, 1, 2, 3]


def test_zero_point() -> None:
    qp = params(QSpec(8, False), 0.5, 128)
    x = np.array([-64, -0.5, 0, 0.5, 63.5, 99], np.float32)
    assert quantize(x, qp).tolist() == [0, 127, 128, 129, 255, 255]
    assert fake_quantize(x, qp).tolist() == [-64, -0.5, 0, 0.5, 63.5, 63.5]


@pytest.mark.parametrize("rounding", sorted(ROUNDING))
def test_what_is_not_finite(rounding: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45], np.float32)
    assert quantize(x, params(QSpec(8, True), 1e-3), rounding).tolist() == [0, 127, -128, 127, -128, 0]
    assert quantize(x, params(QSpec(8, False), 1e-3), rounding).tolist() == [0, 255, 0, 255, 0, 0]


@quick
@given(spec=SPECS, low=st.floats(-1e30, 1e30), high=st.floats(-1e30, 1e30), auto=st.booleans())
def test_a_range_is_covered_by_the_smallest_step(spec: QSpec, low: float, high: float, auto: bool) -> None:
    low, high = min(low, high), max(low, high)
    spec = QSpec(spec.bits, None if auto else spec.signed, spec.narrow)
    qp = with_range(spec, low, high)
    assert qp.signed == (low < 0 if auto else spec.signed)
    lower, upper = (low if qp.signed else max(low, 0.0)), max(high, 0.0)
    step = float(qp.scale)
    slack = 1 + 1e-6
    if max(-lower, upper) > 1e-30:
        assert qp.qmin * step <= lower * (1 / slack if lower < 0 else slack) or lower >= 0
        assert qp.qmax * step * slack >= upper
        if lower < 0 or upper > 0:
            used = max(upper / qp.qmax, lower / qp.qmin if qp.qmin else 0)
            assert step <= used * slack  # no smaller step would do
    assert step > 0


@pytest.mark.parametrize("low_high", [(0.0, 0.0), (1e-42, 1e-42), (-1e-42, 0.0)])
def test_a_range_without_width_has_step_one(low_high: tuple[float, float]) -> None:
    assert with_range(QSpec(8), *low_high).scale == 1.0


def test_ranges_of_channels() -> None:
    qp = with_range(QSpec(8, True, narrow=True, granularity="channel"), np.array([-127.0, -1.0, 0.0]),
                    np.array([1.0, 254.0, 0.0]))
    assert qp.scale.tolist() == [1.0, 2.0, 1.0]


@quick
@given(groups=st.integers(1, 4), per_group=st.integers(1, 3), axis=st.integers(0, 2))
def test_scales_of_groups_reach_their_channels(groups: int, per_group: int, axis: int) -> None:
    scale = np.arange(1, groups + 1, dtype=np.float32)
    qp = params(QSpec(8, True, granularity="group", axis=axis, groups=groups), scale)
    shape = [2, 3, 2]
    shape[axis] = groups * per_group
    x = np.ones(shape, np.float32) * 6
    moved = np.moveaxis(quantize(x, qp), axis, 0)
    for channel in range(shape[axis]):
        assert (moved[channel] == np.rint(np.float32(6) / scale[channel // per_group])).all()


def test_scales_that_do_not_divide_the_channels() -> None:
    qp = params(QSpec(8, True, granularity="channel"), [1.0, 2.0])
    with pytest.raises(OptionError, match="2 scales do not divide the 3 channels of axis 0"):
        per_axis(qp.scale, qp, (3, 4))


# ---- MXNet ----------------------------------------------------------------------------------------------------------

@pytest.mark.mxnet
@pytest.mark.parametrize("exponent", [-30, -8, -3, -2, -1, 0, 1, 2, 5, 30])
def test_mxnet_rounds_as_we_say(exponent: int) -> None:
    """Every bit width, ties and values out of range."""
    from qgraph.targets.mxnet.runtime import Executor

    rng = np.random.default_rng(exponent + 99)
    g = Graph()
    data = g.add("null", name="data")
    quantizers = []
    for bits in BITS:
        for signed in (True, False):
            for narrow in (True, False)[: 1 + signed]:
                qp = with_range(QSpec(bits, signed, narrow), 0, rng.uniform(1, 1000) * 10.0 ** exponent)
                quantizers.append(g.add("fake_quantize", [data], f"q{len(quantizers)}", quant=qp))
    x = np.concatenate([spread(fq.quant, 1, 150) for fq in quantizers])[None]  # type: ignore[arg-type]
    g.heads = [Port(fq) for fq in quantizers]
    lowered = mxnet_sim.lower(g)
    by_name = {n.name: n for n in lowered.nodes()}
    codes = Executor(lowered, [Port(by_name[f"{fq.name}_codes"]) for fq in quantizers]).run({"data": x})
    reals = Executor(lowered).run({"data": x})
    for fq, found, real in zip(quantizers, codes, reals):
        want = quantize(x, fq.quant, "mxnet")  # type: ignore[arg-type]
        assert len(np.unique(want)) == fq.quant.qmax - fq.quant.qmin + 1 or fq.quant.bits > 6  # type: ignore
        assert np.array_equal(found, want), fq.quant
        assert np.array_equal(real, dequantize(want, fq.quant)), fq.quant  # type: ignore[arg-type]


@pytest.mark.parametrize("signed", [True, False])
def test_mxnet_gets_the_step_back(signed: bool) -> None:
    """Of arbitrary float32 steps it does not in 0.2 to 0.4 %: the dequantized values were one ulp off."""
    assert mxnet_range(2.0, True) == 255.0 and mxnet_range(2.0, False) == 511.0
    unit = np.float32(127.5 if signed else 255.5)
    high = 10.0 ** np.random.default_rng(0).uniform(-20, 20, 10_000)
    plain = (high / 255).astype(np.float32)
    assert (mxnet_range(plain, signed) / unit != plain).any()
    steps = np.array([with_range(QSpec(8, signed), 0, h).scale for h in high])
    assert np.array_equal(mxnet_range(steps, signed) / unit, steps)
