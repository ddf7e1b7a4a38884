"""From stores to one tidy table: a row a record."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from bench.advise.document import ADVICE, Document
from bench.gate.calibration import CALIBRATION, Calibration
from bench.records import METRICS, RECORDS_FILE, Record, Store, canonical_json, current

LABELLED = ("inner_steps", "inner_lr", "num_states", "backward", "variant")  # shown by place, not as key=value
UNASKED = ("samples",)  # how often a question is asked is no part of the question
PRECISION, TRAINING, AGAIN = ("work_precision", "peers"), ("train",), ("profile_again",)
HONESTY = ("honesty", "tolerance")
# how the names of sweeps begin whose records have a section of their own
APART = PRECISION + TRAINING + AGAIN + HONESTY
TEXTS = (
    *("sweep", "study", "cell_id", "benchmark_version", "probe", "problem", "problem_options", "problem_label"),
    *("setting", "method", "series", "label", "target", "options", "backward", "forward", "variant", "dtype", "device"),
    *("engine", "where", "status", "reason", "started_at", "counter_key", "timing_key", "key"),
)
COLUMNS = {  # of the table, and what they hold
    **dict.fromkeys(TEXTS, "str"),
    **{"inner_steps": "int64", "inner_lr": "float64", "horizon": "float64", "num_states": "Int64"},
    **{"seed": "int64", "replicate": "int64", "environment": "object", "samples": "object"},
    **dict.fromkeys(METRICS, "float64"),
}


class InputError(Exception):
    """The input cannot be used; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Results:
    """What was read.

    Attributes:
        records: the records that count: one a cell, and one more for each of the sweeps that are kept apart.
        frame: the same as a table, row i for record i; see ``tabulate``.
        notes: sentences about lines that could not be read and records that were left out.
        calibration: of the gate's times, where one lies among the stores.
        advice: what profiles said, of the stores that are theirs.
    """

    records: list[Record]
    frame: pd.DataFrame
    notes: list[str]
    calibration: Calibration | None = None
    advice: list[Document] = field(default_factory=list)


def load(directories: Sequence[Path]) -> Results:
    """Read stores: each directory holds ``records.jsonl`` itself or in directories one level below.

    Raises:
        InputError: a directory is missing or holds no readable record.
    """
    records: list[Record] = []
    notes: list[str] = []
    advice: list[Document] = []
    for directory in directories:
        found: list[Record] = []
        for store in _stores(directory):
            read, complaints = store.read()
            found += read
            notes += complaints
            _advise(store.directory / ADVICE, advice, notes)
        if not found:
            raise InputError(f"{directory} holds no readable record; make some with `make bench`, then name its store.")
        records += found
    kept: list[Record] = []
    by_study: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_study[study(record)].append(record)
    for name, rows in sorted(by_study.items()):
        mine, more = _one_a_cell(current(rows))
        kept += mine
        notes += [f"Sweep {name}: {note}" if name else note for note in more]
    return Results(kept, tabulate(kept), notes, _calibration(directories), advice)


def _advise(path: Path, advice: list[Document], notes: list[str]) -> None:
    """Add what a profile said, or a note on why that cannot be read."""
    if path.is_file():
        try:
            advice.append(Document.model_validate_json(path.read_bytes()))
        except ValidationError as error:
            told = str(error).splitlines()[0]
            notes.append(f"{path} is not the advice of this version's profile ({told}); run that again.")


def _calibration(directories: Sequence[Path]) -> Calibration | None:
    paths = [path for directory in directories for path in sorted(directory.glob(f"*/{CALIBRATION}"))]
    if not paths:
        return None
    try:
        return Calibration.model_validate_json(paths[-1].read_bytes())
    except ValidationError as error:
        told = str(error).splitlines()[0]
        raise InputError(f"{paths[-1]} is no calibration ({told}); make it with `amaml-bench calibrate`.") from None


def study(record: Record) -> str:
    """The sweep of a record that is kept apart, else empty: such a sweep may ask what another asks too.

    Its times are compared with each other only, as they were taken side by side; and its many options must not
    change what is usual, and so unlabelled, elsewhere.
    """
    return record.sweep if record.sweep.startswith(APART) else ""


def newest(records: Iterable[Record]) -> list[Record]:
    """The newest record of each cell."""
    by_cell: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_cell[record.cell_id].append(record)
    return [max(rows, key=lambda record: record.started_at) for rows in by_cell.values()]


def _stores(directory: Path) -> list[Store]:
    if not directory.is_dir():
        raise InputError(f"There is no directory {directory}; name a store that `amaml-bench run` wrote.")
    if (directory / RECORDS_FILE).is_file():
        return [Store(directory)]
    stores = [Store(path.parent) for path in sorted(directory.glob(f"*/{RECORDS_FILE}"))]
    if not stores:
        raise InputError(
            f"{directory} holds no {RECORDS_FILE}, neither itself nor one level below; make some with `make bench`."
        )
    return stores


def _one_a_cell(records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """The newest record of each cell, and a note on what was passed over and on machines that still differ."""
    times = Counter(record.cell_id for record in records)
    kept = newest(records)
    notes = []
    repeated = sum(count > 1 for count in times.values())
    if repeated:
        notes.append(
            f"Measured more than once, by other versions of the benchmark or on other machines: cells {repeated}, "
            f"older records left out {times.total() - len(kept)}; only the newest of each cell is shown."
        )
    for probe in sorted({record.cell.probe for record in kept}):
        rows = [record for record in kept if record.cell.probe == probe]
        for problem, versions in sorted(_mixed(rows).items()):
            notes.append(
                f"The records of probe {probe} on {problem} come from different benchmark versions: "
                f"{', '.join(sorted(versions))}."
            )
        keys = sorted({record.identity[2] for record in rows})
        if len(keys) > 1:
            notes.append(
                f"The records of probe {probe} come from different environments: {'; '.join(keys)}. "
                "Numbers compare only within one."
            )
    return kept, notes


def tabulate(records: Sequence[Record]) -> pd.DataFrame:
    """One row a record, whatever their number.

    Columns: what was asked (``sweep``, ``study``, ``probe``, ``problem``, ``method``, …; ``options`` and
    ``problem_options`` as JSON), what came out (``status``, ``reason``, one column a metric, ``samples``), where
    (``environment`` and its keys), and for showing:

    * ``horizon``: inner_steps · inner_lr; ``num_states``: as asked, else inner_steps; missing if "accepted".
    * ``series``: the method and what distinguishes it, but for the number of states; ``label``: that with the states.
      An option appears as key=value only in records that depart from the value of most records of that method in
      the same study; the label tells a compiled engine too.
    * ``setting``: the problem with all its options but ``samples``; ``problem_label``: the same for people.
    * ``key``: the environment key under which the probe's answers may be compared.
    """
    oddities = _by_name(records, lambda r: (study(r), r.cell.method), lambda r: r.cell.options, LABELLED)
    settings = _by_name(records, lambda r: (study(r), r.cell.problem), lambda r: r.cell.problem_options, UNASKED)
    rows = [_row(*one) for one in zip(records, oddities, settings, strict=True)]
    return pd.DataFrame(rows, columns=[*COLUMNS]).astype(COLUMNS)


def _row(record: Record, odd: str, unusual: str) -> dict[str, Any]:
    cell, options = record.cell, record.cell.options
    series, label = _names(cell.method, options, odd, cell.engine if cell.engine not in ("eager", "own") else "")
    states = options.get("num_states") or options["inner_steps"]
    asked = {k: v for k, v in cell.problem_options.items() if k not in UNASKED}
    known = {name: value for name, value in record.metrics.items() if math.isfinite(value)}
    return known | {
        "sweep": record.sweep,
        "study": study(record),
        "cell_id": record.cell_id,
        "benchmark_version": record.benchmark_version,
        "probe": cell.probe,
        "problem": cell.problem,
        "problem_options": canonical_json(cell.problem_options),
        "problem_label": f"{cell.problem} ({unusual})" if unusual else cell.problem,
        "setting": canonical_json([cell.problem, asked]),
        "method": cell.method,
        "series": series,
        "label": label,
        "target": record.target,
        "options": canonical_json(options),
        "inner_steps": options["inner_steps"],
        "inner_lr": options["inner_lr"],
        "horizon": float(f"{options['inner_steps'] * options['inner_lr']:.10g}"),
        "num_states": states if isinstance(states, int) else None,
        **{name: plain(options.get(name) or "") for name in ("backward", "forward", "variant")},
        "dtype": cell.dtype,
        "device": cell.device,
        "engine": cell.engine,
        "where": ", ".join([cell.dtype, cell.device] + [cell.engine] * (cell.engine != "eager")),
        "seed": cell.seed,
        "replicate": cell.replicate,
        "status": record.status,
        "reason": record.reason,
        "started_at": record.started_at,
        "counter_key": str(record.environment.get("counter_key", "")),
        "timing_key": str(record.environment.get("timing_key", "")),
        "key": record.identity[2],
        "environment": record.environment,
        "samples": record.samples,
    }


def _names(method: str, options: Mapping[str, Any], odd: str, engine: str) -> tuple[str, str]:
    """The series and the label of a record."""
    head = f"{method} {plain(options['variant'])}" if options.get("variant") else method
    backward = plain(options.get("backward") or "")
    states = options.get("num_states", "none")
    if states == "none" or backward == "backsolve":
        shown = ""
    elif states is None:
        shown = "a state a step"
    else:
        shown = f"{states} states"
    series, label = (", ".join(filter(None, parts)) for parts in ((backward, odd), (backward, shown, odd, engine)))
    return f"{head} ({series})" if series else head, f"{head} ({label})" if label else head


def _by_name(
    records: Sequence[Record],
    name: Callable[[Record], tuple[str, str]],
    options: Callable[[Record], Mapping[str, Any]],
    skip: Sequence[str],
) -> list[str]:
    """For each record, "key=value" of the options in which it departs from most records of the same name.

    An option that came later is named where it is not at its default: whoever lacks what most others name has "no key".
    """
    counts: dict[tuple[str, str], dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    total = Counter(name(record) for record in records)
    for record in records:
        for key, value in options(record).items():
            counts[name(record)][key][canonical_json(value)] += 1

    def odd(record: Record) -> Iterator[str]:
        own, every = options(record), total[name(record)]
        for key, values in sorted(counts[name(record)].items()):
            alike = values[canonical_json(own[key])] if key in own else every - values.total()
            if key not in skip and 2 * alike <= every:
                yield f"{key}={plain(own[key])}" if key in own else f"no {key}"

    return [", ".join(odd(record)) for record in records]


def plain(value: Any) -> str:
    """The value of an option for people."""
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _mixed(records: Sequence[Record]) -> dict[str, set[str]]:
    """Problem -> the versions of those methods on it that have several: each method has a version of its own."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in records:
        found[record.cell.problem, record.cell.method].add(record.benchmark_version)
    mixed: dict[str, set[str]] = defaultdict(set)
    for (problem, _), versions in found.items():
        mixed[problem] |= versions if len(versions) > 1 else set()
    return {problem: versions for problem, versions in mixed.items() if versions}
