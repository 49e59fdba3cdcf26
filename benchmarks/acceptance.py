"""Does a made dataset tell methods apart? `python -m benchmarks.acceptance RUNS_FOLDER`, after its suite has run.

The rule: the data's mean return lies 30 to 50 % of the way from random to expert; over the seeds, TD3+BC's mean score
exceeds behaviour cloning's by more than two standard errors of the difference, sqrt(sd_1^2 / n_1 + sd_2^2 / n_2); and
cloning stays clearly below the expert: by more than two standard errors, at no more than 80 % of the way.
Mazes compare success rates, which are mean returns where an episode pays 1 at its goal and ends there. Their medium
level consists of pieces, whose returns are of no account: the first condition is left out.
Prints the figures and records them beside the recipes, from where they reach the dataset's card.
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
from benchmarks.readme import with_table
from benchmarks.results import Cell, Results, Spread
from metarl.data import recipes
from metarl.errors import UserError
from metarl.training.folder import write_aside, write_json

RECORD = Path(recipes.__file__).parent / "acceptance.json"
PAGE = Path(__file__).parents[1] / "docs" / "data.md"
BASE, BETTER = "BC", "TD3+BC"  # rows of the suite's table
LEAST_SEEDS, STANDARD_ERRORS, FURTHEST = 5, 2.0, 0.8
MEDIUM = (0.3, 0.5)  # where the data's mean return lies between random and expert


@dataclass(frozen=True)
class Verdict:
    """The figures of one dataset; returns are raw. Where the measure is success, all but `data_return` are rates.

    Attributes:
        cloning, td3_bc: scores over seeds.
        data_return: mean return of the judged data.
        random_return, expert_return: mean return of those levels of the recipe.
        difference: TD3+BC's mean minus cloning's.
        standard_error: of that difference.
        steps: gradient steps of every run.
        measure: the recipe's, "return" or "success".
    """

    cloning: Spread
    td3_bc: Spread
    data_return: float
    random_return: float
    expert_return: float
    steps: int
    measure: str = "return"

    @property
    def difference(self) -> float:
        """TD3+BC's mean minus cloning's."""
        return self.td3_bc.mean - self.cloning.mean

    @property
    def standard_error(self) -> float:
        """Of that difference."""
        return math.sqrt(sum((s.sd or 0.0) ** 2 / s.n for s in (self.cloning, self.td3_bc)))

    def place(self, value: float) -> float:
        """Where a return lies from random (0) to expert (1)."""
        return (value - self.random_return) / (self.expert_return - self.random_return)

    @property
    def medium(self) -> bool:
        """Whether the data lies where a medium level must; pieces lie nowhere."""
        return self.measure == "success" or MEDIUM[0] <= self.place(self.data_return) <= MEDIUM[1]

    @property
    def beats(self) -> bool:
        """Whether TD3+BC is better by more than two standard errors of the difference."""
        return self.difference > STANDARD_ERRORS * self.standard_error

    @property
    def below_expert(self) -> bool:
        """Whether cloning stays clearly below the expert."""
        error = (self.cloning.sd or 0.0) / math.sqrt(self.cloning.n)
        clearly = self.expert_return - self.cloning.mean > STANDARD_ERRORS * error
        return clearly and self.place(self.cloning.mean) <= FURTHEST

    @property
    def apart(self) -> float | None:
        """The difference in standard errors; None where no score varies over seeds."""
        return self.difference / self.standard_error if self.standard_error else None

    @property
    def accepted(self) -> bool:
        """All of it."""
        return self.medium and self.beats and self.below_expert

    def figures(self) -> dict[str, Any]:
        """What the card records, rounded to what two cores could reproduce."""
        plain = asdict(self) | {
            "difference": self.difference,
            "standard_error": self.standard_error,
            "difference_in_standard_errors": self.apart,
            "data_place": self.place(self.data_return),
            "cloning_place": self.place(self.cloning.mean),
        }
        return {"accepted": self.accepted, **_rounded(plain)}


def judge(
    cloning: Spread,
    td3_bc: Spread,
    data_return: float,
    random_return: float,
    expert_return: float,
    steps: int,
    measure: str = "return",
) -> Verdict:
    """The figures from scores over seeds.

    Raises:
        UserError: fewer than five seeds.
    """
    for name, spread in ((BASE, cloning), (BETTER, td3_bc)):
        if spread.n < LEAST_SEEDS or spread.sd is None:
            raise UserError(
                f"{name} has {spread.n} finished seeds; the rule needs {LEAST_SEEDS}: run the suite to its end"
            )
    return Verdict(cloning, td3_bc, data_return, random_return, expert_return, steps, measure)


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
    name, _, own = source["recipe"].rpartition("/")
    size = source["size"] or found.default_size
    levels = {
        level: recipes.load_recipe(f"{name}/{level}", size, source["seed"]).card.returns["mean"]
        for level in (own, "random", "expert")
    }
    shas = {run.data["train"]["sha256"] for cell in (base, better) for run in cell.finished}
    if len(shas) > 1:
        raise UserError(f"{column}: the runs were trained on different rows (sha256 differs); run the suite anew")
    assert base.last is not None and better.last is not None
    verdict = judge(base.last, better.last, levels[own], levels["random"], levels["expert"], base.steps, found.measure)
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
    if options.record == RECORD:
        write_aside(PAGE, with_table(PAGE.read_text(), table(record), "recipes"))
    return 0 if all(verdict.accepted for _, _, verdict in judged) else 1


def table(record: Mapping[str, Any]) -> str:
    """The record in Markdown: one row for each judged recipe."""
    head = ("recipe", "measure", "rows", "steps", "random", "expert", BASE, BETTER, "apart by", "verdict")
    rows = [head, ("---",) * len(head)]
    for recipe, entry in sorted(record.items()):
        f = entry["figures"]
        show = "{:.3f}".format if f.get("measure") == "success" else "{:,.1f}".format
        scores = [f"{show(f[k]['mean'])} ± {show(f[k]['sd'])} (n={f[k]['n']})" for k in ("cloning", "td3_bc")]
        rows.append(
            (
                recipe,
                f.get("measure", "return"),
                f"{entry['size']:,}",
                f"{f['steps']:,}",
                show(f["random_return"]),
                show(f["expert_return"]),
                *scores,
                _errors(f["difference_in_standard_errors"], "s.e."),
                "accepted" if f["accepted"] else "not accepted",
            )
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def lines(recipe: str, verdict: Verdict) -> list[str]:
    """The figures for people."""
    rates = verdict.measure == "success"
    show = "{:.3f}".format if rates else "{:,.1f}".format
    what = "success rate" if rates else "mean return"
    data, place = verdict.data_return, f"{verdict.place(verdict.data_return):.1%} of the way"
    base, better = verdict.cloning, verdict.td3_bc
    return [
        f"{recipe}: {'accepted' if verdict.accepted else 'NOT accepted'} ({base.n} seeds)",
        f"  random {show(verdict.random_return)}, expert {show(verdict.expert_return)} ({what} of the data)",
        f"  the data {data:.1%} of pieces reach their goal" if rates else f"  the data {show(data)}, {place}",
        f"  {BASE} {show(base.mean)} ± {show(base.sd or 0.0)}, {verdict.place(base.mean):.1%}",
        f"  {BETTER} {show(better.mean)} ± {show(better.sd or 0.0)}",
        f"  difference {show(verdict.difference)}, {_errors(verdict.apart, 'standard errors')}"
        f" ({show(verdict.standard_error)})",
    ]


def _errors(apart: float | None, unit: str) -> str:
    return "no spread over seeds" if apart is None else f"{apart:.1f} {unit}"


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
