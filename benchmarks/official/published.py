"""Code as its authors published it, loaded from a checkout: files known by their sha256, and none other.

They are imported by Python's import machinery from their text, with the few changes of text without which they do not
run, and with stand-ins for modules that are imported and not needed.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from metarl.errors import UserError


@dataclass(frozen=True)
class Shim:
    """One replacement in the text of a file, which must have `old` exactly once.

    Attributes:
        old, new: texts.
        reason: why it does not run without.
        file: whose text it is; the first one's if empty.
    """

    old: str
    new: str
    reason: str
    file: str = ""


@dataclass(frozen=True)
class Published:
    """Files of one repository.

    Attributes:
        option: of the command line that names the checkout.
        repository: `owner/name` on GitHub.
        commit: at which the files are as they are known.
        files: to be run; each imports only those after it.
        sha256: of all of them, one after the other, as published.
        shims: all changes of text.
        packaged: their folders are packages, `a/b.py` the module `a.b`; else it is the module `b`.
    """

    option: str
    repository: str
    commit: str
    files: tuple[Path, ...]
    sha256: str
    shims: tuple[Shim, ...] = ()
    packaged: bool = False

    def module(self, file: Path) -> str:
        """The name by which a file is imported."""
        return ".".join(file.with_suffix("").parts) if self.packaged else file.stem

    @contextmanager
    def loaded(self, folder: Path, stand_ins: Mapping[str, ModuleType]) -> Iterator[dict[str, ModuleType]]:
        """Its modules by name; meanwhile they can be imported, as can the stand-ins, and no GPU is seen.

        Raises:
            UserError: as `texts`, before a line of it is run.
        """
        texts = self.texts(folder)
        packages = [".".join(parent.parts) for file in texts for parent in file.parents[:-1]] if self.packaged else []
        names = map(self.module, texts)
        before = {name: sys.modules.get(name) for name in (*stand_ins, *packages, *names)}
        made: dict[str, ModuleType] = {}
        try:
            sys.modules.update(stand_ins)
            sys.modules.update({name: _package(name) for name in packages})
            with patch("torch.cuda.is_available", lambda: False):
                for file in reversed(self.files):
                    name = self.module(file)
                    made[name] = sys.modules[name] = _module(name, texts[file])
                yield made
        finally:
            for name, module in before.items():
                if module is None:
                    sys.modules.pop(name, None)
                else:
                    sys.modules[name] = module

    def texts(self, folder: Path) -> dict[Path, str]:
        """Every file's text, made to run.

        Raises:
            UserError: a file is missing, or is not as published.
        """
        for name in self.files:
            if not (folder / name).is_file():
                raise UserError(
                    f"{self.option} {folder}: there is no {name} in it; name a checkout of github.com/{self.repository}"
                )
        first, *beside = self.files
        texts = {name: (folder / name).read_text() for name in self.files}
        for shim in self.shims:
            file = Path(shim.file) if shim.file else first
            found = texts[file].count(shim.old)
            if found != 1:
                raise UserError(
                    f"{self.option} {folder}: {file} has {shim.old!r} {found} times, where the version that this "
                    f"adapter was written for has it once; check out commit {self.commit}"
                )
            texts[file] = texts[file].replace(shim.old, shim.new)
        if self.digest(folder) != self.sha256:
            names = f"{', '.join(map(str, (first, *beside[:-1])))} or {beside[-1]}" if beside else str(first)
            raise UserError(
                f"{self.option} {folder}: {names} is not as published, and no other code is run; check out commit "
                f"{self.commit}"
            )
        return texts

    def digest(self, folder: Path) -> str:
        """sha256 of the files as they are, one after the other."""
        return hashlib.sha256(b"".join((folder / name).read_bytes() for name in self.files)).hexdigest()


class _Text(importlib.abc.InspectLoader):
    """Imports a module from its text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def get_source(self, fullname: str) -> str:
        return self.text

    def is_package(self, fullname: str) -> bool:
        return False


def _package(name: str) -> ModuleType:
    """An empty one, whose modules are imported from texts alone."""
    made = ModuleType(name)
    made.__path__ = []
    return made


def _module(name: str, text: str) -> ModuleType:
    loader = _Text(text)
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
