"""Recipes: real interaction with real environments, made on this machine into Minari datasets."""

from metarl.data.recipes.base import Plane, Recipe, rollout
from metarl.data.recipes.datasets import find, load_recipe, make_dataset, recipe_dataset_id

__all__ = ["Plane", "Recipe", "find", "load_recipe", "make_dataset", "recipe_dataset_id", "rollout"]
