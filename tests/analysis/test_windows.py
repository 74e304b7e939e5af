"""Uneven padding, as zero taps and back."""

from __future__ import annotations

import numpy as np
import pytest

from qgraph.analysis.windows import evened, window, with_zero_taps
from qgraph.ir.graph import Graph, Node, Port


def conv(weight: np.ndarray, **attrs: object) -> tuple[Graph, Node]:
    g = Graph()
    node = g.add("Convolution", [g.add("null", name="data"), g.add_param("w", weight.astype(np.float32))], "conv",
                 kernel=weight.shape[2:], num_filter=len(weight), no_bias=True, attrs=attrs)
    g.heads = [Port(node)]
    return g, node


@pytest.mark.parametrize("before, behind, dilate", [((0, 0), (1, 1), (1, 1)), ((2, 0), (0, 3), (2, 1)),
                                                    ((1, 4), (1, 1), (1, 3)), ((3,), (1,), (1,))])
def test_there_and_back(before: tuple[int, ...], behind: tuple[int, ...], dilate: tuple[int, ...]) -> None:
    weight = np.arange(1, 1 + 2 * 3 ** len(dilate) * 3).reshape(2, 3, *[3] * len(dilate))
    found = evened(before, behind, dilate)
    assert found is not None
    pads, taps = found
    g, node = conv(with_zero_taps(weight, taps), pad=tuple(pads), dilate=dilate)
    seen = window(g, node)
    assert (seen.before, seen.behind, seen.kernel) == (before, behind, (3,) * len(dilate))
    np.testing.assert_array_equal(seen.of(g.params["w"]), weight)


def test_a_difference_that_the_dilation_does_not_divide() -> None:
    assert evened((0,), (1,), (2,)) is None


def test_zero_taps_stay_where_no_padding_stands_against_them() -> None:
    weight = np.zeros((1, 1, 5, 5))
    weight[0, 0, 3, 2] = 1
    g, node = conv(weight, pad=(1, 3), dilate=(1, 2))
    seen = window(g, node)
    assert (seen.start, seen.kernel, seen.before, seen.behind) == ((1, 1), (3, 3), (0, 1), (0, 1))


def test_all_of_a_kernel_that_is_zero_or_has_other_readers() -> None:
    g, node = conv(np.zeros((1, 1, 3, 3)), pad=(1, 1))
    assert window(g, node).kernel == (3, 3)
    weight = np.zeros((1, 1, 3, 3))
    weight[..., 1, 1] = 1
    g, node = conv(weight, pad=(1, 1))
    assert window(g, node).kernel == (1, 1)
    g.heads.append(Port(g.add("Convolution", [node, g.find("w")], "other", kernel=(3, 3), num_filter=1, no_bias=True)))
    assert window(g, node).kernel == (3, 3)
