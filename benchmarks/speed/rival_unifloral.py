"""The contestant `unifloral`: TD3+BC of a checkout of unifloral (github.com/EmptyJackson/unifloral), in JAX.

One of its steps draws one batch and makes two critic updates and one of the policy on it; it counts as two gradient
steps, for half of the sampling that the others do.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.speed.checkout import digest, load
from benchmarks.speed.data import columns
from benchmarks.speed.worker import Run

FILE = Path("algorithms/td3_bc.py")
SCAN = 20  # of its steps in one call of the compiled function


def prepare(options: Mapping[str, Any]) -> tuple[dict[str, Run], dict[str, Any]]:
    """A jitted scan of its own train step, as its script makes it."""
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    jax: Any = importlib.import_module("jax")
    jnp = jax.numpy
    jax.devices()  # reads XLA_FLAGS, which the checkout's file then overwrites
    path = Path(options["checkout"]) / FILE
    unifloral = load(path, ("d4rl", "gym", "wandb", "tyro"))
    args = unifloral.Args(batch_size=options["batch"])
    data = {name: jnp.array(column) for name, column in columns(options).items()}
    dataset = unifloral.Transition(
        data["obs"], data["action"], data["reward"], data["next_obs"], done=data["terminated"]
    )
    obs_mean, obs_std = dataset.obs.mean(axis=0), jnp.nan_to_num(dataset.obs.std(axis=0), nan=1.0)
    obs, action = jnp.zeros(options["obs_dim"]), jnp.zeros(options["action_dim"])
    actor = unifloral.DeterministicTanhActor(options["action_dim"], obs_mean, obs_std)
    critic = unifloral.DualQNetwork(obs_mean, obs_std)
    rng, rng_actor, rng_q = jax.random.split(jax.random.PRNGKey(0), 3)
    make = unifloral.create_train_state
    state = unifloral.AgentTrainState(
        actor=make(args, rng_actor, actor, [obs]),
        actor_target=make(args, rng_actor, actor, [obs]),
        dual_q=make(args, rng_q, critic, [obs, action]),
        dual_q_target=make(args, rng_q, critic, [obs, action]),
    )
    step = unifloral.make_train_step(args, actor.apply, critic.apply, dataset)
    scan = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=SCAN))
    carry = (rng, state)
    each = SCAN * args.num_critic_updates_per_step

    def run(steps: int) -> int:
        nonlocal carry
        for _ in range(-(-steps // each)):
            carry, _ = scan(carry)
        jax.block_until_ready(carry)
        return -(-steps // each) * each

    return {"step": run}, {"versions": {"jax": jax.__version__}, "sha256": digest(path)}
