"""The GILD paper's demonstrations (states and actions only) as transitions, rebuilt by one-step simulation.

The public files are pickles of one array [N, O + A]; an npz holds `observations`, `actions` and `episode_starts`.
Neither has rewards or ends. In Hopper, Walker2d and HalfCheetah an observation is the simulator's whole state but for
the position along x, on which nothing depends: the state is set from it, the action taken, and reward, next
observation and termination are what the installed environment gives. Where a velocity is clipped in the observation
the state is unknown, and the row is left out.
"""

from __future__ import annotations

import importlib
import logging
import pickle
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import gymnasium as gym
import numpy as np
from numpy._core.multiarray import _reconstruct
from numpy.typing import NDArray

from metarl.data.files import find, registered
from metarl.data.transitions import Card, Layout, Transitions, pack_rows
from metarl.errors import DataError, one_line

STEPS = 1000  # of an episode that cannot end early: HalfCheetah's

_log = logging.getLogger(__name__)


def load_gild(name: str, env: str | None, *, folder: Path | None = None) -> Transitions:
    """Demonstrations with reward, next observation and termination of the environment `env`.

    Args:
        name: path of an npz or of a pickle of one plain array, relative to `folder`.
        env: Gymnasium id; the file does not record it.
        folder: where the YAML file lies.

    Raises:
        DatasetUnavailable: there is no such file.
        DataError: it holds anything but plain arrays, or the observations do not determine the state.
    """
    if env is None:
        raise DataError("demonstrations do not name their environment; add `env`, such as env: Hopper-v5.")
    path = find(name, folder)
    spec = registered(env)
    from metarl.envs import make_env  # late: environments import the data's flattening rule

    made = make_env(spec.to_json())
    try:
        simulator = _Simulator(made, name)
        obs, action, starts = _read(path, name, simulator)
        rows, pieces, figures = _simulate(simulator, obs, action, starts)
    finally:
        made.close()
    if not len(rows):
        raise DataError(f"file {name!r}: the velocities of every row are clipped, so no state is known.")
    card = Card(
        source="gild",
        dataset_id=name,
        env_spec=spec.to_json(),
        env_id=env,
        policy="GILD's demonstrator",
        versions={package: version(package) for package in ("gymnasium", "mujoco")},  # which rows depend on
        figures=figures,
    )
    transitions = pack_rows(rows, Layout(obs.shape[1], action.shape[1]), pieces, card)
    if figures["left_out"]:
        _log.warning("%s: %d of %d rows left out: their velocities are clipped", name, figures["left_out"], len(obs))
        transitions.card.returns.clear()  # what is left is pieces of episodes
    return transitions


class _Simulator:
    """One step of a MuJoCo robot from an observation."""

    def __init__(self, env: gym.Env, name: str) -> None:
        robot: Any = env.unwrapped
        self.env = robot
        model: Any = getattr(self.env, "model", None)
        self.sizes = (model.nq - 1, model.nv) if model is not None else (0, 0)
        if env.observation_space.shape != (sum(self.sizes),):
            raise DataError(
                f"file {name!r}: an observation of {env.spec and env.spec.id} does not determine the simulator's "
                "state, so rewards and next states cannot be rebuilt; Hopper, Walker2d and HalfCheetah can."
            )
        self._set(np.concatenate([self.env.init_qpos[1:], np.full(model.nv, 1e3)]))
        self.limit = self.env._get_obs()[self.sizes[0] :]  # at which an observation clips velocities, if it does

    def known(self, obs: NDArray[Any]) -> NDArray[np.bool_]:
        """[N]: whether the state can be told from an observation [N, O]."""
        return (np.abs(obs[:, self.sizes[0] :]) < self.limit - 1e-6).all(axis=1)

    def step(self, obs: NDArray[Any], action: NDArray[Any]) -> tuple[NDArray[Any], float, bool]:
        """The next observation, the reward and whether the task ends."""
        self._set(obs)
        after, reward, terminated, _, _ = self.env.step(action)
        return after, float(reward), bool(terminated)

    def starts(self, obs: NDArray[Any]) -> NDArray[np.int64] | None:
        """Rows that can only follow a reset: within the noise around the initial state; None where that is too wide."""
        noise = self.env._reset_noise_scale
        if noise > 0.01:
            return None
        initial = np.concatenate([self.env.init_qpos[1:], self.env.init_qvel])
        return np.flatnonzero((np.abs(obs - initial) < 1.02 * noise).all(axis=1))

    def _set(self, obs: NDArray[Any]) -> None:
        mujoco: Any = importlib.import_module("mujoco")
        # Without the reset the solver starts from the row before, and rows would depend on their order.
        mujoco.mj_resetData(self.env.model, self.env.data)
        self.env.set_state(np.concatenate([[0.0], obs[: self.sizes[0]]]), obs[self.sizes[0] :])


def _simulate(
    simulator: _Simulator, obs: NDArray[Any], action: NDArray[Any], starts: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64], dict[str, Any]]:
    """Rows, where pieces start, and what the card says of them."""
    layout = Layout(obs.shape[1], action.shape[1])
    place = layout.slices()
    rows = np.zeros((len(obs), layout.width), np.float32)
    rows[:, place["obs"]], rows[:, place["action"]] = obs, action
    known = simulator.known(obs)
    for i in np.flatnonzero(known):
        after, reward, terminated = simulator.step(obs[i], action[i])
        rows[i, place["next_obs"]] = after
        rows[i, place["reward"]], rows[i, place["terminated"]] = reward, terminated
    lasts = np.zeros(len(obs), np.bool_)
    lasts[starts[1:] - 1] = True
    inside = known & ~lasts
    begins = np.zeros(len(obs), np.bool_)
    begins[starts[:-1]] = True
    # A row that is left out, or that ends the task in this simulator only, ends a piece.
    begins[1:] |= ~known[:-1] | (rows[:-1, place["terminated"]][:, 0] == 1)
    pieces = np.concatenate([np.flatnonzero(begins[known]), [int(known.sum())]])
    figures = {
        "rebuilt": "reward, next observation and termination of each row by one step of simulation",
        "recorded_episodes": len(starts) - 1,
        "left_out": int((~known).sum()),
        "ended_early": int((inside & (rows[:, place["terminated"]][:, 0] == 1)).sum()),
        "deviation": _deviation(rows[:, place["next_obs"]], obs, inside),
    }
    return rows[known], pieces, figures


def _deviation(after: NDArray[Any], obs: NDArray[Any], inside: NDArray[np.bool_]) -> dict[str, float]:
    """How far the simulated next observation lies from the recorded one, as a share of the recorded change."""
    rows = np.flatnonzero(inside)
    if len(rows) == 0:
        return {}
    change = np.linalg.norm(obs[rows + 1] - obs[rows], axis=1)
    off = np.linalg.norm(after[rows] - obs[rows + 1], axis=1) / np.maximum(change, 1e-12)
    return {"median": round(float(np.median(off)), 4), "p95": round(float(np.quantile(off, 0.95)), 4)}


def _read(path: Path, name: str, simulator: _Simulator) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    """Observations, actions, and where episodes start (with the number of rows last)."""
    obs_dim, action_dim = sum(simulator.sizes), simulator.env.action_space.shape[0]
    starts: NDArray[Any] | None = None
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                file.seek(0)
                with np.load(file, allow_pickle=False) as stored:
                    obs, action, starts = (stored[key] for key in ("observations", "actions", "episode_starts"))
            else:
                file.seek(0)
                both = _unpickle(file)
                obs, action = both[:, :obs_dim], both[:, obs_dim:]
    except Exception as error:  # a damaged pickle or zip raises nearly anything
        raise DataError(f"file {name!r} holds no demonstrations of plain arrays ({one_line(error)}).") from error
    n = len(obs)
    if obs.shape != (n, obs_dim) or action.shape != (n, action_dim) or n == 0:
        raise DataError(
            f"file {name!r} has observations {list(obs.shape)} and actions {list(action.shape)}; the environment needs "
            f"[N, {obs_dim}] and [N, {action_dim}]."
        )
    for what, values in (("observations", obs), ("actions", action)):
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1)) if values.dtype.kind == "f" else np.arange(1)
        if len(bad):
            raise DataError(f"file {name!r}: {what} are not finite numbers in row {bad[0]} ({len(bad)} rows).")
    if starts is None:
        starts = simulator.starts(obs)
    if starts is None:
        if n % STEPS:
            raise DataError(f"file {name!r} has {n} rows, no multiple of {STEPS}; where its episodes start is unknown.")
        starts = np.arange(0, n, STEPS)
    starts = np.append(starts, n)
    if starts.dtype.kind != "i" or starts[0] != 0 or (np.diff(starts) <= 0).any():
        raise DataError(f"file {name!r}: episode_starts must be integers that rise strictly from 0 and stay below {n}.")
    return obs.astype(np.float64), action.astype(np.float32), starts.astype(np.int64)


class _Arrays(pickle.Unpickler):
    """Builds NumPy arrays of numbers and nothing else: three names, none of which runs code."""

    NAMES = {"_reconstruct": _reconstruct, "ndarray": np.ndarray, "dtype": np.dtype}
    MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")

    def find_class(self, module: str, name: str) -> Any:
        """See `pickle.Unpickler`."""
        if module in self.MODULES and name in self.NAMES:
            return self.NAMES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}; only plain arrays of protocol 3 or 4 are read")


def _unpickle(file: BinaryIO) -> NDArray[Any]:
    value = _Arrays(file).load()
    if type(value) is not np.ndarray or value.dtype.kind != "f" or value.ndim != 2:
        raise pickle.UnpicklingError("it is no array [N, O + A] of floats")
    return value
