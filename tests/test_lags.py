"""Streamed autocovariances against those of kept values, by plain NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import DIRECT, IDENTITY, KERNELS, SIGMAS, assert_close, rbm
from scipy.signal import lfilter

import trainq as tq
from trainq import sampling
from trainq.sampling import _autocovariances
from trainq.sampling._streamed import streamed_sums


MODEL = rbm(3, 2)
SCAN = KERNELS["alternating"]


def start(n_chains=8, seed=0):
    return sampling.start_chains(jr.key(seed), MODEL, n_chains)


def streamed(values, lags=16):
    """Moments of a series of one's own, `(chains, steps, n_obs)`."""
    values = jnp.asarray(values)
    moments = sampling.Moments.begin(
        (values.shape[0], values.shape[2]), values.dtype, lags
    )

    def add(moments, value):
        return moments.add(value), None

    return jax.jit(lambda m, v: jax.lax.scan(add, m, v)[0])(
        moments, jnp.swapaxes(values, 0, 1)
    )


def naive(values, length, lag):
    """The autocovariance of bins of so many values at a lag, by loops over pairs."""
    chains, n, _ = values.shape
    n_bins = n // length
    bins = [
        [values[c, j * length : (j + 1) * length].mean(axis=0) for j in range(n_bins)]
        for c in range(chains)
    ]
    mean = np.mean(bins, axis=(0, 1))
    total = np.zeros(values.shape[2])
    for chain in bins:
        for j in range(n_bins - lag):
            total = total + (chain[j] - mean) * (chain[j + lag] - mean)
    return total / (chains * n_bins)


def same_bits(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


# 36 chains are summed in groups of 2, and 5 chains each alone.
@pytest.mark.quick(1)
@pytest.mark.parametrize("n_chains", [5, 36])
@pytest.mark.parametrize("n", [203, 64])
def test_sums_are_those_of_kept_values_on_every_level(n, n_chains):
    # In two calls, of which the first ends at no power of two.
    options = {"keep": True, "lags": 8, "chunk": min(n, 192)}
    run = sampling.run(SCAN, MODEL, start(n_chains), n, **options)
    values, lagged = np.asarray(run.values), run.moments.autocovariances
    for level, length in enumerate(lagged.bins):
        if length > n:
            assert np.all(lagged.value[level] == 0)
            continue
        for lag in range(9):
            expected = naive(values, int(length), lag)
            assert_close(lagged.value[level, lag], expected, DIRECT)
    half, found = lagged.of_half()
    assert half.count == (64 if n == 203 else 32)
    for lag in (0, 3, 8):
        assert_close(found[0, lag], naive(values[:, : half.count], 1, lag), DIRECT)
    # A negative control: the mean of each chain alone leaves something else.
    alone = values - values.mean(axis=1, keepdims=True)
    assert np.abs(naive(alone, 1, 3) - lagged.value[0, 3]).max() > 1e-3


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_bits():
    def rounded(x):  # the sums of ±1 alone are exact
        return 0.1 * x + 0.7 * x[:, :1]

    options = {"functions": rounded}
    whole = sampling.run(SCAN, MODEL, start(), 300, lags=8, **options)
    first = sampling.run(SCAN, MODEL, start(), 77, lags=8, chunk=50, **options)
    rest = sampling.run(SCAN, MODEL, first.state, 223, moments=first.moments, **options)
    assert same_bits(rest.moments, whole.moments)
    assert not same_bits(first.moments, whole.moments)
    # Nor do lags change anything else.
    plain = sampling.run(SCAN, MODEL, start(), 300, **options)
    assert same_bits(plain.moments.totals, whole.moments.totals)
    assert same_bits(plain.state, whole.state)


@pytest.mark.slow
def test_past_the_last_level(monkeypatch):
    monkeypatch.setattr(_autocovariances, "_LEVELS", 3)
    values = np.random.default_rng(0).normal(size=(4, 41, 2))
    found = streamed(values, 8).autocovariances.value
    for level in range(3):
        for lag in (0, 1, 5):
            assert_close(found[level, lag], naive(values, 2**level, lag), DIRECT)


@pytest.mark.slow
def test_values_far_from_zero_keep_their_digits():
    values = 1000 + np.random.default_rng(0).normal(size=(4, 300, 1))
    values = values.astype(np.float32)
    found = streamed(values).autocovariances.value
    assert found.dtype == np.float32
    for lag in (0, 3):
        expected = naive(values.astype(float), 1, lag)
        assert np.abs(np.asarray(found[0, lag]) - expected).max() < 1e-5


def test_groups_of_chains():
    sizes = {1: 1, 7: 7, 8: 8, 36: 12, 37: 37, 74: 74, 88: 8, 256: 32}
    assert {n: _autocovariances.n_groups(n) for n in sizes} == sizes


@pytest.mark.slow
def test_more_values_than_twice_an_integer_holds():
    # Without 64-bit numbers 2**30 values are so many, and 8 chains come to it sooner.
    n = 2**62
    lagged = streamed(np.random.default_rng(0).normal(size=(8, 40, 1)))
    lagged = eqx.tree_at(
        lambda m: (
            m.count,
            m.autocovariances.count,
            *(h.count for h in m.autocovariances.halves),
        ),
        lagged,
        [jnp.asarray(x) for x in (n, n, n // 2, n)],
    )
    assert lagged.autocovariances.of_half()[0].count == n // 2
    assert sampling.autocorrelation_time(lagged).n_samples == 8.0 * n


def test_times_are_those_of_kept_values_where_lags_are_enough():
    run = sampling.run(SCAN, MODEL, start(16), 1024, keep=True, lags=80)
    for windowing in ("sokal", "geyer"):
        kept = sampling.autocorrelation_time(run.values, windowing=windowing)
        found = sampling.autocorrelation_time(run.moments, windowing=windowing)
        assert np.all(kept.status < 2)
        for name in ("value", "error", "lags", "status", "effective_samples"):
            assert_close(getattr(found, name), getattr(kept, name), DIRECT)
    # A count that is a power of two cuts chains in halves.
    assert_close(sampling.r_hat(run.moments), sampling.r_hat(run.values), DIRECT)
    # Of another count the first part is shorter, and means the same.
    run = sampling.run(SCAN, MODEL, start(16), 1000, keep=True, lags=80)
    found, kept = (sampling.r_hat(x) for x in (run.moments, run.values))
    assert np.all(np.abs(found - kept) < 0.02) and np.any(found != kept)
    parts = run.values[:, :256], run.values[:, 256:]
    means = np.concatenate([np.mean(x, axis=1) for x in parts])
    within = np.mean([np.var(x, axis=1, ddof=1) for x in parts], axis=(0, 1))
    between = np.var(means, axis=0, ddof=1)
    expected = np.sqrt(1 - (1 / 256 + 1 / 744) / 2 + between / within)
    assert_close(found, expected, DIRECT)


@pytest.mark.slow
def test_a_first_part_that_disagrees_is_told_by_its_length():
    # It has 256 of 1000 values: errors of the whole are no measure, but 1.7 of them.
    values = np.random.default_rng(0).normal(size=(8, 1000, 100))
    moments = streamed(values)
    found, sums = sampling.autocorrelation_time(moments), streamed_sums(moments)
    assert np.all(sums.level == 0)
    first = sampling.autocorrelation_time(values[:, :256]).value
    assert_close(sums.half, first, DIRECT)
    apart = np.abs(found.value - first) / found.error
    told = apart > 3 * np.sqrt(1000 / 256 - 1)
    assert np.all(found.error < found.value / 4)
    assert np.array_equal(found.status, np.where(told, 1, 0))
    assert np.sum((apart > 3) & ~told) > 3


def test_correlations_are_judged_by_all_chains():
    # -0.05, which is noise of one chain, and nine standard errors of all: Sokal's
    # window is then longer.
    noise = np.random.default_rng(0).normal(size=(64, 513, 8))
    values = noise[:, 1:] - 0.05 * noise[:, :-1]
    kept = sampling.autocorrelation_time(values)
    found = sampling.autocorrelation_time(streamed(values))
    assert np.all(kept.lags == 6)
    for name in ("value", "error", "lags", "status"):
        assert_close(getattr(found, name), getattr(kept, name), DIRECT)


@pytest.mark.slow
def test_times_that_are_nearly_zero_are_those_of_kept_values():
    # The differences of noise have none: 1/n, and not one over the number of lags.
    values = np.diff(np.random.default_rng(0).normal(size=(8, 513, 20)), axis=1)
    kept = sampling.autocorrelation_time(values)
    found = sampling.autocorrelation_time(streamed(values))
    assert np.any(kept.value < 1 / 17)
    for name in ("value", "error", "lags", "status"):
        assert_close(getattr(found, name), getattr(kept, name), DIRECT)


@pytest.mark.slow
def test_sokals_rule_is_asked_where_geyers_has_no_right():
    noise = np.random.default_rng(0).normal(size=(64, 1224, 1))
    values = lfilter([1], [1, 0, 0.49], noise, axis=1)[:, 200:]
    found, kept = (
        sampling.autocorrelation_time(x, windowing="geyer")
        for x in (streamed(values, 60), values)
    )
    assert kept.status == 1 and kept.error < kept.value / 4
    for name in ("value", "error", "status"):
        assert_close(getattr(found, name), getattr(kept, name), DIRECT)


def test_nothing_in_a_run_grows_with_its_steps():
    sizes = [
        [
            x.shape
            for x in jax.tree.leaves(sampling.run(SCAN, MODEL, start(), n, lags=8))
        ]
        for n in (16, 700)
    ]
    assert sizes[0] == sizes[1]


def autoregression(phi, n_chains=16, n_steps=4096, n_obs=1, seed=0):
    noise = np.random.default_rng(seed).normal(size=(n_chains, n_steps, n_obs))
    noise[:, 0] /= np.sqrt(1 - phi**2)
    return lfilter([1], [1, -phi], noise, axis=1)


@pytest.mark.quick(1)
@pytest.mark.parametrize("phi", [-0.6, 0.0, 0.5, 0.9, 0.95])
def test_times_from_bins_are_the_exact_ones(phi):
    found = sampling.autocorrelation_time(streamed(autoregression(phi)))
    exact = (1 + phi) / (1 - phi)
    assert found.ok and abs(found.value - exact) < SIGMAS * found.error
    # Of 16 lags alone the longer ones would be cut.
    assert np.all(found.lags > 16) or phi < 0.9
    assert abs(found.value - 2 * exact) > SIGMAS * found.error


@pytest.mark.slow
def test_errors_of_times_from_bins_are_as_large_as_they_say():
    z = []
    for seed in range(2):
        values = autoregression(0.9, 8, 2048, 60, seed)
        found = sampling.autocorrelation_time(streamed(values))
        z.append((found.value - 19) / found.error)
    z = np.concatenate(z)
    z = z[np.isfinite(z)]  # without those of 2048 steps that are too few
    assert z.size > 110
    # 120 draws tell a deviation of one to 7 %, and the sum is cut a little short.
    assert abs(np.mean(z)) < 0.6 and 0.7 < np.std(z) < 1.4


def test_geyers_rule_goes_on_where_sokals_stops():
    # Noise, and a twentieth of the variance that is slow: Sokal's rule stops within 20
    # lags, where it has found a time of 2.4.
    noise = np.random.default_rng(1).normal(size=(16, 8192, 1))
    slow = np.sqrt(1 - 0.97**2) * autoregression(0.97, 16, 8192)
    values = np.sqrt(0.95) * noise + np.sqrt(0.05) * slow
    found = sampling.autocorrelation_time(streamed(values), windowing="geyer")
    exact = 1 + 2 * 0.05 * 0.97 / 0.03
    assert abs(found.value - exact) < SIGMAS * found.error and found.lags > 20
    assert abs(found.value - 2.4) > SIGMAS * found.error
    kept = sampling.autocorrelation_time(values)
    assert kept.lags < 20 and kept.value < 3


def test_geyers_rule_alone_does_not_make_a_trend_short():
    # Of a period of three steps the very first pair is negative.
    wave = 3 * np.cos(2 * np.pi * np.arange(1000) / 3)[None, :, None]
    values = np.linspace(0, 2, 1000)[None, :, None] + wave
    for some in (values, streamed(values)):
        found = sampling.autocorrelation_time(some, windowing="geyer")
        assert found.status == 4 and found.value == np.inf


def unrelaxed(kind, n_chains, n):
    rng = np.random.default_rng(1)
    walk = np.cumsum(rng.normal(size=(n_chains, n, 3)), axis=1)
    return {
        "walk": walk,
        "walks from places far apart": walk
        + 10 * np.sqrt(n) * rng.normal(size=(n_chains, 1, 3)),
        "trend": np.arange(float(n))[None, :, None] + 0.1 * walk[..., :1],
        "constant": np.ones((n_chains, n, 1)),
        "frozen apart": np.ones((n_chains, n, 1)) * np.arange(n_chains)[:, None, None],
        "rounding": 0.3 + 2.0**-54 * rng.integers(0, 2, (n_chains, n, 1)),
    }[kind]


KINDS = ["walk", "walks from places far apart", "trend", "constant", "frozen apart"]
KINDS += ["rounding"]


@pytest.mark.quick(1)
@pytest.mark.parametrize("n_chains", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_series_that_never_relaxes_has_no_share_of_its_length_for_a_time(
    kind, n_chains
):
    for n in (250, 1000):
        values = unrelaxed(kind, n_chains, n)
        for some in (values, streamed(values)):
            found = sampling.autocorrelation_time(some)
            assert np.all(found.status == 4) and np.all(found.value == np.inf)
            assert np.all(found.error == np.inf) and not found.ok
            bins = [b for b in 2 ** np.arange(10) if some is not values]
            reach = max([b * min(n // b // 8, 16) for b in bins], default=n // 8)
            assert np.all(found.lags == reach) and "longer than the lags" in str(found)
            assert np.all(found.effective_samples == 0)
    # A negative control: one that relaxes.
    relaxed = autoregression(0.5, n_chains, 1000)
    assert np.isfinite(sampling.autocorrelation_time(streamed(relaxed)).value)


@pytest.mark.slow
def test_random_walks_hardly_ever_stop_within_an_eighth():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        walk = np.cumsum(rng.normal(size=(1, 1000, 1000)), axis=1)
        status = sampling.autocorrelation_time(walk).status
        # 31 of 20,000 in all do, and none is resolved.
        assert np.mean(status == 4) > 0.99 and np.all(status != 0)
        # A control: their steps.
        found = sampling.autocorrelation_time(np.diff(walk, axis=1))
        assert np.mean(found.status == 4) < 0.01


@pytest.mark.slow
def test_r_hat_of_chains_that_are_stuck():
    still = unrelaxed("constant", 4, 64)
    assert sampling.r_hat(streamed(still)) == 1
    apart = unrelaxed("frozen apart", 4, 64)
    assert sampling.r_hat(streamed(apart)) == np.inf
    shift = 9 * (np.arange(4) == 0)[:, None, None]
    moved = autoregression(0.0, 4, 64) + shift
    assert 2 < sampling.r_hat(streamed(moved)) < np.inf
    assert_close(sampling.r_hat(streamed(moved)), sampling.r_hat(moved), DIRECT)
    # Of one value, or with one before the cut, nothing is known.
    for n in (1, 2, 3):
        assert sampling.r_hat(streamed(still[:, :n])) == np.inf
    rounded = unrelaxed("rounding", 4, 64)
    assert np.any(rounded != rounded[0, 0]) and sampling.r_hat(streamed(rounded)) == 1
    steady = still + 2.0**-52 * np.arange(4)[:, None, None]
    assert sampling.r_hat(streamed(steady)) == 1


@pytest.mark.slow
def test_t_o_from_groups_of_chains():
    state = sampling.run(SCAN, MODEL, start(64), 300).state
    run = sampling.run(SCAN, MODEL, state, 4096, keep=True, lags=16)
    kept = sampling.sampled_time(run.values)
    found = sampling.sampled_time(run.moments)
    assert found.segments.size == 32 and found.resolved and kept.resolved
    assert_close(found.variance, kept.variance, DIRECT)
    chain, f = SCAN.chain(MODEL), tq.observables(MODEL)
    centred = chain.centre(f)
    noise = jnp.trace(tq.markov.asymptotic_covariance(chain, f))
    exact = (noise + jnp.sum(chain.stationary @ centred**2)) / 2
    for one in (found, kept):
        assert abs(one.t_o - exact) < SIGMAS * one.t_o_error
    # A control: half of it is far away. And what does not relax is infinite.
    assert abs(found.t_o - exact / 2) > SIGMAS * found.t_o_error
    never = sampling.sampled_time(streamed(unrelaxed("walk", 8, 512)))
    assert never.t_o == never.t_o_error == np.inf and not never.resolved
    assert "NOT RESOLVED" in str(never)


@pytest.mark.slow
def test_t_o_of_bins():
    moments = streamed(autoregression(0.6, 64, 4096))
    found = sampling.sampled_time(moments)
    assert streamed_sums(moments).level == 1
    exact = (4 + 1) / (1 - 0.36) / 2
    error = found.t_o_error
    assert abs(found.t_o - exact) < SIGMAS * error and found.resolved
    # Controls: without the step itself, and with that of bins of two for it.
    assert error < 0.02 * exact and abs(found.t_o - 0.8 * exact) > SIGMAS * error
    assert abs(found.t_o - 1.12 * exact) > SIGMAS * error


def test_t_o_of_a_time_within_the_lags_but_not_an_eighth_is_infinite():
    values = autoregression(0.9, 16, 512)
    for some in (values, streamed(values)):
        assert np.all(sampling.autocorrelation_time(some).value == np.inf)
    assert sampling.sampled_time(streamed(values)).t_o == np.inf
    # Within an eighth, but not a tenth of it.
    values = streamed(autoregression(0.9, 16, 1000))
    assert sampling.autocorrelation_time(values).status == 2
    longer = sampling.sampled_time(values)
    assert np.isfinite(longer.t_o) and not longer.resolved


@pytest.mark.slow
def test_t_o_is_that_of_the_values_where_lags_are_enough():
    # With one chain a group and one piece a chain both are the same numbers.
    run = sampling.run(SCAN, MODEL, start(32), 512, keep=True, lags=100)
    kept, found = (sampling.sampled_time(x) for x in (run.values, run.moments))
    assert_close(found.segments, kept.segments, DIRECT)


def test_a_long_float32_run_keeps_its_digits():
    n = 60_000

    def value(i):
        return jnp.where(i % 3 == 0, 1.1, -0.3).astype(jnp.float32)[None, None]

    @jax.jit
    def sums():
        begin = sampling.Moments.begin((1, 1), jnp.float32, 8)
        return jax.lax.fori_loop(0, n, lambda i, m: m.add(value(i)), begin)

    found = np.asarray(sums().autocovariances.value[0, :4, 0], float)
    x = np.where(np.arange(n) % 3 == 0, np.float32(1.1), np.float32(-0.3)).astype(float)
    x = x - x.mean()
    expected = [np.sum(x[: n - k] * x[k:]) / n for k in range(4)]
    assert np.abs(found - expected).max() < 5e-6


def test_moments_are_saved_and_go_on(tmp_path):
    run = sampling.run(SCAN, MODEL, start(), 100, lags=8)
    tq.save(tmp_path / "run.npz", run)
    again = tq.load(tmp_path / "run.npz")
    assert same_bits(again, run)
    one, other = (
        sampling.run(SCAN, MODEL, x.state, 60, moments=x.moments) for x in (run, again)
    )
    assert same_bits(one, other)


@pytest.mark.slow
def test_under_jit_vmap_and_scan():
    def moments(state):
        return sampling.run(SCAN, MODEL, state, 40, lags=8).moments

    def values(m):
        return m.autocovariances.value, sampling.autocorrelation_time(m).value

    expected = [values(moments(start(seed=s))) for s in (0, 1)]
    assert all(
        np.allclose(a, b, rtol=0, atol=IDENTITY)
        for a, b in zip(
            jax.jit(lambda s: values(moments(s)))(start()), expected[0], strict=True
        )
    )
    both = jax.tree.map(lambda *x: jnp.stack(x), start(seed=0), start(seed=1))
    found = eqx.filter_vmap(lambda s: values(moments(s)))(both)
    assert_close(found[0], np.stack([e[0] for e in expected]), IDENTITY)

    def step(carry, _):
        run = sampling.run(SCAN, MODEL, carry[0], 20, moments=carry[1])
        return (run.state, run.moments), None

    begin = sampling.Moments.begin((8, 6), MODEL.dtype, 8)
    (_, scanned), _ = jax.lax.scan(step, (start(), begin), length=2)
    assert same_bits(scanned, moments(start()))


def test_mistakes(as_for_users):
    run = sampling.run(SCAN, MODEL, start(), 16)
    for ask in (sampling.autocorrelation_time, sampling.r_hat, sampling.sampled_time):
        with pytest.raises(ValueError, match="run` sums them up only if .* lags=16"):
            ask(run.moments if ask is not sampling.sampled_time else run.moments)
    with pytest.raises(ValueError, match="lags is a whole number, at least 8, but 3"):
        sampling.run(SCAN, MODEL, start(), 16, lags=3)
    with pytest.raises(ValueError, match="have autocovariances at none lags, but lags"):
        sampling.run(SCAN, MODEL, start(), 16, lags=8, moments=run.moments)
    few = sampling.run(SCAN, MODEL, start(4), 16, lags=8).moments
    with pytest.raises(ValueError, match="at least 8 of them, but 4 were given"):
        sampling.sampled_time(few)
