"""The page: whole in itself, with every figure and number; the same for the same runs."""

import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

from benchmarks import results
from benchmarks.report import command, figures, tables
from benchmarks.report import page as pages


class Outline(HTMLParser):
    """Tags and attributes of a page, checked for balance."""

    VOID = {"meta", "br", "hr", "img", "link", "input"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag


def test_report_command_writes_everything(bench, capsys):
    folder, _ = bench
    command.report(folder / "runs" / "small", folder / "page")
    printed = " ".join(capsys.readouterr().out.split())
    assert "TD3+BC + GORL" in printed and "No significance is claimed below 3 seeds." in printed
    assert {"index.html", "table.csv", "table.md", "curves.png"} == {f.name for f in (folder / "page").iterdir()}
    assert (folder / "page" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_is_whole_in_itself(bench):
    loaded = results.load(bench[0] / "runs" / "small")
    html = pages.page(loaded)
    outline = Outline(html)
    assert (
        outline.tags.count("svg") == 1 + 3 + 1
    )  # learning curve; B over its input, its outputs, its course; hypergradient
    assert not {"script", "link", "img", "iframe"} & set(outline.tags)
    for name, value in outline.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#"), (name, value)
    assert not re.findall(r"url\((?!#)", html) and "@import" not in html
    for cell in loaded.cells[:2]:
        for line in tables.lines(cell):
            assert line.split("  ")[0].replace("-", "−") in html
        sha = cell.runs[0].data["train"]["sha256"]
        assert sha[:12] in html and cell.experiment in html
    assert "0 of 2 runs finished" in html and "2 of 2 runs unfinished" in html
    assert "No significance is claimed below 3 seeds." in html and "drawn per seed" in html
    assert pages.page(loaded) == html


def test_labels_are_escaped(bench, tmp_path):
    shutil.copytree(bench[0] / "runs" / "small", tmp_path / "small")
    index = tmp_path / "small" / "index.json"
    index.write_text(index.read_text().replace("BC", "<b>$x_1 & y"))
    html = pages.page(results.load(tmp_path / "small"))
    Outline(html)
    assert "<b>" not in html and "&lt;b&gt;$x_1 &amp; y" in html


def test_svgs_are_xml_and_do_not_share_names(bench):
    loaded = results.load(bench[0] / "runs" / "small")
    drawn = [figures.learning_curve(loaded, "pendulum"), figures.hypergradients(loaded, "pendulum")]
    svgs = [figures.to_svg(figure) for figure in drawn]
    for svg in svgs:
        root = ElementTree.fromstring(svg)
        assert root.get("viewBox") and root.get("width") is None and root.get("height") is None


def test_without_probes_or_evaluations_there_is_no_figure(bench):
    loaded = results.load(bench[0] / "runs" / "small")
    bc = loaded.cells[0]
    assert figures.probe_curve(bc, "guiding_network", "C0") is None
    assert figures.learning_curve(loaded, "nowhere") is None
    assert figures.hypergradients(loaded, "nowhere") is None
