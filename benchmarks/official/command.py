"""What the commands of all methods share: their options, their records, and the page of all that are recorded."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from benchmarks.official import page
from benchmarks.official.published import Published
from metarl.bilevel import Params
from metarl.errors import UserError
from metarl.process import settle
from metarl.provenance import environment
from metarl.training.folder import write_aside, write_json

RESULTS = Path(__file__).parents[1] / "results"
PAGE = Path(__file__).parents[2] / "docs" / "official.md"
RECORDS = ("official_por.json", "official_pex.json")  # in the order of the page
SAME = 1e-10  # relative, of the first updates in float64


@dataclass(frozen=True)
class Command:
    """`python -m benchmarks.official_NAME`.

    Attributes:
        name: in small letters, of the option that names the checkout, too.
        description: one line.
        published: the authors' files.
        sizes: by setting, what it is and its usual value, in words; each is an option.
        measured: runs everything and returns the record.
    """

    name: str
    description: str
    published: Published
    sizes: Mapping[str, str]
    measured: Callable[[argparse.Namespace], dict[str, Any]]

    @property
    def results(self) -> Path:
        """Where its record lies."""
        return RESULTS / f"official_{self.name}.json"

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Returns the exit status: 2 for a mistake of the user's."""
        options = self._parser().parse_args(arguments)
        settle()
        try:
            if not options.write_only:
                if options.checkout is None:
                    repository = f"github.com/{self.published.repository}"
                    raise UserError(f"name a checkout of {repository} with --{self.name}, or give --write-only")
                if options.seeds < 2:
                    raise UserError(f"--seeds {options.seeds}: an interval over seeds needs two or more")
                write_json(options.results, self.measured(options))
            if not options.results.is_file():
                raise UserError(f"there is no {options.results} to write the page from; give --{self.name} first")
            records = recorded(options.results, self.results.name)
            write_aside(options.page, page.page(records))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        console = Console()
        for record in records:
            console.print(page.table(record).shown(), highlight=False)
        console.print(f"\n{page.RULE}.\nWritten: {options.page}", highlight=False, soft_wrap=True)
        return 0

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(
            prog=f"python -m benchmarks.official_{self.name}", description=self.description
        )
        repository = f"github.com/{self.published.repository}"
        parser.add_argument(f"--{self.name}", dest="checkout", type=Path, help=f"a checkout of {repository}")
        parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
        for setting, words in self.sizes.items():
            parser.add_argument(f"--{setting.replace('_', '-')}", type=int, metavar="N", help=words)
        out = Path(f"runs/official_{self.name}")
        parser.add_argument("--out", type=Path, default=out, help="where finished runs are kept")
        parser.add_argument("--write-only", action="store_true", help="write the page from what was measured before")
        parser.add_argument("--results", type=Path, default=self.results, help="the JSON file")
        parser.add_argument("--page", type=Path, default=PAGE, help="the page")
        parser.add_argument("--progress", choices=("auto", "bar", "lines", "none"), default="auto")
        return parser


def recorded(results: Path, name: str) -> list[dict[str, Any]]:
    """The record in `results`, which stands for `name`, and those of other methods beside it, in the page's order."""
    files = [results if each == name else results.parent / each for each in RECORDS]
    return [json.loads(file.read_text()) for file in files if file.is_file()]


def record(name: str, published: Published, **others: Any) -> dict[str, Any]:
    """Whose code was run and where, and `others`."""
    return {
        "algorithm": name.upper(),
        "command": f"python -m benchmarks.official_{name} --{name} CHECKOUT",
        "repository": published.repository,
        "commit": published.commit,
        "files": list(map(str, published.files)),
        "sha256": published.sha256,
        "shims": [asdict(shim) for shim in published.shims],
        **others,
        "environment": environment(),
    }


def sizes(words: Mapping[str, str], cells: Sequence[Any], *settings: str) -> dict[str, str]:
    """`Command.sizes` of settings that cells have."""
    told = {name: dict.fromkeys(f"{getattr(cell, name):,}" for cell in cells) for name in settings}
    return {name: f"{words[name]} ({' and '.join(values)})" for name, values in told.items()}


def asked(sizes: Mapping[str, str], options: argparse.Namespace) -> dict[str, int]:
    """The settings that were asked for."""
    return {name: getattr(options, name) for name in sizes if getattr(options, name) is not None}


# -- number by number ------------------------------------------------------------------------------------------


def by_our_names(module: nn.Module) -> Params:
    """The authors' parameters by our names, and matrices as ours: [in, out].

    Their layers are in sequences, of one name each; layers outside of them follow those of the first sequence.
    """
    found: Params = {}
    nets = {name: list(each) for name, each in module.named_children() if isinstance(each, nn.Sequential)}
    nets[next(iter(nets))] += [each for each in module.children() if not isinstance(each, nn.Sequential)]
    for net, layers in nets.items():
        for kind, letters in ((nn.Linear, "layers"), (nn.LayerNorm, "norms")):
            for i, layer in enumerate(one for one in layers if isinstance(one, kind)):
                for name, p in layer.named_parameters():
                    found[f"{net}.{letters}.{i}.{name}"] = p.T if p.dim() == 2 else p
    return found | dict(module.named_parameters(recurse=False))


def copy(params: Params, theirs: Params) -> None:
    """The values of ours into the authors' parameters, by our names."""
    assert set(params) == set(theirs)
    with torch.no_grad():
        for name, p in theirs.items():
            p.copy_(params[name])


def apart(params: Params, theirs: Params) -> float:
    """The largest difference of any number, relative to the largest of its tensor."""
    assert set(params) == set(theirs)
    gaps = [
        (params[name] - p.detach()).abs().max() / p.detach().abs().max().clamp(min=1e-3) for name, p in theirs.items()
    ]
    return float(torch.stack(gaps).max())
