"""A newcomer's walk, timed: the wheel into an empty environment, then three pages of docs/, followed to the letter.

    python benchmarks/newcomer.py

The environment gets the wheel alone, with `mxnet` where that can be installed; programs are those of its `bin`, and
each page starts in a folder of its own with the digits network.  Blocks with a file's name are written there, commands
behind ``$`` and Python are run, and so is ``pip install .``.  Prints Markdown: seconds by the clock, which are those of
a machine and its network.  Ends with an error where a command does.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from _common import ROOT, table

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "docs")]

from page_blocks import PAGES, Block, blocks  # noqa: E402

WALK = {"quickstart": "docs/getting-started/digits.md", "own pass": "docs/extend/pass.md",
        "own target": "docs/extend/target.md"}
DIGITS = ROOT / "examples" / "digits"
EXTRA = "[mxnet]" if sys.version_info < (3, 12) else ""


class Newcomer:
    """folder: of the environment and of what is tried in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "env" / "bin"
        self.environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.environment["PATH"] = f"{self.bin}{os.pathsep}{os.environ['PATH']}"

    def install(self) -> None:
        self.run([sys.executable, str(ROOT / ".ci" / "release"), str(self.folder)], ROOT)
        wheel, = self.folder.glob("*.whl")
        venv.create(self.folder / "env", with_pip=True)
        self.run(["pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}{EXTRA}"], self.folder)

    def follow(self, page: str) -> None:
        place = self.folder / Path(page).stem
        place.mkdir()
        for tail in ("-symbol.json", "-0000.params", "-calib.npz"):
            shutil.copy(DIGITS / f"digits{tail}", place / f"model{tail}")
        shutil.copy(DIGITS / "digits-test.npz", place / "test.npz")
        for block in blocks(PAGES[page]):
            self.obey(block, place)

    def obey(self, block: Block, place: Path) -> None:
        if block.file:
            (place / block.file).write_text(block.text, encoding="utf-8")
        elif block.kind == "python":
            self.run(["python", "-c", block.text], place)
        elif block.kind == "console":
            for command, _ in block.commands():
                self.run(shlex.split(command), place)
        elif block.kind == "sh" and block.text == "pip install .\n":
            self.run(["pip", "install", "--quiet", "--disable-pip-version-check", "."], place)

    def run(self, command: list[str], place: Path) -> None:
        program = shutil.which(command[0], path=self.environment["PATH"]) or command[0]
        done = subprocess.run([program, *command[1:]], cwd=place, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        newcomer = Newcomer(Path(folder))
        steps = {"install from the wheel": ("", newcomer.install), **{
            name: (page, lambda page=page: newcomer.follow(page)) for name, page in WALK.items()}}
        for name, (page, step) in steps.items():
            start = time.monotonic()
            step()
            rows.append([name, f"`{page}`" if page else "", f"{time.monotonic() - start:.0f}"])
            print(*rows[-1], file=sys.stderr, flush=True)
    print(table("A newcomer's walk", ["step", "page", "s"], rows))


if __name__ == "__main__":
    main()
