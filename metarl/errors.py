"""Errors that are the user's to mend, each one clear line; anything else that is raised is ours."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a configuration, a dataset or a run folder.

    The message names the file and the key, and says what to do. The command line prints it without a
    traceback and exits with code 2.
    """


class ConfigError(UserError):
    """A configuration that cannot be read, merged or built."""


class DataError(UserError):
    """Data of the wrong shape or type, with missing or non-finite values."""


class DatasetUnavailable(DataError):
    """A dataset that is not on this machine; the message prints the command that makes or imports it."""


class CheckpointError(UserError):
    """A checkpoint that is corrupt, foreign or of another configuration."""


class NumericalError(UserError):
    """A loss, a gradient or a parameter became NaN or infinite, or an estimate has no value (a singular system)."""


def one_line(error: BaseException) -> str:
    """The kind and the text of an error, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""What a disk that is full, read-only or broken answers; another OSError is ours."""


def disk_reason(error: OSError) -> str:
    """What the operating system says: `No space left on device`."""
    return os.strerror(error.errno) if error.errno else one_line(error)


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest of `known`, or the whole list where none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known) or 'none'}."
