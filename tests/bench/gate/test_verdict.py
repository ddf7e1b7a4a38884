"""Verdicts in every form that is read elsewhere."""

import json
from xml.etree import ElementTree

import pytest

from bench.gate.verdict import Check, Verdict

PASSED = Check("maml-K25", "flops", "pass", 10, 10)
FAILED = Check("maml-K25", "peak_live_bytes", "fail", 1000, 1100, "Lower | is better.")
BETTER = Check("fomaml-K25", "hvp_evals", "better", 4, 3, "Accept it.")
UNKNOWN = Check("imaml-K25", "case", "no baseline", text="Nothing was accepted.")
CRASHED = Check("imaml-K25", "status", "fail", text="because", crashed=True)


@pytest.mark.parametrize(
    ("checks", "code", "word"),
    [
        ([PASSED, BETTER], 0, "passed"),
        ([PASSED, FAILED, UNKNOWN], 1, "FAILED"),
        ([FAILED, CRASHED], 3, "CRASHED"),
        ([PASSED, UNKNOWN], 4, "no verdict"),
        ([PASSED, Check("a", "b", "insufficient")], 4, "no verdict"),
        ([PASSED, Check("a", "b", "advisory")], 4, "no verdict"),
        ([], 4, "no verdict"),
    ],
)
def test_exit_code_and_line_agree(checks, code, word):
    verdict = Verdict("gate", checks)
    assert verdict.exit_code == code
    assert verdict.line.startswith(f"gate: {word} (")


def test_what_moved_is_shown_and_the_rest_folded():
    told = Verdict("gate", [PASSED, FAILED, BETTER], notes=["A note."]).markdown()
    shown, folded = told.split("<details>")
    assert "### gate: FAILED (1 fail, 1 better, 1 pass)" in shown
    assert "| ✗ | maml-K25 | peak_live_bytes | 1,000 | 1,100 | +10.00 % | Lower \\| is better. |" in shown
    assert "hvp_evals" in shown
    assert "flops" not in shown
    assert "| ✓ | maml-K25 | flops | 10 | 10 | +0.00 % |  |" in folded


def test_the_terminal_sees_the_verdict_last():
    lines = Verdict("gate", [PASSED, FAILED]).text().splitlines()
    assert lines == [
        "✗ fail: maml-K25: peak_live_bytes 1,100, was 1,000. Lower | is better.",
        "gate: FAILED (1 fail, 1 pass)",
    ]


def test_json_holds_everything():
    verdict = Verdict("gate", [PASSED, FAILED], notes=["A note."])
    held = json.loads(verdict.json())
    assert held["exit_code"] == 1
    assert held["notes"] == ["A note."]
    assert [Check(**check) for check in held["checks"]] == [PASSED, FAILED]


def test_junit_has_a_suite_a_case():
    root = ElementTree.fromstring(Verdict("gate", [PASSED, FAILED, BETTER, UNKNOWN]).junit())
    suites = {suite.get("name"): suite for suite in root}
    assert {name: (s.get("tests"), s.get("failures"), s.get("skipped")) for name, s in suites.items()} == {
        "maml-K25": ("2", "1", "0"),
        "fomaml-K25": ("1", "0", "0"),
        "imaml-K25": ("1", "0", "1"),
    }
    assert "peak_live_bytes" in suites["maml-K25"].find("testcase/failure").get("message")
    assert suites["imaml-K25"].find("testcase/skipped").get("message").startswith("no baseline")


def test_the_action_gets_numbers_of_which_less_is_better():
    higher = Check("a", "cosine_flow", "pass", 1.0, 1.0)
    rows = json.loads(Verdict("gate", [PASSED, FAILED, higher, UNKNOWN]).benchmark_action())
    assert rows == [
        {"name": "maml-K25: flops", "unit": "1", "value": 10},
        {"name": "maml-K25: peak_live_bytes", "unit": "B", "value": 1100},
    ]


def test_publishing_writes_all_forms_and_the_summary_of_a_step(tmp_path, monkeypatch):
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    Verdict("gate", [PASSED]).publish(tmp_path / "out")
    Verdict("gate", [FAILED]).publish(tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"verdict.md", "verdict.json", "junit.xml", "benchmark-action.json"}
    assert summary.read_text().count("###") == 2
