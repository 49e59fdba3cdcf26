"""A learned loss in one file: how strongly the policy is tied to the data as a function of the state.

GORL's guiding network looks at the policy constraint of a sample; this one looks at its observation. It learns from
the same hypergradient: clone the expert tuples well after one virtual step of the policy.
"""

from dataclasses import dataclass

from metarl import Role, Unrolled, Update, adam, nn, noise_for, option, sgd


@dataclass(frozen=True)
class StateWeight:
    """A degree of constraint per state, guided by expert tuples."""

    every: int = option(2, "gradient steps between updates of the weight network")
    lr: float = option(1e-3, "Adam's learning rate of the weight network")
    hidden: tuple[int, ...] = option((32,), "widths of its hidden layers")

    def attach(self, learner, spec, generator):
        policy = learner.hooks("state_weight")
        net = nn.MLP((spec.obs_dim, *self.hidden, 1), generator, output="sigmoid")

        def policy_loss(tree, batches):
            terms = policy.terms(tree, batches["train"], batches["noise"])
            weight = nn.call(net, tree["state_weight"], batches["train"]["obs"]).squeeze(-1)
            return policy.combine(terms, weight), {**terms.metrics, "weight": weight.mean()}

        def outer_loss(tree, batches):
            return policy.imitation(tree, batches["guide"], noise_for(batches, "guide"))

        inner = policy.updates[-1]
        outer = Update(
            name="state_weight",
            params="state_weight",
            loss=outer_loss,
            optimizer=adam(self.lr),
            gradient=Unrolled(inner, sgd(3e-4)),
            every=self.every,
        )
        return (
            learner.with_modules(state_weight=net)
            .with_roles(guide=Role("guide", 20))
            .with_noise_for("guide")
            .with_policy_loss(policy_loss)
            .with_stage_before(inner, outer)
        )
