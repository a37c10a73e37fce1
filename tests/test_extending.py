"""What a user writes to add something, and what the library writes itself."""

import ast
import pathlib
import re
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import oracle
import pytest
from helpers import (
    DIRECT,
    IDENTITY,
    KERNELS,
    assert_close,
    dense,
    machine,
    random_law,
    rbm,
)

import trainq as tq


ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()
CLASSES = {
    node.name: node
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    for node in ast.parse(block).body
    if isinstance(node, ast.ClassDef)
}


@pytest.mark.parametrize("name", CLASSES)
def test_skeletons_are_short_and_of_public_names(name):
    node = CLASSES[name]
    assert node.end_lineno - node.lineno + 1 <= 20
    used = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
    assert not [attribute for attribute in used if attribute.startswith("_")]


def test_private_modules_stay_in_their_package():
    for path in (ROOT / "src" / "trainq").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.level < 2:
                continue
            # `..` is the package above: what is private there belongs to all below it,
            # and what is private in a package beside ours does not.
            parts = (node.module or "").split(".")
            assert not any(part.startswith("_") for part in parts[1:]), path


class EitherWay(tq.markov.AbstractScan):
    def orders(self, n_blocks):
        forth = tuple(range(n_blocks))
        return tq.markov.Order(0.5, forth), tq.markov.Order(0.5, forth[::-1])


class Uneven(tq.markov.AbstractScan):
    def orders(self, n_blocks):
        return tq.markov.Order(0.25, (0,)), tq.markov.Order(0.75, (1, 0, 1))


class Twice(tq.markov.AbstractScan):
    def orders(self, n_blocks):
        return (tq.markov.Order(1.0, 2 * tuple(range(n_blocks))),)


PAIR = rbm(2, 3, biased=True)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("scan", "words", "is_reversible"),
    [
        (EitherWay(), [(0.5, "vh"), (0.5, "hv")], True),
        (Uneven(), [(0.25, "v"), (0.75, "hvh")], True),
        (Twice(), [(1.0, "vhvh")], False),
    ],
    ids=["either way", "uneven", "twice"],
)
def test_a_scan_is_the_mixture_of_its_orders(scan, words, is_reversible):
    kernel = tq.markov.BlockGibbs(scan)
    pi = dense("random", PAIR)[0]
    joint = pi.reshape(4, 8)
    eye = np.eye(32).reshape(4, 8, 32)
    given_h = np.einsum("vh,vhk->hk", joint / joint.sum(0), eye)
    given_v = np.einsum("vh,vhk->vk", joint / joint.sum(1)[:, None], eye)
    redraw = {
        "v": np.broadcast_to(given_h[None], eye.shape).reshape(32, 32),
        "h": np.broadcast_to(given_v[:, None], eye.shape).reshape(32, 32),
    }
    expected = sum(
        p * np.linalg.multi_dot([np.eye(32), *(redraw[b] for b in word), np.eye(32)])
        for p, word in words
    )
    chain = kernel.chain(PAIR)
    assert_close(chain.matrix(), expected, DIRECT)
    assert kernel.is_reversible == chain.is_reversible == is_reversible
    cost = sum(p * sum({"v": 2, "h": 3}[b] for b in word) for p, word in words)
    assert abs(kernel.site_updates(PAIR) - cost) < 1e-12
    noise = np.diag(oracle.noise_matrix(expected, pi, np.asarray(tq.observables(PAIR))))
    snr = tq.QStruct(kernel, 2)(PAIR, random_law(2))
    assert_close(snr.parameter_mse, noise, DIRECT)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["random", "palindromic", "alternating"])
def test_a_kernel_steps_as_its_chain_on_any_blocks(name):
    # From one state, the law of the next is a row of the matrix.
    ring = tq.BoltzmannMachine(
        jnp.full(5, 0.6), edges=[(i, (i + 1) % 5) for i in range(5)]
    )
    kernel = type(KERNELS[name])(ring.colouring())
    row = np.asarray(kernel.chain(ring).matrix())[7]
    x = jnp.broadcast_to(jnp.asarray(oracle.states(5)[7]), (40_000, 5))
    after = kernel.step(jr.key(0), ring, x)
    found = np.asarray(tq.empirical_distribution(after))
    error = np.sqrt(row * (1 - row) / len(x))
    assert np.all(np.abs(found - row) <= 5 * error + 1e-12)


class Late(tq.solvers.AbstractSolver):
    """A solver that is one per cent off."""

    throw: bool = True

    def init(self, system):
        return system.matrix()

    def compute(self, state, b, options):
        return 1.01 * jnp.linalg.solve(state, b), jnp.zeros(b.shape[1], int)

    def transpose(self, state):
        return state.T


class Right(Late):
    def compute(self, state, b, options):
        return jnp.linalg.solve(state, b), jnp.zeros(b.shape[1], int)


@pytest.mark.quick(1)
@pytest.mark.parametrize("kernel", ["gibbs", "alternating"])
def test_a_solver_that_is_wrong_is_not_believed(kernel):
    model, data = machine(4, 2, biased=True), random_law(2)
    wrong = tq.QStruct(KERNELS[kernel], 2, solver=Late(throw=False))(model, data)
    assert (wrong.stats.result == 2).all()

    def noise(model, solver):
        return tq.QStruct(KERNELS[kernel], 2, solver=solver)(model, data).mse

    for fn in (noise, jax.grad(noise, allow_int=True)):
        found, expected = fn(model, Right()), fn(model, tq.Direct())
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            assert_close(a, b, DIRECT)


class Claims(tq.markov.AbstractChain):
    """A chain, with what it claims to be."""

    transition: jax.Array
    log_stationary: jax.Array
    is_reversible = True

    def apply(self, f):
        return self.transition @ f


class Claiming(tq.markov.AbstractKernel):
    law: tuple = (0.5, 0.5)
    is_reversible = True

    def chain(self, model):
        flips = jnp.array([[0.9, 0.1], [0.1, 0.9]])
        return Claims(flips, jnp.log(jnp.array(self.law)))

    def stepper(self, model):
        return lambda key, x: x

    def site_updates(self, model):
        return 1


@pytest.mark.slow
def test_a_chain_that_claims_another_law_is_not_certified():
    assert tq.certify(Claiming(), machine(1)).ok
    wrong = tq.certify(Claiming((0.6, 0.4)), machine(1))
    assert {"stationarity", "detailed_balance"} <= set(wrong.failed)
    wrong = tq.certify(Claiming((1.0, 1.0)), machine(1))
    assert "stationarity" in wrong.failed


class Eager(tq.markov.AbstractFlipRule):
    """In detailed balance, and with probabilities above one."""

    factor: float = 1.5

    def acceptance(self, delta):
        return self.factor * jnp.exp(jnp.minimum(delta, 0))


@pytest.mark.quick(1)
@pytest.mark.parametrize("factor", [1.5, 2.0, jnp.nan])
def test_probabilities_that_are_none_are_not_certified(factor):
    certificate = tq.certify(tq.markov.RandomScan(Eager(factor)), rbm(2, 2, scale=0.1))
    assert "positivity" in certificate.failed


def test_noise_that_is_no_number_raises():
    kernel = tq.markov.RandomScan(Eager(jnp.nan))
    with pytest.raises(eqx.EquinoxRuntimeError, match="The variance of a window is"):
        tq.QOperational(kernel, 10)(rbm(2, 2), random_law(2))


class Hopeful(Eager):
    """Claims that no eigenvalue is negative, and one is -1."""

    @property
    def is_positive(self):
        return True


def test_noise_that_is_negative_raises():
    # Nearly free spins with a Metropolis rule: all but one eigenvalue are negative.
    kernel, data = tq.markov.RandomScan(Hopeful(1.0)), jnp.full(2, 0.5)
    model = tq.RBM(jnp.array([[0.01]]), jnp.array([0.01]), jnp.array([0.01]))
    with pytest.raises(eqx.EquinoxRuntimeError, match="only claim `is_positive`"):
        tq.QOperational(kernel, 5001, start=tq.Stationary())(model, data)


@pytest.mark.parametrize(
    "orders",
    [
        [(0.5, (0, 1))],
        [(1.5, (0, 1)), (-0.5, (1, 0))],
        [(jnp.nan, (0, 1))],
        [(1.0, (0, -1))],
        [(1.0, (0, 2))],
        [(1.0, ())],
    ],
    ids=["sum", "negative", "nan", "minus one", "two", "empty"],
)
def test_orders_are_checked(orders):
    class Given(tq.markov.AbstractScan):
        def orders(self, n_blocks):
            return tuple(orders)

    kernel = tq.markov.BlockGibbs(Given())
    for use in (lambda: kernel.chain(PAIR).matrix(), lambda: kernel.stepper(PAIR)):
        with pytest.raises(ValueError, match="positive probabilities that sum to 1"):
            use()


class Untransposed(Right):
    def transpose(self, state):
        return tq.solvers.AbstractSolver.transpose(self, state)


def test_a_solver_without_a_transpose_is_for_what_is_self_adjoint():
    model, data = machine(4, 2, biased=True), random_law(2)

    def noise(model, kernel):
        return tq.QStruct(KERNELS[kernel], 2, solver=Untransposed())(model, data).mse

    grads = eqx.filter_grad(noise)(model, "gibbs")
    assert jnp.all(jnp.isfinite(grads.couplings))
    ring = tq.BoltzmannMachine(jnp.full(3, 0.4), edges=[(0, 1), (1, 2), (2, 0)])
    kernel = tq.AlternatingBlockGibbs(ring.colouring())
    with pytest.raises(ValueError, match="Untransposed has no `transpose`"):
        tq.QStruct(kernel, 2, solver=Untransposed())(ring, jnp.full(8, 0.125))


@pytest.mark.slow
def test_the_gradient_of_a_chain_that_is_not_self_adjoint():
    ring = tq.BoltzmannMachine(
        jnp.array([0.4, -0.2, 0.3, 0.5, 0.1]),
        edges=[(i, (i + 1) % 5) for i in range(5)],
    )
    kernel, data = tq.AlternatingBlockGibbs(ring.colouring()), random_law(5)

    def log_q(model, solver):
        return tq.QStruct(kernel, 1000, solver=solver)(model, data).log_q

    grads = [eqx.filter_grad(log_q)(ring, s).couplings for s in (Right(), tq.Direct())]
    assert_close(*grads, DIRECT)


def test_a_model_without_parameters_is_told():
    class Rigid(tq.AbstractEnergyModel):
        n_visible: int = 2
        n_hidden: int = 0

        def energy(self, x):
            return 0.3 * x[0] * x[1]

    with pytest.raises(ValueError, match="This Rigid has no parameters"):
        tq.QStruct(tq.RandomScanGibbs(), 10)(Rigid(), jnp.full(4, 0.25))


class Product(tq.AbstractEnergyModel):
    """Couplings that are computed from parameters, without an equivalent."""

    left: jax.Array
    right: jax.Array
    n_visible: int = 2
    n_hidden: int = 3

    def energy(self, x):
        return tq.RBM(self.weights).energy(x)

    @property
    def weights(self):
        # Linear in no parameter.
        return jnp.tanh(self.left) @ self.right.T**3


class Known(Product):
    @property
    def equivalent(self):
        return tq.RBM(self.weights)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["gibbs", "random", "alternating"])
def test_an_equivalent_changes_nothing_but_the_time(name):
    # Neither the laws nor Q, nor derivatives by the parameters of the model.
    factors, data = jr.normal(jr.key(0), (5, 2)), random_law(2)
    kernel = KERNELS[name]

    @partial(jax.jit, static_argnums=0)
    def jacobian(kind, factors, weights):
        def results(factors):
            model = kind(factors[:2], factors[2:]).tempered(0.5)
            parts = (
                tq.QStruct(kernel, 100)(model, data).parameter_mse,
                model.free_energies(),
                model.hidden_free_energies(),
            )
            return sum(
                jnp.vdot(w, p) for w, p in zip(weights, parts, strict=True)
            ), parts

        return jax.grad(results, has_aux=True)(factors)

    weights = [jr.normal(jr.key(1), (n,)) for n in (10, 4, 8)]
    found, expected = (
        jax.tree.leaves(jacobian(kind, factors, weights)) for kind in (Known, Product)
    )
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, DIRECT)
    model = Known(factors[:2], factors[2:])
    assert model.is_symmetric and len(model.colouring()) == 2
    assert tq.certify(kernel, model).ok


@pytest.mark.slow
def test_the_noise_of_more_units_than_a_table_takes():
    # Conditional variances are then curvatures of free energies and of mean energies.
    factors = 0.5 * jr.normal(jr.key(0), (14, 1))
    found, expected = (
        tq.QStruct(KERNELS["random"], 100)(
            kind(factors[:7], factors[7:], 7, 7), random_law(7)
        ).parameter_mse
        for kind in (Known, Product)
    )
    assert_close(found, expected, DIRECT)


def test_the_equivalent_of_a_tempered_model():
    model = Known(*jnp.split(jr.normal(jr.key(1), (5, 2)), [2]))
    found = model.tempered(0.5).equivalent
    assert isinstance(found, tq.RBM)
    assert_close(found.weights, 0.5 * model.weights, IDENTITY)


@pytest.mark.parametrize("fn", [tq.markov.resolvent, tq.markov.resolvent_trace])
def test_no_functions_at_all(fn):
    chain = tq.RandomScanGibbs().chain(PAIR)
    with pytest.raises(ValueError, match="at least one, have shape"):
        fn(chain, jnp.zeros((32, 0)))
