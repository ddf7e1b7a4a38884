"""The golden file: ``REGENERATE_GOLDEN=1 python -m pytest tests/reports -k golden`` writes it anew; read the diff."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path

from reports.figures import Figure
from reports.load import Results, load, tabulate
from reports.render import build
from reports.section import Section
from reports.tables import make_table

GOLDEN = Path(__file__).parent / "golden" / "report.md"


def test_markdown_golden(built):
    made = (built / "report.md").read_text()
    if os.environ.get("REGENERATE_GOLDEN"):
        GOLDEN.write_text(made)
    assert made == GOLDEN.read_text()


def test_two_builds_are_byte_identical_and_leave_no_parts(tmp_path, store, everything, built):
    build(load([store(tmp_path / "s", everything)]), tmp_path / "out")
    outs = [built, tmp_path / "out"]
    made = [{p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()} for out in outs]
    assert made[0] == made[1]
    names = {str(path) for path in made[0]}
    assert {"index.html", "report.md", "figures/memory.png", "figures/memory.svg"} <= names
    assert not any(name.endswith(".part") for name in names)


def test_a_second_report_replaces_the_first(tmp_path, store, make):
    for number, method in enumerate(("maml", "reptile")):
        made = [make(method=method, metrics={"peak_live_bytes": 1.0})]
        page = build(load([store(tmp_path / str(number), made)]), tmp_path / "out")
    assert "reptile" in page.read_text()


class Resources(HTMLParser):
    """Collects what a browser would load, and the texts of the page."""

    def __init__(self):
        super().__init__()
        self.loaded, self.links, self.ids, self.open = [], [], set(), []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids.add(given.get("id"))
        if tag == "a":
            self.links.append(given["href"])
        else:
            self.loaded += [given[name] for name in ("src", "href", "srcset", "data") if given.get(name)]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(built):
    page = (built / "index.html").read_text()
    seen = Resources()
    seen.feed(page)
    assert seen.open == []
    assert len(seen.loaded) > 5
    assert all(resource.startswith("data:") for resource in seen.loaded)
    assert "@import" not in page
    assert not re.search(r"url\((?!data:)", page)
    assert "<script" not in page
    assert {link.removeprefix("#") for link in seen.links} <= seen.ids


def test_sections_without_records_are_left_out_and_their_target_is_named(tmp_path, store, make):
    made = [make("memory", metrics={"peak_live_bytes": 1.0})]
    page = build(load([store(tmp_path / "s", made)]), tmp_path / "out").read_text()
    assert 'id="memory"' in page
    assert 'id="time"' not in page
    assert "<code>make bench-time</code>" in page
    assert page.count("<code>make bench-accuracy</code>") == 2
    assert "make bench-memory" not in page


def test_reasons_are_escaped_and_stay_on_one_line(tmp_path, store, make):
    made = [make(status="crashed", reason="<b>worse</b> | and\nworse")]
    page = build(load([store(tmp_path / "s", made)]), tmp_path / "out")
    assert "&lt;b&gt;worse&lt;/b&gt;" in page.read_text()
    assert "<b>worse</b> \\| and worse |" in (tmp_path / "out" / "report.md").read_text()


def test_notes_reach_the_report(tmp_path, store, make):
    directory = store(tmp_path / "s", [make()])
    with (directory / "records.jsonl").open("a") as file:
        file.write("torn")
    page = build(load([directory]), tmp_path / "out")
    assert "records.jsonl:2: not a whole record" in page.read_text()


def test_each_kind_of_probe_alone_makes_a_report(tmp_path, store, everything):
    for probe in ("memory", "time", "error", "counts"):
        mine = [record for record in everything if record.cell.probe == probe]
        assert build(load([store(tmp_path / probe, mine)]), tmp_path / f"{probe}-out").is_file()


def test_figures_of_one_name_are_numbered_and_empty_tables_left_out(tmp_path, make, monkeypatch):
    drawn = Figure("same", "A caption.", b"png", b"svg")
    empty, full = make_table("none", [], ()), make_table("some", [{"a": "b"}], ())
    made = [Section(name, name, "made", "", [empty, full], [drawn, drawn]) for name in ("one", "other")]
    made.append(Section("bare", "bare", "bare", "", [empty]))
    monkeypatch.setattr("reports.render.SECTIONS", [lambda _, section=section: section for section in made])
    build(Results([], tabulate([make()]), []), tmp_path)
    assert sorted(path.name for path in (tmp_path / "figures").glob("*.png")) == [
        "same-2.png", "same-3.png", "same-4.png", "same.png",
    ]  # fmt: skip
    text = (tmp_path / "report.md").read_text()
    assert "### none" not in text
    assert text.count("### some") == 2
    assert "- bare: no records; `make bare` makes them." in text
