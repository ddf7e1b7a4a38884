import re

import pytest

from bench.advise.document import ADVICE, Document, Measured, Recommendation
from reports.evidence import Evidence
from reports.load import load, tabulate
from reports.render import build
from reports.sections import advice

CALL = 'am.create_method("maml", inner_steps=50, inner_lr=0.01)'


def measured(name="maml", outcome="recommended", **more):
    numbers = {"outer_update_seconds": 0.25, "peak_allocated_bytes": 2**21, "rel_error_flow": 0.01, "query_loss": 0.5}
    fields = {"method": "maml", "options": {"inner_steps": 50}, "chunk_size": None, "target": "unrolled"}
    fields |= {"metrics": numbers, "failures": {}, "error": 0.02, "checks": 2}
    return Measured(name=name, outcome=outcome, **(fields | more))


@pytest.fixture
def document():
    return Document(
        factory="mine.py:make",
        memory_bytes=2**31,
        tolerance=0.05,
        recommendation=Recommendation(method="maml", options={}, chunk_size=None, name="maml", call=CALL),
        told=["Use maml at 50 steps: 0.25 s.", CALL, "It is the fastest there."],
        measured=[measured("remat-maml", "", metrics={}, error=None), measured()],
    )


@pytest.fixture
def page(tmp_path, store, make):
    """The report of a store in which a profile left this text."""

    def written(text):
        directory = store(tmp_path / "s", [make(metrics={"peak_live_bytes": 1.0})])
        (directory / ADVICE).write_text(text)
        built = build(load([directory]), tmp_path / "out")
        return built.read_text(), (built.parent / "report.md").read_text()

    return written


def test_the_page_opens_with_what_to_use_and_how_to_make_it(page, document):
    html, text = page(document.text())
    assert html.index('id="advice"') < html.index('id="findings"')
    assert text.index("## What to use") < text.index("### mine.py:make: maml, 50 steps") < text.index("## Findings")
    assert f"```python\nmethod = {CALL}\n```" in text
    assert "- worst error on 3 batches of tasks: 2.00e-2" in text
    assert "- peak memory, of 2.00 GiB allowed: 2.00 MiB" in text
    assert "- It is the fastest there." in text
    assert text.count("create_method") == 1
    assert "| maml | 50 | unrolled | 2.00 MiB | 250 ms | 1.00e-2 | – | 2.00e-2 | 0.500 | recommended |" in text
    assert "| remat-maml | 50 | unrolled | – | – | – | – | – | – |  |" in text
    assert '<td class="w good">recommended</td>' in html


def test_tasks_one_at_a_time_are_part_of_the_code(document):
    best = document.recommendation.model_copy(update={"chunk_size": 1})
    (notice,) = advice.section(
        Evidence(tabulate([]), advice=[document.model_copy(update={"recommendation": best})])
    ).notices
    assert notice.code.splitlines() == ["problem = am.MetaProblem(model, loss, chunk_size=1)", f"method = {CALL}"]


def test_what_is_exact_by_design_needs_no_measured_error(document):
    rows = [measured(error=None, checks=0)]
    (notice,) = advice.section(Evidence(tabulate([]), advice=[document.model_copy(update={"measured": rows})])).notices
    assert ("worst error on 1 batch of tasks", "exact by design") in notice.facts


def test_where_no_method_will_do_the_page_says_so_first(page, document):
    none = {"recommendation": None, "told": ["No method fits.", "The rest."], "measured": []}
    html, text = page(document.model_copy(update=none).text())
    assert "### mine.py:make: no method will do\n\nNo method fits.\n\n- The rest." in text
    assert html.index("No method fits.") < html.index('id="findings"')
    assert "```" not in text


def test_every_profile_of_several_stores_is_told(tmp_path, store, make, document):
    for name in ("one", "other"):
        document.model_copy(update={"factory": f"{name}.py:make"}).write(store(tmp_path / "all" / name, [make()]))
    notices = advice.section(Evidence(tabulate([]), advice=load([tmp_path / "all"]).advice)).notices
    assert [notice.title for notice in notices] == ["one.py:make: maml, 50 steps", "other.py:make: maml, 50 steps"]


def test_nothing_in_it_is_taken_for_markup(page, document):
    odd = "<script>alert(1)</script> | a\nb"
    best = document.recommendation.model_copy(update={"call": odd})
    rows = [measured(odd, options={"inner_steps": odd}, target=odd), measured(odd, odd, metrics={})]
    changed = {"factory": odd, "recommendation": best, "told": [odd, odd, f"More {odd}"], "measured": rows}
    html, text = page(document.model_copy(update=changed).text())
    assert not re.search("<script", html)
    table = [line for line in text.partition("## Findings")[0].splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {11}


@pytest.mark.parametrize("text", ["", "torn {", "{}", "[]"])
def test_what_is_no_advice_is_a_note_and_the_page_is_made(page, text):
    html, _ = page(text)
    assert "is not the advice of this version" in html
    assert 'id="advice"' not in html
