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
    MODELS,
    REVERSIBLE,
    REVERSIBLE_ON_COLOURS,
    assert_close,
    central_difference,
    dense,
    flatten,
    kernel_of,
    machine,
    rbm,
    slow_except,
)

import trainq as tq


CHAINS = ["rbm 3x2", "rbm 2x2", "biased rbm 2x3", "visible machine 4", "neural 3+2"]


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "model"),
    slow_except(
        [(k, m) for m in CHAINS for k in REVERSIBLE],
        *((k, "biased rbm 2x3") for k in REVERSIBLE),
        *((k, "rbm 2x2") for k in REVERSIBLE),
        ("gibbs", "neural 3+2"),
        ("random", "visible machine 4"),
    )
    + REVERSIBLE_ON_COLOURS,
)
def test_slowest_mode_is_an_eigenfunction_with_the_second_eigenvalue(name, model):
    model = MODELS[model]
    pi, matrix = dense(name, model)
    chain = kernel_of(name, model).chain(model)
    slowest = tq.markov.slowest_mode(chain)
    second = oracle.eigenvalues(matrix, pi)[1]
    assert abs(slowest.gap - (1 - second)) < IDENTITY
    assert_close(tq.markov.spectral_gap(chain), slowest.gap, IDENTITY)
    mode = np.asarray(slowest.mode)
    assert np.max(np.abs(matrix @ mode - second * mode)) < DIRECT
    assert abs(pi @ mode) < DIRECT and abs(pi @ mode**2 - 1) < DIRECT
    parity = -1 if slowest.is_odd else 1
    if len(chain.reductions()) == 2:
        assert_close(mode[::-1], parity * mode, DIRECT)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", REVERSIBLE)
def test_parity_gaps(name):
    model = rbm(3, 2)
    pi, matrix = dense(name, model)
    chain = KERNELS[name].chain(model)
    gaps = tq.markov.parity_gaps(chain)
    flip = np.eye(len(pi))[::-1]
    for sign, gap in ((1, gaps.even), (-1, gaps.odd)):
        # On the other sector and on constants the projected matrix is zero.
        projector = (np.eye(len(pi)) + sign * flip) / 2
        projected = projector @ matrix - (sign > 0) * pi[None, :]
        second = np.max(np.linalg.eigvals(projected).real)
        assert abs(gap - (1 - second)) < DIRECT
    assert tq.markov.spectral_gap(chain) == min(gaps.even, gaps.odd)
    assert gaps.odd < gaps.even


def test_one_unit_has_no_even_mode():
    gaps = tq.markov.parity_gaps(KERNELS["gibbs"].chain(machine(1)))
    assert gaps.even == jnp.inf
    assert abs(gaps.odd - 1) < IDENTITY


@pytest.mark.quick(1)
@pytest.mark.parametrize("sector", [None, "even", "odd"])
@pytest.mark.parametrize("name", slow_except(REVERSIBLE, "gibbs", "random"))
def test_gap_gradient(name, sector):
    flat, build = flatten(rbm(2, 2, biased=sector is None))

    @jax.jit
    def gap(flat):
        return tq.markov.spectral_gap(KERNELS[name].chain(build(flat)), sector)

    direction = jr.normal(jr.key(0), flat.shape)
    slope = jax.grad(gap)(flat) @ direction
    assert_close(slope, central_difference(gap, flat, direction), DIFFERENCES)


def test_gap_gradient_is_finite_where_the_mode_is_degenerate():
    # Without couplings every single spin is a slowest mode.
    grads = eqx.filter_grad(
        lambda m: tq.markov.spectral_gap(KERNELS["gibbs"].chain(m))
    )(tq.RBM(jnp.zeros((2, 2))))
    assert jnp.all(jnp.isfinite(grads.weights))


def test_the_mode_refuses_to_be_differentiated():
    def fn(model):
        return tq.markov.slowest_mode(KERNELS["gibbs"].chain(model)).mode[0]

    with pytest.raises(ValueError, match="slowest mode has no derivative"):
        eqx.filter_grad(fn)(rbm(2, 2))


@pytest.mark.parametrize("name", REVERSIBLE)
def test_a_gap_is_differentiable_once(name):
    # The mode turns, and holding it fixed is right for the first derivative alone.
    flat, build = flatten(rbm(2, 2))

    def gap(flat):
        return tq.markov.spectral_gap(KERNELS[name].chain(build(flat)))

    def slope(flat):
        return jnp.sum(jax.grad(gap)(flat))

    with pytest.raises(ValueError, match="derivative of a spectral gap"):
        jax.grad(slope)(flat)


@pytest.mark.quick(2)
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 1), (1, 3)])
@pytest.mark.parametrize("kernel", ["random", "palindromic"])
def test_a_sector_without_a_pair_of_layers_has_what_they_forget(kernel, shape):
    # A layer of one unit has no even function but the constant.
    chain = KERNELS[kernel].chain(rbm(*shape))
    root = np.sqrt(np.asarray(chain.stationary))
    matrix = root[:, None] * np.asarray(chain.matrix()) / root[None]
    for sector, sign in (("even", 1), ("odd", -1)):
        half = (np.eye(len(root)) + sign * np.eye(len(root))[::-1]) / 2
        values = np.linalg.eigvalsh(half @ ((matrix + matrix.T) / 2) @ half)
        # Functions of the other parity are zeros among these.
        n = len(root) // 2
        inside = np.sort(np.concatenate([values[values > 1e-9], np.zeros(n)]))[::-1]
        expected = 1 - inside[int(sector == "even")]
        assert_close(tq.markov.spectral_gap(chain, sector), expected, DIRECT)
    with pytest.raises(ValueError, match="even sector of this chain has no mode on"):
        tq.markov.slowest_mode(chain, "even")
    assert tq.markov.slowest_mode(chain).is_odd
