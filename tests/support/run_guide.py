"""Runs the code blocks of a guide, in order, in the current folder, and shows their output.

    python tests/support/run_guide.py docs/own_data.md

The word after the three backticks determines what happens with a block:

    python   runs; all of them share their variables, like the cells of a notebook. With a first line
             `# folder/name.py` it is written to that file instead.
    bash     runs; the guide ends if a command fails
    diff     is applied to the files that it names
    text     must be in the output of the block before it, line by line and in order; numbers may differ, and `...`
             stands for any lines

Other blocks are ignored.
"""

import contextlib
import io
import os
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+\.py)\n")
NUMBER = re.compile(r"\d[\d.,:e-]*")
DRAWN = re.compile(r"[\s─━│┃|]+")  # lines of tables, whose lengths depend on the numbers


class Block(NamedTuple):
    """One fenced block; `line` is its first line in the guide."""

    kind: str
    text: str
    line: int


def blocks_of(guide: str) -> list[Block]:
    return [Block(match[1], match[2], guide.count("\n", 0, match.start()) + 2) for match in FENCED.finditer(guide)]


def run(guide: pathlib.Path) -> None:
    """Runs the blocks of a guide.

    Raises the errors of the blocks, and AssertionError if the guide shows text that was not printed.
    """
    variables: dict = {"__name__": "__main__"}
    printed = ""
    for block in blocks_of(guide.read_text()):
        where = f"{guide.name}, line {block.line}"
        print(f"--- {where}: {block.kind}", flush=True)
        named = FILE.match(block.text)
        if block.kind == "text":
            message = f"{where} shows text that the block before it has not printed:\n{block.text}"
            assert shows(block.text, printed), message
        elif block.kind == "diff":
            subprocess.run(["git", "apply"], input=block.text, text=True, check=True)
        elif block.kind == "python" and named:
            pathlib.Path(named[1]).parent.mkdir(parents=True, exist_ok=True)
            pathlib.Path(named[1]).write_text(block.text.partition("\n")[2])
        elif block.kind in RUN:
            printed = RUN[block.kind](block.text, where, variables)
            print(printed, end="", flush=True)


def in_shell(commands: str, *_) -> str:
    """Runs commands in bash and returns their output. If one fails, shows the output and raises CalledProcessError."""
    done = subprocess.run(["bash", "-euc", commands], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(done.stdout, flush=True)
    done.check_returncode()
    return done.stdout


def in_python(code: str, where: str, variables: dict) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, where, "exec"), variables)
    return printed.getvalue()


RUN = {"python": in_python, "bash": in_shell}


def shows(shown: str, printed: str) -> bool:
    """Whether the lines of `shown` were printed, one after the other."""
    lines = [r"(.*\n)*" if line.strip() == "..." else re.escape(plain(line)) + r"\n" for line in shown.splitlines()]
    text = "".join(plain(line) + "\n" for line in printed.splitlines())
    return re.search(r"(?m)^" + "".join(lines), text) is not None


def plain(line: str) -> str:
    """A line with `#` for its numbers and without the lines of tables."""
    return NUMBER.sub("#", DRAWN.sub(" ", line)).strip()


if __name__ == "__main__":
    os.environ["PATH"] = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    sys.path.insert(0, os.getcwd())
    run(pathlib.Path(sys.argv[1]))
