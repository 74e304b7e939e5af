"""Codes that are chosen together: near the best there are, and better than each one's nearest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qgraph.quant import adaptive
from qgraph.quant.adaptive import Lattice, damped, nearest_factors, second_moment, shifted


def smooth(rng: np.random.Generator, groups: int, positions: int, inputs: int) -> np.ndarray:
    """Inputs of which neighbours are alike, as pixels are."""
    x = rng.normal(size=(groups, positions, inputs + 4)).cumsum(axis=2)
    return (x[:, :, 4:] - 0.8 * x[:, :, :-4]).astype(np.float32)


def errors(exact: np.ndarray, codes: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """(groups, rows)"""
    lost = (exact - codes).astype(np.float64)
    return np.einsum("goi,gij,goj->go", lost, moment.astype(np.float64), lost)


def problem(groups: int, rows: int, inputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = smooth(rng, groups, 4 * inputs, inputs)
    return rng.normal(scale=3, size=(groups, rows, inputs)).astype(np.float32), damped(second_moment(x, x), 0.01)


def test_second_moment_is_the_mean_of_products() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 3, 7, 4)).astype(np.float32)
    want = np.einsum("gpi,gpj->gij", x, y) / 7
    np.testing.assert_allclose(second_moment(x, y), want, rtol=1e-5, atol=1e-6)


def test_small_problems_are_solved_nearly_as_well_as_by_trying_everything() -> None:
    exact, moment = problem(1, 40, 5)
    found = errors(exact, Lattice(moment).round(exact, -128, 127), moment)[0]
    nearest = errors(exact, np.rint(exact), moment)[0]
    best = np.min([errors(exact, np.floor(exact) + np.array(steps, np.float32), moment)[0]
                   for steps in itertools.product((-1, 0, 1, 2), repeat=5)], axis=0)
    assert found.sum() - best.sum() < 0.1 * (nearest.sum() - best.sum())
    assert (found < 1.5 * best).mean() > 0.9


@pytest.mark.parametrize(("groups", "rows", "inputs"), [(1, 16, 300), (24, 1, 9), (4, 8, 36)])
def test_it_beats_the_nearest_codes(groups: int, rows: int, inputs: int) -> None:
    exact, moment = problem(groups, rows, inputs)
    codes = Lattice(moment).round(exact, -8, 7)
    nearest = np.clip(np.rint(exact), -8, 7)
    assert errors(exact, codes, moment).sum() < 0.35 * errors(exact, nearest, moment).sum()
    assert codes.min() >= -8 and codes.max() <= 7 and (codes == np.rint(codes)).all()


@pytest.mark.parametrize(("groups", "inputs"), [(1, 300), (3, 128), (40, 9)])
def test_factors_are_those_of_the_moment(groups: int, inputs: int) -> None:
    _, moment = problem(groups, 1, inputs)
    want = np.linalg.cholesky(moment.astype(np.float64))
    assert np.abs(adaptive._factor(moment) - want).max() < 1e-5 * np.abs(want).max()


def test_a_moment_that_float32_cannot_factor() -> None:
    """Inputs that are nearly one another's multiples: the rest is below the last bit of float32."""
    rng = np.random.default_rng(3)
    low = rng.normal(size=(1, 200, 3))
    moment = (low @ low.transpose(0, 2, 1) + 1e-5 * np.eye(200)).astype(np.float32)
    with pytest.raises(np.linalg.LinAlgError):
        adaptive._cholesky(moment)
    found = adaptive._factor(moment).astype(np.float64)
    assert np.abs(found @ found.transpose(0, 2, 1) - moment).max() < 1e-5 * moment.max()


def test_whole_weights_keep_their_codes() -> None:
    exact, moment = problem(2, 3, 12)
    whole = np.clip(np.rint(exact), -8, 7)
    assert np.array_equal(Lattice(moment).round(whole, -8, 7), whole)


def test_weights_at_the_ends_of_the_range_keep_their_codes() -> None:
    exact, moment = problem(1, 30, 40)
    exact[0, :, 7], exact[0, ::2, 3] = 7, -8
    codes = Lattice(moment).round(exact, -8, 7)
    assert (codes[0, :, 7] == 7).all() and (codes[0, ::2, 3] == -8).all()
    assert errors(exact, codes, moment).sum() < 0.5 * errors(exact, np.clip(np.rint(exact), -8, 7), moment).sum()


def test_inputs_that_tell_nothing_leave_the_nearest_codes() -> None:
    exact, _ = problem(1, 4, 6)
    moment = damped(np.zeros((1, 6, 6), np.float32), 0.1)
    assert np.array_equal(Lattice(moment).round(exact, -128, 127), np.rint(exact))


def test_shifted_weights_give_on_wrong_inputs_what_the_others_give_on_right_ones() -> None:
    rng = np.random.default_rng(3)
    right, exact = smooth(rng, 1, 400, 6), rng.normal(size=(1, 5, 6)).astype(np.float32)
    wrong = right * np.array([1, 0.5, 2, 1, 1, 0.8], np.float32)
    moved = shifted(exact, Lattice(damped(second_moment(wrong, wrong), 1e-7)), second_moment(right - wrong, wrong))
    np.testing.assert_allclose(np.matmul(wrong, moved.swapaxes(1, 2)), np.matmul(right, exact.swapaxes(1, 2)),
                               atol=2e-2)


def test_the_scale_with_the_least_error_is_found() -> None:
    exact = np.array([[[5.2, *[0.74] * 40]], [[7.0, 3.0, *[0.0] * 39]]], np.float32)
    diagonal = np.ones((2, 41), np.float32)
    apart = nearest_factors(exact, diagonal, 2, -7, 7)
    assert 0.7 < apart[0] < 0.8 and apart[1] == 1
    assert len(nearest_factors(exact, diagonal, 1, -7, 7)) == 1


def test_the_scale_that_suits_the_codes_is_found() -> None:
    """Codes that are rounded together err otherwise than the nearest ones, so that another scale may suit them."""
    exact, moment = problem(2, 20, 30)
    lattice = Lattice(moment)
    factors = lattice.best_factors(exact, -7, 7)
    scaled = exact / factors.reshape(2, 20, 1)
    found = errors(exact, lattice.round(scaled, -7, 7) * factors.reshape(2, 20, 1), moment)
    before = errors(exact, lattice.round(exact, -7, 7), moment)
    assert (found <= before * 1.001).all() and found.sum() < 0.8 * before.sum() and len({*factors.tolist()}) > 3


def test_a_lattice_solves_its_moment() -> None:
    rng = np.random.default_rng(4)
    _, moment = problem(2, 1, 300)
    right = rng.normal(size=(2, 300, 7)).astype(np.float32)
    found = Lattice(moment).solve(right)
    np.testing.assert_allclose(np.matmul(moment.astype(np.float64), found), right, atol=2e-3 * np.abs(right).max())
