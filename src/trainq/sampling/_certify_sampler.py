"""Whether a sampler that is not trainq's samples a model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Key, Num

from .._checks import check_key, require_concrete, whole_number
from ..markov import AbstractKernel, Check, Visit, checked_kernel
from ..models import (
    AbstractEnergyModel,
    AbstractStart,
    Law,
    Stationary,
    checked,
    initial_states,
    log_stationary,
    require_model,
)
from ._effective_beta import grouped, of_groups
from ._redraws import (
    alike,
    as_redraws,
    deviations,
    fit_fields,
    fit_temperature,
    redraws,
)
from ._sampler_certificate import (
    AT_ONCE,
    TEMPERATURE,
    SamplerCertificate,
    WorstTransition,
)
from ._state_tests import flows, law_deviations, moved_moments
from ._transitions import best_temperature, products, transition_deviations


Step = Callable[[Key[Array, ""], Num[Array, "n_starts n_units"]], Any]
"""A step of a sampler: from a key and states, `(n_starts, n_units)` spins of
independent chains, to the next ones."""

# Up to so many units the fields of all are fitted, and of the worst alone beyond.
_MAX_FITTED = 24
# Up to so many a draw from the law of the model is one from a table.
_MAX_TABLE = 20
# Up to so many steps are compared with the chain, which may have a matrix.
_MAX_CHAIN = 13
# All but `motion`.
_CHECKS = ("transitions", "moments", "temperature", "fields", "reversibility")


def certify_sampler(
    key: Key[Array, ""],
    step: Step,
    model: AbstractEnergyModel,
    starts: AbstractStart | Num[Array | np.ndarray, "*groups n_units"] = Stationary(),
    *,
    kernel: AbstractKernel | None = None,
    reversible: bool | None = None,
    n_starts: int = 4096,
    n_steps: int = 10,
    false_alarm: float = 0.01,
    estimates: bool = True,
) -> SamplerCertificate:
    """Check that a sampler which is not trainq's samples a model: a step of hardware,
    of another library, or of one's own.

    States from the law of the model are moved by some steps, and must remain its
    states:

    - *transitions*, where a `kernel` is claimed: after a step the means of spins and of
        products of two, given the state before, are those of its chain;
    - *moments*: the means of the gradient's observables, and of the energy, stay;
    - *temperature* and *fields*: every unit is up as often as its field says, `σ(2 F)`
        given all others, neither more at another temperature nor by some field besides;
    - *reversibility*, where it is claimed: `E[x_i x'_j] = E[x_j x'_i]` for a step from
        `x` to `x'`;
    - *motion*: some state moved at all, as otherwise nothing was tested.

    The first of these holds the `stepper` and the `chain` of a kernel of your own
    against each other, for up to [13 units](../choosing.md#limits), of chains that do
    not [share coins](../sampling.md#coins-that-are-shared). Whether the chain is right
    is asked by [`trainq.certify`][]. Errors that are seen shrink with the root of the
    number of states: take more of them before you rely on a kernel of your own.

    What a step shows of its fields depends on what it is. If it claims to be a `kernel`
    whose redraws can be told from the states before and after, then each of them is
    compared with the heat bath, whatever state it began in: of each block in a fixed
    order, given the others as they were by then, and of one block at random by its
    flips, since who was not chosen is as it was. This finds small faults in few steps.
    Otherwise the states at the end alone are compared, each unit with its law given the
    others, which takes steps enough to leave the starts behind.

    If a check fails, the same is asked of two other heat baths: that of the temperature
    which fits best, and that of all units redrawn at once, given the states before the
    step. One that the states do follow is the cause that is named first.

    A check that looks at `m` numbers has its bar at `√(2 log(2 m k / α))` standard
    errors, with `k` such checks and `α` the `false_alarm` of all of them: by the
    inequalities of Bernstein and Bonferroni the probability that a sound sampler fails
    is at most `α`, and in truth a few times less. That is proved for transitions, for
    redraws over one step, for fields in the law of independent states, and for what is
    odd under reversal of time in a reversible sampler; for the rest it holds for large
    numbers of states.

    **Arguments:**

    - `key`: random key.
    - `step`: takes a key and `(n_starts, n_units)` spins, each a chain by itself, and
        returns the next ones, in JAX or NumPy. It is called as it is, once for each
        step; a generator of NumPy can be seeded by `jax.random.key_data(key)`. Chains
        that share coins are not independent, and may raise false alarms.
    - `model`: the model.
    - `starts`: states from the law of the model: drawn exactly, by default, for up to
        [20 units](../choosing.md#limits); or `(states, n_units)` that are independent;
        or `(chains, draws, n_units)` from long runs of a sampler that is trusted,
        correlated as they may be within each of many chains. From another start, such
        as [`trainq.Uniform`][], only transitions and redraws are compared.
    - `kernel`: what the step claims to be.
    - `reversible`: whether it claims to be reversible: as the kernel does, by default.
    - `n_starts`: how many states a start draws.
    - `n_steps`: how many steps each is moved by.
    - `false_alarm`: the largest probability with which a sound sampler fails.
    - `estimates`: whether to fit the sampler's temperature and fields as well, by
        maximum likelihood, and to look for a fault that explains what fails: what takes
        most of the time, and names the worst.

    **Returns:** a [`trainq.sampling.SamplerCertificate`][]. `print` it, read `.ok`, or
    halt with `.require()`.

    **Raises:** `ValueError` for numbers that are not what they should be, states that
    are no states of the model, too few independent ones for any check to fail, or a
    start that leaves nothing to check, and under `jax.jit` and its like; a run-time
    error if a parameter is not finite.

    ??? cite "Source"

        Freedman, *On tail probabilities for martingales*, Ann. Probab. 3, 100, 1975;
        Efron, *Student's t-test under symmetry conditions*, J. Am. Stat. Assoc. 64,
        1278, 1969; the regressions are those of Ravikumar, Wainwright and Lafferty,
        Ann. Stat. 38, 1287, 2010. For tests by successive conditionals, Geweke,
        J. Am. Stat. Assoc. 99, 799, 2004.

    !!! example

        ```python
        other = tq.AlternatingBlockGibbs()


        def step(key, x):
            return other.step(key, model.tempered(0.5), x)


        found = tq.certify_sampler(key, step, model, kernel=other)
        print(found.failed)
        ```
    """
    check_key(key)
    require_model(model)
    given = {"key": key, "model": model}
    require_concrete("A certificate of a sampler", **given)
    if isinstance(getattr(step, "__self__", None), AbstractKernel):
        raise ValueError(
            "step is a function of a key and of states, but a method of a kernel was "
            "given, which takes a model as well. Give `kernel.stepper(model)`."
        )
    if not callable(step):
        raise ValueError(
            "step is a function of a key and of states, but an object of type "
            f"{type(step).__name__} was given. Look at the order of the arguments."
        )
    n_steps = whole_number("n_steps", n_steps, of="steps")
    if not (isinstance(false_alarm, float) and 0 < false_alarm < 1):
        raise ValueError(
            f"false_alarm is a probability between 0 and 1, but {false_alarm!r} was "
            "given."
        )
    visits = None
    whys = {"reversibility": "the sampler does not claim it"}
    if kernel is None:
        whys["transitions"] = "the sampler claims no kernel"
    else:
        visits = checked_kernel(kernel).visits(model)
        reversible = kernel.is_reversible if reversible is None else reversible
        if model.n_units > _MAX_CHAIN:
            whys["transitions"] = f"the chain of more than {_MAX_CHAIN} units is large"
        elif len(kernel.replicas(model)) > 1:
            whys["transitions"] = "the kernel moves several replicas"
        elif kernel.shares_coins:
            whys["transitions"] = "chains share coins: make it with `shared=False`"
    if reversible:
        del whys["reversibility"]
    draw_key, step_key = jr.split(key)
    model, from_law = checked(model), True
    if isinstance(starts, AbstractStart):
        n_starts = whole_number("n_starts", n_starts, of="states")
        groups, from_law = n_starts, starts.is_stationary
        if from_law and model.n_units <= _MAX_TABLE:
            # Of a table of the law thousands of draws cost no more than one.
            starts = Law(jnp.exp(log_stationary(model)))
        first = initial_states(draw_key, starts, model, None, n_starts)
    else:
        first, groups = grouped(starts, model.n_units)
        first = first.astype(model.dtype)
    if not from_law:
        outside = "chains do not start from the law of the model"
        whys |= dict.fromkeys(("moments", "reversibility"), outside)
        if visits is None:
            whys |= dict.fromkeys(("temperature", "fields"), outside)
        if len(whys) == len(_CHECKS):
            raise ValueError(
                "Chains that do not start from the law of the model show nothing but "
                "their transitions and redraws, and those of this step cannot be told. "
                "Start from the law, or name the `kernel` that the step claims to be: "
                f"of at most {_MAX_CHAIN} units, or one whose redraws show."
            )
    path = [first]
    for one in jr.split(step_key, n_steps):
        path.append(_checked_states(step(one, path[-1]), path[-1]))
    states = jnp.stack(path)
    checks, found, means = _checked(
        model, kernel, visits, states, groups, whys, false_alarm
    )
    basics = (checks, first.shape[0], n_steps, false_alarm)
    transition = None
    if "transitions" in found:
        transition = _furthest(model.n_units, found["transitions"], *means)
    certificate = SamplerCertificate(*basics, transition)
    if not estimates or "fields" not in found:
        return certificate
    beta, beta_error = _temperature(model, visits, states, groups)
    excess, excess_error = _fitted(model, visits, states, groups, found["fields"])
    certificate = SamplerCertificate(
        *basics, transition, beta, beta_error, excess, excess_error
    )
    if not certificate.failed or "motion" in certificate.failed:
        return certificate
    explained = _explained(model, kernel, visits, states, groups, certificate)
    return replace(certificate, explained_by=explained)


def _checked_states(new: Any, old: Array) -> Num[Array, "n_starts n_units"]:
    """What a step returned, having checked that it is states like those given."""
    found = np.asarray(new)
    if found.shape != old.shape or found.dtype == bool or not np.all(abs(found) == 1):
        raise ValueError(
            f"The step returns spins, -1 or +1, of the shape {old.shape} that it was "
            f"given, but an array of shape {found.shape} and dtype {found.dtype} came "
            "back. Convert bits by `2 * x - 1`, and a step of one chain by `jax.vmap`."
        )
    return jnp.asarray(found).astype(old.dtype)


def _checked(
    model: AbstractEnergyModel,
    kernel: AbstractKernel | None,
    visits: tuple[Visit, ...] | None,
    states: Num[Array, "times n_starts n_units"],
    groups: int,
    whys: dict[str, str],
    false_alarm: float,
) -> tuple[dict[str, Check], dict[str, np.ndarray], list[np.ndarray]]:
    """Every check, the deviations that each looked at, and the means after a step, as
    seen and of the chain."""
    n_units = model.n_units
    before, after = (s.reshape(-1, n_units) for s in (states[:-1], states[1:]))
    seen: dict[str, np.ndarray | Array] = {}
    means: list[Array] = []
    if "transitions" not in whys:
        assert kernel is not None
        seen["transitions"], *means = transition_deviations(
            kernel, model, before, after
        )
    if "moments" not in whys:
        seen["moments"] = moved_moments(model, states, groups)
    if "fields" not in whys:
        if visits is not None:
            fields, temperature = deviations(model, visits, before, after)
        else:
            fields, temperature = law_deviations(model, states[-1], groups)
        seen |= {"temperature": jnp.atleast_1d(temperature), "fields": fields}
    if "reversibility" not in whys:
        seen["reversibility"] = flows(states, groups)
    found = {name: np.asarray(numbers) for name, numbers in seen.items()}

    def bar(numbers: np.ndarray) -> float:
        return math.sqrt(2 * math.log(2 * numbers.size * len(found) / false_alarm))

    # Sums over groups are no more than so many standard errors. Steps know better.
    of_steps = {"transitions"}
    if visits is not None:
        of_steps |= {"temperature", "fields"}
    summed = [bar(x) ** 2 for name, x in found.items() if name not in of_steps]
    needed = max(summed, default=0)
    if groups <= needed:
        raise ValueError(
            f"Of {groups} independent states or chains no deviation is more than "
            f"{math.sqrt(groups):.1f} standard errors, and no check could fail: give "
            f"at least {math.ceil(2 * needed)}, or allow more false alarms."
        )
    still = float(np.mean(np.all(np.asarray(states[1:] == states[:1]), axis=(0, 2))))
    checks = {"motion": Check(jnp.asarray(still), 1 - 0.5 / states.shape[1])}
    for name in _CHECKS:
        if name in found:
            largest = jnp.asarray(found[name].max())
            checks[name] = Check(largest, bar(found[name]))
        else:
            checks[name] = Check(None, 0.0, whys[name])
    return checks, found, [np.asarray(mean) for mean in means]


def _furthest(
    n_units: int, deviations: np.ndarray, seen: np.ndarray, expected: np.ndarray
) -> WorstTransition:
    of, at = products(n_units), np.unravel_index(deviations.argmax(), deviations.shape)
    before, after = of[int(at[0])], of[1 + int(at[1])]
    return WorstTransition(before, after, float(seen[at]), float(expected[at]))


# What the sampler has in place of the model's temperature and fields.


def _temperature(
    model: AbstractEnergyModel,
    visits: Sequence[Visit] | None,
    states: Array,
    groups: int,
) -> tuple[float, float]:
    if visits is None:
        found = of_groups(model, states[-1], groups)
        return found.beta, found.error
    n_units = model.n_units
    before, after = (s.reshape(-1, n_units) for s in (states[:-1], states[1:]))
    seen = [_redraws(model, v, before, after) for v, _ in alike(visits)]
    beta, at = fit_temperature(seen)
    information = float(at(beta)[1]) if np.isfinite(beta) else 0.0
    return beta, 1 / math.sqrt(information) if information > 0 else math.inf


def _fitted(
    model: AbstractEnergyModel,
    visits: Sequence[Visit] | None,
    states: Array,
    groups: int,
    fields: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    n_units = model.n_units
    excess = np.zeros((n_units, n_units + 1))
    error = np.full(excess.shape, np.inf)
    worst = int(np.argmax(fields.max(axis=1)))
    wanted = range(n_units) if n_units <= _MAX_FITTED else [worst]
    if visits is None:
        # One state of each group: these are independent.
        last = states[-1].reshape(groups, -1, n_units)[:, -1]
        seen = [_as_redraws(model, last)]
    else:
        before, after = (s.reshape(-1, n_units) for s in (states[:-1], states[1:]))
        seen = [_redraws(model, v, before, after) for v, _ in alike(visits)]
    for one in seen:
        for place, unit in enumerate(one.visit.units):
            if unit in wanted:
                excess[unit], error[unit] = fit_fields(
                    one, place, memory=visits is not None
                )
    return excess, error


def _explained(
    model: AbstractEnergyModel,
    kernel: AbstractKernel | None,
    visits: tuple[Visit, ...] | None,
    states: Array,
    groups: int,
    found: SamplerCertificate,
) -> str | None:
    """Which single fault leaves nothing unexplained: that whose heat bath the states
    are closest to, if they pass it, and if they do not pass that of the model."""
    n_units, beta = model.n_units, found.beta
    before, after = (s.reshape(-1, n_units) for s in (states[:-1], states[1:]))
    everyone = (Visit(tuple(range(n_units)), 1.0, ()),)
    heat_baths = {AT_ONCE: deviations(model, everyone, before, after)}
    astray = {"fields", "temperature"} & set(found.failed)
    if astray and beta is not None and math.isfinite(beta):
        other = model.tempered(beta)
        if visits is None:
            heat_baths[TEMPERATURE] = law_deviations(other, states[-1], groups)
        else:
            heat_baths[TEMPERATURE] = deviations(other, visits, before, after)
    bars = [found.checks[name].tolerance for name in ("fields", "temperature")]
    worst = {
        name: max(float(jnp.max(x)) / bar for x, bar in zip(off, bars, strict=True))
        for name, off in heat_baths.items()
    }
    transitions = found.checks["transitions"]
    if worst.get(TEMPERATURE, math.inf) <= 1 and transitions.applicable:
        # The law of a wrong step may look like that of another temperature.
        assert kernel is not None and beta is not None and found.beta_error is not None
        least = best_temperature(kernel, model, before, after, beta, found.beta_error)
        worst[TEMPERATURE] = max(worst[TEMPERATURE], least / transitions.tolerance)
    best = min(worst, key=worst.__getitem__)
    return best if worst[best] <= 1 else None


_redraws = eqx.filter_jit(redraws)
_as_redraws = eqx.filter_jit(as_redraws)
