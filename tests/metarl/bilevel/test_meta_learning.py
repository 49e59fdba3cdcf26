"""Unrolled from a learned start (`init_from`) and over tasks (`tasks`): MAML, against a loop over tasks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._pytree import tree_map

from metarl import EvolutionStrategies, ForwardMode, Learner, Unrolled, Update, adam, momentum, nn, sgd
from metarl.errors import ConfigError
from metarl.problems import no_policy

TASKS, N = 3, 6


def error(params, batch):
    hidden = torch.tanh(batch["x"] @ params["layers.0.weight"] + params["layers.0.bias"])
    return (hidden @ params["layers.1.weight"] + params["layers.1.bias"] - batch["y"]).square().mean()


def maml(estimator, **virtual):
    g = torch.Generator().manual_seed(0)
    net, init = (nn.MLP([1, 5, 1], g, "tanh") for _ in range(2))
    return Learner(
        modules={"net": net, "init": init},
        stages=((Update("maml", "init", lambda t, b: error(t["net"], b["query"]), adam(0.01), estimator),),),
        act=no_policy,
        virtual={"adapt": Update("adapt", "net", lambda t, b: error(t["net"], b["support"]), sgd(0.1)), **virtual},
    ).ready()


def tasks(seed=0, lead=(TASKS,)):
    g = torch.Generator().manual_seed(seed)

    def rows():
        return {
            "x": torch.randn(*lead, N, 1, generator=g).double(),
            "y": torch.randn(*lead, N, 1, generator=g).double(),
        }

    return {"support": rows(), "query": rows()}


def of_task(batches, i):
    return {role: {k: v[i] for k, v in batch.items()} for role, batch in batches.items()}


def by_hand(init, task, steps, lr=0.1, velocity=None):
    """MAML's Eq. 1 for one task."""
    init = {k: v.clone().requires_grad_() for k, v in init.items()}
    params, trace = init, {k: torch.zeros_like(v) for k, v in init.items()}
    for _ in range(steps):
        grads = torch.autograd.grad(error(params, task["support"]), list(params.values()), create_graph=True)
        trace = {k: (velocity or 0) * trace[k] + g for k, g in zip(params, grads, strict=True)}
        params = {k: p - lr * trace[k] for k, p in params.items()}
    loss = error(params, task["query"])
    return loss.detach(), dict(zip(init, torch.autograd.grad(loss, list(init.values())), strict=True)), params


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", [Unrolled, ForwardMode])
def test_the_mean_over_tasks_equals_a_loop_over_them(kind, steps, apart):
    learner = maml(kind("adapt", momentum(0.1, 0.5), steps=steps, init_from="init", tasks=("support", "query")))
    state, batches = learner.init(torch.float64), tasks()
    update = learner.updates["maml"]
    found = update.gradient(update, state, batches)
    each = [by_hand(state.tree["init"], of_task(batches, i), steps, velocity=0.5) for i in range(TASKS)]
    expected = {k: sum(grads[k] for _, grads, _ in each) / TASKS for k in found.grads}
    assert apart(found.grads, expected) < 1e-10
    assert abs(found.loss - sum(loss for loss, _, _ in each) / TASKS) < 1e-13
    assert apart(found.inner, {k: torch.stack([p[k].detach() for _, _, p in each]) for k in found.grads}) < 1e-12
    assert torch.equal(state.tree["net"]["layers.0.weight"], learner.init(torch.float64).tree["net"]["layers.0.weight"])


def test_one_task_needs_no_task_axis(apart):
    learner = maml(Unrolled("adapt", sgd(0.1), steps=2, init_from="init"))
    state, batches = learner.init(torch.float64), tasks(lead=())
    update = learner.updates["maml"]
    _, expected, _ = by_hand(state.tree["init"], batches, 2)
    assert apart(update.gradient(update, state, batches).grads, expected) < 1e-10


def test_first_order_maml_takes_the_gradient_at_the_adapted_parameters(apart):
    options = {"steps": 2, "init_from": "init", "tasks": ("support", "query"), "first_order": True}
    learner = maml(Unrolled("adapt", sgd(0.1), **options))
    state, batches = learner.init(torch.float64), tasks()
    learner.check(state, batches)  # every parameter is reached: the start is the meta-parameter
    update = learner.updates["maml"]
    expected = {k: torch.zeros_like(v) for k, v in state.tree["init"].items()}
    for i in range(TASKS):
        task = of_task(batches, i)
        _, _, adapted = by_hand(state.tree["init"], task, 2)
        leaves = {k: v.detach().requires_grad_() for k, v in adapted.items()}
        grads = torch.autograd.grad(error(leaves, task["query"]), list(leaves.values()))
        expected = {k: expected[k] + g / TASKS for k, g in zip(leaves, grads, strict=True)}
    assert apart(update.gradient(update, state, batches).grads, expected) < 1e-10


def test_a_fixed_start_may_be_another_group(apart):
    """A learned rate from a start that is neither learned here nor the inner group's own value."""

    def rated(tree):
        return sgd(tree["rate"]["lr"])

    learner = maml(Unrolled("adapt", sgd(0.1), init_from="init"))
    outer = Update("rate", "rate", lambda t, b: error(t["net"], b["query"]), sgd(0.1))
    learner = replace(learner, tensors={"rate": {"lr": torch.tensor(0.125)}})
    learner = learner.with_stage_before("maml", replace(outer, gradient=Unrolled("adapt", rated, init_from="init")))
    learner = learner.ready()
    state, batches = learner.init(torch.float64), tasks(lead=())
    update = learner.updates["rate"]
    found = update.gradient(update, state, batches).grads["lr"]
    init = {k: v.clone().requires_grad_() for k, v in state.tree["init"].items()}
    inner = torch.autograd.grad(error(init, batches["support"]), list(init.values()))
    after = {k: (p - 0.125 * g).detach().requires_grad_() for (k, p), g in zip(init.items(), inner, strict=True)}
    outer_grads = torch.autograd.grad(error(after, batches["query"]), list(after.values()))
    expected = -sum((a * b).sum() for a, b in zip(inner, outer_grads, strict=True))
    assert abs(found - expected) < 1e-10 * abs(expected)


def test_tasks_have_their_own_noise_contrast_and_fresh_steps(apart):
    """Every option that reads batches, task by task, equals the estimate of that task alone."""

    def noisy(tree, batches):
        shifted = {**batches["support"], "y": batches["support"]["y"] + batches["noise"]["label"]}
        return error(tree["net"], shifted)

    def contrasted(tree, batches, contrast):
        return torch.tanh(error(tree["net"], batches["query"]) - error(contrast["net"], batches["query"]))

    virtual = {
        "noisy": Update("noisy", "net", noisy, sgd(0.1)),
        "rival": Update("rival", "net", lambda t, b: error(t["net"], b["query"]), sgd(0.1)),
    }
    options = {"steps": 2, "init_from": "init", "contrast": "rival", "fresh": {"support": "many"}}
    roles = ("many", "query", "noise.label")
    state, found = None, []
    g = torch.Generator().manual_seed(5)
    many = {k: torch.randn(TASKS, 2, N, 1, generator=g).double() for k in ("x", "y")}
    batches = {**tasks(), "many": many, "noise": {"label": torch.randn(TASKS, N, 1, generator=g).double()}}
    del batches["support"]
    for tasked in (True, False):
        learner = maml(Unrolled("noisy", sgd(0.1), tasks=roles if tasked else (), **options), **virtual)
        learner = replace(learner, stages=((replace(learner.updates["maml"], loss=contrasted),),)).ready()
        state = learner.init(torch.float64)
        update = learner.updates["maml"]
        each = [batches] if tasked else [of_task(batches, i) for i in range(TASKS)]
        found += [update.gradient(update, state, one) for one in each]
    together, *alone = found
    assert apart(together.grads, {k: sum(e.grads[k] for e in alone) / TASKS for k in together.grads}) < 1e-10
    assert abs(together.loss - sum(e.loss for e in alone) / TASKS) < 1e-13
    mean = sum(e.metrics["inner_step_norm"] for e in alone) / TASKS
    assert torch.allclose(together.metrics["inner_step_norm"], mean, rtol=1e-12)


def test_tasks_under_seeds_and_in_a_whole_step(apart):
    learner = maml(Unrolled("adapt", sgd(0.1), steps=2, init_from="init", tasks=("support", "query")))
    states = [learner.init(torch.float64), tree_map(lambda x: 0.9 * x, learner.init(torch.float64))]
    states[1] = states[1]._replace(flags=states[0].flags)
    stacked = tree_map(lambda *x: torch.stack(x), *states)
    together, _ = torch.vmap(lambda s, b: learner.step(s, b, {"maml"}), in_dims=(0, None))(stacked, tasks())
    for i, state in enumerate(states):
        alone, _ = learner.step(state, tasks(), {"maml"})
        assert apart(tree_map(lambda x, i=i: x[i], together).tree["init"], alone.tree["init"]) < 1e-10


def test_evolution_strategies_over_tasks():
    base = Unrolled("adapt", sgd(0.1), steps=1, init_from="init", tasks=("support", "query"))
    learner = maml(EvolutionStrategies(base, samples=2048, sigma=1e-3))
    state = learner.init(torch.float64)
    noise = torch.randn(learner.noise["maml.evolution"].shape, generator=torch.Generator().manual_seed(0)).double()
    update = learner.updates["maml"]
    found = update.gradient(update, state, {**tasks(), "noise": {"maml.evolution": noise}})
    exact = replace(update, gradient=update.gradient.base)
    exact = exact.gradient(exact, state, tasks()).grads
    distance = torch.cat([(found.grads[k] - exact[k]).reshape(-1) for k in exact]).norm()
    assert distance < 4 * found.metrics["standard_error"]


def test_metrics_of_tasks_may_be_counts_and_numbers():
    learner = maml(Unrolled("adapt", sgd(0.1), init_from="init", tasks=("support", "query")))

    def judged(tree, batches):
        right = (batches["query"]["y"] > 0).all()
        return error(tree["net"], batches["query"]), {"right": right, "count": right.long(), "one": 1.0}

    learner = replace(learner, stages=((replace(learner.updates["maml"], loss=judged),),)).ready()
    _, metrics = learner.step(learner.init(torch.float64), tasks(), {"maml"})
    assert metrics["maml/right"] == metrics["maml/count"] == 0 and metrics["maml/one"] == 1


def test_a_start_of_another_shape_is_refused_by_name():
    learner = maml(Unrolled("adapt", sgd(0.1), init_from="init"))
    learner = replace(learner, modules={**learner.modules, "init": nn.MLP([1, 6, 1], torch.Generator())})
    with pytest.raises(ConfigError, match=r"'maml': init_from='init' has the parameters .* its inner group 'net'"):
        learner.check(learner.init(torch.float64), tasks(lead=()))


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="starts one inner Update, not 2"):
        Unrolled(("a", "b"), init_from="c").resolve(lambda name: Update(name, name, None, sgd(0.1)))
    with pytest.raises(ConfigError, match="no tasks; use native"):
        Unrolled("a", tasks=("support",), backend="higher")
    learner = maml(Unrolled("adapt", sgd(0.1), init_from="int"))
    with pytest.raises(ConfigError, match=r"no parameter group, batch or column called 'int'\. Did you mean 'init'\?"):
        learner.check(learner.init(torch.float64), tasks(lead=()))
    learner = maml(Unrolled("adapt", sgd(0.1), tasks=("support", "querry")))
    with pytest.raises(ConfigError, match=r"called 'querry'\. Did you mean 'query'\?"):
        learner.check(learner.init(torch.float64), tasks())
