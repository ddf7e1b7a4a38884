"""Adaptive explicit schemes whose accepted steps the way back can use: rk4 with an error, and stabilised ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from amaml_core.ode.scheme import RK4, NumStates, Single, SolverFailedError, System, Trajectory, largest_rms

MARGIN = 0.9  # of a limit of stability, for the estimate of what it limits
# Smooth steps of rk4 tell an error that is no such small share of one of order two. Where it is, there may be a kink
# between the stages, and this share of the latter counts.
BLIND, KINK_SHARE = 1e-3, 0.01
MAX_STAGES = 20  # of a Chebyshev step: more would gain little


@dataclass(frozen=True)
class RK4Step:
    """One step of rk4: (u, f(t, u) ``[B, d]``, t, h ``[B, 1]``, (rtol, atol)) -> (u', f(t+h, u'), judgement ``[2]``).

    The slope at the new point, which the next step starts with, gives a third-order solution for comparison (Hairer,
    Nørsett and Wanner 1993, sec. II.4), which is blind to a kink in f between the first stage and the last: see
    ``BLIND``. And it gives, against the last stage at the same time, a lower bound of h‖∂f/∂u‖ where it matters: their
    difference lies in the stiff directions. The third result is (the largest of the tasks' RMS errors in units of the
    tolerance, the largest h‖∂f/∂u‖ or zero where the step does not tell).
    """

    order = 3  # of the solution that the step is compared with
    bears = MARGIN * RK4.stability  # the largest h‖∂f/∂u‖
    accurate, damped = 4, 0.3  # the order, and what a step leaves of a stiff mode
    damps = 1.6  # the h‖∂f/∂u‖ that is damped most, to 0.27 of its size

    def __call__(
        self, system: System, u: Tensor, slope: Tensor, t: Tensor, h: Tensor, tolerance: Tensor
    ) -> tuple[Tensor, ...]:
        """Whether the step is any good is the caller's to decide."""
        slopes: list[Tensor] = []

        def field(c: float, stage: Tensor) -> Tensor:
            slopes.append(system.field(t + c * h, stage) if slopes else slope)
            return slopes[-1]

        new, stages = RK4.step(field, u, h)
        end = system.field(t + h, new)
        change = end - slopes[-1]
        distance = (new - stages[-1]).square().sum(-1).clamp_min(torch.finfo(u.dtype).tiny)
        stiffness = h.squeeze(-1) * (change.square().sum(-1) / distance).sqrt()
        rounding = 100 * torch.finfo(u.dtype).eps * new.norm(dim=-1)  # at rest nothing is left to tell it from
        stiffness = torch.where(distance.sqrt() > rounding, stiffness, 0.0)
        error = _error(0.1 * h * change, u, new, tolerance)
        bend = (slopes[0] - slopes[1] - slopes[2] + slopes[3]).abs() + (slopes[1] - slopes[2]).abs()
        coarse = _error(h / 6 * bend, u, new, tolerance)
        error = torch.where(error < BLIND * coarse, KINK_SHARE * coarse, error)
        return new, end, torch.stack([error, stiffness.max()])


@dataclass(frozen=True)
class Family:
    """Orthogonal polynomials P_j = a_j x P_(j-1) − b_j P_(j-2) that a stabilised scheme is made of.

    Attributes:
        lead: P_1(x) / x.
        terms: j -> (a_j, b_j).
        shift: the P are taken at 1 + shift/stages², which damps more.
        reach: stages -> the largest h‖∂f/∂u‖ with a stable step.
        damped: what a step leaves of a stiff mode, by and large.
    """

    lead: float
    terms: Callable[[int], tuple[float, float]]
    shift: float
    reach: Callable[[int], float]
    damped: float


FAMILIES = {
    "rkc2": Family(1.0, lambda j: (2.0, 1.0), 2 / 13, lambda s: 2 / 3 * (s**2 - 1), damped=0.7),
    "rkg2": Family(3.0, lambda j: ((2 * j + 1) / j, (j + 1) / j), 0.0, lambda s: (s + 4) * (s - 1) / 3, damped=0.4),
}


@dataclass(frozen=True)
class StabilizedStep:
    """One step of a stabilised second-order scheme, whose limit of stability grows as ``stages``².

    "rkc2" is made of Chebyshev's polynomials (Sommeijer, Shampine and Verwer 1998, eq. 2.1 to 2.6), "rkg2" of
    Gegenbauer's of order 3/2 in the same way (O'Sullivan 2019): it damps stiff modes to a third a step where the other
    leaves two thirds, as the way back needs, for a fifth more stages. Arguments and results are those of ``RK4Step``.
    """

    stages: int
    solver: str = "rkc2"

    order = 2
    accurate = 2

    @property
    def bears(self) -> float:
        """The largest h‖∂f/∂u‖."""
        return 0.95 * FAMILIES[self.solver].reach(self.stages)

    @property
    def damped(self) -> float:
        """See ``Family``."""
        return FAMILIES[self.solver].damped

    def __call__(
        self, system: System, u: Tensor, slope: Tensor, t: Tensor, h: Tensor, tolerance: Tensor
    ) -> tuple[Tensor, ...]:
        """See ``RK4Step``."""
        new = self.advance(system, u, slope, t, h)
        end = system.field(t + h, new)
        error = _error(0.8 * (u - new) + 0.4 * h * (slope + end), u, new, tolerance)
        return new, end, torch.stack([error, torch.zeros_like(error)])

    def advance(self, system: System, u: Tensor, slope: Tensor, t: Tensor, h: Tensor) -> Tensor:
        """The state after the step, ``[B, d]``."""
        family = FAMILIES[self.solver]
        w0 = 1 + family.shift / self.stages**2
        value, first, second = [1.0, family.lead * w0], [0.0, family.lead], [0.0, 0.0]  # P at w0, its derivatives
        for j in range(2, self.stages + 1):
            ahead, behind = family.terms(j)
            value.append(ahead * w0 * value[j - 1] - behind * value[j - 2])
            first.append(ahead * (value[j - 1] + w0 * first[j - 1]) - behind * first[j - 2])
            second.append(ahead * (2 * first[j - 1] + w0 * second[j - 1]) - behind * second[j - 2])
        w1 = first[-1] / second[-1]
        b = [second[max(j, 2)] / first[max(j, 2)] ** 2 for j in range(self.stages + 1)]
        c = [0.0, b[1] * w1 * first[1], *(w1 * second[j] / first[j] for j in range(2, self.stages + 1))]
        before, stage = u, u + c[1] * h * slope
        for j in range(2, self.stages + 1):
            ahead, behind = family.terms(j)
            mu, nu, weight = ahead * b[j] * w0 / b[j - 1], -behind * b[j] / b[j - 2], ahead * b[j] * w1 / b[j - 1]
            own = weight * (1 - b[j - 1] * value[j - 1])
            moved = weight * system.field(t + c[j - 1] * h, stage) - own * slope
            before, stage = stage, (1 - mu - nu) * u + mu * stage + nu * before + h * moved
        return stage


@dataclass(frozen=True)
class Accepted:
    """A stabilised step as a function of the state alone, see ``OneStep``."""

    step: StabilizedStep

    @property
    def evaluations(self) -> int:
        """Of f."""
        return self.step.stages

    def __call__(self, system: System, u: Tensor, t: Tensor, h: Tensor) -> tuple[Tensor]:
        """See ``OneStep``."""
        return (self.step.advance(system, u, system.field(t, u), t, h),)


BEARS = {"rk43": RK4Step.bears, **{name: StabilizedStep(MAX_STAGES, name).bears for name in FAMILIES}}


def adaptive(
    system: System,
    u: Tensor,
    horizon: Tensor,
    *,
    solver: str,
    num_states: NumStates,
    rtol: float,
    atol: float,
    keep: bool,
    max_steps: int,
    max_stiffness: float,
) -> Trajectory:
    """Solve by one of ours with steps that mind the error and the stability of both ways. See ``ode.solve``."""
    scale, tolerance = horizon.unsqueeze(1), u.new_tensor([rtol, atol])
    grid = torch.linspace(0, 1, num_states + 1, dtype=torch.float64).tolist() if isinstance(num_states, int) else []
    times, states, taken, steps, rejected, s, before, known = [0.0], [u], [], 0, 0, 0.0, 1.0, 0.0
    own = keep and not grid  # the way back takes these steps too
    most = min(max_stiffness, BEARS[solver])
    with torch.no_grad():
        ds, slope, probe = _first_step(system, u, scale, tolerance, 4 if solver == "rk43" else 3)
        while s < 1.0:
            if steps + rejected >= max_steps:
                raise SolverFailedError(f"{solver} took more than {max_steps} steps")
            if (solver in FAMILIES or own) and steps + rejected == 0:
                probe.look(system, u, slope, s * scale, scale, times=4)  # what the trajectory itself never visits
                known = probe.stiffness
            if probe.stiffness > 0:
                ds = min(ds, most / probe.stiffness)
            if own:
                ds = min(
                    ds, 1 / _fewest(RK4Step() if solver == "rk43" else StabilizedStep(2, solver), probe.stiffness, rtol)
                )
            if not ds > 1e-10:
                raise SolverFailedError(f"{solver}'s step size vanished")
            if solver == "rk43" and own and (1.0 - s) * probe.stiffness <= 3 * RK4Step.damps:
                # the way back starts with λ(T), which has not left the stiff directions as the trajectory has: near its
                # limit of stability rk4 would carry them along for many steps
                ds = min(ds, (1.0 - s) / max(1, math.ceil((1.0 - s) * probe.stiffness / RK4Step.damps - 1e-9)))
            if 1.0 - s < 2 * ds:  # the last two steps are equal, not one of them tiny
                ds = (1.0 - s) / math.ceil((1.0 - s) / ds - 1e-9)
            step = RK4Step() if solver == "rk43" else _stabilized(solver, ds * probe.stiffness)
            at = torch._foreach_mul([scale, scale], [s, ds])  # pyright: ignore[reportPrivateImportUsage]  # one kernel
            new, end, judgement = system.run(step, u, slope, *at, tolerance)
            error, seen = judgement.tolist()
            power = 1 / (step.order + 1)
            if not error <= 1.0:  # NaN too
                rejected += 1
                ds *= max(0.2, 0.9 * error**-power) if error < math.inf else 0.2
                continue
            if seen > most / MARGIN:  # stiffer than was known: the way back would blow up on this step
                rejected += 1
                probe.stiffness = seen / ds
                continue
            reached = s + ds if 1.0 - (s + ds) > 1e-9 else 1.0
            if solver in FAMILIES:
                probe.look(system, new, end, reached * scale, scale)
                if ds * probe.stiffness > step.bears:  # stiffer at its end: likewise
                    rejected += 1
                    continue
            steps += 1
            if keep and grid:
                for point in grid[len(times) : -1]:
                    if point > reached:
                        break
                    times.append(point)
                    states.append(_hermite((point - s) / (reached - s), ds * scale, u, slope, new, end))
            elif keep:
                times.append(reached)
                states.append(new)
                taken.append(Accepted(step) if isinstance(step, StabilizedStep) else Single(RK4))
            s, u, slope = reached, new, end
            if solver == "rk43":
                probe.stiffness = max(0.95 * probe.stiffness, seen / ds)  # the curvature changes slowly along the way
                known = max(known, seen / ds)
                if own and probe.stiffness < 0.85 * known:  # the trajectory does not show it any more: is it there?
                    probe.look(system, u, slope, s * scale, scale)
                    known = probe.stiffness
            error = max(error, 1e-4)
            ds *= min(5.0, 0.9 * error ** (-0.7 * power) * before ** (0.4 * power))
            before = error
    if times[-1] < 1.0:
        times.append(1.0)
        states.append(u)
    at = torch.tensor(times, dtype=torch.float64, device=u.device).unsqueeze(1) * horizon
    return Trajectory(at, states, steps, rejected, taken=taken)


def _fewest(step: RK4Step | StabilizedStep, stiffness: float, rtol: float) -> float:
    """Steps over the whole horizon that λ needs, also where u hardly moves, so that its error asks for none.

    Of a mode of λ that decays by e^(-z) over the horizon, n equal steps of order p leave the error
    z^(p+1)/(p+1)! e^(-z)/n^p, which is largest at z = p+1; and stiff modes must be damped.
    """
    p, wanted = step.accurate, 0.1 * rtol if step.accurate > 2 else 10 * rtol  # in order two it would be dear
    z = min(stiffness, p + 1.0)
    resolved = (z ** (p + 1) / math.factorial(p + 1) * math.exp(-z) / wanted) ** (1 / p)
    # to a tenth of the tolerance, for λ(0) is shorter than λ(T)
    return max(resolved, math.log(0.1 * rtol) / math.log(step.damped)) if stiffness > p + 1 else max(resolved, 1.0)


def _stabilized(solver: str, stiffness: float) -> StabilizedStep:
    """The step of the fewest stages that bears h‖∂f/∂u‖; few different ones, for each is compiled."""
    steps = [StabilizedStep(stages, solver) for stages in (2, 3, 4, 6, 8, 11, 15, MAX_STAGES)]
    return next((step for step in steps if step.bears >= stiffness), steps[-1])


class Stiffness:
    """‖∂f/∂u‖ times the horizon, the largest of the tasks', by a power iteration with differences of f.

    Attributes:
        stiffness: as far as known, a little on the safe side.
    """

    def __init__(self, found: float, direction: Tensor) -> None:
        self._learn(found, direction)

    def look(self, system: System, u: Tensor, slope: Tensor, t: Tensor, scale: Tensor, times: int = 1) -> None:
        """So many more iterations, at u."""
        found, direction = system.chain(Look(times), u, slope, t, scale, self.direction)
        self._learn(float(found), direction)

    def _learn(self, found: float, direction: Tensor) -> None:
        self.stiffness, self.direction = found if math.isfinite(found) else 0.0, direction


@dataclass(frozen=True)
class Look:
    """``times`` iterations at u with f(t, u): (u, f, t, T ``[B, 1]``, direction) -> (T‖∂f/∂u‖, the next direction)."""

    times: int

    def __call__(
        self, system: System, u: Tensor, slope: Tensor, t: Tensor, scale: Tensor, direction: Tensor
    ) -> tuple[Tensor, ...]:
        """See ``System.chain``."""
        found = scale
        for _ in range(self.times):
            moved = direction * (1e-3 * (1e-3 + _norm(u)))
            found, direction = _iterated(system.field(t, u + moved) - slope, moved, scale)
        return found, direction


def _iterated(change: Tensor, moved: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """What a change of f over a way says of T‖∂f/∂u‖, and where to go next."""
    size = _norm(change).clamp_min(torch.finfo(change.dtype).tiny)
    found = (1.1 * scale * size / _norm(moved).clamp_min(torch.finfo(change.dtype).tiny)).max()
    ripple = torch.cos(torch.arange(change.shape[-1], dtype=change.dtype, device=change.device))
    mixed = change / size + 0.1 * ripple / _norm(ripple)  # else a direction that is at rest would never be met
    return found, mixed / _norm(mixed)


def _first_step(
    system: System, u: Tensor, scale: Tensor, tolerance: Tensor, power: int
) -> tuple[float, Tensor, Stiffness]:
    """A first step, as a share of the horizon, f(0, u), and a look at the stiffness (Hairer et al. 1993, sec. II.4)."""
    slope, sizes = system.chain(_start, u, scale, tolerance)
    size, speed = sizes.tolist()
    if not 0 < speed < math.inf:
        found, direction = _iterated(torch.zeros_like(u), torch.ones_like(u), scale)
        return 1.0, slope, Stiffness(float(found), direction)
    ds = min(0.01 * size / speed, 1.0) or 1e-6
    seen, direction = system.chain(_bend, u, slope, ds * scale, scale, tolerance)
    bend, found = seen.tolist()
    first = min(100 * ds, (0.01 / max(speed, bend / ds)) ** (1 / power))
    return first, slope, Stiffness(found, direction)


def _start(system: System, u: Tensor, scale: Tensor, tolerance: Tensor) -> tuple[Tensor, Tensor]:
    """f(0, u), and the sizes of u and of T f in units of the tolerance."""
    slope, unit = system.field(0.0 * scale, u), tolerance[1] + tolerance[0] * u.abs()
    return slope, torch.stack([largest_rms(u / unit), largest_rms(scale * slope / unit)])


def _bend(
    system: System, u: Tensor, slope: Tensor, h: Tensor, scale: Tensor, tolerance: Tensor
) -> tuple[Tensor, Tensor]:
    """By how much a step of Euler changes T f, in units of the tolerance; T‖∂f/∂u‖ along it, and where to look next."""
    moved = h * slope
    change = system.field(h, u + moved) - slope
    found, direction = _iterated(change, moved, scale)
    unit = tolerance[1] + tolerance[0] * u.abs()
    return torch.stack([largest_rms(scale * change / unit), found]), direction


def _error(error: Tensor, u: Tensor, new: Tensor, tolerance: Tensor) -> Tensor:
    return largest_rms(error / (tolerance[1] + tolerance[0] * torch.maximum(u.abs(), new.abs())))


def _norm(value: Tensor) -> Tensor:
    return torch.linalg.vector_norm(value, dim=-1, keepdim=True)


def _hermite(x: float, h: Tensor, u: Tensor, slope: Tensor, new: Tensor, end: Tensor) -> Tensor:
    """The cubic through both ends of a step and their slopes, at the share x of it; its error is O(h⁴)."""
    return (
        (1 + 2 * x) * (1 - x) ** 2 * u
        + x * (1 - x) ** 2 * h * slope
        + x**2 * (3 - 2 * x) * new
        + x**2 * (x - 1) * h * end
    )
