"""Kernels made of kernels: their matrices, their laws, what is solved on them, and how
they step. All against dense NumPy."""

import functools

import equinox as eqx
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
    SIGMAS,
    assert_close,
    central_difference,
    draw,
    energies,
    excess,
    flatten,
    grid,
    machine,
    random_law,
    rbm,
    ring,
    slow_except,
)
from hypothesis import given, settings, strategies as st

import trainq as tq
from trainq.markov import BlockGibbs, FixedOrder, SymmetrisedOrder
from trainq.solvers import PlainAutodiff


MODELS = {
    "rbm": rbm(3, 2),
    "biased rbm": rbm(2, 3, biased=True),
    "ring": ring(5, 3),
    "biased grid": grid(),
}
GIBBS, METROPOLIS = tq.RandomScanGibbs(), tq.RandomScanMetropolis()
SWEEP = tq.AlternatingBlockGibbs()


def in_three(model):
    """Blocks of a ring or a grid, or single units, in an order of their own."""
    blocks = model.colouring()
    if len(blocks) == 2:
        first, second = (tuple(map(int, block)) for block in blocks)
        blocks = [second[:1], first, second[1:]]
    return tq.AlternatingBlockGibbs(blocks)


def ours(name, model):
    three = in_three(model)
    return {
        "symmetrised": lambda: tq.Symmetrised(SWEEP),
        "symmetrised, three": lambda: tq.Symmetrised(three),
        "palindrome, three": lambda: tq.Palindrome(three),
        "palindrome back": lambda: tq.Palindrome(SWEEP.adjoint()),
        "adjoint": lambda: SWEEP.adjoint(),
        "adjoint, three": lambda: three.adjoint(),
        "sweep": lambda: tq.Power(GIBBS, model.n_units),
        "even power": lambda: tq.Power(METROPOLIS, 2),
        "power of a scan": lambda: tq.Power(three, 3),
        "lazy": lambda: tq.Lazy(METROPOLIS),
        "lazy scan": lambda: tq.Lazy(SWEEP),
        "mixture": lambda: tq.Mixture([METROPOLIS, tq.Symmetrised(SWEEP)], [0.3, 0.7]),
        "palindrome of a mixture": lambda: tq.Palindrome(tq.Mixture([three, GIBBS])),
    }[name]()


def theirs(name, model):
    """The law, and the matrix by products and adjoints of dense ones."""
    pi = oracle.law(energies(model))
    m, n = model.n_visible, model.n_units
    layers = oracle.scanned(pi, [range(m), range(m, n)], "alternating")
    three = oracle.scanned(pi, in_three(model).blocks, "alternating")
    gibbs, metropolis = (oracle.single_flip(pi, r) for r in ("gibbs", "metropolis"))
    both = (three + gibbs) / 2
    return pi, {
        "symmetrised": lambda: (layers + reversed_chain(layers, pi)) / 2,
        "symmetrised, three": lambda: (three + reversed_chain(three, pi)) / 2,
        "palindrome, three": lambda: three @ reversed_chain(three, pi),
        "palindrome back": lambda: reversed_chain(layers, pi) @ layers,
        "adjoint": lambda: reversed_chain(layers, pi),
        "adjoint, three": lambda: reversed_chain(three, pi),
        "sweep": lambda: np.linalg.matrix_power(gibbs, n),
        "even power": lambda: metropolis @ metropolis,
        "power of a scan": lambda: three @ three @ three,
        "lazy": lambda: (np.eye(2**n) + metropolis) / 2,
        "lazy scan": lambda: (np.eye(2**n) + layers) / 2,
        "mixture": lambda: (
            0.3 * metropolis + 0.35 * (layers + reversed_chain(layers, pi))
        ),
        "palindrome of a mixture": lambda: both @ reversed_chain(both, pi),
    }[name]()


def reversed_chain(matrix, pi):
    """`P*(x, y) = π(y) P(y, x) / π(x)`."""
    return matrix.T * pi[None, :] / pi[:, None]


NAMES = (
    *("symmetrised", "symmetrised, three", "palindrome, three", "palindrome back"),
    *("adjoint", "adjoint, three", "sweep", "even power", "power of a scan"),
    *("lazy", "lazy scan", "mixture", "palindrome of a mixture"),
)
# Every way to the answers, and both symmetries; the rest is for the complete tests.
FAST = [
    ("symmetrised", "rbm"),
    ("symmetrised, three", "ring"),
    ("adjoint, three", "ring"),
    ("sweep", "ring"),
]
CASES = slow_except([(k, m) for k in NAMES for m in MODELS], *FAST)
cases = pytest.mark.parametrize(("name", "model"), CASES)


@pytest.mark.quick(1)
@cases
def test_what_is_asked_of_the_chain(name, model):
    model = MODELS[model]
    kernel = ours(name, model)
    chain = kernel.chain(model)
    pi, matrix = theirs(name, model)
    assert_close(chain.matrix(), matrix, IDENTITY)
    assert_close(chain.stationary, pi, IDENTITY)
    assert np.max(np.abs(pi @ np.asarray(chain.matrix()) - pi)) <= IDENTITY
    flow = pi[:, None] * matrix
    balanced = np.max(np.abs(flow - flow.T)) <= IDENTITY
    assert kernel.is_reversible == chain.is_reversible == balanced
    g = jr.normal(jr.key(1), (chain.n_states, 3))
    f = np.asarray(g)
    assert_close(chain.apply(g), matrix @ f, IDENTITY)
    assert_close(chain.push(g[:, 0]), f[:, 0] @ matrix, IDENTITY)
    found = tq.markov.resolvent(chain, g)
    covariance = tq.markov.asymptotic_covariance(chain, g)
    assert_close(found, oracle.resolvent(matrix, pi, f), DIRECT)
    noise = oracle.noise_matrix(matrix, pi, f)
    centred = f - pi @ f
    sokal = noise + noise.T - centred.T @ (pi[:, None] * centred)
    assert_close(covariance, sokal, DIRECT)
    variance = tq.markov.window_moments(chain, g, 7).variance
    assert_close(variance, window_variance(matrix, pi, f, 7), DIRECT)


def window_variance(matrix, pi, f, window):
    """Lag by lag."""
    centred, moved, total = f - pi @ f, f - pi @ f, 0
    for lag in range(window):
        total = total + (1 + (lag > 0)) * (window - lag) * (pi @ (centred * moved))
        moved = matrix @ moved
    return total / window**2


REVERSIBLE = slow_except(
    [name for name in NAMES if "adjoint" not in name and "scan" not in name],
    "symmetrised, three",
)


@pytest.mark.parametrize("name", REVERSIBLE)
def test_the_spectrum(name):
    model = MODELS["ring" if "three" in name else "rbm"]
    chain = ours(name, model).chain(model)
    pi, matrix = theirs(name, model)
    values = oracle.eigenvalues(matrix, pi)
    slowest = tq.markov.slowest_mode(chain)
    assert_close(slowest.gap, 1 - values[1], DIRECT)
    moved = matrix @ np.asarray(slowest.mode)
    assert_close(moved, (1 - slowest.gap) * slowest.mode, DIRECT)
    negative = ("symmetrised", "symmetrised, three", "mixture")
    assert chain.is_positive == (name not in negative)
    assert (values[-1] < -1e-3) == (name in negative)


def test_a_power_keeps_the_sectors_and_the_digits_of_a_gap():
    # Two wells: a gap of 1e-13, that no difference of eigenvalues would know.
    model = tq.RBM(jnp.full((2, 2), 4.0))
    chain = tq.Power(GIBBS, 4).chain(model)
    assert [r.sector for r in chain.reductions()] == ["even", "odd"]
    assert [r.generator.n_states for r in chain.reductions()] == [8, 8]
    gap = tq.markov.spectral_gap(GIBBS.chain(model))
    assert gap < 1e-5
    found = tq.markov.spectral_gap(chain)
    np.testing.assert_allclose(found, -np.expm1(4 * np.log1p(-gap)), rtol=1e-14)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["symmetrised", "symmetrised, three", "sweep"])
def test_the_step_frequencies_are_those_of_the_matrix(name, key):
    model = MODELS["ring" if "three" in name else "rbm"]
    kernel = ours(name, model)
    start = jnp.asarray(oracle.states(5)[1])
    matrix = theirs(name, model)[1]
    if name == "sweep":
        assert excess(draw(kernel, model, start, key), matrix[1]) < SIGMAS
        return
    # A coin for each chain; with one for all, a mixture of what either side gives.
    own = tq.Symmetrised(kernel.kernel, shared=False)
    assert excess(draw(own, model, start, key), matrix[1]) < SIGMAS
    shared = draw(kernel, model, start, key)
    sides = [
        excess(shared, np.asarray(side.chain(model).matrix())[1])
        for side in (kernel.kernel, kernel.kernel.adjoint())
    ]
    assert min(sides) < SIGMAS < max(sides)


@pytest.mark.parametrize(
    "kernel",
    [
        tq.Palindrome(SWEEP.adjoint()),
        tq.Palindrome(tq.Mixture([SWEEP], shared=False)),
        tq.Lazy(GIBBS, shared=False),
        tq.Mixture([GIBBS, METROPOLIS, SWEEP], [0.5, 0.2, 0.3], shared=False),
    ],
    ids=["palindrome", "there and back", "lazy", "mixture"],
)
def test_more_step_frequencies(kernel, key):
    model = MODELS["rbm"]
    matrix = np.asarray(kernel.chain(model).matrix())
    start = jnp.asarray(oracle.states(5)[1])
    assert excess(draw(kernel, model, start, key), matrix[1]) < SIGMAS


def test_a_shared_coin_flips_for_all_chains(key):
    # All chains stay, or all of them go: by one coin, fairly.
    model = tq.RBM(jnp.zeros((3, 3)))
    kernel, start = tq.Lazy(tq.PalindromicBlockGibbs()), jnp.ones((64, 6))
    step = eqx.filter_jit(lambda key: kernel.step(key, model, start))
    stays = jnp.array([jnp.all(step(k) == start) for k in jr.split(key, 200)])
    assert abs(int(jnp.sum(stays)) - 100) < SIGMAS * np.sqrt(50)


def test_chains_that_share_a_coin_are_uncorrelated():
    # Each branch keeps the law, so that from a stationary start the mean given all
    # coins is that without them. Over all coins of three steps, exactly.
    model = MODELS["biased rbm"]
    pi, _ = theirs("symmetrised", model)
    m = model.n_visible
    forth = oracle.scanned(pi, [range(m), range(m, 5)], "alternating")
    back = reversed_chain(forth, pi)
    f = np.asarray(tq.observables(model))[:, 0]
    means = []
    for coins in np.ndindex(2, 2, 2):
        law, total = pi, pi @ f
        for coin in coins:
            law = law @ (back if coin else forth)
            total += law @ f
        means.append(total / 4)
    assert np.std(means) <= IDENTITY
    # From another law they are correlated, until the burn-in is over.
    law = np.eye(32)[3]
    both = [law @ forth @ f, law @ back @ f]
    assert np.std(both) > 1e-3


def test_the_adjoint():
    three = in_three(MODELS["ring"])
    for kernel in (SWEEP, three, tq.Power(three, 2), tq.Lazy(SWEEP)):
        model = MODELS["ring"]
        pi = oracle.law(energies(model))
        matrix = np.asarray(kernel.chain(model).matrix())
        found = kernel.adjoint().chain(model).matrix()
        assert_close(found, reversed_chain(matrix, pi), IDENTITY)
        again = kernel.adjoint().adjoint().chain(model).matrix()
        assert_close(again, matrix, IDENTITY)
    for kernel in (GIBBS, tq.PalindromicBlockGibbs(), tq.Symmetrised(SWEEP)):
        assert kernel.adjoint() is kernel
        assert tq.Symmetrised(kernel).stepper(MODELS["rbm"]) is not None


class OneWay(tq.markov.AbstractKernel):
    """Not reversible, and says no more."""

    is_reversible = False

    def stepper(self, model):
        return SWEEP.stepper(model)

    def chain(self, model):
        return SWEEP.chain(model)

    def site_updates(self, model):
        return model.n_units


@pytest.mark.parametrize("make", [tq.Symmetrised, tq.Palindrome])
def test_an_adjoint_that_is_not_known_is_refused(make):
    with pytest.raises(ValueError, match="OneWay is not reversible and does not know"):
        make(OneWay())


def test_wrong_mixtures_and_powers_are_refused():
    with pytest.raises(ValueError, match="at least one kernel, but none"):
        tq.Mixture([])
    for weights in ([1.0], [0.5, 0.6], [1.5, -0.5]):
        with pytest.raises(ValueError, match="positive numbers that sum to 1"):
            tq.Mixture([GIBBS, METROPOLIS], weights)
    with pytest.raises(ValueError, match="n is a whole number of steps of the kernel"):
        tq.Power(GIBBS, 0)


def test_what_a_step_costs_and_how_it_is_shown():
    model = rbm(3, 2)
    blocks = ((0, 1), (2,), (3, 4))
    colours = tq.AlternatingBlockGibbs(blocks)
    costs = [
        (tq.Symmetrised(SWEEP), 5),
        (tq.Palindrome(SWEEP), 8),
        (tq.Palindrome(SWEEP.adjoint()), 7),
        (tq.Palindrome(colours), 8),
        (tq.Palindrome(GIBBS), 2),
        (tq.Power(GIBBS, 10), 10),
        (tq.Lazy(SWEEP), 2.5),
        (tq.Mixture([GIBBS, SWEEP], [0.75, 0.25]), 2),
    ]
    for kernel, cost in costs:
        assert kernel.site_updates(model) == cost
    assert [repr(kernel) for kernel, _ in costs[::2]] == [
        "Symmetrised(AlternatingBlockGibbs())",
        "Palindrome(BlockGibbs(FixedOrder(is_backwards=True)))",
        "Palindrome(RandomScanGibbs())",
        "Lazy(AlternatingBlockGibbs())",
    ]
    own = tq.Symmetrised(colours, shared=False)
    assert repr(own) == (
        "Symmetrised(AlternatingBlockGibbs(3 blocks, of [2, 1, 2] units), shared=False)"
    )


@pytest.mark.slow
def test_the_published_figures_of_a_deep_cell():
    # Two planted patterns in both layers, that differ in two visible units and in three
    # hidden ones; in the convention with half of the variance.
    patterns = np.ones((2, 5))
    visible, hidden = patterns.copy(), patterns.copy()
    visible[1, :2] = -1
    hidden[1, :3] = -1
    weights = jnp.asarray(3 / 5 * visible.T @ hidden)
    model = tq.RBM(weights)
    f = tq.observables(model)
    published = [
        (tq.Symmetrised(SWEEP), 1409.42),
        (SWEEP, 1059.78),
        (tq.PalindromicBlockGibbs(), 1053.62),
        (tq.RandomScanBlockGibbs(), 4232.20),
    ]
    for kernel, figure in published:
        chain = kernel.chain(model)
        variance = chain.stationary @ chain.centre(f) ** 2
        noise = jnp.diag(tq.markov.asymptotic_covariance(chain, f)) / 2
        assert round(float(noise.sum()), 2) == figure
        if figure == 1409.42:
            assert round(float(jnp.max(noise / variance)), 2) == 112.48


def noise_of(kernel, solver, rebuild, data):
    def value(flat):
        return tq.QStruct(kernel, 100, solver=solver)(rebuild(flat), data).log_q

    return eqx.filter_jit(value)


@pytest.mark.parametrize(
    ("name", "model"),
    slow_except(
        [
            ("symmetrised", "rbm"),
            ("symmetrised", "biased rbm"),
            ("symmetrised, three", "ring"),
            ("palindrome, three", "biased grid"),
            ("palindrome of a mixture", "ring"),
            ("adjoint, three", "ring"),
            ("sweep", "rbm"),
            ("even power", "biased rbm"),
            ("mixture", "biased rbm"),
        ],
        ("symmetrised", "rbm"),
        ("sweep", "rbm"),
    ),
)
def test_the_gradient(name, model):
    model = MODELS[model]
    kernel, data = ours(name, model), random_law(model.n_visible)
    flat, rebuild = flatten(model)
    rule, plain = (
        eqx.filter_jit(eqx.filter_grad(noise_of(kernel, solver, rebuild, data)))(flat)
        for solver in (tq.Direct(), PlainAutodiff())
    )
    assert_close(rule, plain, AUTODIFF)
    assert not np.array_equal(rule, plain)
    direction = jr.normal(jr.key(7), flat.shape)
    value = noise_of(kernel, tq.Direct(), rebuild, data)
    difference = central_difference(value, flat, direction)
    assert_close(rule @ direction, difference, DIFFERENCES)


@pytest.mark.parametrize(
    ("name", "sector"),
    slow_except(
        [
            (name, sector)
            for name in ("symmetrised, three", "sweep", "mixture")
            for sector in (None, "even", "odd")
        ],
        ("mixture", "even"),
    ),
)
def test_one_sector(name, sector):
    model = MODELS["ring" if "three" in name else "rbm"]
    chain = ours(name, model).chain(model)
    pi, matrix = theirs(name, model)
    x = oracle.states(5)
    f = {None: x[:, 0] + x[:, 1] * x[:, 4], "even": x[:, 1] * x[:, 4], "odd": x[:, 0]}
    f = f[sector][:, None]
    found = tq.markov.window_moments(chain, jnp.asarray(f), 40, sector=sector).variance
    assert_close(found, window_variance(matrix, pi, f, 40), DIRECT)
    found = tq.markov.resolvent_trace(chain, jnp.asarray(f), sector=sector)
    assert_close(found, oracle.noise_matrix(matrix, pi, f)[0, 0], DIRECT)


@pytest.mark.slow
@settings(max_examples=5)
@given(
    st.integers(0, 10**6),
    st.floats(0.1, 1.5),
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
)
def test_time_reversal(seed, scale, order):
    # Of any scan, of three blocks: the adjoint is that of the flows, twice is once, the
    # symmetrised one is the mean and reversible, there and back is positive.
    model = machine(3, scale=scale, seed=seed, biased=True)

    class Given(tq.markov.AbstractScan):
        def orders(self, n_blocks):
            return (
                tq.markov.Order(0.75, tuple(order)),
                tq.markov.Order(0.25, (0, 1, 2)),
            )

    kernel = BlockGibbs(Given(), [(0,), (1,), (2,)])
    pi = oracle.law(energies(model))
    each = [oracle.redraw(pi, [unit]) for unit in range(3)]
    words = [
        functools.reduce(np.matmul, [each[i] for i in w]) for w in (order, range(3))
    ]
    matrix = 0.75 * words[0] + 0.25 * words[1]
    adjoint = reversed_chain(matrix, pi)

    def check(kernel, expected):
        assert_close(kernel.chain(model).matrix(), expected, DIRECT)

    check(kernel.adjoint(), adjoint)
    check(kernel.adjoint().adjoint(), matrix)
    check(tq.Symmetrised(kernel), (matrix + adjoint) / 2)
    check(tq.Symmetrised(tq.Symmetrised(kernel)), (matrix + adjoint) / 2)
    if not kernel.is_reversible:
        check(tq.Palindrome(kernel), matrix @ adjoint)
    assert tq.Palindrome(kernel).chain(model).is_positive
    flow = pi[:, None] * (matrix + adjoint)
    assert np.max(np.abs(flow - flow.T)) <= IDENTITY


def test_the_scan_of_two_layers_found_by_its_algebra():
    assert FixedOrder().symmetrised() == SymmetrisedOrder()
    assert FixedOrder().reversed().reversed() == FixedOrder()
    assert FixedOrder().palindrome() == tq.markov.PalindromicOrder()
    for kernel in (SWEEP, SWEEP.adjoint()):
        chain = tq.Symmetrised(kernel).chain(rbm(3, 2))
        assert isinstance(chain, tq.markov.TwoLayerChain)
        # Two systems in either sector, of the smaller layer.
        assert [r.generator.n_states for r in chain.reductions()] == [2, 2, 2, 2]


@pytest.mark.slow
def test_more_states_than_a_matrix_takes(key):
    # 14 units on a ring, in three blocks against the two that have a closed form.
    edges = [(i, (i + 1) % 14) for i in range(14)]
    model = tq.BoltzmannMachine.from_edges(edges, 0.3 * jr.normal(key, (14,)))
    f = tq.observables(model)[:, :2]
    even, odd = tuple(range(0, 14, 2)), tuple(range(1, 14, 2))
    two = tq.AlternatingBlockGibbs([even, odd])
    three = tq.AlternatingBlockGibbs([even, odd[:3], odd[3:]])
    for make in (lambda kernel: kernel, tq.Symmetrised):
        traces = [
            tq.markov.resolvent_trace(make(k).chain(model), f, sector="even")
            for k in (two, three)
        ]
        assert_close(traces[1], traces[0], 1e-9)  # an iteration, to 1e-11


@pytest.mark.slow
def test_steps_are_compiled_once_and_work_under_vmap(key):
    kernel = tq.Symmetrised(tq.Mixture([SWEEP, GIBBS]))
    models = eqx.filter_vmap(lambda key: tq.RBM(jr.normal(key, (2, 2))))(
        jr.split(key, 3)
    )
    step = eqx.filter_vmap(kernel.step, in_axes=(0, 0, None))
    x = step(jr.split(key, 3), models, jnp.ones((4, 4)))
    assert x.shape == (3, 4, 4) and jnp.all(jnp.abs(x) == 1)
    for dtype in (jnp.float32, jnp.int8):
        out = kernel.step(key, rbm(2, 2), jnp.ones((2, 3, 4), dtype))
        assert out.shape == (2, 3, 4) and out.dtype == dtype
