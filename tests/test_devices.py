"""Devices that are not the model: against dense NumPy, and what no window removes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import oracle
import pytest
from helpers import (
    DIFFERENCES,
    DIRECT,
    IDENTITY,
    KERNELS,
    SIGMAS,
    assert_close,
    central_difference,
    dense,
    flatten,
    machine,
    neural,
    random_law,
    rbm,
    slow_except,
)

import trainq as tq
from trainq import sampling


# The RBM of the page on devices.
DATA = tq.visible_distribution(tq.planted_rbm(jr.key(0), 4, 2, 2.0))
MODEL = tq.RBM(0.7 * jr.normal(jr.key(1), (4, 3)))
KERNEL = tq.AlternatingBlockGibbs()

# A model with its device, of every path: the same linear energies, others that have
# another factor in front, and any energy. All have 3 visible units and 2 hidden ones.
DEVICES = {
    "rbm": (rbm(3, 2), tq.quantise(rbm(3, 2), 3, 1.0)),
    "biased rbm": (
        rbm(3, 2, biased=True),
        tq.scatter(jr.key(5), rbm(3, 2, biased=True), 0.3, 0.2),
    ),
    "another class": (machine(5, 3), tq.models.Tempered(machine(5, 3), 0.7)),
    "neural": (neural(3, 2), neural(3, 2).tempered(0.6)),
}


def observables(model):
    """`∂E/∂θ_a` at every state, by one derivative a state."""
    flat, rebuild = flatten(model)
    gradient = jax.grad(lambda p, x: rebuild(p).energy(x))
    return np.stack([gradient(flat, jnp.asarray(x)) for x in oracle.states(5)])


def naive(kernel, model, device, data, start, window, burn_in):
    """Signal, bias and variance of an estimate from a device, by the double sum."""
    pi, _ = dense("gibbs", model)
    law_of_device, matrix = dense(kernel, device)
    f = observables(model)
    g = oracle.kl_gradient(pi, 3, np.asarray(data), f)
    law = law_of_device if start == "stationary" else np.full(32, 1 / 32)
    laws, powers = [law @ np.linalg.matrix_power(matrix, burn_in)], [np.eye(32)]
    for _ in range(window - 1):
        laws.append(laws[-1] @ matrix)
        powers.append(powers[-1] @ matrix)
    mean = np.mean([p @ f for p in laws], axis=0)
    second = 0
    for t in range(window):
        for s in range(t, window):
            both = laws[t] @ (f * (powers[s - t] @ f))
            second = second + both * (1 if s == t else 2)
    return g**2, pi @ f - mean, second / window**2 - mean**2


BOTH = [(name, start) for name in DEVICES for start in ("stationary", "uniform")]
FAST = ("rbm", "uniform"), ("neural", "stationary")


@pytest.mark.quick(1)
@pytest.mark.parametrize("name, start", slow_except(BOTH, *FAST))
def test_the_error_on_a_device_is_that_of_the_double_sum(name, start):
    model, device = DEVICES[name]
    data, kernel = random_law(3), "alternating" if start == "uniform" else "gibbs"
    chosen = tq.Stationary() if start == "stationary" else tq.Uniform()
    predictor = tq.QOperational(KERNELS[kernel], 6, 2, chosen)
    snr = predictor(model, data, device=device)
    signal, bias, variance = naive(kernel, model, device, data, start, 6, 2)
    assert_close(snr.parameter_signal, signal, DIRECT)
    assert_close(snr.parameter_bias, bias, DIRECT)
    assert_close(snr.parameter_variance, variance, DIRECT)
    pi, law = dense("gibbs", model)[0], dense("gibbs", device)[0]
    expected = (pi - law) @ observables(model)
    assert_close(snr.parameter_device_bias, expected, DIRECT)
    assert_close(snr.q_limit, np.sum(signal) / np.sum(expected**2), DIRECT)


SOLVED = [
    (name, kernel)
    for name in ("biased rbm", "neural")
    for kernel in ("gibbs", "palindromic", "alternating")
]


@pytest.mark.parametrize("name, kernel", slow_except(SOLVED, ("neural", "alternating")))
def test_the_prediction_on_a_device_is_that_of_a_dense_solve(kernel, name):
    model, device = DEVICES[name]
    data, f = random_law(3), observables(model)
    law, matrix = dense(kernel, device)
    t_o = np.diag(oracle.noise_matrix(matrix, law, f))
    bias = (dense(kernel, model)[0] - law) @ f
    snr = tq.QStruct(KERNELS[kernel], 50)(model, data, device=device)
    assert_close(snr.parameter_mse, bias**2 + 2 * t_o / 50, DIRECT)
    assert_close(snr.t_o, np.sum(t_o), DIRECT)
    directions = jr.normal(jr.key(1), (3, t_o.size))
    predictor = tq.QStruct(KERNELS[kernel], 50)
    along = predictor.along(model, data, directions, device=device)
    assert_close(along.parameter_bias, directions @ bias, DIRECT)
    random = predictor.randomised(jr.key(2), model, data, 400, device=device)
    assert abs(random.mse - snr.mse) < SIGMAS * random.mse_error
    assert abs(random.t_o - snr.t_o) < SIGMAS * random.t_o_error
    assert_close(random.device_bias2, np.sum(bias**2), DIRECT)


def test_a_warm_start_knows_its_device():
    predictor = tq.QStruct(KERNELS["gibbs"], 50, solver=tq.ConjugateGradient())
    model, device = DEVICES["rbm"]
    guess = predictor.zero_guess(model, random_law(3), device=device)
    snr, _ = predictor.from_guess(model, random_law(3), guess, device=device)
    assert_close(snr.q, predictor(model, random_law(3), device=device).q, DIRECT)


NOISES = ["slowest mode", "relevant mode", "relevant gap"]


@pytest.mark.parametrize("noise", slow_except(NOISES, "relevant gap"))
def test_one_gap_is_that_of_the_device(noise):
    model, device = DEVICES["biased rbm"]
    predictor = tq.SingleGap(KERNELS["gibbs"], 50, noise)
    snr = predictor(model, random_law(3), device=device)
    own = predictor(device, random_law(3))  # observables of an RBM are its units'
    assert_close(snr.parameter_variance, own.parameter_variance, DIRECT)
    exact = tq.QStruct(KERNELS["gibbs"], 50)(model, random_law(3), device=device)
    assert_close(snr.parameter_bias, exact.parameter_bias, IDENTITY)


@pytest.mark.slow
def test_a_model_is_a_device_without_bias():
    same = jax.tree.map(jnp.copy, MODEL)
    for predictor in (tq.QStruct(KERNEL, 200), tq.QOperational(KERNEL, 200, 3)):
        alone, beside = predictor(MODEL, DATA), predictor(MODEL, DATA, device=same)
        assert_close(beside.mse, alone.mse, IDENTITY)
        assert alone.parameter_device_bias is None
        assert alone.q_limit == jnp.inf and alone.device_bias2 == 0
        assert beside.q_limit == jnp.inf and "cannot exceed inf" in str(beside)
        assert "cannot exceed" not in str(alone)


def test_both_ways_to_the_bias_agree():
    # As the same class it is the difference of two means, as another one a sum.
    device = MODEL.tempered(0.8)
    other = tq.models.Tempered(MODEL, 0.8)
    predictor = tq.QOperational(KERNEL, 30)
    one, two = (predictor(MODEL, DATA, device=d) for d in (device, other))
    assert_close(two.parameter_bias, one.parameter_bias, DIRECT)


def test_the_published_effect_on_the_rbm_of_the_page():
    # Published of an RBM that is not stated: from 32.6 to 20.5 by rounding to quarters,
    # and at most 42.7 at an inverse temperature of 0.8.
    predictor = tq.QStruct(KERNEL, window=200)
    quarters = tq.quantise(MODEL, bits=4, range=1.75)
    assert_close(quarters.weights * 4, np.round(MODEL.weights * 4), IDENTITY)
    q = predictor(MODEL, DATA).q
    rounded = predictor(MODEL, DATA, device=quarters)
    warm = predictor(MODEL, DATA, device=MODEL.tempered(0.8))
    assert abs(q - 31.55) < 0.01 and abs(rounded.q - 23.30) < 0.01
    assert abs(rounded.q_limit - 77.74) < 0.01 and abs(warm.q_limit - 49.37) < 0.01


def test_no_window_gets_past_the_limit_and_a_long_one_comes_near():
    device = MODEL.tempered(0.8)
    found = [
        tq.QOperational(KERNEL, window, start=tq.Stationary())(
            MODEL, DATA, device=device
        )
        for window in (1, 10, 100, 10_000, 1_000_000)
    ]
    q, limit = np.array([snr.q for snr in found]), found[0].q_limit
    assert (np.diff(q) > 0).all() and (q < limit).all()
    assert_close(q[-1], limit, 1e-3)  # a window of 1e6 has an error of its own
    assert tq.QOperational(KERNEL, 10_000)(MODEL, DATA).q > 20 * limit


@pytest.mark.slow
@pytest.mark.parametrize(
    "predictor", [pytest.param(tq.QStruct, marks=pytest.mark.slow), tq.QOperational]
)
def test_log_q_is_differentiable_in_the_model_and_in_its_device(predictor):
    model, device = DEVICES["biased rbm"]
    own, rebuild = flatten(model)
    other, _ = flatten(device)
    data, predict = random_law(3), predictor(KERNELS["gibbs"], 7)

    def log_q(both):
        first, second = jnp.split(both, 2)
        return predict(rebuild(first), data, device=rebuild(second)).log_q

    both = jnp.concatenate([own, other])
    gradient = jax.grad(log_q)(both)
    for direction in jnp.eye(both.size)[jnp.array([0, 8, 11, 19])]:
        expected = central_difference(log_q, both, direction)
        assert abs(gradient @ direction - expected) < DIFFERENCES
    assert abs(gradient[: own.size]).max() > 0.01 < abs(gradient[own.size :]).max()


@pytest.mark.slow
def test_many_devices_at_once_and_pooled():
    devices = eqx.filter_vmap(lambda key: tq.scatter(key, MODEL, 0.2))(
        jr.split(jr.key(3), 4)
    )
    predictor = tq.QStruct(KERNEL, 200)

    def on(device):
        return predictor(MODEL, DATA, device=device)

    snr = eqx.filter_vmap(on)(devices)
    third = on(jax.tree.map(lambda p: p[2], devices))
    assert_close(snr.q[2], third.q, DIRECT)
    together = tq.pool(snr)
    assert_close(together.mse, jnp.sum(snr.mse), IDENTITY)
    assert_close(together.device_bias2, jnp.sum(snr.device_bias2), IDENTITY)


def test_another_device_compiles_nothing_anew():
    predictor, traces = tq.QStruct(KERNEL, 200), []

    @eqx.filter_jit
    def q(device):
        traces.append(0)
        return predictor(MODEL, DATA, device=device).q

    for device in (tq.quantise(MODEL, 3, 1.0), tq.clip(MODEL, 0.5), MODEL.tempered(2)):
        q(device)
    assert len(traces) == 1


@pytest.mark.slow
def test_a_sampled_q_on_a_device_is_the_exact_one():
    device = MODEL.tempered(0.8)
    exact = tq.QOperational(KERNEL, 50, 5)(MODEL, DATA, device=device)
    sampled = tq.QSampled(KERNEL, 50, 5, replicates=400)
    found = sampled(jr.key(1), MODEL, DATA, device=device)
    assert abs(found.mse - exact.mse) < SIGMAS * found.mse_error
    assert_close(found.q_limit, exact.q_limit, DIRECT)
    # Without the device it is another number.
    other = sampled(jr.key(1), MODEL, DATA)
    assert abs(other.mse - exact.mse) > SIGMAS * other.mse_error


def test_a_table_of_errors_on_a_device_is_made_of_the_exact_ones():
    device = tq.quantise(MODEL, 3, 1.0)
    table = sampling.exact_errors(KERNEL, MODEL, DATA, max_steps=60, device=device)
    for i in (0, len(table.steps) // 2, -1):
        burn_in, window = int(table.burn_in[i]), int(table.window[i])
        snr = tq.QOperational(KERNEL, window, burn_in)(MODEL, DATA, device=device)
        assert_close(table.bias2[i], snr.bias2, DIRECT)
        assert_close(table.variance[i], snr.variance, DIRECT)
    assert_close(table.q_limit, snr.q_limit, DIRECT)
    target = float(table.q_limit)
    with pytest.raises(sampling.BudgetError, match="The device is not the model: its"):
        tq.plan_budget(table, 1.01 * target)
    plan = tq.plan_budget(table, 0.5 * target)
    of_plan = tq.QOperational(KERNEL, plan.window, plan.burn_in, n_chains=plan.n_chains)
    assert_close(of_plan(MODEL, DATA, device=device).q, plan.q, DIRECT)


@pytest.mark.slow
def test_a_calibration_on_a_device_knows_its_bias():
    device = MODEL.tempered(0.6)
    exact = sampling.exact_errors(KERNEL, MODEL, DATA, max_steps=100, device=device)
    found = sampling.calibrated_errors(
        jr.key(0), KERNEL, MODEL, DATA, max_steps=100, replicates=400, device=device
    )
    # Both are of 400 replicates: within a tenth, where without the model's own run the
    # bias of the device would be none.
    np.testing.assert_allclose(found.device_bias2, exact.device_bias2, rtol=0.1)
    np.testing.assert_allclose(found.signal, exact.signal, rtol=0.1)
    last = [int(np.argmax(t.window)) for t in (found, exact)]
    np.testing.assert_allclose(found.bias2[last[0]], exact.bias2[last[1]], rtol=0.1)
    with pytest.raises(sampling.BudgetError, match="device is not the model.*calibrat"):
        tq.plan_budget(found, 2 * found.q_limit)


# What a device does to parameters.


@pytest.mark.parametrize("bits, width", [(2, 1.0), (3, 0.6), (4, 1.75), (8, 0.3)])
@pytest.mark.parametrize("name", ["biased rbm", "neural"])
def test_quantised_parameters_are_the_nearest_of_an_even_grid(bits, width, name):
    model, _ = DEVICES[name]
    grid = np.linspace(-width, width, 2**bits - 1)
    flat, quantised = (flatten(m)[0] for m in (model, tq.quantise(model, bits, width)))
    nearest = grid[np.argmin(abs(np.asarray(flat)[:, None] - grid), axis=1)]
    np.testing.assert_allclose(quantised, nearest, atol=1e-15)
    again = flatten(tq.quantise(tq.quantise(model, bits, width), bits, width))[0]
    np.testing.assert_array_equal(again, quantised)


def test_devices_keep_the_precision_and_the_class_of_a_model():
    model = tq.RBM(jnp.ones((3, 2), jnp.float32))
    key = jr.key(0)
    for device in (
        tq.quantise(model, 4, 1),
        tq.clip(model, 0.5),
        tq.scatter(key, model, 0.1, 0.1),
    ):
        assert type(device) is tq.RBM and device.dtype == jnp.float32
        assert device.is_symmetric


def test_to_differentiate_a_rounding_is_a_choice():
    def loss(weights, straight_through):
        device = tq.quantise(tq.RBM(weights), 3, 1.0, straight_through=straight_through)
        return jnp.sum(jnp.sin(device.weights))

    weights = jnp.array([[0.3, -0.8, 1.4], [0.9, -2.0, 0.1]])
    with pytest.raises(ValueError, match="Rounding has no derivative: `quantise`"):
        jax.grad(loss)(weights, False)
    gradient = jax.grad(loss)(weights, True)
    held = jnp.round(jnp.clip(weights, -1, 1) * 3) / 3
    assert_close(gradient, jnp.where(abs(weights) < 1, jnp.cos(held), 0), IDENTITY)
    assert loss(weights, True) == loss(weights, False)

    # A device that is held fixed, inside of a program, has nothing to raise about.
    @jax.jit
    def beside(scale):
        return scale * loss(weights, False)

    assert jnp.isfinite(jax.grad(beside)(2.0))


def test_a_clipped_model_is_differentiable():
    flat, rebuild = flatten(rbm(3, 2, biased=True))

    def mean(p):
        return jnp.sum(jnp.sin(flatten(tq.clip(rebuild(p), 0.5))[0]))

    gradient = jax.grad(mean)(flat)
    assert_close(gradient, jnp.where(abs(flat) < 0.5, jnp.cos(flat), 0), IDENTITY)


def test_scattered_parameters_have_the_spread_that_was_asked_for():
    model = tq.RBM(2 * jnp.ones((100, 100)))
    for gain, offset in ((0.1, 0.0), (0.0, 0.3), (0.1, 0.3)):
        found = np.asarray(tq.scatter(jr.key(0), model, gain, offset).weights) - 2
        spread = np.hypot(2 * gain, offset)
        assert abs(found.mean()) < SIGMAS * spread / 100
        # The relative error of a standard deviation of n is 1/√(2n).
        np.testing.assert_allclose(found.std(), spread, rtol=SIGMAS / np.sqrt(2e4))
    assert_close(tq.scatter(jr.key(0), model).weights, model.weights, IDENTITY)
    again = tq.scatter(jr.key(0), model, 0.1, 0.3).weights - 2
    np.testing.assert_array_equal(found, again)


def test_a_traced_range_and_spread_are_checked_when_they_run():
    clipped = eqx.filter_jit(lambda width: tq.clip(MODEL, width).weights)
    assert_close(clipped(0.5), jnp.clip(MODEL.weights, -0.5, 0.5), IDENTITY)
    with pytest.raises(eqx.EquinoxRuntimeError, match="range is one finite number, ab"):
        clipped(-jnp.ones(()))
    scattered = eqx.filter_jit(lambda gain: tq.scatter(jr.key(0), MODEL, gain).weights)
    assert jnp.isfinite(scattered(0.5)).all()
    with pytest.raises(
        eqx.EquinoxRuntimeError, match="gain is one finite number, at l"
    ):
        scattered(jnp.array(jnp.nan))


WRONG = {
    "one bit": (lambda: tq.quantise(MODEL, 1, 1.0), "bits is a whole number, at least"),
    "no range": (lambda: tq.quantise(MODEL, 4, 0.0), "range is one finite .* but 0.0"),
    "negative": (lambda: tq.clip(MODEL, -1), "range is one finite number, above zero"),
    "many ranges": (lambda: tq.clip(MODEL, np.ones(2)), "range is one finite number"),
    "a boolean": (lambda: tq.clip(MODEL, True), "range is one finite number"),
    "half": (
        lambda: tq.clip(MODEL, np.ones((), np.float16)),
        "range is in float32 or float64",
    ),
    "gain": (lambda: tq.scatter(jr.key(0), MODEL, -0.1), "gain is one .*, at least"),
    "offset": (
        lambda: tq.scatter(jr.key(0), MODEL, 0.1, np.inf),
        "offset is one finite number",
    ),
    "units": (
        lambda: tq.QStruct(KERNEL, 9)(MODEL, DATA, device=rbm(3, 4)),
        "the units of the model, 4 visible and 3 hidden, but one with 3 and 4",
    ),
    "precision": (
        lambda: tq.QOperational(KERNEL, 9)(
            MODEL, DATA, device=tq.RBM(MODEL.weights.astype(jnp.float32))
        ),
        "model is in float64, but its device in float32",
    ),
    "no gradient": (
        lambda: tq.QSampled(KERNEL, 9)(
            jr.key(0), MODEL, DATA, gradient="sampled", device=MODEL
        ),
        "told by the gradient of the model, but none is known",
    ),
    "channels": (
        lambda: tq.log_q_channels(*[(ON_DEVICE(), None)] * 2),
        "that of a device has its bias too",
    ),
}


def ON_DEVICE():
    return tq.QStruct(KERNELS["gibbs"], 9)(MODEL, DATA, device=MODEL)


@pytest.mark.usefixtures("as_for_users")
@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_device_raises(case):
    fn, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        fn()


@pytest.mark.slow
@pytest.mark.usefixtures("as_for_users")
def test_a_law_is_no_device():
    with pytest.raises(TypeError, match="model is an energy model"):
        tq.QStruct(KERNEL, 9)(MODEL, DATA, device=DATA)
