"""A-MAML: the inner training as an ODE, its meta-gradient by the adjoint ODE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from amaml_core.errors import InputError, positive_integer, positive_number
from amaml_core.inner import InnerProblem
from amaml_core.methods.base import Doubt, MetaGradientMethod, Outcome, Target
from amaml_core.ode.adaptive import MARGIN
from amaml_core.ode.adjoint import BACKWARD, AdjointSolution, backsolve, check_backward, discrete, tracked
from amaml_core.ode.flow import BudgetSpentError, GradientFlow
from amaml_core.ode.scheme import FIXED_GRIDS, NumStates, SolverFailedError, Trajectory
from amaml_core.ode.solve import ADAPTIVE, check_solver, solve
from amaml_core.stopping import Stopping

BUDGET_RTOL = 1e-5  # of which the default budget of gradients is thought
MAX_GROWTH = 5.0  # of λ in one step: negative curvature lengthens it too, but not in steps that resolve the flow


@dataclass(frozen=True, kw_only=True)
class AMAML(MetaGradientMethod):
    """dJ/dθ = λ(0), with du/dt = −∇L_tr(u) forward and dλ/dt = ∇²L_tr(u) λ backward (Li et al. 2023, eq. 3, 7, 8).

    λ(T) = ∇L_val(u(T)). With ``prox`` μ the inner objective gains μ/2‖u−θ‖², λ obeys dλ/dt = (∇²L_tr + μI) λ and
    the gradient is λ(0) + ∫μλ dt. Euler both ways is the exact gradient of ``num_states`` gradient steps.

    Attributes:
        forward: "dopri5", any other torchdiffeq solver, "euler", "heun", "rk4" on ``num_states`` equal steps, or
            with adaptive steps "rk43", which minds the stability of the way back too, and "rkc2", which is stabilised
            for long horizons.
        backward: "modified_euler", "euler", "rk4" along the tracked states; "discrete": the forward solver's own steps
            are differentiated (fixed grids, or "rk43" and "rkc2" with "accepted"); "backsolve" tracks no states.
        num_states: K equal intervals of each task's [0, T_b], ``inner_steps`` where none is given; "accepted": the
            forward solver's own steps, so that ``rtol`` governs both.
        checkpoint: "sqrt": only every √K-th state is kept, the others are computed again on the way back, for the
            price of one more gradient a stage; fixed grids only. None: all states are kept.
        rtol: of an adaptive forward solver.
        atol: likewise.
        prox: μ.
        stopping: None, ``GradientNorm(tol)`` or ``QueryLoss(patience)``, acting on the tracked points.
        max_evals: gradients that an adaptive way out may take; where they do not suffice, as with the kinks of ReLU or
            max-pooling, rk4 goes the way in equal steps and the tasks are "not_converged". None: ten an inner step and
            50 more, and the more the lower ``rtol`` is.
    """

    forward: str = "dopri5"
    backward: str = "modified_euler"
    num_states: NumStates | None = None
    checkpoint: Literal["sqrt"] | None = None
    rtol: float = 1e-5
    atol: float = 1e-7
    prox: float = 0.0
    stopping: Stopping | None = None
    max_evals: int | None = None

    name = "amaml"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_solver(self.forward, self._states, self.rtol, self.atol)
        check_backward(self.backward, self.forward, self._states)
        if self.checkpoint not in (None, "sqrt"):
            raise InputError(f'checkpoint={self.checkpoint!r} is unknown; choose "sqrt" or None.')
        if self.checkpoint and (self.forward not in FIXED_GRIDS or self.backward == "backsolve" or self.stopping):
            raise InputError(
                f'checkpoint="sqrt" needs a fixed grid ({", ".join(FIXED_GRIDS)}) and no stopping rule or back-solve; '
                "change those, or drop checkpoint."
            )
        positive_number("prox", self.prox, or_zero=True)
        if self.max_evals is not None:
            positive_integer("max_evals", self.max_evals)
        if self.prox and self.backward == "discrete":
            raise InputError('backward="discrete" has no prox; use prox=0 or another backward scheme.')
        if self.stopping is not None and not isinstance(self.stopping, Stopping):
            raise InputError(f"stopping={self.stopping!r} is not a stopping rule; use GradientNorm, QueryLoss or None.")

    @property
    def target(self) -> Target:
        """Flow; unrolled where Euler both ways makes it the gradient of discrete steps."""
        return "unrolled" if self.forward == "euler" and self.backward in ("euler", "discrete") else "flow"

    @property
    def _states(self) -> NumStates:
        return self.inner_steps if self.num_states is None else self.num_states

    def options(self) -> dict[str, Any]:
        """See ``MetaGradientMethod.options``; the number of states is written out, ``max_evals`` where it is given."""
        named = super().options() | {"num_states": self._states}
        return {name: value for name, value in named.items() if name != "max_evals" or value is not None}

    @property
    def captures_whole(self) -> bool:
        """On a fixed grid, unless a stopping rule or a back-solve looks at what it finds."""
        return self.forward in FIXED_GRIDS and self.stopping is None and self.backward != "backsolve"

    @property
    def _budget(self) -> float:
        if self.max_evals is not None or self.forward not in ADAPTIVE:
            return self.max_evals or math.inf
        return (10 * self.inner_steps + 50) * max(1.0, (BUDGET_RTOL / self.rtol) ** (1 / ADAPTIVE[self.forward]))

    @property
    def _every(self) -> int:
        return math.isqrt(self._states) if self.checkpoint and isinstance(self._states, int) else 1

    @property
    def _max_stiffness(self) -> float:
        if self._states != "accepted" or self.backward not in BACKWARD:  # the way back takes other steps
            return math.inf
        return MARGIN * BACKWARD[self.backward].stability

    @property
    def inner_prox(self) -> float:
        """μ."""
        return self.prox

    def _solve(self, inner: InnerProblem, horizon: Tensor, keep: bool) -> tuple[Trajectory, Tensor]:
        settings = {
            "rtol": self.rtol,
            "atol": self.atol,
            "keep": keep or self.stopping is not None,
            "every": self._every,
            "max_stiffness": self._max_stiffness,
        }
        start, flow = inner.start(), GradientFlow(inner, budget=self._budget)
        try:
            path = solve(flow, start, horizon, solver=self.forward, num_states=self._states, **settings)
        except BudgetSpentError:
            steps = self.inner_steps if self._states == "accepted" else self._states
            path = solve(GradientFlow(inner), start, horizon, solver="rk4", num_states=steps, **settings)
            inner.stats["budgets_spent"] += 1
        inner.stats.update(forward_steps=path.steps, rejected_steps=path.rejected)
        if self.stopping is not None:
            path = path.stopped_at(self.stopping.index(inner, path))
            horizon = path.times[-1].to(horizon.dtype)
        return path, horizon

    def _adapt(self, inner: InnerProblem, horizon: Tensor) -> Outcome:
        path, horizon = self._solve(inner, horizon, keep=False)
        return Outcome(path.states[-1].clone(), horizon, doubts=self._spent(inner, horizon))

    def _differentiate(self, inner: InnerProblem, horizon: Tensor) -> Outcome:
        path, horizon = self._solve(inner, horizon, keep=self.backward != "backsolve")
        end = path.states[-1].clone()  # a view would keep the whole trajectory alive
        loss, terminal = inner.query_gradient(end)
        horizon_grad = None
        if self.target == "flow":
            horizon_grad = -(terminal * inner.gradient(end)).sum(-1)
        if self.backward == "backsolve":
            try:
                solution = backsolve(
                    GradientFlow(inner),
                    end,
                    horizon,
                    terminal,
                    solver=self.forward,
                    num_states=self._states,
                    rtol=self.rtol,
                    atol=self.atol,
                    forward_steps=path.steps,
                    integrate=self.prox > 0,
                )
            except SolverFailedError:
                if len(end) > 1:
                    raise  # to be tried task by task
                nowhere = torch.full_like(end, torch.nan)
                solution = AdjointSolution(nowhere, start=nowhere)
            inner.stats["states_stored"] += 1
        else:
            if self.backward == "discrete":
                solution = discrete(GradientFlow(inner), path, terminal)
                inner.stats["hvp_evals"] += path.evaluations
            else:
                scheme = BACKWARD[self.backward]
                solution = tracked(GradientFlow(inner), path, terminal, scheme, integrate=self.prox > 0)
            inner.stats["states_stored"] += len(path.states) + (path.every if path.every > 1 else 0)
        grads = solution.adjoint if solution.integral is None else solution.adjoint + self.prox * solution.integral
        doubts = (*self._doubts(inner.start(), solution), *self._spent(inner, horizon))
        return Outcome(end, horizon, loss, grads, horizon_grad, doubts)

    def _spent(self, inner: InnerProblem, horizon: Tensor) -> tuple[Doubt, ...]:
        """What is told of tasks that ended well, but on steps of rk4 and not on the solver's own."""
        if not inner.stats["budgets_spent"]:
            return ()
        remedy = (
            f"{self.forward} wanted more than {self._budget:.0f} gradients, as it does where the loss has kinks (ReLU, "
            'max-pooling), so that rk4 took equal steps instead, with no tolerance; use forward="rk4", smooth '
            "activations, or a higher rtol or max_evals."
        )
        return (Doubt(torch.ones_like(horizon, dtype=torch.bool), "not_converged", remedy),)

    def _doubts(self, start: Tensor, solution: AdjointSolution) -> tuple[Doubt, ...]:
        if solution.start is not None:
            distance = (solution.start - start).norm(dim=-1)
            bad = ~(distance <= 1e-2 * (1 + start.norm(dim=-1)))  # NaN is bad too
            remedy = "The back-solve missed the start of the trajectory; track the states (any other backward=)."
        elif self.target == "flow" and solution.stiffness is not None:
            bad = ~(solution.stiffness <= BACKWARD[self.backward].stability)
            more = "raise num_states"
            if self._states == "accepted":
                more = "lower rtol" if self.forward == "rk43" else 'lower rtol, or use forward="rk43"'
            remedy = f"The backward {self.backward} steps are unstable for this curvature; {more}."
        elif self.target == "flow" and solution.growth is not None:
            bad = ~(solution.growth <= MAX_GROWTH)
            remedy = "A step is unstable for this curvature and amplifies the adjoint; lower rtol, or raise num_states."
        else:
            return ()
        return (Doubt(bad, "diverged", remedy),)
