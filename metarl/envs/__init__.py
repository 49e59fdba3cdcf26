"""Environments: made from an id or from the specification that a dataset carries."""

from metarl.envs.make import env_spec, make_env, spec_of

__all__ = ["env_spec", "make_env", "spec_of"]
