"""metarl: bilevel experiments in offline and online reinforcement learning, composed from YAML."""

from metarl.bilevel import *  # noqa: F403
from metarl.bilevel import __all__ as _engine
from metarl.component import option
from metarl.errors import UserError
from metarl.learner import (
    Learner,
    NoiseSpec,
    PolicyTerms,
    Probe,
    Rewards,
    Role,
    Signal,
    Spec,
    Terms,
    noise_for,
    refuse_degree,
)

__version__ = "0.1.0"

__all__ = [
    *_engine,
    "Learner",
    "NoiseSpec",
    "PolicyTerms",
    "Probe",
    "Rewards",
    "Role",
    "Signal",
    "Spec",
    "Terms",
    "UserError",
    "noise_for",
    "option",
    "refuse_degree",
]
