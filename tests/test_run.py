"""Runs of chains: moments, values, going on, and their law."""

import functools
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import tqdm
from helpers import DIRECT, IDENTITY, KERNELS, SIGMAS, assert_close, rbm

import trainq as tq
from trainq import sampling


MODEL = rbm(3, 2, biased=True)


def start(n_chains=4, seed=0):
    return sampling.start_chains(jr.key(seed), MODEL, n_chains)


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", KERNELS)
def test_moments_are_those_of_the_values(name):
    run = sampling.run(KERNELS[name], MODEL, start(), 50, keep=True)
    assert run.values.shape == (4, 50, 11)
    assert_close(run.moments.mean, np.mean(run.values, axis=1), IDENTITY)
    assert_close(run.moments.variance, np.var(run.values, axis=1), IDENTITY)
    assert run.state.step == 50 and run.moments.count == 50


@pytest.mark.slow
def test_chunks_and_going_on_change_nothing():
    kernel = KERNELS["gibbs"]
    whole = sampling.run(kernel, MODEL, start(), 60, keep=True, every=2)
    parts = sampling.run(kernel, MODEL, start(), 60, keep=True, every=2, chunk=14)
    first = sampling.run(kernel, MODEL, start(), 20, keep=True, every=2)
    rest = sampling.run(
        kernel, MODEL, first.state, 40, keep=True, every=2, moments=first.moments
    )
    assert np.array_equal(parts.values, whole.values)
    both = np.concatenate([first.values, rest.values], axis=1)
    assert np.array_equal(both, whole.values)
    assert np.array_equal(rest.state.x, whole.state.x)
    for moments in (rest.moments, parts.moments):
        for one, other in zip(
            jax.tree.leaves(moments), jax.tree.leaves(whole.moments), strict=True
        ):
            assert np.array_equal(one, other)


@pytest.mark.slow
def test_moments_of_more_values_than_a_block_takes():
    kernel, n = KERNELS["gibbs"], 1000
    whole = sampling.run(kernel, MODEL, start(), n, keep=True, chunk=300)
    assert_close(whole.moments.mean, np.mean(whole.values, axis=1), IDENTITY)
    assert_close(whole.moments.variance, np.var(whole.values, axis=1), IDENTITY)
    moments, state = None, start()
    for steps in (1, 127, 128, 500, 244):
        some = sampling.run(kernel, MODEL, state, steps, moments=moments)
        moments, state = some.moments, some.state
    assert moments.count == n
    assert np.array_equal(moments.mean, whole.moments.mean)
    assert np.array_equal(moments.variance, whole.moments.variance)


# Fields of a spin that is up with probability 0.0474.
BIAS, UP = 1.5, float(jax.nn.sigmoid(jnp.float64(-3.0)))
MEAN = 2 * UP - 1


def stream(i):
    """±1, up with probability `UP`: multiples of the golden ratio are spread as evenly
    as can be."""
    up = i.astype(jnp.uint32) * jnp.uint32(2654435769) < jnp.uint32(UP * 2**32)
    return jnp.where(up, 1, -1).astype(jnp.float32).reshape(1, 1)


@pytest.mark.parametrize("n", [4 * 10**6, pytest.param(10**8, marks=pytest.mark.slow)])
def test_a_long_float32_run_is_not_off(n):
    @jax.jit
    def moments():
        def body(i, carry):
            moments, total = carry
            values = stream(i)
            return moments.add(values), total + values.astype(int)

        begin = sampling.Moments.begin((1, 1), jnp.float32), jnp.zeros((1, 1), int)
        return jax.lax.fori_loop(0, n, body, begin)

    found, total = moments()
    assert found.count == n and found.mean.dtype == jnp.float32
    # Two roundings, where a standard error is at least 4e-5.
    mean = int(total[0, 0]) / n
    error = np.sqrt((1 - mean**2) / n)
    assert abs(mean - MEAN) < 0.02 * error
    assert abs(float(found.mean[0, 0]) - mean) < 1e-7
    assert abs(float(found.variance[0, 0]) / (1 - mean**2) - 1) < 1e-6

    # The negative control: a mean that is mended value by value.
    @jax.jit
    def plain():
        def body(i, mean):
            return mean + (stream(i) - mean) / (i + 1).astype(jnp.float32)

        return jax.lax.fori_loop(0, n, body, jnp.zeros((1, 1), jnp.float32))

    assert abs(float(plain()[0, 0]) - MEAN) > 20 * error


@pytest.mark.slow
def test_a_long_float32_run_of_one_unit():
    # It was off by 0.02, 96 standard errors, after as many steps as these.
    model = tq.BoltzmannMachine(
        np.zeros((1, 1), np.float32), np.full(1, -BIAS, np.float32)
    )
    state, moments, n = sampling.start_chains(jr.key(0), model, 2), None, 2 * 10**6
    for _ in range(2):
        run = sampling.run(KERNELS["gibbs"], model, state, n, moments=moments)
        state, moments = run.state, run.moments
    error = np.sqrt((1 - MEAN**2) / (2 * n))
    assert moments.mean.dtype == jnp.float32
    assert np.all(np.abs(np.asarray(moments.mean, float) + MEAN) < SIGMAS * error)


def test_moments_of_values_far_from_zero():
    values = 1e4 + jr.normal(jr.key(0), (300, 2, 3), jnp.float32)
    moments = sampling.Moments.begin((2, 3), jnp.float32)
    moments, _ = jax.lax.scan(lambda m, v: (m.add(v), None), moments, values)
    exact = np.asarray(values, np.float64)
    assert_close(moments.mean, exact.mean(axis=0), 1e-7)
    # Values are known to 1e-3, a digit of float32.
    assert_close(moments.variance, exact.var(axis=0), 1e-3)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["gibbs", "alternating"])
def test_past_the_numbers_of_one_key(name):
    kernel, first = KERNELS[name], start(200)
    late = eqx.tree_at(lambda s: s.step, first, jnp.uint32(2**32 - 3))
    whole = sampling.run(kernel, MODEL, late, 6, functions=lambda x: x, keep=True)
    part = sampling.run(kernel, MODEL, late, 3, functions=lambda x: x)
    assert part.state.step == 0 and whole.state.step == 3
    assert not np.array_equal(part.state.key_data, late.key_data)
    # Nor is the next key one that a step has drawn by.
    last = jr.key_data(jr.fold_in(late.key, jnp.uint32(2**32 - 1)))
    assert not np.array_equal(part.state.key_data, last)
    rest = sampling.run(kernel, MODEL, part.state, 3, functions=lambda x: x, keep=True)
    assert np.array_equal(rest.values, whole.values[:, 3:])
    assert np.array_equal(rest.state.x, whole.state.x)
    assert np.array_equal(rest.state.key_data, whole.state.key_data)
    # From the same states, step 0 of the first key draws other numbers.
    again = eqx.tree_at(lambda s: s.x, first, part.state.x)
    again = sampling.run(kernel, MODEL, again, 3, functions=lambda x: x, keep=True)
    assert not np.array_equal(again.values[:, 1:], rest.values[:, 1:])
    # The steps before are those that they always were.
    kept = sampling.run(kernel, MODEL, first, 4, chunk=2).state
    assert np.array_equal(kept.key_data, first.key_data) and kept.step == 4


def test_the_steps_have_another_key_than_the_start():
    key = jr.key(7)
    state = sampling.start_chains(key, MODEL, 50)
    used = [key, *(k for k in jr.split(key) if _starts(k, state))]
    assert len(used) == 2
    assert not any(np.array_equal(state.key_data, jr.key_data(k)) for k in used)


def _starts(key, state):
    x = tq.Uniform().draw(key, MODEL, None, state.n_chains)
    return np.array_equal(x, state.x)


def test_the_first_record_is_the_state_given():
    x = jnp.array([1, -1, 1, 1, -1])
    state = sampling.start_chains(jr.key(0), MODEL, 3, tq.At(x))
    assert state.x.shape == (3, 5) and state.n_chains == 3
    run = sampling.run(
        KERNELS["random"], MODEL, state, 2, functions=lambda x: x, keep=True
    )
    assert np.array_equal(run.values[:, 0], np.tile(x, (3, 1)))


def test_means_are_the_exact_ones_and_those_of_another_model_are_not():
    kernel, n = KERNELS["alternating"], 4000
    state = sampling.run(kernel, MODEL, start(64), 50).state
    found = sampling.run(kernel, MODEL, state, n).moments.mean
    chain, f = kernel.chain(MODEL), tq.observables(MODEL)
    noise = jnp.diag(tq.markov.asymptotic_covariance(chain, f))
    error = jnp.sqrt(noise / (64 * n))
    exact = tq.mean_observables(MODEL)
    assert np.all(np.abs(found.mean(axis=0) - exact) < SIGMAS * error)
    hot = tq.mean_observables(MODEL.tempered(0.9))
    assert np.any(np.abs(found.mean(axis=0) - hot) > SIGMAS * error)


def test_a_state_is_saved_and_loaded(tmp_path):
    run = sampling.run(KERNELS["gibbs"], MODEL, start(), 10)
    eqx.tree_serialise_leaves(tmp_path / "state.eqx", run.state)
    loaded = eqx.tree_deserialise_leaves(tmp_path / "state.eqx", start(seed=1))
    again, more = (
        sampling.run(KERNELS["gibbs"], MODEL, state, 5).state.x
        for state in (loaded, run.state)
    )
    assert np.array_equal(again, more)


def test_progress_is_shown_as_text_from_compiling_on(capsys, monkeypatch):
    always = functools.partial(tqdm.tqdm, mininterval=0, miniters=1)
    monkeypatch.setattr(tqdm, "tqdm", always)
    sampling.run(KERNELS["gibbs"], MODEL, start(), 12, progress=True, chunk=5)
    out, err = capsys.readouterr()
    first, *rest = err.split("\r")[1:]
    assert out == "" and first.startswith("compiling:   0%|")
    seen = [line.split("|")[2].split()[0] for line in rest if "sampling" in line]
    assert seen == ["5/12", "10/12", "12/12"]
    assert not rest[-1].strip()  # it is wiped out in the end


def test_a_run_without_progress_says_nothing(capsys):
    sampling.run(KERNELS["gibbs"], MODEL, start(), 12)
    assert capsys.readouterr() == ("", "")


def test_progress_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match="needs tqdm: pip install tqdm"):
        sampling.run(KERNELS["gibbs"], MODEL, start(), 12, progress=True)


@pytest.mark.slow
def test_free_energies_of_some_states():
    for model in (MODEL, tq.BoltzmannMachine(jnp.ones((4, 4)) - jnp.eye(4), None, 3)):
        v = jnp.array([[1.0, -1, 1], [-1, -1, 1]])
        found = model.free_energy(v)
        assert_close(found, tq.free_energies(model)[jnp.array([5, 1])], DIRECT)


@pytest.mark.parametrize("functions", [jnp.sum, lambda x: jnp.sum(x, axis=1)])
def test_functions_return_a_value_for_each_chain(functions):
    model = rbm(2, 2)
    state = sampling.start_chains(jr.key(0), model, 3)
    with pytest.raises(ValueError, match=r"of shape \(chains, n_obs\).* it returned"):
        sampling.run(KERNELS["gibbs"], model, state, 2, functions=functions)


def test_half_precision_is_summed_in_float32():
    found = sampling.run(
        KERNELS["gibbs"],
        MODEL,
        start(),
        300,
        functions=lambda x: x.astype(jnp.bfloat16),
        keep=True,
    )
    assert found.values.dtype == jnp.bfloat16
    assert found.moments.mean.dtype == jnp.float32
    assert_close(found.moments.mean, np.mean(found.values, 1, np.float32), 1e-6)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_numbers_of_numpy_are_numbers(kind):
    kernel = KERNELS["gibbs"]
    whole = sampling.run(kernel, MODEL, start(), 200, every=2, chunk=20, keep=True)
    same = sampling.run(
        kernel,
        MODEL,
        sampling.start_chains(jr.key(0), MODEL, kind(4)),
        kind(200),
        every=kind(2),
        chunk=kind(20),
        keep=True,
    )
    assert np.array_equal(whole.values, same.values)


NAN = float("nan")
FAULTS = {
    "nan": lambda x: jnp.where(x[:1, :1] > 5, x, NAN),
    "inf": lambda x: x / 0,
    "one of many": lambda x: x.at[2, 1].set(NAN),
    "too large to be squared": lambda x: 1e200 * x,
}


@pytest.mark.quick(2)
@pytest.mark.parametrize("case", FAULTS)
def test_values_that_are_not_finite_are_announced(case):
    with pytest.raises(eqx.EquinoxRuntimeError, match="functions .* is not finite, or"):
        run = sampling.run(KERNELS["gibbs"], MODEL, start(), 3, functions=FAULTS[case])
        jax.block_until_ready(run)


def test_a_value_that_is_not_finite_for_a_while_is_announced(as_for_users):
    # In the midst of the run, and of its block.
    state = start()
    moments = sampling.run(KERNELS["gibbs"], MODEL, state, 5).moments
    broken = eqx.tree_at(lambda m: m.recent[1], moments, moments.recent[1] * NAN)
    with pytest.raises(eqx.EquinoxRuntimeError, match="is not finite"):
        run = sampling.run(KERNELS["gibbs"], MODEL, state, 300, moments=broken)
        jax.block_until_ready(run)


def test_more_values_than_an_integer_holds():
    state = start()
    moments = sampling.run(KERNELS["gibbs"], MODEL, state, 5).moments
    full = eqx.tree_at(lambda m: m.count, moments, jnp.asarray(2**63 - 3))
    with pytest.raises(eqx.EquinoxRuntimeError, match="Moments count up to"):
        jax.block_until_ready(
            sampling.run(KERNELS["gibbs"], MODEL, state, 5, moments=full)
        )
    with pytest.raises(ValueError, match="Moments count up to"):
        sampling.run(KERNELS["gibbs"], MODEL, state, 2**63)


def test_moments_go_on_with_longer_integers():
    # As of a file that was written without them.
    first = sampling.run(KERNELS["gibbs"], MODEL, start(), 5)
    short = eqx.tree_at(lambda m: m.count, first.moments, jnp.int32(5))
    found = sampling.run(KERNELS["gibbs"], MODEL, first.state, 5, moments=short)
    whole = sampling.run(KERNELS["gibbs"], MODEL, start(), 10)
    assert found.moments.count == 10 and found.moments.count.dtype == int
    assert np.array_equal(found.moments.mean, whole.moments.mean)


@pytest.mark.slow
def test_without_64_bits_everything_is_as_with_them():
    # JAX's default, in which integers have 32 bits.
    def go():
        model = rbm(2, 1, biased=True)
        state, moments = sampling.start_chains(jr.key(0), model, 2), None
        state = eqx.tree_at(lambda s: s.step, state, jnp.uint32(2**32 - 150))
        for _ in range(2):
            run = sampling.run(KERNELS["gibbs"], model, state, 150, moments=moments)
            state, moments = run.state, run.moments
        full = eqx.tree_at(lambda m: m.count, moments, jnp.asarray(2**31 - 3))
        return model, run, full

    with jax.enable_x64(False):
        model, run, full = go()
        assert run.moments.mean.dtype == jnp.float32
        assert run.moments.count.dtype == jnp.int32 and run.moments.count == 300
        assert run.state.step == 150
        with pytest.raises(eqx.EquinoxRuntimeError, match="up to 2147483647 values"):
            sampling.run(KERNELS["gibbs"], model, run.state, 5, moments=full)
        with pytest.raises(ValueError, match="up to 2147483647 values"):
            sampling.run(KERNELS["gibbs"], model, run.state, 2**31)
    assert go()[1].state.step == 150


def of(**options):
    return lambda: sampling.run(
        KERNELS["gibbs"], MODEL, start(), **({"n_steps": 6} | options)
    )


MISTAKES = {
    "n_steps is a whole number of kernel steps, at least 1, but 0": of(n_steps=0),
    "n_steps is a whole number of kernel steps, at least 1, but 5.0": of(n_steps=5.0),
    "n_steps is a multiple of every, but 6 and 4": of(every=4),
    "every is a whole number of kernel steps, at least 1, but 0": of(every=0),
    "every is a whole number .* but True": of(every=True),
    "chunk is a whole number of kernel steps, at least 1, but 0": of(chunk=0),
    "chunk is a multiple of every = 2, below .* but 3": of(every=2, chunk=3),
    r"chunk is a multiple of every = 1, below 2\*\*31": of(chunk=2**31),
    "n_steps is a whole number .* and cannot be traced": lambda: jax.jit(
        lambda n: of(n_steps=n)().moments.mean
    )(3),
    "functions is a function of states, or None, but 3": of(functions=3),
    "functions returns floats, but it returned bool": of(functions=lambda x: x > 0),
    "functions returns floats, but it returned int": of(
        functions=lambda x: x.astype(int)
    ),
    "functions returns floats, but it returned complex": of(
        functions=lambda x: jax.lax.complex(x, x)
    ),
    r"functions returns values of .* but it returned tuple": of(
        functions=lambda x: (x, x)
    ),
    r"it returned \(5,\). It .* last axis: write `x\[\.\.\., 0\] \* .* axis: `va": of(
        functions=lambda x: x[0] * x[1]
    ),
    r"it returned \(\). It takes all chains at once": of(functions=jnp.sum),
    r"it returned \(3, 5\). It takes all chains at once(?!.*add an axis)": of(
        functions=lambda x: x[:3]
    ),
    r"it returned \(4,\). For one function add an axis: `values\[:, None\]`": of(
        functions=lambda x: x[..., 0] * x[..., 1]
    ),
    r"moments to go on from have shape \(2, 3\), but values have shape \(4, 11\)": of(
        moments=sampling.Moments.begin((2, 3), float)
    ),
    "n_chains is a whole number, at least 1, but 0": lambda: start(0),
    "n_chains is a whole number, at least 1, but 2.0": lambda: start(2.0),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes(message, as_for_users):
    with pytest.raises(ValueError, match=message):
        MISTAKES[message]()


def test_one_thing_for_another(as_for_users):
    with pytest.raises(TypeError, match="model is an energy model"):
        sampling.start_chains(jr.key(0), KERNELS["gibbs"], 3)
    with pytest.raises(TypeError, match="model is an energy model"):
        sampling.run(KERNELS["gibbs"], KERNELS["gibbs"], start(), 3)
