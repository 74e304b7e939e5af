"""The recipe's file: what is written is read back, what is not a recipe is refused with its place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.errors import CalibrationError, FormatError, QGraphError
from qgraph.quant.ranges import METHODS
from qgraph.quant.recipe import IN_FLOAT, MAX_BYTES, LayerChoice, Recipe
from qgraph.quant.spec import GRANULARITIES

HEAD = "format: qgraph-recipe\nversion: 1\n"
bits = st.integers(2, 16)
choices = st.builds(LayerChoice, st.none() | bits, st.none() | bits | st.just(IN_FLOAT),
                    st.none() | st.sampled_from(GRANULARITIES), st.none() | st.sampled_from(list(METHODS)),
                    st.none() | st.booleans())
recipes = st.builds(
    Recipe, st.text("0123456789abcdef", max_size=32), st.none() | st.sampled_from(["fast", "standard", "best"]),
    st.none() | st.sampled_from(list(METHODS)), st.none() | st.sampled_from(GRANULARITIES), st.none() | bits,
    st.none() | bits, st.lists(st.text(min_size=1), max_size=3).map(tuple),
    st.dictionaries(st.text(min_size=1, max_size=20), choices, max_size=4).map(lambda d: tuple(d.items())))


@settings(max_examples=30)
@given(recipes)
def test_what_is_written_is_read_back(recipe: Recipe) -> None:
    text = recipe.to_yaml()
    assert Recipe.from_yaml(text.encode()) == recipe
    assert Recipe.from_yaml(text.encode()).to_yaml() == text


def test_it_reads_what_people_write() -> None:
    found = Recipe.from_yaml((HEAD + "calib: entropy\ngranularity: layer\nlayers:\n  '*dw*': {weights: 4}\n  conv3:\n"
                              "    activations: float\n    granularity: tensor\n  last: {float: true}\n").encode())
    assert found == Recipe(calib="kl", granularity="tensor", layers=(
        ("*dw*", LayerChoice(weight_bits=4)), ("conv3", LayerChoice(act_bits=IN_FLOAT, granularity="tensor")),
        ("last", LayerChoice(in_float=True))))


def test_a_later_choice_wins_where_it_says_something() -> None:
    assert LayerChoice(4, 8, "channel") | LayerChoice(act_bits=16) == LayerChoice(4, 16, "channel")
    assert LayerChoice(in_float=True) | LayerChoice(in_float=False) == LayerChoice(in_float=False)


@pytest.mark.parametrize(("text", "said"), [
    ("layers: {conv: {weights: 1}}", "layers.conv.weights: 1 is less than the minimum of 2"),
    ("layers: {conv: {weight: 4}}", "layers.conv: 'weight' is unknown here.*did you mean weights"),
    ("layers: {conv: {activations: half}}", "layers.conv.activations: found 'half', want 2 to 16 bits, or float"),
    ("layers: {conv: {float: 3}}", "layers.conv.float: 3 is not of type 'boolean'"),
    ("efort: best", "'efort' is unknown here.*did you mean effort"),
    ("effort: most", "effort: found 'most', want one of fast, standard, best"),
    ("calib: kll", "calibration method: found 'kll'.*did you mean kl"),
    ("layers: {a: {calib: kl}, a: {calib: mse}}", "a key appears twice"),
    ("layers: {a: &x {calib: kl}, b: *x}", "found an alias"),
    ("layers: {1: {calib: kl}}", "layers: 1 is not of type 'string'"),
    ("layers: !!python/object/apply:os.system ['true']", "not YAML: could not determine a constructor"),
    ("layers: [", "not YAML"),
    ("graph: 2001-02-30", "not YAML: day is out of range"),
    ("exclude: " + "[" * 2000, "nested too deeply|not YAML"),
])
def test_what_is_wrong_is_told_with_its_place(text: str, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        Recipe.from_yaml((HEAD + text).encode(), "recipe r")


@pytest.mark.parametrize("data", [b"", b"- 1", b"\xff\xfe", b"version: 1", b"format: qgraph-recipe\nversion: 2",
                                  b" " * (MAX_BYTES + 1)])
def test_what_is_no_recipe_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="^recipe"):
        Recipe.from_yaml(data)


@settings(max_examples=40)
@given(st.binary(max_size=60))
def test_bytes_give_a_recipe_or_an_error_of_ours(data: bytes) -> None:
    try:
        Recipe.from_yaml(HEAD.encode() + data)
    except QGraphError as error:
        assert str(error).startswith("recipe")


def test_it_is_bound_to_its_model() -> None:
    Recipe(graph="aa").check("aa")
    Recipe().check("bb")
    with pytest.raises(CalibrationError, match="belongs to another model: its graph is aa, this one is bb"):
        Recipe(graph="aa").check("bb")
