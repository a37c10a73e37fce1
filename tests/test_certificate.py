import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import (
    IDENTITY,
    KERNELS,
    MODELS,
    ON_COLOURS,
    assert_close,
    kernel_of,
    machine,
    neural,
    rbm,
    slow_except,
)
from test_residuals import Wrong

import trainq as tq
from trainq.markov import CertificateError, _certificate, _eigenpairs


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "model"),
    [(k, m) for m in ("rbm 2x4", "neural 3+2") for k in KERNELS]
    + slow_except([(k, "biased rbm 3x3") for k in KERNELS])
    + ON_COLOURS,
)
def test_every_kernel_is_certified(name, model):
    model = MODELS[model]
    kernel = kernel_of(name, model)
    certificate = tq.certify(kernel, model)
    assert certificate.ok and certificate.require() is certificate
    assert certificate.failed == ()
    applicable = {k for k, check in certificate.checks.items() if check.applicable}
    expected = {"row_sums", "positivity", "stationarity", "law"}
    expected |= {"detailed_balance", "cheeger"} if kernel.is_reversible else set()
    expected |= {"symmetry"} if model.is_symmetric else set()
    assert applicable == expected
    for check in certificate.checks.values():
        assert (check.residual is None) == (check.passed is None) == bool(check.reason)
    assert (certificate.cheeger is None) == (not kernel.is_reversible)


@pytest.mark.slow
def test_residuals_and_margins_are_those_of_the_functions():
    kernel, model = KERNELS["gibbs"], rbm(2, 2)
    certificate, chain = tq.certify(kernel, model), kernel.chain(model)
    residuals = {k: c.residual for k, c in certificate.checks.items()}
    assert residuals["row_sums"] == tq.markov.row_sum_residual(chain)
    assert residuals["detailed_balance"] == tq.markov.detailed_balance_residual(chain)
    margins = tq.markov.cheeger_margins(chain)
    assert_close(certificate.cheeger.gap, margins.gap, IDENTITY)
    assert_close(certificate.cheeger.lower, margins.lower, IDENTITY)
    assert_close(certificate.cheeger.upper, margins.upper, IDENTITY)


class WrongKernel(tq.markov.AbstractSingleFlipKernel):
    rule = Wrong()
    is_reversible = True


class Liar(tq.AbstractEnergyModel):
    """Says that it is symmetric, and is not."""

    inner: tq.AbstractEnergyModel
    n_visible = 2
    n_hidden = 1

    @property
    def is_symmetric(self):
        return True

    def energy(self, x):
        return self.inner.energy(x)


def test_a_kernel_with_a_wrong_law_is_halted():
    certificate = tq.certify(WrongKernel(), rbm(2, 2))
    assert not certificate.ok
    assert {"stationarity", "detailed_balance"} <= set(certificate.failed)
    assert "row_sums" not in certificate.failed
    # Nor has it a gap: what an eigenproblem finds in its matrix is none of its modes.
    assert "cheeger" in certificate.failed and np.isnan(certificate.cheeger.gap)
    with pytest.raises(CertificateError, match=r"detailed balance .*FAILED"):
        certificate.require()


class Warmer(tq.markov.AbstractKernel):
    """A sound chain, at another temperature than it should be."""

    kernel: tq.markov.AbstractKernel = KERNELS["gibbs"]
    is_reversible = True

    def chain(self, model):
        return self.kernel.chain(model.tempered(0.9))

    def stepper(self, model):
        return self.kernel.stepper(model.tempered(0.9))

    def site_updates(self, model):
        return self.kernel.site_updates(model)


def test_a_sound_chain_of_another_law_is_halted():
    certificate = tq.certify(Warmer(), rbm(2, 2))
    assert certificate.failed == ("law",)
    model = rbm(2, 2)
    law = np.exp(np.asarray(tq.log_stationary(model)))
    chain = Warmer().chain(model)
    residual = np.max(np.abs(np.asarray(chain.stationary) - law))
    assert_close(certificate.checks["law"].residual, residual, IDENTITY)
    assert residual > 1e-3
    with pytest.raises(ValueError, match="the 32 states of what it samples, but .* 16"):
        tq.markov.law_residual(chain, [rbm(2, 3)])


@pytest.mark.slow
def test_the_law_of_replicas_is_their_product():
    kernel = tq.ParallelTempering(KERNELS["gibbs"], [1.0, 0.5])
    model = rbm(2, 1)
    assert tq.certify(kernel, model).ok
    law, hot = (
        np.exp(np.asarray(tq.log_stationary(one))) for one in kernel.replicas(model)
    )
    found = np.asarray(kernel.chain(model).stationary)
    assert_close(found, np.kron(law, hot), IDENTITY)
    hotter = tq.ParallelTempering(KERNELS["gibbs"], [1.0, 0.4]).replicas(model)
    assert tq.markov.law_residual(kernel.chain(model), hotter) > 1e-3


def test_a_model_that_is_not_as_symmetric_as_it_says_is_halted():
    certificate = tq.certify(KERNELS["gibbs"], Liar(neural(2, 1)))
    assert not certificate.checks["symmetry"].passed
    with pytest.raises(CertificateError, match=r"symmetry .*FAILED"):
        certificate.require()


def test_progress_says_which_check_is_made(monkeypatch, capsys):
    monkeypatch.setattr(_certificate, "_MAX_MATRIX", 4)
    shown = tq.certify(KERNELS["gibbs"], rbm(3, 2), progress=True)
    out, err = capsys.readouterr()
    places = [err.index(f"{name.replace('_', ' ')}: ") for name in shown.checks]
    assert out == "" and places == sorted(places)
    silent = tq.certify(KERNELS["gibbs"], rbm(3, 2))
    assert capsys.readouterr() == ("", "")
    assert str(silent) == str(shown)


def test_a_tolerance_below_rounding_fails():
    # The symmetry holds to the last bit, and the flows only up to rounding.
    certificate = tq.certify(KERNELS["gibbs"], rbm(3, 3), tolerance=1e-30)
    assert not certificate.ok and "detailed_balance" in certificate.failed
    assert "symmetry" not in certificate.failed


@pytest.mark.slow
def test_a_batch_of_models(key):
    models = eqx.filter_vmap(lambda key: tq.RBM(jr.normal(key, (2, 2))))(
        jr.split(key, 3)
    )
    batch = eqx.filter_vmap(lambda model: tq.certify(KERNELS["gibbs"], model))(models)
    assert batch.ok.shape == batch.cheeger.gap.shape == (3,)
    assert batch.require() is batch
    one = tq.certify(KERNELS["gibbs"], tq.RBM(models.weights[1]))
    assert_close(batch.cheeger.conductance[1], one.cheeger.conductance, IDENTITY)
    failing = eqx.tree_at(
        lambda c: c.checks["cheeger"].residual, batch, jnp.array([0.0, 1.0, 0.0])
    )
    assert failing.ok.tolist() == [True, False, True]
    assert failing.failed == ("cheeger",)
    with pytest.raises(CertificateError, match=r"cheeger +1\.0e\+00"):
        failing.require()


def test_require_works_under_jit():
    @eqx.filter_jit
    def gap(kernel, model):
        return tq.certify(kernel, model).require().cheeger.gap

    expected = tq.markov.spectral_gap(KERNELS["gibbs"].chain(rbm(2, 2)))
    assert_close(gap(KERNELS["gibbs"], rbm(2, 2)), expected, IDENTITY)
    # A part of another program too where no argument is traced.
    held = jax.jit(lambda: gap(KERNELS["gibbs"], rbm(2, 2)))
    assert_close(held(), expected, IDENTITY)
    with pytest.raises(eqx.EquinoxRuntimeError, match="failed its certificate"):
        gap(WrongKernel(), rbm(2, 2))


def test_the_table_says_why_a_check_does_not_apply():
    text = str(tq.certify(KERNELS["alternating"], machine(3, 2, biased=True)))
    assert "does not apply: the chain is not reversible" in text
    assert "does not apply: the model is not symmetric" in text
    assert "stationarity" in text and "passed" in text


@pytest.mark.slow
def test_float32_has_a_tolerance_of_its_own():
    model = tq.RBM(rbm(3, 3).weights.astype(jnp.float32))
    certificate = tq.certify(KERNELS["gibbs"], model)
    assert certificate.ok
    assert certificate.checks["row_sums"].tolerance == 4096 * np.finfo(np.float32).eps


@pytest.mark.quick(1)
@pytest.mark.parametrize("sector", ["even", "odd"])
@pytest.mark.parametrize(
    ("name", "model"),
    [("gibbs", "rbm 2x4"), ("palindromic", "rbm 3x3"), ("coloured random", "ring 3+2")],
)
def test_bounds_hold_in_every_sector(name, model, sector):
    model = MODELS[model]
    kernel = kernel_of(name, model)
    certificate = tq.certify(kernel, model, sector=sector)
    assert certificate.ok and certificate.cheeger.violation == 0
    gap = tq.markov.spectral_gap(kernel.chain(model), sector)
    assert_close(certificate.cheeger.gap, gap, IDENTITY)


def test_a_sector_of_a_model_without_the_symmetry_is_refused():
    with pytest.raises(ValueError, match="even sector was asked for"):
        tq.certify(KERNELS["gibbs"], rbm(2, 2, biased=True), sector="even")


def test_a_large_chain_has_the_checks_that_need_no_matrix(monkeypatch):
    monkeypatch.setattr(_certificate, "_MAX_MATRIX", 4)
    monkeypatch.setattr(_eigenpairs, "_MAX_DENSE", 2**4)
    model = rbm(3, 3)
    flips = tq.certify(KERNELS["gibbs"], model, sector="even")
    assert flips.ok and all(c.applicable for c in flips.checks.values())
    gap = tq.markov.spectral_gap(KERNELS["gibbs"].chain(model), "even")
    assert_close(flips.cheeger.gap, gap, 1e-9)
    blocks = tq.certify(KERNELS["palindromic"], model)
    assert blocks.ok and blocks.cheeger is None
    for name in ("positivity", "detailed_balance", "symmetry", "cheeger"):
        assert "it needs a matrix" in str(blocks.checks[name].reason)


@pytest.mark.slow
def test_a_large_chain_with_a_wrong_law_has_no_gap_either(monkeypatch):
    monkeypatch.setattr(_certificate, "_MAX_MATRIX", 4)
    monkeypatch.setattr(_eigenpairs, "_MAX_DENSE", 2**4)
    for model in (rbm(3, 2), rbm(3, 2, biased=True)):
        with pytest.raises(eqx.EquinoxRuntimeError, match="is not reversible"):
            tq.markov.spectral_gap(WrongKernel().chain(model))
        certificate = tq.certify(WrongKernel(), model)
        assert "cheeger" in certificate.failed and np.isnan(certificate.cheeger.gap)


@pytest.mark.slow
def test_what_is_too_large_is_said_before_it_is_made():
    with pytest.raises(ValueError, match="certificate of 40 units.*at most 20 units"):
        tq.certify(KERNELS["gibbs"], tq.RBM(jnp.zeros((20, 20))))
