"""The primitive: its derivatives, its cost, and what it refuses."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import (
    AUTODIFF,
    DIFFERENCES,
    DIRECT,
    KERNELS,
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


SMALL = {
    "rbm 2x2": rbm(2, 2),
    "rbm 2x3": rbm(2, 3),
    "biased rbm 2x2": rbm(2, 2, biased=True),
    "machine 2+1": machine(3, 2),
    "neural 2+1": neural(2, 1),
}
PLAIN = tq.solvers.PlainAutodiff()


def log_q(kernel, build, data, solver=None):
    """log Q as a function of the flat parameters."""
    predictor = tq.QStruct(KERNELS[kernel], 100, solver=solver)
    return lambda flat: predictor(build(flat), data).log_q


@pytest.fixture(params=KERNELS)
def kernel(request):
    return request.param


# Metropolis and the palindrome take the paths of the others.
RULES = [
    ("gibbs", "rbm 2x3"),
    ("random", "rbm 2x3"),
    ("random", "biased rbm 2x2"),
    ("alternating", "biased rbm 2x2"),
]
# Every kernel, symmetric and not; and every kind of model.
PROBLEMS = [
    *(
        pytest.param(
            kernel,
            name,
            marks=() if (kernel, name) in RULES else pytest.mark.slow,
        )
        for kernel in KERNELS
        for name in ("rbm 2x3", "biased rbm 2x2")
    ),
    *(("gibbs", name) for name in ("machine 2+1", "neural 2+1")),
    pytest.param("gibbs", "rbm 2x2", marks=pytest.mark.slow),
]


@pytest.mark.quick(1)
@pytest.mark.parametrize(("kernel", "name"), PROBLEMS)
def test_gradient(kernel, name):
    flat, build = flatten(SMALL[name])
    data = random_law(SMALL[name].n_visible)
    fn, plain = log_q(kernel, build, data), log_q(kernel, build, data, PLAIN)
    custom, expected = jax.jit(lambda x: (jax.grad(fn)(x), jax.grad(plain)(x)))(flat)
    assert_close(custom, expected, AUTODIFF)
    # Relative to the scale of the gradient: a slope may cancel.
    direction = jr.normal(jr.key(3), flat.shape)
    scale = jnp.linalg.norm(custom) * jnp.linalg.norm(direction)
    slope = central_difference(jax.jit(fn), flat, direction)
    assert abs(slope - custom @ direction) <= DIFFERENCES * scale


@pytest.mark.quick(1)
@pytest.mark.parametrize("kernel", slow_except(KERNELS, "gibbs", "alternating"))
def test_the_custom_rule_does_run(kernel):
    # Bit for bit the same gradient as by plain autodiff would mean that it did not.
    flat, build = flatten(rbm(3, 4))
    custom = jax.jit(jax.grad(log_q(kernel, build, random_law(3))))(flat)
    plain = jax.jit(jax.grad(log_q(kernel, build, random_law(3), PLAIN)))(flat)
    assert_close(custom, plain, AUTODIFF)
    assert not np.array_equal(custom, plain)


@pytest.mark.parametrize("name", slow_except(KERNELS, "gibbs"))
def test_second_derivatives(name):
    flat, build = flatten(rbm(2, 2))
    fn = log_q(name, build, random_law(2))
    hessian = jax.jit(jax.hessian(fn))(flat)  # forward over reverse
    twice = jax.jit(jax.jacrev(jax.grad(fn)))(flat)  # reverse over reverse
    plain = jax.jit(jax.hessian(log_q(name, build, random_law(2), PLAIN)))(flat)
    assert_close(hessian, plain, AUTODIFF)
    assert_close(twice, plain, AUTODIFF)
    direction = jr.normal(jr.key(3), flat.shape)
    differences = central_difference(jax.jit(jax.grad(fn)), flat, direction)
    assert_close(hessian @ direction, differences, DIFFERENCES)


@pytest.mark.slow
def test_third_derivative():
    flat, build = flatten(rbm(2, 1))
    fn = log_q("gibbs", build, random_law(2))
    third = jax.jit(jax.jacrev(jax.hessian(fn)))(flat)
    differences = central_difference(
        jax.jit(jax.hessian(fn)), flat, jnp.eye(2)[0], 1e-3
    )
    assert_close(third[..., 0], differences, DIFFERENCES)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", slow_except(KERNELS, "gibbs", "alternating"))
def test_the_resolvent_itself_is_differentiable(name):
    # With a cotangent of the solution, not of the form.
    model = rbm(2, 2, biased=True)
    flat, build = flatten(model)
    f, weight = jr.normal(jr.key(1), (2, 16, 3))

    def fn(flat, solver=None):
        chain = KERNELS[name].chain(build(flat))
        return jnp.sum(weight * tq.markov.resolvent(chain, f, solver=solver))

    gradient = jax.jit(jax.grad(fn))(flat)
    plain = jax.jit(jax.grad(lambda x: fn(x, PLAIN)))(flat)
    assert_close(gradient, plain, AUTODIFF)
    tangent = jr.normal(jr.key(2), flat.shape)
    _, forward = jax.jit(lambda x, t: jax.jvp(fn, (x,), (t,)))(flat, tangent)
    assert_close(forward, gradient @ tangent, AUTODIFF)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", slow_except(KERNELS, "gibbs", "alternating"))
def test_covariance_gradient(name):
    flat, build = flatten(rbm(2, 2))
    weight = jr.normal(jr.key(1), (4, 4))

    def fn(flat, solver=None):
        model = build(flat)
        chain, f = KERNELS[name].chain(model), tq.observables(model)
        return jnp.sum(
            weight * tq.markov.asymptotic_covariance(chain, f, solver=solver)
        )

    plain = jax.jit(jax.grad(lambda x: fn(x, PLAIN)))(flat)
    assert_close(jax.jit(jax.grad(fn))(flat), plain, AUTODIFF)


@pytest.mark.parametrize("pairing", ["diagonal", "gram"])
def test_forms_of_two_functions(pairing):
    # ⟨f̃_a, R g̃_b⟩ of single flips, against a dense inverse and its differences.
    flat, build = flatten(rbm(2, 2, biased=True))
    f, g = np.random.default_rng(0).normal(size=(2, 16, 3))
    weight = np.random.default_rng(1).normal(size=(3, 3))  # and not symmetric
    weight = weight if pairing == "gram" else np.diag(weight)

    def ours(flat):
        chain = KERNELS["gibbs"].chain(build(flat))
        u, w = (chain.root[:, None] * chain.centre(jnp.asarray(x)) for x in (f, g))
        solver = tq.ConjugateGradient()
        form = tq.solvers.bilinear_form(
            *(chain.generator(), u, w), pairing=pairing, solver=solver
        )
        return jnp.sum(weight * form.value)

    def theirs(flat):
        pi, transition = dense("gibbs", build(flat))
        u, w = (x - pi @ x for x in (f, g))
        x = np.linalg.solve(np.eye(16) - transition + pi[None], w)
        forms = u.T @ (pi[:, None] * x)
        return np.sum(weight * (forms if pairing == "gram" else np.diag(forms)))

    value, slope = jax.jit(jax.value_and_grad(ours))(flat)
    assert_close(value, theirs(flat), DIRECT)
    direction = jr.normal(jr.key(2), flat.shape)
    expected = central_difference(theirs, flat, direction)
    assert_close(slope @ direction, expected, DIFFERENCES)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", slow_except(KERNELS, "gibbs"))
def test_batched_by_vmap_both_ways(kernel):
    data = random_law(2)
    flats = jnp.stack([flatten(rbm(2, 2, seed=seed))[0] for seed in range(3)])
    _, build = flatten(rbm(2, 2))
    fn = log_q(kernel, build, data)
    grad_of_vmap = jax.jit(jax.grad(lambda x: jnp.sum(jax.vmap(fn)(x))))(flats)
    vmap_of_grad = jax.jit(jax.vmap(jax.grad(fn)))(flats)
    grad = jax.jit(jax.grad(fn))
    one_by_one = jnp.stack([grad(flat) for flat in flats])
    assert_close(grad_of_vmap, one_by_one, AUTODIFF)
    assert_close(vmap_of_grad, one_by_one, AUTODIFF)


def count(fn, *args):
    """How often a function factorises, and solves triangles."""
    text = str(jax.make_jaxpr(fn)(*args))
    names = re.findall(r"= (cholesky|lu|triangular_solve)\b", text)
    return {name: names.count(name) for name in set(names)}


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", KERNELS)
def test_one_factorisation_and_no_solve_in_the_backward_pass(name):
    flat, build = flatten(rbm(3, 3))
    fn = log_q(name, build, random_law(3))
    both = jax.value_and_grad(fn)
    assert count(both, flat)["cholesky"] == 1
    assert count(both, flat) == count(fn, flat)
    # Compiled there is one forward and one backward substitution in all, but for those
    # of the elimination that runs where the system is nearly singular.
    texts = [jax.jit(f).lower(flat).as_text() for f in (fn, both)]
    for routine in ("potrf", "trsm"):
        value, gradient = (
            len(re.findall(rf"lapack_\w*{routine}", text)) for text in texts
        )
        assert value == gradient >= 1


def test_plain_autodiff_does_solve_in_the_backward_pass():
    flat, build = flatten(rbm(2, 2))
    fn = log_q("gibbs", build, random_law(2), PLAIN)
    counts = [count(f, flat) for f in (fn, jax.value_and_grad(fn))]
    assert counts[0]["triangular_solve"] < counts[1]["triangular_solve"]


def test_a_dense_reversible_chain_is_factorised_once_too():
    matrix = KERNELS["gibbs"].chain(rbm(2, 2)).matrix()
    law = KERNELS["gibbs"].chain(rbm(2, 2)).stationary
    f = jr.normal(jr.key(0), (16, 3))

    def fn(f):
        chain = tq.markov.DenseChain(matrix, law, is_reversible=True)
        return tq.markov.resolvent_trace(chain, f)

    assert count(jax.value_and_grad(fn), f)["cholesky"] == 1


def test_new_weights_never_recompile():
    traces = []
    predictor = tq.QStruct(KERNELS["gibbs"], 100)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def fn(model, data):
        traces.append(None)
        return predictor(model, data).log_q

    for seed in range(4):
        fn(rbm(2, 2, seed=seed), random_law(2, seed))
    assert len(traces) == 1
    fn(rbm(2, 3), random_law(2))
    assert len(traces) == 2


def test_forward_mode_alone_needs_plain_autodiff():
    flat, build = flatten(rbm(2, 2))
    data, tangent = random_law(2), jnp.ones_like(flat)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(log_q("gibbs", build, data), (flat,), (tangent,))
    fn = log_q("gibbs", build, data, PLAIN)
    _, slope = jax.jit(lambda x: jax.jvp(fn, (x,), (tangent,)))(flat)
    assert_close(slope, jax.jit(jax.grad(fn))(flat) @ tangent, AUTODIFF)


@pytest.mark.slow
def test_an_observable_without_variance_is_no_fault():
    chain = KERNELS["gibbs"].chain(rbm(2, 2))
    f = jnp.stack([jnp.ones(16), chain.log_stationary], axis=1)
    noise = tq.markov.asymptotic_covariance(chain, f)
    assert abs(noise[0, 0]) <= DIRECT and noise[1, 1] > 0
    assert tq.markov.resolvent_trace(chain, jnp.ones(16)) <= DIRECT


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", [jnp.float32, pytest.param(jnp.float64, marks=pytest.mark.slow)]
)
def test_results_have_the_precision_of_the_model(dtype):
    model = jax.tree.map(lambda x: x.astype(dtype), rbm(3, 3))
    data = random_law(3).astype(dtype)
    expected = tq.QStruct(KERNELS["gibbs"], 100)(rbm(3, 3), random_law(3)).q
    for name in ("gibbs", "alternating"):
        predictor = tq.QStruct(KERNELS[name], 100)
        fn = eqx.filter_value_and_grad(lambda m, predict=predictor: predict(m, data).q)
        q, grads = eqx.filter_jit(fn)(model)
        assert q.dtype == grads.weights.dtype == dtype, name
    found = tq.QStruct(KERNELS["gibbs"], 100)(model, data).q
    # float32 keeps about its 7 digits less those of the condition number, here 1e2.
    assert_close(found, expected, 1e-4 if dtype == jnp.float32 else DIRECT)
