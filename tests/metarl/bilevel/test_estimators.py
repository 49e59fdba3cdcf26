"""ForwardMode, FiniteDifference and EvolutionStrategies beyond the grid of benchmarks/exactness."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torchopt
from torch.nn.functional import softplus
from torch.utils._pytree import tree_map

from metarl import (
    Direct,
    EvolutionStrategies,
    FiniteDifference,
    ForwardMode,
    Implicit,
    Learner,
    Unrolled,
    Update,
    adam,
    clip_by_global_norm,
    momentum,
    nn,
    sgd,
    stop_gradient,
)
from metarl.errors import ConfigError
from metarl.problems import no_policy

N = 8


def errors(params, batch):
    hidden = torch.tanh(batch["x"] @ params["layers.0.weight"] + params["layers.0.bias"])
    return (hidden @ params["layers.1.weight"] + params["layers.1.bias"] - batch["y"]).square().mean(-1)


def fit(tree, batches):
    return (softplus(tree["meta"]["logits"]) * errors(tree["net"], batches["train"])).mean()


def judge(tree, batches):
    return errors(tree["net"], batches["validation"]).mean() + 0.1 * tree["meta"]["logits"].square().mean()


def rated(tree):
    return adam(tree["meta"]["log_lr"].exp(), eps=1e-2)


def learner_of(gradient, optimizer=rated, loss=judge):
    net = nn.MLP([3, 5, 2], torch.Generator().manual_seed(0), "tanh")
    return Learner(
        modules={"net": net},
        tensors={"meta": {"logits": torch.linspace(-1, 1, N), "log_lr": torch.tensor(-1.5)}},
        stages=((Update("judge", "meta", loss, sgd(0.1), gradient),), (Update("fit", "net", fit, optimizer),)),
        act=no_policy,
    ).ready()


def batches_of(learner, seed=0):
    g = torch.Generator().manual_seed(seed)
    drawn = {
        role: {"x": torch.randn(N, 3, generator=g).double(), "y": torch.randn(N, 2, generator=g).double()}
        for role in ("train", "validation", "demo")
    }
    noise = {name: torch.randn(spec.shape, generator=g).double() for name, spec in learner.noise.items()}
    return {**drawn, "noise": noise}


def estimate(gradient, optimizer=rated, warm=0, **kwargs):
    learner = learner_of(gradient, optimizer, **kwargs)
    state, batches = learner.init(torch.float64), batches_of(learner)
    for _ in range(warm):
        state, _ = learner.step(state, batches, {"fit"})
    update = learner.updates["judge"]
    return update.gradient(update, state, batches)


# -- the same gradient as Unrolled, on a network, with a learned rate --------------------------------------------


@pytest.mark.parametrize("warm", [0, 5])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(
    ("build", "tolerance"),
    [(ForwardMode, 1e-10), (FiniteDifference, 1e-7)],
    ids=["forward_mode", "finite_difference"],
)
def test_it_equals_unrolled(build, tolerance, steps, warm, apart):
    theirs = estimate(Unrolled("fit", steps=steps), warm=warm)
    ours = estimate(build("fit", steps=steps), warm=warm)
    assert apart(ours.grads, theirs.grads) < tolerance
    assert apart(ours.inner, theirs.inner) < 1e-12
    assert abs(ours.loss - theirs.loss) < 1e-13
    assert set(ours.metrics) == set(theirs.metrics)
    assert theirs.grads["log_lr"].abs() > 1e-4  # the learned rate is a part of what is compared


def test_a_given_optimizer_starts_fresh_in_each(apart):
    theirs = estimate(Unrolled("fit", momentum(0.3), steps=3), warm=4)
    assert apart(estimate(ForwardMode("fit", momentum(0.3), steps=3), warm=4).grads, theirs.grads) < 1e-10
    found = estimate(FiniteDifference("fit", momentum(0.3), steps=3), warm=4)
    assert apart(found.grads, {**theirs.grads, "log_lr": found.grads["log_lr"]}) < 1e-7
    assert found.grads["log_lr"] == 0


def test_finite_difference_in_float32_stays_near():
    def grads(gradient, dtype):
        learner = learner_of(gradient)
        state = learner.init(dtype)
        batches = batches_of(learner)
        batches = {r: {k: v.to(dtype) for k, v in batch.items()} for r, batch in batches.items()}
        update = learner.updates["judge"]
        return torch.cat([g.double().reshape(-1) for g in update.gradient(update, state, batches).grads.values()])

    exact = grads(Unrolled("fit", steps=2), torch.float64)
    near = grads(FiniteDifference("fit", steps=2), torch.float32)
    assert (near - exact).norm() < 3e-3 * exact.norm()


def test_epsilon_sets_the_displacement():
    """A large one is a bias of O(h^2)."""
    exact = estimate(Unrolled("fit", steps=2)).grads["logits"]

    def off(epsilon):
        return (estimate(FiniteDifference("fit", steps=2, epsilon=epsilon)).grads["logits"] - exact).norm()

    assert 50 < off(1e-2) / off(1e-3) < 200


def stopping_fit(tree, batches):
    """TD3+BC's lambda: a scale that no gradient sees, but that a displacement moves."""
    each = errors(tree["net"], batches["train"])
    return (softplus(tree["meta"]["logits"]) * each).mean() / stop_gradient(each.mean() + each.max())


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("transform", ["eager", "vmap", "compile"])
def test_stopped_values_are_held_at_the_displaced_points(steps, transform, apart):
    learner = learner_of(FiniteDifference("fit", sgd(0.3), steps=steps), loss=lambda t, b: judge(t, b))
    inner = replace(learner.updates["fit"], loss=stopping_fit)
    state, batches = learner.init(torch.float64), batches_of(learner)

    def grads(gradient, state):
        update = replace(learner.updates["judge"], gradient=gradient)
        return update.gradient(update, state, batches).grads

    theirs = grads(Unrolled(inner, sgd(0.3), steps=steps), state)
    ours = FiniteDifference(inner, sgd(0.3), steps=steps)
    if transform == "vmap":
        stacked = tree_map(lambda x: torch.stack([x, x]), state)
        found = tree_map(lambda x: x[1], torch.vmap(lambda s: grads(ours, s))(stacked))
    elif transform == "compile":
        torch._dynamo.reset()
        found = torch.compile(lambda s: grads(ours, s), fullgraph=True, backend="aot_eager")(state)
    else:
        found = grads(ours, state)
    assert apart(found["logits"], theirs["logits"]) < 1e-7
    assert theirs["logits"].norm() > 1e-3


def test_adaptive_steps_with_a_small_eps_are_warned_of():
    learner = learner_of(FiniteDifference("fit"), clip_by_global_norm(adam(1e-3), 1.0), loss=judge_with_rate)
    with pytest.warns(UserWarning, match=r"'judge': FiniteDifference through adam with eps=1e-08: .* raise eps"):
        learner.check(learner.init(torch.float64), batches_of(learner))


def judge_with_rate(tree, batches):
    return judge(tree, batches) + tree["meta"]["log_lr"]


@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_the_displacement_does_not_depend_on_the_scale_of_the_outer_loss(factor, apart):
    """Without its length taken out, u of 1e9 would leave the region where the loss is smooth."""

    def scaled(tree, batches):
        return factor * judge(tree, batches)

    plain = estimate(FiniteDifference("fit", steps=2)).grads
    found = estimate(FiniteDifference("fit", steps=2), loss=scaled).grads
    assert apart({k: g / factor for k, g in found.items()}, plain) < 1e-8


def test_the_displacement_grows_with_the_parameters():
    """The differences are taken at theta +- h u, with |h u| = epsilon max(1, |theta|)."""
    gradient = FiniteDifference("fit", sgd(0.3), epsilon=1e-3)
    learner = learner_of(gradient, sgd(0.3), loss=lambda t, b: judge(t, b) + t["meta"]["log_lr"])
    for scale in (0.01, 10.0):
        seen = []

        def watched(tree, batches, seen=seen):
            seen.append(tree["net"])
            return fit(tree, batches)

        state = learner.init(torch.float64)
        state = state.with_params("net", {k: scale * v for k, v in state.tree["net"].items()})
        inner = replace(learner.updates["fit"], loss=watched)
        update = replace(learner.updates["judge"], gradient=replace(gradient, inner=inner))
        update.gradient(update, state, batches_of(learner))
        moved = torch.cat([(v - state.tree["net"][k]).reshape(-1).detach() for k, v in seen[-1].items()]).norm()
        size = torch.cat([v.reshape(-1) for v in state.tree["net"].values()]).norm()
        assert torch.allclose(moved, 1e-3 * size.clamp_min(1), rtol=1e-9)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_forward_mode_in_chunks_is_the_same(chunk, apart):
    whole = estimate(ForwardMode("fit", steps=3))
    assert apart(estimate(ForwardMode("fit", steps=3, chunk=chunk)).grads, whole.grads) < 1e-12


def test_forward_mode_takes_unrolleds_other_options(apart):
    def contrasted(tree, batches, contrast):
        return judge(tree, batches) - judge(contrast, batches)

    def build(kind):
        learner = replace(
            learner_of(Unrolled("fit")),
            stages=(
                (Update("judge", "meta", contrasted, sgd(0.1), kind(("fit",), steps=2, truncate=1, contrast="rival")),),
                (Update("fit", "net", fit, sgd(0.3)),),
            ),
            virtual={"rival": Update("rival", "net", lambda t, b: errors(t["net"], b["demo"]).mean(), sgd(0.3))},
        ).ready()
        update = learner.updates["judge"]
        return update.gradient(update, learner.init(torch.float64), batches_of(learner)).grads

    ours, theirs = build(ForwardMode), build(Unrolled)
    assert apart({"logits": ours["logits"]}, {"logits": theirs["logits"]}) < 1e-10


def test_forward_mode_may_be_differentiated_again(central_differences, flat):
    """Three levels, the middle one by forward mode."""

    def top(tree, batches):
        return errors(tree["net"], batches["demo"]).mean()

    learner = learner_of(ForwardMode("fit", sgd(0.3), steps=2))
    outer = Update("top", "rate", top, sgd(0.1), Unrolled(("judge", "fit")))
    judged = replace(learner.updates["judge"], optimizer=lambda tree: sgd(tree["rate"]["log_lr"].exp()))
    learner = replace(
        learner,
        tensors={**learner.tensors, "rate": {"log_lr": torch.tensor(0.5)}},
        stages=((outer,), (judged,), (replace(learner.updates["fit"], optimizer=sgd(0.3)),)),
    ).ready()
    state, batches = learner.init(torch.float64), batches_of(learner)
    update = learner.updates["top"]
    grads = update.gradient(update, state, batches).grads
    fn = update.gradient.objective(update, state, batches)
    expected, noise = central_differences(fn, state.tree["rate"])
    assert flat(grads).norm() > 1000 * noise
    assert (flat(grads) - flat(expected)).norm() < 1e-6 * flat(grads).norm()


# -- evolution strategies ----------------------------------------------------------------------------------------


def test_evolution_strategies_stay_within_their_standard_error():
    exact = estimate(Unrolled("fit", steps=2)).grads
    found = estimate(EvolutionStrategies(Unrolled("fit", steps=2), samples=4096, sigma=1e-3))
    distance = torch.cat([(found.grads[k] - exact[k]).reshape(-1) for k in exact]).norm()
    error = found.metrics["standard_error"]
    assert 0.1 * error < distance < 4 * error
    assert error < 0.2 * found.metrics["hypergradient_norm"]


def test_evolution_strategies_equal_their_formula_and_chunks_change_nothing(apart):
    gradient = EvolutionStrategies(Unrolled("fit", steps=2), samples=6, sigma=0.05)
    learner = learner_of(gradient)
    assert learner.noise["judge.evolution"].shape == (6, N + 1) and learner.noise["judge.evolution"].role is None
    state, batches = learner.init(torch.float64), batches_of(learner)
    update = learner.updates["judge"]
    value = update.gradient.base.objective(update, state, batches)
    draws, point, each = batches["noise"]["judge.evolution"], state.tree["meta"], []
    for draw in draws:
        logits, log_lr = 0.05 * draw[:N], 0.05 * draw[N]
        ahead = value({"logits": point["logits"] + logits, "log_lr": point["log_lr"] + log_lr})[0]
        behind = value({"logits": point["logits"] - logits, "log_lr": point["log_lr"] - log_lr})[0]
        each.append((ahead - behind) / 0.1 * draw)
    each = torch.stack(each)
    found = update.gradient(update, state, batches)
    assert apart(found.grads, {"logits": each.mean(0)[:N], "log_lr": each.mean(0)[N]}) < 1e-10
    assert torch.allclose(found.metrics["standard_error"], (each.var(0).sum() / 6).sqrt())
    assert found.loss == value(point)[0] and apart(found.inner, value(point)[1][1]) < 1e-12
    chunked = replace(update, gradient=replace(update.gradient, chunk=2))
    assert apart(chunked.gradient(chunked, state, batches).grads, found.grads) < 1e-12


def accuracy(tree, batches):
    """Has no derivative anywhere."""
    return (errors(tree["net"], batches["validation"]) > 0.8).double().mean()


def test_evolution_strategies_need_no_derivative_but_do_need_a_path():
    gradient = EvolutionStrategies(Unrolled("fit", sgd(2.0), steps=3), samples=64, sigma=1.0)
    found = estimate(gradient, loss=accuracy)
    assert found.grads["logits"].norm() > 0
    learner = learner_of(gradient, loss=accuracy)
    with pytest.raises(ConfigError, match="parameters log_lr of group 'meta' do not reach"):
        learner.check(learner.init(torch.float64), batches_of(learner))


def test_a_plateau_is_not_taken_for_a_missing_path():
    """Perturbed by sigma, no sample of thirty changes sides; by a hundred sigma, some do."""
    gradient = EvolutionStrategies(Unrolled("fit", sgd(2.0), steps=3), samples=4, sigma=1e-3)
    learner = learner_of(gradient, loss=lambda t, b: accuracy(t, b) + 0 * t["meta"]["log_lr"].exp().floor())
    state, batches = learner.init(torch.float64), batches_of(learner)
    update = learner.updates["judge"]
    assert update.gradient(update, state, batches).grads["logits"].norm() == 0
    assert update.gradient.unreached(update, state, batches) == ["log_lr"]


def test_evolution_strategies_of_an_ordinary_loss_take_a_whole_step():
    learner = learner_of(EvolutionStrategies(Direct(), samples=8), loss=judge_with_rate)
    state, batches = learner.init(torch.float64), batches_of(learner)
    learner.check(state, batches)
    stepped, metrics = learner.step(state, batches, {"judge"})
    assert not torch.equal(stepped.tree["meta"]["logits"], state.tree["meta"]["logits"])
    assert metrics["judge/standard_error"] > 0


def test_a_learner_may_be_made_ready_twice():
    learner = learner_of(EvolutionStrategies(Unrolled("fit")))
    assert learner.ready().noise == learner.noise


def test_evolution_strategies_of_an_ordinary_loss():
    def bowl(tree, batches):
        return (tree["meta"]["logits"] - 1).square().sum() + tree["meta"]["log_lr"].square()

    found = estimate(EvolutionStrategies(Direct(), samples=8192, sigma=0.1), loss=bowl)
    exact = 2 * (torch.linspace(-1, 1, N) - 1)
    assert (found.grads["logits"] - exact).norm() < 4 * found.metrics["standard_error"]
    assert found.inner is None


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ForwardMode("fit", backend="higher"), "backend 'higher' has no forward mode"),
        (lambda: ForwardMode("fit", chunk=0), "chunk must be at least 1"),
        (lambda: FiniteDifference("fit", steps=0), "steps must be at least 1"),
        (lambda: FiniteDifference("fit", epsilon=0.0), "epsilon positive"),
        (lambda: EvolutionStrategies("fit", sgd(0.1)), r"base must be Direct\(\) or Unrolled\(\.\.\.\), .* not 'fit'"),
        (lambda: Implicit("fit", sgd(0.1)), "an optimiser is given as optimizer="),
        (lambda: EvolutionStrategies(Unrolled("fit"), samples=1), "samples must be at least 2"),
        (lambda: EvolutionStrategies(Unrolled("fit"), chunk=0), "chunk at least 1"),
        (lambda: Unrolled("fit", 5), r"optimizer must be an optimiser such as sgd\(0.1\), not 5"),
        (lambda: Unrolled("fit", tasks="support"), r"tasks is a tuple of roles, such as \('support',\)"),
        (lambda: EvolutionStrategies(Unrolled("fit"), sigma=0.0), "sigma positive"),
        (
            lambda: EvolutionStrategies(Implicit("fit")),
            r"base must be Direct\(\) or Unrolled\(\.\.\.\), .* not Implicit",
        ),
        (lambda: EvolutionStrategies(Unrolled("fit", backend="torchopt")), "needs backend='native'"),
    ],
)
def test_settings_out_of_range_are_refused(build, words):
    with pytest.raises(ConfigError, match=words):
        build()


def test_finite_difference_refuses_what_it_cannot_roll():
    with pytest.raises(ConfigError, match="rolls one inner Update with a plain gradient"):
        FiniteDifference("fit").resolve(lambda name: Update(name, name, None, sgd(0.1), Unrolled("x")))
    learner = learner_of(FiniteDifference("fit"), torchopt.rmsprop(0.1))
    with pytest.raises(ConfigError, match="rolls metarl's optimisers only"):
        learner.check(learner.init(torch.float64), batches_of(learner))
    own = learner_of(FiniteDifference("fit"))
    update = replace(own.updates["judge"], params="net")
    with pytest.raises(ConfigError, match="moves another group than its inner Update"):
        update.gradient.check(update, own.init(torch.float64))


def test_one_fresh_adam_step_is_warned_of_in_each():
    fresh = clip_by_global_norm(adam(0.1, eps=1e-2), 1.0)
    base = EvolutionStrategies(Unrolled("fit", fresh))
    for gradient in (ForwardMode("fit", fresh), FiniteDifference("fit", fresh), base):
        learner = learner_of(gradient, adam(0.1), loss=lambda t, b: judge(t, b) + t["meta"]["log_lr"])
        with pytest.warns(UserWarning, match="one virtual step of a fresh adam has a useless hypergradient"):
            learner.check(learner.init(torch.float64), batches_of(learner))


@pytest.mark.parametrize("middle", [FiniteDifference("fit"), EvolutionStrategies(Unrolled("fit"))], ids=["fd", "es"])
def test_estimates_with_an_error_are_not_differentiated_again(middle):
    learner = learner_of(middle)
    top = Update("top", "rate", judge, sgd(0.1), Unrolled(("judge", "fit")))
    with pytest.raises(ConfigError, match="whose result cannot be differentiated again; let the inner one use"):
        learner.with_tensors(rate={"x": torch.ones(())}).with_stage_before("judge", top).ready()
