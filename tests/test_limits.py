"""The limits on numbers of units are those of the page "How to choose"."""

import pathlib
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainq as tq
from trainq import markov


@pytest.fixture(autouse=True)
def memory_enough(monkeypatch):
    """These are limits on numbers of units, on any machine."""
    monkeypatch.setenv("TRAINQ_MEMORY", "1e6")


FLIPS, LAYERS = tq.RandomScanGibbs(), tq.RandomScanBlockGibbs()
RANDOM_PAIR = markov.RandomSwaps(n_swaps=1)


class Field(tq.AbstractEnergyModel):
    """An energy without a closed form."""

    field: jax.Array
    n_visible: int = eqx.field(static=True)
    n_hidden: int = eqx.field(static=True)

    def energy(self, x):
        return -self.field @ x


def half(n):
    return tq.RBM(jnp.ones((n // 2, n - n // 2)))


def wide(n_visible):
    return tq.RBM(jnp.ones((n_visible, 40)))


def tall(n_hidden):
    return tq.RBM(jnp.ones((40, n_hidden)))


def spokes(n_hubs):
    """Pairs of visible units that share a hub, and hubs do not interact."""
    hubs = np.arange(n_hubs)
    edges = [*zip(hubs, n_hubs + hubs, strict=True)]
    edges += [*zip(hubs, 2 * n_hubs + hubs, strict=True)]
    return tq.BoltzmannMachine.from_edges(edges, jnp.ones(2 * n_hubs))


def unclosed(n_hidden):
    return Field(jnp.ones(3 + n_hidden), 3, n_hidden)


def data_of(model):
    return jax.ShapeDtypeStruct((2**model.n_visible,), model.dtype)


def of_chain(kernel, ask):
    return lambda n: eqx.filter_eval_shape(lambda m: ask(kernel.chain(m)), half(n))


def of_data(ask, make):
    return lambda n: eqx.filter_eval_shape(ask, make(n), data_of(make(n)))


def of_model(ask, make=half):
    return lambda n: eqx.filter_eval_shape(ask, make(n))


def hits(chain):
    return markov.hitting_times(chain, jnp.arange(chain.n_states) == 0)


class Own(markov.AbstractChain):
    """A chain that says nothing of what it reduces to."""

    log_stationary: jax.Array
    is_reversible = True

    def apply(self, f):
        return f


def of_own_chain(n):
    def trace(log_law):
        return markov.resolvent_trace(Own(log_law), log_law)

    return eqx.filter_eval_shape(trace, jnp.zeros(2**n))


def passes(chain):
    index = jnp.arange(chain.n_states)
    return markov.passage_times(chain, index == 0, index == 1)


def sweeps(chain):
    return markov.best_sweep_cut(chain, jnp.arange(chain.n_states))


def finds_basins(n):
    """As if there were so many states, of which none is looked at."""
    if n > 24:
        chain = jax.tree.map(lambda x: x, FLIPS.chain(half(4)))
        chain = eqx.tree_at(lambda c: c.log_stationary, chain, np.zeros(2**n, np.int8))
        markov.basins(chain)


def is_absorbed(n):
    matrix = jax.ShapeDtypeStruct((2**n, 2**n), jnp.dtype(float))
    ends = np.arange(2**n) == 0
    return eqx.filter_eval_shape(lambda m: markov.absorption(m, ends), matrix)


def exact_errors(n):
    model = half(n)
    data = jnp.full(2**model.n_visible, 2.0**-model.n_visible)
    return tq.sampling.exact_errors(FLIPS, model, data, max_steps=1)


def but_for_numbers(ask):
    """What is found by Lanczos' iteration takes numbers, which are not there: to get as
    far as that is to be within the limit."""

    def within(n):
        try:
            ask(n)
        except ValueError as error:
            if "Lanczos" not in str(error):
                raise

    return within


def replicas(ask):
    """As many replicas of one unit, so that any number of units can be made."""
    one = tq.BoltzmannMachine(jnp.zeros((1, 1)), jnp.ones(1))

    def of(n):
        kernel = tq.ParallelTempering(FLIPS, jnp.linspace(1, 0, n), RANDOM_PAIR)
        return eqx.filter_eval_shape(ask(kernel), one)

    return of


# The start of a row of the page, and what it is about.
ROWS = {
    "anything that lists all states": [
        of_model(tq.log_stationary),
        of_model(tq.observables),
        of_data(tq.QStruct(FLIPS, 10), half),
        of_data(tq.QOperational(FLIPS, 10), half),
        of_chain(FLIPS, lambda chain: chain.log_stationary),
    ],
    "`QStruct` of two-layer kernels": [of_data(tq.QStruct(LAYERS, 10), half)],
    "`visible_distribution`": [
        of_model(tq.visible_distribution, wide),
        of_data(tq.kl_divergence, wide),
        of_data(tq.kl_gradient, wide),
    ],
    "a draw from `Stationary()`": [
        of_model(
            lambda m: tq.start_chains(jax.random.key(0), m, 4, tq.Stationary()), make
        )
        for make in (wide, tall, spokes)
    ],
    "`free_energy`": [
        of_model(lambda m: m.free_energy(jnp.ones((2, 3))), unclosed),
        of_model(
            lambda m: m.sample_block(
                jax.random.key(0), jnp.ones((2, m.n_units)), "hidden"
            ),
            unclosed,
        ),
    ],
    "`exact_errors`": [exact_errors],
    "`certify`": [
        but_for_numbers(ask)
        for ask in (
            of_model(lambda m: tq.certify(FLIPS, m)),
            of_model(lambda m: tq.certify(LAYERS, m)),
            of_chain(FLIPS, markov.spectral_gap),
            of_chain(FLIPS, markov.slowest_mode),
            of_chain(FLIPS, lambda c: markov.modes(c, c.log_stationary)),
            of_data(tq.SingleGap(FLIPS, 10), half),
            of_data(tq.SingleGap(FLIPS, 10, "relevant gap"), half),
            of_chain(FLIPS, markov.sweep_conductance),
            of_chain(FLIPS, markov.cheeger_margins),
        )
    ],
    "`chain.matrix`": [
        of_chain(LAYERS, lambda chain: chain.matrix()),
        of_chain(LAYERS, markov.sweep_conductance),
        of_chain(LAYERS, markov.cheeger_margins),
    ],
    "`hitting_times`, `passage_times` of block kernels": [
        of_chain(LAYERS, hits),
        of_chain(LAYERS, passes),
    ],
    "`best_sweep_cut` along a function, of block kernels": [of_chain(LAYERS, sweeps)],
    "`best_cut`": [of_chain(FLIPS, markov.best_cut)],
    "`basins`": [finds_basins],
    "`absorption`, of a matrix": [is_absorbed],
    "`QStruct`, `resolvent` of a chain of your own": [of_own_chain],
    "`QStruct`, `certify` of `ParallelTempering`": [
        replicas(lambda k: lambda m: tq.QStruct(k, 10)(m, jnp.full(2, 0.5))),
        replicas(lambda k: lambda m: tq.certify(k, m)),
    ],
    "`swap_acceptance`": [
        of_model(lambda m: markov.swap_acceptance(m, [1.0, 0.5])),
        lambda n: of_model(markov.energy_variance, unclosed)(n - 3),
    ],
    "`ladder`, `energy_variance` of an `RBM`": [
        of_model(markov.energy_variance, wide),
    ],
    "`log_partition`, `mean_observables`": [
        of_model(ask, make)
        for make in (wide, tall, spokes)
        for ask in (tq.log_partition, tq.mean_observables)
    ]
    + [
        lambda n, ask=ask, make=make: eqx.filter_eval_shape(
            ask, make(n), jnp.ones((3, make(n).n_visible))
        )
        for make in (tall, spokes)
        for ask in (tq.log_likelihood, tq.kl_gradient)
    ],
}


def limits():
    """The rows of the table, each with the number in it."""
    page = pathlib.Path(__file__).parents[1] / "docs" / "choosing.md"
    table = page.read_text().split("## Limits")[1]
    return re.findall(r"^\| (.+?) \| (\d+)[^|]*\|", table, re.M)


def test_every_row_of_the_page_is_tested():
    assert len(limits()) == len(ROWS)


@pytest.mark.quick(2)
@pytest.mark.parametrize("start", ROWS)
def test_a_limit_of_the_page_is_that_of_the_code(start):
    (limit,) = [int(number) for what, number in limits() if what.startswith(start)]
    for ask in ROWS[start]:
        ask(limit)
        with pytest.raises(ValueError, match=f"at most {limit} units"):
            ask(limit + 1)


def test_single_flips_take_more():
    of_chain(FLIPS, hits)(28)
    of_chain(FLIPS, passes)(28)
    of_chain(FLIPS, sweeps)(28)


def test_a_given_set_and_flip_classes_take_more():
    of_chain(LAYERS, lambda c: markov.cut(c, jnp.arange(c.n_states) == 0))(28)
    of_chain(FLIPS, lambda c: markov.best_cut(c, "even"))(5)
