"""Episodes of a policy as a GIF or an MP4, rendered without a display."""

from __future__ import annotations

import functools
import importlib
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import Error as GymnasiumError
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from metarl.envs import make_env
from metarl.errors import ConfigError
from metarl.training.evaluation import EpisodeReturns, Evaluator, Policy
from metarl.training.export import replaced

SUFFIXES = (".gif", ".mp4")
GIF_RATE = 30  # frames per second at most: delays of a GIF are hundredths of a second, and every frame is large
RATE = 30  # of an environment that names none
STRIP = 22  # rows under a frame for its text


@dataclass(frozen=True)
class Film:
    """What was filmed.

    Attributes:
        result: the episodes' returns, lengths and goals.
        frames: written.
        every: steps from frame to frame.
        rate: frames per second.
    """

    result: EpisodeReturns
    frames: int
    every: int
    rate: float


def film(policy: Policy, step: int, env: str, episodes: int, seed: int, path: Path, every: int | None = None) -> Film:
    """Runs episodes one after another, from the start states of `Evaluator`'s first ones, and writes them to a file.

    Args:
        policy, step: as for an evaluation.
        env: the environment's specification as JSON; it is made anew, to render.
        episodes, seed: as of `Evaluator`.
        path: ends in one of `SUFFIXES`; replaced if it is there.
        every: steps from frame to frame; by default 1, and for a GIF as many as bring it to `GIF_RATE`.

    Raises:
        ConfigError: the environment does not render here, or a package is missing.
    """
    write = _mp4() if path.suffix == ".mp4" else _gif
    camera = Camera(lambda: rendering(env, policy.obs_keys or None), seed)
    try:
        rate = float(camera.env.metadata.get("render_fps") or RATE)
        if every is None:
            every = math.ceil(rate / GIF_RATE) if path.suffix == ".gif" else 1
        frames = _counted(camera.frames(policy, step, episodes, every))
        with replaced(path) as aside:
            write(aside, frames, rate / every)
        return Film(camera.result(), frames.count, every, rate / every)
    finally:
        camera.close()


def rendering(env: str, keys: tuple[str, ...] | None) -> gym.Env:
    """A new environment that renders to arrays.

    Raises:
        ConfigError: it cannot be made, has no `rgb_array`, or there is no OpenGL for it here.
    """
    spec = EnvSpec.from_json(env)
    if sys.platform == "linux" and not _display():  # else pygame looks for one, and says that it finds none
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if _on_mujoco(str(spec.entry_point)):
        settle_gl(spec.id)  # before MuJoCo is imported, which looks at the same variable
    with make_env(env, keys) as plain:
        modes = plain.metadata.get("render_modes") or []
    if "rgb_array" not in modes:
        known = f"it renders {', '.join(map(str, modes))}" if modes else "it renders nothing"
        raise ConfigError(f"environment {spec.id!r} cannot be filmed: {known}, and a video needs rgb_array")
    spec.kwargs = {**spec.kwargs, "render_mode": "rgb_array"}
    made = make_env(spec.to_json(), keys)
    if "mujoco" in sys.modules and hasattr(made.unwrapped, "mujoco_renderer"):
        settle_gl(spec.id)
    return made


class Camera(Evaluator):
    """One environment that renders; episodes start as those of an `Evaluator` with the same seed."""

    def __init__(self, make_env: Callable[[], gym.Env], seed: int) -> None:
        super().__init__(make_env, 1, seed)
        (self.env,) = self.envs
        self._returns: list[float] = []
        self._lengths: list[int] = []
        self._steps_to_goal: list[int | None] = []

    def result(self) -> EpisodeReturns:
        """The episodes so far."""
        goals = tuple(self._steps_to_goal) if self.goals else None
        return EpisodeReturns(tuple(self._returns), tuple(self._lengths), goals)

    def frames(self, policy: Policy, step: int, episodes: int, every: int) -> Iterator[NDArray[np.uint8]]:
        """Frames [H, W, 3] of the first state, of every `every`-th step and of the last one, each with its text."""
        space = self.env.action_space
        assert isinstance(space, gym.spaces.Box)
        for i in range(episodes):
            obs, _ = self.env.reset(seed=self._reset_seed(step, i))
            title = f"episode {i + 1} of {episodes}" if episodes > 1 else ""
            total, length, goal, over, carry = 0.0, 0, None, False, None
            yield self._frame(title, length, total)
            while not over:
                actions, carry = policy(np.asarray(obs)[None], carry)
                obs, reward, terminated, truncated, info = self.env.step(actions[0].clip(space.low, space.high))
                total, length, over = total + float(reward), length + 1, terminated or truncated
                if goal is None and info.get("success", False):
                    goal = length
                if over or length % every == 0:
                    yield self._frame(title, length, total)
            self._returns.append(total)
            self._lengths.append(length)
            self._steps_to_goal.append(goal)

    def _frame(self, title: str, length: int, total: float) -> NDArray[np.uint8]:
        try:
            picture: Any = self.env.render()
        except (GymnasiumError, ImportError) as error:  # pygame is missing
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"environment {_name(self.env)!r} cannot be rendered here ({reason}); run: pip install 'metarl[video]'"
            ) from error
        if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3:
            raise ConfigError(f"environment {_name(self.env)!r} renders no picture [height, width, 3] of colours")
        return captioned(picture, f"{f'{title}, ' if title else ''}step {length:,}, return {total:,.1f}")


def captioned(picture: NDArray[Any], text: str) -> NDArray[np.uint8]:
    """The picture over a strip with the text; both sizes are even, as video needs them."""
    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (width + width % 2, height + height % 2 + STRIP))
    canvas.paste(Image.fromarray(np.ascontiguousarray(picture, dtype=np.uint8)))
    ImageDraw.Draw(canvas).text((4, canvas.height - STRIP + 3), text, fill="white", font=_font())
    return np.asarray(canvas)


@functools.cache
def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(14)


class _counted:
    """An iterator that knows how many it gave."""

    def __init__(self, frames: Iterator[NDArray[np.uint8]]) -> None:
        self._frames, self.count = frames, 0

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for frame in self._frames:
            self.count += 1
            yield frame


def _gif(path: Path, frames: Iterable[NDArray[np.uint8]], rate: float) -> None:
    """Repeats for ever; delays are rounded to hundredths of a second so that their sum stays right."""

    def pictures() -> Iterator[Image.Image]:
        for i, frame in enumerate(frames):
            picture = Image.fromarray(frame)
            picture.info["duration"] = 10 * (round(100 * (i + 1) / rate) - round(100 * i / rate))
            yield picture

    rest = pictures()
    next(rest).save(path, format="GIF", save_all=True, append_images=rest, loop=0)


def _mp4() -> Callable[[Path, Iterable[NDArray[np.uint8]], float], None]:
    """The writer of MP4; asked for before the first episode, since PyAV may be missing.

    PyAV, not imageio-ffmpeg: it carries FFmpeg as libraries that wheels of every system hold, and starts no process.
    """
    try:
        av = importlib.import_module("av")
    except ImportError as error:
        raise ConfigError("an .mp4 needs PyAV; run: pip install 'metarl[video]' (a .gif needs nothing more)") from error

    def write(path: Path, frames: Iterable[NDArray[np.uint8]], rate: float) -> None:
        with av.open(str(path), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
            stream.pix_fmt, stream.options = "yuv420p", {"crf": "20"}
            for i, frame in enumerate(frames):
                if i == 0:
                    stream.height, stream.width = frame.shape[:2]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())

    return write


# -- OpenGL ----------------------------------------------------------------------------------------------------------

_GL = ("glfw", "egl", "osmesa")
# What an environment will do; in a process of its own, since a library that fails to load spoils the next attempt.
_TRIAL = """
import os, sys
try:
    import mujoco
    from gymnasium.envs.mujoco.mujoco_rendering import OffScreenViewer
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
    OffScreenViewer(model, mujoco.MjData(model), 8, 8).render("rgb_array")
except BaseException as error:
    print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(1)
os._exit(0)
"""


@functools.cache
def settle_gl(env_id: str) -> None:
    """Sets MUJOCO_GL to the first backend that renders here; one that the user has set is only tried.

    Without a display these are EGL (a GPU's, or Mesa's on the CPU) and OSMesa.

    Raises:
        ConfigError: none does.
    """
    if sys.platform != "linux":  # where a process can always make a context
        return
    wanted = os.environ.get("MUJOCO_GL")
    reasons = []
    for backend in [wanted] if wanted else _GL[not _display() :]:
        trial = subprocess.run(
            [sys.executable, "-c", _TRIAL],
            env={**os.environ, "MUJOCO_GL": backend},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if trial.returncode == 0:
            os.environ["MUJOCO_GL"] = backend
            return
        reason = " ".join(trial.stdout.split()) or f"exit code {trial.returncode}"
        reasons.append(f"{backend}: {reason if len(reason) <= 120 else reason[:120] + ' ...'}")
    start = f"MUJOCO_GL={wanted} does not work" if wanted else "MuJoCo finds no OpenGL"
    choice = "unset MUJOCO_GL, or set it to" if wanted else "set MUJOCO_GL to"
    raise ConfigError(
        f"environment {env_id!r} cannot be rendered here: {start} ({'; '.join(reasons)}); install one (Debian: apt-get "
        f"install libegl1 libgl1-mesa-dri, or libosmesa6), or {choice} glfw (needs a display), egl or osmesa"
    )


def _display() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _on_mujoco(entry_point: str) -> bool:
    return entry_point.startswith(("gymnasium.envs.mujoco", "gymnasium_robotics", "metarl.envs.sparse"))


def _name(env: gym.Env) -> str:
    return env.spec.id if env.spec else str(env)
