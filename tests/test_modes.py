"""Modes against dense NumPy, closed forms, and laws that hold for any chain."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import oracle
import pytest
from helpers import (
    DIRECT,
    IDENTITY,
    KERNELS,
    MODELS,
    REVERSIBLE,
    REVERSIBLE_ON_COLOURS,
    assert_close,
    dense,
    kernel_of,
    machine,
    rbm,
    slow_except,
)
from hypothesis import given, settings, strategies as st

import trainq as tq
from trainq.markov import _eigenpairs, _modes, modes


def spectrum(matrix, pi, f):
    """Gaps, without that of constants, and the weights of modes, by NumPy's `eigh`."""
    root = np.sqrt(pi)
    symmetric = root[:, None] * matrix / root[None, :]
    values, vectors = np.linalg.eigh((symmetric + symmetric.T) / 2)
    centred = root[:, None] * (f - pi @ f)
    return 1 - values[-2::-1], ((vectors.T @ centred) ** 2)[-2::-1]


def levels(gap, weight):
    """The sums of weights over each gap."""
    new = np.append(True, np.diff(gap) > 1e-9)
    first = np.flatnonzero(new)
    return gap[first], np.add.reduceat(weight, first, axis=0)


def as_levels(found):
    """The same of modes, with what one step annihilates as a level of its own."""
    gap, weight = np.asarray(found.gap), np.asarray(found.weight)
    rest = np.asarray(found.rest_weight)
    if found.is_complete and rest.sum() > 0:
        gap, weight = np.append(gap, 1.0), np.concatenate([weight, rest[None]])
        order = np.argsort(gap)
        gap, weight = gap[order], weight[order]
    gap, weight = levels(gap, weight)
    some = weight.sum(axis=1) > 1e-12
    return gap[some], weight[some]


CHAINS = ["rbm 2x4", "biased rbm 2x3", "visible machine 4", "neural 3+2"]


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "model"),
    slow_except(
        [(k, m) for m in CHAINS for k in REVERSIBLE],
        ("gibbs", "rbm 2x4"),
        ("metropolis", "biased rbm 2x3"),
        ("palindromic", "rbm 2x4"),
    )
    + slow_except(REVERSIBLE_ON_COLOURS),
)
def test_levels_and_sums_are_those_of_a_dense_eigenproblem(name, model):
    model = MODELS[model]
    pi, matrix = dense(name, model)
    f = np.asarray(tq.observables(model))
    found = modes(kernel_of(name, model).chain(model), jnp.asarray(f))
    gap, weight = spectrum(matrix, pi, f)
    assert_close(found.observable_variance, weight.sum(axis=0), DIRECT)
    noise = np.diag(oracle.noise_matrix(matrix, pi, f))
    assert_close(found.observable_t_o, noise, DIRECT)
    shares = jnp.sum(found.share) + found.rest_share
    noise_shares = jnp.sum(found.noise_share) + found.rest_noise_share
    assert abs(shares - 1) < IDENTITY and abs(noise_shares - 1) < IDENTITY
    if name not in ("random",):  # there the rest is of two gaps
        expected_gap, expected = levels(gap, weight)
        some = expected.sum(axis=1) > 1e-12
        ours_gap, ours = as_levels(found)
        assert_close(ours_gap, expected_gap[some], DIRECT)
        assert_close(ours, expected[some], DIRECT)


@pytest.mark.parametrize("model", slow_except(CHAINS, "biased rbm 2x3"))
def test_the_rest_of_a_random_scan_halves_or_is_gone_in_one_step(model):
    model = MODELS[model]
    pi, matrix = dense("random", model)
    f = np.asarray(tq.observables(model))
    found = modes(KERNELS["random"].chain(model), jnp.asarray(f))
    gap, weight = levels(*spectrum(matrix, pi, f))
    for one, expected in zip(gap, weight, strict=True):
        if abs(one - 0.5) > 1e-6 and abs(one - 1) > 1e-6:
            ours = np.asarray(found.weight)[np.abs(np.asarray(found.gap) - one) < 1e-9]
            assert_close(ours.sum(axis=0) + 1, expected + 1, DIRECT)
    # A rest of nothing is rounding errors of the variance, of either sign.
    rounding = IDENTITY * np.asarray(found.observable_variance)
    assert np.all(found.rest_t_o >= found.rest_weight - rounding)
    assert np.all(found.rest_t_o <= 2 * found.rest_weight + rounding)


@pytest.mark.parametrize(
    "name", slow_except(["gibbs", "random", "palindromic"], "random")
)
def test_functions_are_orthonormal_eigenfunctions(name):
    model = rbm(3, 2)
    pi, matrix = dense(name, model)
    f = np.asarray(tq.observables(model))
    found = modes(KERNELS[name].chain(model), jnp.asarray(f), functions=True)
    psi, gap = np.asarray(found.function), np.asarray(found.gap)
    kept = psi.T**2 @ pi > 0.5  # a pair that is none has no second mode
    assert kept.all() or name == "random"
    psi, gap = psi[:, kept], gap[kept]
    assert_close(psi.T @ (pi[:, None] * psi), np.eye(len(gap)), DIRECT)
    assert np.max(np.abs(matrix @ psi - psi * (1 - gap))) < DIRECT
    overlaps = (psi.T @ (pi[:, None] * (f - pi @ f))) ** 2
    assert_close(np.asarray(found.weight)[kept], overlaps, DIRECT)
    parity = np.asarray(found.parity)[kept]
    assert_close(psi[::-1], parity * psi, DIRECT)


def test_a_sector_has_the_modes_of_its_parity():
    model = rbm(3, 3)
    chain, f = KERNELS["gibbs"].chain(model), tq.observables(model)
    both, even = modes(chain, f), modes(chain, f, sector="even")
    assert set(np.asarray(both.parity).tolist()) == {-1, 1}
    assert np.all(np.asarray(even.parity) == 1)
    assert_close(even.gap, both.gap[both.parity == 1], DIRECT)
    assert_close(even.t_o, both.t_o, DIRECT)
    assert float(jnp.max(both.share[both.parity == -1])) < 1e-25
    assert even.relevant_gap() == even.gap[0]
    assert abs(even.relevant_gap() - both.relevant_gap()) < DIRECT
    assert abs(even.gap[0] - tq.markov.spectral_gap(chain, "even")) < IDENTITY


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", slow_except(["coloured random", "coloured palindromic"], "coloured random")
)
def test_chains_from_a_matrix_have_sectors_too(name):
    model = MODELS["ring 3+2"]
    chain = kernel_of(name, model).chain(model)
    pi, matrix = dense(name, model)
    flip = np.eye(len(pi))[::-1]
    for sector, sign in (("even", 1), ("odd", -1)):
        projector = (np.eye(len(pi)) + sign * flip) / 2
        projected = projector @ matrix - (sign > 0) * pi[None, :]
        expected = 1 - np.max(np.linalg.eigvals(projected).real)
        found = modes(chain, tq.observables(model), sector=sector)
        assert abs(found.gap[0] - expected) < DIRECT
        assert abs(tq.markov.spectral_gap(chain, sector) - expected) < DIRECT
        slowest = tq.markov.slowest_mode(chain, sector)
        assert_close(slowest.mode[::-1], sign * slowest.mode, DIRECT)
        assert bool(slowest.is_odd) is (sign < 0)


# Closed forms.


@pytest.mark.slow
def test_two_states():
    a, b = 0.3, 0.1
    chain = tq.markov.DenseChain(jnp.array([[1 - a, a], [b, 1 - b]]))
    found = modes(chain, jnp.array([0.0, 1.0]))
    assert_close(found.gap, [a + b], IDENTITY)
    assert_close(found.weight, [[a * b / (a + b) ** 2]], IDENTITY)
    assert_close(found.t_o, a * b / (a + b) ** 3, IDENTITY)


@pytest.mark.slow
def test_the_walk_on_the_cube():
    # Free spins: products of j of them have the gap j / N, and a weight of one each.
    n = 4
    chain, x = KERNELS["gibbs"].chain(machine(n, scale=0.0)), oracle.states(n)
    pairs = np.stack([x[:, i] * x[:, j] for i in range(n) for j in range(i)], axis=1)
    found = modes(chain, jnp.asarray(np.concatenate([x, pairs], axis=1)))
    expected = np.repeat(np.arange(1, n + 1) / n, [4, 6, 4, 1])
    assert_close(found.gap, expected, IDENTITY)
    assert_close(
        found.over_level(found.mu), np.repeat([4.0, 6, 0, 0], [4, 6, 4, 1]), DIRECT
    )
    cluster = found.cluster()
    assert cluster.size == 10 and float(cluster.bulk_rate) == np.inf
    assert_close(cluster.gamma_eff, 10 / (4 * n + 6 * n / 2), DIRECT)


def ehrenfest(n):
    """Balls in two urns, one of which is drawn and moved with probability one half."""
    matrix = np.eye(n + 1) / 2
    for k in range(n + 1):
        if k < n:
            matrix[k, k + 1] = (n - k) / n / 2
        if k > 0:
            matrix[k, k - 1] = k / n / 2
    return matrix


@pytest.mark.slow
def test_the_urn_of_ehrenfest():
    n = 8
    found = modes(tq.markov.DenseChain(jnp.asarray(ehrenfest(n))), jnp.arange(n + 1.0))
    assert_close(found.gap, np.arange(1, n + 1) / n, DIRECT)
    assert_close(found.mu, [n / 4, *[0.0] * (n - 1)], DIRECT)


def test_curie_weiss_is_that_of_its_magnetisation():
    # Lumped: the magnetisation is a chain of its own, and the observable that is a
    # function of it sees its modes alone.
    n, beta = 6, 1.4
    couplings = beta / n * (1 - np.eye(n))
    model = tq.BoltzmannMachine(jnp.asarray(couplings))
    chain = KERNELS["gibbs"].chain(model)
    up = (oracle.states(n).sum(axis=1) + n).astype(int) // 2
    m = 2 * np.arange(n + 1) - n
    lumped = np.zeros((n + 1, n + 1))
    for k in range(n + 1):
        if k < n:
            lumped[k, k + 1] = (n - k) / n / (1 + np.exp(-2 * beta / n * (m[k] + 1)))
        if k > 0:
            lumped[k, k - 1] = k / n / (1 + np.exp(2 * beta / n * (m[k] - 1)))
        lumped[k, k] = 1 - lumped[k].sum()
    pi = np.bincount(up, np.asarray(chain.stationary))
    expected = spectrum(lumped, pi, (m**2.0)[:, None])
    found = modes(chain, jnp.asarray(m[up] ** 2.0))
    ours_gap, ours = as_levels(found)
    gap, weight = levels(*expected)
    some = weight.sum(axis=1) > 1e-12
    assert_close(ours_gap, gap[some], DIRECT)
    assert_close(ours, weight[some], DIRECT)


# Cold chains: gaps that a dense eigenproblem of `P` does not know.


@pytest.mark.slow
@pytest.mark.parametrize("gap", slow_except([1e-6, 1e-12, 1e-20, 1e-40], 1e-40))
def test_gaps_of_any_size_are_known(gap):
    # Two wells that are all but apart, each of two states.
    inner = 0.2
    matrix = np.array(
        [
            [1 - inner, inner, 0, 0],
            [inner, 1 - inner - gap / 2, gap / 2, 0],
            [0, gap / 2, 1 - inner - gap / 2, inner],
            [0, 0, inner, 1 - inner],
        ]
    )
    chain = tq.markov.DenseChain(jnp.asarray(matrix), is_reversible=True)
    found = modes(chain, jnp.array([1.0, 1, -1, -1]))
    # Odd functions under the reversal: (a, b, -b, -a).
    odd = np.sort(np.linalg.eigvals([[inner, -inner], [-inner, inner + gap]]).real)
    slow = 2 * gap * inner / (2 * inner + gap + np.sqrt(4 * inner**2 + gap**2))
    assert gap < 1e-3 or abs(odd[0] - slow) < 1e-12
    # Down to 5e-7 a factorisation solves the system, and loses as many digits.
    assert_close(found.gap[0], slow, 1e-9 if gap > 1e-7 else DIRECT)
    assert_close(found.gap[1:], [2 * inner, 2 * inner + gap / 2], 1e-6)
    assert_close(found.t_o, 1 / slow, 1e-6)


# Lanczos.


@pytest.fixture
def by_lanczos(monkeypatch):
    """As if models of a few units were large."""
    monkeypatch.setattr(_eigenpairs, "_MAX_DENSE", 2**4)
    monkeypatch.setattr(_modes, "_FEW", 2**3)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "model"),
    slow_except(
        [
            (k, m)
            for k in ("gibbs", "metropolis", "palindromic", "random")
            for m in ("rbm 3x3", "biased rbm 3x3")
        ],
        ("gibbs", "rbm 3x3"),
        ("metropolis", "biased rbm 3x3"),
        ("random", "rbm 3x3"),
    ),
)
def test_lanczos_finds_the_slowest_modes_and_says_what_is_missing(
    name, model, by_lanczos
):
    model, k = MODELS[model], 3
    pi, matrix = dense(name, model)
    chain = KERNELS[name].chain(model)
    f = np.asarray(tq.observables(model))
    found = modes(chain, jnp.asarray(f), k=k)
    both = chain.is_symmetric
    slow = np.asarray(found.gap)[np.asarray(found.gap) < 0.5 - 1e-9]
    gap, weight = spectrum(matrix, pi, f)
    per_sector = []
    flip = np.eye(len(pi))[::-1]
    for sign in (1, -1) if both else (0,):
        projector = (np.eye(len(pi)) + sign * flip) / (2 if sign else 1)
        values = np.linalg.eigvals(projector @ matrix - (sign >= 0) * pi[None]).real
        per_sector.append(np.sort(1 - values)[:k])
    expected = np.sort(np.concatenate(per_sector))
    assert_close(np.sort(slow)[: len(expected)], expected[expected < 0.5 - 1e-9], 1e-9)
    assert_close(found.observable_variance, weight.sum(axis=0), DIRECT)
    assert_close(found.t_o, np.trace(oracle.noise_matrix(matrix, pi, f)), DIRECT)
    assert not found.is_complete and float(found.rest_share) > 0.01
    gap = tq.markov.spectral_gap(chain)
    assert_close(gap, expected[0], DIRECT)
    slowest = tq.markov.slowest_mode(chain)
    mode = np.asarray(slowest.mode)
    assert np.max(np.abs(matrix @ mode - (1 - expected[0]) * mode)) < 1e-8


def test_lanczos_is_as_good_as_dense_for_a_cold_model(by_lanczos):
    # A gap of 1e-9, which Lanczos alone would know to seven digits.
    chain = KERNELS["gibbs"].chain(planted(4, (1, 2), beta=9.0))
    found = float(tq.markov.spectral_gap(chain, "odd"))
    _eigenpairs._MAX_DENSE = 2**13
    expected = float(tq.markov.spectral_gap(chain, "odd"))
    assert expected < 1e-9 and abs(found / expected - 1) < 1e-9


def test_what_lanczos_cannot_do_is_said_at_once(by_lanczos):
    chain, f = KERNELS["gibbs"].chain(rbm(3, 3)), tq.observables(rbm(3, 3))
    assert modes(chain, f).gap.shape == (2 * 16,)  # of 31 and 32
    with pytest.raises(ValueError, match=r"Lanczos.*traced chain was given"):
        eqx.filter_jit(tq.markov.spectral_gap)(chain)
    with pytest.raises(ValueError, match=r"k is a whole number, at least 1"):
        modes(chain, f, k=0)


# Clusters.


def planted(m, overlaps=None, beta=3.0):
    """Patterns in both layers, `W = (β/m) Σ ξ ηᵀ`, with the second of them `(a, b)`
    units away from the first."""
    xi, eta = np.ones((m, 1)), np.ones((m, 1))
    if overlaps is not None:
        second = [np.where(np.arange(m) < a, -1.0, 1.0)[:, None] for a in overlaps]
        xi, eta = np.hstack([xi, second[0]]), np.hstack([eta, second[1]])
    return tq.RBM(jnp.asarray(beta / m * xi @ eta.T))


@pytest.mark.parametrize(
    ("m", "away", "published"),
    slow_except(
        [(4, None, 0.648), (5, None, 0.648), (4, (1, 2), 0.050), (5, (2, 3), 0.006)],
        (4, (1, 2), 0.050),
    ),
)
def test_the_published_rates_of_sweeps(m, away, published):
    model = planted(m, away)
    chain = KERNELS["gibbs"].chain(model)
    sweep = modes(chain, tq.observables(model), sector="even").power(2 * m)
    assert abs(sweep.cluster().gamma_eff - published) < 5.1e-4


@pytest.mark.slow
def test_a_power_is_that_of_the_matrix():
    model = rbm(2, 2)
    pi, matrix = dense("metropolis", model)
    chain, f = KERNELS["metropolis"].chain(model), np.asarray(tq.observables(model))
    for n in (2, 3):
        power = np.linalg.matrix_power(matrix, n)
        gap, weight = levels(*spectrum(power, pi, f))
        some = weight.sum(axis=1) > 1e-12
        ours_gap, ours = as_levels(modes(chain, jnp.asarray(f)).power(n))
        assert_close(ours_gap, gap[some], DIRECT)
        assert_close(ours, weight[some], DIRECT)
    palindromic = modes(KERNELS["palindromic"].chain(model), jnp.asarray(f)).power(3)
    pi, matrix = dense("palindromic", model)
    cube = np.linalg.matrix_power(matrix, 3)
    expected = np.trace(oracle.noise_matrix(cube, pi, f))
    assert_close(palindromic.t_o, expected, DIRECT)
    with pytest.raises(ValueError, match="not all modes"):
        modes(KERNELS["random"].chain(model), jnp.asarray(f)).power(2)


def test_clusters_by_hand():
    weight = jnp.array([1e-9, 3.0, 2.0, 1.0, 4.0])[:, None]
    found = tq.markov.Modes(
        gap=jnp.array([0.001, 0.01, 0.02, 0.031, 0.5]),
        weight=weight,
        parity=jnp.zeros(5, int),
        rest_weight=jnp.array([2.0]),
        rest_t_o=jnp.array([2.0]),
        function=None,
        is_complete=False,
    )
    total = 12 + 1e-9
    assert found.relevant().tolist() == [False, True, True, True, True]
    cluster = found.cluster()
    assert cluster.members.tolist() == [False, True, True, False, False]
    assert cluster.size == 2 and cluster.gap == found.relevant_gap() == 0.01
    assert_close(cluster.mu, 5, IDENTITY)
    assert_close(cluster.share, 5 / total, IDENTITY)
    assert_close(cluster.gamma_eff, 5 / (300 + 100), IDENTITY)
    rest = 1e-9 / 0.001 + 1 / 0.031 + 8 + 2
    assert_close(cluster.noise_share, 400 / (400 + rest), IDENTITY)
    assert_close(cluster.bulk_rate, (total - 5) / rest, IDENTITY)
    assert found.cluster(factor=4).size == 3
    assert found.cluster(threshold=1e-12).gap == 0.001
    sensitivity = found.sensitivity((3.0, 4.0), (1e-12, 1e-6))
    assert sensitivity.size.tolist() == [[1, 2], [1, 3]]
    assert sensitivity.spread == jnp.max(sensitivity.gamma_eff) / 0.001
    with pytest.raises(ValueError, match="factor is at least 1"):
        found.cluster(0.5)
    with pytest.raises(ValueError, match="threshold is a finite positive"):
        found.relevant(0)


def test_levels_do_not_depend_on_the_basis():
    # Any rotation of the functions of a level is as good.
    model = machine(4, scale=0.0)
    chain = KERNELS["gibbs"].chain(model)
    found = modes(chain, tq.observables(model))
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    pairs = np.asarray(found.parity == 1) & (np.abs(np.asarray(found.gap) - 0.5) < 1e-9)
    assert pairs.sum() == 6
    amplitude = np.sqrt(np.asarray(found.weight[pairs]))
    rotated = found.weight.at[np.flatnonzero(pairs)].set((turn @ amplitude) ** 2)
    other = eqx.tree_at(lambda m: m.weight, found, rotated)
    assert not np.allclose(other.mu, found.mu)
    assert_close(other.cluster().gamma_eff, found.cluster().gamma_eff, IDENTITY)


# Laws.


@pytest.mark.slow
@settings(max_examples=6)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 3))
def test_shares_sum_to_one_and_times_to_the_noise_of_any_reversible_chain(seed, size):
    rng = np.random.default_rng(seed)
    flow = rng.exponential(size=(8, 8)) ** 3
    flow = flow + flow.T
    pi = flow.sum(axis=1) / flow.sum()
    matrix = flow / flow.sum(axis=1, keepdims=True)
    chain = tq.markov.DenseChain(jnp.asarray(matrix), is_reversible=True)
    f = rng.normal(size=(8, size))
    found = modes(chain, jnp.asarray(f))
    assert abs(jnp.sum(found.share) - 1) < IDENTITY
    assert abs(jnp.sum(found.noise_share) - 1) < IDENTITY
    assert_close(found.observable_variance, pi @ (f - pi @ f) ** 2, DIRECT)
    noise = np.diag(oracle.noise_matrix(matrix, pi, f))
    assert_close(found.observable_t_o, noise, 1e-9)
    some = modes(chain, jnp.asarray(f), k=1)
    assert abs(jnp.sum(some.share) + some.rest_share - 1) < IDENTITY
    assert_close(some.observable_t_o, noise, 1e-9)


# Under transformations.


@pytest.mark.slow
def test_modes_work_under_jit_and_vmap_and_have_no_derivative(key):
    def relevant(model):
        found = modes(KERNELS["gibbs"].chain(model), tq.observables(model))
        return found.relevant_gap(), found.cluster().gamma_eff

    models = eqx.filter_vmap(lambda k: tq.RBM(jr.normal(k, (2, 2))))(jr.split(key, 2))
    gaps, rates = eqx.filter_jit(eqx.filter_vmap(relevant))(models)
    alone = relevant(tq.RBM(models.weights[1]))
    assert_close(gaps[1], alone[0], IDENTITY)
    assert_close(rates[1], alone[1], IDENTITY)
    with pytest.raises(ValueError, match="list of modes has no derivative"):
        eqx.filter_grad(lambda m: relevant(m)[1])(rbm(2, 2))


@pytest.mark.slow
def test_the_table():
    model = rbm(3, 2)
    found = modes(KERNELS["gibbs"].chain(model), tq.observables(model))
    text = str(found)
    assert "31 modes, T_O =" in text and "even" in text and "others" in text
    palindromic = modes(KERNELS["palindromic"].chain(model), tq.observables(model))
    assert "the rest" in str(palindromic)
    assert "(1)" in str(found.sensitivity()) or "γ_eff" in str(found.sensitivity())


@pytest.mark.slow
def test_functions_that_need_not_exist_all_at_once():
    model = rbm(3, 2)
    chain = KERNELS["random"].chain(model)
    table = modes(chain, tq.observables(model))
    lazy = modes(chain, tq.markov.EnergyGradients(model))
    assert_close(lazy.weight, table.weight, DIRECT)
    assert_close(lazy.rest_t_o, table.rest_t_o, DIRECT)
    assert jax.tree.structure(lazy) == jax.tree.structure(table)
