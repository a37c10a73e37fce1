"""Parallel tempering: its chain against dense products, its sampler against that chain,
and what is asked of the cold replica against dense NumPy."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import oracle
import pytest
from helpers import (
    AUTODIFF,
    DIFFERENCES,
    DIRECT,
    IDENTITY,
    KERNELS,
    SIGMAS,
    assert_close,
    central_difference,
    energies,
    excess,
    flatten,
    machine,
    neural,
    random_law,
    rbm,
    slow_except,
)

import trainq as tq
from trainq import markov, sampling
from trainq._spins import state_index


BETAS = (1.0, 0.55, 0.2)
SMALL, TWO = rbm(1, 1, biased=True), rbm(2, 2, scale=1.2)
LOPSIDED = rbm(2, 1, scale=1.2)
RANDOM, EVEN_ODD = markov.RandomSwaps(), markov.EvenOddSwaps()


class EvenOrOdd(markov.AbstractSwapOrder):
    """An order of a user's own: the even pairs or the odd ones."""

    is_symmetrised = True

    def rounds(self, n_replicas):
        pairs = range(n_replicas - 1)
        return (tuple(tuple(s) for s in (pairs[::2], pairs[1::2]) if s),)


class LocalFirst(markov.AbstractSwapOrder):
    """As `RandomSwaps`, without the coin."""

    is_symmetrised = False

    def rounds(self, n_replicas):
        return RANDOM.rounds(n_replicas)


def tempered(kernel="palindromic", n_replicas=3, order=RANDOM):
    return tq.ParallelTempering(KERNELS[kernel], BETAS[:n_replicas], order)


# Dense products, from scratch.


def laws(model, betas):
    return [oracle.law(beta * energies(model)) for beta in betas]


def product(vectors):
    return functools.reduce(np.kron, vectors)


def swap_of(model, betas, i):
    """`S_i`, state by state."""
    e, n = energies(model), len(betas)
    shape = (len(e),) * n
    size = len(e) ** n
    matrix = np.zeros((size, size))
    for state in range(size):
        x = list(np.unravel_index(state, shape))
        change = (betas[i] - betas[i + 1]) * (e[x[i]] - e[x[i + 1]])
        accept = min(1.0, np.exp(change))
        x[i], x[i + 1] = x[i + 1], x[i]
        matrix[state, np.ravel_multi_index(x, shape)] += accept
        matrix[state, state] += 1 - accept
    return matrix


def dense(kernel, model, betas, order):
    """The law and the transition matrix of all replicas."""
    m, n = model.n_visible, len(betas)
    layers = range(m), range(m, model.n_units)
    local = product(
        [oracle.transition(kernel, pi, layers) for pi in laws(model, betas)]
    )
    swaps = [swap_of(model, betas, i) for i in range(n - 1)]
    if order is EVEN_ODD:
        matrix = local @ functools.reduce(np.matmul, swaps[::2])
        for swap in swaps[1::2]:
            matrix = matrix @ swap
    else:
        if isinstance(order, EvenOrOdd):
            sets = [
                functools.reduce(np.matmul, s) for s in (swaps[::2], swaps[1::2]) if s
            ]
            several = sum(sets) / len(sets)
        else:
            several = np.linalg.matrix_power(sum(swaps) / (n - 1), n - 1)
        matrix = (local @ several + several @ local) / 2
    return product(laws(model, betas)), matrix


CASES = {
    "two": (TWO, "palindromic", 2, RANDOM),
    "two, one unit at a time": (TWO, "gibbs", 2, RANDOM),
    "three": (SMALL, "metropolis", 3, RANDOM),
    "three, even and odd": (SMALL, "palindromic", 3, EVEN_ODD),
    "three, even or odd": (SMALL, "random", 3, EvenOrOdd()),
    "not reversible": (SMALL, "alternating", 3, RANDOM),
    "any energy": (neural(1, 1), "gibbs", 3, RANDOM),
    "a machine": (machine(3, 2, biased=True), "gibbs", 2, EVEN_ODD),
}


@pytest.mark.parametrize("case", slow_except(CASES, "any energy"))
def test_the_chain_is_that_of_dense_products(case):
    model, kernel, n, order = CASES[case]
    pi, matrix = dense(kernel, model, BETAS[:n], order)
    tempering = tempered(kernel, n, order)
    chain = tempering.chain(model)
    assert_close(chain.matrix(), matrix, IDENTITY)
    assert_close(jnp.exp(chain.log_stationary), pi, IDENTITY)
    flow = pi[:, None] * matrix
    balanced = np.abs(flow - flow.T).max() < IDENTITY
    assert chain.is_reversible == tempering.is_reversible == balanced
    f = np.random.default_rng(0).normal(size=(len(pi), 3))
    assert_close(chain.apply(jnp.asarray(f)), matrix @ f, IDENTITY)
    assert_close(chain.apply(jnp.asarray(f[:, 0])), matrix @ f[:, 0], IDENTITY)
    assert_close(chain.push(jnp.asarray(pi)), pi, IDENTITY)


def asymmetry(chain):
    """The largest entry of `A - Aᵀ` between some functions, `A` the symmetrised
    matrix, without the matrix."""
    root = np.asarray(chain.root)[:, None]
    u, w = np.random.default_rng(1).normal(size=(2, chain.n_states, 4))
    u, w = u / np.linalg.norm(u, axis=0), w / np.linalg.norm(w, axis=0)
    forth = u.T @ (root * np.asarray(chain.apply(jnp.asarray(w / root))))
    back = (root * np.asarray(chain.apply(jnp.asarray(u / root)))).T @ w
    return np.abs(forth - back).max()


@pytest.mark.slow
def test_three_replicas_of_four_units_are_self_adjoint_and_a_fixed_order_is_not():
    assert tempered().chain(TWO).n_states == 4096
    for order in (RANDOM, EvenOrOdd()):
        assert asymmetry(tempered(order=order).chain(TWO)) < 1e-10
    for order in (EVEN_ODD, LocalFirst()):
        assert asymmetry(tempered(order=order).chain(TWO)) > 1e-4
        assert not tempered(order=order).is_reversible


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "least", "most"),
    [(RANDOM, 0, 1e-10), (LocalFirst(), 3e-2, 5e-2), (EVEN_ODD, 1e-1, 2e-1)],
)
def test_entries_of_three_replicas_of_four_units(order, least, most):
    chain = tempered(order=order).chain(TWO)
    root = np.asarray(chain.root)
    symmetrised = root[:, None] * np.asarray(chain.matrix()) / root[None, :]
    assert least <= np.abs(symmetrised - symmetrised.T).max() <= most


def frequencies(kernel, model, key, n=40_000):
    """How often each state follows the second one. What orders a step is shared by the
    chains of a call, so that every chain has a call of its own."""
    states = oracle.states(kernel.n_replicas * model.n_units)
    x = jnp.asarray(states[1]).reshape(kernel.n_replicas, model.n_units)
    step = eqx.filter_vmap(kernel.step, in_axes=(0, None, None))
    new = step(jr.split(key, n), model, x).reshape(n, -1)
    return np.bincount(np.asarray(state_index(new)), minlength=len(states))


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    slow_except(
        ["two", "three, even and odd", "three, even or odd"], "three, even or odd"
    ),
)
def test_one_step_has_the_frequencies_of_the_matrix(case, key):
    model, kernel, n, order = CASES[case]
    tempering = tempered(kernel, n, order)
    chain = tempering.chain(model)
    counts = frequencies(tempering, model, key)
    assert excess(counts, np.asarray(chain.matrix())[1]) < SIGMAS
    # A swap that is always accepted.
    wrong = eqx.tree_at(lambda c: c.energies, chain, jnp.zeros_like(chain.energies))
    assert excess(counts, np.asarray(wrong.matrix())[1]) > SIGMAS
    # With draws of their own, many chains in one step.
    own = tq.ParallelTempering(tempering.kernel, tempering.betas, order, shared=False)
    first = jnp.asarray(oracle.states(n * model.n_units)[1]).reshape(1, n, -1)
    x = own.step(key, model, jnp.broadcast_to(first, (40_000, *first.shape[1:])))
    found = np.asarray(state_index(x.reshape(40_000, -1)))
    counts = np.bincount(found, minlength=chain.n_states)
    assert excess(counts, np.asarray(chain.matrix())[1]) < SIGMAS


@pytest.mark.slow
def test_swaps_without_metropolis_fail_the_checks():
    chain = tempered().chain(SMALL)
    wrong = eqx.tree_at(lambda c: c.energies, chain, jnp.zeros_like(chain.energies))
    for residual in (
        markov.stationarity_residual,
        markov.detailed_balance_residual,
    ):
        assert residual(chain) < IDENTITY
        assert residual(wrong) > 1e-3
    cold = np.asarray(wrong.push(chain.stationary)).reshape(4, -1).sum(axis=1)
    assert np.abs(cold - oracle.law(energies(SMALL))).max() > 1e-3
    right = np.asarray(chain.push(chain.stationary)).reshape(4, -1).sum(axis=1)
    assert_close(right, oracle.law(energies(SMALL)), IDENTITY)


class Still(markov.AbstractKernel):
    """Replicas that do not move, so that swaps are all that is seen."""

    is_reversible = True

    def stepper(self, model):
        return lambda key, x: x

    def chain(self, model):
        return markov.DenseChain(jnp.eye(2**model.n_units), is_reversible=True)

    def site_updates(self, model):
        return 0


@pytest.mark.quick(1)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("order", [RANDOM, EVEN_ODD, EvenOrOdd()])
def test_where_states_came_from(order, shared, key):
    betas = np.linspace(1, 0, 6)
    tempering = tq.ParallelTempering(Still(), betas, order, shared=shared)
    x = jr.rademacher(key, (50, 6, 4), float)
    move = jax.jit(tempering.swapping_stepper(TWO))
    accepted = 0
    for one in jr.split(key, 5):
        new, swaps = move(one, x)
        came_from = np.asarray(swaps.came_from)
        expected = np.take_along_axis(np.asarray(x), came_from[:, :, None], axis=1)
        assert np.array_equal(new, expected)
        tried = np.asarray(swaps.tried)
        assert np.all(swaps.accepted <= tried)
        per_chain = {2, 3} if isinstance(order, EvenOrOdd) else {5}
        assert set(tried.sum(axis=1).tolist()) <= per_chain
        same = np.all(tried == tried[:1])
        assert same if shared or order is EVEN_ODD else not same
        accepted += int(np.sum(swaps.accepted))
        x = new
    assert accepted > 0


# What is asked of the cold replica.


@pytest.mark.slow
def test_q_is_that_of_the_cold_replica():
    model, data = LOPSIDED, random_law(2)
    pi, matrix = dense("palindromic", model, BETAS[:2], RANDOM)
    f = oracle.rbm_observables(2, 1)
    lifted = np.repeat(f, 8, axis=0)
    cold = oracle.law(energies(model))
    t_o = np.diag(oracle.noise_matrix(matrix, pi, lifted))
    gradient = oracle.kl_gradient(cold, 2, np.asarray(data), f)
    tempering = tempered(n_replicas=2)
    found = tq.QStruct(tempering, 100)(model, data)
    assert_close(found.parameter_t_o, t_o, DIRECT)
    assert_close(found.parameter_signal, gradient**2, DIRECT)
    variances = cold @ (f - cold @ f) ** 2
    sokal = tq.QStruct(tempering, 100, "sokal")(model, data)
    assert_close(sokal.parameter_t_o, t_o - variances / 2, DIRECT)
    # Functions of the model are lifted wherever a chain is asked.
    chain, some = tempering.chain(model), jnp.asarray(f)
    assert_close(markov.resolvent_trace(chain, some), t_o.sum(), DIRECT)
    whole = markov.resolvent(chain, some)
    assert_close(whole, oracle.resolvent(matrix, pi, lifted), DIRECT)
    assert_close(markov.resolvent(chain, jnp.asarray(lifted)), whole, DIRECT)
    with pytest.raises(ValueError, match=r"\(64,\)"):
        markov.resolvent(chain, jnp.ones(4))
    values = oracle.eigenvalues(matrix, pi)
    assert_close(markov.spectral_gap(chain), 1 - values[1], DIRECT)
    assert tq.SingleGap(tempering, 100, "relevant gap")(model, data).t_o > t_o.sum()


@pytest.mark.slow
def test_the_certificate_of_replicas_passes():
    certificate = tq.certify(tempered(n_replicas=2), LOPSIDED).require()
    assert all(check.applicable for check in certificate.checks.values())
    odd = tq.certify(tempered(order=EVEN_ODD), SMALL).require()
    assert not odd.checks["detailed_balance"].applicable
    with pytest.raises(ValueError, match="15 units: .* at most 13"):
        tq.certify(tempered(), rbm(3, 2))


def errors_from(law, matrix, f, window, burn_in):
    """The bias and the variance of a window, by sums over pairs of times."""
    law = law @ np.linalg.matrix_power(matrix, burn_in)
    laws, mean, square = [law], 0, 0
    for _ in range(window - 1):
        laws.append(laws[-1] @ matrix)
    for t, now in enumerate(laws):
        mean = mean + now @ f / window
        moved = f
        for s in range(t, window):
            square = square + (1 if s == t else 2) * (now @ (f * moved)) / window**2
            moved = matrix @ moved
    return mean, square - mean**2


@pytest.mark.quick(1)
@pytest.mark.parametrize("start", [tq.Uniform(), tq.FromData(), tq.Stationary()])
def test_the_exact_error_of_an_estimate(start):
    model, data, betas = SMALL, random_law(1), BETAS
    pi, matrix = dense("palindromic", model, betas, RANDOM)
    each = laws(model, betas)
    if isinstance(start, tq.Uniform):
        law = np.full(64, 1 / 64)
    elif isinstance(start, tq.FromData):
        given = [p.reshape(2, 2) / p.reshape(2, 2).sum(axis=1)[:, None] for p in each]
        law = product([(np.asarray(data)[:, None] * p).ravel() for p in given])
    else:
        law = pi
    f = np.repeat(oracle.rbm_observables(1, 1, True), 16, axis=0)
    mean, variance = errors_from(law, matrix, f, 5, 2)
    found = tq.QOperational(tempered(), 5, 2, start)(model, data)
    assert_close(found.parameter_variance, variance, DIRECT)
    bias = np.zeros(3) if start.is_stationary else pi @ f - mean
    assert np.abs(found.parameter_bias - bias).max() < DIRECT


def test_tables_of_errors_are_those_of_q_operational():
    model, data, tempering = SMALL, random_law(1), tempered()
    table = sampling.exact_errors(tempering, model, data, max_steps=60)
    at = (table.burn_in == 8) & (table.window == 20)
    if not at.any():
        at = np.arange(table.window.size) == table.window.size // 2
    burn_in, window = int(table.burn_in[at][0]), int(table.window[at][0])
    one = tq.QOperational(tempering, window, burn_in)(model, data)
    assert_close(table.variance[at][0], one.variance, DIRECT)
    assert_close(table.bias2[at][0], one.bias2, DIRECT)
    assert table.site_updates == 3 * 3
    with pytest.raises(ValueError, match="the replicas have 15"):
        sampling.exact_errors(tempering, rbm(3, 2), random_law(3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "start", [tq.Uniform(), pytest.param(tq.Stationary(), marks=pytest.mark.slow)]
)
def test_sampled_errors_are_the_exact_ones(start, key):
    # With draws of their own: over so short a window the error given those that all
    # chains share is another one.
    model, data = SMALL, random_law(1)
    tempering = tq.ParallelTempering(KERNELS["palindromic"], BETAS, shared=False)
    exact = tq.QOperational(tempering, 6, 1, start, 2)(model, data)
    found = tq.QSampled(tempering, 6, 1, start, 2, replicates=10_000)(key, model, data)
    assert abs(found.mse - exact.mse) < SIGMAS * found.mse_error
    assert abs(found.mse - 1.2 * exact.mse) > SIGMAS * found.mse_error


@pytest.mark.slow
def test_kernels_at_equal_cost(key):
    model, data = SMALL, random_law(1)
    kernels = {"plain": KERNELS["gibbs"], "tempered": tempered("gibbs", 2)}
    assert kernels["tempered"].site_updates(model) == 2
    assert kernels["tempered"].steps(model, 250) == 250
    exact, other = (
        {
            name: table(kernel, model, data, max_steps=300)
            for name, kernel in kernels.items()
        }
        for table in (
            sampling.exact_errors,
            lambda *args, **sizes: sampling.calibrated_errors(key, *args, **sizes),
        )
    )
    for name in kernels:
        assert exact[name].site_updates == other[name].site_updates
        best = other[name].best(600.0)
        same = exact[name].finer(np.array([best.burn_in]), np.array([best.window]))
        mse = same.bias2[0] + same.variance[0] / best.n_chains
        assert abs(np.log(best.q * mse / exact[name].signal)) < 0.4, name
    found = sampling.compare_budgets(
        kernels, lambda k: exact["plain" if k == kernels["plain"] else "tempered"], 1.0
    )
    assert all(isinstance(b, tq.Budget) for b in found.at_equal_cost.values())


@pytest.mark.slow
def test_the_derivative_is_that_of_central_differences():
    model, data = LOPSIDED, random_law(2)
    predictor = tq.QStruct(tempered(n_replicas=2), 100)
    flat, build = flatten(model)
    direction = jr.normal(jr.key(1), flat.shape)

    def log_q(x):
        return predictor(build(x), data).log_q

    found = jax.grad(log_q)(flat) @ direction
    expected = central_difference(jax.jit(log_q), flat, direction)
    assert_close(found, expected, DIFFERENCES)
    plain = tq.QStruct(predictor.kernel, 100, solver=tq.solvers.PlainAutodiff())
    other = jax.grad(lambda x: plain(build(x), data).log_q)(flat) @ direction
    assert_close(found, other, AUTODIFF)


# Kernels made of it.


@pytest.mark.slow
def test_kernels_of_tempering_move_all_replicas_together(key):
    one = tq.ParallelTempering(KERNELS["gibbs"], BETAS[:2], shared=False)
    lazy = tq.Lazy(one, shared=False)
    matrix = np.asarray(one.chain(SMALL).matrix())
    chain = lazy.chain(SMALL)
    assert_close(chain.matrix(), (np.eye(16) + matrix) / 2, IDENTITY)
    first = jnp.asarray(oracle.states(4)[1]).reshape(1, 2, 2)
    x = lazy.step(key, SMALL, jnp.broadcast_to(first, (40_000, 2, 2)))
    counts = np.bincount(np.asarray(state_index(x.reshape(-1, 4))), minlength=16)
    assert excess(counts, np.asarray(chain.matrix())[1]) < SIGMAS
    slow, fast = (tq.QStruct(k, 9)(SMALL, random_law(1)) for k in (lazy, one))
    assert_close(slow.t_o, 2 * fast.t_o, DIRECT)
    with pytest.raises(ValueError, match=r"these run \[2, 1\] replicas"):
        tq.Mixture([one, KERNELS["gibbs"]]).replicas(SMALL)


def test_the_adjoint_moves_backwards():
    tempering = tempered("alternating")
    chain, back = (k.chain(SMALL) for k in (tempering, tempering.adjoint()))
    pi = np.asarray(chain.stationary)[:, None]
    flow = pi * np.asarray(chain.matrix())
    assert_close(pi * np.asarray(back.matrix()), flow.T, IDENTITY)
    assert np.abs(flow - flow.T).max() > 1e-4
    symmetrised = tq.Symmetrised(tempering).chain(SMALL)
    assert_close(pi * np.asarray(symmetrised.matrix()), (flow + flow.T) / 2, IDENTITY)
    assert tempered().adjoint() is not None and tempered().is_reversible
    with pytest.raises(ValueError, match="does not know its adjoint"):
        tempered(order=EVEN_ODD).adjoint()


# Runs.


@pytest.mark.slow
def test_runs_take_states_of_the_model_and_observe_the_cold_replica():
    tempering = tempered()
    state = sampling.start_chains(jr.key(0), TWO, 4)
    found = tq.run(tempering, TWO, state, 20, keep=True)
    assert found.state.x.shape == (4, 3, 4) and found.values.shape == (4, 20, 4)
    assert np.array_equal(found.values[:, 0], TWO.observables(state.x))
    assert "4 chains of 3 replicas of 4 units, after 20 steps" in str(found.state)
    # To go on, one long run and two short ones.
    first = tq.run(tempering, TWO, state, 7, keep=True)
    rest = tq.run(tempering, TWO, first.state, 13, keep=True, moments=first.moments)
    assert np.array_equal(rest.state.x, found.state.x)
    assert np.array_equal(rest.moments.mean, found.moments.mean)
    both = np.concatenate([first.values, rest.values], axis=1)
    assert np.array_equal(both, found.values)

    def spins(x):
        assert x.shape == (4, 4)
        return x

    kept = tq.run(tempering, TWO, first.state, 1, functions=spins, keep=True).values
    assert np.array_equal(kept[:, 0], first.state.x[:, 0])


def test_replicas_start_by_themselves(key):
    n = 20_000
    state = sampling.start_chains(
        key, SMALL, n, tq.Stationary(), kernel=tempered("gibbs")
    )
    counts = np.bincount(np.asarray(state_index(state.x.reshape(n, -1))), minlength=64)
    assert excess(counts, product(laws(SMALL, BETAS))) < SIGMAS
    plain = sampling.start_chains(key, SMALL, 5, kernel=KERNELS["gibbs"])
    assert np.array_equal(plain.x, sampling.start_chains(key, SMALL, 5).x)


def test_other_temperatures_compile_nothing_anew():
    state = sampling.start_chains(jr.key(0), TWO, 4)
    traced = []

    class Counted(markov.AbstractKernel):
        is_reversible = True

        def stepper(self, model):
            traced.append(1)
            return KERNELS["gibbs"].stepper(model)

        def chain(self, model):
            return KERNELS["gibbs"].chain(model)

        def site_updates(self, model):
            return 1

    once = []
    for lowest in (0.3, 0.2):
        tempering = tq.ParallelTempering(Counted(), [1.0, lowest])
        once.append(tq.run(tempering, TWO, state, 50).state.x)
        if lowest == 0.3:
            n = len(traced)
    assert len(traced) == n > 0
    assert not np.array_equal(*once)


def chain_of(kernel, model, state, n_steps):
    """Labels of states step by step, and round trips of each chain."""
    move = jax.jit(kernel.swapping_stepper(model))
    x, n = state.x, kernel.n_replicas
    chains = x.shape[0]
    labels, been = np.tile(np.arange(n), (chains, 1)), np.zeros((chains, n), int)
    trips = np.zeros(chains, int)
    for t in range(n_steps):
        x, swaps = move(jr.fold_in(state.key, t), x)
        for c in range(chains):
            if t == 0:
                been[c, 0], been[c, n - 1] = 1, 2
            labels[c] = labels[c][np.asarray(swaps.came_from)[c]]
            cold, hot = labels[c, 0], labels[c, -1]
            trips[c] += been[c, cold] == 2
            been[c, cold], been[c, hot] = 1, 2
    return x, trips


@pytest.mark.slow
def test_swap_statistics_are_those_of_the_run(key):
    tempering = tempered()
    state = sampling.start_chains(key, TWO, 3, kernel=tempering)
    found = sampling.swap_statistics(tempering, TWO, state, 60)
    run = tq.run(tempering, TWO, state, 60)
    assert np.array_equal(found.state.x, run.state.x)
    assert found.state.step == run.state.step == 60
    x, trips = chain_of(tempering, TWO, state, 60)
    assert np.array_equal(found.round_trips, trips) and trips.sum() > 0
    assert np.array_equal(found.state.x, x)
    assert np.all(found.tried.sum(axis=1) == 2 * 60)
    assert "round trips in 60 steps" in str(found)


@pytest.mark.slow
def test_acceptance_of_a_run_is_the_exact_one(key):
    model = rbm(3, 2, biased=True, scale=1.0)
    tempering = tempered("palindromic")
    state = sampling.start_chains(key, model, 200, tq.Stationary(), kernel=tempering)
    found = sampling.swap_statistics(tempering, model, state, 400)
    exact = markov.swap_acceptance(model, BETAS)
    assert np.all(abs(found.acceptance - exact) < SIGMAS * found.acceptance_error)
    assert np.all(abs(1.1 * found.acceptance - exact) > SIGMAS * found.acceptance_error)
    variances = [markov.energy_variance(model, beta) for beta in BETAS]
    np.testing.assert_allclose(found.energy_variance, variances, rtol=0.05)
    assert found.flow[0] == 1 and found.flow[2] == 0 and 0.3 < found.flow[1] < 0.7
    again = found.ladder(n_replicas=4)
    assert again.betas[0] == 1 and again.betas[-1] == pytest.approx(0.2)
    whole = markov.ladder(model, 0.2, n_replicas=4)
    np.testing.assert_allclose(again.length, whole.length, rtol=0.1)


@pytest.mark.slow
def test_tempering_gains_at_equal_cost_where_patterns_hold_a_chain(key):
    # Two patterns in both layers, which share 2 visible and 3 hidden signs: the cell
    # for which T_O of the plain kernel is 1053.62 steps.
    signs = np.ones((2, 2, 5))
    signs[0, 1, :2], signs[1, 1, :3] = -1, -1
    model = tq.RBM(jnp.asarray(3 / 5 * signs[0].T @ signs[1]))
    kernel = KERNELS["palindromic"]
    plain = tq.QStruct(kernel, 1, "sokal")(model, jnp.full(32, 1 / 32)).t_o
    assert_close(plain, 1053.62, 1e-5)
    for order, most in ((RANDOM, 0.5), (EVEN_ODD, 0.25)):
        ladder = markov.ladder(model, 0.1, n_replicas=8)
        tempering = tq.ParallelTempering(kernel, ladder.betas, order)
        state = sampling.start_chains(key, model, 32, kernel=tempering)
        state = tq.run(tempering, model, state, 1000).state
        values = tq.run(tempering, model, state, 8000, keep=True).values
        found = sampling.sampled_time(values)
        half = found.t_o - found.variance / 2
        assert found.resolved
        assert 8 * half < most * plain  # at equal cost
        assert half < plain / 15  # step for step


WRONG = {
    r"at least two replicas": lambda: tq.ParallelTempering(Still(), [1.0]),
    r"start at 1.*\[0.9, 0.5\] were given": lambda: tq.ParallelTempering(
        Still(), [0.9, 0.5]
    ),
    r"decrease to 0 or more": lambda: tq.ParallelTempering(Still(), [1.0, 0.5, 0.5]),
    r"in \[1.0, 0.6, 0.3\], but \[1.0, -0.5\]": lambda: tq.ParallelTempering(
        Still(), np.array([1.0, -0.5])
    ),
    r"order is an object such as `RandomSwaps\(\)`.*'random'": lambda: (
        tq.ParallelTempering(Still(), BETAS, "random")
    ),
    r"n_swaps is a whole number": lambda: markov.RandomSwaps(0),
    r"ParallelTempering has several of its own": lambda: tq.ParallelTempering(
        tempered(), BETAS
    ).chain(SMALL),
    r"2 replicas, and so.* at most 28": lambda: tempered(n_replicas=2).chain(rbm(8, 8)),
    r"shape \(..., 3, 4\).*\(2, 4\) was given": lambda: tempered().step(
        jr.key(0), TWO, jnp.ones((2, 4))
    ),
    r"shape \(n_chains, n_units\) or \(n_chains, 3, n_units\).*\(5, 2, 4\)": lambda: (
        tq.run(
            tempered(),
            TWO,
            sampling.ChainState.begin(jnp.ones((5, 2, 4)), jr.key(0)),
            5,
        )
    ),
    r"shape \(n_chains, n_units\), but \(5, 2, 4\)": lambda: tq.run(
        KERNELS["gibbs"],
        TWO,
        sampling.ChainState.begin(jnp.ones((5, 2, 4)), jr.key(0)),
        5,
    ),
    r"those of a `ParallelTempering`, but a RandomScanGibbs": lambda: (
        sampling.swap_statistics(
            KERNELS["gibbs"], TWO, sampling.start_chains(jr.key(0), TWO, 2), 5
        )
    ),
    r"chains with 5 units, but the model has 4": lambda: sampling.swap_statistics(
        tempered(), TWO, sampling.start_chains(jr.key(0), rbm(3, 2), 2), 5
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_mistakes_are_told(message, as_for_users):
    with pytest.raises((ValueError, TypeError), match=message):
        WRONG[message]()


@pytest.mark.parametrize("rounds", [(), ((),), (((),),), (((0, 1),),), (((2,),),)])
def test_wrong_rounds_are_told(rounds):
    class Wrong(EvenOrOdd):
        def rounds(self, n_replicas):
            return rounds

    with pytest.raises(ValueError, match="rounds of a Wrong of 3 replicas"):
        tempered(order=Wrong())


@pytest.mark.slow
def test_traced_temperatures_are_checked():
    @eqx.filter_jit
    def gap(betas):
        kernel = tq.ParallelTempering(KERNELS["gibbs"], betas)
        return markov.spectral_gap(kernel.chain(SMALL))

    chain = tempered("gibbs", 2).chain(SMALL)
    assert_close(gap(jnp.array(BETAS[:2])), markov.spectral_gap(chain), IDENTITY)
    with pytest.raises(RuntimeError, match="betas start at 1"):
        gap(jnp.array([0.5, 0.2]))


def test_too_many_units_are_those_of_all_replicas():
    kernel = tq.ParallelTempering(tq.RandomScanGibbs(), [1.0, 0.5])
    data = jnp.full(16, 1 / 16)
    message = "matrix of 14 units.*The units of all replicas count"
    with pytest.raises(ValueError, match=message):
        tq.QStruct(kernel, 10)(rbm(4, 3), data)
