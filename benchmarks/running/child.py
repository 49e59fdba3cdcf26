"""One run of a suite in a process of its own, which ends with its parent: `python -m benchmarks.running.child`.

Standard input is a pipe that nothing is written to. The system closes it when the parent dies, however it dies, and
then this process and those that it has started end at once: nothing trains on unseen. What has been trained is safe,
since checkpoints are written aside and renamed.

Standard output as the parent made it is for progress alone; what components and their helpers print goes to standard
error, so that none of it is taken for progress, and no helper that lives on keeps the parent waiting for more.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

FAILED, MISTAKE, INTERRUPTED = 1, 2, 130
NO_ROOM, HELD = 74, 75  # EX_IOERR, the disk refuses; EX_TEMPFAIL, another process trains the run


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, with progress as lines of JSON; returns the exit status."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    faulthandler.enable()
    options = _parser().parse_args(arguments)
    with _channel() as progress:
        try:
            return _train(options, progress)
        except Exception as error:
            traceback.print_exc()
            _tell(progress, f"{type(error).__name__}: {error}")
            return FAILED


def _train(options: argparse.Namespace, progress: TextIO) -> int:
    # Imported late: the parent's end must be noticed meanwhile too.
    from metarl import config
    from metarl.errors import DISK, UserError
    from metarl.training import offline
    from metarl.training.progress import Lines

    beside = options.beside or options.config.parent
    try:
        experiment = config.load(options.config, beside=beside)
        offline.train_stack(experiment, options.seed, options.root, Lines(progress), beside)
    except KeyboardInterrupt:
        return INTERRUPTED
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, BlockingIOError):
            return HELD
        print(f"error: {error}", file=sys.stderr)
        _tell(progress, f"error: {error}")
        return NO_ROOM if isinstance(cause, OSError) and cause.errno in DISK else MISTAKE
    return 0


def _channel() -> TextIO:
    """What standard output has been until now; from here on it is standard error."""
    sys.stdout.flush()
    kept = os.fdopen(os.dup(1), "w")  # no process that is started inherits it
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    return kept


def _tell(progress: TextIO, text: str) -> None:
    """The error once more, for a parent whose disk took no log."""
    print(json.dumps({"error": " ".join(text.split())}), file=progress, flush=True)


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # with the compilers that it may have started
    os._exit(INTERRUPTED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.running.child", description="For `metarl bench`.")
    parser.add_argument("config", type=Path)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--seed", type=int, action="append", required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
