"""Clamped models, against the joint law enumerated and conditioned in NumPy."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import oracle
import pytest
from helpers import (
    DIFFERENCES,
    DIRECT,
    IDENTITY,
    SIGMAS,
    STARTS,
    assert_close,
    central_difference,
    draw,
    excess,
    flatten,
    grid,
    kernel_of,
    machine,
    neural,
    random_law,
    rbm,
    slow_except,
)
from test_base import reference_energies
from test_extending import Known, Product

import trainq as tq
from trainq import sampling
from trainq.models import Clamped, Tempered


def triangles():
    """Two triangles, with an edge between them or without."""
    pairs = [(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3)]
    return tq.BoltzmannMachine(
        0.6 * jr.normal(jr.key(7), (6,)), n_visible=4, edges=pairs
    )


CASES = {
    "both layers": (rbm(3, 3, biased=True), [4, 1]),
    "no biases": (rbm(3, 2), [2]),
    "visible layer": (rbm(2, 3), [1, 0]),
    "hidden layer": (rbm(2, 3, biased=True), [2, 3, 4]),
    "machine": (machine(6, 4), [5, 0, 2]),
    "visible machine": (machine(5, 3, biased=True), [0, 1, 2]),
    "grid": (grid(), [4, 1]),
    "triangle": (triangles(), [0, 2, 1]),
    "neural": (neural(3, 2), [3, 1]),
    "tempered": (neural(2, 2).tempered(1.7), [3]),
    "tempered machine": (Tempered(machine(5, 3, biased=True), 0.7), [2, 4]),
}
# Of each class one, for what is the same in all.
SOME = ["both layers", "visible layer", "machine", "neural"]


def spins_for(units):
    return np.where(np.arange(len(units)) % 2, 1, -1)


def clamp(name) -> Any:
    model, units = CASES[name]
    return model.clamp(units, spins_for(units))


def reference_observables(model):
    if isinstance(model, tq.RBM):
        biased = model.visible_bias is not None
        return oracle.rbm_observables(model.n_visible, model.n_hidden, biased)
    if isinstance(model, tq.BoltzmannMachine):
        x = oracle.states(model.n_units)
        pairs = [x[:, i] * x[:, j] for i, j in np.asarray(model.edges)]
        return -np.stack([*pairs, *([] if model.bias is None else x.T)], axis=1)
    return np.asarray(eqx.filter_jit(tq.observables)(model))  # which others test


def conditioned(name, sign=1):
    """Energies, law and observables of the states that have the clamped values, or
    their opposites, and how many of the free units are visible."""
    model, units = CASES[name]
    x = oracle.states(model.n_units)
    keep = (x[:, units] == sign * spins_for(units)).all(axis=1)
    energies = reference_energies(model)[keep]
    n_visible = sum(unit not in units for unit in range(model.n_visible))
    f = reference_observables(model)[keep]
    return energies, oracle.law(energies), f, n_visible


FAST = ["both layers", "visible layer", "machine", "neural", "tempered machine"]


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", slow_except(CASES, *FAST))
def test_laws_are_those_of_the_joint_law_conditioned(name):
    energies, pi, f, m = conditioned(name)
    model, n = clamp(name), int(np.log2(len(energies)))
    assert (model.n_visible, model.n_hidden) == (m, n - m)
    data = np.asarray(random_law(m))
    states = jnp.asarray(oracle.states(n))
    visible = jnp.asarray(oracle.states(m))

    @eqx.filter_jit
    def results(model):
        return (
            model.energies(),
            jax.vmap(model.energy)(states),
            tq.log_partition(model),
            tq.free_energies(model),
            model.free_energy(visible),
            model.hidden_free_energies(),
            tq.observables(model),
            tq.mean_observables(model),
            tq.kl_gradient(model, data),
            model.local_fields(states, jnp.arange(n)),
        )

    weights = np.exp(-energies).reshape(2**m, -1)
    free = -np.log(weights.sum(axis=1))
    table = energies.reshape((2,) * n)
    changes = [(np.flip(table, unit) - table).reshape(-1) for unit in range(n)]
    expected = (
        energies,
        energies,
        np.log(weights.sum()),
        free,
        free,
        -np.log(weights.sum(axis=0)),
        f,
        pi @ f,
        oracle.kl_gradient(pi, m, data, f),
        np.stack(changes, axis=-1) / (2 * oracle.states(n)),
    )
    for a, b in zip(results(model), expected, strict=True):
        # Without visible units no data say anything: zero, but for rounding.
        assert_close(np.append(a, 1), np.append(b, 1), IDENTITY)


@pytest.mark.slow
def test_what_is_left_of_a_machine_is_one():
    for name, kind in [("both layers", tq.RBM), ("visible layer", tq.RBM)] + [
        (name, tq.BoltzmannMachine) for name in ("machine", "grid", "triangle")
    ]:
        model = clamp(name)
        assert isinstance(model, Clamped)
        rest = model.equivalent
        assert type(rest) is kind and rest.n_units == model.n_units
        assert len(flatten(model)[0]) == len(flatten(CASES[name][0])[0])
    assert clamp("neural").equivalent is None
    assert clamp("tempered machine").equivalent is not None


@pytest.mark.slow
def test_the_flip_is_a_symmetry_where_nothing_couples():
    names = [name for name in CASES if clamp(name).is_symmetric]
    assert names == ["triangle"]
    assert triangles().is_symmetric and CASES["no biases"][0].is_symmetric
    # It halves the work, and changes nothing else.
    energies, pi, f, m = conditioned("triangle")
    model, kernel, data = clamp("triangle"), tq.RandomScanGibbs(), random_law(m)
    certificate = tq.certify(kernel, model)
    assert certificate.ok and certificate.checks["symmetry"].applicable
    noise = oracle.noise_matrix(oracle.single_flip(pi, "gibbs"), pi, f).diagonal()
    assert_close(tq.QStruct(kernel, 2)(model, data).parameter_mse, noise, DIRECT)
    # One edge between the triangles is enough to lose it.
    pairs = [*triangles().edges.tolist(), (2, 3)]
    joined = tq.BoltzmannMachine(0.5 * jnp.ones(7), n_visible=4, edges=pairs)
    assert not joined.clamp([0, 1, 2], [1, 1, 1]).is_symmetric
    assert joined.clamp([2, 3], [1, 1]).is_symmetric is False


KERNEL_CASES = slow_except(
    [
        (kernel, name)
        for kernel in (
            *("gibbs", "metropolis", "random", "palindromic", "alternating"),
            *("coloured random", "coloured palindromic", "coloured alternating"),
        )
        for name in SOME
    ],
    ("gibbs", "machine"),
    ("alternating", "both layers"),
    ("coloured random", "visible layer"),
)


@pytest.mark.quick(1)
@pytest.mark.parametrize(("kernel_name", "name"), KERNEL_CASES)
def test_kernels_their_certificates_and_q(kernel_name, name):
    energies, pi, f, m = conditioned(name)
    model, data = clamp(name), random_law(m)
    kernel = kernel_of(kernel_name, model)
    n, rule = model.n_units, kernel_name.removeprefix("coloured ")
    blocks = range(m), range(m, n)
    if rule != kernel_name:
        blocks = model.colouring()
    matrix = oracle.transition(rule, pi, blocks)
    assert_close(kernel.chain(model).matrix(), matrix, IDENTITY)
    assert tq.certify(kernel, model).ok
    noise = oracle.noise_matrix(matrix, pi, f).diagonal()
    signal = oracle.kl_gradient(pi, m, np.asarray(data), f) ** 2
    snr = tq.QStruct(kernel, 2)(model, data)
    assert_close(snr.parameter_mse, noise, DIRECT)
    assert_close(snr.parameter_signal + 1, signal + 1, DIRECT)


@pytest.mark.parametrize("start", slow_except(STARTS, "data"))
def test_the_exact_error_of_a_window(start):
    # Of three steps after one, by powers of the matrix.
    name = "both layers"
    _, pi, f, m = conditioned(name)
    model, data = clamp(name), random_law(m)
    blocks = range(m), range(m, model.n_units)
    matrix = oracle.transition("alternating", pi, blocks)
    given = pi.reshape(2**m, -1)
    given = given / given.sum(axis=1, keepdims=True)
    laws = {
        "stationary": pi,
        "uniform": np.full(len(pi), 1 / len(pi)),
        "data": (np.asarray(data)[:, None] * given).reshape(-1),
    }
    law = laws[start] @ matrix
    bias, second = np.zeros(f.shape[1]), np.zeros(f.shape[1])
    for s in range(3):
        at = law @ np.linalg.matrix_power(matrix, s)
        bias = bias + (at - pi) @ f / 3
        for t in range(s, 3):
            later = np.linalg.matrix_power(matrix, t - s) @ (f - pi @ f)
            second += (1 + (t > s)) * at @ ((f - pi @ f) * later) / 9
    kernel = tq.AlternatingBlockGibbs()
    snr = tq.QOperational(kernel, 3, 1, STARTS[start])(model, data)
    assert_close(snr.mse, second.sum(), DIRECT)
    assert_close(snr.bias2 + 1, (bias**2).sum() + 1, DIRECT)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("kernel_name", "name"),
    slow_except(
        [
            (k, n)
            for k in ("gibbs", "alternating", "coloured alternating")
            for n in SOME
        ],
        ("gibbs", "machine"),
        ("alternating", "both layers"),
        ("coloured alternating", "neural"),
    ),
)
def test_a_step_draws_a_row_of_the_matrix(kernel_name, name, key):
    _, pi, _, m = conditioned(name)
    model = clamp(name)
    kernel = kernel_of(kernel_name, model)
    coloured = kernel_name.startswith("coloured")
    blocks = model.colouring() if coloured else (range(m), range(m, model.n_units))
    kind = kernel_name.removeprefix("coloured ")
    matrix = oracle.transition(kind, pi, blocks)
    theirs = oracle.transition(kind, conditioned(name, -1)[1], blocks)
    # From where it makes the largest difference what is clamped.
    start = int(np.argmax(np.abs(matrix - theirs).sum(axis=1)))
    counts = draw(kernel, model, jnp.asarray(oracle.states(model.n_units)[start]), key)
    assert excess(counts, matrix[start]) < SIGMAS
    # The same units, given other values, have another law.
    whole, units = CASES[name]
    other = whole.clamp(units, -spins_for(units))
    counts = draw(kernel, other, jnp.asarray(oracle.states(other.n_units)[start]), key)
    assert excess(counts, matrix[start]) > SIGMAS


@pytest.mark.slow
def test_all_visible_units_clamped_are_the_data_phase():
    for model in (rbm(3, 4, biased=True), machine(5, 3, biased=True), neural(3, 2)):
        v = jr.rademacher(jr.key(0), (5, 3), float)

        def given(v, model=model):
            hidden = model.clamp([0, 1, 2], v)
            law = tq.visible_distribution(hidden)
            return hidden.log_partition(), tq.mean_observables(hidden), law

        log_z, means, law = eqx.filter_jit(jax.vmap(given))(v)
        assert_close(log_z, -model.free_energy(v), IDENTITY)
        phase = tq.models.data_phase(model, v)
        assert_close(jnp.mean(means, axis=0), phase, IDENTITY)
        assert law.shape == (5, 1)


@pytest.mark.slow
def test_conditions_are_mapped_over_and_pooled():
    whole, units = CASES["machine"]
    values = jnp.asarray(oracle.states(3)[[0, 3, 6]])
    data, predictor = random_law(2), tq.QOperational(tq.RandomScanGibbs(), 10)
    traced = 0

    @eqx.filter_jit
    def q(model, values):
        nonlocal traced
        traced += 1
        return predictor(model.clamp(units, values), data)

    each = [q(whole, v) for v in values]
    assert traced == 1
    together = eqx.filter_vmap(lambda v: predictor(whole.clamp(units, v), data))(values)
    assert_close(together.signal, jnp.stack([e.signal for e in each]), IDENTITY)
    assert_close(together.mse, jnp.stack([e.mse for e in each]), DIRECT)
    pooled = tq.pool(together)
    expected = sum(e.signal for e in each) / sum(e.mse for e in each)
    assert_close(pooled.q, expected, DIRECT)
    # Models that are made first are a batch of them.
    batch = eqx.filter_vmap(lambda v: whole.clamp(units, v))(values)
    found = eqx.filter_vmap(predictor, in_axes=(0, None))(batch, data)
    assert_close(found.mse, together.mse, DIRECT)
    assert not batch.is_symmetric
    with pytest.raises(ValueError, match="This Clamped is a batch of models"):
        tq.log_partition(batch)


def test_the_gradient_of_a_mean_over_conditions():
    # That of the mean conditional divergence, by central differences.
    whole, units = CASES["both layers"]
    values = jnp.asarray(oracle.states(2))
    laws = jax.nn.softmax(jr.normal(jr.key(3), (4, 4)), axis=1)
    x, m = oracle.states(6), 2

    def mean_divergence(model):
        found, energies = 0, reference_energies(model)
        for value, law in zip(np.asarray(values), np.asarray(laws), strict=True):
            keep = (x[:, units] == value).all(axis=1)
            pi = oracle.law(energies[keep]).reshape(2**m, -1).sum(axis=1)
            found += (law * np.log(law / pi)).sum() / len(values)
        return found

    gradient = jax.jit(jax.vmap(lambda v, p: tq.kl_gradient(whole.clamp(units, v), p)))(
        values, laws
    ).mean(axis=0)
    flat, rebuild = flatten(whole)
    direction = np.random.default_rng(0).normal(size=flat.shape)
    expected = central_difference(
        lambda p: mean_divergence(rebuild(p)), flat, direction
    )
    assert_close(np.asarray(gradient) @ direction, expected, DIFFERENCES)


@pytest.mark.parametrize(
    "name", slow_except(["both layers", "machine", "neural"], "machine")
)
def test_derivatives_reach_the_parameters_of_the_whole(name):
    whole, units = CASES[name]
    data = random_law(conditioned(name)[3])
    kernel = tq.RandomScanGibbs()

    @eqx.filter_jit
    def log_q(flat):
        model = rebuild(flat).clamp(units, spins_for(units))
        return tq.QStruct(kernel, 100)(model, data).log_q

    flat, rebuild = flatten(whole)
    direction = jr.normal(jr.key(2), flat.shape)
    expected = central_difference(log_q, flat, direction)
    assert_close(jax.jit(jax.grad(log_q))(flat) @ direction, expected, DIFFERENCES)


def test_a_model_with_an_equivalent_is_clamped_in_closed_form():
    factors = 0.8 * jr.normal(jr.key(0), (5, 2))
    found, expected = (
        kind(factors[:2], factors[2:]).tempered(0.8).clamp([0, 3], [1, -1])
        for kind in (Known, Product)
    )
    assert isinstance(found.equivalent, tq.RBM) and expected.equivalent is None
    assert found.offset is not None and expected.offset is None

    @eqx.filter_jit
    def results(model):
        fns = tq.log_partition, tq.mean_observables, tq.free_energies
        return [fn(model) for fn in fns]

    for a, b in zip(results(found), results(expected), strict=True):
        assert_close(a, b, IDENTITY)


@pytest.mark.slow
def test_the_noise_of_more_units_than_a_table_takes():
    # It is then found by curvatures, in which the offset counts: it is not linear in
    # the parameters. More than `_MAX_TABLE` states are left.
    factors = 0.5 * jr.normal(jr.key(0), (16, 1))
    found, expected = (
        tq.QStruct(tq.RandomScanBlockGibbs(), 100)(
            kind(factors[:8], factors[8:], 8, 8).clamp([2, 9], [1, -1]),
            random_law(7),
        ).parameter_mse
        for kind in (Known, Product)
    )
    assert_close(found, expected, DIRECT)


def test_units_in_any_order_and_in_two_steps():
    whole = machine(6, 4, biased=True)
    once = whole.clamp([4, 1, 2], [1, -1, 1])
    twice = whole.clamp(np.array([2]), jnp.array([1.0])).clamp([3, 1], [1, -1])
    assert isinstance(once, Clamped) and eqx.tree_equal(once, twice)
    assert once.units == (1, 2, 4) and once.free.tolist() == [0, 3, 5]
    assert once.values.tolist() == [-1, 1, 1]
    states = jnp.asarray([[1, 2, 3]]), [[1, -1, 1, 2, 1, 3]]
    assert once.fill(states[0]).tolist() == states[1]
    assert whole.clamp([], []) is whole
    assert once.clamp([], []) == once


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["both layers", "machine", "neural"])
def test_a_temperature_comes_before_or_after(name):
    whole, units = CASES[name]
    before = whole.tempered(0.6).clamp(units, spins_for(units))
    after = clamp(name).tempered(0.6)
    assert type(before) is type(after)
    expected = 0.6 * conditioned(name)[0]
    assert_close(before.energies(), expected, IDENTITY)
    assert_close(after.energies(), expected, IDENTITY)
    assert_close(flatten(before)[0], flatten(after)[0], IDENTITY)


@pytest.mark.slow
def test_tempering_of_a_clamped_model():
    name = "both layers"
    model, (energies, pi, f, _) = clamp(name), conditioned(name)
    kernel = tq.ParallelTempering(tq.AlternatingBlockGibbs(), [1.0, 0.5])
    start = tq.start_chains(jr.key(0), model, 400, kernel=kernel)
    run = tq.run(kernel, model, tq.run(kernel, model, start, 20).state, 60)
    means = np.asarray(run.moments.mean)
    error = means.std(axis=0) / np.sqrt(len(means))
    deviation = np.abs(means.mean(axis=0) - pi @ f)
    # Biases of clamped units have the same value always.
    assert (deviation <= SIGMAS * error + 1e-12).all()
    assert (np.abs(means.mean(axis=0) - f.mean(axis=0)) > SIGMAS * error).any()
    variance = tq.markov.energy_variance(model)
    assert_close(variance, pi @ energies**2 - (pi @ energies) ** 2, DIRECT)


@pytest.mark.slow
def test_sampled_q_is_the_exact_one():
    model, data = clamp("both layers"), random_law(2)
    kernel = tq.AlternatingBlockGibbs()
    exact = tq.QOperational(kernel, 20, 2)(model, data)
    found = tq.QSampled(kernel, 20, 2, replicates=512)(jr.key(0), model, data)
    assert abs(found.mse - exact.mse) < SIGMAS * found.mse_error
    assert_close(found.signal, exact.signal, DIRECT)
    other = tq.QOperational(kernel, 10, 2)(model, data)
    assert abs(found.mse - other.mse) > SIGMAS * found.mse_error


@pytest.mark.slow
def test_a_budget_of_a_clamped_model():
    name = "machine"
    model, data = clamp(name), random_law(2)
    kernel = tq.AlternatingBlockGibbs(model.colouring())
    table = sampling.exact_errors(kernel, model, data, max_steps=64)
    budget = tq.plan_budget(table, 5.0)
    predictor = tq.QOperational(
        kernel, budget.window, budget.burn_in, n_chains=budget.n_chains
    )
    assert predictor(model, data).q >= 5 * (1 - 1e-9)


@pytest.mark.slow
def test_a_layer_clamped_leaves_independent_units_of_any_number(key):
    m, n = 60, 50
    model = rbm(m, n, biased=True, scale=0.2)
    v = jr.rademacher(jr.key(1), (m,), float)
    hidden = model.clamp(range(m), v)
    field = model.hidden_field(v)
    assert_close(hidden.log_partition(), -model.free_energy(v), IDENTITY)
    x = jnp.ones((4000, n))
    [block] = hidden.colouring()
    assert block.size == n
    drawn = tq.AlternatingBlockGibbs().step(key, hidden, x)
    error = jnp.abs(jnp.mean(drawn, axis=0) - jnp.tanh(field)) * jnp.sqrt(4000)
    assert jnp.max(error) < SIGMAS
    # A machine whose hidden units do not interact.
    pairs = [(i, j) for i in range(3) for j in range(3, 40)]
    machine = tq.BoltzmannMachine(
        0.5 * jr.normal(key, (len(pairs),)), n_visible=3, edges=pairs
    )
    v = jnp.asarray(oracle.states(3))
    fields = v @ machine.couplings.reshape(3, 37)
    free = -np.log(2 * np.cosh(np.asarray(fields))).sum(axis=1)
    assert_close(machine.free_energy(v), free, IDENTITY)
    assert_close(tq.log_partition(machine), np.log(np.exp(-free).sum()), IDENTITY)
    given = machine.clamp(range(3), v[5])
    assert_close(given.log_partition(), -free[5], IDENTITY)
    x = jnp.ones((4000, 37))
    drawn = tq.AlternatingBlockGibbs().step(key, given, x)
    error = jnp.abs(jnp.mean(drawn, axis=0) - jnp.tanh(fields[5])) * jnp.sqrt(4000)
    assert jnp.max(error) < SIGMAS


def test_a_product_of_clamped_units_never_varies():
    # No standard error compares it: its value does.
    whole = rbm(3, 2)
    rest = whole.clamp([0, 4], [1, -1])
    state = tq.start_chains(jr.key(0), rest, 8)
    means = tq.run(tq.RandomScanGibbs(), rest, state, 50).moments.mean
    fixed = np.ptp(np.asarray(means), axis=0) == 0
    assert fixed.tolist() == [False, True, False, False, False, False]
    exact = tq.mean_observables(rest)
    assert_close(means[0, 1], 1.0, IDENTITY)
    assert_close(exact[1], 1.0, IDENTITY)


def test_values_are_no_parameters(tmp_path):
    model = clamp("machine")
    assert flatten(model)[0].shape == flatten(model.model)[0].shape
    with jax.numpy_dtype_promotion("standard"):
        scaled = jax.tree.map(lambda p: 2 * p, model)
        optimiser = optax.adamw(0.1, weight_decay=0.5)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, _ = optimiser.update(params, optimiser.init(params), params)
        moved = eqx.apply_updates(model, updates)
    for other in (scaled, moved):
        assert (other.values == model.values).all()
        assert not (other.model.couplings == model.model.couplings).any()
    tq.save(tmp_path / "model.npz", model)
    assert eqx.tree_equal(tq.load(tmp_path / "model.npz"), model)
    assert repr(model).endswith("3 of 6 units)") and "array" not in repr(model)


def test_derivatives_by_the_values_raise():
    whole, units = CASES["machine"]
    for fn in (lambda m: m.log_partition(), lambda m: m.energy(jnp.ones(3))):
        with pytest.raises(ValueError, match="no derivative by the values of its"):
            jax.grad(lambda v, fn=fn: fn(whole.clamp(units, v)))(jnp.ones(3))


def test_values_that_are_no_spins_raise():
    build = eqx.filter_jit(lambda v: rbm(2, 2).clamp([0], v).energy(jnp.ones(3)))
    with pytest.raises(eqx.EquinoxRuntimeError, match="Spins are -1 or"):
        build(jnp.zeros(1))


WRONG = {
    "names each unit to clamp once, by a number from 0 to 3": [
        ([4], [1]),
        ([-1], [1]),
        ([0, 0], [1, 1]),
    ],
    "is a sequence of units by number": [
        ([0.0], [1]),
        (np.array([True, False, False, False]), [1]),
        (0, [1]),
    ],
    r"values has shape \(2,\), one spin for each": [
        ([0, 1], [1]),
        ([0, 1], np.ones((3, 2))),
        ([0, 1], 1),
    ],
    "At least one unit stays free, but all 4": [(range(4), np.ones(4))],
    "Spins are -1 or .* an array of bool": [([0], np.array([True]))],
}


@pytest.mark.parametrize("message", WRONG)
def test_mistakes_are_told(message, as_for_users):
    for units, values in WRONG[message]:
        for model in (rbm(2, 2), neural(2, 2), neural(2, 2).tempered(2)):
            with pytest.raises(ValueError, match=message):
                model.clamp(units, values)


def test_units_are_not_traced(as_for_users):
    for use in (lambda u: u, lambda u: [u[0]]):
        with pytest.raises(ValueError, match="units says which .* cannot be traced"):
            jax.jit(lambda u, use=use: rbm(2, 2).clamp(use(u), jnp.ones(1)).energies())(
                jnp.array([0])
            )


@pytest.mark.slow
def test_blocks_of_the_whole_do_not_fit(as_for_users):
    kernel = tq.AlternatingBlockGibbs(grid().colouring())
    with pytest.raises(ValueError, match="has 6 units in its blocks, but the model"):
        tq.QStruct(kernel, 10)(clamp("grid"), random_law(2))
