"""The report's sections on meta-training (E4 and E5)."""

from __future__ import annotations

from reports import training, training_figures, training_tables, words
from reports.figures import Figure
from reports.paper import published_ratings
from reports.section import Section

NORMALISERS = {
    "task-std": "the standard deviation of the task's own test targets (1 is the error of their mean as a guess)",
    "range": "the range of the ratings, 20 on Jester and 4 on MovieLens",
}
PROTOCOL = (
    "Meta-training by each method with Adam at 1e-3 on batches of five tasks, then plain gradient descent of 0.01 on "
    "each of the test tasks, all methods for the same number of steps. nRMSE is the root-mean-square error over {}: "
    "mean ± standard deviation over the test tasks, a mean over seeds. Seeds draw tasks, start and batches anew, alike "
    "for all methods. To the gradient of the flow amaml takes rk4 in adaptive steps, rtol = 1e-3 (on Alpine, which is "
    "stiff, those of the stabilised scheme RKC2, rtol = 1e-4), and their discrete adjoint; with the paper's own "
    "schemes, dopri5 and modified Euler on a state a step, it has a row of its own. p is "
    "that of Wilcoxon's signed-rank test over the test tasks of all seeds, adjusted by Holm's method; the tasks of a "
    "seed share one training, so that it tells of these trainings, and a lead must be there in every seed besides."
)


def sections(contests: list[training.Contest]) -> list[Section]:
    """The sections on what the methods' initialisations are worth."""
    usual = [contest for contest in contests if not contest.variant]
    regression, ratings = ([c for c in usual if training.is_rating(c) == kind] for kind in (False, True))
    return [
        Section(
            "budget",
            "Which initialisation under which budget",
            "experiments",
            "The best initialisation of all that were trained, and its mean nRMSE on the test tasks after adaptation. "
            "All methods have the same tasks, start and outer updates; a training that ends before its time is up "
            "keeps what it had. What was trained on fewer seeds is left out. Seconds are those of the training, with "
            "another one beside it on the machine, compilation not included; memory is the allocator's peak of the "
            "first outer update.",
            [training_tables.within_time(usual)] * bool(usual)
            + [training_tables.within_memory(usual)] * any(run.bytes == run.bytes for c in usual for run in c.trained),
            [],
        ),
        _regression(regression),
        _ratings(ratings),
        _variants([c for c in contests if c.variant]),
    ]


def _regression(contests: list[training.Contest]) -> Section:
    updates = {contest.outer_updates for contest in contests}
    return Section(
        "training-regression",
        "Initialisations for 2-D regression (E4)",
        "experiments",
        f"{PROTOCOL.format(NORMALISERS['task-std'])} {_updates(updates)}",
        [
            training_tables.standing("Error on the test tasks after adaptation", contests),
            training_tables.verdicts('"A-MAML is best" (Li et al. 2023, fig. 2)', contests),
            *map(training_tables.details, contests),
        ]
        if contests
        else [],
        _drawn(
            training_figures.adaptation(contests, "training-regression"),
            training_figures.learning(contests, "training-regression-learning"),
        ),
    )


def _ratings(contests: list[training.Contest]) -> Section:
    paper = published_ratings()
    lengths = sorted({contest.test_steps for contest in contests})
    updates = {contest.outer_updates for contest in contests}
    shown = [
        training_tables.standing(
            f"{words.plural(steps, 'step')}: error on the held-out ratings of the test users",
            [contest for contest in contests if contest.test_steps == steps],
            paper,
        )
        for steps in lengths
    ]
    if contests:
        shown.append(training_tables.verdicts('"A-MAML is best" (Li et al. 2023, tables 1 and 2)', contests))
        shown.append(training_tables.protocol_slips("What would make numbers of the published size", contests, paper))
    return Section(
        "training-ratings",
        "Initialisations for collaborative filtering (E5)",
        "experiments",
        f"{PROTOCOL.format(NORMALISERS['range'])} {_updates(updates)} Published: Li et al. 2023, tables 1 and 2, whose "
        "normaliser is not told. Guesses: the mean of all ratings of other users, of the item's, of the user's own "
        "shots, and the item's mean shifted by how the user's shots depart from it.",
        shown + [training_tables.details(contest) for contest in contests],
        _drawn(
            training_figures.standing(contests, paper, "training-ratings"),
            training_figures.learning(
                [c for c in contests if c.test_steps == max(lengths)], "training-ratings-learning"
            ),
        ),
    )


def _variants(contests: list[training.Contest]) -> Section:
    tables_of = [training_tables.variants("Error on the test tasks after adaptation", contests)] if contests else []
    text = "The same contests with one thing changed; the errors are over the same scale unless the normaliser is it."
    return Section("training-variants", "Initialisations: what changes the order", "", text, tables_of, [])


def _updates(updates: set[int]) -> str:
    return f"Outer updates: {', '.join(f'{number:,}' for number in sorted(updates))}."


def _drawn(*made: Figure | None) -> list[Figure]:
    return [figure for figure in made if figure]
