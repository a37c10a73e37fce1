"""What sets of states add to the noise, against dense covariances of each set."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import (
    DIRECT,
    IDENTITY,
    KERNELS,
    assert_close,
    central_difference,
    dense,
    machine,
    rbm,
)
from hypothesis import given, strategies as st

import trainq as tq
from trainq.markov import basins, noise_by_set


def by_hand(pi, matrix, f, label):
    """Variance, `T_O`, and the parts between, of each set: as the law of total
    covariance says, set by set."""
    f = f - pi @ f
    x = np.linalg.solve(np.eye(len(pi)) - matrix + pi, f)
    out = np.zeros((4, label.max() + 1))
    for s in range(label.max() + 1):
        inside = label == s
        mass = pi[inside].sum()
        if mass == 0:
            continue
        p = pi[inside] / mass
        f_mean, x_mean = p @ f[inside], p @ x[inside]
        within = p @ ((f[inside] - f_mean) * (x[inside] - x_mean))
        spread = p @ (f[inside] - f_mean) ** 2
        out[:, s] = [
            mass * np.sum(spread + f_mean**2),
            mass * np.sum(f_mean**2),
            mass * np.sum(within + f_mean * x_mean),
            mass * np.sum(f_mean * x_mean),
        ]
    return out


def parts(found):
    return jnp.stack(
        [found.variance, found.variance_between, found.t_o, found.t_o_between]
    )


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", ["gibbs", "metropolis", "palindromic", "alternating"])
@pytest.mark.parametrize("biased", [False, True])
def test_it_is_the_law_of_total_covariance(name, biased):
    model = rbm(3, 3, biased=biased, scale=1.0)
    pi, matrix = dense(name, model)
    chain = KERNELS[name].chain(model)
    label = np.random.default_rng(0).integers(0, 4, 64)
    expected = by_hand(pi, matrix, np.asarray(tq.observables(model)), label)
    found = noise_by_set(chain, tq.markov.EnergyGradients(model), label)
    assert_close(parts(found), expected, DIRECT)
    assert_close(found.mass, np.bincount(label, pi), IDENTITY)
    assert bool(found.stats.ok)
    f = tq.observables(model)
    assert_close(found.t_o.sum(), tq.markov.resolvent_trace(chain, f), DIRECT)
    assert_close(parts(noise_by_set(chain, f, jnp.asarray(label))), expected, DIRECT)
    share = expected[3].sum() / expected[2].sum()
    assert_close(found.noise_share, share, DIRECT)
    assert f"{100 * share:.3g} % of T_O" in str(found)


@given(seed=st.integers(0, 2**16), n_sets=st.sampled_from([2, 5]))
def test_parts_sum_and_one_set_has_nothing_between(seed, n_sets):
    model = machine(4, scale=1.0, seed=seed % 7)
    label = np.random.default_rng(seed).integers(0, n_sets, 16)
    chain, f = KERNELS["gibbs"].chain(model), tq.observables(model)
    found = noise_by_set(chain, f, label)
    assert_close(found.t_o.sum(), tq.markov.resolvent_trace(chain, f), DIRECT)
    assert -1e-12 < found.variance_share < 1 + 1e-12
    one = noise_by_set(chain, f, np.zeros(16, int))
    assert abs(one.noise_share) < 1e-12 and abs(one.variance_share) < 1e-12
    # All there is of it is between single states.
    each = noise_by_set(chain, f, np.arange(16))
    assert_close(each.noise_share, 1, DIRECT)
    assert_close(each.variance_share, 1, DIRECT)


def test_jumps_between_wells_make_nearly_all_of_it():
    # Of the magnetisation of a ferromagnet, whose wells are mirror images.
    shares, magnetisation = [], jnp.asarray(oracle.states(4).sum(axis=1))
    for beta in (1.0, 2.0, 4.0):
        model = tq.BoltzmannMachine(beta * (jnp.ones((4, 4)) - jnp.eye(4)) / 2)
        chain = KERNELS["gibbs"].chain(model)
        label = basins(chain, least=1.0).label
        found = noise_by_set(chain, magnetisation, label)
        shares.append(float(found.noise_share))
        # Products of spins do not feel these wells: their means are the same.
        even = noise_by_set(chain, tq.observables(model), label)
        assert abs(float(even.noise_share)) < DIRECT
    assert shares == sorted(shares) and shares[-1] > 0.9999


def test_a_promised_parity_gives_the_same():
    model = rbm(3, 2, scale=1.0)
    chain, f = KERNELS["gibbs"].chain(model), tq.observables(model)
    label = np.arange(32) % 3
    both, even = (noise_by_set(chain, f, label, sector=s) for s in (None, "even"))
    assert_close(parts(even), parts(both), DIRECT)
    x = tq.markov.resolvent(chain, f)
    assert_close(tq.markov.resolvent(chain, f, sector="even"), x, DIRECT)
    assert even.stats.residual.shape == both.stats.residual.shape == (6,)
    biased = KERNELS["gibbs"].chain(rbm(3, 2, biased=True))
    with pytest.raises(ValueError, match="sector was asked for"):
        noise_by_set(biased, f, label, sector="even")


def test_functions_in_blocks_and_replicas():
    model = machine(6, scale=0.7)
    chain = KERNELS["gibbs"].chain(model)
    f = jax.random.normal(jax.random.key(0), (64, 130))
    label = np.arange(64) // 20
    at_once = by_hand(*dense("gibbs", model), np.asarray(f), label)
    found = noise_by_set(chain, f, label)
    assert_close(parts(found), at_once, DIRECT)
    assert found.stats.residual.shape == (130,)
    # A set of states of the model is one of those of its replicas.
    small = rbm(2, 1)
    tempering = tq.ParallelTempering(KERNELS["gibbs"], (1.0, 0.5)).chain(small)
    label = np.arange(8) % 3
    here = noise_by_set(tempering, tq.observables(small), label)
    there = noise_by_set(tempering, tq.observables(small), np.repeat(label, 8))
    assert_close(parts(here), parts(there), IDENTITY)
    assert here.mass.shape == (3,)


def test_its_derivative():
    label = np.arange(8) % 3
    model = rbm(2, 1)

    def share(weights):
        model = tq.RBM(weights)
        chain = KERNELS["gibbs"].chain(model)
        return noise_by_set(chain, tq.observables(model), label).noise_share

    slope = jax.jit(jax.grad(share))(model.weights)
    direction = jnp.array([[0.6], [-0.8]])
    expected = central_difference(share, model.weights, direction)
    assert_close(jnp.vdot(slope, direction), expected, 1e-7)
    assert_close(jax.jvp(share, (model.weights,), (direction,))[1], expected, 1e-7)


def test_empty_sets_and_constants_are_zero():
    model = machine(4)
    chain = KERNELS["gibbs"].chain(model)
    f, members = tq.observables(model), np.arange(16) % 3 == 1
    two = noise_by_set(chain, f, members.astype(int))
    assert_close(parts(noise_by_set(chain, f, members)), parts(two), IDENTITY)
    found = noise_by_set(chain, f, np.arange(16) % 2 * 2)
    assert found.mass[1] == 0 and (parts(found)[:, 1] == 0).all()
    nothing = noise_by_set(chain, jnp.ones(16), np.arange(16) % 2)
    assert nothing.noise_share == nothing.variance_share == 0
    assert "nan" not in str(nothing)
    many = str(noise_by_set(chain, f, np.arange(16)))
    assert "and 8 more" in many and len(many.splitlines()) == 11


def test_wrong_labels(as_for_users):
    model = machine(4)
    chain, f = KERNELS["gibbs"].chain(model), tq.observables(model)
    with pytest.raises(ValueError, match="a set for each state"):
        noise_by_set(chain, f, np.zeros(8, int))
    with pytest.raises(ValueError, match="number of the set of each state"):
        noise_by_set(chain, f, np.zeros(16))
    with pytest.raises(ValueError, match="number of the set of each state"):
        noise_by_set(chain, f, np.arange(16) - 1)
    with pytest.raises(ValueError, match="from 0 to 16 were given"):
        noise_by_set(chain, f, np.arange(16) + (np.arange(16) == 15))
    with pytest.raises(ValueError, match="traced"):
        eqx.filter_jit(noise_by_set)(chain, f, jnp.zeros(16, int))
