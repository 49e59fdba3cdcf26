"""What the engine takes for granted of a loss: that it runs, its names, shapes and dtypes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from metarl.bilevel import Batches, TrainState, Update
from metarl.checking.case import Case, differentiated, estimate
from metarl.checking.findings import Finding, once
from metarl.checking.watch import Broadcasts, Dtypes
from metarl.checking.where import raised_at
from metarl.errors import UserError, nearest


def runs(case: Case) -> list[Finding]:
    """Every loss can be evaluated and differentiated: each role, column and group that it names exists."""
    found: list[Finding] = []
    broken: set[str] = set()
    followers = [u for u in case.learner.updates.values() if u.loss is None]
    for update in [*case.inner_first, *followers]:
        if any(inner.name in broken for inner in update.inners):
            continue
        state, batches = case.cold(), case.batches()
        try:
            problem = _bad_value(update, state, batches)
            if problem is None:
                estimate(update, state, batches)
                continue
            where = ""
        except Exception as error:
            problem, where = _explained(error, state, batches), raised_at(error)
        broken.add(update.name)
        at = f" at {where}" if where else ""
        what = "the loss of update" if update.loss else "update"
        text = f"{what} {update.name!r} cannot be evaluated{at}: {problem}"
        found.append(Finding("runs", "FAILED", update.name, text, update.name, update.params, where))
    if not found:
        names = ", ".join(u.name for u in case.updates)
        found = [Finding("runs", "ok", f"updates {names} on roles {', '.join(case.learner.roles) or 'none'}")]
    return found


def _bad_value(update: Update, state: TrainState, batches: Batches) -> str | None:
    """What is wrong with the value of a loss, or None."""
    objective = differentiated(update)
    if objective is None:
        return None
    with torch.no_grad():
        value = objective(update, state, batches)(state.tree[update.params])[0]
    if not isinstance(value, Tensor):
        return f"it returns {type(value).__name__} {value!r}, no tensor; leave out .item() and float()"
    if value.dim():
        return f"its value has shape {list(value.shape)}, but a loss is one number; reduce it with .mean()"
    return None


def _explained(error: Exception, state: TrainState, batches: Batches) -> str:
    text = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
    if isinstance(error, KeyError):
        name = str(error.args[0])
        known = {*state.tree, *batches, *(key for part in (*batches.values(), *state.tree.values()) for key in part)}
        hint = nearest(name, known)
        hint = hint if "Did you mean" in hint else nearest(name, {*state.tree, *batches})
        return f"there is no role, column, noise or parameter group called {name!r}.{hint}"
    if "in-place" in text or "inplace operation" in text or "in place" in text:
        return f"an in-place operation changes a parameter or what its gradient needs ({text}); write x = x + y"
    if isinstance(error, UserError):
        return text
    if "dtype" in text:
        return f"it mixes dtypes ({text}); make constants with x.new_tensor(...), not with torch.tensor(...)"
    return f"{type(error).__name__}: {text}"


def shapes(case: Case) -> list[Finding]:
    """The loss and every metric are 0-d tensors; the gradient has the names and shapes of its group."""
    found = []
    for update in case.updates:
        state = case.cold()
        result = estimate(update, state, case.batches())
        group = state.tree[update.params]
        wrong = [
            f"metric {name!r} is {_kind(value)}; reduce it with .mean()"
            for name, value in result.metrics.items()
            if not isinstance(value, Tensor) or value.dim()
        ]
        if set(result.grads) != set(group):
            wrong.append(f"the estimate has entries {sorted(result.grads)}, the group {sorted(group)}")
        wrong += [
            f"the gradient of {name!r} is {_kind(g)}, the parameter {list(group[name].shape)}"
            for name, g in result.grads.items()
            if name in group and g.shape != group[name].shape
        ]
        found += [
            Finding("shapes", "FAILED", update.name, f"update {update.name!r}: {text}", update.name, update.params)
            for text in wrong
        ]
    found += _probes(case)
    return found or [Finding("shapes", "ok", "losses and metrics are 0-d, gradients have their groups' shapes")]


def _probes(case: Case) -> Iterator[Finding]:
    """Probes that could not be drawn while training."""
    tree, grid = case.cold().tree, torch.linspace(0, 1, 5, dtype=torch.float64)
    for name, probe in case.learner.probes.items():
        seen, output = probe.sample(tree, case.batches())
        curve = [len(grid)] if probe.curve is None else list(probe.curve(tree, grid).shape)
        if seen.dim() != 1 or seen.shape != output.shape or curve != [len(grid)]:
            text = (
                f"probe {name!r}: its sample gives {list(seen.shape)} and {list(output.shape)}, its curve "
                f"{curve} on a grid of {[len(grid)]}; both of a sample are [n], and a curve has its grid's shape"
            )
            yield Finding("shapes", "FAILED", f"probe {name}", text, group=probe.group)


def _kind(value: Any) -> str:
    return f"of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}, no tensor"


def dtypes(case: Case) -> list[Finding]:
    """A float64 run stays float64, a float32 run float32."""
    found: list[Finding] = []
    for dtype in (torch.float64, torch.float32):
        try:
            for module in case.learner.modules.values():
                module.to(dtype)
            for update in case.inner_first:
                found += _leaves(case, update, dtype)
        finally:
            for module in case.learner.modules.values():
                module.double()
    return once(found) or [Finding("dtypes", "ok", "float64 stays float64, float32 stays float32")]


def _leaves(case: Case, update: Update, dtype: torch.dtype) -> Iterator[Finding]:
    """Where an Update leaves the dtype of its run."""
    run = f"a {str(dtype).removeprefix('torch.')} run"
    wrong = None
    with Dtypes(dtype) as watch:
        try:
            result = estimate(update, case.cold(dtype), case.batches(dtype=dtype))
        except RuntimeError as error:
            watch.seen[:] = [(f"stops ({str(error).splitlines()[0]})", raised_at(error))]
        else:
            outputs = {"loss": result.loss, **{f"gradient of {k!r}": g for k, g in result.grads.items()}}
            wrong = next((k for k, x in outputs.items() if x is not None and x.dtype != dtype), None)
    if not watch.seen and wrong is None:
        return
    what, where = watch.seen[0] if watch.seen else (f"has another dtype in its {wrong}", "")
    lossy = dtype == torch.float64 and what.startswith("becomes")
    failed = lossy or wrong is not None or what.startswith("stops")
    text = (
        f"update {update.name!r}: {run} {what}{f' at {where}' if where else ''}; keep the dtype of the inputs "
        "(x.new_tensor, zeros_like, x.to(y.dtype) in place of .float(), .double() and torch.zeros)"
    )
    yield Finding("dtypes", "FAILED" if failed else "warning", what, text, update.name, update.params, where)


def broadcasting(case: Case) -> list[Finding]:
    """No elementwise operation pairs every sample with every other by accident."""
    found = []
    for update in case.inner_first:
        with Broadcasts(role.size for role in case.learner.roles.values()) as watch:
            estimate(update, case.cold(), case.batches())
        for what, where in watch.seen:
            text = (
                f"update {update.name!r}: {what} at {where}: every sample meets every other; give both one shape "
                "(.squeeze(-1) on the [B, 1] one), or write x[:, None] - y[None, :] if you mean it"
            )
            found.append(Finding("broadcasting", "FAILED", what, text, update.name, update.params, where))
    return once(found) or [Finding("broadcasting", "ok", "no [B, 1] with [B] in any loss")]
