"""A bench folder, `<root>/<suite>/`: suite.yaml, index.json, failures.json, cells/<slug>.yaml and the run folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.running import locks
from benchmarks.running.suite import Suite
from metarl.config import to_yaml
from metarl.errors import ConfigError, UserError, disk_reason
from metarl.training.folder import RunFolder, write_aside, write_json

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

    def orphans(self, suite: Suite) -> str:
        """What the suite would leave of the finished runs that the plan written last knows; "" where it keeps all.

        Raises:
            ConfigError: those have other axes, so that this is another suite of the same name.
        """
        try:
            old = self.read_index()
            left = self._left_over(old, suite)
            other = set(old["axes"]) != set(suite.axes)
        except (UserError, KeyError, TypeError, ValueError):  # none, or none that this version can read
            return ""
        if left and other:
            raise ConfigError(
                f"{self.path} holds {left} finished runs of a suite with other axes ({', '.join(old['axes'])}); give "
                f"this one a folder of its own: name={suite.name}-2, or another --root"
            )
        if not left:
            return ""
        return (
            f"{left} finished runs here no longer belong to the plan (another label, setting or seed); they stay where "
            "they are, and the plan that they were made with finds them again"
        )

    @contextmanager
    def held(self, suite: Suite, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
        """The plan written, and kept as it is meanwhile; several processes may hold one plan at once.

        Run folders are left alone, since each belongs to one configuration by its hash.

        Args:
            suite: the plan.
            say: is told of finished runs that do not belong to it.

        Raises:
            ConfigError: another process runs another plan here, or the finished runs are those of another suite.
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
                        if left := self.orphans(suite):
                            say(left)
                        if not locks.alone(running):
                            raise ConfigError(
                                f"another `metarl bench` is running in {self.path} with other settings; wait for it, "
                                f"or give this one a folder of its own: name={suite.name}-2"
                            )
                        for file, text in plan.items():
                            write_aside(file, text)
                        locks.share(running)
            except OSError as error:
                raise UserError(
                    f"{error.filename or self.path} cannot be written ({disk_reason(error)}); make room there, or "
                    "choose another --root"
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
        with suppress(OSError):
            return self._failures()
        return {}

    def change_failures(self, change: Mapping[str, Mapping[str, Any] | None]) -> None:
        """Sets entries of failures.json, or removes them (None); other processes may do so at the same time.

        Raises:
            OSError: the disk does not take it, or does not give what is there; that is kept.
        """
        with locks.locked(self.path / ".failures.lock"):
            before = self._failures()
            after = {key: value for key, value in {**before, **change}.items() if value is not None}
            if after != before:
                write_json(self.failures, after)

    def _failures(self) -> dict[str, dict[str, Any]]:
        with suppress(FileNotFoundError, ValueError):
            found = json.loads(self.failures.read_text())
            if isinstance(found, dict):
                return {key: entry for key, entry in found.items() if isinstance(entry, dict)}
        return {}

    def _left_over(self, old: Mapping[str, Any], suite: Suite) -> int:
        """Finished runs of an index that are none of the suite's."""
        kept = {(cell.experiment.folder, seed) for cell in suite.cells for seed in suite.seeds}
        runs = {(cell["experiment"], seed): cell["steps"] for cell in old["cells"] for seed in old["seeds"]}
        return sum(
            (RunFolder(self.path / folder / str(seed)).steps_on_record() or 0) >= steps
            for (folder, seed), steps in runs.items()
            if (folder, seed) not in kept
        )

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
