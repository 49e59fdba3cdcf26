"""A run's folder: `<root>/<name>-<hash>/<seed>/`; held by one process at a time, never overwritten."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarl.config import Experiment, build, fixed, read, to_yaml
from metarl.errors import DISK, ConfigError, UserError


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run.

    Attributes:
        path: `<root>/<name>-<hash>/<seed>`.
    """

    path: Path

    @classmethod
    def of(cls, experiment: Experiment, seed: int, root: Path) -> RunFolder:
        """The folder of one seed of an experiment."""
        return cls(root / experiment.folder / str(seed))

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def probes(self) -> Path:
        return self.path / "probes.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def cost(self) -> Path:
        return self.path / "cost.json"

    @property
    def replay(self) -> Path:
        return self.path / "replay.bin"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoint"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def seed(self) -> int:
        name = self.path.resolve().name
        if not name.isdigit():
            raise ConfigError(f"{self.path} is not named after its seed; a run's folder is <name>-<hash>/<seed>")
        return int(name)

    def steps_on_record(self) -> int | None:
        """Steps that result.json tells of; None where it is missing or damaged."""
        try:
            return int(json.loads(self.result.read_text())["steps"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder, made and locked against a second process.

        Raises:
            UserError: another process trains in it, or the disk refuses to take what is written meanwhile.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            opened = (self.path / ".lock").open("w")
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}); choose another --root") from error
        with opened as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"{self.path}: another process is training this run; wait for it") from error
            try:
                yield
            except OSError as error:
                if error.errno not in DISK:
                    raise
                raise UserError(
                    f"{self.path} cannot be written ({error.strerror}); what was saved before is kept: make room there "
                    "and run the same command again"
                ) from error

    def write_config(self, experiment: Experiment) -> None:
        """Writes config.yaml, or checks that the one that lies there is the same but for what is free (`config.FREE`).

        Raises:
            ConfigError: the folder belongs to another configuration.
        """
        text = to_yaml(experiment.resolved)
        if self.config.exists():
            theirs = fixed(read(self.config))
            for key, value in fixed(experiment.resolved).items():
                if json.dumps(theirs.get(key)) != json.dumps(value):
                    raise ConfigError(
                        f"{self.config} differs from this experiment in {key!r}; it was edited, or the folder "
                        "belongs to another run: move it away, or give the experiment another name"
                    )
        write_aside(self.config, text)

    def experiment(self, beside: Path | None = None) -> Experiment:
        """The experiment that config.yaml records; components named `module:Class` are looked for in `beside`.

        Raises:
            ConfigError: the folder holds no run.
        """
        if not self.config.is_file():
            raise ConfigError(f"{self.path} holds no run: it has no config.yaml")
        return build(read(self.config), where=str(self.config), folder=beside)


def write_aside(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    aside = path.with_name(f".{path.name}.writing")
    aside.write_text(text)
    os.replace(aside, path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON whole or not at all."""
    write_aside(path, json.dumps(value, indent=1) + "\n")
