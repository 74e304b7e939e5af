"""A user's function that makes boxes: how it is found, and what it may give."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from qgraph.errors import OptionError
from qgraph.tasks.decoded import Decode

OUTPUTS, FEEDS = [np.arange(24.0).reshape(2, 2, 6)], {"data": np.zeros((2, 3, 8, 8))}
_numbers = itertools.count()

Make = Callable[[str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Writes a module of these lines into the current folder; its name, a new one each time."""
    monkeypatch.chdir(tmp_path)

    def make(text: str) -> str:
        name = f"decoding_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(f"import numpy as np\n{text}\n")
        return name
    return make


@pytest.mark.parametrize("body", ["outputs[0]", "list(outputs[0])", "tuple(outputs[0].astype('f'))"])
def test_an_array_or_one_per_image(module: Make, body: str) -> None:
    decode = Decode(module(f"def boxes(outputs, feeds): return {body}") + ":boxes")
    assert np.array_equal(decode(OUTPUTS, FEEDS, 2), OUTPUTS[0])


def test_shorter_images_are_filled_up(module: Make) -> None:
    decode = Decode(module("def boxes(outputs, feeds): return [outputs[0][0], outputs[0][1, :0]]") + ":boxes")
    found = decode(OUTPUTS, FEEDS, 2)
    assert np.array_equal(found[0], OUTPUTS[0][0]) and (found[1] == -1).all() and found.shape == (2, 2, 6)


def test_it_reads_the_feeds(module: Make) -> None:
    decode = Decode(module("def boxes(outputs, feeds): return outputs[0] + feeds['data'].shape[3]") + ":boxes")
    assert np.array_equal(decode(OUTPUTS, FEEDS, 2), OUTPUTS[0] + 8)


@pytest.mark.parametrize("text", ["boxes", "a:b:c", "a b:c", ":boxes", "module:", "module.py:a-b", "../a:b"])
def test_wrong_text(text: str) -> None:
    with pytest.raises(OptionError, match=r"--decode: found '.*', want MODULE:FUNCTION"):
        Decode(text)


def test_wrong_modules_and_functions(module: Make) -> None:
    with pytest.raises(OptionError, match="--decode: no module 'not_there' in the current folder or the environment"):
        Decode("not_there:boxes")
    name = module("boxes = 3")
    for text in (f"{name}:boxes", f"{name}:other"):
        with pytest.raises(OptionError, match=f"--decode: {name} has no function '(boxes|other)'"):
            Decode(text)
    name = module("1 / 0")
    with pytest.raises(OptionError, match=f"module '{name}' cannot be imported: ZeroDivisionError.*{name}.py, line 2"):
        Decode(f"{name}:boxes")


@pytest.mark.parametrize(("body", "message"), [
    ("1 / 0", r"failed with ZeroDivisionError: division by zero \(.*, line 2\)"),
    ("None", "gave NoneType, want rows of class, score"),
    ("outputs[0][0]", r"gave float64 \(2, 6\), want"),
    ("outputs[0][:1]", "gave boxes of 1 images for 2, want"),
    ("[]", "gave boxes of 0 images for 2, want"),
    ("outputs[0][:, :, :5]", r"gave float64 \(2, 5\) for image 0 of a batch, want"),
    ("[outputs[0][0], outputs[0][1, 0]]", r"gave float64 \(6,\) for image 1 of a batch, want"),
    ("[outputs[0][0], [[0] * 6]]", "gave list for image 1 of a batch, want"),
    ("outputs[0].astype(str)", r"gave <U\d+ \(2, 6\) for image 0")])
def test_wrong_results(module: Make, body: str, message: str) -> None:
    name = module(f"def boxes(outputs, feeds): return {body}")
    with pytest.raises(OptionError, match=f"--decode: {name}:boxes {message}") as raised:
        Decode(f"{name}:boxes")(OUTPUTS, FEEDS, 2)
    assert "\n" not in str(raised.value)
