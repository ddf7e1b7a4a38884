"""What a gate found and how it is told: a line, what moved, the rest folded; for people, CI and dashboards."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from bench.records import METRICS

Outcome = Literal["pass", "better", "fail", "insufficient", "no baseline", "advisory"]
PASSED, FAILED, CRASHED, UNDECIDED = 0, 1, 3, 4
SYMBOLS = {
    "pass": "✓",
    "better": "↓",
    "fail": "✗",
    "insufficient": "?",
    "no baseline": "?",
    "advisory": "!",
}


@dataclass(frozen=True)
class Check:
    """One question and its outcome.

    Attributes:
        case: what was measured.
        metric: of it, or the name of a law.
        outcome: "better" is worth a new baseline; "insufficient" and "no baseline" decide nothing; "advisory" would
            have an outcome, were it not for a reason to doubt the measurement.
        before: the baseline's value, where there is one.
        now: the value measured.
        text: what people should know, a sentence with its remedy.
        crashed: whether nothing could be measured.
    """

    case: str
    metric: str
    outcome: Outcome
    before: float | None = None
    now: float | None = None
    text: str = ""
    crashed: bool = False


@dataclass(frozen=True)
class Verdict:
    """All checks of one gate.

    Attributes:
        gate: its name.
        checks: in the order of the cases.
        notes: sentences about the whole.
    """

    gate: str
    checks: Sequence[Check]
    notes: Sequence[str] = ()

    def count(self, *outcomes: Outcome) -> int:
        """Checks with one of these outcomes."""
        return sum(check.outcome in outcomes for check in self.checks)

    @property
    def exit_code(self) -> int:
        """0 passed, 1 failed, 3 something crashed, 4 nothing failed but something is undecided or advisory only."""
        if any(check.crashed for check in self.checks):
            return CRASHED
        if self.count("fail"):
            return FAILED
        return UNDECIDED if self.count("insufficient", "no baseline", "advisory") or not self.checks else PASSED

    @property
    def line(self) -> str:
        """The verdict in one line."""
        word = {PASSED: "passed", FAILED: "FAILED", CRASHED: "CRASHED", UNDECIDED: "no verdict"}[self.exit_code]
        kinds = ("fail", "advisory", "insufficient", "no baseline", "better", "pass")
        counts = ", ".join(f"{self.count(kind)} {kind}" for kind in kinds if self.count(kind))
        return f"{self.gate}: {word} ({counts or 'nothing was checked'})"

    def markdown(self) -> str:
        """For a pull request."""
        moved = [check for check in self.checks if check.outcome != "pass"]
        still = [check for check in self.checks if check.outcome == "pass"]
        parts = [f"### {self.line}", *self.notes]
        if moved:
            parts.append(_table(moved))
        if still:
            summary = f"<details><summary>{len(still)} checks passed</summary>"
            parts.append(f"{summary}\n\n{_table(still)}\n\n</details>")
        return "\n\n".join(parts) + "\n"

    def text(self) -> str:
        """For a terminal: what moved, and the verdict as the last line."""
        moved = [check for check in self.checks if check.outcome != "pass"]
        lines = [f"{SYMBOLS[c.outcome]} {c.outcome}: {c.case}: {c.metric}{_change(c)}. {c.text}".strip() for c in moved]
        return "\n".join([*lines, *self.notes, self.line])

    def publish(self, directory: Path) -> None:
        """Write every form into a directory, and the one for people into a GitHub step's summary where there is one.

        The files are ``verdict.md``, ``verdict.json``, ``junit.xml`` and ``benchmark-action.json``.
        """
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "verdict.md").write_text(self.markdown())
        (directory / "verdict.json").write_text(self.json())
        (directory / "junit.xml").write_text(self.junit())
        (directory / "benchmark-action.json").write_text(self.benchmark_action())
        if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            with Path(summary).open("a") as file:
                file.write(self.markdown())

    def json(self) -> str:
        """Everything, for programs."""
        held = {"gate": self.gate, "verdict": self.line, "exit_code": self.exit_code, "notes": list(self.notes)}
        return json.dumps(held | {"checks": [asdict(check) for check in self.checks]}, indent=2, allow_nan=False) + "\n"

    def junit(self) -> str:
        """A suite for each case, a test for each metric; undecided checks are skipped tests."""
        root = ElementTree.Element("testsuites", name=self.gate)
        for case in dict.fromkeys(check.case for check in self.checks):
            mine = [check for check in self.checks if check.case == case]
            attributes = {"name": case, "tests": str(len(mine))}
            for kind, outcomes in (("failures", ("fail",)), ("skipped", ("insufficient", "no baseline", "advisory"))):
                attributes[kind] = str(sum(check.outcome in outcomes for check in mine))
            suite = ElementTree.SubElement(root, "testsuite", attributes)
            for check in mine:
                test = ElementTree.SubElement(suite, "testcase", classname=case, name=check.metric)
                told = f"{check.metric}{_change(check)}. {check.text}"
                if check.outcome == "fail":
                    ElementTree.SubElement(test, "failure", message=told)
                elif check.outcome in ("insufficient", "no baseline", "advisory"):
                    ElementTree.SubElement(test, "skipped", message=f"{check.outcome}: {told}")
                elif check.outcome == "better":
                    ElementTree.SubElement(test, "system-out").text = told
        ElementTree.indent(root)
        return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"

    def benchmark_action(self) -> str:
        """The values of which less is better, for github-action-benchmark's ``customSmallerIsBetter``."""
        rows = [
            {"name": f"{check.case}: {check.metric}", "unit": METRICS[check.metric].unit, "value": check.now}
            for check in self.checks
            if check.now is not None and check.metric in METRICS and METRICS[check.metric].better == "lower"
        ]
        return json.dumps(rows, indent=2, allow_nan=False) + "\n"


def _table(checks: Sequence[Check]) -> str:
    rows = ["| | case | metric | before | now | change | |", "|---|---|---|--:|--:|--:|---|"]
    for check in checks:
        cells = [SYMBOLS[check.outcome], check.case, check.metric, _number(check.before), _number(check.now)]
        rows.append(f"| {' | '.join([*cells, _percent(check), check.text.replace('|', chr(92) + '|')])} |")
    return "\n".join(rows)


def _change(check: Check) -> str:
    if check.now is None:
        return ""
    return f" {_number(check.now)}" + (f", was {_number(check.before)}" if check.before is not None else "")


def _percent(check: Check) -> str:
    if check.before is None or check.now is None or not check.before:
        return ""
    return f"{100 * (check.now / check.before - 1):+.2f} %"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
