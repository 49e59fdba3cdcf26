"""Objectives with one fault each, in the smallest form, for `metarl check` to find; and sound ones beside them."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from metarl import (
    EvolutionStrategies,
    FiniteDifference,
    Implicit,
    NoiseSpec,
    Probe,
    Role,
    Track,
    Unrolled,
    Update,
    adam,
    nn,
    option,
    sgd,
    stop_gradient,
)


@dataclass(frozen=True)
class Sound:
    """A learned weight of the constraint per state; the faulty ones below change one line of it."""

    lr: float = option(0.1, "of the virtual step")

    def weight(self, net, tree, batch):
        return nn.call(net, tree["weight"], batch["obs"]).squeeze(-1)

    def policy_loss(self, policy, net, tree, batches):
        terms = policy.terms(tree, batches["train"], batches["noise"])
        return policy.combine(terms, self.weight(net, tree, batches["train"]))

    def outer_loss(self, policy, tree, batches):
        return policy.imitation(tree, batches["guide"], batches["noise"])

    def estimator(self, inner):
        return Unrolled(inner, sgd(self.lr))

    def network(self, spec, generator):
        return nn.MLP((spec.obs_dim, 8, 1), generator, "tanh", "sigmoid")

    def attach(self, learner, spec, generator):
        policy = learner.hooks("sound")
        net = self.network(spec, generator)
        inner = policy.updates[-1]

        def policy_loss(tree, batches):
            return self.policy_loss(policy, net, tree, batches)

        def outer_loss(tree, batches, *contrast):
            return self.outer_loss(policy, tree, batches, *contrast)

        outer = Update("weight", "weight", outer_loss, adam(1e-3), self.estimator(inner), every=2)
        return (
            learner.with_modules(weight=net)
            .with_roles(guide=Role("guide", 20))
            .with_policy_loss(policy_loss)
            .with_stage_before(inner, outer)
        )


class Detached(Sound):
    def weight(self, net, tree, batch):
        return super().weight(net, tree, batch).detach()


class Differenced(Sound):
    """A scale that the inner loss stops, seen by differences unless it is held."""

    stop = staticmethod(stop_gradient)

    def policy_loss(self, policy, net, tree, batches):
        terms = policy.terms(tree, batches["train"], batches["noise"])
        weight = self.weight(net, tree, batches["train"]) / (0.01 + self.stop(terms.constraint.mean()))
        return policy.combine(terms, weight)

    def estimator(self, inner):
        return FiniteDifference(inner, sgd(self.lr))


class DifferencedDetach(Differenced):
    stop = staticmethod(torch.Tensor.detach)


class HalfDetached(Sound):
    """One parameter is cut off, another one is never used."""

    def network(self, spec, generator):
        net = super().network(spec, generator)
        net.spare = torch.nn.Parameter(torch.zeros(2))
        return net

    def weight(self, net, tree, batch):
        params = tree["weight"]
        return nn.call(net, {**params, "layers.1.bias": params["layers.1.bias"].detach()}, batch["obs"]).squeeze(-1)


class ThroughNoGrad(Sound):
    def weight(self, net, tree, batch):
        with torch.no_grad():
            return nn.call(net, tree["weight"], batch["obs"]).squeeze(-1)


class ThroughItem(Sound):
    def policy_loss(self, policy, net, tree, batches):
        terms = policy.terms(tree, batches["train"], batches["noise"])
        return policy.combine(terms, self.weight(net, tree, batches["train"]).mean().item())


class Unused(Sound):
    def weight(self, net, tree, batch):
        return net(batch["obs"]).squeeze(-1).detach()  # the template's own parameters in place of the tree's


class FirstOrder(Sound):
    def estimator(self, inner):
        return Unrolled(inner, sgd(self.lr), first_order=True)


class FreshAdam(Sound):
    def estimator(self, inner):
        return Unrolled(inner, adam(1e-3))


class WrongRole(Sound):
    def outer_loss(self, policy, tree, batches):
        return policy.imitation(tree, batches["guied"], batches["noise"])


class WrongColumn(Sound):
    def weight(self, net, tree, batch):
        return nn.call(net, tree["weight"], batch["next_ob"]).squeeze(-1)


class WritesBatch(Sound):
    def outer_loss(self, policy, tree, batches):
        batches["guide"]["action"].clamp_(-0.9, 0.9)
        return policy.imitation(tree, batches["guide"], batches["noise"])


class WritesTheSame(Sound):
    """A write that happens to change no number here."""

    def outer_loss(self, policy, tree, batches):
        batches["guide"]["action"].clamp_(-99, 99)
        return policy.imitation(tree, batches["guide"], batches["noise"])


class WritesTemplate(Sound):
    def weight(self, net, tree, batch):
        with torch.no_grad():
            net.layers[0].bias.add_(1)
        return super().weight(net, tree, batch)


class WritesParameter(Sound):
    def weight(self, net, tree, batch):
        tree["weight"]["layers.0.bias"] += 1
        return super().weight(net, tree, batch)


class NanAtZero(Sound):
    def outer_loss(self, policy, tree, batches):
        squared = (policy.action(tree, batches["guide"]["obs"], batches["noise"]) - batches["guide"]["action"]).square()
        return squared.sum(-1).sqrt().mean()


class NanInHypergradient(Sound):
    """The policy's own gradient is finite; the hypergradient through its weight is not."""

    def weight(self, net, tree, batch):
        return (super().weight(net, tree, batch) * batch["reward"]).abs().sqrt()


class NanInSecondDerivative(Sound):
    """|x|^1.5 has a finite slope at zero and an infinite curvature, which the second virtual step needs."""

    def policy_loss(self, policy, net, tree, batches):
        batch = batches["train"]
        action = policy.action(tree, batch["obs"], batches["noise"])
        rough = (batch["reward"][:, None] * action).abs().pow(1.5)
        return super().policy_loss(policy, net, tree, batches) + rough.mean()

    def estimator(self, inner):
        return Unrolled(inner, sgd(self.lr), steps=2)


class InfiniteForward(Sound):
    def outer_loss(self, policy, tree, batches):
        return super().outer_loss(policy, tree, batches) + batches["guide"]["reward"].abs().log().mean()


class Broadcast(Sound):
    def weight(self, net, tree, batch):
        return nn.call(net, tree["weight"], batch["obs"])  # [B, 1], where the constraint is [B]

    def policy_loss(self, policy, net, tree, batches):
        terms = policy.terms(tree, batches["train"], batches["noise"])
        return (self.weight(net, tree, batches["train"]) * terms.constraint).mean() - terms.improvement.mean()


class GlobalRandomness(Sound):
    def weight(self, net, tree, batch):
        return super().weight(net, tree, batch) * torch.rand(len(batch["obs"]), dtype=batch["obs"].dtype)


class DeclaredNoise(Sound):
    """The cure of GlobalRandomness."""

    def attach(self, learner, spec, generator):
        return super().attach(learner, spec, generator).with_noise(weight=NoiseSpec((), role="train"))

    def policy_loss(self, policy, net, tree, batches):
        terms = policy.terms(tree, batches["train"], batches["noise"])
        return policy.combine(terms, self.weight(net, tree, batches["train"]) + batches["noise"]["weight"])


class Counts(Sound):
    calls = []

    def weight(self, net, tree, batch):
        self.calls.append(1)
        return super().weight(net, tree, batch) * len(self.calls)


class NumpyRandomness(Sound):
    def weight(self, net, tree, batch):
        return super().weight(net, tree, batch) * float(np.random.rand())  # noqa: NPY002  (the fault)


class Float32(Sound):
    def weight(self, net, tree, batch):
        return super().weight(net, tree, batch).float()


class Float64Only(Sound):
    def weight(self, net, tree, batch):
        eye = torch.eye(batch["obs"].shape[-1], dtype=torch.float64)
        return nn.call(net, tree["weight"], batch["obs"] @ eye).squeeze(-1)


class MixesDtypes(Sound):
    def weight(self, net, tree, batch):
        return nn.call(net, tree["weight"], batch["obs"] @ torch.eye(batch["obs"].shape[-1])).squeeze(-1)


class NotReduced(Sound):
    def outer_loss(self, policy, tree, batches):
        return (policy.action(tree, batches["guide"]["obs"], batches["noise"]) - batches["guide"]["action"]).square()


class VectorMetric(Sound):
    def outer_loss(self, policy, tree, batches):
        return super().outer_loss(policy, tree, batches), {"reward": batches["guide"]["reward"]}


class CurveOfColumns(Sound):
    """A probe whose curve keeps the network's last axis."""

    def attach(self, learner, spec, generator):
        learner = super().attach(learner, spec, generator)
        probe = Probe("weight", lambda tree, b: (b["train"]["reward"],) * 2, lambda tree, grid: grid[:, None], "x", "y")
        return learner.with_probes(weight=probe)


class FloatConstant(Sound):
    def weight(self, net, tree, batch):
        return super().weight(net, tree, batch) + torch.full((len(batch["obs"]),), 0.1)


class LossNet(Sound):
    """A learned loss of state and action beside the policy's own: its gradient by the action is what is learned."""

    def network(self, spec, generator):
        return nn.MLP((spec.obs_dim + spec.action_dim, 64, 1), generator, self.activation(), self.output())

    def activation(self):
        return "tanh"

    def output(self):
        return "softplus"

    def policy_loss(self, policy, net, tree, batches):
        terms = policy.terms(tree, batches["train"], batches["noise"])
        action = policy.action(tree, batches["train"]["obs"], batches["noise"])
        learned = nn.call(net, tree["weight"], torch.cat((batches["train"]["obs"], action), -1))
        return policy.combine(terms, 1.0) + learned.mean()


class ReluLossNet(LossNet):
    def activation(self):
        return "relu"


class Contrasted(LossNet):
    """GILD's form: the outer loss compares with a step that the learned loss had no part in."""

    def attach(self, learner, spec, generator):
        policy = learner.hooks("contrasted")

        def plain_loss(tree, batches):
            return policy.combine(policy.terms(tree, batches["train"], batches["noise"]), 1.0)

        plain = replace(learner.updates[policy.updates[-1]], name="plain", loss=plain_loss)
        return super().attach(learner.with_virtual(plain), spec, generator)

    def outer_loss(self, policy, tree, batches, contrast):
        gains = [super(Contrasted, self).outer_loss(policy, t, batches) for t in (tree, contrast)]
        return (gains[0] - gains[1]).tanh()

    def estimator(self, inner):
        return Unrolled(inner, sgd(self.lr), contrast="plain")


class OutputBias(LossNet):
    def output(self):
        return "identity"


class PlainDetach(Sound):
    """A normaliser that is a constant to the gradient, by a detach that differences cannot hold."""

    def weight(self, net, tree, batch):
        weight = super().weight(net, tree, batch)
        return weight / weight.mean().detach()


class Stopped(Sound):
    """The cure of PlainDetach."""

    def weight(self, net, tree, batch):
        weight = super().weight(net, tree, batch)
        return weight / stop_gradient(weight.mean())


class _Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


class WrongBackward(Sound):
    def weight(self, net, tree, batch):
        return _Halved.apply(super().weight(net, tree, batch))


class Swallowed(Sound):
    """A virtual step so small that Adam's eps swallows the hypergradient."""

    def estimator(self, inner):
        return Unrolled(inner, sgd(1e-8))


class NothingToLearn(Sound):
    """The outer loss looks at what the virtual step does not move."""

    def outer_loss(self, policy, tree, batches):
        return policy.q(tree, batches["guide"]["obs"], batches["guide"]["action"]).mean() + 0 * super().outer_loss(
            policy, tree, batches
        )


class ItemBranch(Sound):
    """Runs in eager only."""

    def weight(self, net, tree, batch):
        weight = super().weight(net, tree, batch)
        return weight if batch["reward"].mean().item() > 100 else weight * 2


class RaisesInAttach(Sound):
    def attach(self, learner, spec, generator):
        return learner.modules["critc"]


class ReturnsNothing(Sound):
    def attach(self, learner, spec, generator):
        super().attach(learner, spec, generator)


class WrongGroup(Sound):
    """A statistic that follows a column which no batch has."""

    def attach(self, learner, spec, generator):
        track = Update("level", "level", None, sgd(0.01), Track(lambda tree, b: {"mean": b["train"]["rewards"].mean()}))
        learner = super().attach(learner, spec, generator)
        return learner.with_tensors(level={"mean": torch.zeros(())}).with_stage_before("weight", track)


class ByEvolution(Sound):
    def estimator(self, inner):
        return EvolutionStrategies(Unrolled(inner, sgd(self.lr)))


class Carried(Sound):
    def estimator(self, inner):
        return Unrolled(inner)


class ColdForEver(Sound):
    """Carries the moments of a group that no staged Update ever steps."""

    def attach(self, learner, spec, generator):
        learner = super().attach(learner, spec, generator)
        stages = tuple(tuple(u for u in stage if u.name != "actor") for stage in learner.stages)
        return replace(learner, stages=stages).with_virtual(learner.updates["actor"])

    def estimator(self, inner):
        return Unrolled(inner)


class Truncated(Sound):
    def estimator(self, inner):
        return Unrolled(inner, sgd(self.lr), steps=3, truncate=1)


class Paired(Sound):
    """Every sample meets every other, and means to."""

    def weight(self, net, tree, batch):
        weight = super().weight(net, tree, batch)
        return (weight[:, None] - weight[None, :]).square().mean(0)


class Singular(Sound):
    def estimator(self, inner):
        return Implicit(inner)


class StandsStill(Sound):
    """A learning rate so small that nothing moves."""

    def attach(self, learner, spec, generator):
        learner = super().attach(learner, spec, generator)
        slow = tuple(
            tuple(replace(u, optimizer=adam(1e-10, eps=1e-20)) if u.name == "weight" else u for u in stage)
            for stage in learner.stages
        )
        return replace(learner, stages=slow)


class OtherBackend(Sound):
    def estimator(self, inner):
        return Unrolled(inner, sgd(self.lr), backend="torchopt")


class WithoutPolicy(Sound):
    """Brings everything itself: a weight decay learned from other rows of a regression; needs no algorithm."""

    def attach(self, learner, spec, generator):
        net = nn.MLP((spec.obs_dim, 8, 1), generator, "tanh")

        def loss(tree, batch):
            return (nn.call(net, tree["model"], batch["obs"]).squeeze(-1) - batch["reward"]).square().mean()

        def inner(tree, batches):
            squares = sum(p.square().sum() for p in tree["model"].values())
            return loss(tree, batches["train"]) + tree["decay"]["log"].exp() * squares

        def outer(tree, batches):
            return loss(tree, batches["held_out"])

        learner = (
            learner.with_modules(model=net)
            .with_tensors(decay={"log": torch.tensor(-3.0)})
            .with_roles(train=Role("train", 20), held_out=Role("held_out", 20))
        )
        decay = Update("decay", "decay", outer, adam(1e-3), self.estimator("model"))
        return replace(learner, stages=((decay,), (Update("model", "model", inner, adam(1e-3)),)))


class MisspeltInner(Sound):
    def estimator(self, inner):
        return Unrolled("actr", sgd(self.lr))
