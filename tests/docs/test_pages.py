"""What the pages show is what happens: their commands are run on the digits network, their Python is executed.

Every page starts with what README has made: `model`, `test.npz`, and `model-quantized`.  console blocks: commands
behind ``$`` and what they print on stdout, see `page_blocks`.  python blocks run in the same folder; a block that
starts with ``# name.py``, ``# setup.cfg`` or ``# pyproject.toml`` is that file.  sh blocks need what is not here, and
their flags are checked; but ``pip install .`` of a page with a pyproject.toml is carried out, into a folder beside.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import forked
import pytest
from helpers import DIGITS, ROOT, load_example
from page_blocks import PAGES, Block, blocks, line_matches, matches, renewed

from qgraph.cli.main import COMMANDS, cli

RENEW = "QGRAPH_RENEW" in os.environ  # write the numbers that are printed today into the pages, and compare nothing
FIRST = "README.md"
KINDS = {"console", "python", "sh", "ini", "toml", "yaml", "text", "cpp", ""}  # C++ is not compiled, text is no program
RUN = [page for page, text in PAGES.items() if page != FIRST and any(b.kind in ("console", "python")
                                                                     for b in blocks(text))]
QUICK = {"docs/getting-started/digits.md"}  # and README; the others take long
PROCESSES = [pytest.mark.slow, pytest.mark.mxnet, pytest.mark.ncnn]


@pytest.fixture(scope="module")
def processes() -> Any:
    return forked.server()


@pytest.fixture(scope="module")
def first(processes: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as README leaves it."""
    folder = tmp_path_factory.mktemp("first")
    for tail in ("-symbol.json", "-0000.params", "-calib.npz"):
        shutil.copy(DIGITS / f"digits{tail}", folder / f"model{tail}")
    shutil.copy(DIGITS / "digits-test.npz", folder / "test.npz")
    follow(FIRST, folder, processes)
    return folder


def follow(page: str, folder: Path, processes: Any) -> None:
    """Do what the page says, block by block."""
    ran = 0
    for block in blocks(PAGES[page]):
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.kind == "python":
            check(page, block.text, forked.run_python(processes, block.text, folder))
            ran += 1
        elif block.kind == "console":
            ran += console(page, block, folder, processes)
        elif block.kind == "sh" and block.text == "pip install .\n" and (folder / "pyproject.toml").exists():
            install(folder)
    assert ran


def console(page: str, block: Block, folder: Path, processes: Any) -> int:
    """Run the commands of a block; how many there were."""
    commands = block.commands()
    for command, shown in commands:
        program, *args = shlex.split(command)
        if program == "python":
            printed = check(page, command, forked.run_python(processes, (folder / args[0]).read_text(), folder))
        else:
            assert program == "qgraph", command
            printed = check(page, command, forked.run_command(processes, args, folder))
        lines = printed.splitlines()
        if RENEW:
            renew(page, command, shown, lines)
            continue
        assert matches(shown, lines), f"{page}: {command}\n" + "\n".join([*shown, "printed:", *lines])
    return len(commands)


def renew(page: str, command: str, shown: list[str], printed: list[str]) -> None:
    path = ROOT / page
    old, new = ("\n".join([f"$ {command}", *lines, ""]) for lines in (shown, renewed(shown, printed)))
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def check(page: str, what: str, done: tuple[int, str, str]) -> str:
    code, printed, said = done
    assert code == 0, f"{page}: {what}\nexit code {code}: {said[-3000:]}"
    return printed


def install(folder: Path) -> None:
    """`pip install .`, beside the environment and not into it."""
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
                           "--disable-pip-version-check", "--target", "site", "."], cwd=folder, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("page", [
    pytest.param(page, marks=[*PROCESSES, *[pytest.mark.docs] * (page not in QUICK)]) for page in RUN])
def test_what_it_shows_happens(page: str, first: Path, processes: Any, tmp_path: Path) -> None:
    shutil.copytree(first, tmp_path, dirs_exist_ok=True)
    follow(page, tmp_path, processes)


def test_a_difference_is_known() -> None:
    assert matches(["a  1.5 %", "...", "z"], ["a 2.4 %", "x", "y", "z"])
    assert not matches(["a  1.5 %", "z"], ["a 1.5 %", "x", "z"])
    assert not matches(["quantized 8 of 9"], ["quantized 8 of 9 layers"])
    for shown, near, far in (("8 of 9 layers", "8 of 9 layers", "8 of 10 layers"), ("99 % x", "98.2 % x", "97 % x"),
                             ("38.5 dB", "36.6 dB", "36 dB"), ("99.64 KB", "99 KB", "95 KB"),
                             ("0.00013", "0.000134", "0.0002"), ("4.7 s (", "99 s (", "99 ms (")):
        assert line_matches(shown, near) and not line_matches(shown, far), shown
    exact = "kernels 100 % of the codes within 1 of exact arithmetic"
    for vnni in (False, True):
        assert line_matches(exact, exact, vnni)
        assert line_matches(exact, f"{exact.replace('100', '99.9')}, least in conv0", vnni) is not vnni
        assert not line_matches(exact, f"{exact}, least in conv0 and more", vnni)


# ---- names in the text ----------------------------------------------------------------------------------------------

def flags(command: click.Command) -> set[str]:
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help", "-h"}


def known(line: str) -> set[str] | None:
    """The flags of the program that a line of shell calls; None of a program that is not ours."""
    words = shlex.split(line, comments=True)
    if words[0] == "qgraph" and words[1] in COMMANDS:
        command = cli.get_command(click.Context(cli), words[1])
        assert command is not None
        return flags(command)
    if words[0] == "qgraph":
        return flags(cli)
    if words[0] == "python" and words[1].startswith("examples/"):
        main = getattr(load_example(Path(words[1]).stem), "main", None)
        return flags(main) if isinstance(main, click.Command) else None
    return None


def shell_lines() -> Iterator[tuple[str, str]]:
    for page, text in PAGES.items():
        for block in blocks(text):
            if block.kind in ("console", "sh"):
                for line in block.text.replace("\\\n", " ").splitlines():
                    line = line.removeprefix("$ ")
                    if re.match(r"(qgraph|python examples/)", line):
                        yield page, line


def test_flags_of_commands_exist() -> None:
    """Also of those that need data which are not here."""
    checked = 0
    for page, line in shell_lines():
        own = known(line)
        for flag in re.findall(r"(?<!\S)--[\w-]+", line) if own is not None else ():
            assert own is not None and flag in own, f"{page}: {line}: there is no {flag}"
            checked += 1
    assert checked >= 60


def test_flags_in_the_text_exist() -> None:
    """Any flag between backticks is one of a command, or stands in a script of examples/ or benchmarks/."""
    own = {"--names", "--no-names", "--ntasks", "--nthreads"}  # of docs/extend/target.md, of srun, of dask worker
    own |= {name for command in COMMANDS for name in flags(cli.get_command(click.Context(cli), command))} | flags(cli)
    scripts = "".join(path.read_text() for name in ("examples", "benchmarks") for path in (ROOT / name).glob("*.py"))
    checked = 0
    for page, text in PAGES.items():
        prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)
        for code in re.findall(r"`([^`\n]+)`", prose):
            for flag, dots in re.findall(r"(?<![\w-])(--[a-z][\w-]*)(\.\.\.)?", code):
                assert dots or flag in own or flag in scripts, f"{page}: `{code}`: there is no {flag}"
                checked += 1
    assert checked >= 100


def test_names_of_files_exist() -> None:
    for page, text in PAGES.items():
        for name in re.findall(r"`((?:examples|benchmarks|qgraph|passes|cli|tests|docs)/[\w./]*)`", text):
            assert (ROOT / name).exists(), f"{page}: {name}"


def test_every_block_is_of_a_kind_that_is_known() -> None:
    for page, text in PAGES.items():
        for block in blocks(text):
            assert block.kind in KINDS, f"{page}: a block of {block.kind}"
        assert len(re.findall(r"^ *```", text, re.M)) == 2 * len(blocks(text)), page


def test_readme_is_short() -> None:
    lines = PAGES[FIRST].splitlines()
    assert len(lines) <= 120
