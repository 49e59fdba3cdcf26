"""Progress: lines of JSON for a parent, text for a log."""

import io
import json

from rich.console import Console

from metarl.training.progress import Bar, Lines, Plain, reporter


def test_lines_are_json_and_end_with_the_last_step():
    stream = io.StringIO()
    lines = Lines(stream)
    lines.start("run", 0, 1000)
    for step in range(1, 1001):
        lines.update(step, **({"return": -5.0} if step == 500 else {}))
    lines.say("careful")
    said = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert said[0] == {"title": "run", "done": 0, "total": 1000}
    assert said[-2] == {"done": 1000, "total": 1000, "return": -5.0}
    assert said[-1] == {"say": "careful"}
    assert len(said) < 100


def test_plain_text_shows_figures_when_they_come(capsys):
    plain = Plain()
    plain.start("run", 0, 100)
    for step in range(1, 101):
        plain.update(step, **({"return": -5.0} if step == 50 else {}))
    (line,) = capsys.readouterr().err.splitlines()
    assert "run: 50/100" in line and "return -5" in line and "s left" in line


def test_styles():
    assert type(reporter("lines")) is Lines
    assert type(reporter("auto")) is Plain  # pytest's standard error is no terminal


def test_a_bar_shows_the_last_step_and_its_figures_though_it_looks_at_few():
    stream = io.StringIO()
    shown = Bar(Console(file=stream, force_terminal=True, width=200))
    shown.start("run", 0, 1000)
    for step in range(1, 1000):
        shown.update(step, **({"return": -5.0} if step == 500 else {}))
    shown.stop()
    assert "return -5" in stream.getvalue().rpartition("999/1000")[2]


def test_a_bar_can_be_stopped_before_it_starts():
    Bar(Console(file=io.StringIO())).stop()
