"""The four-room tasks: experts on shortest paths, and a medium level that gets around in all rooms but rarely does all.

Episodes start in the lower left room and end at the goal (terminated) or after 200 steps (truncated). In `medium` most
of them walk from one random point to the next, so that every way between rooms is there many times, the whole way to
the goal by chance. The three tasks move alike: what is learnt on one of going from here to there holds on the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from metarl.data.minari import Episode
from metarl.data.recipes.base import Plane, Policy, Recipe, first, rollout
from metarl.envs.four_rooms import GOAL, KEY, Task, controller
from metarl.envs.instantiate import instantiate
from metarl.envs.navigation import RADIUS, Point
from metarl.envs.registration import FOUR_ROOMS_STEPS

HOLD = (5, 20)  # steps that a uniform action is kept
RANDOM = 0.15  # share of uniform episodes in medium
STAY = 0.75  # share of the legs of `wandering` that stay in the room, so that cloning stays there too
PLACES = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)  # both coordinates of random points, or minus them


class FourRooms(Recipe):
    """metarl/FourRooms-v0."""

    name: ClassVar[str] = "four_rooms"
    version: ClassVar[int] = 2
    env_id: ClassVar[str] = "metarl/FourRooms-v0"
    task: ClassVar[Task] = "plain"
    named: ClassVar[dict[Point, float]] = {GOAL: 0.01, KEY: 0.03}  # point -> share of the legs of `wandering` to it
    levels = {
        "random": "uniform actions, each held for 5 to 20 steps",
        "medium": (
            "85 % of the episodes walk on shortest paths from one random point to the next, 75 % of these legs within "
            "the room, 1 % to the goal and 3 % to the key, action noise of 0.5; 15 % are uniform actions held for 5 to "
            "20 steps"
        ),
        "expert": "shortest paths to the goal, action noise of 0.1",
    }
    judged: ClassVar[tuple[str, ...]] = ()

    def make(self, level: str, size: int, seed: int) -> Iterator[Episode]:
        """See `Recipe.make`; the last episode is cut, and truncated, where the size is reached."""
        return first(size, self._episodes(level, seed))

    def plane(self, obs: NDArray[Any]) -> Plane:
        """Where the point is."""
        return Plane(obs[:, 0], obs[:, 1], "x", "y")

    def _episodes(self, level: str, seed: int) -> Iterator[Episode]:
        env = instantiate(self.env_spec())
        try:
            i = 0
            while True:
                rng = self.generator(level, seed, i)
                reset_seed = int(rng.integers(2**31))
                behaviour = level
                if level == "medium":
                    behaviour = "random" if rng.random() < RANDOM else "wandering"
                yield rollout(env, self._policy(behaviour, rng), reset_seed, behaviour)
                i += 1
        finally:
            env.close()

    def _policy(self, behaviour: str, rng: Generator) -> Policy:
        if behaviour == "random":
            return held(rng)
        if behaviour == "wandering":
            return self._wandering(rng)
        act = controller(self.task, 0.1, int(rng.integers(2**31)))
        return lambda step, obs: act(obs)

    def _wandering(self, rng: Generator) -> Policy:
        target: Point = GOAL
        act: Callable[[NDArray[Any]], NDArray[np.float32]]

        def policy(step: int, obs: NDArray[Any]) -> NDArray[np.float32]:
            nonlocal target, act
            if step == 0 or math.dist(obs[:2].tolist(), target) <= RADIUS:
                target = self._target(rng, obs)
                act = controller(self._knows(rng), 0.5, int(rng.integers(2**31)), target)
            return act(obs)

        return policy

    def _target(self, rng: Generator, obs: NDArray[Any]) -> Point:
        share = rng.random()
        for point, of_legs in self.named.items():
            share -= of_legs
            if share < 0:
                return point
        x, y = rng.choice(PLACES, 2).tolist()
        left, lower = obs[:2] < 0 if share < STAY else rng.random(2) < 0.5
        return -x if left else x, -y if lower else y

    def _knows(self, rng: Generator) -> Task:
        return "plain"


class FourRoomsRiver(FourRooms):
    """metarl/FourRoomsRiver-v0."""

    name: ClassVar[str] = "four_rooms_river"
    env_id: ClassVar[str] = "metarl/FourRoomsRiver-v0"
    task: ClassVar[Task] = "river"
    levels = {
        "random": FourRooms.levels["random"],
        "medium": (
            "85 % of the episodes walk on shortest paths from one random point to the next, 75 % of these legs within "
            "the room, 1 % to the goal and 3 % to the key, half through the river and half round it where that can be, "
            "action noise of 0.5; 15 % are uniform actions held for 5 to 20 steps"
        ),
        "expert": "shortest dry paths to the goal, by the bridge, action noise of 0.1",
    }

    def _knows(self, rng: Generator) -> Task:
        return "river" if rng.random() < 0.5 else "plain"


class FourRoomsKey(FourRooms):
    """metarl/FourRoomsKey-v0."""

    name: ClassVar[str] = "four_rooms_key"
    env_id: ClassVar[str] = "metarl/FourRoomsKey-v0"
    task: ClassVar[Task] = "key"
    named: ClassVar[dict[Point, float]] = {GOAL: 0.03, KEY: 0.03}
    levels = {
        "random": FourRooms.levels["random"],
        "medium": (
            "85 % of the episodes walk on shortest paths from one random point to the next, 75 % of these legs within "
            "the room, 3 % to the key and 3 % to the goal, action noise of 0.5; 15 % are uniform actions held for 5 to "
            "20 steps"
        ),
        "expert": "shortest paths to the key and from there to the goal, action noise of 0.1",
    }


def held(rng: Generator) -> Policy:
    """Uniform actions for one episode, each for some steps: uniform steps alone would stay where they start."""
    actions = np.empty((0, 2), np.float32)
    while len(actions) < FOUR_ROOMS_STEPS:
        action = rng.uniform(-1, 1, (1, 2)).astype(np.float32)
        actions = np.concatenate([actions, action.repeat(rng.integers(*HOLD, endpoint=True), 0)])
    return lambda step, obs: actions[step]
