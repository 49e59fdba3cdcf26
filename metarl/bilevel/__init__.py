"""The bilevel engine: Updates, gradient estimators, differentiable optimisers."""

from metarl.bilevel.autodiff import Params, hold_stop_gradients, stop_gradient, value_and_grad
from metarl.bilevel.direct import Direct, Polyak, Track
from metarl.bilevel.evolution import EvolutionStrategies
from metarl.bilevel.finite_difference import FiniteDifference
from metarl.bilevel.forward_mode import ForwardMode
from metarl.bilevel.implicit import Implicit
from metarl.bilevel.optimizers import (
    AdamState,
    MomentumState,
    Optimizer,
    RMSpropState,
    adam,
    adamw,
    momentum,
    rmsprop,
    sgd,
)
from metarl.bilevel.state import TrainState, optimizer_step
from metarl.bilevel.torch_optim import export_state, import_state
from metarl.bilevel.unrolled import Unrolled
from metarl.bilevel.update import Batch, Batches, Estimate, GradientEstimator, Metrics, Tree, Update
from metarl.bilevel.wrappers import ScheduledState, clip_by_global_norm, cosine_decay, linear_decay

__all__ = [
    "AdamState",
    "Batch",
    "Batches",
    "Direct",
    "Estimate",
    "EvolutionStrategies",
    "FiniteDifference",
    "ForwardMode",
    "GradientEstimator",
    "Implicit",
    "Metrics",
    "MomentumState",
    "Optimizer",
    "Params",
    "Polyak",
    "RMSpropState",
    "ScheduledState",
    "Track",
    "TrainState",
    "Tree",
    "Unrolled",
    "Update",
    "adam",
    "adamw",
    "clip_by_global_norm",
    "cosine_decay",
    "export_state",
    "hold_stop_gradients",
    "import_state",
    "linear_decay",
    "momentum",
    "optimizer_step",
    "rmsprop",
    "sgd",
    "stop_gradient",
    "value_and_grad",
]
