"""The tables of settings and presets in docs/, made from the components: `python -m metarl.pages docs` renews them.

A page docs/algorithms/NAME.md, docs/objectives/NAME.md or docs/online_runs.md holds the markers `<!-- settings -->` and
`<!-- end of settings -->`; what stands between them is the table.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torchopt.base import GradientTransformation

from metarl import registry
from metarl.component import describe, plain_component, schema_of
from metarl.config import Online
from metarl.errors import ConfigError, UserError

KINDS = ("algorithms", "objectives")
START, END = "<!-- settings -->", "<!-- end of settings -->"


def pages(docs: Path) -> Iterator[tuple[Path, Any]]:
    """Every page of a component under `docs`, with that component; and that of the online phase."""
    for kind in KINDS:
        for path in sorted((docs / kind).glob("*.md")):
            yield path, registry.resolve(f"metarl.{kind}", path.stem)
    if (docs / "online_runs.md").is_file():
        yield docs / "online_runs.md", Online


def renewed(text: str, target: Any, where: str) -> str:
    """A page's text with the table of `target` between its markers.

    Raises:
        ConfigError: the markers do not stand there once each, in order.
    """
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    if text.count(START) != 1 or rest.count(END) != 1:
        raise ConfigError(f"{where}: the markers {START} and {END} must stand there once each, in this order")
    return f"{before}{START}\n{table(target)}\n{END}{after}"


def table(target: Any) -> str:
    """Settings with their defaults and meaning, then presets, as Markdown."""
    lines = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for name, default, meaning in settings(target):
        escaped = meaning.replace("|", r"\|")
        lines.append(f"| `{name}` | `{default}` | {escaped} |")
    presets = getattr(target, "presets", {})
    if presets:
        lines += ["", "| preset | what it sets |", "| --- | --- |"]
        lines += [f"| `{name}` | `{flow(values, bare=True)}` |" for name, values in presets.items()]
    return "\n".join(lines)


def settings(target: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(name, default as YAML has it, meaning) of every setting, those of nested dataclasses by dotted names."""
    schema = schema_of(target)
    hints = typing.get_type_hints(schema)
    for f, (name, _, text) in zip(dataclasses.fields(schema), describe(target), strict=True):
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if dataclasses.is_dataclass(default):
            yield from settings(type(default), f"{prefix}{name}.")
            continue
        known = typing.get_args(hints[name]) if typing.get_origin(hints[name]) is Literal else ()
        choices = f"{', '.join(f'`{flow(value)}`' for value in known)}: " if known else ""
        shown = "required" if default is dataclasses.MISSING else flow(default)
        yield f"{prefix}{name}", shown, f"{choices}{text}"


def flow(value: Any, bare: bool = False) -> str:
    """A value as YAML writes it on one line; an optimiser without what its name implies; `bare`: without braces."""
    if isinstance(value, GradientTransformation):
        value = _optimizer(value)
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key}: {flow(inner)}" for key, inner in value.items())
        return inside if bare else f"{{{inside}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(flow, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _optimizer(built: GradientTransformation) -> dict[str, Any]:
    """Its name, and those settings that are not the defaults of that name."""
    plain = plain_component(built)
    assert plain is not None
    fields = dataclasses.fields(schema_of(registry.resolve("metarl.optimizers", plain["name"])))
    usual = {f.name: f.default for f in fields}
    return {key: value for key, value in plain.items() if key == "name" or value != usual[key]}


def main(arguments: Sequence[str]) -> int:
    """Renews every page under the one folder that is named, and prints those that changed."""
    if len(arguments) != 1:
        print("usage: python -m metarl.pages docs", file=sys.stderr)
        return 2
    try:
        for path, target in pages(Path(arguments[0])):
            old = path.read_text(encoding="utf-8")
            new = renewed(old, target, str(path))
            if new != old:
                path.write_text(new, encoding="utf-8")
                print(path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
