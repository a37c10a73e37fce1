"""The diagnosis names what fails, and what to change, for models made to fail it."""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    DIRECT,
    IDENTITY,
    KERNELS,
    assert_close,
    dense,
    neural,
    random_law,
    rbm,
)
from test_certificate import Liar

import trainq as tq
from trainq.predictors._diagnosis import _symmetric


MODEL, DATA = rbm(3, 2), random_law(3)
GIBBS = KERNELS["gibbs"]


def test_all_that_can_hold_holds_of_a_warm_model_with_a_long_window():
    found = tq.diagnose(GIBBS, MODEL, DATA, 100_000, 10_000)
    assert found.ok and found.failed == ()
    assert all(one.holds for one in found.assumptions.values())
    assert_close(found.snr.q, tq.QStruct(GIBBS, 100_000)(MODEL, DATA).q, IDENTITY)
    assert found.parameter_names == tuple(
        f"weights[{i}, {j}]" for i in range(3) for j in range(2)
    )
    f = tq.observables(MODEL)
    times = tq.markov.autocorrelation_times(
        GIBBS.chain(MODEL), f, convention="resolvent"
    )
    assert_close(found.relaxation, times, DIRECT)
    text = str(found)
    for words in ("Where the noise comes from", "weights[", "holds", "of T_O, odd"):
        assert words in text
    assert "FAILS" not in text
    assert found._repr_html_().count("<table>") == 4


def test_progress_says_what_is_computed(capsys):
    shown = tq.diagnose(GIBBS, MODEL, DATA, 1000, progress=True)
    out, err = capsys.readouterr()
    names = "noise of the observables", "modes", "assumptions", "noise of the basins"
    places = [err.index(f"{name}: ") for name in names]
    assert out == "" and places == sorted(places)
    assert str(tq.diagnose(GIBBS, MODEL, DATA, 1000)) == str(shown)
    assert capsys.readouterr() == ("", "")


def test_times_that_are_too_short_say_what_is_enough():
    found = tq.diagnose(GIBBS, MODEL, DATA, 20, 0)
    assert set(found.failed) == {"burn-in is long", "window is long"}
    cluster = found.modes.cluster()
    enough = math.ceil(5 / float(cluster.gamma_eff))
    long = math.ceil(10 * float(jnp.max(found.relaxation)))
    assert f"burn_in={enough} steps" in str(found)
    assert f"window={long} steps" in str(found)
    assert tq.diagnose(GIBBS, MODEL, DATA, long, enough).ok
    almost = tq.diagnose(GIBBS, MODEL, DATA, long - 1, enough - 1)
    assert set(almost.failed) == {"burn-in is long", "window is long"}


def test_without_a_burn_in_the_chains_start_in_the_law():
    found = tq.diagnose(GIBBS, MODEL, DATA, 20)
    one = found.assumptions["burn-in is long"]
    assert one.number is None and one.holds is None
    assert found.failed == ("window is long",)
    # What would be enough elsewhere is what a burn-in of zero is told.
    none = tq.diagnose(GIBBS, MODEL, DATA, 20, 0).assumptions["burn-in is long"]
    assert none.holds is False and none.number == 0
    enough = math.ceil(5 / float(found.modes.cluster().gamma_eff))
    assert one.reason == f"starts in the law; else {enough} steps"
    assert none.advice == f"burn_in={enough} steps, or start in the law"
    # Of a chain without modes, the relaxation times stand in.
    alternating = KERNELS["alternating"]
    found = tq.diagnose(alternating, MODEL, DATA, 1000)
    assert found.failed == ("reversible",)
    enough = math.ceil(5 * float(jnp.max(found.relaxation)))
    one = found.assumptions["burn-in is long"]
    assert one.reason == f"starts in the law; else {enough} steps"


def test_numbers_are_those_of_a_dense_spectrum():
    pi, matrix = dense("metropolis", MODEL)
    root = np.sqrt(pi)
    values = np.linalg.eigvalsh(root[:, None] * matrix / root[None, :])
    found = tq.diagnose(KERNELS["metropolis"], MODEL, DATA, 100).assumptions
    assert abs(found["irreducible"].number - (1 - values[-2])) < DIRECT
    assert abs(found["aperiodic"].number - (1 + values[0])) < DIRECT


def test_basins_are_those_of_the_replica_that_is_observed():
    model, data = rbm(2, 1, scale=2.0), random_law(2)
    tempering = tq.ParallelTempering(GIBBS, (1.0, 0.5))
    found = tq.diagnose(tempering, model, data, 1000)
    alone = tq.markov.basins(GIBBS.chain(model), least=1.0)
    assert (found.basins.label == alone.label).all() and len(alone.minima) > 1
    assert_close(found.noise_by_basin.mass, alone.mass, IDENTITY)
    assert_close(found.noise_by_basin.t_o.sum(), found.snr.t_o, DIRECT)
    # One basin is told in a line, and more than are shown in a row.
    warm = tq.diagnose(GIBBS, MODEL.tempered(0.1), DATA, 10)
    assert "one basin: no barrier of 1 kT" in str(warm)
    free = tq.RBM(jnp.diag(jnp.full(3, 3.0)))
    assert "2 others" in str(tq.diagnose(GIBBS, free, random_law(3), 1000))


def test_a_chain_that_is_not_reversible_uses_what_applies():
    found = tq.diagnose(KERNELS["alternating"], MODEL, DATA, 1000, 100)
    assert found.failed == ("reversible",) and found.modes is None
    for name in ("bulk relaxes", "cluster is stable"):
        one = found.assumptions[name]
        assert one.holds is None and one.number is None
        assert one.reason == "the chain is not reversible"
    assert found.assumptions["window is long"].holds
    assert "PalindromicBlockGibbs" in str(found)
    solved = found.assumptions["irreducible"]
    assert solved.what == "relative residual of the resolvent's equation"
    assert solved.holds and solved.number == jnp.max(found.snr.stats.residual) < 1e-14


def test_a_model_that_is_not_as_symmetric_as_it_says_fails():
    liar = Liar(neural(2, 1))
    chain, f = GIBBS.chain(liar), tq.markov.EnergyGradients(liar)
    assert _symmetric(chain, liar, f).holds is False
    # Its chain is not what it says, which a solve finds out.
    with pytest.raises(eqx.EquinoxRuntimeError, match="could not be solved"):
        tq.diagnose(GIBBS, liar, random_law(2), 10)


@pytest.mark.slow
def test_a_model_without_the_symmetry_says_so():
    found = tq.diagnose(GIBBS, rbm(2, 2, biased=True), random_law(2), 1000, 1000)
    assert found.assumptions["one symmetry"].holds is None
    assert "no global flip" in str(found)
    assert {"visible_bias[0]", "hidden_bias[1]"} <= set(found.parameter_names)
    assert "even modes" not in str(found)


def test_a_frozen_pair_has_a_cluster_that_depends_on_its_threshold():
    # One slow mode of a tiny weight, beside many that are fast.
    model = tq.RBM(jnp.array([[3.0, 3.0], [3.0, 2.9]]))
    found = tq.diagnose(GIBBS, model, random_law(2), 10**6, 10**4)
    spread = found.modes.sensitivity((3.0,)).spread
    assert_close(found.assumptions["cluster is stable"].number, spread, IDENTITY)
    assert found.assumptions["cluster is stable"].holds == bool(spread <= 1.5)


def test_it_needs_numbers(as_for_users):
    with pytest.raises(ValueError, match="traced model was given"):
        eqx.filter_jit(lambda m: tq.diagnose(GIBBS, m, DATA, 10).snr.q)(MODEL)
    with pytest.raises(ValueError, match="burn_in is a whole number"):
        tq.diagnose(GIBBS, MODEL, DATA, 10, -1)
