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
    assert_close,
    central_difference,
    dense,
    flatten,
    rbm,
    slow_except,
)

import trainq as tq
from trainq.markov import autocorrelation_times


@pytest.mark.quick(1)
@pytest.mark.parametrize("convention", ["sokal", "half", "resolvent"])
@pytest.mark.parametrize(
    ("name", "model"),
    slow_except(
        [(k, m) for k in KERNELS for m in ("rbm 3x2", "biased rbm 2x3")],
        ("gibbs", "rbm 3x2"),
        ("alternating", "biased rbm 2x3"),
    ),
)
def test_times_are_sums_of_autocorrelations(name, model, convention):
    model = MODELS[model]
    pi, matrix = dense(name, model)
    f = np.asarray(tq.observables(model))
    centred = f - pi @ f
    rho, moved = [], centred
    for _ in range(4000):
        rho.append(np.sum(pi[:, None] * centred * moved, axis=0))
        moved = matrix @ moved
    rho = np.array(rho) / rho[0]
    expected = {
        "sokal": 1 + 2 * rho[1:].sum(axis=0),
        "half": 0.5 + rho[1:].sum(axis=0),
        "resolvent": rho.sum(axis=0),
    }[convention]
    chain = KERNELS[name].chain(model)
    times = autocorrelation_times(chain, jnp.asarray(f), convention=convention)
    assert_close(times, expected, 1e-9)  # of a sum that is cut off
    lazy = tq.markov.EnergyGradients(model)
    again = autocorrelation_times(chain, lazy, convention=convention)
    assert_close(again, times, DIRECT)
    one = autocorrelation_times(chain, jnp.asarray(f[:, 0]), convention=convention)
    assert one.shape == ()
    assert_close(one, times[0], DIRECT)


def test_the_published_times_of_the_symmetrised_scan_are_of_the_half_convention():
    # T_O = 1409.42 and τ = 112.48 of ½ (E_V E_H + E_H E_V), m = 5, two patterns.
    xi, eta = np.ones((5, 2)), np.ones((5, 2))
    xi[:2, 1], eta[:3, 1] = -1, -1
    model = tq.RBM(jnp.asarray(3 / 5 * xi @ eta.T))
    f = np.asarray(tq.observables(model))
    pi = oracle.law(oracle.rbm_energies(np.asarray(model.weights)))
    joint = pi.reshape(32, 32)
    visible, hidden = joint.sum(axis=1), joint.sum(axis=0)
    given_v, given_h = joint / visible[:, None], (joint / hidden).T

    # Half densities of the pair that one step maps everything to.
    overlap = joint / np.sqrt(np.outer(visible, hidden))
    gram = [overlap @ overlap.T, overlap, overlap.T, overlap.T @ overlap]
    step = np.block([gram[:2], gram[2:]]) / 2
    table = (f - pi @ f).reshape(32, 32, -1)
    on_v = np.sqrt(visible)[:, None] * np.einsum("vh,vhk->vk", given_v, table)
    on_h = np.sqrt(hidden)[:, None] * np.einsum("hv,vhk->hk", given_h, table)
    variance = pi @ (f - pi @ f) ** 2
    # ⟨f, P f⟩ = ⟨f_v, B f_h⟩, and a step more for each further power.
    right = np.concatenate([overlap @ on_h, overlap.T @ on_v]) / 2
    left = np.concatenate([on_v, on_h])
    null = np.concatenate([np.sqrt(visible), np.sqrt(hidden)]) / np.sqrt(2)
    solved = np.linalg.solve(np.eye(64) - step + np.outer(null, null), right)
    half = variance / 2 + np.sum(left * solved, axis=0)
    assert abs(half.sum() - 1409.42) < 5e-3
    assert abs((half / variance).max() - 112.48) < 5e-3


@pytest.mark.slow
def test_an_independent_chain_has_the_times_of_independent_samples():
    law = jax.nn.softmax(jr.normal(jr.key(0), (8,)))
    chain = tq.markov.DenseChain(jnp.tile(law, (8, 1)), is_reversible=True)
    f = jr.normal(jr.key(1), (8, 2))
    for convention, expected in (("sokal", 1), ("half", 0.5), ("resolvent", 1)):
        times = autocorrelation_times(chain, f, convention=convention)
        assert_close(times, np.full(2, expected), IDENTITY)


def test_times_are_differentiable():
    flat, build = flatten(rbm(2, 2, biased=True))

    @jax.jit
    def longest(flat):
        model = build(flat)
        f = tq.markov.EnergyGradients(model)
        chain = KERNELS["gibbs"].chain(model)
        return jnp.sum(autocorrelation_times(chain, f))

    direction = jr.normal(jr.key(0), flat.shape)
    slope = jax.grad(longest)(flat) @ direction
    assert_close(slope, central_difference(longest, flat, direction), DIFFERENCES)


def test_what_has_no_time():
    chain = KERNELS["gibbs"].chain(rbm(2, 2))
    with pytest.raises(eqx.EquinoxRuntimeError, match="An observable is constant"):
        autocorrelation_times(chain, jnp.ones((16, 2)))
