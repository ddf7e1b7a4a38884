"""What the second tier of the gate is worth."""

from __future__ import annotations

from bench.gate.calibration import QUIET, Calibration
from reports import words
from reports.evidence import Evidence
from reports.section import Section
from reports.tables import Table, make_table


def section(evidence: Evidence) -> Section:
    """How often it is wrong; nothing where it was not calibrated."""
    known = evidence.calibration
    text, shown = (_text(known), _tables(known)) if known else ("", [])
    return Section("gate", "The gate's own errors", "", text, shown)


def _text(known: Calibration) -> str:
    return (
        "What `amaml-bench gate --against` is worth, on identical code and on planted slowdowns. A run is "
        f"{words.plural(known.blocks, 'block')} of six processes; it fails where the head is slower by more than 5 % "
        f"and a second stage agrees. On {known.timing_key}, {words.plural(len(known.live), 'run')} of identical code "
        f"were made, of which {sum(': FAILED' in run.verdict for run in known.live)} failed. From their blocks "
        f"{known.runs:,} runs were resampled, each from one of them: {known.false_alarms} failed, a rate of false "
        f"alarms below {words.share(known.false_alarm_limit)} (95 %) given these blocks; the first stage alone would "
        f"have failed in {known.suspected}, the control alarmed in {known.control_alarms}. Found: the share of "
        f"{known.planted_runs} resampled runs with this slowdown of one case that failed for it and for nothing else. "
        f"Cases whose blocks spread by more than {words.share(QUIET)} decide too little on that machine. "
        f"Made by `{known.command}` (bench/gate/calibrate.py)."
    )


def _tables(known: Calibration) -> list[Table]:
    """What the second tier of the gate finds in each case, and its recorded runs of identical code."""
    cases = [
        {
            "case": case.name,
            "std of a block": words.share(case.block_std),
            "passes on identical code": words.share(case.passed),
            **{f"found at {100 * (float(by) - 1):+.0f} %": words.share(rate) for by, rate in case.found.items()},
            "": "" if case.block_std <= QUIET else "insufficient",
        }
        for case in sorted(known.cases, key=lambda case: case.block_std)
    ]
    live = [
        {
            "began": run.began_at,
            "minutes": f"{run.minutes:g}",
            "revision": run.revision,
            "suspects of the first stage": ", ".join(run.suspects) or "none",
            "alarms of the control": ", ".join(run.alarmed) or "none",
            "verdict": run.verdict,
        }
        for run in known.live
    ]
    return [
        make_table("Cases", cases, ["case", ""]),
        make_table("Runs of identical code", live, set(live[0]) - {"minutes"} if live else (), folded=True),
    ]
