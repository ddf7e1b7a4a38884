"""``make zoo``: every module of the zoo through every method, and through what the compiled engine traces, as a page.

It takes some minutes on two cores. What was measured is kept in ``.zoo.json`` until the page is written, so that an
interrupted run goes on.
"""

from __future__ import annotations

import json
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).parents[2]
KEPT, PAGE = ROOT / ".zoo.json", ROOT / "docs" / "models.md"
METHODS = {"eager": ("maml", "remat-maml", "fomaml", "reptile", "imaml", "amaml"), "compiled": ("maml", "imaml")}
ENGINES = tuple(METHODS)
HEAD = """# Which models it is right on

Made by `make zoo` (torch {torch}, CPU, float64). Each kind of module goes through all methods (three inner steps) in
the eager engine, and through `maml` and `imaml` as the compiled engine traces them; the traced graph then runs as it
is, for compiling each would take hours. A number is the largest relative error of any task's gradient: of `fomaml`
and `reptile` against a module that was trained as it is, of `imaml` against a dense linear system with the Hessian
from differences of that module's gradients, of the others against central differences of the trained module's query
loss. None of these shares a derivative, vmap or the exchange of parameters with the suite. Where a module is refused,
the sentence stands in the number's place.

| module | eager | traced |
|---|---|---|
"""


def one(kind: str, name: str, engine: str) -> tuple[str, str]:
    """The key of a verdict, and the verdict."""
    import torch
    from test_modules import verdict
    from zoo import ZOO

    from amaml_core.engine import inductor

    inductor._build = lambda graph, examples: graph
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return f"{kind}/{name}/{engine}", verdict(ZOO[kind], name, engine)


def cell(kind: str, engine: str, verdicts: dict[str, str]) -> str:
    """What the table says of a module in an engine."""
    methods = METHODS[engine]
    found = {name: verdicts[f"{kind}/{name}/{engine}"] for name in methods}
    refused = {name: text for name, text in found.items() if not text[0].isdigit()}
    numbers = [float(text) for name, text in found.items() if name not in refused]
    told = [f"{max(numbers):.0e}"] if numbers else []
    for sentence in dict.fromkeys(refused.values()):
        names = [name for name, text in refused.items() if text == sentence]
        whom = "" if len(names) == len(methods) else f" ({', '.join(names)})"
        told.append(f"refused{whom}: {sentence}".replace("|", "\\|"))
    return "; ".join(told)


def main() -> None:
    """Measure what is not measured yet, then write the page."""
    import torch
    from zoo import ZOO

    verdicts = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    todo = [(k, n, e) for e in ENGINES for k in ZOO for n in METHODS[e] if f"{k}/{n}/{e}" not in verdicts]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for count, done in enumerate(as_completed([pool.submit(one, *job) for job in todo]), 1):
            key, verdicts_of = done.result()
            verdicts[key] = verdicts_of
            KEPT.write_text(json.dumps(verdicts))
            print(f"[{count}/{len(todo)}] {key}: {verdicts_of}", flush=True)
    rows = [f"| {kind} | {' | '.join(cell(kind, engine, verdicts) for engine in ENGINES)} |" for kind in ZOO]
    PAGE.write_text(HEAD.format(torch=torch.__version__) + "\n".join(rows) + "\n")
    KEPT.unlink()


if __name__ == "__main__":
    main()
