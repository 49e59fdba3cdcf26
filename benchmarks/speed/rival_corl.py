"""The contestant `corl`: trainers of a checkout of CORL (github.com/corl-team/CORL), called as its `train` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.checkout import digest, load
from benchmarks.speed.data import columns, repeated
from benchmarks.speed.worker import Run

FOLDER = Path("algorithms/offline")
DEVICE = "cpu"


def prepare(options: Mapping[str, Any]) -> tuple[dict[str, Run], dict[str, Any]]:
    """Its networks, optimisers, replay buffer and trainer with the settings of its TrainConfig."""
    torch.set_num_threads(1)
    path = Path(options["checkout"]) / FOLDER / options.get("file", "td3_bc.py")
    corl = load(path, ("d4rl", "gym", "pyrallis", "wandb"))
    corl.set_seed(0)
    trainer = TRAINERS[path.name](corl, corl.TrainConfig(), options["obs_dim"], options["action_dim"])
    buffer = _buffer(corl, options)
    step = repeated(lambda: trainer.train([column.to(DEVICE) for column in buffer.sample(options["batch"])]))
    return {"step": step}, {"versions": {"torch": torch.__version__}, "sha256": digest(path)}


def _buffer(corl: Any, options: Mapping[str, Any]) -> Any:
    data = columns(options)
    buffer = corl.ReplayBuffer(options["obs_dim"], options["action_dim"], options["rows"], DEVICE)
    buffer.load_d4rl_dataset(
        {
            "observations": data["obs"],
            "actions": data["action"],
            "rewards": data["reward"],
            "next_observations": data["next_obs"],
            "terminals": data["terminated"],
        }
    )
    return buffer


def _td3_bc(corl: Any, config: Any, obs_dim: int, action_dim: int) -> Any:
    actor = corl.Actor(obs_dim, action_dim, 1.0)
    critics = [corl.Critic(obs_dim, action_dim) for _ in range(2)]
    return corl.TD3_BC(
        max_action=1.0,
        actor=actor,
        actor_optimizer=_adam(actor, 3e-4),
        critic_1=critics[0],
        critic_1_optimizer=_adam(critics[0], 3e-4),
        critic_2=critics[1],
        critic_2_optimizer=_adam(critics[1], 3e-4),
        discount=config.discount,
        tau=config.tau,
        device=DEVICE,
        policy_noise=config.policy_noise,
        noise_clip=config.noise_clip,
        policy_freq=config.policy_freq,
        alpha=config.alpha,
    )


def _iql(corl: Any, config: Any, obs_dim: int, action_dim: int) -> Any:
    q, v = corl.TwinQ(obs_dim, action_dim), corl.ValueFunction(obs_dim)
    actor = corl.GaussianPolicy(obs_dim, action_dim, 1.0, dropout=config.actor_dropout)
    return corl.ImplicitQLearning(
        max_action=1.0,
        actor=actor,
        actor_optimizer=_adam(actor, config.actor_lr),
        q_network=q,
        q_optimizer=_adam(q, config.qf_lr),
        v_network=v,
        v_optimizer=_adam(v, config.vf_lr),
        discount=config.discount,
        tau=config.tau,
        device=DEVICE,
        beta=config.beta,
        iql_tau=config.iql_tau,
        max_steps=config.max_timesteps,
    )


def _cql(corl: Any, config: Any, obs_dim: int, action_dim: int) -> Any:
    layers, orthogonal = config.q_n_hidden_layers, config.orthogonal_init
    critics = [corl.FullyConnectedQFunction(obs_dim, action_dim, orthogonal, layers) for _ in range(2)]
    actor = corl.TanhGaussianPolicy(
        obs_dim, action_dim, 1.0, log_std_multiplier=config.policy_log_std_multiplier, orthogonal_init=orthogonal
    )
    kept = (
        "discount alpha_multiplier use_automatic_entropy_tuning backup_entropy policy_lr qf_lr soft_target_update_rate "
        "bc_steps target_update_period cql_n_actions cql_importance_sample cql_lagrange cql_target_action_gap cql_temp "
        "cql_alpha cql_max_target_backup cql_clip_diff_min cql_clip_diff_max"
    )
    return corl.ContinuousCQL(
        critic_1=critics[0],
        critic_1_optimizer=_adam(critics[0], config.qf_lr),
        critic_2=critics[1],
        critic_2_optimizer=_adam(critics[1], config.qf_lr),
        actor=actor,
        actor_optimizer=_adam(actor, config.policy_lr),
        target_entropy=-float(action_dim),
        device=DEVICE,
        **{name: getattr(config, name) for name in kept.split()},
    )


TRAINERS: Mapping[str, Callable[[Any, Any, int, int], Any]] = {"td3_bc.py": _td3_bc, "iql.py": _iql, "cql.py": _cql}


def _adam(module: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=rate)
