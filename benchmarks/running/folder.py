"""A bench folder, `<root>/<suite>/`: suite.yaml, index.json, cells/<slug>.yaml and the run folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.running.suite import Suite
from metarl.config import to_yaml
from metarl.errors import UserError
from metarl.training.folder import write_aside, write_json

FORMAT = 1


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

    def config(self, slug: str) -> Path:
        """The experiment file of one cell."""
        return self.path / "cells" / f"{slug}.yaml"

    def write(self, suite: Suite) -> None:
        """Writes the plan; run folders are left alone, since each belongs to one configuration by its hash."""
        (self.path / "cells").mkdir(parents=True, exist_ok=True)
        for cell in suite.cells:
            write_aside(self.config(cell.slug), to_yaml(cell.experiment.resolved))
        write_aside(self.suite, to_yaml(suite.resolved))
        write_json(self.index, _index(suite))

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
    }
