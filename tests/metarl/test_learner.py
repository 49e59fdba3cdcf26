"""The learner: due sets, flags, and mistakes that must be loud."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
import torchopt
from torch import Tensor
from torch import nn as torch_nn

from algorithms.bc import BC
from algorithms.iql import IQL
from algorithms.sac_bc import SACBC
from algorithms.td3_bc import TD3BC
from metarl import Learner, NoiseSpec, Polyak, Role, Spec, Track, Unrolled, Update, adam, momentum, nn, noise_for, sgd
from metarl.errors import ConfigError
from objectives.fixed import Fixed
from objectives.gorl import GORL, GuidingNet

SPEC = Spec(obs_dim=3, action_dim=2, max_action=(1.0, 0.5))
X = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)


def act(tree, obs, carry, noise, deterministic):
    return obs, carry


def fit(tree, batches) -> Tensor:
    return (X @ tree["net"]["w"] * tree["meta"]["scale"] - 1).square().mean()


def outer(tree, batches) -> Tensor:
    return (X @ tree["net"]["w"] - 0.5).square().mean()


def bilevel(gradient=None, meta_loss=outer, inner_loss=fit, meta=None, **changes) -> Learner:
    """One group that is fitted, and one that scales its loss."""
    gradient = gradient or Unrolled("net", sgd(0.1))
    learner = Learner(
        modules={},
        tensors={
            "net": {"w": torch.tensor([0.3, -0.2])},
            "meta": meta or {"scale": torch.tensor(1.5)},
        },
        stages=(
            (Update("meta", "meta", meta_loss, sgd(0.1), gradient),),
            (Update("net", "net", inner_loss, sgd(0.1)),),
        ),
        act=act,
    )
    return replace(learner, **changes)


# -- due -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "stop", "every", "expected"),
    [
        (0, None, 1, set(range(1, 13))),
        (0, None, 3, {3, 6, 9, 12}),
        (4, None, 1, set(range(5, 13))),
        (0, 4, 1, {1, 2, 3, 4}),
        (3, 9, 3, {6, 9}),
        (3, 8, 3, {6}),
        (2, 11, 4, {4, 8}),
    ],
)
def test_an_update_is_due_after_start_up_to_stop_at_multiples_of_every(start, stop, every, expected):
    update = Update("u", "net", outer, sgd(0.1), start=start, stop=stop, every=every)
    assert {step for step in range(13) if update.due(step)} == expected
    learner = Learner({}, ((update,),), act, tensors={"net": {"w": torch.ones(2)}}).ready()
    assert {step for step in range(13) if learner.due(step) == {"u"}} == expected


def test_a_bilevel_update_is_due_only_with_its_inner():
    learner = bilevel()
    (meta,), (net,) = learner.stages
    learner = replace(learner, stages=((replace(meta, every=4),), (replace(net, every=2, start=5, stop=12),))).ready()
    assert [learner.due(step) for step in (2, 4, 6, 8, 12, 16)] == [
        frozenset(),
        frozenset(),
        {"net"},
        {"meta", "net"},
        {"meta", "net"},
        frozenset(),
    ]


def test_a_bilevel_update_waits_for_no_virtual_inner():
    learner = bilevel(Unrolled("plain", sgd(0.1)))
    (meta,), _ = learner.stages
    plain = Update("plain", "net", fit, sgd(0.1), every=7)
    learner = replace(learner, stages=((meta,),), virtual={"plain": plain}).ready()
    assert learner.due(1) == {"meta"}


def test_a_schedule_that_never_comes_is_refused():
    with pytest.raises(ValueError, match="every must be at least 1"):
        Update("u", "net", fit, sgd(0.1), every=0)
    with pytest.raises(ValueError, match=r"stop \(3\) must lie after start \(3\)"):
        Update("u", "net", fit, sgd(0.1), start=3, stop=3)


def test_only_due_updates_move():
    learner = bilevel().ready()
    state = learner.init(torch.float64)
    new, metrics = learner.step(state, {}, {"net"})
    assert torch.equal(new.tree["meta"]["scale"], state.tree["meta"]["scale"])
    assert not torch.equal(new.tree["net"]["w"], state.tree["net"]["w"])
    assert set(metrics) == {"net/loss"}
    same, metrics = learner.step(state, {}, ())
    assert same is state and metrics == {}


# -- names and structure -------------------------------------------------------------------------------------


def test_a_misspelt_inner_suggests_the_right_one():
    with pytest.raises(ConfigError, match=r"update 'meta': there is no Update called 'nett'. Did you mean 'net'\?"):
        bilevel(Unrolled("nett", sgd(0.1))).ready()
    with pytest.raises(ConfigError, match=r"update 'meta': .*'plane'"):
        bilevel(Unrolled("net", sgd(0.1), contrast="plane")).ready()


def test_a_contrast_that_moves_another_group_is_refused():
    learner = bilevel(Unrolled("net", sgd(0.1), contrast="other"))
    learner = learner.with_tensors(third={"x": torch.ones(2)})
    other = Update("other", "third", lambda tree, batches: tree["third"]["x"].sum(), sgd(0.1))
    with pytest.raises(ConfigError, match=r"contrast 'other' moves 'third'.*inner, which moves net"):
        learner.with_virtual(other).ready()


@pytest.mark.parametrize("objectives", [(GORL(every=2), Fixed()), (Fixed(), GORL(every=2))])
def test_a_second_objective_that_overwrites_the_first_is_refused(assemble, objectives):
    with pytest.raises(ConfigError, match="two objectives rewrite the loss of actor"):
        assemble(TD3BC(hidden=(4,)), *objectives)


def test_a_misspelt_stage_or_group_or_source_suggests_the_right_one():
    u = Update("u", "nett", outer, sgd(0.1))
    with pytest.raises(ConfigError, match=r"no Update called 'nte' in any stage.* Did you mean 'net'\?"):
        bilevel().with_stage_before("nte", u)
    with pytest.raises(ConfigError, match=r"no Update called 'nte' in any stage"):
        bilevel().with_update_beside("nte", u)
    with pytest.raises(ConfigError, match=r"update 'u': there is no parameter group 'nett'. Did you mean 'net'\?"):
        bilevel(stages=((u,),)).ready()
    target = Update("t", "target", None, sgd(0.1), Polyak("nett"))
    with pytest.raises(ConfigError, match=r"no parameter group 'nett' to follow. Did you mean 'net'\?"):
        bilevel(stages=((target,),)).ready()


def test_a_reader_that_does_not_exist_is_refused():
    sound = bilevel().with_roles(guide=Role("guide", 3, reader="meta"))
    assert sound.ready().roles["guide"].reader == "meta"
    with pytest.raises(ConfigError, match=r"role 'guide': there is no Update called 'mta'.* Did you mean 'meta'\?"):
        bilevel().with_roles(guide=Role("guide", 3, reader="mta")).ready()


def test_a_circle_names_its_path():
    learner = bilevel()
    (meta,), (net,) = learner.stages
    net = replace(net, gradient=Unrolled("meta", sgd(0.1)))
    with pytest.raises(ConfigError, match="in a circle: meta -> net -> meta"):
        replace(learner, stages=((meta,), (net,))).ready()
    with pytest.raises(ConfigError, match="in a circle: meta -> meta"):
        bilevel(Unrolled("meta", sgd(0.1))).ready()


def test_two_updates_of_one_name_are_refused():
    _, (net,) = bilevel().stages
    with pytest.raises(ConfigError, match="two Updates are called 'net'"):
        bilevel(stages=((net,), (net,))).ready()
    with pytest.raises(ConfigError, match="two Updates are called 'net'"):
        bilevel(virtual={"net": net}).ready()


def test_two_updates_of_one_group_in_one_stage_are_refused_unless_never_together():
    _, (net,) = bilevel().stages
    again = replace(net, name="again")
    with pytest.raises(ConfigError, match="'net' and 'again' move group 'net' in one stage"):
        bilevel(stages=((net, again),)).ready()
    bilevel(stages=((net,), (again,))).ready()
    warm, main = replace(net, stop=10), replace(again, start=10)
    bilevel(stages=((warm, main),)).ready()
    bilevel(stages=((main, warm),)).ready()
    with pytest.raises(ConfigError, match="in one stage"):
        bilevel(stages=((replace(net, stop=11), main),)).ready()


def test_unlike_optimizers_of_one_group_are_refused():
    _, (net,) = bilevel().stages
    for other in (sgd(0.2), momentum(0.1), adam(0.1), lambda tree: sgd(0.1)):
        again = replace(net, name="again", optimizer=other)
        with pytest.raises(ConfigError, match="'net' and 'again' share group 'net' but have unlike optimisers"):
            bilevel(stages=((net,), (again,))).ready()
    with pytest.raises(ConfigError, match="unlike optimisers"):
        bilevel(virtual={"again": replace(net, name="again", optimizer=sgd(0.2))}).ready()
    bilevel(stages=((net,), (replace(net, name="again", optimizer=sgd(0.1)),))).ready()  # equal is alike


@pytest.mark.parametrize(("every", "inner_every", "fine"), [(4, 2, True), (3, 2, False), (1, 2, False), (2, 2, True)])
def test_a_period_that_is_no_multiple_of_the_inners_is_refused(every, inner_every, fine):
    learner = bilevel()
    (meta,), (net,) = learner.stages
    learner = replace(learner, stages=((replace(meta, every=every),), (replace(net, every=inner_every),)))
    if fine:
        learner.ready()
        return
    with pytest.raises(ConfigError, match=f"every={every} is no multiple of every={inner_every} of 'net'"):
        learner.ready()


def test_gorl_refuses_a_period_that_misses_the_actor(assemble):
    with pytest.raises(ConfigError, match="every=5 is no multiple of every=2 of 'actor'"):
        assemble(TD3BC(hidden=(4,)), GORL(every=5))


def test_a_module_with_buffers_is_refused():
    class Counting(torch_nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch_nn.Parameter(torch.ones(2))
            self.register_buffer("seen", torch.zeros(()))

    with pytest.raises(ConfigError, match=r"module 'counting' has buffers.*Learner\.tensors.*Track"):
        bilevel().with_modules(counting=Counting()).ready()


def test_clashing_additions_are_refused():
    learner = bilevel()
    for add, kind in (
        (lambda: learner.with_tensors(net={"w": torch.ones(1)}), "parameter group 'net'"),
        (lambda: learner.with_modules(meta=nn.MLP([1, 1], torch.Generator())), "parameter group 'meta'"),
        (lambda: learner.with_roles(a=Role("a", 1)).with_roles(a=Role("b", 2)), "role 'a'"),
        (lambda: learner.with_noise(n=NoiseSpec((1,))).with_noise(n=NoiseSpec((2,))), "noise 'n'"),
        (
            lambda: learner.with_virtual(Update("v", "net", fit, sgd(0.1))).with_virtual(
                Update("v", "net", fit, sgd(0.1))
            ),
            "virtual Update 'v'",
        ),
    ):
        with pytest.raises(ConfigError, match=f"{kind} exists already"):
            add()


def test_objectives_refuse_a_learner_without_policy_terms(assemble):
    for objective in (Fixed(), GORL()):
        with pytest.raises(ConfigError, match="exposes no policy improvement and constraint"):
            assemble(BC(hidden=(4,)), objective)


def test_the_same_objective_twice_is_refused(assemble):
    with pytest.raises(ConfigError, match="two objectives of one kind cannot be attached"):
        assemble(TD3BC(hidden=(4,)), GORL(), GORL())


def test_objectives_leave_the_learner_that_they_were_given(spec):
    generator = torch.Generator().manual_seed(0)
    base = TD3BC(hidden=(4,)).build(spec, generator)
    before = (dict(base.modules), base.stages, dict(base.roles), dict(base.noise))
    GORL(signal="standardized").attach(base, spec, generator)
    assert (base.modules, base.stages, base.roles, base.noise) == before


# -- silent zeros --------------------------------------------------------------------------------------------


def check(learner):
    learner = learner.ready()
    learner.check(learner.init(torch.float64), {})


def test_a_sound_learner_passes_its_check():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(bilevel())


def test_a_meta_parameter_that_reaches_no_loss_is_named():
    meta = {"scale": torch.tensor(1.5), "idle": torch.ones(3)}
    with pytest.raises(ConfigError, match="parameters idle of group 'meta' do not reach its loss"):
        check(bilevel(meta=meta))


def test_a_direct_parameter_that_reaches_no_loss_is_named():
    net = Update("net", "net", lambda tree, batches: tree["meta"]["scale"].square(), sgd(0.1))
    learner = bilevel(stages=((net,),))
    with pytest.raises(ConfigError, match="parameters w of group 'net' do not reach its loss"):
        check(learner)


def test_a_parameter_with_a_path_but_gradient_zero_is_no_error():
    check(bilevel(inner_loss=lambda tree, batches: fit(tree, batches) + 0 * tree["meta"]["scale"]))


def test_first_order_is_refused_where_the_parameter_enters_only_through_the_inner_loss():
    gradient = Unrolled("net", sgd(0.1), first_order=True)
    with pytest.raises(ConfigError, match=r"first_order=True, scale of 'meta' enter only through the inner loss"):
        check(bilevel(gradient))

    def direct(tree, batches):
        return outer(tree, batches) + tree["meta"]["scale"].square()

    check(bilevel(gradient, meta_loss=direct))
    _, (net,) = bilevel().stages
    rate = replace(net, optimizer=lambda tree: sgd(tree["meta"]["scale"]))
    learner = bilevel(Unrolled("net", first_order=True))
    check(replace(learner, stages=(learner.stages[0], (rate,))))  # a learned rate keeps its path


def test_a_name_that_a_loss_looks_up_in_vain_is_named(assemble, draw):
    learner = assemble(TD3BC(hidden=(4,), batch_size=4), GORL(batch_size=3))
    state = learner.init(torch.float64)
    batches = draw(learner)
    with pytest.raises(ConfigError, match="'guide'"):
        learner.check(state, {k: v for k, v in batches.items() if k != "guide"})
    with pytest.raises(ConfigError, match="'target_smoothing'"):
        learner.check(state, {**batches, "noise": {}})
    net = Update("net", "net", lambda tree, batches: tree["nett"]["w"].sum(), sgd(0.1))
    with pytest.raises(ConfigError, match=r"update 'net': .* called 'nett'. Did you mean 'net'\?"):
        check(bilevel(stages=((net,),)))


def test_a_fresh_adaptive_optimizer_of_one_step_warns():
    for optimizer in (adam(0.1), adam(0.1, weight_decay=0.1), lambda tree: adam(tree["meta"]["scale"])):
        with pytest.warns(UserWarning, match="update 'meta': one virtual step of a fresh adam has a useless"):
            check(bilevel(Unrolled("net", optimizer)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(bilevel(Unrolled("net", adam(0.1), steps=3)))
        check(bilevel(Unrolled("net", sgd(0.1))))


@pytest.mark.parametrize("optimizer", [adam(0.1), lambda tree: adam(tree["meta"]["scale"].exp())])
def test_cold_moments_show_until_the_real_optimizer_has_stepped(optimizer):
    learner = bilevel(Unrolled("net"))
    learner = replace(learner, stages=(learner.stages[0], (replace(learner.stages[1][0], optimizer=optimizer),)))
    learner = learner.ready()
    state, seen = learner.init(torch.float64), []
    for _ in range(3):
        state, metrics = learner.step(state, {}, {"meta", "net"})
        seen.append(metrics["meta/cold_moments/net"].item())
    assert seen == [1.0, 0.0, 0.0]


# -- flags ---------------------------------------------------------------------------------------------------


def test_a_nan_loss_sets_its_flag_and_the_flag_stays():
    def fragile(tree, batches):
        return fit(tree, batches) * batches["train"]["factor"]

    learner = bilevel(inner_loss=fragile).ready()
    state = learner.init(torch.float64)

    def step(state, factor, due):
        return learner.step(state, {"train": {"factor": torch.tensor(factor, dtype=torch.float64)}}, due)[0]

    state = step(state, 1.0, {"net"})
    assert not state.flags["nonfinite/net"]
    good = state.tree
    state = step(state, float("nan"), {"net"})
    assert state.flags["nonfinite/net"] and not state.flags["nonfinite/meta"]
    state = step(state._replace(tree=good), 1.0, {"net"})
    assert state.flags["nonfinite/net"]
    state = step(state, float("inf"), {"meta"})
    assert state.flags["nonfinite/meta"]


def test_a_nonfinite_hypergradient_of_a_finite_loss_sets_the_flag():
    def finite_value(tree, batches):
        return outer(tree, batches) + 0 * tree["meta"]["scale"].sub(1.5).abs().sqrt()

    learner = bilevel(meta_loss=finite_value).ready()
    state = learner.init(torch.float64)
    state, metrics = learner.step(state, {}, {"meta"})
    assert metrics["meta/loss"].isfinite() and state.flags["nonfinite/meta"]


def test_zero_hypergradients_in_a_row_are_counted_and_reset():
    def switched(tree, batches):
        return fit(tree, batches) * batches["train"]["on"]

    learner = bilevel(inner_loss=switched).ready()
    state, seen = learner.init(torch.float64), []
    for on in (0.0, 0.0, 0.0, 1.0, 0.0):
        batches = {"train": {"on": torch.tensor(on, dtype=torch.float64)}}
        state, _ = learner.step(state, batches, {"meta"})
        seen.append(int(state.flags["zero/meta"]))
    assert seen == [1, 2, 3, 0, 1]
    state, _ = learner.step(state, batches, {"net"})
    assert int(state.flags["zero/meta"]) == 1  # a step without it neither counts nor resets


# -- building ------------------------------------------------------------------------------------------------


def test_init_copies_the_templates_in_the_asked_dtype():
    net = nn.MLP([2, 3, 1], torch.Generator().manual_seed(0))
    learner = Learner({"net": net}, (), act, tensors={"t": {"x": torch.ones(2)}}).ready()
    state = learner.init(torch.float64)
    assert all(v.dtype == torch.float64 for group in state.tree.values() for v in group.values())
    single = learner.init()
    for name, p in net.named_parameters():
        assert torch.equal(single.tree["net"][name], p) and not single.tree["net"][name].requires_grad
        single.tree["net"][name].zero_()
        assert p.abs().sum() > 0
    single.tree["t"]["x"].zero_()
    assert learner.tensors["t"]["x"].sum() == 2


def test_with_stage_before_and_beside_place_updates():
    extra = Update("extra", "meta", outer, sgd(0.1))
    names = lambda learner: [[u.name for u in stage] for stage in learner.stages]  # noqa: E731
    assert names(bilevel().with_stage_before("net", extra)) == [["meta"], ["extra"], ["net"]]
    assert names(bilevel().with_update_beside("net", extra)) == [["meta"], ["net", "extra"]]


def test_updates_of_one_stage_see_its_entry_and_of_the_next_its_exit():
    """a <- a - (b) and b <- b - (a): beside each other both from the entry, in two stages in turn."""

    def towards(group, source):
        return Update(
            group,
            group,
            None,
            sgd(1.0),
            Track(lambda tree, batches: {"x": tree[group]["x"] - tree[source]["x"]}),
        )

    tensors = {"a": {"x": torch.tensor(5.0)}, "b": {"x": torch.tensor(2.0)}}
    a, b = towards("a", "b"), towards("b", "a")
    for stages, expected in (
        (((a, b),), (3.0, -3.0)),
        (((b, a),), (3.0, -3.0)),
        (((a,), (b,)), (3.0, -1.0)),
        (((b,), (a,)), (8.0, -3.0)),
    ):
        learner = Learner({}, stages, act, tensors=tensors).ready()
        state, _ = learner.step(learner.init(), {}, {"a", "b"})
        assert (state.tree["a"]["x"].item(), state.tree["b"]["x"].item()) == expected


def test_a_shared_group_shares_its_optimizer_state():
    """Warm-up and main move one group in turn; momentum goes on across the change."""
    _, (net,) = bilevel().stages
    slow = momentum(0.1)
    warm = replace(net, name="warm", optimizer=slow, stop=2)
    main = replace(net, name="main", optimizer=slow, start=2)
    both = bilevel(stages=((warm, main),)).ready()
    one = bilevel(stages=((replace(net, optimizer=slow),),)).ready()
    a, b = both.init(torch.float64), one.init(torch.float64)
    for step in range(1, 6):
        a, _ = both.step(a, {}, both.due(step))
        b, _ = one.step(b, {}, one.due(step))
    assert torch.equal(a.tree["net"]["w"], b.tree["net"]["w"])


def test_state_of_starts_on_a_given_tree():
    learner = bilevel().ready()
    tree = learner.init(torch.float64).tree
    tree = {**tree, "net": {"w": torch.tensor([9.0, 9.0], dtype=torch.float64)}}
    state = learner.state_of(tree)
    assert state.tree is tree and set(state.opt) == {"meta", "net"}
    assert set(state.flags) == {"nonfinite/meta", "nonfinite/net", "zero/meta"}


def test_hidden_widths_of_gorl_reach_its_module(assemble):
    learner = assemble(TD3BC(hidden=(4,)), GORL(net=GuidingNet((7, 5))))
    shapes = [tuple(p.shape) for p in learner.modules["guiding_network"].parameters()]
    assert shapes == [(1, 7), (7,), (7, 5), (5,), (5, 1), (1,)]


def test_an_optimiser_that_remembers_outside_its_state_is_refused(assemble, draw):
    learner = assemble(TD3BC(hidden=(4,), actor_optimizer=torchopt.sgd(1e-3, momentum=0.9)))
    with pytest.raises(ConfigError, match="keeps a flag outside its state"):
        learner.check(learner.init(torch.float64), draw(learner))
    plain = assemble(TD3BC(hidden=(4,), actor_optimizer=torchopt.sgd(1e-3)))
    plain.check(plain.init(torch.float64), draw(plain))


def test_whole_numbers_stay_whole():
    learner = Learner(modules={}, tensors={"step": {"count": torch.tensor(3)}}, stages=(), act=lambda *a: a)
    assert learner.init(torch.float64).tree["step"]["count"].dtype == torch.int64


# -- noise of the policy on another batch --------------------------------------------------------------------


def test_the_policys_noise_is_drawn_again_for_another_batch(spec, assemble, draw):
    """`<role>/<name>`, of the role's size, with everything else as the policy's own has it."""
    generator = torch.Generator().manual_seed(0)
    base = SACBC(hidden=(4,), batch_size=8).build(spec, generator)
    learner = base.with_roles(guide=Role("guide", 5)).with_noise_for("guide")
    assert set(learner.noise) == {"policy", "next_policy", "guide/policy"}  # not what the critic alone reads
    assert learner.noise["guide/policy"] == replace(base.noise["policy"], role="guide")
    assert learner.noise["guide/policy"].whole_shape(learner.roles) == (5, 2)
    assert {name: learner.noise[name] for name in base.noise} == base.noise
    batches = draw(learner)
    read = noise_for(batches, "guide")
    assert set(read) == {"policy"} and read["policy"] is batches["noise"]["guide/policy"]
    assert read["policy"].shape == (5, 2) and noise_for(batches, "demo") == {}
    loss = learner.hooks("test").imitation(learner.init(torch.float64).tree, batches["guide"], read)
    assert loss.isfinite() and loss.dim() == 0


def test_the_kind_of_the_noise_is_kept(spec):
    base = IQL(hidden=(4, 6), dropout=0.5, batch_size=8).build(spec, torch.Generator().manual_seed(0))
    noise = base.with_roles(guide=Role("guide", 5)).with_noise_for("guide").noise["guide/dropout"]
    assert noise == NoiseSpec((10,), role="guide", distribution="uniform")


def test_a_policy_without_noise_asks_for_none(spec):
    generator = torch.Generator().manual_seed(0)
    for algorithm in (TD3BC(hidden=(4,)), IQL(hidden=(4,))):
        base = algorithm.build(spec, generator)
        assert base.with_roles(guide=Role("guide", 5)).with_noise_for("guide").noise == base.noise


def test_the_noise_of_a_role_is_not_asked_for_twice(spec):
    base = SACBC(hidden=(4,)).build(spec, torch.Generator().manual_seed(0)).with_roles(guide=Role("guide", 5))
    with pytest.raises(ConfigError, match="noise 'guide/policy' exists already"):
        base.with_noise_for("guide").with_noise_for("guide")
    with pytest.raises(ConfigError, match=r"the policy's noise for 'guide'.* exposes no policy improvement"):
        BC(hidden=(4,)).build(spec, torch.Generator()).with_noise_for("guide")


def test_roles_of_alike_names_do_not_share_noise():
    noise = {name: torch.ones(()) for name in ("policy", "guide/policy", "guide2/policy", "guide/a/b")}
    assert set(noise_for({"noise": noise}, "guide")) == {"policy", "a/b"}
    assert noise_for({"noise": noise}, "guide2")["policy"] is noise["guide2/policy"]


def test_gorl_reads_the_guides_own_noise(assemble, draw):
    """The guiding network's gradient changes with the guide's noise; no loss of the base does."""
    learner = assemble(SACBC(hidden=(4,), batch_size=8), GORL(batch_size=5, every=2))
    state, batches = learner.init(torch.float64), draw(learner)
    other = {**batches, "noise": {**batches["noise"], "guide/policy": batches["noise"]["guide/policy"] + 1}}

    def losses(batches):
        found = Learner.estimates(learner.updates.values(), state, batches, learner.due(2))
        return {update.name: estimate.loss for update, estimate in found if estimate.loss is not None}

    one, two = losses(batches), losses(other)
    assert {name for name in one if one[name] != two[name]} == {"guiding_network"}


# -- another loss of the policy, for a while -----------------------------------------------------------------


def constant(tree, batches) -> Tensor:
    return 7 + 0 * tree["actor"]["net.layers.0.bias"].sum()


def schedule(learner):
    """(name, start, stop, whether its loss is `constant`) of the policy's Updates, in their stages."""
    moving = [u for stage in learner.stages for u in stage if u.params == "actor"]
    return [(u.name, u.start, u.stop, u.loss is constant) for u in moving]


def cloning_first(**changes):
    """TD3+BC whose policy has two Updates in turn, both of which objectives hook on."""
    base = TD3BC(hidden=(4,), batch_size=4, policy_every=1).build(SPEC, torch.Generator().manual_seed(0))
    actor = base.updates["actor"]
    early, late = replace(actor, name="early", stop=10), replace(actor, start=10)
    stages = tuple((early, late) if stage[0].name == "actor" else stage for stage in base.stages)
    policy = replace(base.policy, updates=("early", "actor"))
    return replace(base, stages=stages, policy=policy, **changes)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (None, [("early", 0, 10, True), ("actor", 10, None, True)]),
        (13, [("early", 0, 10, True), ("actor", 10, 13, True), ("actor_after", 13, None, False)]),
    ],
)
def test_a_policy_loss_that_ends_gives_the_old_one_back(stop, expected):
    learner = cloning_first().with_policy_loss(constant, stop).ready()
    assert schedule(learner) == expected
    assert learner.rewritten == {"early", "actor"}
    for step in range(1, 21):  # one Update of the policy in every step, with the loss that it should have
        (due,) = [u for u in learner.updates.values() if u.params == "actor" and u.due(step)]
        assert (due.loss is constant) == (stop is None or step <= stop)


@pytest.mark.parametrize("stop", [4, 10])
def test_a_policy_loss_that_ends_before_the_policy_begins_is_refused(stop):
    with pytest.raises(ConfigError, match=rf"a warm start of {stop} .* 'actor' begins after step 10; choose a longer"):
        cloning_first().with_policy_loss(constant, stop)


def test_both_losses_go_on_with_one_optimisers_moments():
    base = TD3BC(hidden=(4,), batch_size=4, policy_every=3).build(SPEC, torch.Generator().manual_seed(0))
    learner, old = base.with_policy_loss(constant, 5), base.updates["actor"]
    before, after = (learner.updates[name] for name in ("actor", "actor_after"))
    assert [u.name for u in learner.stages[1]] == ["actor", "actor_after"]
    assert replace(before, loss=old.loss, stop=None) == old == replace(after, name="actor", start=0)
    learner = learner.ready()
    assert set(learner.init().opt) == set(base.ready().init().opt)
    assert [step for step in range(1, 13) if "actor" in learner.due(step)] == [3]
    assert [step for step in range(1, 13) if "actor_after" in learner.due(step)] == [6, 9, 12]


def test_a_policy_loss_that_ends_is_still_no_second_objectives():
    learner = cloning_first().with_policy_loss(constant, 13)
    with pytest.raises(ConfigError, match="two objectives rewrite the loss of early, actor"):
        learner.with_policy_loss(constant)
    with pytest.raises(ConfigError, match="exposes no policy improvement"):
        BC(hidden=(4,)).build(SPEC, torch.Generator()).with_policy_loss(constant, 13)


def test_the_learner_that_was_given_is_left_as_it_was():
    base = cloning_first()
    before = schedule(base)
    base.with_policy_loss(constant, 13)
    assert schedule(base) == before and not base.rewritten
