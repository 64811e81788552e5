"""Runs commands of hessdist one after the other, each in a process of its own that begins with its
libraries loaded, and notes what each figure has.

    python commands.py FOLDER COMMANDS.json

Each command is a list of words; its output goes to FOLDER/N.out and FOLDER/N.err, its exit status
and seconds of processor time to FOLDER/N.json.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import sys
from pathlib import Path

LIBRARIES = ("numpy", "h5py", "scipy.optimize", "matplotlib.figure", "torch", "torch._dynamo")


def main(folder: Path, commands: list[list[str]]) -> None:
    """Run the commands.

    Args:
        folder: Where outputs go.
        commands: Words of each, without the name of the program.
    """
    sys.path[0] = ""  # as for python -m: the folder that the command runs in
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a child does not go through them again when it ends
    for number, words in enumerate(commands):
        child = os.fork()
        if child == 0:
            for stream, ending in ((1, "out"), (2, "err")):
                file = os.open(folder / f"{number}.{ending}", os.O_WRONLY | os.O_CREAT, 0o644)
                os.dup2(file, stream)
            sys.argv = ["hessdist", *words]
            if words[0] == "plot":
                _describe_figures()
            runpy.run_module("hessdist", run_name="__main__", alter_sys=True)
            sys.exit(0)
        _, status, used = os.wait4(child, 0)
        ended = {
            "status": os.waitstatus_to_exitcode(status),
            "seconds": used.ru_utime + used.ru_stime,
        }
        (folder / f"{number}.json").write_text(json.dumps(ended), encoding="utf-8")


def _describe_figures() -> None:
    """Let every figure write FILE.json beside what it is saved as."""
    from matplotlib.figure import Figure
    from snapshots.figure_parts import figure_parts

    def savefig(figure: Figure, path: Path, **_options: object) -> None:
        figure.canvas.draw_idle()
        Path(path).touch()
        Path(f"{path}.json").write_text(json.dumps(figure_parts(figure)), encoding="utf-8")

    Figure.savefig = savefig  # type: ignore[assignment,method-assign]


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
