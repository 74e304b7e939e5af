"""The docstrings of the public names: each has one, which names the errors that it raises, and shapes and units."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest

import qgraph
from qgraph import errors

UNITS = {"evaluate": "percent", "compare": "percent", "Frozen.files": "Path -> content"}
"""What only the words can tell: the unit or the keys of plain data."""
SHAPE = re.compile(r"shape|\(\)|\(\w+(, \w+)*,?\)|[A-Z], ?[A-Z]")


def public() -> Iterator[tuple[str, Any]]:
    """(name, class or function): the names of the package, of qgraph.qat where MXNet is, and the methods of classes."""
    modules = [qgraph]
    if find_spec("mxnet") is not None:
        import qgraph.qat as qat

        modules.append(qat)
    for module in modules:
        for name in module.__all__:
            value = getattr(module, name)
            if not isinstance(value, str):
                yield name, value
                if inspect.isclass(value):
                    yield from ((f"{name}.{method}", getattr(value, method)) for method in vars(value)
                                if not method.startswith("_") and is_code(value, method))


def is_code(cls: type, name: str) -> bool:
    return inspect.isfunction(function(inspect.getattr_static(cls, name)))


def function(value: Any) -> Any:
    """What a property or a bound method calls."""
    return value.fget if isinstance(value, property) else getattr(value, "__func__", value)


def raised(code: Callable[..., Any]) -> set[str]:
    """The errors of qgraph that it raises itself, not those of what it calls."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    calls = [node.exc.func for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return {ast.unparse(call) for call in calls} & {*vars(errors)}


def lacks(name: str, value: Any, text: str) -> list[str]:
    """What is missing of a docstring."""
    code = function(value)
    if not text:
        return ["a docstring"]
    found = []
    if inspect.isfunction(code):
        found += [f"the error {error}" for error in sorted(raised(code)) if error not in text]
        arrays = [key for key, hint in code.__annotations__.items() if re.search(r"\bArray\b|ndarray", str(hint))]
        if arrays and not SHAPE.search(text):
            found.append(f"the shape of {', '.join(arrays)}")
    if UNITS.get(name, "") not in text:
        found.append(f"the words {UNITS[name]!r}")
    return found


@pytest.mark.parametrize(("name", "value"), [pytest.param(*row, id=row[0]) for row in public()])
def test_docstring(name: str, value: Any) -> None:
    """`run` of a pass inherits its docstring: the class tells its errors."""
    of_class = inspect.getdoc(getattr(qgraph, name.partition(".")[0], None)) if name.endswith(".run") else ""
    missing = lacks(name, value, f"{inspect.getdoc(value) or ''}\n{of_class or ''}".strip())
    assert not missing, f"{name}: the docstring lacks {', '.join(missing)}"


def test_what_is_missing_is_found() -> None:
    def bare(x: qgraph.QParams) -> None:
        pass

    def refuses(x: np.ndarray) -> None:  # noqa: F821
        """Refuse it."""
        raise errors.QGraphError("no")

    def tells(x: np.ndarray) -> None:  # noqa: F821
        """Refuse it. x: of shape (n,).  Raises QGraphError."""
        raise errors.QGraphError("no")

    assert lacks("bare", bare, inspect.getdoc(bare) or "") == ["a docstring"]
    assert lacks("refuses", refuses, "Refuse it.") == ["the shape of x"]
    assert lacks("tells", tells, inspect.getdoc(tells) or "") == []
    assert lacks("compare", tells, "Of shape (n,).") == ["the words 'percent'"]
    assert raised(qgraph.Graph.remove) == {"GraphError"}
    assert lacks("remove", qgraph.Graph.remove, "Take a node out.") == ["the error GraphError"]
