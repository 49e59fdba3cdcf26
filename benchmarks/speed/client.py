"""The near end of a worker: starts its process, asks for steps, and says clearly when it died."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from metarl.errors import UserError

WORKER = Path(__file__).with_name("worker.py")
ONE_THREAD = {
    f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM", "TORCHINDUCTOR")
}
TAIL = 12  # lines of a dead worker's standard error that are shown


class WorkerDied(UserError):
    """A contestant's process ended, or wrote something else than an answer; the message ends with what it printed."""


class Worker:
    """A contestant's process; a context manager that ends it.

    Args:
        name: for messages.
        python: the interpreter.
        module: the file beside worker.py that prepares it.
        options: handed to `prepare`; `core` (where it is pinned) and `warm` (steps before it is ready) are the
            worker's own.
        env: added to the environment.
    """

    def __init__(
        self, name: str, python: str, module: str, options: Mapping[str, Any], env: Mapping[str, str] | None = None
    ) -> None:
        self.name, self._ready = name, dict[str, Any]()
        self._began = time.perf_counter()
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115, closed on exit
        try:
            self._process = subprocess.Popen(
                [python, str(WORKER), module, json.dumps({"warm": 20, **options})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env={**os.environ, **ONE_THREAD, "TORCHINDUCTOR_COMPILE_THREADS": "1", **(env or {})},
            )
        except OSError as error:
            self._errors.close()
            raise UserError(f"{name}: {python} cannot be started ({error.strerror})") from error

    def ready(self) -> dict[str, Any]:
        """What the worker says of itself once it is set up; waits for it. `start_wall_s` counts from its start."""
        if not self._ready:
            self._ready = self._answer()
            self._ready["start_wall_s"] = time.perf_counter() - self._began
        return self._ready

    def run(self, steps: int, part: str = "step") -> dict[str, Any]:
        """At least so many gradient steps: how many it took, CPU seconds and wall seconds."""
        self.ready()
        return self._answer({"part": part, "steps": steps})

    def answers(self, within_s: float) -> bool:
        """Whether something of it can be read within so many seconds, its end included."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout.fileno()], [], [], within_s)[0])

    def pause(self) -> None:
        """Its process stands still until `go_on`."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Its process runs."""
        self._process.send_signal(signal.SIGCONT)

    def _answer(self, order: Mapping[str, Any] | None = None) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        line = ""
        try:
            if order is not None:
                self._process.stdin.write(json.dumps(order) + "\n")
                self._process.stdin.flush()
            line = self._process.stdout.readline()
            answer: dict[str, Any] = json.loads(line)
        except (OSError, ValueError) as error:
            raise self._died(line) from error
        return answer

    def _died(self, line: str) -> WorkerDied:
        if line:
            return WorkerDied(f"{self.name} answered {line.strip()!r}, which is no JSON")
        status = self._process.wait()
        self._errors.seek(0)
        tail = [text.rstrip() for text in self._errors if text.strip()][-TAIL:]
        printed = "\n  ".join(["; the last that it printed:", *tail]) if tail else " and printed nothing"
        return WorkerDied(f"{self.name}: its process ended with status {status}{printed}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # One that waits for orders ends with its input; one in the middle of something is not waited for.
        if kind is not None or not self._ready:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            try:
                if stream is not None:
                    stream.close()
            except OSError:
                pass  # a dead process' pipe
        self._process.wait()
        self._errors.close()
