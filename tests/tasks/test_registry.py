"""Every output is of one task: the user's choice, or that which is most sure of it."""

from __future__ import annotations

import logging
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.errors import OptionError
from qgraph.ir.graph import Graph, Port
from qgraph.tasks import base, registry
from qgraph.tasks.base import Claim, Head, Metric, Ratios, Task
from qgraph.tasks.registry import assign, heads_of, names, task_class

IMAGES = (4, 3, 8, 8)


def head(name: str, *shape: int, behind: Sequence[str] = ()) -> Head:
    return Head(name, shape, 4, tuple(behind), (IMAGES,))


def model() -> list[Head]:
    """Scores of classes, scores of pixels, features of a map."""
    return [head("scores", 4, 10, behind=["softmax", "FullyConnected"]), head("pixels", 4, 5, 8, 8),
            head("features", 4, 6, 2, 2, behind=["Convolution"])]


def tasks(heads: Sequence[Head], *chosen: str) -> dict[str, str]:
    """Output -> task."""
    return {head.name: found.task.name for found in assign(heads, chosen) for head in found.task.heads}


class Pair(Task):
    """Two outputs that belong together."""

    name, help = "pair", "two outputs"
    metrics, main, ruined = {"x": Metric("%", "nothing")}, "x", 50.0
    sure = 0.95

    @classmethod
    def claims(cls, heads):
        return [Claim((0, 2), cls.sure)]

    def agreement(self, want, found, first):
        return Ratios({})


@pytest.fixture()
def pair(monkeypatch):
    """As one of qgraph's own."""
    monkeypatch.setattr(registry._classes, "own", {"pair": f"{__name__}:Pair", **registry.TASKS})
    monkeypatch.setattr(registry._classes, "_found", {"pair": Pair})


def test_the_most_sure_task_takes_an_output():
    assert tasks(model()) == {"scores": "classification", "pixels": "segmentation", "features": "values"}
    found = assign(model())
    assert [row.outputs for row in found] == [(0,), (1,), (2,)]
    assert [row.sure for row in found] == [0.9, 0.8, 0.1]


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=6), st.data())
def test_every_output_is_of_exactly_one_task(shapes, data):
    heads = [head(f"output{number}", 4, *shape) for number, shape in enumerate(shapes)]
    chosen = data.draw(st.lists(st.sampled_from([f"values:{heads[0].name}", f"values:{heads[-1].name}"]), max_size=1))
    found = assign(heads, chosen)
    assert sorted(number for row in found for number in row.outputs) == list(range(len(heads)))
    assert all(row.task.heads == tuple(heads[number] for number in row.outputs) for row in found)


def test_a_task_of_several_outputs_takes_them_together(pair):
    assert tasks(model()) == {"scores": "pair", "features": "pair", "pixels": "segmentation"}


def test_a_task_gets_all_its_outputs_or_none(pair, monkeypatch):
    """Classification is surer of the first output, so the pair has lost, and its other output is values."""
    monkeypatch.setattr(Pair, "sure", 0.85)
    assert tasks(model()) == {"scores": "classification", "pixels": "segmentation", "features": "values"}


def test_the_name_of_a_task_takes_what_it_claims():
    heads = [*model(), head("more", 4, 7)]
    assert tasks(heads, "values") == dict.fromkeys(("scores", "pixels", "features", "more"), "values")
    two = tasks(heads, "classification")
    assert two == {"scores": "classification", "more": "classification", "pixels": "segmentation", "features": "values"}
    assert all(row.sure == 1.0 for row in assign(heads, ["classification"]) if row.task.name == "classification")


def test_an_output_is_given_to_a_task():
    assert tasks(model(), "values:scores") == {"scores": "values", "pixels": "segmentation", "features": "values"}
    assert assign(model(), ["values:scores"])[0].sure == 1.0


def test_the_name_of_an_output_is_stronger_than_a_task_for_all():
    for chosen in (("values", "segmentation:pixels"), ("segmentation:pixels", "values")):
        assert tasks(model(), *chosen) == {"scores": "values", "pixels": "segmentation", "features": "values"}


def test_outputs_that_are_joined_are_one_task(pair):
    found = {row.task.name: row.outputs for row in assign(model(), ["pair:features+pixels"])}
    assert found == {"classification": (0,), "pair": (2, 1)}


@pytest.mark.parametrize("chosen, message", [
    (["classificaton"], "no task is called 'classificaton'; want one of classification, .*did you mean classification"),
    (["clasification:scores"], "no task is called 'clasification'.*did you mean classification"),
    (["house"], "no task is called 'house'; want one of [^?]*$"),
    (["values:score"], "--task values:score: the model has no output 'score', it has scores, pixels, features "
                       ".did you mean scores"),
    (["values:scores+pixel"], r"--task values:scores\+pixel: the model has no output 'pixel', .*did you mean pixels"),
    (["values:scores+"], "no output '', it has scores, pixels, features$"),
    (["values:scores+scores"], "--task values:scores.scores: the output scores is named twice"),
    (["values:scores", "classification:scores"], "--task classification:scores: the output scores is named twice"),
])
def test_what_is_not_there_is_one_line(chosen, message):
    with pytest.raises(OptionError, match=message) as caught:
        assign(model(), chosen)
    assert "\n" not in str(caught.value)


def test_heads_know_what_they_come_out_of():
    g = Graph()
    x = g.add("null", name="data")
    for number in range(20):
        x = g.add("Activation", [x], f"act{number}", act_type="relu")
    flat = g.add("Flatten", [g.add("Pooling", [x], "pool", kernel=(2, 2))], "flat")
    g.heads = [Port(flat), Port(x)]
    outputs = [np.zeros((4, 48)), np.zeros((4, 3, 8, 8))]
    first, second = heads_of(["a", "b"], outputs, 4, g, {"data": np.zeros(IMAGES)})
    assert (first.name, first.shape, first.images, first.like) == ("a", (4, 48), 4, (IMAGES,))
    assert first.behind[:3] == ("Flatten", "Pooling", "Activation") and len(first.behind) == registry.REACH
    assert set(second.behind) == {"Activation"}
    assert heads_of(["a"], outputs[:1], 4, None, {})[0].behind == ()


# ---- tasks of other packages ----------------------------------------------------------------------------------------

EXAMPLE = re.search(r"::\n\n(    class .*?)\n\nThe line", base.__doc__ or "", re.S)
IMPORTS = """
import numpy as np
from qgraph.analysis.exact import total
from qgraph.tasks.base import Claim, Metric, Ratios, Task
"""


@pytest.fixture()
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as pip leaves one, on the path, with the task that the guide in `qgraph.tasks.base` writes."""
    assert EXAMPLE
    (tmp_path / "depth_package.py").write_text(IMPORTS + textwrap.dedent(EXAMPLE[1]))
    info = tmp_path / "depth_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: depth-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\ndepth = depth_package:Depth\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry._classes, "_found", {})
    return tmp_path


def test_a_task_of_another_package_is_found(package):
    assert sorted(names()) == sorted([*registry.TASKS, "depth"])
    heads = [head("distance", 4, 1, 8, 8), head("scores", 4, 10)]
    assert tasks(heads) == {"distance": "depth", "scores": "classification"}
    a = np.full((4, 1, 8, 8), 2.0)
    b = a.copy()
    b[0] = 3
    assert task_class("depth")(heads[:1]).agreement([a], [b], 0).result() == {"near": 75.0}
    assert tasks(heads, "depth:scores") == {"distance": "depth", "scores": "depth"}
    with pytest.raises(OptionError, match="did you mean depth"):
        assign(heads, ["depht"])


def test_a_package_that_cannot_be_loaded_is_named_and_hurts_nobody(package, caplog):
    (package / "depth_package-1.0.dist-info" / "entry_points.txt").write_text(
        f"[{registry.GROUP}]\ndepth = no_such_module:Depth\n")
    with caplog.at_level(logging.WARNING, "qgraph"):
        assert tasks([head("distance", 4, 1, 8, 8)]) == {"distance": "values"}
    assert "task depth: no_such_module:Depth cannot be loaded" in caplog.text
    with pytest.raises(OptionError, match="task depth: no_such_module:Depth cannot be loaded"):
        assign([head("distance", 4, 1, 8, 8)], ["depth"])


def test_a_package_cannot_take_the_place_of_a_task_of_qgraph(package):
    (package / "depth_package-1.0.dist-info" / "entry_points.txt").write_text(
        f"[{registry.GROUP}]\nvalues = depth_package:Depth\n")
    assert task_class("values").__module__ == "qgraph.tasks.values"
