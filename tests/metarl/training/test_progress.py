"""Progress: lines of JSON for a parent, text for a log."""

import io
import json

from metarl.training.progress import Lines, Plain, reporter


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
