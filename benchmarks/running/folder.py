"""A bench folder, `<root>/<suite>/`: suite.yaml, index.json, failures.json, cells/<slug>.yaml and the run folders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.running import locks
from benchmarks.running.suite import Suite
from metarl.config import to_yaml
from metarl.errors import DISK, ConfigError, UserError, disk_reason
from metarl.training.folder import write_aside, write_json

FORMAT = 2


@dataclass(frozen=True)
class BenchFolder:
    """Paths of one suite's runs.

    Attributes:
        path: `<root>/<suite name>`.
    """

    path: Path

    @property
    def suite(self) -> Path:
        return self.path / "suite.yaml"

    @property
    def index(self) -> Path:
        return self.path / "index.json"

    @property
    def failures(self) -> Path:
        return self.path / "failures.json"

    def config(self, slug: str) -> Path:
        """The experiment file of one cell."""
        return self.path / "cells" / f"{slug}.yaml"

    @contextmanager
    def held(self, suite: Suite) -> Iterator[None]:
        """The plan written, and kept as it is meanwhile; several processes may hold one plan at once.

        Run folders are left alone, since each belongs to one configuration by its hash.

        Raises:
            ConfigError: another process runs another plan here.
            UserError: the disk does not take the plan.
        """
        with ExitStack() as stack:
            try:
                (self.path / "cells").mkdir(parents=True, exist_ok=True)
                with locks.locked(self.path / ".plan.lock"):
                    running = stack.enter_context((self.path / ".running.lock").open("a"))
                    locks.share(running)
                    plan = self._plan(suite)
                    if any(_text(file) != text for file, text in plan.items()):
                        if not locks.alone(running):
                            raise ConfigError(
                                f"another `metarl bench` is running in {self.path} with other settings; wait for it, "
                                f"or give this one a folder of its own: name={suite.name}-2"
                            )
                        for file, text in plan.items():
                            write_aside(file, text)
                        locks.share(running)
            except OSError as error:
                if error.errno not in DISK:
                    raise
                raise UserError(
                    f"{self.path} cannot be written ({disk_reason(error)}); make room there, or choose another --root"
                ) from error
            yield

    def read_index(self) -> dict[str, Any]:
        """The plan that was written last.

        Raises:
            UserError: index.json is unreadable, or of another version.
        """
        try:
            index = json.loads(self.index.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.index} is not readable ({error}); run `metarl bench` again to write it") from error
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise UserError(f"{self.index} is of another version; run `metarl bench` again to write it")
        return index

    def read_failures(self) -> dict[str, dict[str, Any]]:
        """Runs whose last attempt failed, by `<experiment>/<seed>`: title, code, attempts and log; {} where damaged."""
        with suppress(OSError, ValueError):
            found = json.loads(self.failures.read_text())
            if isinstance(found, dict):
                return found
        return {}

    def change_failures(self, change: Mapping[str, Mapping[str, Any] | None]) -> None:
        """Sets entries of failures.json, or removes them (None); other processes may do so at the same time.

        Raises:
            OSError: the disk does not take it; what was there before is kept.
        """
        with locks.locked(self.path / ".failures.lock"):
            before = self.read_failures()
            after = {key: value for key, value in {**before, **change}.items() if value is not None}
            if after != before:
                write_json(self.failures, after)

    def _plan(self, suite: Suite) -> dict[Path, str]:
        cells = {self.config(cell.slug): to_yaml(cell.experiment.resolved) for cell in suite.cells}
        return {**cells, self.suite: to_yaml(suite.resolved), self.index: json.dumps(_index(suite), indent=1) + "\n"}


def _text(path: Path) -> str | None:
    with suppress(OSError, ValueError):
        return path.read_text()
    return None


def _index(suite: Suite) -> Mapping[str, Any]:
    return {
        "format": FORMAT,
        "name": suite.name,
        "axes": {axis: list(labels) for axis, labels in suite.axes.items()},
        "seeds": list(suite.seeds),
        "cells": [
            {
                "labels": dict(cell.labels),
                "experiment": cell.experiment.folder,
                "config": f"cells/{cell.slug}.yaml",
                "steps": cell.experiment.steps,
            }
            for cell in suite.cells
        ],
        "excluded": [{"labels": dict(one.labels), "reason": one.reason} for one in suite.excluded],
    }
