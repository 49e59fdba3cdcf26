"""The user's own line behind an operation or an error: neither PyTorch's nor the engine's."""

from __future__ import annotations

import linecache
import os
import re
import sys
import sysconfig
import textwrap
from functools import cache
from pathlib import Path
from types import FrameType

import torch

import metarl

_CORE = str(Path(metarl.__file__).parent) + os.sep
_HERE = str(Path(__file__).parent) + os.sep
_FUNC = str(Path(torch.__file__).parent / "_functorch") + os.sep
_STDLIB = sysconfig.get_paths()["stdlib"] + os.sep
_SITE = os.sep + "site-packages" + os.sep
_LIBRARIES = ("torch", "torchgen", "functorch", "torchopt", "higher", "optree")


@cache
def is_users(file: str) -> bool:
    """Whether a source file is an objective's or an algorithm's: not the engine's, PyTorch's or Python's."""
    if file.startswith(("<", _CORE, str(Path(torch.__file__).parent))):
        return False
    if _SITE in file:
        return file.split(_SITE)[-1].split(os.sep)[0] not in _LIBRARIES
    return not file.startswith(_STDLIB)


def called_by_user() -> bool:
    """Whether the caller of a mode's method is the user's own line, not the engine that the user called."""
    return is_users(sys._getframe(2).f_code.co_filename)


def in_transform() -> bool:
    """Whether a torch.func transform runs the current operation; it makes tensors of the code's plain numbers."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(_FUNC):
            return True
        frame = frame.f_back
    return False


def caller() -> str:
    """`file:line` of the innermost user code that is running inside a check; empty where there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _belongs_to_a_mode(frame):
        frame = frame.f_back
    while frame is not None:
        file = frame.f_code.co_filename
        if is_users(file):
            return place(file, frame.f_lineno)
        if file.startswith(_HERE) and not _belongs_to_a_mode(frame):
            return ""  # whoever runs the checks is not the user's loss
        frame = frame.f_back
    return ""


def _belongs_to_a_mode(frame: FrameType) -> bool:
    return frame.f_code.co_filename in (_HERE + "watch.py", _HERE + "where.py")


def raised_at(error: BaseException, inside: bool = False) -> str:
    """`file:line` of the innermost user code that an error passed through in a check; `inside` where it began there."""
    found = ""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        inside = inside or file.startswith(_HERE)
        if inside and is_users(file):
            found = place(file, trace.tb_lineno)
        trace = trace.tb_next
    return found


def in_text(text: str) -> str:
    """`file:line` of the innermost user code in a printed traceback."""
    lines = [(file, int(number)) for file, number in re.findall(r'File "([^"]+)", line (\d+)', text)]
    last = max((i for i, (file, _) in enumerate(lines) if file.startswith(_HERE)), default=-1)
    users = [line for line in lines[last + 1 :] if is_users(line[0])]
    return place(*users[-1]) if users else ""


def place(file: str, line: int) -> str:
    """`file:line`, relative to the current folder where it lies below it."""
    path = Path(file)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name
    source = textwrap.shorten(linecache.getline(file, line).split("  # ")[0], 90, placeholder=" ...")
    return f"{shown}:{line}" + (f" `{source}`" if source else "")
