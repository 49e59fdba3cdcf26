"""Environments: metarl's own, registered here, and others made from an id or a dataset's specification."""

from metarl.envs.make import env_spec, make_env, spec_of
from metarl.envs.registration import register, registered

register()

__all__ = ["env_spec", "make_env", "registered", "spec_of"]
