"""A-MAML: the inner training as an ODE, its meta-gradient by the adjoint ODE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from amaml_core.errors import InputError, positive_integer, positive_number
from amaml_core.inner import InnerProblem
from amaml_core.methods.accuracy import cleared, clearing, doubtful, estimated, kept_of
from amaml_core.methods.base import Adaptation, Doubt, MetaGradient, MetaGradientMethod, Outcome, Target
from amaml_core.methods.refine import BOTH_WAYS, Setting, options, refined
from amaml_core.ode.accuracy import SUSPICIOUS, Defect, defect
from amaml_core.ode.adaptive import BEARS, MARGIN
from amaml_core.ode.adjoint import (
    BACKWARD,
    MAX_GROWTH,
    MISSED,
    AdjointSolution,
    backsolve,
    check_backward,
    discrete,
    gradient_order,
    tracked,
)
from amaml_core.ode.flow import BudgetSpentError, GradientFlow
from amaml_core.ode.scheme import FIXED_GRIDS, NumStates, SolverFailedError, Trajectory
from amaml_core.ode.solve import ADAPTIVE, check_solver, solve
from amaml_core.problem import MetaProblem
from amaml_core.stopping import Stopping
from amaml_core.tasks import TaskBatch

BUDGET_RTOL = 1e-5  # of which the default budget of gradients is thought
LIMP = 0.8  # of the limit of stability: from there on a step leaves half of a mode that the flow forgets
UNTOLD = ("max_evals", "max_stiffness", "estimate_error", "grad_rtol")  # among the options where they are not given
# what is found where grad_rtol is given
FOUND = {"forward", "backward", "num_states", "checkpoint", "rtol", "atol", "max_stiffness", "estimate_error"}
FEW = 4  # accepted steps that are too few for orders to mean much, and cheap to look into
LEAST_EPS = 1e-4  # of a dtype that can follow a flow: the steps of one rounded off more coarsely are lost


@dataclass(frozen=True, kw_only=True)
class AMAML(MetaGradientMethod):
    """dJ/dθ = λ(0), with du/dt = −∇L_tr(u) forward and dλ/dt = ∇²L_tr(u) λ backward (Li et al. 2023, eq. 3, 7, 8).

    λ(T) = ∇L_val(u(T)). With ``prox`` μ the inner objective gains μ/2‖u−θ‖², λ obeys dλ/dt = (∇²L_tr + μI) λ and
    the gradient is λ(0) + ∫μλ dt. Euler both ways is the exact gradient of ``num_states`` gradient steps.

    Attributes:
        forward: "dopri5", any other torchdiffeq solver, "euler", "heun", "rk4" on ``num_states`` equal steps, or
            with adaptive steps "rk43", which minds the stability of the way back too, and "rkg2" or "rkc2", which are
            stabilised for long horizons.
        backward: "modified_euler", "euler", "rk4" along the tracked states; "discrete": the forward solver's own steps
            are differentiated (fixed grids, or ours with "accepted"); "backsolve" tracks no states.
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
        max_stiffness: the largest h‖∂f/∂u‖ of a step of "rk43", "rkg2" or "rkc2"; None: what the schemes bear.
        estimate_error: whether a flow's gradient comes with its ``error_estimate``, for about half its price again.
            None: where its defect or an unstable step leaves a doubt, and where steps are few or differentiated or the
            loss has kinks, once in ``accuracy.RECHECKED`` updates where none is unstable. False: never, and doubts are
            told as they are.
        grad_rtol: of the gradient itself, ‖grad − the flow's‖ / ‖grad‖ as estimated; scheme, states and tolerances are
            then found, kept for the next updates on the same problem object, and looked at again every so many.
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
    max_stiffness: float | None = None
    estimate_error: bool | None = None
    grad_rtol: float | None = None

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
        if self.grad_rtol is not None:
            positive_number("grad_rtol", self.grad_rtol)
            for field in fields(self):
                usual = (field.default, self.inner_steps) if field.name == "num_states" else (field.default,)
                if field.name in FOUND and getattr(self, field.name) not in usual:
                    raise InputError(f"grad_rtol finds {field.name} itself; give one of the two.")
        if self.max_stiffness is not None:
            positive_number("max_stiffness", self.max_stiffness)
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
        """See ``MetaGradientMethod.options``; the number of states is written out, ``UNTOLD`` where they are given."""
        named = super().options() | {"num_states": self._states}
        return {name: value for name, value in named.items() if name not in UNTOLD or value is not None}

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
        given = self.max_stiffness or math.inf
        if self._states != "accepted" or self.backward not in BACKWARD:  # the way back takes other steps
            return given
        return min(given, MARGIN * BACKWARD[self.backward].stability)

    @property
    def inner_prox(self) -> float:
        """μ."""
        return self.prox

    def meta_gradient(
        self, problem: MetaProblem, meta: Tensor | Mapping[str, Tensor], tasks: TaskBatch
    ) -> MetaGradient:
        """See ``MetaGradientMethod.meta_gradient``; with its error estimated where that is asked for or needed."""
        if self.grad_rtol is not None:

            def at(setting: Setting) -> MetaGradient:
                other = self._found(setting, meta)
                return MetaGradientMethod.meta_gradient(other, problem, meta, tasks)

            return refined(at, self.grad_rtol, kept_of(problem), self, lambda: problem.kinked)
        out = super().meta_gradient(problem, meta, tasks)
        if self.target != "flow" or self.estimate_error is False:
            return out
        # the defect of a differentiated solve, of a few wide steps or across kinks is too little to go by
        few = self._states == "accepted" and out.stats.get("forward_steps", math.inf) <= FEW
        unproven = (self.backward == "discrete" or few or problem.kinked) and "diverged" not in out.status
        doubt = not self.estimate_error and doubtful(out)
        if not (self.estimate_error or unproven or doubt):
            return out
        kept, key = kept_of(problem), (estimated, self)
        if self.estimate_error is None and key in kept and (trusted := cleared(out, kept[key], doubt)):
            kept[key] = replace(kept[key], left=kept[key].left - 1)
            return trusted
        same = replace(tasks, horizon=out.horizon)  # as a stopping rule left it
        spent = bool(out.stats.get("budgets_spent"))

        def again(factor: float) -> MetaGradient | None:
            other = self._resolved(factor, spent, torch.finfo(out.grad.dtype).eps)
            return other and MetaGradientMethod.meta_gradient(other, problem, meta, same)

        overrule, remedy = self.backward != "backsolve", partial(self._remedy, spent)
        order = gradient_order(self.forward, self.backward)
        found = estimated(out, again, order=order, kinked=problem.kinked, overrule=overrule, remedy=remedy)
        if (known := clearing(out, found)) is not None:
            kept[key] = known
        return found

    def adapt(self, problem: MetaProblem, meta: Tensor | Mapping[str, Tensor], tasks: TaskBatch) -> Adaptation:
        """See ``MetaGradientMethod.adapt``."""
        if self.grad_rtol is None:
            return super().adapt(problem, meta, tasks)
        setting = kept_of(problem).get(self, Setting(BOTH_WAYS))
        return MetaGradientMethod.adapt(self._found(setting, meta), problem, meta, tasks)

    def _found(self, setting: Setting, meta: Tensor | Mapping[str, Tensor]) -> AMAML:
        """Itself with scheme and resolution of a setting."""
        assert self.grad_rtol is not None
        theta = meta["theta"] if isinstance(meta, Mapping) else meta
        eps = torch.finfo(theta.dtype).eps
        return replace(self, grad_rtol=None, **options(setting, self.grad_rtol, self.inner_steps, eps))

    def _resolved(self, factor: float, spent: bool, eps: float) -> AMAML | None:
        """The same with so many times the states, and an adaptive way out with so many times the steps."""
        states, forward = self._states, self.forward
        if spent:
            forward, states = "rk4", self.inner_steps if states == "accepted" else states
        if isinstance(states, int):
            if states * factor < 1:
                return None
            states = round(states * factor)
        stiffness = self.max_stiffness or BEARS.get(forward)
        tighter = factor ** -ADAPTIVE[forward] if forward in ADAPTIVE else 1.0
        return replace(
            self,
            forward=forward,
            num_states=states,
            rtol=max(self.rtol * tighter, eps),
            atol=self.atol * tighter,
            max_stiffness=stiffness and stiffness / factor,
            stopping=None,
        )

    def _remedy(self, spent: bool, error: float) -> str:
        if self._states == "accepted" and not spent:
            help_ = f"lower rtol below {self.rtol * min(0.1, max(1e-3, SUSPICIOUS / error)):.0e}"
        else:
            more = 8 if error > 1 else (2 * error / SUSPICIOUS) ** (1 / gradient_order(self.forward, self.backward))
            states = self._states if isinstance(self._states, int) else self.inner_steps
            help_ = f"raise num_states to {math.ceil(states * more)}"
        return f"{help_}, or have grad_rtol=0.01 find the steps"

    def _solve(self, inner: InnerProblem, horizon: Tensor, keep: bool) -> tuple[Trajectory, Tensor]:
        if torch.finfo(inner.theta.dtype).eps > LEAST_EPS:
            raise InputError(
                f"theta is {inner.theta.dtype}, which rounds the steps of a flow away; keep it in float32, and run the "
                "model in a lower precision under torch.autocast."
            )
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
        loss, terminal, horizon_grad = inner.whole(self._at_end, (type(self), self.target), end)
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
        told = [getattr(solution, field.name) for field in fields(solution)]
        key = type(self), self.forward, self.backward, self._states == "accepted", self.prox
        grads, missed, doubts = inner.whole(self._at_start, key, horizon, end, horizon_grad, *told)
        doubts += self._spent(inner, horizon)
        if missed is not None:
            remedy = (
                "⟨λ, f⟩ is not the same at both ends (defect {:.0%}), as of too few steps or of kinks (ReLU, "
                "max-pooling); estimate_error=True tells how far off the gradient is."
            )
            doubts += (Doubt(missed.share > SUSPICIOUS, "inaccurate", remedy, missed.share),)
        share, size = missed or (None, None)
        return Outcome(end, horizon, loss, grads, horizon_grad, share, size, doubts)

    def _at_end(self, inner: InnerProblem, end: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Query loss ``[B]``, λ(T) ``[B, d]``, and of a flow dJ/dT ``[B]``."""
        loss, terminal = inner.query_gradient(end)
        slope = -inner.gradient(end) if self.target == "flow" else None
        return loss, terminal, None if slope is None else (terminal * slope).sum(-1)

    def _at_start(
        self,
        inner: InnerProblem,
        horizon: Tensor,
        end: Tensor,
        horizon_grad: Tensor | None,
        adjoint: Tensor,
        *solution: Tensor | None,
    ) -> tuple[Tensor, Defect | None, tuple[Doubt, ...]]:
        """The gradient ``[B, d]`` that an ``AdjointSolution`` makes, and what is doubtful about it."""
        found, missed, start = AdjointSolution(adjoint, *solution), None, inner.start()
        if horizon_grad is not None:
            missed = defect(found.adjoint, -inner.gradient(start), horizon_grad, start, horizon)
        grads = found.adjoint if found.integral is None else found.adjoint + self.prox * found.integral
        return grads, missed, self._doubts(start, end, found)

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

    def _doubts(self, start: Tensor, end: Tensor, solution: AdjointSolution) -> tuple[Doubt, ...]:
        if solution.start is not None:
            distance, way = (solution.start - start).norm(dim=-1), (end - start).norm(dim=-1)
            rounding = math.sqrt(torch.finfo(start.dtype).eps) * start.norm(dim=-1)
            bad = ~(distance <= MISSED * way + rounding)  # NaN is bad too
            remedy = "The back-solve missed the start of the trajectory; track the states (any other backward=)."
        elif self.target == "flow" and solution.stiffness is not None:
            bad = ~(solution.stiffness <= BACKWARD[self.backward].stability)
            more = "raise num_states"
            if self._states == "accepted":
                more = "lower rtol" if self.forward == "rk43" else 'lower rtol, or use forward="rk43"'
            remedy = f"The backward {self.backward} steps are unstable for this curvature; {more}."
            near = solution.stiffness > LIMP * BACKWARD[self.backward].stability
            limp = f"The backward {self.backward} steps hardly damp what this curvature damps; {more}."
            return (Doubt(bad, "diverged", remedy), Doubt(near, "inaccurate", limp))
        elif self.target == "flow" and solution.growth is not None:
            bad = ~(solution.growth <= MAX_GROWTH)
            remedy = (
                "The steps are unstable for this curvature and amplify the adjoint; lower rtol, or raise num_states."
            )
        else:
            return ()
        return (Doubt(bad, "diverged", remedy),)
