"""Weights from which oneDNN recovers our codes: by its formula, and by asking MXNet itself."""

from __future__ import annotations

import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.targets.mxnet.weights import can_dictate, dictate

F = np.float32
WIDE, NARROW, HALF = (-128, 127), (-127, 127), (-64, 64)


def recovered(weights: np.ndarray, halved: bool = False) -> np.ndarray:
    """What the kernels compute, in float32. halved: signed input on a CPU without VNNI."""
    rows = weights.reshape(len(weights), -1)
    with np.errstate(divide="ignore"):
        scale = F(127.5) / np.abs(rows).max(axis=1)
    scale = np.where(np.isfinite(scale), scale, F(0)).astype(F)[:, None]
    product = rows * scale * F(0.5) if halved else rows * scale
    return np.clip(np.rint(product), -128, 127).astype(int).reshape(weights.shape)


def steps_found(weights: np.ndarray) -> np.ndarray:
    return np.abs(weights.reshape(len(weights), -1)).max(axis=1).astype(np.float64) / 127.5


STEPS = st.floats(-30, 30).map(lambda e: F(10.0 ** e))
quick = settings(max_examples=200)


@quick
@given(seed=st.integers(0, 10_000), step=STEPS)
def test_wide_codes_come_back(seed: int, step: np.float32) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-128, 128, (12, 3, 3, 3))
    codes[:, 0, 0, 0] = rng.choice([-128, 127], 12)
    steps = (step * rng.uniform(1, 10, 12)).astype(F)
    weights = dictate(codes, steps, *WIDE)
    assert weights.dtype == F and weights.shape == codes.shape
    assert np.array_equal(recovered(weights), codes)
    assert np.allclose(steps_found(weights), steps, rtol=2e-5, atol=0)


@quick
@given(seed=st.integers(0, 10_000), step=STEPS)
def test_half_codes_come_back_on_both_kinds_of_cpu(seed: int, step: np.float32) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-64, 65, (12, 10))
    codes[:, 0] = rng.choice([-64, 64], 12)
    steps = (step * rng.uniform(1, 10, 12)).astype(F)
    weights = dictate(codes, steps, *HALF)
    assert np.array_equal(recovered(weights, halved=True), codes)
    assert np.array_equal(recovered(weights), np.clip(2 * codes, -128, 127))  # with VNNI: doubled, 128 does not exist
    assert np.allclose(2 * steps_found(weights), steps, rtol=2e-5, atol=0)


CHANNELS = {
    "only the lowest": [-128] * 9, "only the highest": [127] * 9, "both ends": [-128, 127] * 4, "dead": [0] * 9,
    "one live, negative": [0] * 8 + [-128], "one live, positive": [127] + [0] * 8, "the lowest and its neighbour":
    [-128, -127, -126], "the highest and its neighbour": [127, 126, -127], "negative": list(range(-128, 0)),
    "positive": list(range(128)), "all": list(range(-128, 128)), "halves": [-128, 64, -64, 63, -63, 1, -1, 127],
}


@pytest.mark.parametrize("codes", CHANNELS.values(), ids=list(CHANNELS))
def test_adversarial_channels(codes: list[int]) -> None:
    steps = (np.random.default_rng(1).uniform(1, 2, 400) * 2.0 ** np.arange(-100, 100).repeat(2)).astype(F)
    array = np.tile(codes, (len(steps), 1))
    assert np.array_equal(recovered(dictate(array, steps, *WIDE)), array)
    narrow = np.maximum(array, -127)
    if np.isin(np.abs(narrow), 127).any() or not narrow.any():
        near = np.array([can_dictate(row[None], step[None], *NARROW) for row, step in zip(narrow, steps)])
        assert near.mean() > 0.97 and (near.all() or 127 not in codes)
        assert np.array_equal(recovered(dictate(narrow[near], steps[near], *NARROW)), narrow[near])
    half = np.clip(array, -128, 127) // 2
    half[array == 127] = 64
    if np.isin(np.abs(half), 64).any() or not half.any():
        assert np.array_equal(recovered(dictate(half, steps, *HALF), halved=True), half)


def test_dead_channels_are_zero() -> None:
    codes = np.zeros((2, 4), int)
    codes[1] = [0, 127, 0, -5]
    weights = dictate(codes, np.ones(2, F), *WIDE)
    assert not weights[0].any() and weights[1, 1] == F(127.5)


def test_a_channel_that_does_not_reach_its_ends_is_named() -> None:
    codes = np.array([[127, 0], [126, -127], [0, 0]])
    with pytest.raises(ValueError, match="channel 1 reaches neither code -128 nor 127"):
        dictate(codes, np.ones(3), *WIDE)
    with pytest.raises(ValueError, match="channel 0 reaches neither code -64 nor 64"):
        dictate(codes // 2, np.ones(3), *HALF)


@pytest.mark.mxnet
@pytest.mark.parametrize("dense", [False, True], ids=["convolution", "dense"])
@pytest.mark.parametrize("step", networks.STEPS[::2])
def test_kernels_find_the_codes(dense: bool, step: float) -> None:
    """Not the formula but MXNet itself, asked for its weights one by one."""
    codes = networks.weight_codes(-128, 127)
    assert np.array_equal(networks.kernel_codes(codes, step, signed=False, dense=dense), codes)
    if not dense:
        codes = networks.weight_codes(-64, 64)
        assert np.array_equal(networks.kernel_codes(codes, step, signed=True), codes)
