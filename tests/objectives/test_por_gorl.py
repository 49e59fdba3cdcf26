"""GORL on POR: a degree per sample on how strongly the guide policy is tied to the behaviour guide."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.autograd import grad
from torch.distributions import MultivariateNormal

from algorithms.iql import IQL
from algorithms.none import Nothing
from metarl import adam, hold_stop_gradients, sgd
from metarl.checking import Plan, check
from metarl.errors import ConfigError
from metarl.training.stepping import Stepping, stacked, unstacked
from objectives.fixed import Fixed
from objectives.gorl import GORL, GuidingNet
from objectives.por import POR

LR = 1e-2
STEPS = 40
BEHAVIOUR = 3


def por(**settings):
    small = {"hidden": (16, 16), "execute_hidden": (8, 8), "batch_size": 32, "behaviour_steps": BEHAVIOUR, "alpha": 4.0}
    rates = {f"{name}_optimizer": adam(LR) for name in ("value", "guide", "execute", "behaviour")}
    return POR(**{"form": "v_guided", **small, **rates, **settings})


def gorl(**options):
    net = GuidingNet((8,), "tanh")
    return GORL(**({"every": 2, "net": net, "optimizer": sgd(5.0), "virtual": sgd(LR), "batch_size": 6} | options))


@pytest.fixture
def build(spec):
    """`build(*objectives)`: a ready learner on `base`, by default none."""

    def learner(*objectives, base=None, seed=0):
        generator = torch.Generator().manual_seed(seed)
        made = (base or Nothing()).build(replace(spec, steps=STEPS), generator)
        for objective in objectives:
            made = objective.attach(made, replace(spec, steps=STEPS), generator)
        return made.ready()

    return learner


def warm(learner, draw, steps=8):
    """Past the behaviour guide's phase, every optimiser's moments filled; V takes either sign."""
    state = learner.init(torch.float64)
    for step in range(1, steps + 1):
        state, _ = learner.step(state, draw(learner, step), learner.due(step))
    obs, value = draw(learner)["train"]["obs"], dict(state.tree["value"])
    for i in (1, 2):
        bias = f"v{i}.layers.2.bias"
        value[bias] = value[bias] - mlp(value, f"v{i}.", obs).mean()
    return state.with_params("value", value)


# -- by hand -------------------------------------------------------------------------------------------------


def mlp(params, prefix, x, hidden=torch.relu, output=lambda y: y):
    depth = len([k for k in params if k.startswith(prefix) and k.endswith("weight")])
    for i in range(depth):
        x = x @ params[f"{prefix}layers.{i}.weight"] + params[f"{prefix}layers.{i}.bias"]
        x = hidden(x) if i < depth - 1 else output(x)
    return x


def gaussian(params, obs):
    return MultivariateNormal(mlp(params, "net.", obs), scale_tril=torch.diag(params["log_std"].clamp(-5, 2).exp()))


def least(value, obs):
    return torch.min(mlp(value, "v1.", obs), mlp(value, "v2.", obs)).squeeze(-1)


def parts(guide, tree, batch, noise):
    """[B] each: lambda V(g~), and -log b(g~|s)."""
    g = gaussian(guide, batch["obs"])
    aim = g.loc + guide["log_std"].clamp(-5, 2).exp() * noise["guide"]
    v = least(tree["value"], aim)
    return 4.0 / v.detach().abs().mean() * v, -gaussian(tree["behaviour_guide"], batch["obs"]).log_prob(aim)


def degree(options, tree, w, signal):
    value = signal if options.attach_signal else signal.detach()
    if options.signal in ("base", "standardized"):
        moments = tree["signal_statistics"]
        mean, square = moments["mean"] / moments["weight"], moments["square"] / moments["weight"]
        value = (value - mean) / ((square - mean**2).sqrt() + 1e-3)
    return mlp(w, "", value[:, None], torch.tanh, torch.sigmoid).squeeze(-1)


def guide_loss(options, guide, w, tree, batch, noise):
    """Eq. 2 on POR: B(-log b) (-log b) - lambda V."""
    improvement, constraint = parts(guide, tree, batch, noise)
    return (degree(options, tree, w, constraint) * constraint - improvement).mean()


def leaves(group):
    return {k: v.detach().clone().requires_grad_() for k, v in group.items()}


def meta(options, state, batches):
    """Eqs. 3 and 4: the virtual guide, -log g(s'|s) of it on the guide tuples, and its gradient towards w."""
    w, guide = leaves(state.tree["guiding_network"]), leaves(state.tree["guide_policy"])
    for _ in range(options.steps):
        loss = guide_loss(options, guide, w, state.tree, batches["train"], batches["noise"])
        grads = grad(loss, list(guide.values()), create_graph=True)
        guide = {k: p - LR * g for (k, p), g in zip(guide.items(), grads, strict=True)}
    tuples = batches["guide"]
    outer = -gaussian(guide, tuples["obs"]).log_prob(tuples["next_obs"]).mean()
    return guide, outer, dict(zip(w, grad(outer, list(w.values())), strict=True))


READINGS = {
    "default": {},
    "raw": {"signal": "raw"},
    "attached": {"attach_signal": True},
    "three-steps": {"steps": 3},
}


def entry_of(learner, state, batches):
    """The state that the guiding network's stage sees in a step."""
    names = [[u.name for u in stage] for stage in learner.stages]
    before = {name for stage in names[: names.index(["guiding_network"])] for name in stage}
    return learner.step(state, batches, before & learner.due(STEPS))[0]


@pytest.mark.parametrize("reading", READINGS)
def test_a_meta_step_equals_its_equations(build, draw, apart, reading):
    options = gorl(**READINGS[reading])
    learner = build(por(), options)
    state, batches = warm(learner, draw), draw(learner, 100)
    entry = entry_of(learner, state, batches)
    improvement, constraint = parts(entry.tree["guide_policy"], entry.tree, batches["train"], batches["noise"])
    assert improvement.min() < 0 < improvement.max() and constraint.std() > 0.1

    guide, outer, grads = meta(options, entry, batches)
    update, policy = learner.updates["guiding_network"], learner.updates["guide_policy"]
    estimate = update.gradient(update, entry, batches)
    assert apart(estimate.inner, guide) < 1e-10
    assert abs(estimate.loss - outer) < 1e-10 * abs(outer)
    assert estimate.metrics["hypergradient_norm"] > 1e-8
    assert apart(estimate.grads, grads) < 1e-10

    new, metrics = learner.step(state, batches, learner.due(STEPS))
    w = {k: p - 5.0 * grads[k] for k, p in entry.tree["guiding_network"].items()}
    assert apart(new.tree["guiding_network"], w) < 1e-10
    own = leaves(entry.tree["guide_policy"])
    loss = guide_loss(options, own, w, entry.tree, batches["train"], batches["noise"])
    assert abs(metrics["guide_policy/loss"] - loss) < 1e-10 * abs(loss)
    expected = dict(zip(own, grad(loss, list(own.values())), strict=True))
    found = policy.gradient(policy, entry.with_params("guiding_network", w), batches)
    assert apart(found.grads, expected) < 1e-10


@pytest.mark.parametrize("reading", READINGS)
def test_the_hypergradient_equals_central_differences(build, draw, reading):
    options = gorl(**READINGS[reading], net=GuidingNet((2,), "tanh"))
    learner = build(por(hidden=(6, 6)), options)
    state, batches = warm(learner, draw), draw(learner, 100)
    update = learner.updates["guiding_network"]
    params = state.tree["guiding_network"]
    grads = update.gradient(update, state, batches).grads
    objective = update.gradient.objective(update, state, batches)
    h, slopes = 1e-3, []
    with hold_stop_gradients() as rewind, torch.no_grad():
        value = objective(params)[0]

        def at(name, i, step):
            moved = params[name].clone()
            moved.view(-1)[i] += step
            rewind()
            return objective({**params, name: moved})[0]

        for name, p in params.items():
            for i in range(p.numel()):
                near = at(name, i, h) - at(name, i, -h)
                slopes.append((8 * near - at(name, i, 2 * h) + at(name, i, -2 * h)) / (12 * h))
    found, expected = torch.cat([g.flatten() for g in grads.values()]), torch.stack(slopes)
    assert found.norm() > 1e6 * 2e-16 * value.abs() / h
    assert (found - expected).norm() < 1e-6 * found.norm()


# -- a degree of 1 -------------------------------------------------------------------------------------------


def constant(state):
    """B is 1 to the last bit: its output's bias outweighs everything."""
    group = state.tree["guiding_network"]
    return state.with_params(
        "guiding_network", {**group, "layers.1.bias": torch.full_like(group["layers.1.bias"], 100)}
    )


def trained(learner, state, source, draw, steps=12):
    for step in range(1, steps + 1):
        state, metrics = learner.step(state, draw(source, step, torch.float32), learner.due(step))
    return state, metrics


@pytest.mark.parametrize("attached", [False, True], ids=["detached", "attached"])
@pytest.mark.parametrize("value", ["own", "base"])
def test_b_of_one_is_por_bitwise(build, draw, apart, value, attached):
    base = IQL(hidden=(16, 16), batch_size=32) if value == "base" else None
    plain = build(por(value=value), base=base)
    guided = build(por(value=value), gorl(optimizer=sgd(0.0), attach_signal=attached), base=base)
    a, _ = trained(plain, plain.init(), guided, draw)
    b, metrics = trained(guided, constant(guided.init()), guided, draw)
    assert metrics["guide_policy/b_mean"] == 1 and metrics["guide_policy/b_std"] == 0
    assert apart({k: b.tree[k] for k in a.tree}, a.tree) == 0
    assert apart({k: b.opt[k] for k in a.opt}, a.opt) == 0
    assert apart(a.tree["guide_policy"], plain.init().tree["guide_policy"]) > 1e-3
    free, _ = trained(guided, guided.init(), guided, draw)
    assert apart(free.tree["guide_policy"], a.tree["guide_policy"]) > 1e-3
    assert all(apart(free.tree[k], a.tree[k]) == 0 for k in a.tree if k != "guide_policy")


def test_a_fixed_degree_weighs_the_constraint(build, draw, apart):
    """1 is POR bitwise, 0 is V alone."""
    plain, one, none = build(por()), build(por(), Fixed(1.0)), build(por(), Fixed(0.0))
    a, _ = trained(plain, plain.init(), plain, draw)
    b, _ = trained(one, one.init(), plain, draw)
    assert apart(b.tree, a.tree) == 0 and apart(b.opt, a.opt) == 0
    state, batches = warm(plain, draw), draw(plain, 100)
    guide = leaves(state.tree["guide_policy"])
    improvement, _ = parts(guide, state.tree, batches["train"], batches["noise"])
    expected = dict(zip(guide, grad(-improvement.mean(), list(guide.values())), strict=True))
    update = none.updates["guide_policy"]
    assert apart(update.gradient(update, state, batches).grads, expected) < 1e-10


# -- when, and on what ---------------------------------------------------------------------------------------


def test_gorl_stands_right_before_the_guide_and_waits_for_its_phase(build, draw, apart):
    learner = build(por(behaviour_steps=9), gorl(every=4))
    names = [[u.name for u in stage] for stage in learner.stages]
    assert names == [
        ["behaviour_guide"],
        ["value"],
        ["guiding_network"],
        ["guide_policy", "execute_policy", "signal_statistics"],
        ["value_target"],
    ]
    assert learner.updates["guiding_network"].inners == (learner.updates["guide_policy"],)
    due = {step: learner.due(step) for step in range(1, 26)}
    assert [step for step in due if "guiding_network" in due[step]] == [12, 16, 20, 24]
    assert [step for step in due if "signal_statistics" in due[step]] == [*range(10, 26)]
    start = learner.init(torch.float64)
    state = start
    for step in range(1, 10):
        state, _ = learner.step(state, draw(learner, step), learner.due(step))
    assert all(apart(state.tree[k], p) == 0 for k, p in start.tree.items() if k != "behaviour_guide")
    assert apart(state.tree["behaviour_guide"], start.tree["behaviour_guide"]) > 1e-3


def test_the_virtual_step_and_the_real_one_share_their_noise(build, draw):
    learner = build(por(), gorl())
    shapes = {k: n.whole_shape(learner.roles) for k, n in learner.noise.items()}
    assert shapes == {"guide": (32, 3), "guide/guide": (6, 3)}
    state, batches = warm(learner, draw), draw(learner, 100)
    update = learner.updates["guiding_network"]
    loss = update.gradient(update, state, batches).loss
    for key, reads in (("guide", True), ("guide/guide", False)):  # -log g(s'|s) draws nothing
        other = {**batches, "noise": batches["noise"] | {key: -batches["noise"][key]}}
        assert (update.gradient(update, state, other).loss != loss) == reads


@pytest.mark.parametrize("objective", [gorl(), Fixed(0.5)], ids=["gorl", "fixed"])
def test_the_residual_form_has_nothing_to_weigh(build, draw, objective):
    """One clear error, from the check before the first step."""
    learner = build(por(form="residual"), objective)
    with pytest.raises(ConfigError, match=r"^por with form=residual has no constraint to weigh; set form: v_guided$"):
        learner.check(learner.init(torch.float64), draw(learner))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"improvement": "literal"}, "leave improvement=literal out"),
        ({"reduction": "sum"}, "leave reduction=sum out"),
        ({"keep_beta": True}, "keep_beta is for iql"),
        ({"outer": "cloning"}, "outer=cloning leaves the entropy out"),
        ({"outer": "mode"}, "outer=mode is how this algorithm clones"),
    ],
    ids=str,
)
def test_a_reading_that_por_has_not_is_refused(build, option, words):
    with pytest.raises(ConfigError, match=f"objective gorl: .*{words}"):
        build(por(), gorl(**option))


def test_por_after_gorl_is_refused(build):
    with pytest.raises(ConfigError, match="objective gorl: this algorithm exposes no policy"):
        build(gorl(), por())


# -- ways to run ---------------------------------------------------------------------------------------------


def test_recorded_and_stacked_steps_equal_eager_ones(build, draw, apart):
    options = gorl(optimizer=adam(LR, eps=1e-12))
    learners = [build(por(), options, seed=seed) for seed in (0, 1)]
    learner, starts = learners[0], [one.init(torch.float64) for one in learners]
    alone = [Stepping(learner, state) for state in starts]
    recorded, both = Stepping(learner, starts[0], "recorded"), Stepping(learner, stacked(starts), "recorded", 2)
    for step in range(1, 9):
        due = learner.due(step)
        batches = [draw(learner, 10 * step + seed) for seed in (0, 1)]
        metrics = [stepping(own, due) for stepping, own in zip(alone, batches, strict=True)]
        assert apart(recorded(batches[0], due), metrics[0]) < 1e-9
        assert apart(both(stacked(batches), due), stacked(metrics)) < 1e-9
    assert apart(recorded.state.tree, alone[0].state.tree) < 1e-10
    for seed, stepping in enumerate(alone):
        assert apart(unstacked(both.state.tree, seed), stepping.state.tree) < 1e-10
        assert apart(stepping.state.tree["guiding_network"], starts[seed].tree["guiding_network"]) > 1e-3


@pytest.mark.parametrize(
    ("algorithm", "node"),
    [("none", {}), ({"name": "iql", "beta": 5}, {"value": "base"})],
    ids=["own", "base"],
)
def test_metarl_check_finds_nothing(algorithm, node):
    after = ({"name": "por", "form": "v_guided", **node},)
    report = check(Plan({"name": "gorl"}, algorithm, after=after), skip=("cost",))
    assert report.objective == "gorl on por" and report.status == "ok", report.problems


@pytest.mark.parametrize("form", ["residual", "v_guided"])
def test_metarl_check_finds_nothing_in_por_itself(form):
    report = check(Plan({"name": "por", "form": form}, "none"), skip=("cost", "compiles"))
    assert report.status == "ok", report.problems
