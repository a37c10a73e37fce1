"""Samplers that are not trainq's: sound ones pass, and planted faults are told."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import oracle
import pytest
from helpers import (
    DIRECT,
    KERNELS,
    SIGMAS,
    assert_close,
    central_difference,
    energies,
    grid,
    machine,
    neural,
    rbm,
    slow_except,
)
from scipy import stats

import trainq as tq
from trainq import sampling
from trainq.markov import Visit
from trainq.sampling._redraws import (
    Redraws,
    _negative_log_likelihood,
    alike,
    as_redraws,
    bernstein,
    deviations,
    fit_fields,
    fit_temperature,
    redraws,
)
from trainq.sampling._state_tests import flows, law_deviations, moved_moments
from trainq.sampling._transitions import products, transition_deviations


MODEL = rbm(4, 3, biased=True, scale=0.6)
LAYERS = KERNELS["alternating"]
KEY = jr.key(7)


def stepper(kernel, model):
    return lambda key, x: kernel.step(key, model, x)


def certified(kernel, device, claim, model=MODEL, **options):
    options = {"estimates": False} | options
    return tq.certify_sampler(
        KEY, stepper(kernel, device), model, kernel=claim, **options
    )


# What a step shows.


def test_what_a_step_shows_of_its_redraws():
    v, h = tuple(range(4)), tuple(range(4, 7))
    shown = {
        "gibbs": tuple(Visit((i,), 1 / 7, ()) for i in range(7)),
        "metropolis": None,
        "random": (Visit(v, 0.5, ()), Visit(h, 0.5, ())),
        "palindromic": (Visit(v, 1.0, h),),
        "alternating": (Visit(v, 1.0, ()), Visit(h, 1.0, v)),
    }
    assert {name: KERNELS[name].visits(MODEL) for name in KERNELS} == shown
    assert tq.Symmetrised(LAYERS).visits(MODEL) is None
    assert tq.Power(LAYERS, 2).visits(MODEL) is None
    three = tq.AlternatingBlockGibbs([[0, 1], [4, 5, 6], [2, 3]])
    assert three.visits(MODEL) == (
        Visit((0, 1), 1.0, ()),
        Visit((4, 5, 6), 1.0, (0, 1)),
        Visit((2, 3), 1.0, (0, 1, 4, 5, 6)),
    )
    # Units that interact within a layer are not drawn independently.
    assert KERNELS["random"].visits(machine(5, 3)) is None
    assert KERNELS["alternating"].visits(machine(4)) is None


TOLD = ["gibbs", "random", "palindromic", "alternating"]


@pytest.mark.parametrize("name", slow_except(TOLD, "alternating"))
def test_a_visit_has_the_probability_of_a_flip_that_the_chain_has(name):
    # From the matrix of the oracle: P(unit i flips and the others become y), against
    # p σ(-2 s F) given what the visit says that the unit was given.
    model = rbm(2, 2, biased=True)
    pi = oracle.law(energies(model))
    matrix = oracle.transition(name, pi, (range(2), range(2, 4)))
    states = oracle.states(4)
    for visit in KERNELS[name].visits(model):
        for place, unit in enumerate(visit.units):
            told, flipped, expected = {}, {}, {}
            for x, before in enumerate(states):
                after = np.asarray(states)
                seen = redraws(
                    *(model, visit, jnp.asarray(np.tile(before, (16, 1)))),
                    jnp.asarray(after),
                )
                _, _, a = seen.parts()
                given = np.asarray(seen.others)[:, :-1].copy()
                given[:, unit] = before[unit]
                for y in range(16):
                    one = tuple(given[y])
                    weight = pi[x] * matrix[x, y]
                    told[one] = told.get(one, 0) + weight
                    flips = weight * bool(seen.flipped[y, place])
                    flipped[one] = flipped.get(one, 0) + flips
                    expected[one] = visit.probability * float(a[y, place])
            for one, total in told.items():
                assert abs(flipped[one] / total - expected[one]) < DIRECT


def test_visits_alike_are_looked_at_together():
    visits = KERNELS["gibbs"].visits(MODEL)
    ((together, numbers),) = alike(visits)
    assert together == Visit(tuple(range(7)), 1 / 7, ()) and numbers == tuple(range(7))
    assert len(alike(LAYERS.visits(MODEL))) == 2


# The statistics, by themselves.


def test_bernstein_bounds_the_tail_of_rare_and_of_many_flips():
    # The exact binomial tail of a sum of n centred flips, against 2 exp(-d²/2).
    for n, p in ((20, 0.5), (1000, 0.3), (1000, 1e-3), (10, 1e-4), (10_000, 0.01)):
        counts = np.arange(n + 1)
        total = counts - n * p
        spread = jnp.full(n + 1, n * p * (1 - p))
        d = np.asarray(bernstein(jnp.asarray(total), spread))
        order = np.argsort(-d)
        tail = np.cumsum(stats.binom.pmf(counts, n, p)[order])
        bound = 2 * np.exp(-(d[order] ** 2) / 2)
        last = np.append(np.diff(d[order]) < 0, True)  # with all that are as far out
        assert (tail[last] <= bound[last] * (1 + 1e-9)).all()
    assert abs(bernstein(jnp.array(30.0), jnp.array(1e6)) - 0.03) < 1e-3


@pytest.mark.slow
def test_deviations_have_the_mean_and_variance_that_they_divide_by():
    # Scores over runs of a sound sampler: mean zero, variance one. Of 400 runs a
    # variance is known to √(2/400) = 7 %, and Bernstein's term takes up to 5 %.
    for kernel in ("gibbs", "alternating", "random"):
        visits = KERNELS[kernel].visits(MODEL)

        def one(key, kernel=kernel, visits=visits):
            start, key = jr.split(key)
            x = jr.rademacher(start, (3000, 7), float)  # no matter where they start
            new = KERNELS[kernel].stepper(MODEL)(key, x)
            return deviations(MODEL, visits, x, new)

        each, along = jax.lax.map(one, jr.split(KEY, 400))
        square = np.mean(np.asarray(each) ** 2, axis=0)
        assert 0.7 < square.min() and square.max() < 1.35
        assert 0.7 < np.mean(np.asarray(along) ** 2) < 1.3


@pytest.mark.slow
def test_the_law_and_the_moments_have_theirs():
    law = jnp.exp(tq.log_stationary(MODEL))

    def one(key):
        states = tq.Law(law).draw(key, MODEL, None, 1000).reshape(2, 500, 7)
        each, along = law_deviations(MODEL, states[1], 500)
        return each, along

    each, along = jax.jit(jax.vmap(one))(jr.split(KEY, 400))
    square = np.mean(np.asarray(each) ** 2, axis=0)
    off = ~np.eye(7, 8, dtype=bool)
    assert 0.7 < square[off].min() and square[off].max() < 1.35
    assert np.all(square[~off] == 0)
    # The squares of the units of one state add up to more or less than the model's.
    assert 0.5 < np.mean(np.asarray(along) ** 2) < 1.3


def test_sums_over_groups_are_those_of_the_groups():
    states = jr.rademacher(KEY, (3, 12, 7), float)
    found = moved_moments(MODEL, states, 4)
    x = np.asarray(states)
    energy = np.asarray([[MODEL.energy(y) for y in row] for row in states])
    f = np.concatenate([np.asarray(MODEL.observables(states)), energy[..., None]], -1)
    d = (f[-1] - f[0]).reshape(4, 3, -1).sum(axis=1)
    np.testing.assert_allclose(found, abs(d.sum(0)) / np.sqrt((d**2).sum(0)))
    assert (found <= 2 + 1e-12).all()  # the root of the number of groups
    flow = np.einsum("tdi,tdj->dij", x[:-1], x[1:]).reshape(4, 3, 7, 7).sum(axis=1)
    flow = flow - flow.transpose(0, 2, 1)
    expected = abs(flow.sum(0)) / np.sqrt(np.maximum((flow**2).sum(0), 1))
    np.testing.assert_allclose(flows(states, 4), expected[np.triu_indices(7, 1)])


@pytest.mark.parametrize("name", slow_except(["gibbs", "alternating"], "alternating"))
def test_transitions_are_compared_with_the_rows_of_the_matrix(name):
    model = rbm(2, 2, biased=True)
    matrix = oracle.transition(
        name, oracle.law(energies(model)), (range(2), range(2, 4))
    )
    x = np.asarray(jr.rademacher(KEY, (60, 4), float))
    y = np.asarray(KERNELS[name].step(jr.key(1), model, jnp.asarray(x)))
    states = np.asarray(oracle.states(4))
    index = [int(np.flatnonzero((states == one).all(axis=1))[0]) for one in x]
    found, seen, expected = transition_deviations(
        KERNELS[name], model, jnp.asarray(x), jnp.asarray(y)
    )
    of = products(4)
    assert found.shape == (11, 10) and of[0] == () and of[5:7] == ((0, 1), (0, 2))
    for g, before in enumerate(of):
        for f, after in enumerate(of[1:]):
            total = spread = hoped = 0.0
            for one, new, row in zip(x, y, matrix[index], strict=True):
                mean = sum(row * np.prod(states[:, after], axis=1))
                square = sum(row * np.prod(states[:, after], axis=1) ** 2)
                total += np.prod(one[list(before)]) * (np.prod(new[list(after)]) - mean)
                spread += square - mean**2
                hoped += np.prod(one[list(before)]) * mean / len(x)
            assert abs(expected[g, f] - hoped) < DIRECT
            assert abs(seen[g, f] - hoped - total / len(x)) < DIRECT
            deviation = abs(total) / np.sqrt(spread + 2 * abs(total) / 3)
            assert_close(found[g, f], deviation, 1e-10)


@pytest.mark.slow
def test_transitions_have_the_mean_and_variance_that_they_divide_by():
    for kernel in (KERNELS["metropolis"], tq.Symmetrised(LAYERS, shared=False)):

        def one(key, kernel=kernel):
            start, key = jr.split(key)
            x = jr.rademacher(start, (3000, 7), float)
            return transition_deviations(
                kernel, MODEL, x, kernel.stepper(MODEL)(key, x)
            )[0]

        square = jnp.mean(jax.lax.map(one, jr.split(KEY, 400)) ** 2, axis=0)
        # The largest and smallest of 812 variances, each known to 7 %.
        assert 0.65 < square.min() and square.max() < 1.4
        assert abs(square.mean() - 0.98) < 0.05


# Sound samplers pass, and name the temperature and the fields.

SOUND = {
    "layers": (LAYERS, LAYERS, MODEL),
    "one unit": (KERNELS["gibbs"], KERNELS["gibbs"], MODEL),
    "layers at random": (KERNELS["random"], KERNELS["random"], MODEL),
    "there and back": (KERNELS["palindromic"], KERNELS["palindromic"], MODEL),
    "Metropolis": (KERNELS["metropolis"], KERNELS["metropolis"], MODEL),
    "nothing claimed": (LAYERS, None, MODEL),
    "any energy": (KERNELS["gibbs"], KERNELS["gibbs"], neural(3, 2)),
    "three colours": (
        tq.AlternatingBlockGibbs([[0, 4, 2], [1], [3, 5]]),
        tq.AlternatingBlockGibbs([[0, 4, 2], [1], [3, 5]]),
        grid(),
    ),
    "frozen": (LAYERS, LAYERS, rbm(3, 2, scale=6.0)),
}


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    "name", slow_except(SOUND, "layers", "one unit", "nothing claimed", "frozen")
)
def test_a_sound_sampler_passes(name):
    kernel, claim, model = SOUND[name]
    found = certified(kernel, model, claim, model)
    assert found.ok and found.require() is found, found
    applies = found.checks["reversibility"].applicable
    assert applies == (claim is not None and claim.is_reversible)


@pytest.mark.slow
def test_beta_and_the_fields_are_those_of_the_sampler():
    sampler = eqx.tree_at(lambda m: m.weights, MODEL, MODEL.weights.at[1, 2].add(0.3))
    for claim, kernel in ((LAYERS, LAYERS), (KERNELS["gibbs"],) * 2, (None, LAYERS)):
        found = certified(kernel, sampler, claim, estimates=True)
        assert "fields" in found.failed or claim is not LAYERS
        expected = np.zeros((7, 8))
        expected[1, 6] = expected[6, 1] = 0.3
        known = np.isfinite(found.excess_error)
        z = (found.excess - expected)[known] / found.excess_error[known]
        assert abs(z).max() < SIGMAS and 0.5 < z.std() < 1.5
        assert known.all() == (claim is not None)
    found = certified(LAYERS, sampler, LAYERS, estimates=True)
    assert set(found.worst) == {1, 6}
    assert "by unit" in str(found) and "effective beta" in str(found)
    # All fields on one line, another temperature is nothing else.
    found = certified(LAYERS, MODEL.tempered(1.2), LAYERS, estimates=True)
    assert found.beta_error is not None and found.beta_error < 0.01
    assert abs(found.beta - 1.2) < SIGMAS * found.beta_error


# Faults, and which checks tell them.


def at_once(key, model, x):
    """Every unit redrawn given the old ones."""
    field = model.local_fields(x, jnp.arange(model.n_units))
    up = jr.uniform(key, x.shape) < jax.nn.sigmoid(2 * field)
    return jnp.where(up, 1.0, -1.0)


def one_coin(key, x):
    """A sweep of layers, in which all units of a layer are drawn with one coin."""
    for number, coin in enumerate(jr.split(key)):
        units = jnp.arange(4) if number == 0 else jnp.arange(4, 7)
        up = jax.nn.sigmoid(2 * MODEL.local_fields(x, units))
        up = jr.uniform(coin, (len(x), 1)) < up
        x = x.at[:, units].set(jnp.where(up, 1.0, -1.0))
    return x


def without(i, j):
    return eqx.tree_at(lambda m: m.weights, MODEL, MODEL.weights.at[i, j].set(0))


def lazy(key, x):
    """Now and then a step does nothing: sound, and no heat bath."""
    first, second = jr.split(key)
    stays = jr.uniform(first, (len(x), 1)) < 0.1
    return jnp.where(stays, x, LAYERS.step(second, MODEL, x))


STALE = tq.scatter(jr.key(3), MODEL, offset=0.1)
SWEEP = stepper(LAYERS, MODEL)
FAULTS = {
    "stale, declared": (stepper(LAYERS, STALE), LAYERS, {"fields"}),
    "stale, not declared": (stepper(LAYERS, STALE), None, set()),
    "sign, declared": (
        stepper(LAYERS, MODEL.tempered(-1)),
        LAYERS,
        {"fields", "temperature", "moments"},
    ),
    "sign, not declared": (
        stepper(LAYERS, MODEL.tempered(-1)),
        None,
        {"fields", "temperature", "moments"},
    ),
    "beta, declared": (stepper(LAYERS, MODEL.tempered(1.05)), LAYERS, {"temperature"}),
    "one edge": (stepper(LAYERS, without(1, 2)), LAYERS, {"fields"}),
    "one edge, not declared": (stepper(LAYERS, without(1, 2)), None, {"fields"}),
    "at once": (lambda key, x: at_once(key, MODEL, x), LAYERS, {"fields"}),
    "at once, not declared": (lambda key, x: at_once(key, MODEL, x), None, {"moments"}),
    "lazy": (lazy, LAYERS, {"fields"}),
    "not what it claims": (SWEEP, KERNELS["gibbs"], {"fields", "reversibility"}),
    # Of these steps the law is the model's, and only the chain tells.
    "one step for two": (SWEEP, tq.Power(LAYERS, 2), {"transitions"}),
    "Gibbs for Metropolis": (
        stepper(KERNELS["gibbs"], MODEL),
        KERNELS["metropolis"],
        {"transitions"},
    ),
    "the other order": (
        stepper(tq.AlternatingBlockGibbs([[4, 5, 6], [0, 1, 2, 3]]), MODEL),
        tq.Symmetrised(LAYERS, shared=False),
        {"transitions"},
    ),
    # Of these every unit follows its heat bath.
    "one coin": (one_coin, LAYERS, {"transitions"}),
    "bits for spins": (stepper(LAYERS, MODEL.tempered(0.5)), LAYERS, {"temperature"}),
    "nothing": (lambda key, x: x, None, {"motion"}),
    "nothing, declared": (lambda key, x: x, LAYERS, {"motion", "fields"}),
}


QUICK = [
    *("stale, declared", "sign, not declared", "beta, declared", "one edge"),
    *("at once, not declared", "lazy", "nothing", "one step for two", "one coin"),
]


@pytest.mark.parametrize("fault", slow_except(FAULTS, *QUICK))
def test_a_fault_is_told(fault):
    step, claim, expected = FAULTS[fault]
    found = tq.certify_sampler(KEY, step, MODEL, kernel=claim, estimates=False)
    assert not found.ok and expected <= set(found.failed), found
    with pytest.raises(tq.markov.CertificateError, match="A sampler failed its certif"):
        found.require()


WHY = {
    "at once": ("at once", "all units follow the heat bath of the model: they are"),
    "at once, not declared": ("at once", "they are redrawn at once"),
    "beta, declared": ("temperature", "At the inverse temperature 1.0"),
    "sign, declared": ("temperature", "At the inverse temperature -0.99"),
    "sign, not declared": ("temperature", "At the inverse temperature -"),
    "bits for spins": ("temperature", "At the inverse temperature 0.49"),
    "stale, declared": (None, "order: parameters that have not reached the sampler"),
    "stale, not declared": (None, "Neither another temperature alone nor all"),
    "one edge": (None, "Neither another temperature alone nor all"),
    "lazy": (None, "Neither another temperature alone nor all"),
    "nothing": (None, "No state moved"),
}


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "fault", slow_except(WHY, "at once", "beta, declared", "one edge")
)
def test_the_cause_that_the_states_show_comes_first(fault):
    step, claim, _ = FAULTS[fault]
    found = tq.certify_sampler(KEY, step, MODEL, kernel=claim)
    expected, words = WHY[fault]
    assert found.explained_by == expected
    first = str(found).partition("excesses: ")[2].splitlines()[1]
    assert words in (first if expected else str(found)), found
    # The cause that is told is not in the list of others, and one ruled out neither.
    listed = str(found).partition("in order: ")[2]
    if expected == "temperature":
        one = "another temperature" if fault == "beta, declared" else "a sign, or a fac"
        assert listed.startswith(one)
    assert ("redrawn at once" in listed) == (expected is None and fault != "nothing")


@pytest.mark.slow
def test_parameters_change_both_units_of_a_pair_and_an_order_one():
    # What the report says of `excess`: of visible units by hidden ones, and back.
    at_once, edge = (
        tq.certify_sampler(KEY, FAULTS[name][0], MODEL, kernel=LAYERS)
        for name in ("at once", "one edge")
    )
    z = at_once.excess / at_once.excess_error
    assert abs(z[:4, 4:7]).max() < SIGMAS and abs(z[4:, :4]).max() > 4 * SIGMAS
    z = edge.excess / edge.excess_error
    assert abs(z[1, 6]) > SIGMAS and abs(z[6, 1]) > SIGMAS


@pytest.mark.parametrize("fault", ["one step for two", "one coin"])
def test_steps_of_another_chain_are_said_to_be_that(fault):
    step, claim, _ = FAULTS[fault]
    found = tq.certify_sampler(KEY, step, MODEL, kernel=claim)
    assert found.explained_by is None and found.worst_transition is not None
    before, after, seen, expected = found.worst_transition
    assert abs(seen - expected) > 0.01
    assert f"is {seen:.3f}, and should be {expected:.3f}" in str(found)
    listed = str(found).partition("in order: ")[2]
    assert listed.startswith("a step and a chain that are two kernels")
    assert "random numbers that serve two decisions" in listed
    if fault == "one coin":  # the mean of a product, whatever was there before
        assert found.failed == ("transitions", "moments") and len(after) == 2
    else:
        assert found.failed == ("transitions",) and "a sign" not in listed
        named = " ".join(f"x{unit}" for unit in before) + " before it"
        assert named in str(found)


def test_another_kernel_is_not_taken_for_another_temperature():
    # The states have the law of another temperature, and the steps are not those of the
    # kernel there: no redraw of seven flips at random shows, and only the chain tells.
    claim = tq.Power(KERNELS["gibbs"], 7)
    found = certified(LAYERS, MODEL.tempered(1.3), claim, estimates=True)
    assert {"transitions", "temperature"} <= set(found.failed)
    assert found.explained_by is None
    # The control: at that temperature the kernel itself is found.
    found = certified(claim, MODEL.tempered(1.3), claim, estimates=True)
    assert {"transitions", "temperature"} <= set(found.failed)
    assert found.explained_by == "temperature"


def test_transitions_are_compared_from_anywhere():
    claim, few = tq.Power(LAYERS, 2), {"n_steps": 2, "n_starts": 1000}
    found = tq.certify_sampler(
        KEY, stepper(claim, MODEL), MODEL, tq.Uniform(), kernel=claim, **few
    )
    assert found.ok and found.beta is None and not found.checks["fields"].applicable
    found = tq.certify_sampler(KEY, SWEEP, MODEL, tq.Uniform(), kernel=claim, **few)
    assert found.failed == ("transitions",)


def test_transitions_that_are_not_compared_say_why():
    reasons = {
        "the sampler claims no kernel": (None, MODEL),
        "the chain of more than 13 units is large": (LAYERS, rbm(7, 7)),
        "the kernel moves several replicas": (
            tq.ParallelTempering(LAYERS, (1.0, 0.5)),
            MODEL,
        ),
        "chains share coins: make it with `shared=False`": (
            tq.Power(tq.Lazy(LAYERS), 2),
            MODEL,
        ),
    }
    for reason, (claim, model) in reasons.items():
        found = certified(LAYERS, model, claim, model, n_starts=500)
        assert found.ok and found.worst_transition is None
        assert found.checks["transitions"].reason == reason


COINS = {
    "mixture": lambda shared: tq.Mixture([LAYERS, KERNELS["gibbs"]], shared=shared),
    "symmetrised": lambda shared: tq.Symmetrised(LAYERS, shared=shared),
    "lazy": lambda shared: tq.Lazy(LAYERS, shared=shared),
    "palindrome": lambda shared: tq.Palindrome(tq.Lazy(LAYERS, shared=shared)),
    "power": lambda shared: tq.Power(tq.Lazy(LAYERS, shared=shared), 2),
}


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", COINS)
def test_coins_are_shared_where_a_kernel_says_so(name):
    # From one state, over steps: the mean of a spin over many chains differs from step
    # to step by more than chance if they share a coin.
    x = jnp.ones((2000, 7))
    for shared in (True, False):
        kernel = COINS[name](shared)
        move = jax.jit(kernel.stepper(MODEL))
        means = np.stack([move(key, x).mean(axis=0) for key in jr.split(KEY, 40)])
        assert (means.var(axis=0).max() > 20 / 2000) == shared == kernel.shares_coins
        if not shared:
            assert certified(kernel, MODEL, kernel).ok
    assert not tq.Symmetrised(KERNELS["gibbs"]).shares_coins  # which is what it was


@pytest.mark.parametrize("name", KERNELS)
def test_other_kernels_share_no_coin(name):
    assert not KERNELS[name].shares_coins


def test_what_was_not_looked_at_is_said():
    step, claim, _ = FAULTS["at once"]
    found = tq.certify_sampler(KEY, step, MODEL, kernel=claim, estimates=False)
    assert found.explained_by is None and "With `estimates=True` two of" in str(found)
    assert tq.certify_sampler(KEY, SWEEP, MODEL, kernel=LAYERS).explained_by is None


def test_a_lazy_sampler_passes_where_nothing_is_claimed():
    assert tq.certify_sampler(KEY, lazy, MODEL, estimates=False).ok
    found = tq.certify_sampler(KEY, lazy, MODEL, kernel=LAYERS)
    assert found.worst is not None and found.worst[0] == found.worst[1]
    assert "by its own last value" in str(found)


def test_a_scan_in_order_is_not_reversible():
    sound = tq.certify_sampler(KEY, SWEEP, MODEL, reversible=False, estimates=False)
    found = tq.certify_sampler(KEY, SWEEP, MODEL, reversible=True)
    assert sound.ok and found.failed == ("reversibility",)
    assert found.explained_by is None  # its temperature is the model's
    backwards = tq.Symmetrised(LAYERS, shared=False)
    found = certified(backwards, MODEL, backwards)
    assert found.ok and found.checks["reversibility"].applicable


# Starts.


def test_redraws_are_compared_from_anywhere():
    found = tq.certify_sampler(
        KEY, SWEEP, MODEL, tq.Uniform(), kernel=LAYERS, n_steps=1, estimates=False
    )
    assert found.ok and not found.checks["moments"].applicable
    assert "do not start from the law" in str(found)
    fault = stepper(LAYERS, MODEL.tempered(1.1))
    found = tq.certify_sampler(
        KEY, fault, MODEL, tq.Uniform(), kernel=LAYERS, n_steps=1, estimates=False
    )
    assert "temperature" in found.failed
    with pytest.raises(
        ValueError, match="show nothing but their transitions and redraws, and thos"
    ):
        tq.certify_sampler(KEY, SWEEP, MODEL, tq.Uniform())


@pytest.mark.slow
def test_long_runs_of_few_chains_are_taken_as_they_are():
    state = tq.start_chains(KEY, MODEL, 200, tq.Stationary())
    kept = tq.run(
        *(KERNELS["gibbs"], MODEL, state, 40),
        functions=lambda x: x,
        keep=True,  # correlated: a tenth of the units are redrawn between two
    ).values
    sound = tq.certify_sampler(KEY, SWEEP, MODEL, kept, estimates=False)
    assert sound.ok and sound.n_starts == 200 * 40
    fault = stepper(LAYERS, without(1, 2))
    assert not tq.certify_sampler(KEY, fault, MODEL, kept, estimates=False).ok
    with pytest.raises(ValueError, match="Of 20 independent states or chains no devia"):
        tq.certify_sampler(KEY, SWEEP, MODEL, kept[:20])
    # Taken as independent, they would raise a false alarm in time.
    few = np.asarray(kept[:, :1])
    assert tq.certify_sampler(KEY, SWEEP, MODEL, few, estimates=False).n_starts == 200


def test_a_step_of_numpy_is_as_good():
    weights = np.asarray(MODEL.weights)
    a, b = np.asarray(MODEL.visible_bias), np.asarray(MODEL.hidden_bias)

    def step(key, x):
        draw = np.random.default_rng(np.asarray(jr.key_data(key)))
        x = np.array(x)
        for units, field in (
            (slice(0, 4), lambda x: x[:, 4:] @ weights.T + a),
            (slice(4, 7), lambda x: x[:, :4] @ weights + b),
        ):
            up = draw.random((len(x), x[:, units].shape[1]))
            x[:, units] = np.where(up < 1 / (1 + np.exp(-2 * field(x))), 1, -1)
        return x

    assert tq.certify_sampler(KEY, step, MODEL, kernel=LAYERS, estimates=False).ok


# The temperature of samples.


def test_the_temperature_of_samples_is_theirs():
    law = tq.Law(jnp.exp(tq.log_stationary(MODEL.tempered(0.8))))
    x = law.draw(KEY, MODEL, None, 20_000)
    found = sampling.effective_beta(MODEL, x)
    assert abs(found.beta - 0.8) < SIGMAS * found.error < 0.05
    low, high = found.interval()
    assert low < found.beta < high and "effective beta 0." in str(found)
    # Another way, on a grid: naive pseudo-likelihood.
    fields = np.asarray(MODEL.local_fields(x, jnp.arange(7)))
    betas = np.linspace(found.beta - 0.01, found.beta + 0.01, 201)
    naive = [-np.log1p(np.exp(-2 * b * np.asarray(x) * fields)).sum() for b in betas]
    assert abs(betas[np.argmax(naive)] - found.beta) < 1.1e-4


@pytest.mark.slow
def test_the_interval_of_a_temperature_covers_it():
    # 300 times 100 correlated chains, taken as groups: 95 % within 4 deviations.
    cold = MODEL.tempered(1.2)
    law = tq.Law(jnp.exp(tq.log_stationary(cold)))

    def chains(key):
        start, key = jr.split(key)
        x = law.draw(start, MODEL, None, 100)
        move = KERNELS["gibbs"].stepper(cold)
        _, path = jax.lax.scan(lambda x, k: (move(k, x),) * 2, x, jr.split(key, 5))
        return path.swapaxes(0, 1)

    inside = 0
    for x in jax.jit(jax.vmap(chains))(jr.split(KEY, 300)):
        low, high = sampling.effective_beta(MODEL, x).interval()
        inside += low < 1.2 < high
    assert abs(inside / 300 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 300)


def test_a_temperature_that_nothing_bounds_is_infinite():
    model = tq.RBM(jnp.ones((1, 1)))
    found = sampling.effective_beta(model, jnp.ones((3, 2)))
    assert found.beta == np.inf and found.error == np.inf
    assert np.isinf(found.interval()).all()
    found = sampling.effective_beta(model, jnp.array([[1.0, -1], [-1, 1]]))
    assert found.beta == -np.inf


# The fits.


def _of_rows(e, rows):
    return _negative_log_likelihood(e, *rows)


@pytest.mark.parametrize("name", slow_except(["gibbs", "alternating"], "gibbs"))
def test_the_likelihood_is_that_of_its_words_and_its_slope_that_of_differences(name):
    visit, _ = alike(KERNELS[name].visits(MODEL))[0]
    x = jr.rademacher(KEY, (50, 7), float)
    new = KERNELS[name].step(jr.key(1), MODEL, x)
    seen = redraws(MODEL, visit, x, new)
    p = visit.probability
    rows = seen.spin[:, 1], seen.flipped[:, 1], seen.field[:, 1], seen.others
    e = 0.3 * jr.normal(jr.key(2), (8,))
    loss = partial(_of_rows, rows=(*rows, jnp.asarray(p)))
    spin, y, field, others = map(np.asarray, rows)
    mean = p / (1 + np.exp(2 * spin * (field + others @ np.asarray(e))))
    expected = -np.log(np.where(y, mean / p, 1 - mean)).sum()
    assert_close(loss(e) - jnp.sum(e**2) / 200, expected, DIRECT)
    slope = jax.grad(loss)(e)
    for direction in jnp.eye(8)[:3]:
        assert abs(slope @ direction - central_difference(loss, e, direction)) < 1e-6


def test_a_fit_of_what_never_flips_is_finite_and_says_that_it_knows_nothing():
    x = jnp.ones((100, 2))
    seen = as_redraws(tq.RBM(jnp.zeros((1, 1))), x)
    excess, error = fit_fields(seen, 0, memory=False)
    assert np.isfinite(excess).all() and error[1] > 1 and error[0] == np.inf
    assert fit_temperature([seen])[0] == 1.0  # fields of zero know none
    assert isinstance(seen, Redraws)


# Mistakes.

WRONG = {
    "a step of one chain": (
        lambda: tq.certify_sampler(KEY, lambda key, x: x[0], MODEL),
        r"of the shape \(4096, 7\) that it was given, but an array of shape \(7,\)",
    ),
    "bits": (
        lambda: tq.certify_sampler(KEY, lambda key, x: x > 0, MODEL),
        "dtype bool came back. Convert bits by `2 \\* x - 1`",
    ),
    "zeros": (
        lambda: tq.certify_sampler(KEY, lambda key, x: 0 * x, MODEL),
        "The step returns spins, -1 or .1",
    ),
    "a model for a step": (
        lambda: tq.certify_sampler(KEY, MODEL, MODEL),
        "step is a function of a key and of states, but an object of type RBM",
    ),
    "a method": (
        lambda: tq.certify_sampler(KEY, LAYERS.step, MODEL),
        r"which takes a model as well. Give `kernel.stepper\(model\)`",
    ),
    "steps": (
        lambda: tq.certify_sampler(KEY, SWEEP, MODEL, n_steps=0),
        "n_steps is a whole number of steps, at least 1",
    ),
    "rate": (
        lambda: tq.certify_sampler(KEY, SWEEP, MODEL, false_alarm=1),
        "false_alarm is a probability between 0 and 1, but 1 was given",
    ),
    "starts": (
        lambda: tq.certify_sampler(KEY, SWEEP, MODEL, jnp.ones(7)),
        r"States have shape \(samples, 7\), of independent ones, or \(chains",
    ),
    "traced": (
        lambda: jax.jit(lambda w: tq.certify_sampler(KEY, SWEEP, tq.RBM(w)).beta)(
            MODEL.weights
        ),
        "a traced model was given. Call it outside",
    ),
    "few": (
        lambda: tq.certify_sampler(KEY, SWEEP, MODEL, n_starts=8),
        "Of 8 independent states or chains no deviation is more than 2.8 stand",
    ),
    "one chain": (
        lambda: sampling.effective_beta(MODEL, jnp.ones((1, 5, 7))),
        "at least two independent samples or chains, but one",
    ),
    "confidence": (
        lambda: sampling.effective_beta(MODEL, jnp.ones((3, 7))).interval(95),
        "confidence is between 0 and 1, but 95",
    ),
}


@pytest.mark.usefixtures("as_for_users")
@pytest.mark.parametrize("case", WRONG)
def test_mistakes_raise(case):
    fn, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        fn()
