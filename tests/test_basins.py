import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import IDENTITY, KERNELS, assert_close, energies, machine, rbm
from hypothesis import given, strategies as st

import trainq as tq
from trainq.markov import basins


def chain_of(model):
    return KERNELS["gibbs"].chain(model)


def neighbours(state, n_states):
    bit = n_states // 2
    while bit:
        yield state ^ bit
        bit //= 2


def minimax(energy):
    """The height of the lowest path between any two states, by Floyd and Warshall."""
    n = len(energy)
    heights = np.full((n, n), np.inf)
    np.fill_diagonal(heights, energy)
    for x in range(n):
        for y in neighbours(x, n):
            heights[x, y] = max(energy[x], energy[y])
    for via in range(n):
        through = np.maximum(heights[:, via, None], heights[None, via])
        heights = np.minimum(heights, through)
    return heights


def bottom_of(energy, state):
    """Steepest descent, step by step, without ties."""
    while True:
        lowest = min(neighbours(state, len(energy)), key=lambda y: energy[y])
        if energy[lowest] >= energy[state]:
            return state
        state = lowest


def curie_weiss(n, j):
    return tq.BoltzmannMachine(j / n * (jnp.ones((n, n)) - jnp.eye(n)))


MODELS = {
    "glass": machine(6, scale=1.0),
    "biased glass": machine(7, biased=True, scale=1.0, seed=2),
    "rbm": rbm(3, 3, biased=True, scale=1.5),
}


@pytest.mark.parametrize("name", MODELS)
def test_basins_and_passes_are_those_of_plain_searches(name):
    model = MODELS[name]
    energy = energies(model)
    energy -= energy.min()
    found = basins(chain_of(model))
    assert len(found.minima) > 2
    bottoms = np.array([bottom_of(energy, x) for x in range(len(energy))])
    np.testing.assert_array_equal(found.minima[found.label], bottoms)
    assert (np.diff(found.energy) >= 0).all()
    assert_close(found.energy, energy[found.minima], IDENTITY)
    law = np.exp(-energy) / np.exp(-energy).sum()
    masses = [law[bottoms == x].sum() for x in found.minima]
    assert_close(found.mass, masses, IDENTITY)
    heights = minimax(energy)[np.ix_(found.minima, found.minima)]
    assert_close(found.heights(), heights, IDENTITY)
    barriers = heights - energy[found.minima][:, None]
    assert_close(found.barriers(), barriers, IDENTITY)
    assert (np.diff(found.height) >= 0).all()
    assert_close(found.height, energy[found.saddle], IDENTITY)


@pytest.mark.slow
@given(st.integers(0, 10**6), st.integers(2, 6), st.booleans())
def test_heights_are_an_ultrametric_of_all_basins(seed, n, integer):
    # Whole couplings have many ties.
    rng = np.random.default_rng(seed)
    upper = rng.integers(-1, 2, (n, n)) if integer else rng.normal(size=(n, n))
    upper = np.triu(upper, 1).astype(float)
    found = basins(chain_of(tq.BoltzmannMachine(jnp.asarray(upper + upper.T))))
    x = np.array(list(itertools.product((-1.0, 1.0), repeat=n)))
    energy = np.einsum("si,sj,ij->s", x, x, -upper)
    energy -= energy.min()
    heights = found.heights()
    expected = minimax(energy)[np.ix_(found.minima, found.minima)]
    assert np.abs(heights - expected).max() < 1e-12
    largest = np.maximum(heights[:, :, None], heights[None])  # a-b, b-c
    assert (heights[:, None, :] <= largest + 1e-12).all()
    assert abs(found.mass.sum() - 1) < 1e-12
    # Every state goes down, or is at the bottom; so does its mirror image.
    assert (energy >= found.energy[found.label] - 1e-12).all()
    np.testing.assert_array_equal(found.label[::-1], found.mirror[found.label])
    np.testing.assert_array_equal(
        found.mirror[found.mirror], np.arange(len(found.minima))
    )
    # Two basins are never on level ground with each other.
    off = heights[~np.eye(len(heights), dtype=bool)]
    assert (off > 1e-12).all() or len(off) == 0


@pytest.mark.slow
def test_level_ground_is_one_bottom_and_leads_to_the_nearest_way_down():
    # Four free spins: one basin of everything.
    found = basins(chain_of(tq.RBM(jnp.zeros((2, 2)))))
    assert found.minima.tolist() == [0] and found.mirror.tolist() == [0]
    assert found.heights().tolist() == [[0.0]] and found.height.size == 0
    # A pair that is coupled, and one free spin: two bottoms of two states each, and
    # those between are as near to either: the first unit is flipped.
    couplings = jnp.zeros((3, 3)).at[0, 1].set(1.0).at[1, 0].set(1.0)
    found = basins(chain_of(tq.BoltzmannMachine(couplings)))
    assert found.minima.tolist() == [0, 6]
    assert found.label.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert_close(found.barriers(), [[0, 2], [2, 0]], IDENTITY)
    # A terrace of two steps: 0 - 1 - 3 are level, and only 3 has a way down, to 7; 2 is
    # a summit, and goes down by its first unit.
    law = np.exp([0.0, 0.0, -1.0, 0.0, -2.0, -2.0, -3.0, 1.0])
    matrix = np.broadcast_to(law / law.sum(), (8, 8))
    found = basins(tq.markov.DenseChain(matrix))
    assert found.label.tolist() == [0] * 8 and found.minima.tolist() == [7]


@pytest.mark.parametrize("n", [5, 8])
def test_the_barrier_of_a_curie_weiss_model(n):
    j = 2.5
    found = basins(chain_of(curie_weiss(n, j)))
    up = 2 * np.arange(n + 1) - n
    energy = -j / (2 * n) * (up**2 - n)
    assert found.minima.tolist() == [0, 2**n - 1] and found.mirror.tolist() == [1, 0]
    barrier = energy.max() - energy[0]
    assert_close(found.barriers(), [[0, barrier], [barrier, 0]], IDENTITY)
    # Half of the states each: those with an even number of units, half up, are ties.
    assert_close(found.mass, [0.5, 0.5], IDENTITY)
    assert bin(int(found.saddle[0])).count("1") in (n // 2, n - n // 2)


def test_shallow_basins_become_part_of_others():
    chain = chain_of(machine(8, scale=1.0, biased=True, seed=3))
    every = basins(chain)
    for least in (0.5, 2.0, np.inf):
        some = basins(chain, least=least)
        assert len(some.minima) < len(every.minima)
        assert set(some.minima) <= set(every.minima)
        assert abs(some.mass.sum() - 1) < IDENTITY
        # What is left is left over more; what is not was left over less.
        out = some.heights() + np.diag(np.full(len(some.minima), np.inf))
        lower = np.arange(len(out))[:, None] > np.arange(len(out))[None]
        barrier = np.where(lower, out, np.inf).min(axis=1) - some.energy
        assert (barrier >= least).all()
        # Passes between those that stay are where they were.
        kept = np.searchsorted(
            every.minima, some.minima, sorter=np.argsort(every.minima)
        )
        kept = np.argsort(every.minima)[kept]
        assert_close(some.heights(), every.heights()[np.ix_(kept, kept)], IDENTITY)
        # Each basin is a union of others.
        for k in range(len(every.minima)):
            assert len(set(some.label[every.label == k])) == 1
    assert len(some.minima) == 1


def test_barriers_are_what_slows_single_flips_in_the_cold():
    # log τ between two wells grows as β times the barrier at β = 1.
    model = tq.RBM(jnp.array([[1.0, 0.8], [0.9, 1.1]]), jnp.array([0.1, 0.0]))
    times = []
    for beta in (11.0, 12.0):
        chain = chain_of(model.tempered(beta))
        found = basins(chain, least=1.0)
        target = jnp.arange(16) == int(found.minima[0])
        times.append(tq.markov.hitting_times(chain, target)[found.minima[1]])
    slope = float(jnp.log(times[1] / times[0]))
    assert abs(slope - basins(chain_of(model)).barriers()[1, 0]) < 0.03  # the prefactor


def test_they_show_and_do_not_depend_on_the_kernel():
    model = machine(6, 3, scale=1.0)
    found = basins(chain_of(model))
    assert str(found).startswith(f"{len(found.minima)} basins of 64 states")
    other = basins(KERNELS["palindromic"].chain(model))
    assert eqx.tree_equal(found.label, other.label)
    many = basins(chain_of(tq.BoltzmannMachine(-jnp.ones((6, 6)) + jnp.eye(6))))
    assert len(many.minima) == 20 and str(many).endswith("and 12 more")


@pytest.mark.slow
def test_what_has_no_basins_says_so(monkeypatch):
    chain = chain_of(rbm(2, 2))
    with pytest.raises(ValueError, match="traced chain was given"):
        jax.jit(lambda w: basins(chain_of(tq.RBM(w))).energy)(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="chain of 3 states was given"):
        basins(tq.markov.DenseChain(np.full((3, 3), 1 / 3)))
    with pytest.raises(ValueError, match="least is a depth in kT, at least 0, but -1"):
        basins(chain, least=-1)
    monkeypatch.setattr("trainq.markov._basins._MAX_BASINS", 1)
    with pytest.raises(ValueError, match="at most 1 basins are allowed"):
        basins(chain_of(machine(6, scale=1.0))).heights()


def test_a_model_is_no_chain(as_for_users):
    with pytest.raises(TypeError, match="chain is the exact chain of a kernel"):
        basins(rbm(2, 2))


def test_bottoms_are_told_in_spins():
    model = tq.paired_rbm(np.array([[1, 1, -1]]), np.array([[1, -1]]), 3.0)
    found = basins(chain_of(model))
    pair = np.array([1, 1, -1, 1, -1])
    assert {tuple(x) for x in found.spins} == {tuple(pair), tuple(-pair)}
    assert_close(model.energy(jnp.asarray(found.spins))[0], model.energies().min(), 0)
