"""What D-Wave's solver knows exactly, and models and samples of dimod, against
enumeration in NumPy and the energies of dimod itself."""

import builtins

import dimod
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import oracle
import pytest
from dimod.serialization import coo
from helpers import (
    DIRECT,
    IDENTITY,
    KERNELS,
    MODELS,
    SIGMAS,
    assert_close,
    excess,
    neural,
    rbm,
)

import trainq as tq
from trainq import sampling
from trainq._spins import state_index
from trainq.interop.dimod import (
    exact,
    from_bqm,
    from_sampleset,
    to_bqm,
    to_sampleset,
)


class LowRank(tq.AbstractEnergyModel):
    """One with an equivalent, of fewer parameters."""

    left: jax.Array
    right: jax.Array
    n_visible: int = eqx.field(static=True)
    n_hidden: int = eqx.field(static=True)

    @property
    def equivalent(self):
        return tq.RBM(self.left @ self.right.T)

    def energy(self, x):
        return self.equivalent.energy(x)


def low_rank():
    left, right = jr.normal(jr.key(0), (4, 1)), jr.normal(jr.key(1), (3, 1))
    return LowRank(left, right, 4, 3)


def square(n, *, scale=0.5):
    """A grid of `n × n` units with random couplings and fields."""
    units = np.arange(n * n).reshape(n, n)
    right = np.stack([units[:, :-1], units[:, 1:]], axis=-1).reshape(-1, 2)
    down = np.stack([units[:-1], units[1:]], axis=-1).reshape(-1, 2)
    edges = np.concatenate([right, down])
    random = np.random.default_rng(n)
    couplings = scale * random.normal(size=len(edges))
    return tq.BoltzmannMachine.from_edges(edges, couplings, random.normal(size=n * n))


NAMES = ["rbm 3x2", "biased rbm 2x3", "biased machine 3+2", "ring 3+2"]
SMALL = {name: MODELS[name] for name in NAMES} | {
    "tempered": tq.models.Tempered(MODELS["biased grid 4+2"], 0.7),
    "low rank": low_rank(),
    # What is zero is there all the same.
    "zeros": tq.RBM(np.array([[0.0, 0.4], [0.0, -0.7]]), np.array([0.0, 0.3])),
    "alone": tq.BoltzmannMachine(
        np.zeros(1), np.array([0, 0.5, 0]), 2, [(0, 1)], n_units=3
    ),
}


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", SMALL)
def test_the_law_is_that_of_enumeration(name, key):
    model = SMALL[name]
    states = oracle.states(model.n_units)
    energies = np.asarray(jax.vmap(model.energy)(jnp.asarray(states)))
    weights = np.exp(-energies)
    law = exact(model)
    assert_close(law.log_partition, np.log(weights.sum()), IDENTITY)
    p = weights / weights.sum()
    f = np.asarray(model.observables(jnp.asarray(states)))
    scale = np.abs(f).max()
    assert np.abs(law.mean_observables - p @ f).max() < IDENTITY * scale
    assert law.mean_observables.shape == (f.shape[1],)
    x = law.draw(key, 20_000)
    counts = np.bincount(np.asarray(state_index(x)), minlength=p.size)
    assert abs(excess(counts, p)) < SIGMAS
    # A negative control: the law of twice the energy is another one.
    if name != "alone":
        assert excess(counts, oracle.law(2 * energies)) > SIGMAS
    assert np.array_equal(x, law.draw(key, 20_000))
    assert not np.array_equal(x, law.draw(jr.key(1), 20_000))


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", SMALL)
def test_energies_are_those_of_dimod(name):
    model = SMALL[name]
    x = oracle.states(model.n_units)
    bqm = to_bqm(model)
    assert bqm.vartype.name == "SPIN" and bqm.num_variables == model.n_units
    energies = bqm.energies((x.astype(np.int8), range(model.n_units)))
    expected = jax.vmap(model.energy)(jnp.asarray(x))
    assert_close(energies, expected, IDENTITY)


def test_a_grid_that_no_table_holds(key):
    model = square(8)
    law = exact(model)
    assert law.treewidth in (8, 9, 10, 11) and "64 units" in str(law)
    # A transfer matrix over the 2**8 states of a row, in NumPy.
    matrix, bias = np.asarray(model.coupling_matrix), np.asarray(model.bias)
    rows = oracle.states(8)
    log_sum = np.zeros(256)
    for i in range(8):
        units = np.arange(8 * i, 8 * i + 8)
        row = rows @ bias[units]
        for u in units[:-1]:
            row = row + matrix[u, u + 1] * rows[:, u - 8 * i] * rows[:, u - 8 * i + 1]
        if i:
            across = (rows * matrix[units - 8, units]) @ rows.T
            total = log_sum[:, None] + across
            top = total.max(axis=0)
            log_sum = top + np.log(np.exp(total - top).sum(axis=0))
        log_sum = log_sum + row
    log_z = log_sum.max() + np.log(np.exp(log_sum - log_sum.max()).sum())
    assert_close(law.log_partition, log_z, IDENTITY)
    # The means are the slope of log Z, by central differences along one direction.
    direction = np.random.default_rng(0).normal(size=law.mean_observables.size)

    def shifted(step):
        n = model.couplings.size
        couplings = model.couplings + step * direction[:n]
        moved = tq.BoltzmannMachine.from_edges(
            model.edges, couplings, model.bias + step * direction[n:]
        )
        return float(exact(moved).log_partition)

    slope = (shifted(1e-4) - shifted(-1e-4)) / 2e-4
    assert_close(-direction @ np.asarray(law.mean_observables), slope, 1e-6)
    f = np.asarray(model.observables(law.draw(key, 4000)))
    error = np.abs(f.mean(axis=0) - law.mean_observables) * np.sqrt(4000)
    assert (error / f.std(axis=0)).max() < SIGMAS


@pytest.mark.slow
def test_q_of_a_large_graph_knows_its_bias(key):
    model, samples = square(8, scale=0.2), np.ones((5, 64))
    weights = np.arange(5.0)
    law = exact(model)
    likelihood = law.log_likelihood(samples, weights)
    energy = model.energy(jnp.ones(64))
    assert_close(likelihood, -energy - law.log_partition, DIRECT)
    gradient = law.kl_gradient(samples, weights)
    phase = model.observables(jnp.ones(64))
    assert_close(gradient, phase - law.mean_observables, DIRECT)
    kernel = tq.AlternatingBlockGibbs(model.colouring())
    snr = sampling.QSampled(kernel, 2, replicates=8)
    assert snr(key, model, samples, gradient=gradient).knows_bias
    state = sampling.ChainState.begin(law.draw(key, 8), key)
    assert tq.run(kernel, model, state, 4).moments.count == 4


@pytest.mark.slow
def test_likelihoods_are_those_of_the_models_that_can_be_enumerated():
    model = rbm(4, 3, biased=True)
    samples = np.random.default_rng(0).choice([-1.0, 1.0], (6, 4))
    law = exact(model)
    likelihood = tq.log_likelihood(model, samples)
    assert_close(law.log_likelihood(samples), likelihood, IDENTITY)
    assert_close(law.kl_gradient(samples), tq.kl_gradient(model, samples), DIRECT)
    data = tq.visible_distribution(rbm(4, 2))
    assert_close(law.kl_gradient(data), tq.kl_gradient(model, data), DIRECT)


def test_mistakes_are_told(as_for_users, key):
    every = tq.BoltzmannMachine(np.ones((28, 28)) - np.eye(28))
    with pytest.raises(ValueError, match="treewidth of at most 25, but .* one of 27"):
        exact(every)
    for ask in (exact, to_bqm):
        with pytest.raises(ValueError, match="is pairwise: .* but a NeuralEnergy was"):
            ask(neural(2, 2))
        with pytest.raises(ValueError, match="a traced model was given"):
            eqx.filter_jit(lambda m, ask=ask: ask(m) and None)(rbm(2, 2))
        with pytest.raises(eqx.EquinoxRuntimeError, match="RBM is not finite"):
            ask(tq.RBM(np.array([[np.nan]])))
    with pytest.raises(ValueError, match="a traced key was given"):
        law = exact(rbm(2, 2))
        jax.jit(lambda key: law.draw(key, 3))(key)


def test_a_missing_package_is_told(monkeypatch):
    true_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("dwave"):
            raise ImportError(name)
        return true_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    to_bqm(rbm(2, 2))
    with pytest.raises(ImportError, match=r"dwave-samplers: pip install dwave"):
        exact(rbm(2, 2))


@pytest.mark.slow
def test_kernels_agree_on_the_means(key):
    """A long run from exact draws stays at the exact means."""
    model = square(4)
    law = exact(model)
    state = sampling.ChainState.begin(law.draw(key, 512), key)
    found = tq.run(KERNELS["gibbs"], model, state, 64).moments.mean
    error = np.std(found, axis=0) / np.sqrt(512)
    assert (np.abs(found.mean(axis=0) - law.mean_observables) < SIGMAS * error).all()
    assert_close(law.mean_observables, tq.mean_observables(model), IDENTITY)


def energies_of(model):
    x = jnp.asarray(oracle.states(model.n_units))
    return np.asarray(jax.vmap(model.energy)(x))


def random_bqm(vartype, n=5, names=None):
    random = np.random.default_rng(3)
    names = range(n) if names is None else names
    linear = dict(zip(names, random.normal(size=n), strict=True))
    pairs = [(4, 1), (2, 0), (3, 4), (1, 0)]
    quadratic = {(names[i], names[j]): random.normal() for i, j in pairs}
    return dimod.BinaryQuadraticModel(linear, quadratic, 0.7, vartype)


@pytest.mark.parametrize("vartype", ["SPIN", "BINARY"])
def test_a_binary_quadratic_model_keeps_its_energies(vartype):
    bqm = random_bqm(vartype)
    model = from_bqm(bqm, 3)
    assert (model.n_visible, model.n_hidden) == (3, 2)
    x = oracle.states(5)
    values = x if vartype == "SPIN" else (1 + x) / 2
    expected = bqm.energies((values.astype(np.int8), range(5)))
    assert_close(energies_of(model) + bqm.spin.offset, expected, IDENTITY)
    assert model.edges.tolist() == [[0, 1], [0, 2], [1, 4], [3, 4]]
    assert bqm.vartype.name == vartype  # it is not changed


@pytest.mark.parametrize("name", ["rbm 3x2", "biased rbm 2x3", "ring 3+2"])
def test_a_model_comes_back(name):
    model = SMALL[name]
    with_biases = not model.is_symmetric
    back = from_bqm(to_bqm(model), model.n_visible, with_biases=with_biases)
    assert_close(energies_of(back), energies_of(model), IDENTITY)
    assert back.is_symmetric == model.is_symmetric
    bits = to_bqm(model).change_vartype("BINARY", inplace=False)
    back = from_bqm(bits, model.n_visible)
    assert_close(energies_of(back), energies_of(model), IDENTITY)
    assert not back.is_symmetric


def test_a_machine_comes_back_in_its_own_order():
    model = tq.BoltzmannMachine(
        np.array([[0, 0.1, 0.2], [0.1, 0, 0.3], [0.2, 0.3, 0]]), np.arange(3.0), 2
    )
    assert jnp.array_equal(from_bqm(to_bqm(model), 2).couplings, model.couplings)


def test_units_have_the_variables_that_are_said():
    names = ["e", "d", "c", "b", "a"]
    bqm = random_bqm("SPIN", names=names)
    order = ["a", "c", "e", "b", "d", "alone"]
    model = from_bqm(bqm, variables=order)
    x = jnp.array([1, -1, 1, 1, -1, -1])
    state = dict(zip(order, x.tolist(), strict=True))
    energy = model.energy(x) + bqm.spin.offset
    alone = state.pop("alone")
    assert_close(energy, bqm.energy(state), IDENTITY)
    assert_close(model.energy(x.at[5].set(-alone)), model.energy(x), 0)
    mixed = dimod.BinaryQuadraticModel({2: 1.0, 0: 2.0, 1: 3.0}, {}, "SPIN")
    assert from_bqm(mixed).bias.tolist() == [-2, -3, -1]  # numbers are units
    for known, given, what in [
        (bqm, None, "numbers of units, from 0 to 4, but '.' was given.*range"),
        (bqm, names[:4], "variables has .* once, but 'a' is missing"),
        (bqm, [*names, "a"], "once, but one is there twice"),
        (random_bqm("SPIN", names=[1, 2, 3, 4, 5]), None, "0 to 4, but 5 was given"),
    ]:
        with pytest.raises(ValueError, match=what):
            from_bqm(known, variables=given)


def test_files_are_those_of_dimod(tmp_path):
    model = SMALL["biased rbm 2x3"]
    bqm = to_bqm(model)
    text = coo.dumps(bqm, vartype_header=True)
    back = from_bqm(coo.loads(text), 2)
    # The text has six digits behind the point.
    assert np.abs(energies_of(back) - energies_of(model)).max() < 11 * 5e-7
    with bqm.to_file() as file:
        back = from_bqm(dimod.BinaryQuadraticModel.from_file(file), 2)
    assert_close(energies_of(back), energies_of(model), IDENTITY)
    # A unit that stands alone and has no field is not in the text.
    alone = coo.loads(coo.dumps(to_bqm(SMALL["alone"]), vartype_header=True))
    back = from_bqm(alone, variables=range(3))
    assert_close(energies_of(back), energies_of(SMALL["alone"]), IDENTITY)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["biased rbm 2x3", "tempered", "neural"])
def test_sample_sets_count_states(name, key):
    model = neural(2, 2) if name == "neural" else SMALL[name]
    x = jnp.where(jr.bernoulli(key, 0.5, (4, 50, model.n_units)), 1, -1)
    samples = to_sampleset(model, x)
    flat = np.asarray(x).reshape(200, -1)
    rows, counts = np.unique(flat, axis=0, return_counts=True)
    assert counts.max() > 1 and len(samples) == len(rows)
    assert samples.variables == range(model.n_units)
    table = {tuple(one.sample): one for one in samples.record}
    for row, count in zip(rows, counts, strict=True):
        one = table[tuple(row)]
        assert one.num_occurrences == count
        energy = model.energy(jnp.asarray(row, model.dtype))
        assert_close(one.energy, energy, IDENTITY)
    states, weights = from_sampleset(samples)
    both = zip(np.asarray(states).tolist(), weights.tolist(), strict=True)
    assert {tuple(row): n for row, n in both} == {
        tuple(row): n for row, n in zip(rows.tolist(), counts.tolist(), strict=True)
    }


@pytest.mark.slow
def test_samples_of_bits_are_weighted_samples(key):
    model = SMALL["biased rbm 2x3"]
    x = model.draw(key, 300)
    samples = to_sampleset(model, x).change_vartype("BINARY", inplace=False)
    renamed = samples.relabel_variables(
        {i: "abcde"[i] for i in range(5)}, inplace=False
    )
    states, weights = from_sampleset(renamed, variables="abcde")
    assert len(states) < 300
    gradient = tq.kl_gradient(model, states[:, :2], weights)
    assert_close(gradient, tq.kl_gradient(model, x[:, :2]), IDENTITY)
    # A negative control: without occurrences it is another one.
    other = tq.kl_gradient(model, states[:, :2])
    assert np.abs(other - gradient).max() > 1e-3
    # In another order of variables units are others.
    swapped, _ = from_sampleset(renamed, variables="badce")
    assert jnp.array_equal(swapped[:, [1, 0, 3, 2, 4]][:, :1], states[:, :1])
    assert not jnp.array_equal(swapped, states)


def test_a_solver_of_dimod_finds_the_lowest_energy():
    model = SMALL["biased machine 3+2"]
    x, _ = from_sampleset(dimod.ExactSolver().sample(to_bqm(model)).lowest())
    best = oracle.states(5)[np.argmin(energies_of(model))]
    assert np.array_equal(x[0], best)


def test_mistakes_of_conversions_are_told(as_for_users):
    model = SMALL["biased rbm 2x3"]
    bqm = to_bqm(model)
    with pytest.raises(ValueError, match="bqm is a `dimod.Binary.* but a RBM was"):
        from_bqm(model)
    with pytest.raises(ValueError, match="with_biases=False leaves biases out"):
        from_bqm(bqm, with_biases=False)
    with pytest.raises(ValueError, match="samples is a `dimod.SampleSet`, but a Bin"):
        from_sampleset(bqm)
    integers = dimod.SampleSet.from_samples({0: 3}, "INTEGER", energy=0)
    with pytest.raises(ValueError, match="of the type INTEGER was given"):
        from_sampleset(integers)
    samples = dimod.ExactSolver().sample(bqm)
    with pytest.raises(ValueError, match="once, but 5 is not known"):
        from_sampleset(samples, variables=range(6))
    with pytest.raises(ValueError, match="Spins are -1 or"):
        to_sampleset(model, np.zeros((1, 5)))
    with pytest.raises(ValueError, match="a traced x was given"):
        jax.jit(lambda x: to_sampleset(model, x) and None)(jnp.ones((1, 5)))
