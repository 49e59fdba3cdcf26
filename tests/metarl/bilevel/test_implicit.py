"""Implicit: what the grid of benchmarks/exactness does not reach: failures, refusals, decay, other levels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._pytree import tree_map

from metarl import (
    Implicit,
    Learner,
    Polyak,
    Unrolled,
    Update,
    adam,
    adamw,
    clip_by_global_norm,
    cosine_decay,
    momentum,
    sgd,
)
from metarl.bilevel import linear_solvers
from metarl.errors import ConfigError
from metarl.problems import no_policy

D = 5


def matrix(seed=0, smallest=0.5):
    """A symmetric matrix with eigenvalues from `smallest` to 2."""
    q, _ = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return q @ torch.diag(torch.linspace(smallest, 2, D, dtype=torch.float64)) @ q.T


def bilevel(gradient, optimizer=None, hessian=None, outer=None, inner=None):
    """inner: theta H theta / 2 - phi^3 theta; outer: |theta - 1|^2 / 2 + |phi|^2 / 20."""
    hessian = matrix() if hessian is None else hessian

    def fit(tree, batches):
        theta, phi = tree["theta"]["x"], tree["phi"]["x"]
        return theta @ hessian.to(theta.dtype) @ theta / 2 - (phi**3 * theta).sum()

    def judge(tree, batches):
        return (tree["theta"]["x"] - 1).square().sum() / 2 + tree["phi"]["x"].square().sum() / 20

    return Learner(
        modules={},
        tensors={"theta": {"x": torch.linspace(-1, 1, D)}, "phi": {"x": torch.linspace(0.3, 1, D)}},
        stages=(
            (Update("judge", "phi", outer or judge, sgd(0.1), gradient),),
            (Update("fit", "theta", inner or fit, optimizer or sgd(0.1)),),
        ),
        act=no_policy,
    ).ready()


def estimate(learner, dtype=torch.float64, **changes):
    state = learner.init(dtype)
    learner.check(state, {})
    for group, value in changes.items():
        state = state.with_params(group, {"x": value})
    update = learner.updates["judge"]
    return update.gradient(update, state, {})


def closed_form(hessian, decay=0.0):
    """At the optimum theta = (H + decay)^-1 phi^3, and there the hypergradient."""
    phi = torch.linspace(0.3, 1, D).double()
    hessian = hessian + decay * torch.eye(D, dtype=torch.float64)
    theta = torch.linalg.solve(hessian, phi**3)
    return theta, phi / 10 + 3 * phi**2 * torch.linalg.solve(hessian, theta - 1)


@pytest.mark.parametrize(
    "optimizer",
    [
        sgd(0.1, weight_decay=0.3),
        momentum(0.1, weight_decay=0.3),
        adam(0.1, weight_decay=0.3),
        cosine_decay(adam(0.1, weight_decay=0.3), 10),
    ],
    ids=["sgd", "momentum", "adam", "scheduled-adam"],
)
@pytest.mark.parametrize("solver", ["cg", "neumann"])
def test_the_optimizers_weight_decay_moves_the_optimum(optimizer, solver):
    theta, expected = closed_form(matrix(), decay=0.3)
    learner = bilevel(Implicit("fit", solver, iterations=200, scale=0.5 if solver == "neumann" else None), optimizer)
    found = estimate(learner, theta=theta)
    assert found.metrics["inner_gradient_norm"] < 1e-12
    assert torch.allclose(found.grads["x"], expected, rtol=1e-10)


@pytest.mark.parametrize("solver", ["cg", "neumann", "fixed_point"])
def test_a_learned_weight_decay_has_its_hypergradient(solver, central_differences):
    """F at the optimum (H + exp(d))^-1 phi^3 of a learned decay d, by central differences."""
    hessian, phi = matrix(), torch.linspace(0.3, 1, D).double()

    def value(params):
        theta = torch.linalg.solve(hessian + params["x"].exp() * torch.eye(D, dtype=torch.float64), phi**3)
        return (theta - 1).square().sum() / 2, theta

    point = {"x": torch.tensor(-1.0, dtype=torch.float64)}
    (expected,), _ = (list(g.values()) if isinstance(g, dict) else g for g in central_differences(value, point))

    def rested(tree):
        return sgd(0.3, weight_decay=tree["decay"]["x"].exp())

    settings = {"scale": 0.3} if solver == "neumann" else {}
    learner = bilevel(Implicit("fit"), rested)
    learner = replace(learner, tensors={**learner.tensors, "decay": {"x": torch.tensor(-1.0)}})
    gradient = Implicit("fit", solver, iterations=300, **settings)
    outer = Update("decay", "decay", learner.updates["judge"].loss, sgd(0.1), gradient)
    learner = learner.with_stage_before("judge", outer).ready()
    state = learner.init(torch.float64).with_params("theta", {"x": value(point)[1]})
    state = state.with_params("phi", {"x": phi})
    learner.check(state, {})
    update = learner.updates["decay"]
    found = update.gradient(update, state, {}).grads["x"]
    assert abs(found - expected) < 1e-7 * abs(expected) and abs(expected) > 1e-3


@pytest.mark.parametrize("optimizer", [sgd(0.1, weight_decay=0.3), momentum(0.05, 0.7, weight_decay=0.3)])
def test_fixed_point_sees_the_weight_decay_too(optimizer):
    theta, expected = closed_form(matrix(), decay=0.3)
    found = estimate(bilevel(Implicit("fit", "fixed_point", iterations=800), optimizer), theta=theta)
    assert torch.allclose(found.grads["x"], expected, rtol=1e-10)


def test_steps_lead_to_the_optimum_and_leave_the_state_alone():
    learner = bilevel(Implicit("fit", steps=300, optimizer=momentum(0.2, 0.5)))
    theta, expected = closed_form(matrix())
    state = learner.init(torch.float64)
    before = tree_map(torch.clone, state)
    update = learner.updates["judge"]
    found = update.gradient(update, state, {})
    assert torch.allclose(found.inner["x"], theta, rtol=1e-10)
    assert torch.allclose(found.grads["x"], expected, rtol=1e-10)
    assert all(torch.equal(state.tree[g]["x"], before.tree[g]["x"]) for g in ("theta", "phi"))


def test_damping_is_added_to_the_hessian():
    theta, _ = closed_form(matrix())
    phi = torch.linspace(0.3, 1, D).double()
    damped = matrix() + 0.7 * torch.eye(D, dtype=torch.float64)
    expected = phi / 10 + 3 * phi**2 * torch.linalg.solve(damped, theta - 1)
    for solver, scale in (("cg", None), ("neumann", 0.5)):
        learner = bilevel(Implicit("fit", solver, iterations=200, damping=0.7, scale=scale))
        assert torch.allclose(estimate(learner, theta=theta).grads["x"], expected, rtol=1e-10)


def test_the_value_is_the_outer_loss_and_the_objective_has_the_estimate_as_its_gradient(
    hypergradient, central_differences, flat
):
    learner = bilevel(Implicit("fit"))
    state = learner.init(torch.float64)
    grads, objective, point = hypergradient(learner, "judge", state, {})
    value, _ = objective(point)
    assert torch.equal(value, learner.updates["judge"].loss(state.tree, {}))
    expected, _ = central_differences(objective, point)
    assert (flat(grads) - flat(expected)).norm() < 1e-9 * flat(grads).norm()


def test_metrics_tell_how_well_the_system_is_solved():
    phi, hessian = torch.linspace(0.3, 1, D).double(), matrix()
    theta = torch.linspace(-1, 1, D).double()
    right, gradient = theta - 1, hessian @ theta - phi**3

    def residual(v):
        return (hessian @ v - right).norm() / right.norm()

    series = sum(torch.linalg.matrix_power(torch.eye(D) - 0.3 * hessian, i) @ right for i in range(4))
    for settings, expected in (
        (("neumann", 4, 0.0, 0.3), residual(0.3 * series)),
        (("identity", 1, 0.0, 0.5), residual(0.5 * right)),
    ):
        found = estimate(bilevel(Implicit("fit", *settings)), theta=theta)
        assert torch.allclose(found.metrics["residual"], expected, rtol=1e-10)
        assert torch.allclose(found.metrics["inner_gradient_norm"], gradient.norm(), rtol=1e-6)
    found = estimate(bilevel(Implicit("fit", "fixed_point", 4), sgd(0.3)), theta=theta)
    assert torch.allclose(found.metrics["inner_step_norm"], 0.3 * gradient.norm(), rtol=1e-6)
    assert torch.allclose(found.metrics["residual"], residual(0.3 * series), rtol=1e-10)


# -- failures: flagged without a read-back, told by Learner.faults ---------------------------------------------


def faults_after_a_step(learner, dtype=torch.float64):
    state = learner.init(dtype)
    state, _ = learner.step(state, {}, {"judge"})
    return state, learner.faults(state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_divergent_neumann_series_is_told_with_group_and_cure(dtype):
    _, faults = faults_after_a_step(bilevel(Implicit("fit", "neumann", 50, scale=1.2)), dtype)
    assert len(faults) == 1 and "update 'judge' (group 'phi')" in faults[0] and "lower Implicit's scale=" in faults[0]
    _, fine = faults_after_a_step(bilevel(Implicit("fit", "neumann", 50, scale=0.9)), dtype)
    assert fine == []


def test_a_series_that_overflows_is_still_told_as_divergent():
    state, faults = faults_after_a_step(bilevel(Implicit("fit", "neumann", 2000, scale=100.0)))
    assert state.flags["nonfinite/judge"] and len(faults) == 1 and "grows instead of shrinking" in faults[0]


def test_a_divergent_fixed_point_is_told():
    _, faults = faults_after_a_step(bilevel(Implicit("fit", "fixed_point", 50), sgd(1.2)))
    assert len(faults) == 1 and "inner learning rate (fixed_point)" in faults[0]


def test_a_momentum_whose_terms_rise_before_they_fall_is_not_called_divergent():
    learner = bilevel(Implicit("fit", "fixed_point", 5), momentum(1.5, 0.9))
    found = estimate(learner)
    assert not found.failures["diverged"]
    long = estimate(bilevel(Implicit("fit", "fixed_point", 2000), momentum(1.5, 0.9)))
    assert long.metrics["residual"] < 1e-9


def test_a_hessian_of_nan_is_told_as_nan_and_not_as_singular():
    def cone(tree, batches):
        return tree["theta"]["x"].norm() + (tree["theta"]["x"] * tree["phi"]["x"]).sum()

    learner = bilevel(Implicit("fit"), inner=cone)
    state = learner.init(torch.float64).with_params("theta", {"x": torch.zeros(D, dtype=torch.float64)})
    state, _ = learner.step(state, {}, {"judge"})
    (fault,) = learner.faults(state)
    assert "NaN" in fault and "damping" not in fault


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("smallest", [0.0, -0.5], ids=["singular", "indefinite"])
def test_a_singular_or_indefinite_system_is_told_with_group_and_cure(smallest, dtype):
    singular = matrix(smallest=smallest)
    _, faults = faults_after_a_step(bilevel(Implicit("fit", "cg", 20), hessian=singular), dtype)
    assert len(faults) == 1 and "group 'phi'" in faults[0] and "give Implicit damping=" in faults[0]
    _, cured = faults_after_a_step(bilevel(Implicit("fit", "cg", 20, damping=0.6), hessian=singular), dtype)
    assert cured == []


def test_the_smallest_curvature_says_how_much_damping_is_wanted():
    indefinite = matrix(smallest=-0.5)
    curvature = float(estimate(bilevel(Implicit("fit", "cg", 20), hessian=indefinite)).metrics["smallest_curvature"])
    assert -0.5 - 1e-12 <= curvature < 0.0
    full = matrix()
    found = estimate(bilevel(Implicit("fit", "cg", 20, damping=0.7), hessian=full)).metrics["smallest_curvature"]
    assert 0.5 - 1e-12 <= float(found) <= 2.0  # damping is taken out again


def test_an_inner_update_that_is_never_trained_is_refused():
    learner = bilevel(Implicit("fit"))
    untrained = replace(learner, stages=learner.stages[:1], virtual={"fit": learner.updates["fit"]})
    with pytest.raises(ConfigError, match="'judge': Implicit looks at the optimum of 'fit', which stands in no stage"):
        untrained.ready()
    judged = replace(learner.updates["judge"], gradient=Implicit("fit", steps=5))
    replace(untrained, stages=((judged,),)).ready()


def test_a_linear_inner_loss_has_a_singular_hessian():
    def linear(tree, batches):
        return (tree["theta"]["x"] * tree["phi"]["x"]).sum()

    _, faults = faults_after_a_step(bilevel(Implicit("fit"), inner=linear))
    assert len(faults) == 1 and "singular" in faults[0]


def test_a_non_finite_hypergradient_is_told():
    def cusp(tree, batches):
        return (tree["theta"]["x"] - 1).square().sum() + 0 * (tree["phi"]["x"] - tree["phi"]["x"][0]).abs().sqrt().sum()

    _, faults = faults_after_a_step(bilevel(Implicit("fit"), outer=cusp))
    assert len(faults) == 1 and "update 'judge' (group 'phi')" in faults[0] and "NaN" in faults[0]


def test_an_unreached_meta_parameter_is_told_before_the_first_step():
    learner = bilevel(Implicit("fit"), inner=lambda tree, _: tree["theta"]["x"].square().sum())
    learner = learner.with_tensors(spare={"y": torch.ones(2)})
    update = Update("spare", "spare", lambda tree, _: tree["theta"]["x"].sum(), sgd(0.1), Implicit("fit"))
    learner = learner.with_stage_before("fit", update).ready()
    with pytest.raises(ConfigError, match=r"update 'spare': parameters y of group 'spare' do not reach its loss"):
        learner.check(learner.init(torch.float64), {})


def test_flags_stay_and_are_seen_under_vmap():
    learner = bilevel(Implicit("fit", "neumann", 50, scale=1.2))
    good = bilevel(Implicit("fit", "neumann", 50, scale=0.9))
    state, _ = faults_after_a_step(learner)
    state, _ = good.step(state, {}, {"judge"})
    assert state.flags["diverged/judge"]
    stacked = tree_map(lambda x: torch.stack([x, x]), learner.init(torch.float64))
    stacked, _ = torch.vmap(lambda s: learner.step(s, {}, {"judge"}))(stacked)
    assert stacked.flags["diverged/judge"].tolist() == [True, True]
    assert len(learner.faults(stacked)) == 1


# -- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"solver": "lu"}, "solver must be one of cg, neumann, fixed_point, identity, not 'lu'"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"solver": "fixed_point", "damping": 0.1}, "damping belongs to cg and neumann, not to fixed_point"),
        ({"solver": "neumann", "scale": 0.0}, "scale must be positive"),
        ({"scale": 0.1}, "scale belongs to neumann and identity, not to cg"),
    ],
)
def test_settings_that_do_not_belong_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Implicit("fit", **settings)


@pytest.mark.parametrize(
    ("gradient", "optimizer", "words"),
    [
        (Implicit("fit"), adamw(0.1), "with weight decay, adamw .* does not rest where a gradient is zero"),
        (Implicit("fit", "identity"), adamw(0.1), "put the decay into the inner loss"),
        (Implicit("fit"), clip_by_global_norm(sgd(0.1, 0.1), 1.0), "clip_by_global_norm .* does not rest"),
        (Implicit("fit", "fixed_point"), adam(0.1), "that of adam has no derivative"),
        (Implicit("fit", "fixed_point"), cosine_decay(sgd(0.1), 10), "no fixed form"),
        (Implicit("fit", "neumann"), adam(0.1), "neumann needs scale="),
    ],
)
def test_optimizers_under_which_the_formula_does_not_hold_are_refused(gradient, optimizer, words):
    learner = bilevel(gradient, optimizer)
    with pytest.raises(ConfigError, match=words):
        learner.check(learner.init(torch.float64), {})


def test_adamw_without_decay_and_clipping_without_decay_are_taken():
    theta, expected = closed_form(matrix())
    for optimizer in (adamw(0.1, weight_decay=0.0), clip_by_global_norm(adam(0.1), 1.0)):
        assert torch.allclose(estimate(bilevel(Implicit("fit"), optimizer), theta=theta).grads["x"], expected)


def test_the_inner_group_itself_is_refused():
    learner = bilevel(Implicit("fit"))
    update = replace(learner.updates["judge"], params="theta")
    with pytest.raises(ConfigError, match="'judge': Implicit moves another group than its inner Update"):
        update.gradient.check(update, learner.init())


def test_a_flag_that_the_state_does_not_know_yet_is_made():
    learner = bilevel(Implicit("fit", "neumann", 50, scale=1.2))
    state = learner.init(torch.float64)
    state = state._replace(flags={k: v for k, v in state.flags.items() if not k.startswith("diverged")})
    state, _ = learner.step(state, {}, {"judge"})
    assert len(learner.faults(state)) == 1


def test_a_foreign_optimizer_is_refused():
    import torchopt

    learner = bilevel(Implicit("fit"), torchopt.rmsprop(0.1))
    with pytest.raises(ConfigError, match=r"it cannot be known where .* comes to rest"):
        learner.check(learner.init(torch.float64), {})


def test_inner_updates_without_a_hessian_are_refused():
    with pytest.raises(ConfigError, match="one inner Update has one optimum"):
        Implicit(("fit", "judge")).resolve(lambda name: Update(name, name, None, sgd(0.1)))
    for gradient in (Polyak("x"), Unrolled("y", first_order=True), Implicit("y")):
        with pytest.raises(ConfigError, match="is not the gradient of a function"):
            Implicit("fit").resolve(lambda name, g=gradient: Update(name, name, None, sgd(0.1), g))


def test_an_outer_update_cannot_differentiate_through_it():
    learner = bilevel(Implicit("fit"))
    top = Update("top", "rate", lambda tree, _: tree["theta"]["x"].sum(), sgd(0.1), Unrolled(("judge", "fit")))
    with pytest.raises(ConfigError, match="estimates its gradient with Implicit, whose result cannot"):
        learner.with_tensors(rate={"x": torch.ones(())}).with_stage_before("judge", top).ready()


def test_an_inner_update_may_itself_be_unrolled(central_differences, flat):
    """Three levels: Implicit at the optimum of a middle Update that is learned through steps of the lowest."""
    low_hessian = matrix(1)

    def low(tree, batches):
        theta, middle = tree["theta"]["x"], tree["middle"]["x"]
        return theta @ low_hessian @ theta / 2 - (middle * theta).sum()

    def middle(tree, batches):
        return (tree["theta"]["x"] - tree["phi"]["x"] ** 2).square().sum() + 0.1 * tree["middle"]["x"].square().sum()

    def top(tree, batches):
        return (tree["middle"]["x"] - 1).square().sum()

    learner = Learner(
        modules={},
        tensors={name: {"x": torch.linspace(0.2, 1, D)} for name in ("theta", "middle", "phi")},
        stages=(
            (Update("top", "phi", top, sgd(0.1), Implicit("middle", iterations=10)),),
            (Update("middle", "middle", middle, sgd(0.3), Unrolled("low", steps=2)),),
            (Update("low", "theta", low, sgd(0.2)),),
        ),
        act=no_policy,
    ).ready()
    state, update = learner.init(torch.float64), learner.updates["middle"]

    def optimum(phi):
        """The middle problem is quadratic: one Newton step from anywhere."""
        at = state.with_params("phi", phi)

        def slope(x):
            return update.gradient(update, at.with_params("middle", {"x": x}), {}).grads["x"]

        x = state.tree["middle"]["x"]
        hessian = torch.stack([slope(x + e) - slope(x) for e in torch.eye(D, dtype=torch.float64)])
        return x - torch.linalg.solve(hessian, slope(x))

    point = state.tree["phi"]
    expected, noise = central_differences(lambda phi: (top({"middle": {"x": optimum(phi)}}, {}), None), point)
    state = state.with_params("middle", {"x": optimum(point)})
    outer = learner.updates["top"]
    found = outer.gradient(outer, state, {}).grads
    assert flat(found).norm() > 1000 * noise
    assert (flat(found) - flat(expected)).norm() < 1e-7 * flat(found).norm()


# -- solvers ----------------------------------------------------------------------------------------------------


def test_conjugate_gradients_stop_at_their_tolerance():
    """At the first iterate whose residual is small enough, and not before."""
    a, b = matrix(), torch.linspace(1, 2, D, dtype=torch.float64)

    def solved(iterations, tolerance):
        return linear_solvers.conjugate_gradient(lambda x: a @ x, b, iterations, tolerance)

    residuals = {n: float(solved(n, 0.0)[1]) for n in range(1, D + 1)}
    for tolerance in (3e-1, 3e-2, 1e-3):
        first = next(n for n, residual in residuals.items() if residual <= tolerance)
        x, residual, singular, _ = solved(20, tolerance)
        assert torch.equal(x, solved(first, 0.0)[0]) and not singular
        assert torch.allclose(residual, (b - a @ x).norm() / b.norm(), rtol=1e-9)
    assert len({next(n for n, r in residuals.items() if r <= t) for t in (3e-1, 3e-2, 1e-3)}) == 3
    x, *_ = solved(20, None)
    assert (b - a @ x).norm() < 1e-13 * b.norm()


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_conjugate_gradients_do_not_depend_on_the_scale_of_either_side(size):
    b = torch.linspace(1, 2, D, dtype=torch.float64)
    for a, singular in ((matrix(), False), (matrix(smallest=0.0), True)):
        for left, right in ((size, 1.0), (1.0, size)):
            x, _, flagged, _ = linear_solvers.conjugate_gradient(lambda x, a=left * a: a @ x, right * b, 20)
            assert bool(flagged) == singular
            if not singular:
                assert torch.allclose(x * left / right, torch.linalg.solve(a, b), rtol=1e-10)


def test_a_zero_right_hand_side_has_the_zero_solution():
    a, b = matrix(), torch.zeros(D, dtype=torch.float64)
    x, residual, singular, curvature = linear_solvers.conjugate_gradient(lambda x: a @ x, b, 5)
    assert not x.any() and residual == 0 and not singular and curvature == 0
    x, residual = linear_solvers.neumann(lambda x: a @ x, b, 5, 0.5)
    assert not x.any() and residual == 0
