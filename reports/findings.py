"""What the numbers say, in sentences computed from them."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from reports import precision, training, words
from reports.paper import published
from reports.summary import (
    AGREE,
    Comparison,
    Scaling,
    closed_form_study,
    cosmixture_study,
    error_points,
    orders,
    readings,
    smallest_stable,
)

REPTILE, MAML, ALL = "reptile", "maml (1/10 of the steps)", "maml (all steps)"
RIVALS = ("amaml", "remat-maml")  # the adjoint, and the honest alternative to it


def findings(frame: pd.DataFrame, compared: list[Comparison], memory: list[Scaling], time: list[Scaling]) -> list[str]:
    """A few sentences; none about what was not measured."""
    rivals = _rivals([*memory, *time])
    told = [_cost(law, "peak memory", "uses", words.size, rivals) for law in memory]
    told += [_cost(law, "time per update", "takes", words.seconds, rivals) for law in time]
    told.append(agreement(readings(frame)))
    return list(filter(None, told)) + _accuracy(compared) + _closed_form(frame) + _cosmixture(frame)


def training_findings(contests: list[training.Contest]) -> list[str]:
    """On "A-MAML gives the best initialisation", a sentence for each sweep; none about what was not trained."""
    told = []
    for study in dict.fromkeys(contest.study for contest in contests if not contest.variant):
        mine = [contest for contest in contests if contest.study == study and not contest.variant]
        found = [(contest, verdict) for contest in mine if (verdict := training.verdict(contest))]
        if found:
            best = [verdict.best for _, verdict in found]
            others = ", ".join(f"{name} in {best.count(name)}" for name in dict.fromkeys(best) if name != training.OURS)
            told.append(
                f'"A-MAML gives the best initialisation" ({study}, {found[0][0].outer_updates:,} outer updates): its '
                f"error is the lowest of the paper's methods in {best.count(training.OURS)} of {len(found)} settings, "
                f"and lower than all others with p < {training.LEVEL:g} and in every seed in "
                f"{sum(verdict.clear for _, verdict in found)}"
                + (f"; the lowest is {others}" if others else "")
                + f". Had each training stopped at its best look at the test tasks: in "
                f"{sum(verdict.stopped == training.OURS for _, verdict in found)}."
            )
        told += _all_steps(study, mine)
        pairs = [(c, c.runs[REPTILE], c.runs[MAML]) for c in mine if {REPTILE, MAML} <= c.runs.keys()]
        pairs = [(c, reptile, maml) for c, reptile, maml in pairs if maml.nrmse]
        if pairs:
            worse = sum(not reptile.nrmse or reptile.mean(c.seeds) > maml.mean(c.seeds) for c, reptile, maml in pairs)
            told.append(f'"Reptile is worse than MAML" ({study}): in {worse} of {len(pairs)} settings.')
    return told


def _all_steps(study: str, contests: list[training.Contest]) -> list[str]:
    """MAML on all steps, for which the paper has no memory, beside A-MAML."""
    able = [(c, c.runs[training.OURS], c.runs[ALL]) for c in contests if {training.OURS, ALL} <= c.runs.keys()]
    able = [(c, mine, maml) for c, mine, maml in able if mine.nrmse and maml.nrmse]
    if not able:
        return []
    gaps = [maml.mean(c.seeds) - mine.mean(c.seeds) for c, mine, maml in able]
    time = [maml.seconds / mine.seconds for _, mine, maml in able]
    memory = [maml.bytes for _, _, maml in able]
    return [
        f"MAML on all steps ({study}): its error is {_range(gaps, lambda gap: words.signed(gap, 4))} from A-MAML's, "
        f"over {words.plural(len(able), 'setting')}, in {_range(time, words.times)} its time and "
        f"{_range(memory, words.size)} for an update."
    ]


def _range(values: list[float], tell: Callable[[float], str]) -> str:
    ends = list(dict.fromkeys(tell(value) for value in (min(values), max(values))))
    return " to ".join(ends)


def precision_findings(cells: pd.DataFrame) -> list[str]:
    """What an error of 1e-3 costs ours and others, and what others need for the same method; a sentence each."""
    level, told = precision.LEVELS[1], []
    for row in precision.panels(cells):
        able = [panel for panel in row if len(_of_the_flow(panel, level))]
        if able:
            panel = precision.featured(able)
            first, best = _of_the_flow(panel, level).iloc[0], precision.fastest(panel.cells, level)
            theirs = best[~best.ours].sort_values("seconds")
            memory = f" and {words.size(first.bytes)}" if first.bytes == first.bytes else ""
            needs = ", ".join(
                f"{row.method} {words.seconds(row.seconds)} ({words.times(row.seconds / first.seconds)})"
                for row in theirs.itertuples()
            )
            told.append(
                f"On {panel.problem_label} at T = {panel.horizon:g}, {first.method} ({first.choices}, {first.engine}) "
                f"reaches an error of {words.level(level)} in {words.seconds(first.seconds)}{memory}"
                + (f"; of other libraries, each held to its own target, {needs}." if needs else ".")
            )
    for key, rows in precision.pairs(cells).dropna(subset="ratio").groupby(precision.PANEL):
        horizon = key[precision.PANEL.index("horizon")]
        if horizon == precision.FEATURED:
            each = ", ".join(f"{row.peer} {words.times(row.ratio)}" for row in rows.sort_values("ratio").itertuples())
            told.append(
                f"On {key[0]} at T = {horizon:g} the same methods in other hands take this many times as long: {each}."
            )
    return told


def _of_the_flow(panel: precision.Panel, level: float) -> pd.DataFrame:
    """Our fastest cells that reach this error to the gradient of the flow."""
    best = precision.fastest(panel.cells, level)
    return best[best.ours & (best.target == "flow")]


def agreement(both: pd.DataFrame) -> str:
    """How far the two readings of memory are apart; empty where there are none."""
    if both.empty:
        return ""
    apart, most = int((both.off > AGREE).sum()), both.off.max()
    if apart:
        verdict = (
            f"on {apart} they are more than {words.share(AGREE)} apart (at most {words.share(most)}): mistrust those"
        )
    else:
        verdict = f"they agree within {words.share(most)}" if most else "they agree to the byte"
    return (
        "Two readings of memory that share no code, of live tensors and of the allocator, were taken of "
        f"{words.plural(len(both), 'update')}; {verdict}."
    )


def _rivals(laws: list[Scaling]) -> list[str]:
    """The leanest variant of each rival: the same ones speak for memory and for time, so that none is flattered."""
    found: dict[str, str] = {}
    for law in laws:
        for row in law.lines.dropna(subset="ratio").sort_values("value").itertuples():
            if row.method in RIVALS:
                found.setdefault(row.method, row.label)
    return sorted(found.values())


def _cost(law: Scaling, quantity: str, verb: str, show: Callable[[float], str], rivals: list[str]) -> str:
    """The rivals against MAML at the reference, and how the cost grows; empty where neither is known."""
    lines, told = law.lines.set_index("label"), []
    beside = [lines.loc[label] for label in rivals if label in lines.index and lines.ratio[label] == lines.ratio[label]]
    if beside:
        shares = [f"{row.name} {verb} {words.share(row.ratio)} of that ({show(row.value)})" for row in beside]
        at = f"at {words.plural(law.reference, 'step')} maml's {quantity} is {show(lines.value['maml'])}"
        told.append(f"{at}; {', '.join(shares)}.")
    slopes = lines.slope[lines.slope.notna() & lines.index.isin(["maml", *rivals])]
    if len(slopes):
        powers = ", ".join(f"{words.fixed(slope)} for {label}" for label, slope in slopes.items())
        told.append(f"{quantity.capitalize()} grows with the number of steps to the power {powers}.")
    return f"On {law.title}: {' '.join(told)}" if told else ""


def _accuracy(compared: list[Comparison]) -> list[str]:
    """The nearest and the farthest method from the flow gradient, where most methods were compared."""
    best, most = None, 1
    for comparison in compared:
        methods = comparison.rows[comparison.rows.rel_error_flow.notna()].method.nunique()
        if methods > most or (best and methods == most and comparison.inner_steps > best.inner_steps):
            best, most = comparison, methods
    if best is None:
        return []
    rows = best.rows.dropna(subset="rel_error_flow").sort_values("rel_error_flow")
    near, far = rows.iloc[0], rows.iloc[-1]
    return [
        f"{best.title}: the gradient of {near.label} is nearest to that of the flow "
        f"(relative error {words.error(near.rel_error_flow)}), that of {far.label} farthest "
        f"({words.error(far.rel_error_flow)})."
    ]


def _closed_form(frame: pd.DataFrame) -> list[str]:
    rows = closed_form_study(frame)
    rows = rows[(rows.setting.str.contains('"forced_linear"')) & (rows.method == "adjoint")]
    points = error_points(rows[(rows.backward == "modified_euler") & (rows.dtype == "float64")])
    found = orders(points)
    if not found:
        return []
    key = max(found)
    return [
        f"On the paper's closed form at T = {key[0]:g} in float64 the adjoint's error falls with order "
        f"{found[key][0]:.2f} in the number of states ({found[key][1]}); modified Euler is of order 2."
    ]


def _cosmixture(frame: pd.DataFrame) -> list[str]:
    told = []
    points = error_points(cosmixture_study(frame))
    paper = published("table5")["amaml"]
    fine = points[(points.backward == "modified_euler") & points["mean"].notna()]
    both = [row for row in fine.itertuples() if (row.horizon, row.num_states) in paper]
    if both:
        row = max(both, key=lambda row: (row.horizon, -abs(row.num_states - 100), row.dtype))
        told.append(
            f"On CosMixture at T = {row.horizon:g} with {row.num_states} states in {row.dtype} the error of "
            f"{row.series} is {words.error(row.mean)}; published: {words.error(paper[row.horizon, row.num_states][0])}."
        )
    for _, group in points.groupby("setting"):
        stable, longest = smallest_stable(group), group.horizon.max()
        needs: dict[int, list[str]] = {}
        for (horizon, series, _), states in stable.items():
            if horizon == longest:
                needs.setdefault(states, []).append(series)
        if needs:
            each = "; ".join(f"{states} for {', '.join(dict.fromkeys(needs[states]))}" for states in sorted(needs))
            told.append(f"On CosMixture at T = {longest:g} the fewest states that stay stable are {each}.")
    return told
