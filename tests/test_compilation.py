"""What compiles anew, and what does not: chains are made while a program is traced, and
a kernel that counts them counts the programs."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from helpers import IDENTITY, assert_close, random_law, rbm

import trainq as tq
from trainq import sampling
from trainq.markov import AbstractKernel


MODEL, DATA = rbm(2, 2, biased=True), random_law(2)
TRACED = []


class Counted(AbstractKernel):
    """A kernel that counts how often its chain is made."""

    kernel: AbstractKernel = tq.RandomScanGibbs()

    @property
    def is_reversible(self):
        return self.kernel.is_reversible

    def stepper(self, model):
        return self.kernel.stepper(model)

    def chain(self, model):
        TRACED.append(self)
        return self.kernel.chain(model)

    def site_updates(self, model):
        return self.kernel.site_updates(model)


def programs(*calls):
    """How many chains are made by some calls, in order."""
    counts = []
    for call in calls:
        before = len(TRACED)
        call()
        counts.append(len(TRACED) - before)
    return counts


STRUCTURAL = {
    "structural": lambda window: tq.QStruct(Counted(), window),
    "sokal": lambda window: tq.QStruct(Counted(), window, "sokal"),
    "textbook": lambda window: tq.SingleGap(Counted(), window),
}


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", STRUCTURAL)
def test_a_window_of_a_structural_predictor_compiles_nothing(name):
    make = STRUCTURAL[name]
    found = {}

    def ask(window):
        found[window] = make(window)(MODEL, DATA)

    windows = [100, 200, 250.5, 3]
    assert programs(*(lambda w=w: ask(w) for w in windows)) == [1, 0, 0, 0]
    for window in windows:
        assert found[window].window == window
        assert_close(found[window].q, found[100].q * window / 100, IDENTITY)
    # A control: a model of another shape is another program.
    assert programs(lambda: make(100)(rbm(2, 3), DATA)) == [1]


WAYS = {
    "along": lambda q: q.along(MODEL, DATA),
    "randomised": lambda q: q.randomised(jr.key(0), MODEL, DATA, 3),
    "guess": lambda q: q.from_guess(MODEL, DATA, q.zero_guess(MODEL, DATA)),
    "vmap": lambda q: eqx.filter_vmap(q, in_axes=(None, 0))(
        MODEL, jnp.stack([DATA] * 2)
    ),
}


@pytest.mark.quick(1)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_ask_a_structural_predictor(way):
    asks = [lambda w=w: WAYS[way](tq.QStruct(Counted(), w)) for w in (100, 200)]
    _, again = programs(*asks)
    assert again == 0


@pytest.mark.slow
def test_numbers_of_chains_and_samples_compile_nothing():
    def q(n_chains=1, batch=7, start=tq.Uniform()):
        found = tq.QOperational(Counted(), 5, 2, start, n_chains, batch=batch)
        return found(MODEL, DATA)

    assert programs(q, lambda: q(3), lambda: q(1000), lambda: q(2, 9)) == [1, 0, 0, 0]
    # An exact data phase is another program, and so is another kind of start.
    assert programs(lambda: q(batch=None), lambda: q(3, None)) == [1, 0]
    states = [tq.At(jnp.array([1, 1, -1, s])) for s in (1, -1)]
    assert programs(*(lambda s=s: q(start=s) for s in states)) == [1, 0]
    laws = [tq.Law(random_law(4, seed)) for seed in (0, 1)]
    assert programs(*(lambda s=s: q(start=s) for s in laws)) == [1, 0]


@pytest.mark.quick(1)
@pytest.mark.parametrize("start", [tq.Uniform(), tq.Stationary()])
def test_windows_and_burn_ins_compile_nothing(start):
    pairs = [(5, 2), (100, 0), (1000, 77)]
    found = {}

    def q(pair):
        found[pair] = tq.QOperational(Counted(), *pair, start)(MODEL, DATA).q

    calls = [lambda pair=pair: q(pair) for pair in [*pairs, (1024, 0)]]
    assert programs(*calls)[1:] == [0, 0, 1]
    # Nor does it matter that a number is known when a program is traced.
    for pair in pairs:
        inside = eqx.filter_jit(tq.QOperational(tq.RandomScanGibbs(), *pair, start))
        assert_close(inside(MODEL, DATA).q, found[pair], IDENTITY)


def test_windows_of_given_functions_compile_nothing():
    class Told(tq.markov.AbstractChain):
        transition: jax.Array
        log_stationary: jax.Array
        is_reversible = True

        def apply(self, f):
            TRACED.append(self)
            return self.transition @ f

    chain = tq.RandomScanGibbs().chain(MODEL)
    chain = Told(chain.matrix(), chain.log_stationary)
    f, law = jr.normal(jr.key(0), (16,)), random_law(4)

    def ask(n):
        tq.markov.window_moments(chain, f, n, law=law, burn_in=n)

    first, *others = programs(*(lambda n=n: ask(n) for n in (3, 30, 300)))
    assert first and others == [0, 0]


def test_a_table_compiles_once_for_all_batches():
    def table(batch):
        return sampling.exact_errors(
            Counted(), MODEL, DATA, batch=batch, max_steps=10
        ).data_variance

    assert programs(lambda: table(3), lambda: table(30)) == [1, 0]
    assert_close(table(3), 10 * table(30), IDENTITY)


def test_a_predictor_is_a_value():
    predictor = tq.QStruct(tq.RandomScanGibbs(), 100)
    again = pickle.loads(pickle.dumps(predictor))
    assert again == predictor and hash(again) == hash(predictor)
    assert again.window == 100 and type(again.window) is int
    assert predictor != tq.QStruct(tq.RandomScanGibbs(), 101)
    assert_close(again(MODEL, DATA).q, predictor(MODEL, DATA).q, IDENTITY)
    exact = tq.QOperational(tq.RandomScanGibbs(), 100)
    again = pickle.loads(pickle.dumps(exact))
    assert again == exact and hash(again) == hash(exact)
