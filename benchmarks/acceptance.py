"""Does a made dataset tell methods apart? `python -m benchmarks.acceptance RUNS_FOLDER`, after its suite has run.

The rule: over the seeds, TD3+BC's mean score exceeds behaviour cloning's by more than two standard errors of the
difference, sqrt(sd_1^2 / n_1 + sd_2^2 / n_2); and cloning's stays clearly below the expert's mean return: by more than
two standard errors, at no more than 80 % of the way from random to expert. Prints the figures and records them beside
the recipes, from where they reach the dataset's card.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.results import Cell, Results, Spread
from metarl.data import recipes
from metarl.errors import UserError
from metarl.training.folder import write_json

RECORD = Path(recipes.__file__).parent / "acceptance.json"
BASE, BETTER = "BC", "TD3+BC"  # rows of the suite's table
LEAST_SEEDS, STANDARD_ERRORS, FURTHEST = 5, 2.0, 0.8


@dataclass(frozen=True)
class Verdict:
    """The figures of one dataset; returns are raw.

    Attributes:
        cloning, td3_bc: scores over seeds.
        random_return, expert_return: mean return of those levels of the recipe.
        difference: TD3+BC's mean minus cloning's.
        standard_error: of that difference.
        way: of cloning, from random (0) to expert (1).
        steps: gradient steps of every run.
    """

    cloning: Spread
    td3_bc: Spread
    random_return: float
    expert_return: float
    difference: float
    standard_error: float
    way: float
    steps: int

    @property
    def beats(self) -> bool:
        """Whether TD3+BC is better by more than two standard errors of the difference."""
        return self.difference > STANDARD_ERRORS * self.standard_error

    @property
    def below_expert(self) -> bool:
        """Whether cloning stays clearly below the expert."""
        error = (self.cloning.sd or 0.0) / math.sqrt(self.cloning.n)
        return self.expert_return - self.cloning.mean > STANDARD_ERRORS * error and self.way <= FURTHEST

    @property
    def accepted(self) -> bool:
        """Both."""
        return self.beats and self.below_expert

    def figures(self) -> dict[str, Any]:
        """What the card records, rounded to what two cores could reproduce."""
        plain = asdict(self) | {"difference_in_standard_errors": self.difference / self.standard_error}
        return {"accepted": self.accepted, **_rounded(plain)}


def judge(cloning: Spread, td3_bc: Spread, random_return: float, expert_return: float, steps: int) -> Verdict:
    """The figures from scores over seeds.

    Raises:
        UserError: fewer than five seeds.
    """
    for name, spread in ((BASE, cloning), (BETTER, td3_bc)):
        if spread.n < LEAST_SEEDS or spread.sd is None:
            raise UserError(
                f"{name} has {spread.n} finished seeds; the rule needs {LEAST_SEEDS}: run the suite to its end"
            )
    assert cloning.sd is not None and td3_bc.sd is not None
    return Verdict(
        cloning,
        td3_bc,
        random_return,
        expert_return,
        td3_bc.mean - cloning.mean,
        math.sqrt(cloning.sd**2 / cloning.n + td3_bc.sd**2 / td3_bc.n),
        (cloning.mean - random_return) / (expert_return - random_return),
        steps,
    )


def judge_column(loaded: Results, column: str) -> tuple[str, dict[str, Any], Verdict]:
    """The recipe (`pendulum/medium`), its record without figures, and the verdict of one dataset of a bench folder.

    Raises:
        UserError: a row is missing or unfinished, or the recipe's random or expert level is not on this machine.
    """
    base, better = _cell(loaded, BASE, column), _cell(loaded, BETTER, column)
    assert base.config is not None
    source = base.config["data"]["train"]
    if not source["recipe"]:
        raise UserError(f"{column}: only the data of a recipe is judged, not {source['minari']}")
    found, _ = recipes.find(source["recipe"])
    name = source["recipe"].rpartition("/")[0]
    size = source["size"] or found.default_size
    levels = {
        level: recipes.load_recipe(f"{name}/{level}", size, source["seed"]).card.returns["mean"]
        for level in ("random", "expert")
    }
    shas = {run.data["train"]["sha256"] for cell in (base, better) for run in cell.finished}
    if len(shas) > 1:
        raise UserError(f"{column}: the runs were trained on different rows (sha256 differs); run the suite anew")
    assert base.last is not None and better.last is not None
    verdict = judge(base.last, better.last, levels["random"], levels["expert"], base.steps)
    record = {"size": size, "seed": source["seed"], "version": found.version, "sha256": shas.pop()}
    return source["recipe"], record, verdict


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints and records the figures of every dataset of a bench folder; returns the exit status."""
    parser = argparse.ArgumentParser(description="Judge made datasets by the runs of an acceptance suite.")
    parser.add_argument("folder", type=Path, help="a bench folder, such as runs/pendulum_acceptance")
    parser.add_argument("--record", type=Path, default=RECORD, help="the JSON file that recipes read")
    options = parser.parse_args(arguments)
    try:
        loaded = results.load(options.folder)
        judged = [judge_column(loaded, column) for column in loaded.columns]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    record: dict[str, Any] = json.loads(options.record.read_text()) if options.record.is_file() else {}
    for recipe, rows, verdict in judged:
        record[recipe] = {**rows, "figures": {"suite": loaded.name, **verdict.figures()}}
        print("\n".join(lines(recipe, verdict)))
    write_json(options.record, record)
    print(f"recorded in {options.record}")
    return 0 if all(verdict.accepted for _, _, verdict in judged) else 1


def lines(recipe: str, verdict: Verdict) -> list[str]:
    """The figures for people."""
    errors = verdict.difference / verdict.standard_error
    return [
        f"{recipe}: {'accepted' if verdict.accepted else 'NOT accepted'} ({verdict.cloning.n} seeds)",
        f"  random {verdict.random_return:,.1f}, expert {verdict.expert_return:,.1f} (mean return of the data)",
        f"  {BASE} {verdict.cloning.mean:,.1f} ± {verdict.cloning.sd:,.1f}, {verdict.way:.0%} of the way to the expert",
        f"  {BETTER} {verdict.td3_bc.mean:,.1f} ± {verdict.td3_bc.sd:,.1f}",
        f"  difference {verdict.difference:,.1f}, {errors:.1f} standard errors ({verdict.standard_error:,.1f})",
    ]


def _cell(loaded: Results, row: str, column: str) -> Cell:
    cell = loaded.at(row, column)
    if cell is None or cell.last is None:
        raise UserError(f"{loaded.name}: {row} on {column} has no finished run; run the acceptance suite to its end")
    return cell


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
