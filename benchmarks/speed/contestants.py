"""Who takes part: metarl's modes, the textbook, the rivals that the user names, and the bare matrix products."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.speed import rival_gild
from benchmarks.speed.comparisons import AUTHORS, AUTHORS_IL, COMPARISONS, LEARNED, MODES, contestant
from metarl.errors import UserError, nearest

TEXTBOOK, CORL, FLOORS = "textbook", "corl", ("floor", "floor-onednn")
LABELS = {
    "eager": "metarl, eager",
    "recorded": "metarl, recorded",
    "compiled": "metarl, compiled",
    "stack4": "metarl, recorded, 4 seeds",
    "stack4-compiled": "metarl, compiled, 4 seeds",
    "textbook": "plain PyTorch",
    "corl": "CORL",
    "unifloral": "unifloral (JAX)",
    "d3rlpy": "d3rlpy",
    "floor": "products, PyTorch's mm",
    "floor-onednn": "products, oneDNN",
}
STACK = 4


@dataclass(frozen=True)
class Contestant:
    """One process that takes gradient steps.

    Attributes:
        name: on the command line and in the result.
        module: what its worker runs.
        options: for it, beside the sizes.
        python: its interpreter.
        required: its failure ends the benchmark; else it is left out with the reason.
    """

    name: str
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)
    python: str = sys.executable
    required: bool = True

    @property
    def label(self) -> str:
        return LABELS[self.name]


@dataclass(frozen=True)
class Rivals:
    """Where the user has rivals; None where not.

    Attributes:
        corl, unifloral: folders of checkouts.
        unifloral_python: an interpreter that has jax, flax, distrax and optax.
        d3rlpy_python: an interpreter that has d3rlpy; this one is tried where it is None.
        gild: folder of a checkout.
    """

    corl: Path | None = None
    unifloral: Path | None = None
    unifloral_python: str = sys.executable
    d3rlpy_python: str | None = None
    gild: Path | None = None


def contestants(
    rivals: Rivals, only: Sequence[str] = (), compiled: bool = True
) -> tuple[list[Contestant], dict[str, str]]:
    """Those that take part, in the order of `LABELS`, and why others do not.

    Args:
        rivals: where they are.
        only: names of these only, and the textbook; none means all that there are.
        compiled: whether those that compile take part without being named.

    Raises:
        UserError: a rival was named, here or by its folder, and cannot be started.
    """
    for name in only:
        if name not in LABELS:
            raise UserError(f"no contestant is called {name!r}.{nearest(name, LABELS)}")
    found, left_out = _ours(), dict[str, str]()
    for name, look in (("corl", _corl), ("unifloral", _unifloral), ("d3rlpy", _d3rlpy)):
        rival = look(rivals)
        if isinstance(rival, Contestant):
            found[name] = rival
        elif name in only:
            raise UserError(f"{name}: {rival}")
        else:
            left_out[name] = rival
    compiling = () if compiled else ("compiled", "stack4-compiled")
    chosen = {*only, TEXTBOOK} if only else set(found) - set(compiling)
    taking_part = [found[name] for name in LABELS if name in chosen]
    return [replace(each, required=each.required or each.name in only) for each in taking_part], left_out


def compared(name: str, rivals: Rivals, compiled: bool = True) -> list[Contestant]:
    """Those of one of `COMPARISONS`: metarl's variants in all modes, and CORL where it has the algorithm.

    Raises:
        UserError: CORL's folder was named, and has no such algorithm.
    """
    comparison = COMPARISONS[name]
    found = _variants(comparison.variants, compiled)
    rival = _corl(rivals, comparison.file) if comparison.file else None
    return [*found, rival] if isinstance(rival, Contestant) else found


def learned(name: str, rivals: Rivals, compiled: bool = True) -> list[Contestant]:
    """Those of one of `LEARNED`: metarl's variants in all modes, and the authors' where their checkout is named.

    Raises:
        UserError: that checkout is another, or of another version.
    """
    comparison = LEARNED[name]
    found = _variants(comparison.variants, compiled)
    if comparison.authors and rivals.gild is not None:
        rival_gild.shimmed(rivals.gild)
        folder = str(rivals.gild.resolve())
        for each in AUTHORS:
            found.append(Contestant(each, "rival_gild", {"checkout": folder, "imitating": each == AUTHORS_IL}))
    return found


def learned_label(name: str, each: str) -> str:
    """Of a contestant of one of `LEARNED`."""
    variant, _, mode = each.partition(", ")
    return AUTHORS.get(each) or f"{LEARNED[name].variants[variant]}, {mode}"


def _variants(variants: Iterable[str], compiled: bool) -> list[Contestant]:
    found = []
    for variant in variants:
        for mode in MODES if compiled else MODES[:-1]:
            options = {"question": "step", "algorithm": variant, "mode": mode, "stack": 1}
            found.append(Contestant(contestant(variant, mode), "ours", options, required=mode != "compiled"))
    return found


def compared_label(name: str, each: str) -> str:
    """Of a contestant of one of `COMPARISONS`."""
    variant, _, mode = each.partition(", ")
    words = COMPARISONS[name].variants.get(variant)
    return LABELS[mode or each] + (f", {words}" if words else "")


def _ours() -> dict[str, Contestant]:
    found = {}
    for name in ("eager", "recorded", "compiled", "stack4", "stack4-compiled"):
        mode = "compiled" if "compiled" in name else "eager" if name == "eager" else "recorded"
        options = {"question": "step", "mode": mode, "stack": STACK if "stack" in name else 1}
        # A machine without a C++ compiler can answer all but what compiles.
        found[name] = Contestant(name, "ours", options, required=mode != "compiled")
    found[TEXTBOOK] = Contestant(TEXTBOOK, "plain")
    found["floor"] = Contestant("floor", "floor", {"engine": "mm"})
    found["floor-onednn"] = Contestant("floor-onednn", "floor", {"engine": "onednn"}, required=False)
    return found


def _corl(rivals: Rivals, file: str = "td3_bc.py") -> Contestant | str:
    if rivals.corl is None:
        return "no checkout was named (--corl)"
    folder = _checkout("--corl", rivals.corl, f"algorithms/offline/{file}", "corl-team/CORL")
    return Contestant(CORL, "rival_corl", {"checkout": folder, "file": file})


def _unifloral(rivals: Rivals) -> Contestant | str:
    if rivals.unifloral is None:
        return "no checkout was named (--unifloral)"
    folder = _checkout("--unifloral", rivals.unifloral, "algorithms/td3_bc.py", "EmptyJackson/unifloral")
    return Contestant("unifloral", "rival_unifloral", {"checkout": folder}, rivals.unifloral_python)


def _d3rlpy(rivals: Rivals) -> Contestant | str:
    if rivals.d3rlpy_python is None and importlib.util.find_spec("d3rlpy") is None:
        return "not installed here, and no interpreter was named (--d3rlpy-python)"
    return Contestant("d3rlpy", "rival_d3rlpy", {}, rivals.d3rlpy_python or sys.executable)


def _checkout(option: str, folder: Path, file: str, repository: str) -> str:
    if not (folder / file).is_file():
        raise UserError(f"{option} {folder}: there is no {file} in it; name a checkout of github.com/{repository}")
    return str(folder.resolve())
