"""What compiles anew, and what does not: chains are made while a program is traced, and
a kernel that counts them counts the programs."""

import contextlib
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from helpers import AUTODIFF, DIRECT, IDENTITY, assert_close, random_law, rbm

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


COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations():
    """The functions that are compiled, by name."""
    found = []

    def listen(event, duration_secs, **kwargs):
        del duration_secs
        if event == COMPILED:
            found.append(kwargs["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


PREDICTORS = {
    "structural": lambda window, _: tq.QStruct(tq.RandomScanGibbs(), window),
    "operational": lambda *numbers: tq.QOperational(tq.RandomScanGibbs(), *numbers),
    "stationary": lambda *numbers: tq.QOperational(
        tq.RandomScanGibbs(), *numbers, tq.Stationary()
    ),
}


@pytest.mark.quick(1)
@pytest.mark.parametrize("over", [jax.vmap, lambda f: lambda x: jax.lax.map(f, x)])
@pytest.mark.parametrize("name", ["operational", "structural", "stationary"])
def test_a_study_compiles_once(name, over):
    # Models, temperatures, windows and burn-ins.
    models = eqx.filter_vmap(lambda key: tq.RBM(jr.normal(key, (2, 2))))(
        jr.split(jr.key(0), 3)
    )
    betas = jnp.array([0.5, 1.0])
    windows, burn_ins = jnp.array([[1, 30, 70, 1023], [0, 3, 1023, 40]])

    @eqx.filter_jit
    def study(models, betas, windows, burn_ins):
        def q(window, burn_in):
            ask = PREDICTORS[name](window, burn_in)

            def of_model(model, beta):
                return ask(model.tempered(beta), DATA)

            over_betas = eqx.filter_vmap(of_model, in_axes=(None, 0))
            return eqx.filter_vmap(over_betas, in_axes=(0, None))(models, betas)

        return over(lambda both: q(*both))((windows, burn_ins))

    with compilations() as names:
        found = study(models, betas, windows, burn_ins)
        study(models, betas, windows[::-1], burn_ins)
    # Numbers are turned around and taken apart outside of the study.
    assert [name for name in names if "study" in name] == ["jit(study)"]
    assert found.q.shape == (4, 3, 2) and found.window.shape == (4, 3, 2)
    for i, j, k in [(0, 0, 0), (1, 2, 1), (2, 1, 0), (3, 0, 1)]:
        one = PREDICTORS[name](int(windows[i]), int(burn_ins[i]))
        model = jax.tree.map(lambda x, j=j: x[j], models).tempered(betas[k])
        assert_close(found.q[i, j, k], one(model, DATA).q, DIRECT)
        assert found.window[i, j, k] == windows[i]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["operational", "stationary"])
def test_derivatives_of_a_study_are_those_of_one_at_a_time(name):
    windows = jnp.array([5, 40])

    def total(model, windows):
        return jnp.sum(jax.vmap(lambda w: one(model, w))(windows))

    def one(model, window):
        return PREDICTORS[name](window, window)(model, DATA).log_q

    found = eqx.filter_jit(eqx.filter_grad(total))(MODEL, windows)
    each = [eqx.filter_grad(one)(MODEL, int(w)) for w in windows]
    expected = jax.tree.map(jnp.add, *each)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert_close(a, b, AUTODIFF)


def test_a_predictor_is_an_argument_whose_numbers_are_data():
    with compilations() as names:

        @eqx.filter_jit
        def ask(predictor, model):
            return predictor(model, DATA).q

        for window in (3, 10, 500):
            exact = tq.QOperational(tq.RandomScanGibbs(), window, window)
            assert_close(ask(exact, MODEL), exact(MODEL, DATA).q, IDENTITY)
    assert names.count("jit(ask)") == 1


def test_a_larger_number_of_steps_is_asked_for():
    start = tq.Stationary()

    def q(window):
        longest = tq.QOperational(
            tq.RandomScanGibbs(), window, 0, start, max_steps=9000
        )
        return longest(MODEL, DATA).q

    found = jax.jit(q)(9000)
    assert_close(found, q(9000), IDENTITY)
    assert tq.QOperational(tq.RandomScanGibbs(), 9000).max_steps == 32**3 - 1


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
    assert again.window == 100
    assert predictor != tq.QStruct(tq.RandomScanGibbs(), 101)
    assert_close(again(MODEL, DATA).q, predictor(MODEL, DATA).q, IDENTITY)
    exact = tq.QOperational(tq.RandomScanGibbs(), 100)
    again = pickle.loads(pickle.dumps(exact))
    assert again == exact and hash(again) == hash(exact)
