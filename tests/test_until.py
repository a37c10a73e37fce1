"""Runs until a target is reached: why they stop, and what the result promises."""

import contextlib

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import DIRECT, KERNELS, assert_close, rbm
from test_compilation import Counted

import trainq as tq
from trainq import sampling
from trainq.sampling import _until
from trainq.sampling._until_result import has_settled, last_change, status_of


MODEL = tq.RBM(0.5 * jr.normal(jr.key(0), (4, 3)))
DATA = tq.visible_distribution(tq.planted_rbm(jr.key(1), 4, 2, 2.0))
GIBBS = tq.RandomScanGibbs()


def start(model=MODEL, n_chains=16, seed=0):
    x = model.draw(jr.key(seed), n_chains)
    return sampling.ChainState.begin(x, jr.key(seed + 1))


def until(model=MODEL, state=None, data=None, kernel=GIBBS, **options):
    state = start(model) if state is None else state
    options = {"max_steps": 2048} | options
    return sampling.run_until(kernel, model, state, data, **options)


def test_a_run_stops_at_the_first_doubling_that_reaches_the_targets():
    found = until(data=DATA, q=40, r_hat=1.1, max_steps=10_000)
    assert found.ok and found.status == 0 and found.missed == ()
    assert found.n_looks == 7
    assert found.steps.tolist() == [128 * 2**i for i in range(found.steps.size)]
    low, high = found.interval()
    assert found.history["q"][-1] == low >= 40 and low < found.estimate.q < high
    assert found.history["r_hat"][-1] <= 1.1
    before = [
        bool(q >= 40 and r <= 1.1)
        for q, r in zip(found.history["q"], found.history["r_hat"], strict=True)
    ]
    assert before == [False] * (len(before) - 1) + [True] and len(before) > 1
    # All looks together: wider than an interval that knows of one.
    alone = found.estimate.interval(0.95)
    assert low < alone[0] and alone[1] < high
    assert_close(low, found.estimate.interval(1 - 0.05 / 7)[0], DIRECT)
    assert_close(found.interval(0.5), found.estimate.interval(1 - 0.5 / 7), DIRECT)
    text = str(found)
    assert f"reached after {int(found.steps[-1])} steps" in text
    assert "7: all targets are met" in text and "missed" not in text


@pytest.mark.slow
def test_it_leaves_what_a_plain_run_does():
    others = {"resolved": 0.5, "r_hat": 1.001, "settled": 0.01}
    found = until(data=DATA, q=40, **others)
    n = int(found.steps[-1])
    run = sampling.run(GIBBS, MODEL, start(), n, keep=True, lags=16)
    assert np.array_equal(run.state.x, found.state.x)
    one, other = (jax.tree.leaves(x.moments) for x in (run, found))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert_close(found.moments.mean, np.mean(run.values, axis=1), DIRECT)
    # Nor do the units, which are watched besides, come into what is told.
    times = sampling.autocorrelation_time(run.moments)
    last = {name: row[-1] for name, row in found.history.items()}
    assert last["resolved"] == float(np.mean(times.status == 0))
    assert_close(last["r_hat"], np.max(sampling.r_hat(run.values)), DIRECT)
    assert_close(last["settled"], sampling.sampled_time(run.moments).t_o, DIRECT)
    # The gradient with its noise is that of an estimator with such a window.
    alike = sampling.GradientEstimator(GIBBS, window=n)(start(), MODEL, DATA)
    for name in ("square", "variance", "log_error", "states", "window", "degrees"):
        one, other = (getattr(x, name) for x in (found.estimate, alike))
        assert_close(one, other, DIRECT)
    # The gradient is that of the data less that of the means, in the model's structure.
    f, v = np.asarray(tq.observables(MODEL)), np.asarray(run.values)
    law = np.asarray(DATA)
    states = tq.RBM(MODEL.weights)
    posterior = np.exp(np.asarray(tq.log_stationary(states))).reshape(16, 8)
    joint = law[:, None] * posterior / posterior.sum(axis=1, keepdims=True)
    expected = joint.ravel() @ f - v.mean(axis=(0, 1))
    assert_close(found.estimate.gradient.weights.ravel(), expected, DIRECT)
    # A chain adds its own error, with the sign of the gradient.
    scatter = (v.mean(axis=(0, 1)) - v.mean(axis=1)) / np.sqrt(16 * 15)
    assert_close(found.estimate.chain_scatter, scatter, DIRECT)
    assert found.estimate.degrees == 15
    # A control: another number of steps is another gradient.
    assert np.abs(v[:, : n // 2].mean(axis=(0, 1)) - v.mean(axis=(0, 1))).max() > 1e-4


def test_max_steps_says_so_and_what_to_try():
    found = until(data=DATA, q=1e7, resolved=1.0, max_steps=1000)
    assert found.status == 1 and "q" in found.missed and not found.ok
    assert found.steps[-1] == 512 and found.steps.size == found.n_looks == 3
    text = str(found)
    assert "max_steps after 512 steps" in text and "try more chains" in text
    assert "missed" in text
    assert "go on from `state` with `max_steps=1024` or more" in text
    longer = until(data=DATA, q=1e7, resolved=1.0, max_steps=1024)
    assert longer.steps[-1] == 1024  # the least that looks once more


@pytest.mark.slow
def test_steps_are_those_of_the_kernel():
    found = until(data=DATA, q=1e7, every=3, max_steps=768)
    assert found.steps.tolist() == [384, 768] and found.estimate.window == 768
    run = sampling.run(GIBBS, MODEL, start(), 768, every=3)
    assert np.array_equal(run.state.x, found.state.x)
    assert_close(found.moments.mean, run.moments.mean, DIRECT)


@pytest.mark.slow
def test_a_short_window_does_not_count():
    # One of 20 units is drawn at a step: 128 steps are six sweeps.
    model = tq.RBM(np.zeros((16, 4)), np.zeros(16), np.zeros(4))
    found = until(model, data=np.ones((3, 16)), q=2, max_steps=128)
    assert found.history["q"][-1] > 2 and found.estimate.window_status == 1
    assert found.missed == ("q",) and found.status == 1
    assert "its window is short" in str(found)


def test_what_is_told_first():
    assert status_of((), False, False) == 0 and status_of((), False, True) == 3
    assert status_of(("q",), False, True) == 1 and status_of(("q",), True, True) == 2


@pytest.mark.slow
def test_resolved_is_the_share_of_times_that_are():
    found = until(resolved=1.0, max_steps=2**15)
    assert found.ok
    times = sampling.autocorrelation_time(found.moments)
    assert times.ok and found.history["resolved"][-1] == 1
    assert found.history["resolved"][0] < 1


def test_settled_wants_two_doublings_in_a_row():
    assert has_settled([1.0, 1.1, 1.2], 0.15)
    assert not has_settled([1.0, 1.1], 0.15)
    assert not has_settled([1.0, 1.5, 1.6], 0.15)
    assert not has_settled([1.0, 1.1, 1.5], 0.15)
    # It is a share of the later of two values.
    assert has_settled([1.0, 1.0, 1.16], 0.15)
    assert not has_settled([1.16, 1.0, 1.0], 0.15)
    assert not has_settled([np.inf, np.inf, np.inf], 0.15)
    assert not has_settled([0.0, 0.0, 0.0], 0.15)
    assert last_change([9.0, 2.0, 2.5, 2.0]) == 0.25
    found = until(settled=0.15, max_steps=2**14, kernel=tq.AlternatingBlockGibbs())
    last = found.history["settled"]
    assert found.ok and len(last) >= 3
    change = np.max(np.abs(np.diff(last[-3:])) / last[-2:])
    assert change < 0.15 and f" {change:.4g} " in str(found)


@pytest.mark.slow
def test_frozen_chains_are_told_though_all_of_them_agree():
    frozen = tq.RBM(30 * jnp.ones((4, 3)))
    state = sampling.ChainState.begin(jnp.ones((16, 7)), jr.key(0))
    found = until(frozen, state, r_hat=1.1, max_steps=256)
    # R-hat by itself sees nothing.
    assert found.history["r_hat"][-1] == 1 and found.missed == ()
    assert found.status == 2 and np.all(found.frozen) and not found.ok
    assert found.steps.tolist() == [128, 256]
    assert "16 chains never moved" in str(found) and "never moved in" not in str(found)
    assert "met, but does not count" in str(found) and "reached" not in str(found)
    # One of them is enough, and no other one is named.
    model = tq.RBM(np.zeros((2, 1)))
    found = until(model, r_hat=1.5, max_steps=256, kernel=Sticky())
    assert found.status == 2 and np.flatnonzero(found.frozen).tolist() == [3]


@pytest.mark.slow
def test_a_unit_that_never_moves_is_no_frozen_chain():
    model = tq.RBM(np.zeros((3, 2)), np.array([50.0, 0, 0]))

    def constant(x):
        return jnp.ones((x.shape[0], 1), x.dtype)

    found = until(model, r_hat=1.1, functions=constant, max_steps=512)
    assert found.ok and not np.any(found.frozen)
    assert found.frozen_units.tolist() == [True, False, False, False, False]
    assert "1 of 5 units never moved in any chain" in str(found)


class Sticky(tq.markov.AbstractKernel):
    """Gibbs, but the fourth chain stands still."""

    is_reversible = True

    def stepper(self, model):
        move = GIBBS.stepper(model)
        return lambda key, x: move(key, x).at[3].set(x[3])

    def chain(self, model):
        return GIBBS.chain(model)

    def site_updates(self, model):
        return 1


def test_chains_in_mirror_modes_are_told():
    cold = tq.RBM(0.9 * jnp.ones((4, 3)))
    signs = jnp.where(jnp.arange(16) % 2 == 0, 1.0, -1.0)[:, None]
    state = sampling.ChainState.begin(signs * jnp.ones((16, 7)), jr.key(0))
    found = until(cold, state, r_hat=1.1, max_steps=4096)
    # The weights' observables are even: the modes are one for them, and it says so.
    assert found.ok and found.mirrored and found.units_r_hat > 2
    assert "images of each other" in str(found)
    # A control: a warm model is nowhere apart.
    warm = until(rbm(4, 3, scale=0.1), r_hat=1.1, max_steps=4096)
    assert warm.ok and not warm.mirrored and warm.units_r_hat < 1.1


@pytest.mark.slow
def test_modes_that_functions_do_not_tell_apart_are_no_success():
    cold = tq.RBM(0.9 * jnp.ones((4, 3)), 0.01 * jnp.ones(4), jnp.zeros(3))
    signs = jnp.where(jnp.arange(16) % 2 == 0, 1.0, -1.0)[:, None]
    state = sampling.ChainState.begin(signs * jnp.ones((16, 7)), jr.key(0))

    def blind(x):
        # Not even: noise of the last unit where it is up, in both modes alike.
        up = x[:, :1] > 0
        return jnp.where(up, x[:, :1] * x[:, 1:2], x[:, :1] * x[:, 2:3])

    found = until(cold, state, r_hat=1.1, functions=blind, max_steps=4096)
    assert found.missed == () and found.units_r_hat > 2
    assert found.status == 3 and not found.ok
    assert "apart after" in str(found) and "ParallelTempering" in str(found)
    # It is told too where a target is missed, which comes first.
    found = until(cold, state, functions=blind, settled=1e-9, max_steps=4096)
    assert found.status == 1 and "Chains sit in different modes" in str(found)


@pytest.mark.quick(1)
@pytest.mark.parametrize("case", ["not images", "even where chains are"])
def test_modes_that_are_no_images_for_the_functions_are_told(case):
    # Two pairs of visible units, each held by a hidden one, and a hidden unit alone.
    weights = np.zeros((4, 3))
    weights[:2, 0] = weights[2:, 1] = 5
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]] * 4)
    if case != "not images":  # but where both pairs go together
        signs = signs[:, [0, 0]]
    x = np.repeat(signs, 2, axis=1)
    x = jnp.asarray(np.concatenate([x, signs, np.ones((16, 1))], axis=1), float)

    def functions(x):
        odd = 0 if case == "not images" else x[:, :1] - x[:, 1:2]
        return x[:, :1] * x[:, 1:2] + odd

    state = sampling.ChainState.begin(x, jr.key(0))
    found = until(tq.RBM(weights), state, r_hat=1.1, functions=functions, max_steps=512)
    assert found.missed == () and found.units_r_hat > 2 and not np.any(found.frozen)
    assert found.status == 3 and not found.mirrored
    assert found.steps.size == found.n_looks


@pytest.mark.slow
def test_one_program_for_all_doublings():
    class Traced(Counted):
        def stepper(self, model):
            TRACES.append(1)
            return super().stepper(model)

    TRACES = []
    found = until(kernel=Traced(), data=DATA, q=1e9, max_steps=512)
    first = len(TRACES)
    assert found.steps.size == 3 and first <= 2
    again = until(kernel=Traced(), data=DATA, q=1e8, max_steps=2048, confidence=0.9)
    assert again.steps.size == 5 and len(TRACES) == first
    # A control: other lags are another program.
    until(kernel=Traced(), data=DATA, q=1e8, max_steps=128, lags=9)
    assert len(TRACES) > first


def test_progress_is_shown(capsys):
    until(r_hat=1.0001, max_steps=512, progress=True)
    assert "steps" in capsys.readouterr().err


@pytest.mark.slow
def test_progress_changes_nothing_and_comes_to_its_end(monkeypatch):
    moves = []

    @contextlib.contextmanager
    def bar(n_steps, show):
        moves[:] = [-n_steps]
        yield moves.append

    monkeypatch.setattr(_until, "bar", bar)
    monkeypatch.setattr(_until, "_MOVES", 5)
    options = {"r_hat": 1.0001, "every": 2, "max_steps": 4096}
    one, other = (until(progress=show, **options) for show in (True, False))
    # The last doubling has 8 pieces, three at a time.
    assert np.array_equal(one.state.x, other.state.x) and one.state.step == 4096
    until(progress=True, **options)
    assert sum(moves) == 0 and moves[-3:] == [768, 768, 512]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gibbs", "alternating"])
def test_the_interval_at_the_stopping_time_holds(name):
    kernel, runs, n_chains = KERNELS[name], 200, 16
    exact = {
        128 * 2**i: float(
            tq.QOperational(
                kernel, 128 * 2**i, start=tq.Stationary(), n_chains=n_chains
            )(MODEL, DATA).q
        )
        for i in range(5)
    }
    inside, wrong = [], []
    for seed in range(runs):
        found = until(
            state=start(n_chains=n_chains, seed=2 * seed),
            data=DATA,
            kernel=kernel,
            q=0.7 * exact[256],
        )
        low, high = found.interval()
        n = int(found.steps[-1])
        inside.append(low <= exact[n] <= high)
        wrong.append(low <= exact[n] / 4 <= high)
    assert np.mean(inside) > 0.95 - 3 * np.sqrt(0.95 * 0.05 / runs)
    # A control: a quarter of the truth is not in there.
    assert np.mean(wrong) < 0.5


MISTAKES = {
    "A run goes on until a target is reached": {},
    "q is that of the gradient .* but no data": {"q": 3},
    "q is that of .* but functions were given": {
        "q": 3,
        "data": DATA,
        "functions": lambda x: x,
    },
    "from data: it takes data, and the model's own .*, but functions were given": {
        "r_hat": 1.1,
        "data": DATA,
        "functions": lambda x: x,
    },
    "functions is a function of states, or None, but 3 was given": {
        "r_hat": 1.1,
        "functions": 3,
    },
    "q is a finite positive number, but -1": {"q": -1, "data": DATA},
    "settled is a share of T_O, above 0 and below 1, such as 0.15, but 15": {
        "settled": 15
    },
    "resolved is a share of the functions, above 0 and at most 1, but 2": {
        "resolved": 2
    },
    "r_hat is above 1, .* but 1.0": {"r_hat": 1},
    "max_steps is a whole number of kernel steps, at least 128, but 100": {
        "r_hat": 1.1,
        "max_steps": 100,
    },
    "lags is a whole number, at least 8, but 2": {"r_hat": 1.1, "lags": 2},
    "confidence is between 0 and 1, but 95": {"r_hat": 1.1, "confidence": 95},
    "compares chains, at least 2 of them, but the state has 1": {
        "r_hat": 1.1,
        "state": start(n_chains=1),
    },
    r"functions returns values of shape \(chains, n_obs\) .* add an axis: `values": {
        "r_hat": 1.1,
        "functions": lambda x: x[:, 0],
    },
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes(message, as_for_users):
    with pytest.raises(ValueError, match=message):
        until(**MISTAKES[message])


def test_no_interval_without_data(as_for_users):
    found = until(r_hat=10, max_steps=128)
    with pytest.raises(ValueError, match="There is no Q without data"):
        found.interval()
    with pytest.raises(ValueError, match="run_until is made of numbers, .* traced"):
        jax.jit(lambda m: until(m, start(), r_hat=2).steps)(MODEL)
