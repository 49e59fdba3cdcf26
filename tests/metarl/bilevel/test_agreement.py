"""One step, three ways to run it: eager, compiled as a whole, stacked under vmap."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_map

from algorithms.td3_bc import TD3BC
from metarl import adam, sgd
from objectives.gorl import GORL, GuidingNet

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


@pytest.fixture
def gorl(assemble):
    """TD3+BC with GORL: critic every step, actor every 2nd, guiding network every 4th."""

    def build(virtual=None, seed=0, hidden=(16, 16)):
        base = TD3BC(hidden=hidden, batch_size=24, actor_optimizer=adam(1e-3), critic_optimizer=adam(1e-3))
        objective = GORL(every=4, net=GuidingNet((8,)), optimizer=adam(1e-2), virtual=virtual, batch_size=6)
        return assemble(base, objective, seed=seed)

    return build


def run(step, learner, state, draw, dtype, steps, offset=0):
    """`steps` steps with fresh batches; the guiding network is due in some and not in others."""
    metrics = {}
    for i in range(1, steps + 1):
        state, seen = step(state, draw(learner, offset + i, dtype), learner.due(i))
        metrics |= seen
    return state, metrics


def compiled_steps(learner, backend):
    """One graph per due set, as the training loop keeps them."""
    graphs = {}

    def step(state, batches, due):
        if due not in graphs:
            graphs[due] = torch.compile(
                lambda s, b: learner.step(s, b, due), fullgraph=True, dynamic=False, backend=backend
            )
        return graphs[due](state, batches)

    return step


def close(apart, ours, theirs, tolerance):
    (state, metrics), (expected, expected_metrics) = ours, theirs
    assert apart(state.tree, expected.tree) < tolerance
    assert apart(state.opt, expected.opt) < tolerance
    assert {k: v.item() for k, v in state.flags.items()} == {k: v.item() for k, v in expected.flags.items()}
    assert apart(metrics, expected_metrics) < 10 * tolerance  # a norm of differences loses a digit
    assert any(key.startswith("guiding_network/") for key in metrics)


def check_compiled(learner, draw, apart, dtype, steps, backend):
    torch._dynamo.reset()
    state = learner.init(dtype)
    eager = run(learner.step, learner, state, draw, dtype, steps)
    ours = run(compiled_steps(learner, backend), learner, state, draw, dtype, steps)
    close(apart, ours, eager, TOLERANCE[dtype])
    torch._dynamo.reset()


def check_stacked(learners, draw, apart, dtype, steps):
    """Three seeds in one program against three programs."""
    learner = learners[0]
    states = [other.init(dtype) for other in learners]
    alone = [run(learner.step, learner, s, draw, dtype, steps, 1000 * i) for i, s in enumerate(states)]
    together, seen = tree_map(lambda *leaves: torch.stack(leaves), *states), {}
    for i in range(1, steps + 1):
        batches = [draw(learner, 1000 * k + i, dtype) for k in range(len(states))]
        stacked = tree_map(lambda *leaves: torch.stack(leaves), *batches)
        due = learner.due(i)
        together, metrics = torch.vmap(lambda s, b, due=due: learner.step(s, b, due))(together, stacked)
        seen |= metrics
    for k, expected in enumerate(alone):
        ours = tree_map(lambda leaf, k=k: leaf[k], (together, seen))
        close(apart, ours, expected, TOLERANCE[dtype])
    assert apart(alone[0][0].tree, alone[1][0].tree) > 1e-3  # the seeds differ


@pytest.mark.parametrize(
    ("virtual", "dtype"),
    [(None, torch.float64), (sgd(1e-2), torch.float32)],
    ids=["carried-adam-float64", "sgd-float32"],
)
def test_traced_step_equals_eager(gorl, draw, apart, virtual, dtype):
    check_compiled(gorl(virtual, hidden=(16,)), draw, apart, dtype, 8, "aot_eager")


@pytest.mark.parametrize("virtual", [None, sgd(1e-2)], ids=["carried-adam", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_stacked_seeds_equal_seeds_alone(gorl, draw, apart, dtype, virtual):
    check_stacked([gorl(virtual, seed) for seed in range(3)], draw, apart, dtype, 100)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("virtual", [None, sgd(1e-2)], ids=["carried-adam", "sgd"])
def test_compiled_step_equals_eager_over_a_hundred_steps(gorl, draw, apart, virtual, dtype):
    check_compiled(gorl(virtual), draw, apart, dtype, 100, "inductor")
