"""One contestant in a process of its own: `python worker.py MODULE OPTIONS`, spoken to in JSON lines.

`MODULE` is the name of a file beside this one, whose `prepare(options)` returns the contestant's parts, each
`run(steps) -> gradient steps done`, and facts to report. Then

    it writes {"ready": true, "parts": [...], "facts": {...}, "setup_cpu_s": ..., "setup_wall_s": ...},
    on {"part": name, "steps": n} it runs at least n gradient steps and writes {"steps": ..., "cpu_s": ...,
        "wall_s": ...} of those that it did,
    on {"quit": true} or at the end of its input it ends.

Run by its path and needing nothing but Python itself, so that a rival's own interpreter can run it too. Times are in
seconds; those of the setup count the processes that it started (compilers) and, in CPU time, the imports.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

HERE = Path(__file__).resolve().parent
Run = Callable[[int], int]


def main() -> None:
    """Serves until told to quit."""
    began = time.perf_counter()
    protocol = _own_stdout()
    module, options = sys.argv[1], json.loads(sys.argv[2])
    if options.get("core") is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options["core"]})
    _only_this_folder()
    module = module if "." in module else f"benchmarks.speed.{module}"
    parts, facts = importlib.import_module(module).prepare(options)
    for run in parts.values():
        if options["warm"]:
            run(options["warm"])
    # A collection of all that the imports left takes a quarter of a second, and would fall into some contestant's turn.
    gc.collect()
    gc.freeze()
    setup = {"setup_cpu_s": cpu_seconds(), "setup_wall_s": time.perf_counter() - began}
    _say(protocol, {"ready": True, "parts": list(parts), "facts": facts, **setup})
    for line in sys.stdin:
        order = json.loads(line)
        if order.get("quit"):
            break
        _say(protocol, _timed(parts[order["part"]], order["steps"]))


def _timed(run: Run, steps: int) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    done = run(steps)
    return {"steps": done, "cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}


def cpu_seconds() -> float:
    """Of this process and of those that it started and has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _own_stdout() -> TextIO:
    """The real standard output; whatever a contestant prints, in Python or below, goes to standard error instead."""
    kept = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return kept


def _only_this_folder() -> None:
    """Makes `benchmarks.speed` importable without what lies beside `benchmarks`.

    That may be a site-packages folder, whose packages are not those of the interpreter that runs this.
    """
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != HERE]
    for name, folder in (("benchmarks", HERE.parent), ("benchmarks.speed", HERE)):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package


def _say(protocol: TextIO, message: dict[str, Any]) -> None:
    protocol.write(json.dumps(message) + "\n")
    protocol.flush()


if __name__ == "__main__":
    main()
