"""Learner: an actor-critic as a list of Updates and an `act`; and what an objective may touch."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from metarl.bilevel import backends
from metarl.bilevel.applying import Estimates, applied
from metarl.bilevel.autodiff import Params, unreached
from metarl.bilevel.direct import Polyak
from metarl.bilevel.optimizers import Optimizer
from metarl.bilevel.state import TrainState
from metarl.bilevel.update import Batch, Batches, Loss, Metrics, Tree, Update
from metarl.component import option
from metarl.errors import ConfigError, nearest

Act = Callable[[Tree, Tensor, Any, Tensor | None, bool], tuple[Tensor, Any]]
Told = Callable[[Tree, Tensor, Any, Tensor], dict[str, Tensor]]
AfterEpisode = Callable[[Tree, Mapping[str, float]], Tree]
Signal = Literal["raw", "scaled", "standardized"]


@dataclass(frozen=True)
class Spec:
    """What a learner must know of its environment.

    Attributes:
        obs_dim, action_dim: sizes of flat observations and actions.
        max_action: actions lie in [-max_action, max_action], per dimension.
        obs_keys: keys of a dict observation in the order of the vector; empty where it has always been a vector.
        steps: gradient steps of the run; a learner whose schedules depend on it says so in `Learner.span`.
        offline: those of them on data, before an environment is met; None where none ever is.
        time_limit: steps after which the environment that is met (or evaluated in) cuts an episode; None where never.
    """

    obs_dim: int
    action_dim: int
    max_action: tuple[float, ...]
    obs_keys: tuple[str, ...] = ()
    steps: int = 1_000_000
    offline: int | None = None
    time_limit: int | None = None


@dataclass(frozen=True)
class Rewards:
    """What a learner makes of the data's rewards: `scale r + shift`."""

    scale: float = option(1.0, "factor of every reward")
    shift: float = option(0.0, "added to every scaled reward")
    return_range: bool = option(
        False, "scale also by 1000 / (highest - lowest return of an episode of the training data), as IQL does"
    )


@dataclass(frozen=True)
class Role:
    """A batch that a learner asks for in every step.

    Attributes:
        source: the entry of `data:` that it is drawn from; several roles may draw from one.
        size: rows.
        statistics: the entry of `data:` whose statistics normalise its observations.
        lead: axes before the rows: virtual steps for a role of `Unrolled.fresh`, tasks for one of `Unrolled.tasks`.
        reader: the Update that alone reads it; where given, a training step draws it only where that Update is due.
    """

    source: str
    size: int
    statistics: str = "train"
    lead: tuple[int, ...] = ()
    reader: str | None = None


@dataclass(frozen=True)
class NoiseSpec:
    """Noise that a learner's losses read as `batches["noise"][name]`.

    Attributes:
        shape: without the batch axis, which is the size of `role`.
        role: the role whose size leads the shape; None where `shape` is all.
        distribution: "normal" (standard) or "uniform" (on [-1, 1]).
        lead: axes before all of these, as in `Role`.
    """

    shape: tuple[int, ...]
    role: str | None = "train"
    distribution: str = "normal"
    lead: tuple[int, ...] = ()

    def whole_shape(self, roles: Mapping[str, Role]) -> tuple[int, ...]:
        """The shape of one step's draw."""
        return (*self.lead, *(() if self.role is None else (roles[self.role].size,)), *self.shape)


@dataclass(frozen=True)
class Terms:
    """A policy's loss, per sample.

    Attributes:
        improvement: [B], a gain.
        constraint: [B], a loss; None where there is none.
        rest: [B], a loss that no degree weighs (entropy); None where there is none.
        signal: [B], what a guiding network looks at.
        metrics: 0-d tensors to log.
    """

    improvement: Tensor
    constraint: Tensor | None
    rest: Tensor | None
    signal: Tensor
    metrics: Metrics = field(default_factory=dict)


class PolicyTerms(Protocol):
    """What objectives hook on (GORL's Eq. 2: the seam between algorithm and objective).

    `updates` names the Updates whose loss is `combine(terms, degree)`; `forms` the deviations from the base
    algorithm that `terms` and `imitation` know by name; `noise` what they and `action` read of a batch's noise (see
    `Learner.with_noise_for`); `signal` how a guiding network looks at `Terms.signal`: as it is (`raw`), over its mean
    magnitude in the batch (`scaled`), or `standardized` by running moments. Degree 1 is the base algorithm, bitwise.
    """

    @property
    def updates(self) -> tuple[str, ...]: ...

    @property
    def forms(self) -> tuple[str, ...]: ...

    @property
    def noise(self) -> tuple[str, ...]: ...

    @property
    def signal(self) -> Signal: ...

    def terms(self, tree: Tree, batch: Batch, noise: Mapping[str, Tensor], form: tuple[str, ...] = ()) -> Terms: ...

    def combine(self, terms: Terms, degree: float | Tensor | None) -> Tensor:
        """Scalar loss; degree a number, [B], or None for no constraint at all."""
        ...

    def imitation(
        self, tree: Tree, batch: Batch, noise: Mapping[str, Tensor], form: tuple[str, ...] = ()
    ) -> Tensor: ...

    def action(self, tree: Tree, obs: Tensor, noise: Mapping[str, Tensor]) -> Tensor: ...

    def features(self, tree: Tree, obs: Tensor) -> Tensor: ...

    def q(self, tree: Tree, obs: Tensor, action: Tensor) -> Tensor: ...

    def v(self, tree: Tree, obs: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Probe:
    """A learned function worth watching: logged as a histogram, a curve, and how far it has moved.

    Attributes:
        group: the parameter group that it belongs to.
        sample: `(tree, batches) -> (input [n], output [n])` on the batches of one step.
        curve: `(tree, grid [m]) -> output [m]`; None for a function of more than that input, which is drawn as points.
        input_name, output_name: axis labels.
        role: whose rows it samples; of `train`, it is also looked at on data that is watched.
    """

    group: str
    sample: Callable[[Tree, Batches], tuple[Tensor, Tensor]]
    curve: Callable[[Tree, Tensor], Tensor] | None
    input_name: str
    output_name: str
    role: str = "train"


@dataclass(frozen=True)
class Learner:
    """Parameter groups, Updates in stages, and an `act`; objectives take one and return one.

    Updates in one stage all estimate on the state at the stage's entry, then all apply.

    Attributes:
        modules: templates by group; their parameters are the initial values.
        tensors: groups without a module (a log temperature, learned rates, running statistics).
        stages: tuples of Updates.
        virtual: Updates that only estimators use.
        roles, noise: what a step reads.
        act: `(tree, obs [N, O], carry, noise, deterministic) -> (action [N, A], carry)`.
        policy: what objectives hook on; None means that they refuse.
        probes: learned functions to watch.
        normalize: whether observations are normalised with the training data's statistics.
        rewards: what is made of every role's rewards, by the training data's returns.
        span: steps that its schedules were made for; None where they depend on no such number.
        rewritten: policy Updates whose loss is an objective's.
        last: the objective after which no other may be attached, where there is one.
        given: groups that make no sense as they are initialised: a run must give them by `init`.
        exploration: standard normal numbers that an exploring action reads; one for each of its dimensions if None.
        told: `(tree, obs [N, O], carry, noise) -> name -> [N]`: what there is to know of an exploring action; its mean
            over the environment steps since the last row is logged as `online/<name>`.
        after_episode: `(tree, figures) -> tree`: the groups of `tensors` that change when a training episode ends, by
            its return and length.
    """

    modules: dict[str, nn.Module]
    stages: tuple[tuple[Update, ...], ...]
    act: Act
    tensors: dict[str, Params] = field(default_factory=dict)
    virtual: dict[str, Update] = field(default_factory=dict)
    roles: dict[str, Role] = field(default_factory=dict)
    noise: dict[str, NoiseSpec] = field(default_factory=dict)
    policy: PolicyTerms | None = None
    probes: dict[str, Probe] = field(default_factory=dict)
    normalize: bool = True
    rewards: Rewards = field(default_factory=Rewards)
    span: int | None = None
    rewritten: frozenset[str] = frozenset()
    last: str | None = None
    given: frozenset[str] = frozenset()
    exploration: int | None = None
    told: Told | None = None
    after_episode: AfterEpisode | None = None

    # -- what an objective uses ------------------------------------------------------------------------------

    def with_modules(self, **modules: nn.Module) -> Learner:
        """Adds parameter groups that are networks."""
        self._refuse_clash("parameter group", modules, {**self.modules, **self.tensors})
        return replace(self, modules={**self.modules, **modules})

    def with_tensors(self, **tensors: Params) -> Learner:
        """Adds parameter groups without a network."""
        self._refuse_clash("parameter group", tensors, {**self.modules, **self.tensors})
        return replace(self, tensors={**self.tensors, **tensors})

    def with_roles(self, **roles: Role) -> Learner:
        """Asks for further batches."""
        self._refuse_clash("role", roles, self.roles)
        return replace(self, roles={**self.roles, **roles})

    def with_noise(self, **noise: NoiseSpec) -> Learner:
        """Asks for further noise."""
        self._refuse_clash("noise", noise, self.noise)
        return replace(self, noise={**self.noise, **noise})

    def with_noise_for(self, role: str) -> Learner:
        """Asks for the noise that the policy reads, once more for the batch of `role`; see `noise_for`."""
        names = self.hooks(f"the policy's noise for {role!r}").noise
        return self.with_noise(**{f"{role}/{name}": replace(self.noise[name], role=role) for name in names})

    def with_virtual(self, *updates: Update) -> Learner:
        """Adds Updates that only estimators use."""
        named = {u.name: u for u in updates}
        self._refuse_clash("virtual Update", named, self.virtual)
        return replace(self, virtual={**self.virtual, **named})

    def with_probes(self, **probes: Probe) -> Learner:
        """Adds functions to watch."""
        return replace(self, probes={**self.probes, **probes})

    def with_policy_loss(self, loss: Loss, stop: int | None = None) -> Learner:
        """Replaces the loss of the policy's Updates.

        Args:
            loss: the new one.
            stop: the last gradient step that has it; from the next on, Updates called `<name>_after` take their place,
                with the loss that there was.

        Raises:
            ConfigError: another objective has replaced it already; or `stop` lies before the policy's first step.
        """
        policy = self.hooks("a new policy loss")
        if self.rewritten & set(policy.updates):
            raise ConfigError(
                f"two objectives rewrite the loss of {', '.join(policy.updates)}, and the first would be lost; keep one"
            )

        first = self.updates[policy.updates[-1]]
        if stop is not None and stop <= first.start:
            raise ConfigError(
                f"a warm start of {stop:,} gradient steps would be over before it begins: {first.name!r} begins after "
                f"step {first.start:,}; choose a longer one"
            )

        def rewritten(update: Update) -> tuple[Update, ...]:
            if update.name not in policy.updates:
                return (update,)
            if stop is None or (update.stop is not None and update.stop <= stop):
                return (replace(update, loss=loss),)
            after = replace(update, name=f"{update.name}_after", start=stop)
            return replace(update, loss=loss, stop=stop), after

        return replace(
            self,
            rewritten=self.rewritten | set(policy.updates),
            stages=tuple(tuple(new for update in stage for new in rewritten(update)) for stage in self.stages),
        )

    def with_stage_before(self, name: str, *updates: Update) -> Learner:
        """Inserts a stage before the one that holds the Update `name`."""
        position = self._stage_of(name)
        return replace(self, stages=(*self.stages[:position], updates, *self.stages[position:]))

    def with_update_beside(self, name: str, *updates: Update) -> Learner:
        """Adds Updates to the stage that holds the Update `name`: they all estimate on its entry state."""
        position = self._stage_of(name)
        stage = (*self.stages[position], *updates)
        return replace(self, stages=(*self.stages[:position], stage, *self.stages[position + 1 :]))

    def hooks(self, objective: str) -> PolicyTerms:
        """The policy's terms; raises ConfigError where the algorithm has none."""
        if self.policy is None:
            raise ConfigError(
                f"objective {objective}: this algorithm exposes no policy improvement and constraint to hook on; "
                "choose one that does"
            )
        return self.policy

    # -- building --------------------------------------------------------------------------------------------

    @property
    def updates(self) -> dict[str, Update]:
        """Every staged Update by name, in order."""
        return {u.name: u for stage in self.stages for u in stage}

    def ready(self) -> Learner:
        """The learner with names of Updates resolved; call once all objectives are attached.

        Raises:
            ConfigError: a misspelt name, two Updates of one group in a stage, a group shared by unlike
                optimisers, a bilevel period that is no multiple of its inner's, a module with buffers.
        """
        staged = [u for stage in self.stages for u in stage]
        everything = {**self.virtual, **self.updates}
        if len(everything) != len(staged) + len(self.virtual):
            seen = [u.name for u in staged] + list(self.virtual)
            twice = next(name for name in seen if seen.count(name) > 1)
            raise ConfigError(f"two Updates are called {twice!r}; names must be unique in a learner")
        resolved: dict[str, Update] = {}

        def lookup(name: str, path: tuple[str, ...] = ()) -> Update:
            if name not in everything:
                user = f"update {path[-1]!r}: " if path else ""
                raise ConfigError(f"{user}there is no Update called {name!r}.{nearest(name, everything)}")
            if name in path:
                raise ConfigError(f"Updates differentiate through each other in a circle: {' -> '.join([*path, name])}")
            if name not in resolved:
                update = everything[name]
                gradient: Any = update.gradient
                if hasattr(gradient, "resolve"):
                    gradient = gradient.resolve(lambda inner: lookup(inner, (*path, name)))
                resolved[name] = replace(update, gradient=gradient)
            return resolved[name]

        stages = tuple(tuple(lookup(u.name) for u in stage) for stage in self.stages)
        virtual = {name: lookup(name) for name in self.virtual}
        learner = replace(self, stages=stages, virtual=virtual)
        learner._check_groups()
        for update in learner.updates.values():
            if hasattr(update.gradient, "noise"):
                shapes = update.gradient.noise(update, learner._group(update.params))
                specs = {name: NoiseSpec(shape, None) for name, shape in shapes.items()}
                learner = learner.with_noise(**{k: v for k, v in specs.items() if learner.noise.get(k) != v})
        learner._check_stages()
        learner._check_bilevel()
        learner._check_readers()
        return learner

    def _group(self, name: str) -> Params:
        return dict(self.modules[name].named_parameters()) if name in self.modules else self.tensors[name]

    def init(
        self,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        given: Mapping[str, Params] | None = None,
    ) -> TrainState:
        """The initial state; a group that follows a source by `Polyak` starts as its copy.

        Args:
            dtype, device: of its tensors.
            given: groups that start with these values.
        """
        tree: Tree = {
            name: {k: p.detach().clone() for k, p in m.named_parameters()} for name, m in self.modules.items()
        }
        tree |= {name: {k: t.detach().clone() for k, t in group.items()} for name, group in self.tensors.items()}
        tree |= given or {}
        for update in self.updates.values():
            if isinstance(update.gradient, Polyak) and update.params not in tree:
                tree[update.params] = {k: p.clone() for k, p in tree[update.gradient.source].items()}
        tree = {
            name: {k: t.to(device, dtype if t.is_floating_point() else t.dtype) for k, t in group.items()}
            for name, group in tree.items()
        }
        return self.state_of(tree)

    def state_of(self, tree: Tree) -> TrainState:
        """A fresh optimiser state and clear flags over a given tree."""
        updates = {**self.virtual, **self.updates}
        opt = {u.params: u.optimizer_for(tree).init(tree[u.params]) for u in updates.values()}
        device = next(iter(next(iter(tree.values())).values())).device
        flags = {
            f"nonfinite/{u.name}": torch.zeros((), dtype=torch.bool, device=device)
            for u in self.updates.values()
            if u.loss is not None
        }
        flags |= {
            f"{failure}/{u.name}": torch.zeros((), dtype=torch.bool, device=device)
            for u in self.updates.values()
            for failure in getattr(u.gradient, "failures", {})
        }
        flags |= {
            f"zero/{u.name}": torch.zeros((), dtype=torch.int64, device=device)
            for u in self.updates.values()
            if u.inners
        }
        return TrainState(tree, opt, flags)

    def check(self, state: TrainState, batches: Batches) -> None:
        """Errors that would otherwise show as a silent zero, before the first step.

        Raises:
            ConfigError: a parameter that reaches no loss; a name missing from the tree or the batches; an optimiser
                whose derivative is known to be wrong.
        """
        for update in self.updates.values():
            backends.refuse_hidden_state(update.optimizer_for(state.tree))
            estimator: Any = update.gradient
            if not hasattr(estimator, "objective") and not hasattr(estimator, "unreached"):
                continue
            if hasattr(estimator, "check"):
                estimator.check(update, state)
            try:
                if hasattr(estimator, "unreached"):
                    lost = estimator.unreached(update, state, batches)
                else:
                    lost = unreached(estimator.objective(update, state, batches), state.tree[update.params])
            except KeyError as error:
                raise ConfigError(_missing(update, error, state.tree, batches)) from error
            if lost and getattr(update.gradient, "first_order", False):
                raise ConfigError(
                    f"update {update.name!r}: with first_order=True, {', '.join(lost)} of {update.params!r} enter only "
                    "through the inner loss, so that their hypergradient is exactly zero; use first_order=False"
                )
            if lost:
                constant = "; one that only adds a constant to an inner loss (a last bias) has no effect there"
                raise ConfigError(
                    f"update {update.name!r}: parameters {', '.join(lost)} of group {update.params!r} do not reach "
                    f"its loss; remove them, or use them in the loss{constant if update.inners else ''}"
                )

    def faults(self, state: TrainState) -> list[str]:
        """What the sticky flags say went wrong, a sentence with its cure each; reads back, so not in every step."""
        faults = []
        for update in self.updates.values():
            kinds: Mapping[str, str] = {**getattr(update.gradient, "failures", {}), "nonfinite": _NONFINITE}
            for kind, cure in kinds.items():
                flag = state.flags.get(f"{kind}/{update.name}")
                if flag is not None and bool(flag.any()):
                    faults.append(f"{_where(update)}: {cure}")
                    break  # what follows from a failure need not be told
        return faults

    def silent(self, state: TrainState, times: int) -> dict[str, str]:
        """By Update, what to say of hypergradients that were exactly zero so many times in a row; reads back."""
        streaks = {u: state.flags.get(f"zero/{u.name}") for u in self.updates.values()}
        return {
            u.name: f"{_where(u)}: its hypergradient was exactly zero {int(streak.max())} times in a row, so it learns "
            "nothing; check what its losses depend on (metarl check)"
            for u, streak in streaks.items()
            if streak is not None and int(streak.max()) >= times
        }

    # -- running ---------------------------------------------------------------------------------------------

    def due(self, step: int) -> frozenset[str]:
        """Names of the Updates due at `step` (counted from 1); a bilevel one only together with its inner."""
        own = {name for name, u in self.updates.items() if u.due(step)}
        return frozenset(name for name in own if self._staged_inners(self.updates[name]) <= own)

    def step(self, state: TrainState, batches: Batches, due: Container[str]) -> tuple[TrainState, Metrics]:
        """One training step as a pure function: stage by stage, the due Updates estimate, then apply.

        A run takes its steps through `metarl.training.stepping.Stepping`, which overwrites a state of its own.

        Args:
            state: at the step's entry; left untouched.
            batches: by role, and "noise".
            due: names of Updates, decided by the caller.

        Returns:
            the new state, and metrics as 0-d tensors by `update/metric`.
        """
        metrics: Metrics = {}
        for stage in self.stages:
            estimates = self.estimates(stage, state, batches, due)
            state = applied(estimates, state)
            metrics |= metrics_of(estimates)
        return state, metrics

    @staticmethod
    def estimates(stage: Iterable[Update], state: TrainState, batches: Batches, due: Container[str]) -> Estimates:
        """What a stage's due Updates estimate, each on the same state."""
        return [(u, u.gradient(u, state, batches)) for u in stage if u.name in due]

    # -- checks ----------------------------------------------------------------------------------------------

    @staticmethod
    def _refuse_clash(kind: str, new: Mapping[str, Any], old: Mapping[str, Any]) -> None:
        for name in new:
            if name in old:
                raise ConfigError(f"{kind} {name!r} exists already; two objectives of one kind cannot be attached")

    def _stage_of(self, name: str) -> int:
        for position, stage in enumerate(self.stages):
            if any(u.name == name for u in stage):
                return position
        raise ConfigError(f"there is no Update called {name!r} in any stage.{nearest(name, self.updates)}")

    def _staged_inners(self, update: Update) -> set[str]:
        return {u.name for u in update.inners} & set(self.updates)

    def _check_groups(self) -> None:
        for name, module in self.modules.items():
            if next(module.buffers(), None) is not None:
                raise ConfigError(
                    f"module {name!r} has buffers, which a step would change unseen; keep them in Learner.tensors and "
                    "move them with Track"
                )
        followers = {u.params: u.gradient.source for u in self.updates.values() if isinstance(u.gradient, Polyak)}
        groups = {**self.modules, **self.tensors}
        optimizers: dict[str, tuple[str, Any]] = {}
        for update in {**self.virtual, **self.updates}.values():
            known = {**groups, **followers}
            if update.params not in known:
                raise ConfigError(
                    f"update {update.name!r}: there is no parameter group {update.params!r}."
                    f"{nearest(update.params, known)}"
                )
            source = followers.get(update.params)
            if source is not None and source not in groups:
                raise ConfigError(
                    f"update {update.name!r}: there is no parameter group {source!r} to follow."
                    f"{nearest(source, groups)}"
                )
            identity = _identity(update.optimizer)
            other, theirs = optimizers.setdefault(update.params, (update.name, identity))
            if theirs != identity:
                raise ConfigError(
                    f"updates {other!r} and {update.name!r} share group {update.params!r} but have unlike optimisers; "
                    "its state can belong to one kind only"
                )

    def _check_stages(self) -> None:
        for stage in self.stages:
            for i, a in enumerate(stage):
                for b in stage[:i]:
                    apart = (a.stop or float("inf")) <= b.start or (b.stop or float("inf")) <= a.start
                    if a.params == b.params and not apart:
                        raise ConfigError(
                            f"updates {b.name!r} and {a.name!r} move group {a.params!r} in one stage; put them in two"
                        )

    def _check_readers(self) -> None:
        for name, role in self.roles.items():
            if role.reader is not None and role.reader not in self.updates:
                raise ConfigError(
                    f"role {name!r}: there is no Update called {role.reader!r} in any stage, which should read it."
                    f"{nearest(role.reader, self.updates)}"
                )

    def _check_bilevel(self) -> None:
        for update in self.updates.values():
            if getattr(update.gradient, "rests", False) and not self._staged_inners(update):
                names = ", ".join(repr(u.name) for u in update.inners)
                raise ConfigError(
                    f"update {update.name!r}: {type(update.gradient).__name__} looks at the optimum of {names}, which "
                    "stands in no stage and is never trained; put it into a stage, or give steps="
                )
            for name in sorted(self._staged_inners(update)):
                inner = self.updates[name]
                if update.every % inner.every:
                    raise ConfigError(
                        f"update {update.name!r}: every={update.every} is no multiple of every={inner.every} of "
                        f"{name!r}, which it differentiates through; choose a multiple"
                    )


def refuse_degree(algorithm: str, degree: float | Tensor | None) -> None:
    """For `PolicyTerms.combine` of a policy that is tied to no data.

    Raises:
        ConfigError: the degree would weigh something; 1 and None are the base algorithm.
    """
    if isinstance(degree, Tensor) or degree not in (None, 1.0):
        raise ConfigError(
            f"{algorithm} ties its policy to no data, so there is no constraint that a degree could weigh; choose an "
            "algorithm that does, such as td3_bc"
        )


def noise_for(batches: Batches, role: str) -> dict[str, Tensor]:
    """What the policy's terms read beside the batch of `role`, under its own names; see `Learner.with_noise_for`."""
    prefix = f"{role}/"
    return {name.removeprefix(prefix): n for name, n in batches["noise"].items() if name.startswith(prefix)}


def metrics_of(estimates: Estimates) -> Metrics:
    """What a stage has to log, by `update/metric`."""
    metrics: Metrics = {}
    for update, estimate in estimates:
        if estimate.loss is not None:
            metrics[f"{update.name}/loss"] = estimate.loss
        metrics |= {f"{update.name}/{key}": value for key, value in estimate.metrics.items()}
    return metrics


_NONFINITE = (
    "its loss or its gradient became NaN or infinite; lower the learning rate, or look for extreme values in its data"
)


def _where(update: Update) -> str:
    return f"update {update.name!r} (group {update.params!r})"


def _missing(update: Update, error: KeyError, tree: Tree, batches: Batches) -> str:
    """What to say of a name that a loss looked up in vain."""
    name = str(error.args[0])
    known = {*tree, *batches, *(column for batch in batches.values() for column in batch)}
    return (
        f"update {update.name!r}: there is no parameter group, batch or column called {name!r}.{nearest(name, known)}"
    )


def _identity(optimizer: Any) -> Any:
    """What two Updates of one group must have in common."""
    if isinstance(optimizer, Optimizer):
        return optimizer.name, {name: _identity(value) for name, value in optimizer.hparams.items()}
    return optimizer if isinstance(optimizer, int | float | str | bool | None) else id(optimizer)


__all__ = [
    "Act",
    "Learner",
    "NoiseSpec",
    "PolicyTerms",
    "Probe",
    "Rewards",
    "Role",
    "Signal",
    "Spec",
    "Terms",
    "noise_for",
    "refuse_degree",
]
