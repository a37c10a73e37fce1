"""The plain words at the end of a diagnosis: each case planted, and its neighbour."""

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import KERNELS, energies, random_law, rbm

import trainq as tq
from trainq.markov import Modes, NoiseBySet
from trainq.predictors._snr import structural
from trainq.predictors._why import why


# Two pairs of patterns in both layers, whose wells single flips hardly leave.
WELLS = tq.paired_rbm(
    jnp.ones((2, 4)).at[1, :1].set(-1), jnp.ones((2, 4)).at[1, :2].set(-1), beta=3
)
GIBBS = KERNELS["gibbs"]


def said(gaps, weights, parity=None, window=1000, signal=1.0, failed=(), **other):
    """The words for modes that are given."""
    weight = jnp.asarray(weights, float)[:, None]
    gap, nothing = jnp.asarray(gaps, float), jnp.zeros(1)
    parity = jnp.zeros(len(gap), int) if parity is None else jnp.asarray(parity)
    modes = Modes(gap, weight, parity, nothing, nothing, None, True)
    snr = structural(jnp.sqrt(jnp.full(1, signal)), modes.observable_t_o, window)
    other = {"sweep": 1, **other}
    return why(snr, modes, float(modes.variance), failed=failed, **other).splitlines()


@pytest.mark.slow
def test_one_slow_mode_is_named_with_what_it_makes():
    data = tq.visible_distribution(WELLS.tempered(1.2))
    found = tq.diagnose(GIBBS, WELLS, data, 2000)
    noise, wells, signal, fails = found.why.splitlines()
    assert noise.startswith("One even mode makes 99.3 % of the noise, with a relaxat")
    assert f"time of {1 / found.modes.cluster().gap:.4g} steps" in noise
    assert wells.startswith("The noise is made by jumps between 4 basins of the energy")
    between = float(found.noise_by_basin.noise_share)
    assert between > 0.95 and f"energy: {100 * between:.3g} % is between them" in wells
    assert signal.endswith("Q = 0.00288: the signal is small for this window.")
    assert fails == "No assumption fails."
    shown = str(found).partition("In short\n")[2]
    assert shown.split() == found.why.split()
    assert max(map(len, shown.splitlines())) <= 88
    # A control: nearly as warm as can be, the same kernel has no mode to be named.
    warm = tq.diagnose(GIBBS, WELLS.tempered(0.05), data, 2000).why
    assert warm.startswith("The samples are nearly independent") and "mode" not in warm


def test_numbers_are_those_of_dense_matrices():
    model, data, window = rbm(3, 2, scale=0.2), random_law(3), 700
    pi = oracle.law(energies(model))
    matrix = oracle.transition("gibbs", pi, (range(3), range(3, 5)))
    f = np.asarray(tq.observables(model))
    f = f - pi @ f
    x = np.linalg.solve(np.eye(32) - matrix + pi, f)
    t_o, var = np.sum(pi @ (f * x)), np.sum(pi @ f**2)
    apart = (2 * t_o / var - 1) / 5  # five steps make a sweep of five units
    signal = np.sum(np.asarray(tq.kl_gradient(model, data)) ** 2)
    text = tq.diagnose(GIBBS, model, data, window, 0).why
    assert f"an independent sample takes {apart:.3g} sweeps" in text
    assert f"would have Q = {window / 5 * signal / var:.3g}" in text
    assert text.endswith("What fails: burn-in is long.")


def test_a_small_signal_is_told_from_one_that_is_not():
    model = rbm(3, 2, scale=0.2)
    learnt = tq.visible_distribution(model.tempered(1.01))
    text = tq.diagnose(GIBBS, model, learnt, 2000).why
    assert text.startswith("The samples are nearly independent")
    assert "the signal is small for this window" in text
    text = tq.diagnose(GIBBS, model, random_law(3), 2000).why
    assert "small" not in text and "Q is not low as it is" in text
    # One slow mode that makes Q low, of a signal that is not small.
    slow = said([0.001], [1.0], signal=0.01)
    assert slow[1].endswith("Q = 10: the signal is not small for this window.")
    assert said([0.001], [1.0], signal=0.000999)[1].endswith(
        "is small for this window."
    )
    assert said([0.5], [1.0], signal=0.01)[1].endswith("Q is not low as it is.")


@pytest.mark.slow
def test_a_chain_without_modes_is_told_by_its_times():
    data = tq.visible_distribution(WELLS.tempered(1.2))
    text = tq.diagnose(KERNELS["alternating"], WELLS, data, 2000).why
    assert "far from independent" in text and "not reversible" in text
    assert "What fails: reversible. Not to be reversible is no fault" in text
    text = tq.diagnose(KERNELS["alternating"], WELLS.tempered(0.1), data, 2000).why
    assert "nearly independent" in text and "not reversible" not in text


def test_barriers_are_blamed_if_half_of_the_noise_is_between_basins():
    def told(t_o_between, n=2):
        ones = jnp.ones(n)
        between = jnp.asarray(t_o_between, float) * ones
        by_basin = NoiseBySet(ones / n, ones, ones / 2, ones, between, None)
        return said([0.01], [1.0], by_basin=by_basin)

    assert told(0.5)[1].startswith("The noise is made by jumps between 2 basins")
    assert "50 % is between them" in told(0.5)[1]
    assert told(0.49)[1] == (
        "The noise is made within 2 basins of the energy: 49 % is between them."
    )
    assert "one basin of the energy: no barrier" in told(0, n=1)[1]
    # Nothing is blamed of samples that are nearly independent.
    ones = jnp.ones(2)
    by_basin = NoiseBySet(ones / 2, ones, ones, ones, ones, None)
    assert len(said([0.9], [1.0], by_basin=by_basin)) == 3


def test_levels_clusters_and_neither():
    one = "One odd mode makes 50 % of the noise, with a relaxation time of 100 steps."
    bulk = [0.2, 0.25, 1 / 3]
    # Times of 100, against 50, 30 and 20 of three others.
    half = said([0.01, *bulk], [1.001, 10.0, 7.5, 20 / 3], [-1, 1, 1, 1])
    assert half[0].startswith(one)
    less = said([0.01, *bulk], [0.99, 10.0, 7.5, 20 / 3], [-1, 1, 1, 1])
    assert less[0].startswith("Neither one gap nor the slow cluster makes half")
    level = said([0.01, 0.01, 0.5], [1.0, 1.0, 1.0], [1, 1, 1])
    assert level[0].startswith("2 even modes of one gap make 99 %")
    # Of other parities they are two levels, neither of which makes most.
    cluster = said([0.01, 0.01, 0.011, 0.5], [1.0, 1.0, 1.0, 1.0], [1, -1, 1, 1])
    assert cluster[0].startswith("The 3 slow modes of the cluster make 99.3 % of the")
    # The noise of the bulk is not that of a slow mode that hardly weighs.
    faint = said([1e-4, 0.05, 0.1], [1e-4, 1.0, 0.1])
    assert faint[0].startswith("One mode makes 90.9 %") and "of 20 steps" in faint[0]


def test_nearly_independent_is_up_to_two_sweeps():
    # 2 / gap - 1 steps for an independent sample.
    assert said([2 / 3], [1.0])[0].startswith("The samples are nearly independent")
    assert said([0.66], [1.0])[0].startswith("One mode makes 100 %")
    assert said([0.66], [1.0], sweep=2)[0].startswith("The samples are nearly indep")


@pytest.mark.parametrize("failed", [(), ("reversible", "window is long")])
def test_what_fails_is_named(failed):
    fails = said([0.01], [1.0], failed=failed)[2]
    assert fails == (
        "What fails: reversible, window is long. Not to be reversible is no fault of a "
        "kernel: there are no real modes to show. With so short a window the Q above "
        "can be far from that of this "
        "window, which QOperational has exactly."
        if failed
        else "No assumption fails."
    )


def test_what_does_not_vary_makes_no_noise():
    first, fails = said([0.5], [0.0])
    assert first.startswith("Nothing makes noise") and "nan" not in first + fails


def test_a_longer_window_is_advised_where_it_helps_and_how_long():
    # Q = (K/2) g² / T_O with T_O = weight / gap.
    assert said([0.001], [1.0], signal=0.01)[0].endswith(
        "A kernel that is faster there helps, or a longer window: Q = 1 takes 2e+05 "
        "steps."
    )
    assert said([0.001], [1.0], signal=1e-7)[0].endswith(
        "helps. A longer window is no remedy: Q = 1 takes 2e+10 steps."
    )
    assert said([0.001], [1.0], signal=3.0)[0].endswith("helps, or a longer window.")
    assert said([0.001], [1.0], signal=0.0)[0].endswith("that is faster there helps.")
    # The bias of a device takes its part, or all of it.
    for bias, words in ((0.06, "Q = 1 takes 3.12e+05 steps."), (0.1, "there helps.")):
        snr = structural(
            *map(jnp.array, ([0.1], [1000.0])), 1000, None, jnp.array([bias])
        )
        modes = Modes(
            *map(jnp.array, ([0.001], [[1.0]], [0], [0.0], [0.0])), None, True
        )
        assert why(snr, modes, 1.0, 1, ()).splitlines()[0].endswith(words)
