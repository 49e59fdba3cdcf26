"""Videos: whose episodes they show, which frames are kept, what the files hold, and what is refused."""

import importlib.util
import json
import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import PendulumEnv
from PIL import Image
from typer.testing import CliRunner

from metarl import Learner
from metarl.cli import app
from metarl.envs import env_spec, make_env
from metarl.errors import ConfigError
from metarl.training import video
from metarl.training.evaluation import Evaluator, Policy

HEIGHT, WIDTH = 33, 40  # one of them odd
HAS_AV = importlib.util.find_spec("av") is not None


class Bar(gym.Env):
    """Ends after 3 to 12 steps, as its reset seed has it; pictures show the steps left, the episode's length and x."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space = gym.spaces.Box(-100, 100, (2,))
    action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.length = int(self.np_random.integers(3, 13))
        self.x = float(self.np_random.uniform(-1, 1))
        return self._obs(), {}

    def step(self, action):
        assert self.left > 0, "stepped after its end"
        self.left -= 1
        self.x += 0.1 * float(action[0])
        return self._obs(), self.x, self.left == 0, False, {}

    def _obs(self):
        return np.array([self.left, self.x], dtype=np.float32)

    def render(self):
        assert self.render_mode == "rgb_array"
        picture = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        picture[..., 0], picture[..., 1] = 20 * self.left, 20 * self.length
        return picture


class Goals(Bar):
    """Success at the third step."""

    def reset(self, *, seed=None, options=None):
        obs, _ = super().reset(seed=seed)
        return obs, {"success": False}

    def step(self, action):
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, {"success": self.length - self.left >= 3}


class Parts(Bar):
    """A dict observation."""

    observation_space = gym.spaces.Dict(
        {"observation": gym.spaces.Box(-100, 100, (1,)), "achieved": gym.spaces.Box(-100, 100, (1,))}
    )

    def _obs(self):
        left, x = super()._obs()
        return {"observation": np.array([left]), "achieved": np.array([x])}


class Blind(Bar):
    """Renders for people only."""

    metadata = {"render_modes": ["human"], "render_fps": 20}


class Quick(Bar):
    """125 frames a second, as Hopper has."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 125}


class Drawn(PendulumEnv):
    """Pendulum drawn with numpy."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def render(self):
        angle = int(100 * (1 + np.cos(self.state[0])))
        return np.full((HEIGHT, WIDTH, 3), angle, dtype=np.uint8)


@pytest.fixture(autouse=True)
def registered():
    names = [cls.__name__ for cls in (Bar, Goals, Parts, Blind, Quick, Drawn)]
    for name in names:
        gym.register(f"metarl-test/{name}-v0", f"{__name__}:{name}", max_episode_steps=40)
    yield
    for name in names:
        del gym.registry[f"metarl-test/{name}-v0"]


def spec(name):
    return env_spec(f"metarl-test/{name}-v0")


def policy(obs_keys=()):
    """Acts on its observation, so that returns depend on it; carries the steps since the episode's start."""

    def act(tree, obs, carry, noise, deterministic):
        assert deterministic
        carry = torch.zeros(len(obs), 1) if carry is None else carry
        return tree["actor"]["gain"] * obs[:, 1:2] - 0.1 * carry, carry + 1

    tree = {"actor": {"gain": torch.tensor(0.7)}}
    return Policy(Learner(modules={}, tensors=tree, stages=(), act=act), tree, None, obs_keys)


def evaluated(name, episodes, seed, step, keys=()):
    evaluator = Evaluator(lambda: make_env(spec(name), keys or None), episodes, seed)
    result = evaluator(policy(keys), step)
    evaluator.close()
    return result


def read(path):
    """Frames [N, H, W, 3] and delays in milliseconds."""
    with Image.open(path) as picture:
        found = []
        for i in range(picture.n_frames):
            picture.seek(i)
            found.append((np.asarray(picture.convert("RGB")).astype(int), picture.info["duration"]))
    return np.stack([frame for frame, _ in found]), [delay for _, delay in found]


def lefts(frames):
    """Steps left, as every picture shows them."""
    return [round(frame[5, 5, 0] / 20) for frame in frames]


def test_a_film_shows_every_step_of_the_first_episodes_of_an_evaluation(tmp_path):
    film = video.film(policy(), 7, spec("Bar"), 4, 3, tmp_path / "film.gif")
    wanted = evaluated("Bar", 4, seed=3, step=7)
    assert film.result.lengths == wanted.lengths and len(set(wanted.lengths)) > 1
    assert film.result.returns == pytest.approx(wanted.returns, rel=1e-6)
    assert film.result.steps_to_goal is None
    frames, delays = read(tmp_path / "film.gif")
    assert lefts(frames) == [left for n in wanted.lengths for left in range(n, -1, -1)]
    assert film.frames == len(frames) and (film.every, film.rate) == (1, 30.0)
    assert sum(delays) == 10 * round(100 * len(frames) / 30) and set(delays) == {30, 40}
    assert [p.name for p in tmp_path.iterdir()] == ["film.gif"]


def test_other_seeds_and_steps_start_elsewhere(tmp_path):
    returns = {
        video.film(policy(), step, spec("Bar"), 2, seed, tmp_path / "film.gif").result.returns
        for seed, step in ((0, 1), (1, 1), (0, 2))
    }
    assert len(returns) == 3


def test_pictures_stand_over_a_strip_with_the_return():
    picture = np.random.default_rng(0).integers(0, 256, (HEIGHT, 201, 3)).astype(np.uint8)
    one, other = (video.captioned(picture, text) for text in ("return 1.0", "return 2.0"))
    assert one.shape == (HEIGHT + 1 + video.STRIP, 202, 3) and one.dtype == np.uint8
    np.testing.assert_array_equal(one[:HEIGHT, :201], picture)
    assert one[HEIGHT + 1 :].max() > 200 and (one[HEIGHT + 1 :] != other[HEIGHT + 1 :]).any()
    assert not one[HEIGHT].any()


def test_a_gif_of_a_quick_environment_is_thinned_to_whole_steps(tmp_path):
    film = video.film(policy(), 0, spec("Quick"), 3, 0, tmp_path / "film.gif")
    assert (film.every, film.rate) == (5, 25.0)
    frames, delays = read(tmp_path / "film.gif")
    wanted = [n - k for n in film.result.lengths for k in range(n + 1) if k % 5 == 0 or k == n]
    assert lefts(frames) == wanted and set(delays) == {40}


def test_goals_are_counted_and_are_the_same_under_every_seed(tmp_path):
    films = [video.film(policy(), step, spec("Goals"), 3, step, tmp_path / "film.gif") for step in (1, 2)]
    assert films[0].result == films[1].result
    assert films[0].result.steps_to_goal == (3, 3, 3) and films[0].result.success == 1.0
    assert films[0].result.lengths == evaluated("Goals", 3, seed=5, step=9).lengths


def test_dict_observations_come_in_the_order_of_the_policy(tmp_path):
    keys = ("achieved", "observation")
    film = video.film(policy(keys), 0, spec("Parts"), 2, 0, tmp_path / "film.gif")
    assert film.result.returns == pytest.approx(evaluated("Parts", 2, 0, 0, keys).returns, rel=1e-6)
    other = evaluated("Parts", 2, 0, 0, keys[::-1]).returns
    assert film.result.returns != pytest.approx(other, rel=1e-2)


def test_an_environment_without_rgb_array_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"Blind-v0' cannot be filmed: it renders human, and a video needs rgb_array"):
        video.film(policy(), 0, spec("Blind"), 1, 0, tmp_path / "film.gif")
    assert not [*tmp_path.iterdir()]


def test_a_missing_pygame_is_one_line_with_the_pip_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)  # its import raises ImportError
    with pytest.raises(ConfigError, match=r"'Pendulum-v1' cannot be rendered here .*metarl\[video\]") as error:
        video.film(policy(), 0, env_spec("Pendulum-v1"), 1, 0, tmp_path / "film.gif")
    assert "\n" not in str(error.value) and not [*tmp_path.iterdir()]


def test_a_missing_pyav_is_said_before_anything_is_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"an \.mp4 needs PyAV; run: pip install 'metarl\[video\]'"):
        video.film(policy(), 0, "no specification", 1, 0, tmp_path / "film.mp4")


def test_a_film_that_fails_leaves_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "film.gif"
    path.write_text("former")
    monkeypatch.setattr(Bar, "render", lambda self: None)
    with pytest.raises(ConfigError, match="renders no picture"):
        video.film(policy(), 0, spec("Bar"), 1, 0, path)
    assert path.read_text() == "former" and [*tmp_path.iterdir()] == [path]


@pytest.mark.skipif(not HAS_AV, reason="PyAV is not installed")
def test_an_mp4_holds_every_step_at_the_rate_of_the_environment(tmp_path):
    import av

    film = video.film(policy(), 0, spec("Quick"), 3, 0, tmp_path / "film.mp4")
    assert (film.every, film.rate) == (1, 125.0)
    with av.open(str(tmp_path / "film.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 125 and stream.codec_context.pix_fmt == "yuv420p"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert frames[0].shape == (HEIGHT + 1 + video.STRIP, WIDTH, 3)
    wanted = [20 * left for n in film.result.lengths for left in range(n, -1, -1)]
    assert len(frames) == film.frames == len(wanted)
    np.testing.assert_allclose([int(frame[16, 16, 0]) for frame in frames], wanted, atol=12)  # a lossy codec


# -- OpenGL, in processes of their own: a library that was loaded once stays -----------------------------------------

RENDER = """
import sys
import numpy as np
from metarl.envs import env_spec
from metarl.errors import ConfigError
from metarl.training import video
try:
    env = video.rendering(env_spec("InvertedPendulum-v5"), None)
except ConfigError as error:
    print(error)
    sys.exit(2)
env.reset(seed=0)
picture = env.render()
assert picture.shape == (480, 480, 3) and np.ptp(picture) > 50
env.close()
"""


def render(**variables):
    clean = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY")}
    clean.pop("WAYLAND_DISPLAY", None)
    return subprocess.run([sys.executable, "-c", RENDER], env=clean | variables, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "99"}, "MUJOCO_GL=egl does not work (egl: "),
        # Both of MuJoCo's headless backends refuse to load beside another platform.
        ({"PYOPENGL_PLATFORM": "glx"}, "MuJoCo finds no OpenGL (egl: "),
    ],
)
def test_without_opengl_one_line_names_the_debian_package_and_the_variable(variables, words):
    done = render(**variables)
    assert done.returncode == 2 and done.stderr == "" and done.stdout.count("\n") == 1
    assert words in done.stdout and "apt-get install libegl1" in done.stdout and "MUJOCO_GL" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a context needs no library")
def test_mujoco_is_rendered_without_a_display_or_the_line_says_what_is_missing():
    done = render()
    if done.returncode == 2:
        assert "MuJoCo finds no OpenGL" in done.stdout and "osmesa: " in done.stdout
    else:
        assert (done.returncode, done.stderr) == (0, "")


# -- the command -----------------------------------------------------------------------------------------------------


def call(*arguments, code=0):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == code, (done.output, done.exception)
    return done


@pytest.fixture
def drawn(run):
    return run("steps=20", "evaluation.env=metarl-test/Drawn-v0")


def test_eval_films_what_it_reports(drawn, tmp_path):
    file = tmp_path / "film.gif"
    filmed = call("eval", drawn, "--video", file, "--episodes", 2, "--json")
    found, whole = json.loads(filmed.output), json.loads(call("eval", drawn, "--json").output)
    assert found["video"] == str(file) and "video" not in whole
    assert found["lengths"] == [40, 40] and len(whole["returns"]) == 10
    assert found["returns"] == pytest.approx(whole["returns"][:2], rel=1e-4)
    assert len(read(file)[0]) > 60  # Pillow joins frames that are alike
    shown = call("eval", drawn, "--video", file, "--overwrite").output
    assert "of 3 episodes" in " ".join(shown.split()) and f"video: {file} (123 frames, every step, 30 per" in shown


def test_each_of_several_runs_has_a_file_of_its_own(run, drawn, tmp_path):
    other = run("steps=20", "evaluation.env=metarl-test/Drawn-v0", seed=1)
    call("eval", drawn, other, "--video", tmp_path / "film.gif", "--episodes", 1)
    names = sorted(path.name for path in tmp_path.glob("*.gif"))
    assert names == [f"film-{drawn.parent.name}-{seed}.gif" for seed in (0, 1)]


def test_mistakes_about_the_file_are_found_before_any_work(tmp_path):
    file = tmp_path / "film.gif"
    file.write_text("mine")
    for arguments, words in (
        (["--video", file], "film.gif exists already; choose another name, or give --overwrite"),
        (["--video", tmp_path / "film.avi"], "must end in .gif or .mp4"),
        (["--video", tmp_path / "none" / "film.gif"], "there is no folder"),
        (["--overwrite"], "--overwrite is about the file of --video"),
        (["--episodes", 0], "--episodes must be at least 1"),
    ):
        error = call("eval", "no/run", *arguments, code=1).exception
        assert isinstance(error, ConfigError) and words in str(error)
    assert file.read_text() == "mine"
