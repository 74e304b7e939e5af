"""Commands and scripts in processes that have the engines already: most of a command's time is to import them."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PRELOADED = ("mxnet", "ncnn", "onnx", "onnxruntime", "qgraph.cli.main", "qgraph.commands.freeze",
             "qgraph.commands.convert")


def server() -> Any:
    """What starts such processes; those of PRELOADED that are not installed are left out."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    return context


def run_command(processes: Any, args: Sequence[str], folder: Path, seconds: float = 300) -> tuple[int, str, str]:
    """`qgraph ARGS` in a folder: (exit code, stdout, stderr). processes: of `server`."""
    return _run(processes, _command, (args, folder), folder, seconds)


def run_python(processes: Any, code: str, folder: Path, seconds: float = 300) -> tuple[int, str, str]:
    """A script in a folder, which is the first on its path: (exit code, stdout, stderr)."""
    return _run(processes, _script, (code, folder), folder, seconds)


def _run(processes: Any, work: Any, args: tuple[Any, ...], folder: Path, seconds: float) -> tuple[int, str, str]:
    process = processes.Process(target=work, args=args)
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode, (folder / "stdout").read_text(), (folder / "stderr").read_text()


def _begin(folder: Path) -> None:
    """What is printed goes to the files stdout and stderr of the folder; packages in its folder `site` are found."""
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if (folder / "site").is_dir():
        sys.path.insert(0, str(folder / "site"))


def _command(args: Sequence[str], folder: Path) -> None:
    _begin(folder)
    from qgraph.cli.main import main

    sys.exit(main([*args]))


def _script(code: str, folder: Path) -> None:
    _begin(folder)
    sys.path.insert(0, str(folder))
    exec(compile(code, "block", "exec"), {"__name__": "__main__"})
    sys.stdout.flush()
