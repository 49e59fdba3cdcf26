"""POR: Xu et al. 2022, "A Policy-Guided Imitation Approach for Offline Reinforcement Learning", arXiv:2210.08323.

A guide policy g says which state to go to, an execute policy pi goes there; they are trained apart and only act
together. With u = r + gamma (1 - d) V'(s') - V(s), V the lower of two:

    L_V   = mean |tau - 1(u < 0)| u^2, the mean of both;   V' follows V
    L_g   = mean -w log g(s'|s),   w = min(exp(alpha u), 100)                      (form `residual`)
    L_g   = mean [-lambda V(g~) - log b(g~|s)],   g~ ~ g(.|s),   lambda = alpha / mean |V(g~)|      (form `v_guided`)
    L_pi  = mean -log pi(a|s, s')
    act   = mean of pi(.|s, mean of g(.|s))

w and lambda are constants to the gradient. b is a behaviour guide, trained by -log b(s'|s) before everything else.
In one step V moves first; then guide and execute policy, which see the new V and the old V'; then V'. All policies are
Gaussians with one deviation for all states, and no tanh.

As learned terms: on `v_guided` the improvement is lambda V(g~) and the constraint -log b(g~|s), so that a degree weighs
the second and degree 1 is POR; cloning is -log g(s'|s). On `residual` there is nothing that a degree could weigh.

Deviations from the authors' code (ryanxhr/POR): none in a step's maths. The behaviour guide is trained in the same run
(their pretrain.sh calls a file that does not exist); actions are in units of their bounds; V' follows by
`target - tau (target - source)`, which equals their moving average to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from metarl import (
    Learner,
    NoiseSpec,
    PolicyTerms,
    Polyak,
    Rewards,
    Role,
    Signal,
    Spec,
    Terms,
    Update,
    adam,
    cosine_decay,
    nn,
    option,
    sgd,
    stop_gradient,
)
from metarl.bilevel import Batch, Batches, Metrics, Params, Tree
from metarl.errors import ConfigError
from metarl.learned_loss import check_duration, duration

CLIP = 100.0  # of the residual form's weights


@dataclass(frozen=True)
class POR:
    """A guide policy that says which state to go to, and an execute policy that goes there."""

    form: Literal["residual", "v_guided"] = option("residual", "how the guide learns: weighed cloning, or climbing V")
    expectile: float = option(0.9, "tau of V's loss")
    alpha: float = option(10.0, "inverse temperature of the weights; on v_guided, weight of V against -log b")
    value: Literal["own", "base"] = option(
        "own", "own: two state-value functions; base: the algorithm's (iql), whose policy is then left out"
    )
    layer_norm: bool = option(False, "normalise the layers of V")
    hidden: tuple[int, ...] = option((256, 256), "widths of the hidden layers of V and the guides", least=1)
    execute_hidden: tuple[int, ...] = option((1024, 1024), "widths of the hidden layers of the execute policy", least=1)
    log_std: tuple[float, ...] = option((-5.0, 2.0), "bounds of the policies' logarithmic deviation")
    discount: float = option(0.99, "gamma", least=0, most=1)
    tau: float = option(0.005, "rate at which V' follows", least=0, most=1)
    behaviour_steps: float = option(
        0.5, "on v_guided: gradient steps (or, below 1, share of the run's) for the behaviour guide alone, at the start"
    )
    value_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=1e-4), help="of V", group="metarl.optimizers"
    )
    guide_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=1e-4), help="of the guide", group="metarl.optimizers"
    )
    execute_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=1e-4), help="of the execute policy", group="metarl.optimizers"
    )
    behaviour_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=1e-4), help="of the behaviour guide", group="metarl.optimizers"
    )
    decay: bool = option(True, "let the rates of guide and execute policy fall to 0 by a cosine over the steps on data")
    train_execute: bool = option(True, "false keeps the execute policy as it is, to be loaded by `init`")
    batch_size: int = option(256, "transitions in a batch; with value=base the algorithm's", least=1)
    rewards: Rewards | None = option(None, "what is made of the data's rewards; null leaves it to the algorithm")

    presets: ClassVar[Mapping[str, Mapping]] = {
        # run_antmaze_por.sh and run_mujoco_por.sh, with the rewards of main_por.py.
        "antmaze": {"expectile": 0.9, "alpha": 10.0, "rewards": {"shift": -1.0}},
        "antmaze_umaze": {
            "expectile": 0.9,
            "alpha": 10.0,
            "rewards": {"shift": -1.0},
            "guide_optimizer": {"name": "adam", "lr": 1e-3},
            "execute_optimizer": {"name": "adam", "lr": 1e-3},
        },
        "locomotion": {
            "expectile": 0.5,
            "alpha": 3.0,
            "layer_norm": True,
            "rewards": {"return_range": True},
            "guide_optimizer": {"name": "adam", "lr": 1e-3},
            "execute_optimizer": {"name": "adam", "lr": 1e-3},
        },
        "hopper": {
            "form": "v_guided",
            "expectile": 0.7,
            "alpha": 50.0,
            "rewards": {"return_range": True},
            "guide_optimizer": {"name": "adam", "lr": 1e-3},
            "execute_optimizer": {"name": "adam", "lr": 1e-3},
        },
        "hopper_medium_expert": {
            "form": "v_guided",
            "expectile": 0.7,
            "alpha": 5.0,
            "layer_norm": True,
            "rewards": {"return_range": True},
            "guide_optimizer": {"name": "adam", "lr": 1e-3},
            "execute_optimizer": {"name": "adam", "lr": 1e-3},
        },
    }

    def __post_init__(self) -> None:
        if not 0 < self.expectile < 1:
            raise ValueError(f"expectile must lie between 0 and 1, not {self.expectile}")
        if len(self.log_std) != 2 or not self.log_std[0] < self.log_std[1]:
            raise ValueError(f"log_std must be a lower and a higher bound, not {list(self.log_std)}")
        check_duration(self.behaviour_steps, "behaviour_steps")

    def attach(self, learner: Learner, spec: Spec, generator: torch.Generator) -> Learner:
        """The learner with the groups `value`, `guide_policy` and `execute_policy`; on v_guided also `behaviour_guide`.

        Raises:
            ConfigError: the algorithm would be trained beside it for nothing, or lacks the value function asked for.
        """
        bounds = (self.log_std[0], self.log_std[1])
        obs, hidden = spec.obs_dim, self.hidden
        value = nn.TwinValue(obs, hidden, generator, self.layer_norm) if self.value == "own" else None
        guide = nn.GaussianPolicy(obs, obs, hidden, generator, bounds, squashed=False)
        execute = nn.GaussianPolicy(2 * obs, spec.action_dim, self.execute_hidden, generator, bounds, squashed=False)
        learner, base = self._without_policy(learner, obs)
        policy = _Guide(guide, execute, value, base, spec.max_action, self.discount, self.alpha, self.form)

        def value_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            assert value is not None
            y = policy.target(tree, batches["train"])
            u1, u2 = (y - v for v in nn.call(value, tree["value"], batches["train"]["obs"]))
            loss = sum(((self.expectile - (u < 0).to(u.dtype)).abs() * u.square()).mean() for u in (u1, u2)) / 2
            return loss, {"v": (y - u1).mean(), "advantage": u1.mean()}

        def guide_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            terms = policy.terms(tree, batches["train"], batches["noise"])
            return policy.combine(terms, 1.0), terms.metrics

        def execute_loss(tree: Tree, batches: Batches) -> Tensor:
            return -policy.execute_log_prob(tree, batches["train"]).mean()

        def behaviour_loss(tree: Tree, batches: Batches) -> Tensor:
            return -policy.log_prob(tree["behaviour_guide"], batches["train"]).mean()

        modules: dict[str, torch.nn.Module] = {"guide_policy": guide, "execute_policy": execute}
        before: tuple[Update, ...] = ()
        start, steps = 0, spec.offline or spec.steps
        if self.form == "v_guided":
            modules["behaviour_guide"] = nn.GaussianPolicy(obs, obs, hidden, generator, bounds, squashed=False)
            learner, first = duration(learner, self.behaviour_steps, replace(spec, steps=steps))
            start = first or 0
            if start >= steps:
                raise ConfigError(
                    f"objective por: behaviour_steps={start} leave none of the {steps} steps on data; use fewer"
                )
            behaviour = Update("behaviour_guide", "behaviour_guide", behaviour_loss, self.behaviour_optimizer)
            before = (replace(behaviour, stop=start),)
        guide_optimizer, execute_optimizer = self.guide_optimizer, self.execute_optimizer
        if self.decay and spec.offline != 0:
            guide_optimizer, execute_optimizer = (
                cosine_decay(optimizer, steps - start, after=1.0 if spec.offline else None)
                for optimizer in (guide_optimizer, execute_optimizer)
            )
            learner = replace(learner, span=steps)
        apart = [Update("guide_policy", "guide_policy", guide_loss, guide_optimizer, start=start)]
        if self.train_execute:
            apart.append(Update("execute_policy", "execute_policy", execute_loss, execute_optimizer, start=start))
        stages: tuple[tuple[Update, ...], ...] = (tuple(apart),)
        if value is not None:
            modules["value"] = value
            own = Update("value", "value", value_loss, self.value_optimizer, start=start)
            target = Update("value_target", "value_target", None, sgd(self.tau), Polyak("value"), start=start)
            stages = ((own,), *stages, (target,))
            learner = learner.with_roles(train=Role("train", self.batch_size))
        learner = learner.with_modules(**modules)
        noise = {"guide": NoiseSpec((obs,))} if self.form == "v_guided" else {}
        return replace(
            learner.with_noise(**noise),
            stages=(*learner.stages, *((before,) if before else ()), *stages),
            act=policy.act,
            policy=policy,
            given=learner.given if self.train_execute else learner.given | {"execute_policy"},
            rewards=learner.rewards if self.rewards is None else self.rewards,
        )

    def _without_policy(self, learner: Learner, obs_dim: int) -> tuple[Learner, PolicyTerms | None]:
        """The learner without its own policy, which nobody would act by, and the terms that know its V."""
        if self.value == "own":
            if learner.stages:
                raise ConfigError(
                    "objective por: with value=own nothing of the algorithm would be used; set algorithm: none, or "
                    "value=base on an algorithm with a state-value function, such as iql"
                )
            return learner, None
        base = learner.hooks("por with value=base")
        base.v(learner.init().tree, torch.zeros(1, obs_dim))  # which says so where there is none
        groups = {learner.updates[name].params for name in base.updates}
        modules = {name: module for name, module in learner.modules.items() if name not in groups}
        kept = (tuple(u for u in stage if u.name not in base.updates) for stage in learner.stages)
        return replace(learner, modules=modules, stages=tuple(stage for stage in kept if stage)), base


@dataclass(frozen=True)
class _Guide:
    """The guide's terms, and how guide and execute policy act together."""

    guide: nn.GaussianPolicy
    execute: nn.GaussianPolicy
    value: nn.TwinValue | None
    base: PolicyTerms | None
    max_action: tuple[float, ...]
    discount: float
    alpha: float
    form: Literal["residual", "v_guided"]
    _: KW_ONLY
    updates: tuple[str, ...] = ("guide_policy",)
    forms: tuple[str, ...] = ()
    signal: Signal = "standardized"

    @property
    def noise(self) -> tuple[str, ...]:
        return ("guide",) if self.form == "v_guided" else ()

    def terms(self, tree: Tree, batch: Batch, noise: Mapping[str, Tensor], form: tuple[str, ...] = ()) -> Terms:
        if self.form == "residual":
            advantage = self.target(tree, batch) - self.v(tree, batch["obs"])
            weight = stop_gradient(torch.exp(self.alpha * advantage).clamp(max=CLIP))
            log_prob = self.log_prob(tree["guide_policy"], batch)
            return Terms(
                weight * log_prob, None, None, -log_prob, {"log_prob": log_prob.mean(), "weight": weight.mean()}
            )
        mean, log_std = nn.call(self.guide, tree["guide_policy"], batch["obs"])
        aim = mean + torch.exp(log_std) * noise["guide"]
        v = self.v(tree, aim)
        scale = self.alpha / stop_gradient(v.abs().mean())
        constraint = -nn.normal_log_prob(aim, *nn.call(self.guide, tree["behaviour_guide"], batch["obs"]))
        return Terms(scale * v, constraint, None, constraint, {"v": v.mean(), "lambda": scale})

    def combine(self, terms: Terms, degree: float | Tensor | None) -> Tensor:
        if terms.constraint is None:
            if isinstance(degree, Tensor) or degree not in (None, 1.0):
                raise ConfigError("por with form=residual has no constraint to weigh; set form: v_guided")
            return -terms.improvement.mean()
        if degree is None:
            return -terms.improvement.mean()
        return (degree * terms.constraint - terms.improvement).mean()

    def imitation(self, tree: Tree, batch: Batch, noise: Mapping[str, Tensor], form: tuple[str, ...] = ()) -> Tensor:
        """-log g(s'|s), the mean over transitions."""
        return -self.log_prob(tree["guide_policy"], batch).mean()

    def log_prob(self, guide: Params, batch: Batch) -> Tensor:
        """log g(s'|s) of a guide's parameters."""
        return nn.normal_log_prob(batch["next_obs"], *nn.call(self.guide, guide, batch["obs"]))

    def execute_log_prob(self, tree: Tree, batch: Batch) -> Tensor:
        """log pi(a|s, s'), actions in units of their bounds."""
        both = torch.cat((batch["obs"], batch["next_obs"]), dim=-1)
        action = batch["action"] / both.new_tensor(self.max_action)
        return nn.normal_log_prob(action, *nn.call(self.execute, tree["execute_policy"], both))

    def target(self, tree: Tree, batch: Batch) -> Tensor:
        """r + gamma (1 - d) V'(s'), a constant."""
        group = "value" if self.value is None else "value_target"
        next_v = self._lower(tree, group, batch["next_obs"])
        return stop_gradient(batch["reward"] + self.discount * (1 - batch["terminated"]) * next_v)

    def v(self, tree: Tree, obs: Tensor) -> Tensor:
        return self._lower(tree, "value", obs)

    def _lower(self, tree: Tree, group: str, obs: Tensor) -> Tensor:
        if self.value is None:
            assert self.base is not None
            return self.base.v(tree, obs)
        return torch.minimum(*nn.call(self.value, tree[group], obs))

    def action(self, tree: Tree, obs: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """The mean of the execute policy towards the mean of the guide."""
        return self.act(tree, obs, None, None, True)[0]

    def act(self, tree: Tree, obs: Tensor, carry: Any, noise: Tensor | None, deterministic: bool) -> tuple[Tensor, Any]:
        """The same; a sample of the execute policy by standard normal `noise`; cut at the bounds."""
        aim, _ = nn.call(self.guide, tree["guide_policy"], obs)
        action, log_std = nn.call(self.execute, tree["execute_policy"], torch.cat((obs, aim), dim=-1))
        if not deterministic and noise is not None:
            action = action + torch.exp(log_std) * noise
        return action.clamp(-1, 1) * action.new_tensor(self.max_action), carry

    def features(self, tree: Tree, obs: Tensor) -> Tensor:
        return nn.features(self.guide.net, nn.part(tree["guide_policy"], "net."), obs)

    def q(self, tree: Tree, obs: Tensor, action: Tensor) -> Tensor:
        if self.base is not None:
            return self.base.q(tree, obs, action)
        raise ConfigError("por learns no action-value function; choose an objective that needs none")
