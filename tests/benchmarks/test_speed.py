"""The speed benchmark's own rival computes the same algorithm."""

import torch

from algorithms.td3_bc import TD3BC
from benchmarks.speed import textbook
from metarl import Spec
from metarl.nn import Linear


def test_the_textbook_takes_the_same_steps_as_metarl(draw):
    spec = Spec(obs_dim=3, action_dim=2, max_action=(1.0, 1.0))
    learner = TD3BC(hidden=(8,), batch_size=16).build(spec, torch.Generator().manual_seed(0)).ready()
    ours = learner.init(torch.float64)
    theirs = textbook.TD3BC(3, 2, 1.0, (8,))
    pairs = {"actor": (theirs.actor, theirs.actor_target), "critic": (theirs.critic, theirs.critic_target)}
    for name, modules in pairs.items():
        for module in modules:
            module.double()
            _copy(learner.modules[name], ours.tree[name], module)
    for step in range(1, 7):
        batches = draw(learner, seed=step)
        ours, _ = learner.step(ours, batches, learner.due(step))
        noise = batches["noise"]["target_smoothing"]
        original, torch.randn_like = torch.randn_like, lambda like, noise=noise: noise
        try:
            theirs.train_step(batches["train"])
        finally:
            torch.randn_like = original
    obs = batches["train"]["obs"]
    action, _ = learner.act(ours.tree, obs, None, None, True)
    torch.testing.assert_close(action, theirs.actor(obs), rtol=1e-10, atol=1e-12)


def _copy(template, params, module):
    """Our parameters into a torch module: weights are [in, out] here and [out, in] there."""
    names = [name for name, part in template.named_modules() if isinstance(part, Linear)]
    linears = [part for part in module.modules() if isinstance(part, torch.nn.Linear)]
    with torch.no_grad():
        for name, linear in zip(names, linears, strict=True):
            linear.weight.copy_(params[f"{name}.weight"].T)
            linear.bias.copy_(params[f"{name}.bias"])
