"""The report as a reader sees it: in Chromium, on a phone and on a desk, by day and by night, without a network."""

import json
import math
import os
import re
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest
import yaml
from playwright.sync_api import sync_playwright

from benchmarks import results
from benchmarks.report import page as pages

pytestmark = pytest.mark.browser

METHODS = [*(f"weight {weight:g}" for weight in np.linspace(0, 1, 8)), "TD3+BC + GORL"]
DATASETS = ("pendulum/medium", "hopper/medium", "pointmaze_umaze/medium", "walker2d/a-very-long-name-of-a-dataset")
SEEDS, STEPS = range(5), 400
LARGEST = 5_000_000  # bytes, with a suite of 180 runs
READABLE = 4.5  # least contrast of text (WCAG 2.2, 1.4.3)

OVERFLOWS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# Every text with the colour it has and the one behind it, those of figures too; cells of a heat map blend.
CONTRASTS = """() => {
  const parse = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1]; };
  const over = (top, under) => top.slice(0, 3).map((v, i) => v * top[3] + under[i] * (1 - top[3])).concat(1);
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const patches = svg => [...svg.querySelectorAll('path')].filter(path => {
    const style = getComputedStyle(path);
    return style.fill !== 'none' && parse(style.fill)[3] > 0;
  });
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    const box = element.getBoundingClientRect();
    if (!text || ['TITLE', 'title'].includes(element.tagName) || !box.width) continue;
    const style = getComputedStyle(element), svg = element.closest('svg');
    let under = behind(svg ? svg.parentElement : element);
    if (svg) {
      const x = box.x + box.width / 2, y = box.y + box.height / 2;
      for (const path of patches(svg)) {
        const b = path.getBoundingClientRect();
        if (b.x <= x && x <= b.right && b.y <= y && y <= b.bottom && b.width < 200 && b.height < 60) {
          const s = getComputedStyle(path), fill = parse(s.fill);
          under = over([...fill.slice(0, 3), fill[3] * Number(s.fillOpacity) * Number(s.opacity)], under);
        }
      }
    }
    const ink = over(parse(svg ? style.fill : style.color), under);
    const [dark, light] = [luminance(ink), luminance(under)].sort((a, b) => a - b);
    found.push([(light + 0.05) / (dark + 0.05), text]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no chromium; install it with `apt install chromium`")
    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=chromium, args=sandbox, headless=True)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(bench, tmp_path_factory) -> Path:
    """The folder of a report of 180 invented runs, made of the small suite's."""
    source, root = bench[0] / "runs" / "small", tmp_path_factory.mktemp("report") / "weights"
    gorl = next(cell for cell in results.load(source).cells if "GORL" in cell.row).experiment
    rng, cells = np.random.default_rng(0), []
    for i, method in enumerate(METHODS):
        for j, dataset in enumerate(DATASETS):
            experiment = f"{i}-{j}"
            cells.append({"labels": {"method": method, "dataset": dataset}, "experiment": experiment, "steps": STEPS})
            for seed in SEEDS:
                _invent(source / gorl / str(seed % 2), root / experiment / str(seed), seed, dataset, i, rng)
    index = {"format": 2, "name": "weights", "seeds": list(SEEDS), "excluded": []}
    index |= {"axes": {"method": METHODS, "dataset": DATASETS}, "cells": cells}
    (root / "index.json").write_text(json.dumps(index))
    return pages.write(results.load(root), root / "report").parent


def _invent(source, folder, seed, dataset, quality, rng):
    """A run's folder like `source`, whose returns rise towards a level that grows with `quality`."""
    folder.mkdir(parents=True)
    config = yaml.safe_load((source / "config.yaml").read_text())
    config["steps"], config["objective"][0]["every"] = STEPS, quality + 1
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    result = json.loads((source / "result.json").read_text())
    result["seed"], result["steps"], result["evaluations"] = seed, STEPS, []
    env = {"hopper/medium": "Hopper-v5", "pointmaze_umaze/medium": "PointMaze_UMaze-v3"}.get(dataset, "Own-v0")
    result["data"]["train"]["env_id"] = env
    maze, lines = "maze" in dataset, ["step,metric,value"]
    for step in range(0, STEPS + 1, 4):
        level = (quality + 2 + rng.normal() / 2) / 12 * (1 - math.exp(-8 * step / STEPS))
        done = rng.random(10) < level
        returns = [float(v) for v in (done if maze else 2000 * level - 1000 + 50 * rng.normal(size=10))]
        evaluation = {"step": step, "returns": returns, "lengths": [50] * 10}
        lines.append(f"{step},evaluation/return,{np.mean(returns)!r}")
        if maze:
            evaluation["steps_to_goal"] = [30 if d else None for d in done]
            lines.append(f"{step},evaluation/success,{float(done.mean())!r}")
        watched = {batch: 1.5 - level + 0.02 * rng.normal() for batch in ("expert", "random")}
        lines += [f"{step},watch/{batch}/constraint,{value}" for batch, value in watched.items()]
        lines.append(f"{step},guiding_network/hypergradient_norm,{math.exp(rng.normal() - 4 - level)}")
        result["evaluations"].append(evaluation)
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    cost = {"step": STEPS, "seconds": 60 + seed, "cpu_seconds": 80.0, "peak_memory": 4 * 10**8, "together": 1}
    (folder / "cost.json").write_text(json.dumps(cost))
    if quality == len(METHODS) - 1:  # the others have no learned function
        shutil.copy(source / "probes.jsonl", folder)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_opens_whole_and_readable(browser, report, tmp_path, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    try:
        page = context.new_page()
        wrong, asked = [], []
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: wrong.append(request.url))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((report / "index.html").as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert wrong == [] and len(asked) == 1
        assert page.evaluate(OVERFLOWS) <= 0
        page.evaluate("window.scrollTo(999, 0)")
        assert page.evaluate("window.scrollX") == 0
        found = page.evaluate(CONTRASTS)
        assert len(found) > 500
        assert min(found)[0] >= READABLE, sorted(found)[:5]
        page.screenshot(path=tmp_path / f"{width}-{scheme}.png", full_page=True)
        assert (tmp_path / f"{width}-{scheme}.png").stat().st_size > 50_000
    finally:
        context.close()


def test_the_check_of_contrast_sees_pale_text(browser):
    page = browser.new_page()
    try:
        page.set_content(
            '<body style="background: #fff; color: #000">black <p style="color: #777">grey</p>'
            '<svg viewBox="0 0 9 9" width="90" height="45"><path d="M0 0h9v9h-9z" style="fill: #000; opacity: 0.5"/>'
            '<text x="2" y="5" style="fill: #333; font-size: 2px">dim</text></svg></body>'
        )
        found = {text: contrast for contrast, text in page.evaluate(CONTRASTS)}
        assert found["black"] == pytest.approx(21) and found["grey"] == pytest.approx(4.48, abs=0.01)
        assert found["dim"] < 4
    finally:
        page.close()


def test_the_table_shows_what_the_parquet_file_says(browser, report):
    scores = duckdb.sql(f"""
        SELECT "axis.method", "axis.dataset", avg(score), stddev_samp(score), count(*) FROM (
            SELECT "axis.method", "axis.dataset", run, avg(value) AS score FROM (
                SELECT *, row_number() OVER (PARTITION BY run ORDER BY step DESC) AS place
                FROM '{report / "results.parquet"}'
                WHERE step > 0 AND metric = CASE WHEN "axis.dataset" LIKE '%maze%' THEN 'evaluation/success'
                                                 ELSE 'evaluation/return' END)
            WHERE place <= 10 GROUP BY ALL) GROUP BY ALL""").fetchall()
    assert len(scores) == len(METHODS) * len(DATASETS)
    page = browser.new_page()
    try:
        page.goto((report / "index.html").as_uri())
        for method, dataset, mean, sd, n in scores:
            factor = 100 if "maze" in dataset else 1
            half = 2.7764451 * sd / math.sqrt(n)  # Student's t of 4 degrees of freedom at 97.5 %
            cell = page.locator(f'table[data-kind="last"] td[data-row="{method}"][data-column="{dataset}"]')
            shown = [
                float(v) for v in re.findall(r"-?[\d,]+\.\d+", cell.inner_text().replace("−", "-").replace(",", ""))
            ]
            ends = [factor * (mean - half), factor * (mean + half)]
            if "maze" in dataset:
                ends = [max(ends[0], 0), min(ends[1], 100)]
            assert np.allclose(shown, [factor * mean, *ends], atol=0.0501), (method, dataset)
            assert f"n={n}" in cell.inner_text()
        best = {d: max((s for s in scores if s[1] == d), key=lambda s: s[2])[0] for d in DATASETS}
        bold = page.locator('table[data-kind="last"] td.top')
        assert {(b.get_attribute("data-column"), b.get_attribute("data-row")) for b in bold.all()} == set(best.items())
    finally:
        page.close()


def test_a_large_report_stays_small(report):
    assert (report / "index.html").stat().st_size < LARGEST


def test_the_page_prints_on_white(browser, report):
    context = browser.new_context(color_scheme="dark")
    try:
        page = context.new_page()
        page.goto((report / "index.html").as_uri())
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    finally:
        context.close()
