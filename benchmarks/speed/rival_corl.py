"""The contestant `corl`: TD3+BC of a checkout of CORL (github.com/corl-team/CORL), stepped as its `train` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.checkout import digest, load
from benchmarks.speed.data import columns, repeated
from benchmarks.speed.worker import Run

FILE = Path("algorithms/offline/td3_bc.py")
DEVICE = "cpu"


def prepare(options: Mapping[str, Any]) -> tuple[dict[str, Run], dict[str, Any]]:
    """Its networks, optimisers, replay buffer and trainer with the settings of its TrainConfig."""
    torch.set_num_threads(1)
    path = Path(options["checkout"]) / FILE
    corl = load(path, ("d4rl", "gym", "pyrallis", "wandb"))
    config, obs_dim, action_dim = corl.TrainConfig(), options["obs_dim"], options["action_dim"]
    corl.set_seed(0)

    def adam(module: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), lr=3e-4)

    actor = corl.Actor(obs_dim, action_dim, 1.0)
    critics = [corl.Critic(obs_dim, action_dim) for _ in range(2)]
    trainer = corl.TD3_BC(
        max_action=1.0,
        actor=actor,
        actor_optimizer=adam(actor),
        critic_1=critics[0],
        critic_1_optimizer=adam(critics[0]),
        critic_2=critics[1],
        critic_2_optimizer=adam(critics[1]),
        discount=config.discount,
        tau=config.tau,
        device=DEVICE,
        policy_noise=config.policy_noise,
        noise_clip=config.noise_clip,
        policy_freq=config.policy_freq,
        alpha=config.alpha,
    )
    data = columns(options)
    buffer = corl.ReplayBuffer(obs_dim, action_dim, options["rows"], DEVICE)
    buffer.load_d4rl_dataset(
        {
            "observations": data["obs"],
            "actions": data["action"],
            "rewards": data["reward"],
            "next_observations": data["next_obs"],
            "terminals": data["terminated"],
        }
    )
    step = repeated(lambda: trainer.train([column.to(DEVICE) for column in buffer.sample(options["batch"])]))
    return {"step": step}, {"versions": {"torch": torch.__version__}, "sha256": digest(path)}
