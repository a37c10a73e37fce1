"""Bad input: one row for every raise, with the exact type and message."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import KERNELS, REVERSIBLE, machine, neural, random_law, rbm

import trainq as tq
from trainq import _spins, plot
from trainq.markov import DenseChain


pytestmark = pytest.mark.usefixtures("as_for_users")
NAN = float("nan")
GIBBS = KERNELS["gibbs"]
ALTERNATING = KERNELS["alternating"]
PLAIN = np.array([[0.0, 1.0], [1.0, 0.0]])
UNITS_30 = tq.RBM(np.zeros((15, 15)))
LAYERS_21 = tq.RBM(np.zeros((21, 21)))
SAMPLES = np.ones((3, 2))
LAW = np.full(4, 0.25)
STATE = tq.start_chains(jr.key(0), rbm(1, 1), 3)


def of_functions(fn, *rest):
    """`fn` of a chain and a function of its states."""

    def of_a_chain(chain):
        return fn(chain, jnp.ones((4, 1)), *rest)

    of_a_chain.__name__ = fn.__name__
    return of_a_chain


def hitting_times(chain):
    return tq.markov.hitting_times(chain, jnp.ones(4, bool))


OF_A_CHAIN = [
    tq.markov.spectral_gap,
    tq.markov.parity_gaps,
    tq.markov.slowest_mode,
    tq.markov.sweep_conductance,
    tq.markov.cheeger_margins,
    tq.markov.cheeger_margin,
    tq.markov.row_sum_residual,
    tq.markov.positivity_residual,
    tq.markov.stationarity_residual,
    tq.markov.detailed_balance_residual,
    tq.markov.symmetry_residual,
    hitting_times,
    of_functions(tq.markov.resolvent),
    of_functions(tq.markov.solve_resolvent),
    of_functions(tq.markov.resolvent_trace),
    of_functions(tq.markov.asymptotic_covariance),
    of_functions(tq.markov.window_moments, 3),
    of_functions(tq.markov.modes),
    of_functions(tq.markov.autocorrelation_times),
]


def chain(model=None):
    return GIBBS.chain(rbm(2, 2) if model is None else model)


def traced_machine():
    build = eqx.filter_jit(lambda j: tq.BoltzmannMachine(j).couplings)
    return build(jnp.triu(jnp.ones((3, 3))))


def edges(pairs):
    return tq.BoltzmannMachine(np.ones(len(pairs)), edges=np.array(pairs))


def not_finite(leaf):
    return leaf * NAN if eqx.is_inexact_array(leaf) else leaf


class Infinite(tq.AbstractEnergyModel):
    n_visible = 2
    n_hidden = 0

    def energy(self, x):
        return jnp.where(x[0] > 0, jnp.inf, 0.0)


STATIC = {
    # models
    "weights of one axis": (lambda: tq.RBM(np.zeros(3)), r"weights has shape \(n_vis"),
    "no units": (lambda: tq.RBM(np.zeros((0, 3))), r"both at least 1, but \(0, 3\)"),
    "visible bias": (
        lambda: tq.RBM(np.zeros((2, 3)), np.zeros(3)),
        r"visible_bias has shape \(2,\).* but \(3,\) was given",
    ),
    "hidden bias": (
        lambda: tq.RBM(np.zeros((2, 3)), None, np.zeros(2)),
        r"hidden_bias has shape \(3,\).* but \(2,\) was given",
    ),
    "state of an rbm": (
        lambda: rbm(2, 2).energy(jnp.ones(3)),
        r"shape \(\.\.\., 4\), visible units first, but an array of shape \(3,\)",
    ),
    "state of a machine": (
        lambda: machine(4).energy(jnp.ones((2, 3))),
        r"shape \(\.\.\., 4\), visible units first, but an array of shape \(2, 3\)",
    ),
    "couplings of three axes": (
        lambda: tq.BoltzmannMachine(np.zeros((2, 2, 2))),
        r"shape \(2, 2, 2\) was given without edges",
    ),
    "couplings without edges": (
        lambda: tq.BoltzmannMachine(np.zeros(3)),
        r"\(n_edges,\) values together with `edges`",
    ),
    "couplings of a table": (
        lambda: tq.BoltzmannMachine(np.zeros((2, 3))),
        r"symmetric \(n_units, n_units\) matrix, but an array of shape \(2, 3\) was",
    ),
    "matrix of values": (
        lambda: tq.BoltzmannMachine.from_matrix(np.zeros(3)),
        r"shape \(3,\) was given. For one value an edge, use `.*from_edges`",
    ),
    "edges of a matrix": (
        lambda: tq.BoltzmannMachine.from_edges([[0, 1]], np.zeros((2, 2))),
        r"shape \(2, 2\) was given. For a matrix, use `.*from_matrix`",
    ),
    "rows of another number": (
        lambda: tq.BoltzmannMachine(np.zeros((2, 2)), n_units=3),
        r"symmetric \(3, 3\) matrix, but an array of shape \(2, 2\) was given",
    ),
    "edge past the number": (
        lambda: tq.BoltzmannMachine.from_edges([[0, 2]], np.zeros(1), n_units=2),
        "name unit 2, but there are 2 units: the given n_units",
    ),
    "biases of another number": (
        lambda: tq.BoltzmannMachine.from_edges(
            [[0, 1]], np.zeros(1), np.zeros(2), n_units=3
        ),
        r"bias has shape \(3,\).* but \(2,\) was given",
    ),
    "machine of no units": (
        lambda: tq.BoltzmannMachine.from_edges([[0, 1]], np.zeros(1), n_units=0),
        "n_units is a whole number of units, at least 1, but 0 was given",
    ),
    "no edges and nothing else": (
        lambda: tq.BoltzmannMachine(np.zeros(0), edges=np.zeros((0, 2), int)),
        "at least one unit, but none was given.* need `n_units`",
    ),
    "one value an edge": (
        lambda: tq.BoltzmannMachine(np.zeros(3), edges=np.array([[0, 1]])),
        "one value for each of the 1 edges, but 3 were given",
    ),
    "machine without units": (
        lambda: tq.BoltzmannMachine(np.zeros((0, 0))),
        "at least one unit",
    ),
    "edge to nowhere": (
        lambda: tq.BoltzmannMachine(np.zeros((2, 2)), edges=np.array([[0, 2]])),
        "name unit 2, but there are 2 units: rows of couplings",
    ),
    "edge without a bias": (
        lambda: tq.BoltzmannMachine(np.zeros(1), np.zeros(2), edges=[[0, 2]]),
        "name unit 2, but there are 2 units: values of bias",
    ),
    "more visible units than biases": (
        lambda: tq.BoltzmannMachine(np.zeros(1), np.zeros(2), 3, edges=[[0, 1]]),
        "between 1 and the 2 units, but 3 was given",
    ),
    "bias of a machine": (
        lambda: tq.BoltzmannMachine(np.zeros((2, 2)), np.zeros(3)),
        r"bias has shape \(2,\).* but \(3,\) was given",
    ),
    "visible units that are no whole number": (
        lambda: tq.BoltzmannMachine(np.zeros((2, 2)), n_visible=1.0),
        "n_visible is a whole number of units, at least 1, but 1.0 was given",
    ),
    "complex weights": (
        lambda: tq.RBM(np.zeros((2, 2), complex)),
        r"weights is in float32 or float64, but complex.*x\.real\.astype",
    ),
    "too many visible units": (
        lambda: tq.BoltzmannMachine(np.zeros((2, 2)), n_visible=3),
        "between 1 and the 2 units, but 3 was given",
    ),
    "triangular couplings": (
        lambda: tq.BoltzmannMachine(np.triu(np.ones((3, 3)), 1)),
        r"symmetric matrix.*give `J \+ J\.T`",
    ),
    "coupling without its edge": (
        lambda: tq.BoltzmannMachine(1 - np.eye(3), edges=np.array([[0, 1]])),
        "zeros on its diagonal and wherever `edges`",
    ),
    "edges of floats": (lambda: edges([[0.0, 1.0]]), "edges is an integer array"),
    "loop": (lambda: edges([[1, 1]]), "joins two different units"),
    "edge given twice": (lambda: edges([[0, 1], [1, 0]]), "Each edge is given once"),
    "temperature": (lambda: neural(2, 1).tempered(NAN), "beta is .* number, but nan"),
    "code size": (
        lambda: tq.CouplingNetwork(0, 2, 2, key=jax.random.key(0)),
        "code_size is a whole number, at least 1, but 0 was given",
    ),
    "patterns": (
        lambda: tq.planted_rbm(jax.random.key(0), 3, 0, 1.0),
        "n_patterns is a whole number of hidden units, at least 1, but 0 was given",
    ),
    "block of a start": (
        lambda: tq.start_chains(
            jax.random.key(0),
            machine(24, 2),
            4,
            tq.FromData(),
            jnp.ones((3, 2)),
        ),
        r"hidden block of 21 units.*chains start from `Uniform\(\)`",
    ),
    # laws
    "shape of the data": (
        lambda: tq.kl_divergence(rbm(2, 2), jnp.ones(8) / 8),
        r"shape \(2\*\*2,\) = \(4,\), but \(8,\) was given",
    ),
    "boolean state": (
        lambda: rbm(2, 2).energy(jnp.ones(4, bool)),
        "array of bool was given",
    ),
    "boolean state of a machine": (
        lambda: machine(4).energy(jnp.ones(4, bool)),
        "array of bool was given",
    ),
    "unsigned samples": (
        lambda: tq.empirical_distribution(jnp.ones((3, 2), jnp.uint8)),
        "array of uint8 was given. Use floats or signed integers",
    ),
    "complex state": (
        lambda: GIBBS.step(jr.key(0), rbm(2, 2), jnp.ones(4, complex)),
        "array of complex128 was given. Use floats or signed integers",
    ),
    "half precision data": (
        lambda: tq.kl_divergence(rbm(2, 2), jnp.full(4, 0.26, jnp.bfloat16)),
        "data is in float32 or float64, but bfloat16 was given",
    ),
    "complex data": (
        lambda: tq.kl_divergence(rbm(2, 2), LAW + 0j),
        "data is in float32 or float64, but complex128 was given",
    ),
    "no samples": (
        lambda: tq.empirical_distribution(jnp.ones((0, 2))),
        r"At least one sample .* shape is \(0, 2\)",
    ),
    "samples without an axis": (
        lambda: tq.empirical_distribution(jnp.ones(())),
        r"shape \(\.\.\., n_units\).* shape \(\) was given",
    ),
    "boolean samples": (
        lambda: tq.empirical_distribution(jnp.ones((3, 2), bool)),
        r"array of bool was given.*2 \* x\.astype\(float\) - 1",
    ),
    "too many units": (
        lambda: tq.observables(UNITS_30),
        r"2\*\*30 is too many, and at most 28 units are allowed here. .*`trainq.QSamp",
    ),
    "scattered mask": (lambda: _spins.xor(jnp.ones(8), 5), "mask 101 are not contig"),
    # kernels and chains
    "chain of too many units": (lambda: GIBBS.chain(UNITS_30), r"2\*\*30 is too many"),
    "state of a sampler": (
        lambda: GIBBS.step(jax.random.key(0), rbm(2, 2), jnp.ones((5, 3))),
        r"States have shape \(\.\.\., 4\).* shape \(5, 3\) was given",
    ),
    "layer too large to redraw": (
        lambda: KERNELS["random"].step(jr.key(0), neural(21, 1), jnp.ones(22)),
        r"visible block of 21 units: .* at most 20 .*Gibbs\(model.colouring\(\)\)`",
    ),
    "layer too large to redraw, in a run": (
        lambda: tq.run(
            ALTERNATING, machine(22), tq.start_chains(jr.key(0), machine(22), 2), 3
        ),
        r"visible block of 21 units: .* at most 20 .*blocks=model.colouring\(\)`",
    ),
    "matrix of too many units": (
        lambda: chain(tq.RBM(np.zeros((7, 7)))).matrix(),
        "matrix of 14 units: .* at most 13 units are allowed here",
    ),
    "function on a chain": (
        lambda: tq.markov.resolvent(chain(), jnp.ones(8)),
        r"shape \(16,\) or \(16, n_obs\), but \(8,\) was given",
    ),
    "sector of a chain without": (
        lambda: tq.markov.spectral_gap(chain(rbm(2, 2, biased=True)), "even"),
        "even sector was asked for, but this chain is not symmetric",
    ),
    "conjugate gradients of a chain that is not reversible": (
        lambda: tq.markov.resolvent_trace(
            DenseChain(ALTERNATING.chain(rbm(2, 2)).matrix(), is_reversible=False),
            jnp.ones(16),
            solver=tq.ConjugateGradient(),
        ),
        r"Conjugate gradients need a self-adjoint system.* Use `Direct\(\)`",
    ),
    "tolerance": (
        lambda: tq.ConjugateGradient(rtol=-1.0),
        "rtol of a `ConjugateGradient` is a finite number of at least 0, but -1.0",
    ),
    "no tolerance": (
        lambda: tq.ConjugateGradient(rtol=0.0),
        "with rtol = 0 and atol = 0 never stops",
    ),
    "no steps": (
        lambda: tq.ConjugateGradient(max_steps=0),
        "max_steps of a `ConjugateGradient` is a finite number of at least 1, but 0",
    ),
    "empty block": (lambda: tq.ConjugateGradient(block=0), "block of a .* but 0 was"),
    "shape of directions": (
        lambda: tq.QStruct(GIBBS, 10).along(rbm(2, 2), LAW, jnp.ones((1, 3))),
        r"directions has shape \(n_directions, 4\).* but \(1, 3\) was given",
    ),
    "guess of another model": (
        lambda: tq.QStruct(GIBBS, 10).from_guess(
            rbm(2, 2), LAW, tq.QStruct(GIBBS, 10).zero_guess(rbm(2, 3), LAW)
        ),
        "The guess has shape .* needed: it is of another model",
    ),
    "one probe": (
        lambda: tq.QStruct(GIBBS, 10).randomised(jr.key(0), rbm(2, 2), LAW, 1),
        "n_probes is a whole number, at least 2, but 1 was given",
    ),
    "direct solve too large": (
        lambda: tq.markov.resolvent_trace(
            chain(), jnp.ones(16), solver=tq.Direct(max_states=2)
        ),
        "direct solve of 4 states is too large: at most 2",
    ),
    "convention": (
        lambda: tq.QStruct(GIBBS, 10, "exact"),
        '"resolvent" or "sokal", but \'exact\' was given',
    ),
    "covariance of one function": (
        lambda: tq.markov.asymptotic_covariance(chain(), jnp.ones(16)),
        r"shape \(16, n_obs\), but \(16,\) was given.*f\[:, None\]",
    ),
    "matrix that is not square": (
        lambda: DenseChain(np.ones((2, 3))),
        r"square, but the shape \(2, 3\) was given",
    ),
    "shape of a law": (
        lambda: DenseChain(PLAIN, np.ones(3) / 3),
        r"law has shape \(2,\), but \(3,\) was given",
    ),
    "traced and maybe reversible": (
        lambda: jax.jit(lambda p: DenseChain(p).stationary)(PLAIN),
        "give `is_reversible=True` or `False`",
    ),
    "shape of a target": (
        lambda: tq.markov.hitting_times(chain(), jnp.ones(8, bool)),
        r"each of the 16 states, but an array of shape \(8,\)",
    ),
    "target of integers": (
        lambda: tq.markov.hitting_times(chain(), jnp.ones(16, int)),
        "one boolean for each .* dtype int",
    ),
    "derivative of a mode": (
        lambda: eqx.filter_grad(lambda m: tq.markov.slowest_mode(chain(m)).mode[0])(
            rbm(2, 2)
        ),
        "slowest mode has no derivative",
    ),
    # reversibility
    **{
        f"{name} of a chain that is not reversible": (
            lambda fn=fn: fn(ALTERNATING.chain(rbm(2, 2))),
            rf"The {what} needs a reversible chain.*`PalindromicBlockGibbs`",
        )
        for name, what, fn in [
            ("gap", "spectral gap", tq.markov.spectral_gap),
            ("parity gaps", "spectral gap", tq.markov.parity_gaps),
            ("mode", "slowest mode", tq.markov.slowest_mode),
            ("conductance", "sweep conductance", tq.markov.sweep_conductance),
            ("modes", "list of modes", of_functions(tq.markov.modes)),
            ("margin", "Cheeger margin", tq.markov.cheeger_margin),
        ]
    },
    "single gap of a chain that is not reversible": (
        lambda: tq.SingleGap(ALTERNATING, 10)(rbm(2, 2), LAW),
        "slowest mode needs a reversible chain",
    ),
    # predictors
    "window of zero": (lambda: tq.QStruct(GIBBS, 0), "positive number .* but 0 was"),
    "negative window": (
        lambda: tq.SingleGap(GIBBS, -5),
        "positive .* but -5 was given",
    ),
    "window that is no number": (lambda: tq.QStruct(GIBBS, NAN), "but nan was given"),
    "half a step": (
        lambda: tq.QOperational(GIBBS, 2.5),
        "window is a whole number of kernel steps, at least 1, but 2.5 was given",
    ),
    "no step": (lambda: tq.QOperational(GIBBS, 0), "window .* at least 1, but 0 was"),
    "negative burn-in": (
        lambda: tq.QOperational(GIBBS, 5, -1),
        "burn_in is a whole number of kernel steps, at least 0, but -1 was given",
    ),
    "no chain": (
        lambda: tq.QOperational(GIBBS, 5, n_chains=0),
        "n_chains is a whole number, at least 1, but 0 was given",
    ),
    "no data": (
        lambda: tq.QOperational(GIBBS, 5, batch=0),
        "batch is a whole number of samples, at least 1, but 0 was given",
    ),
    **{
        f"window {window!r}": (
            lambda w=window: tq.QStruct(GIBBS, w),
            "window is a finite positive number of kernel steps, but",
        )
        for window in ("a", True, None, 0, float("nan"))
    },
    "traced window": (
        lambda: jax.jit(lambda w: tq.SingleGap(GIBBS, w).window)(jnp.ones(2)),
        r"window is a finite positive number.* float64\[2\] was given",
    ),
    "window of a run as a float": (
        lambda: tq.QOperational(GIBBS, 5.0),
        "window is a whole number of kernel steps, at least 1, but 5.0",
    ),
    "shape of a start": (
        lambda: tq.QOperational(GIBBS, 5, start=tq.Law(jnp.ones(3)))(rbm(2, 2), LAW),
        r"law of a start has shape \(16,\), .* that of this Law has \(3,\)",
    ),
    "shape of a start, drawn": (
        lambda: tq.start_chains(jr.key(0), rbm(2, 2), 3, tq.Law(jnp.ones(3))),
        r"law of a start has shape \(16,\), .* that of this Law has \(3,\)",
    ),
    "state of a start": (
        lambda: tq.QOperational(GIBBS, 5, start=tq.At(jnp.ones(3)))(rbm(2, 2), LAW),
        r"States have shape \(\.\.\., 4\).* an array of shape \(3,\)",
    ),
    "many states for one": (
        lambda: tq.start_chains(jr.key(0), rbm(2, 2), 3, tq.At(jnp.ones((3, 4)))),
        r"one state, of shape \(4,\), but \(3, 4\) .*ChainState.begin",
    ),
    "start from no data": (
        lambda: tq.start_chains(jr.key(0), rbm(2, 2), 3, tq.FromData()),
        "`FromData` starts chains from the data, but none were given",
    ),
    "start from data of another model": (
        lambda: tq.start_chains(jr.key(0), rbm(2, 2), 3, tq.FromData(), jnp.ones(8)),
        r"data is a law .* of shape \(2\*\*2,\) = \(4,\), but \(8,\)",
    ),
    "start of too many units": (
        lambda: tq.Uniform().law(UNITS_30),
        r"2\*\*30 is too many",
    ),
    "weights of other samples": (
        lambda: tq.kl_gradient(rbm(2, 2), SAMPLES, np.ones(2)),
        r"of shape \(3,\), one for each sample, but an array of shape \(2,\)",
    ),
    "weights of a law": (
        lambda: tq.log_likelihood(rbm(2, 2), LAW, np.ones(4)),
        "a law has its own",
    ),
    "exact start of too many units": (
        lambda: tq.start_chains(jr.key(0), LAYERS_21, 3, tq.Stationary()),
        "exact draw chooses from of 21 units: .* at most 20 .* `Uniform",
    ),
    "law of a window": (
        lambda: tq.markov.window_moments(chain(), jnp.ones(16), 5, law=LAW),
        r"law is a law of the 16 states, of shape \(16,\), but \(4,\) was given",
    ),
    "windows of a plot": (
        lambda: plot.windows(GIBBS, rbm(2, 2), LAW, np.geomspace(1, 100, 3)),
        r"windows is a whole number .* but .* was given. .* array by `.astype\(int\)`",
    ),
    "steps of a window": (
        lambda: tq.markov.window_moments(chain(), jnp.ones(16), True),
        "window is a whole number of kernel steps, at least 1, but True was given",
    ),
}


@pytest.mark.quick(25)
@pytest.mark.parametrize("case", STATIC)
def test_mistakes_of_shape_or_value_raise_while_tracing(case):
    fn, message = STATIC[case]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        fn()


COLD = tq.RBM(60 * np.ones((2, 2)))
# Flips between the wells of a frozen one have a probability below all numbers.
FROZEN = tq.RBM(400 * np.ones((2, 2)))
# Bits for spins, by the argument that they are given as.
BITS = {
    "start of 0 and 1": (
        lambda x: tq.QOperational(GIBBS, 5, start=tq.At(x))(rbm(2, 2), LAW).q,
        jnp.zeros(4),
    ),
    "values of 0 and 1": (
        lambda x: rbm(2, 2).clamp([0], x).energy(jnp.ones(3)),
        jnp.zeros(1),
    ),
    "chains of 0 and 1": (
        lambda x: tq.sampling.ChainState.begin(x, jax.random.key(0)).x,
        jnp.zeros((3, 4), int),
    ),
    "patterns of 0 and 1": (lambda x: tq.hopfield(x, 1.0).couplings, jnp.zeros((2, 4))),
    "samples of 0 and 1": (tq.empirical_distribution, jnp.zeros((3, 2))),
    "data of 0 and 1": (partial(tq.kl_gradient, rbm(2, 2)), jnp.zeros((3, 2))),
    "likelihood of 0 and 1": (
        partial(tq.log_likelihood, rbm(2, 2)),
        jnp.zeros((3, 2)),
    ),
    "free energy of 0 and 1": (partial(tq.free_energy, rbm(2, 2)), jnp.zeros(2)),
    **{
        f"state of 0 and 1 in {name}": (
            partial(kernel.step, jax.random.key(0), rbm(2, 2)),
            jnp.zeros(4),
        )
        for name, kernel in KERNELS.items()
    },
}


@pytest.mark.parametrize("case", BITS)
def test_bits_raise_at_once_and_name_an_entry(case):
    fn, x = BITS[case]
    at = r"\[" + ", ".join("0" * x.ndim)
    message = rf"Spins are -1 or \+1, but the entry {at}\] is 0. Convert bits, 0 and 1"
    with pytest.raises(ValueError, match=message):
        fn(x)
    fn(2 * x - 1)  # as it says
    # One wrong number, at the end.
    wrong = jnp.ones(x.size).at[-1].set(0.5).reshape(x.shape)
    last = ", ".join(str(n - 1) for n in x.shape)
    with pytest.raises(ValueError, match=rf"entry \[{last}\] is 0.5"):
        fn(wrong)


def test_constant_bits_raise_at_once_while_others_are_traced():
    x = jnp.zeros(4)
    with pytest.raises(ValueError, match=r"the entry \[0\] is 0"):
        jax.jit(lambda y: y + GIBBS.step(jax.random.key(0), rbm(2, 2), x))(1.0)


FAULTS = {
    "two chains in one": (
        lambda: tq.markov.resolvent(
            DenseChain(np.kron(np.eye(2), np.full((2, 2), 0.5)), LAW),
            jnp.array([1.0, 0.0, 0.0, 0.0]),
        ),
        "could not be solved",
    ),
    "two chains without a law": (
        lambda: DenseChain(np.kron(np.eye(2), np.full((2, 2), 0.5))),
        "falls apart into several has many",
    ),
    "law that is wrong where it is small": (
        lambda: DenseChain(
            np.array([[1 - 1e-9, 1e-9], [0.5, 0.5]]), np.array([1 - 1e-9, 1e-9])
        ),
        "not a positive stationary law",
    ),
    "law of a chain in two parts": (
        lambda: DenseChain(
            np.kron(np.eye(2), [[0.9, 0.1], [0.2, 0.8]]), np.full(4, 0.25)
        ),
        "not a positive stationary law",
    ),
    "one way and said to be reversible": (
        lambda: DenseChain(
            0.999 * np.eye(16) + 0.001 * np.roll(np.eye(16), 1, axis=1),
            is_reversible=True,
        ),
        "not reversible, though",
    ),
    "function of a window that is no number": (
        lambda: tq.markov.window_moments(chain(), jnp.full(16, NAN), 3),
        "A function of the states is not finite",
    ),
    "weights that are not finite": (
        lambda: tq.log_partition(tq.RBM(np.array([[NAN]]))),
        "parameter of this RBM is not finite",
    ),
    "weights, when asked for the gradient": (
        lambda: tq.QStruct(GIBBS, 10)(tq.RBM(np.array([[np.inf, 0]])), LAW[:2] * 2),
        "parameter of this RBM is not finite",
    ),
    "weights, when sampling": (
        lambda: GIBBS.step(jax.random.key(0), tq.RBM(np.array([[NAN]])), jnp.ones(2)),
        "parameter of this RBM is not finite",
    ),
    "function without an expectation": (
        lambda: tq.expectation(rbm(2, 2), lambda x: jnp.where(x[0] > 0, NAN, x)),
        "fn is not finite at a state",
    ),
    "infinite function, among others": (
        lambda: tq.expectation(
            rbm(2, 2), lambda x: (x, (1 / (x[0] - 1)).astype(complex))
        ),
        "fn is not finite at a state",
    ),
    "weights, when asked for observables": (
        lambda: tq.observables(jax.tree.map(not_finite, neural(2, 1))),
        "parameter of this NeuralEnergy is not finite",
    ),
    "energy that is not finite": (
        lambda: tq.log_partition(Infinite()),
        "energy of a state of this Infinite is not finite",
    ),
    "data that do not sum to one": (
        lambda: tq.kl_divergence(rbm(2, 2), jnp.ones(4)),
        "data is not a law",
    ),
    "negative data": (
        lambda: tq.QStruct(GIBBS, 10)(rbm(2, 2), jnp.array([1.5, -0.5, 0, 0])),
        "data is not a law",
    ),
    "data that are not numbers": (
        lambda: tq.kl_divergence(rbm(2, 2), jnp.full(4, NAN)),
        "data is not a law",
    ),
    "start that is not a law": (
        lambda: tq.QOperational(GIBBS, 5, start=tq.Law(jnp.ones(16)))(rbm(2, 2), LAW),
        "start is not a law",
    ),
    "window from what is not a law": (
        lambda: tq.markov.window_moments(chain(), jnp.ones(16), 5, law=jnp.ones(16)),
        "law is not a law",
    ),
    # Those that are traced: others raise at once, as above.
    **{
        f"{name}, traced": (
            lambda fn=fn, x=x: eqx.filter_jit(fn)(x),
            r"Spins are -1 or \+1, but another value was given",
        )
        for name, (fn, x) in BITS.items()
    },
    "traced triangular couplings": (traced_machine, "symmetric matrix, with zeros"),
    "traced window of zero": (
        lambda: eqx.filter_jit(lambda w: tq.QOperational(GIBBS, w).window)(
            jnp.array(0)
        ),
        "window is at least 1 kernel steps, but a smaller one",
    ),
    "traced window that is too long": (
        lambda: eqx.filter_jit(lambda w: tq.QOperational(GIBBS, w).window)(
            jnp.array(1024)
        ),
        "window is at most 1023 kernel steps .* Give a larger `max_steps`",
    ),
    "traced burn-in that is too long": (
        lambda: eqx.filter_jit(lambda b: tq.QOperational(GIBBS, 5000, b).burn_in)(
            jnp.array(32768)
        ),
        "burn_in is at most 1023 kernel steps",
    ),
    "traced window that is not positive": (
        lambda: eqx.filter_jit(lambda w: tq.QStruct(GIBBS, w).window)(jnp.array(0.0)),
        "window is a finite positive number of kernel steps, but another",
    ),
    "windows that are pooled": (
        lambda: tq.pool(
            jax.vmap(lambda w: tq.QStruct(GIBBS, w)(rbm(2, 2), LAW))(jnp.arange(1, 3))
        ),
        "different windows, but together",
    ),
    "matrix that is not stochastic": (
        lambda: DenseChain(2 * PLAIN),
        "The matrix is not stochastic",
    ),
    "matrix with a negative entry": (
        lambda: DenseChain(np.array([[1.5, -0.5], [0.5, 0.5]])),
        "The matrix is not stochastic",
    ),
    "law that is not stationary": (
        lambda: DenseChain(PLAIN, np.array([0.3, 0.7])),
        "not a positive stationary law",
    ),
    "transient state": (
        lambda: DenseChain(np.array([[1.0, 0.0], [0.5, 0.5]])),
        "not a positive stationary law",
    ),
    "empty target": (
        lambda: tq.markov.hitting_times(chain(), jnp.zeros(16, bool)),
        "target has no state in it",
    ),
    "target out of reach": (
        lambda: tq.markov.hitting_times(chain(FROZEN), jnp.arange(16) == 0),
        "so cold that its chain is reducible",
    ),
    # The wells of a cold model are connected by flips of probability exp(-120).
    **{
        f"cold model, {name}": (
            lambda k=KERNELS[name]: tq.markov.resolvent_trace(
                k.chain(COLD), jnp.arange(16.0)
            ),
            "so cold that its chain is reducible in floating point",
        )
        for name in [*REVERSIBLE, "alternating"]
    },
    "observable that is not finite": (
        lambda: tq.markov.resolvent_trace(chain(), jnp.full(16, NAN)),
        "an observable or a parameter is not finite",
    ),
}


@pytest.mark.quick(6)
@pytest.mark.parametrize("case", FAULTS)
def test_faulty_values_raise_when_run(case):
    fn, message = FAULTS[case]
    with pytest.raises(eqx.EquinoxRuntimeError, match=f"(?s){message}"):
        jax.block_until_ready(fn())


MISTAKEN = {
    "a solver by name": (
        lambda: tq.QStruct(GIBBS, 10, solver="cg"),
        r"solver is a solver such as `Auto\(\)`.* but 'cg' was given",
    ),
    "a class for a solver": (
        lambda: tq.markov.resolvent(chain(), jnp.ones(16), solver=tq.Direct),
        "solver is a solver .* but Direct was given",
    ),
    "data before the model": (
        lambda: tq.QStruct(GIBBS, 10)(LAW, rbm(1, 1)),
        "model is an energy model .* but an object of type array was given. Look at",
    ),
    "data before the model, sampled": (
        lambda: tq.sampling.QSampled(GIBBS, 10)(jr.key(0), LAW, rbm(1, 1)),
        "model is an energy model .* but an object of type .* was given",
    ),
    "a model for the data": (
        lambda: tq.kl_divergence(rbm(1, 1), rbm(1, 1)),
        "data is a law, as an array, but an object of type RBM was given",
    ),
    "no function": (
        lambda: tq.expectation(rbm(1, 1), 3),
        "fn is a function of one state, but an object of type int was given",
    ),
    "a function before the model": (
        lambda: tq.expectation(jnp.sum, rbm(1, 1)),
        "model is an energy model .* was given. Look at the order",
    ),
    "no model with observables": (
        lambda: tq.observables(LAW),
        "model is an energy model .* was given. Look at the order",
    ),
    "a class of kernels": (
        lambda: tq.QOperational(tq.RandomScanGibbs, 10),
        "but the class RandomScanGibbs was given: make an instance",
    ),
    "a window for a kernel": (
        lambda: tq.QStruct(10, GIBBS),
        "but an object of type int was given",
    ),
    "a model for a kernel": (
        lambda: tq.certify(rbm(1, 1), GIBBS),
        "but an object of type RBM was given",
    ),
    "a model for a kernel, in a budget": (
        lambda: tq.sampling.exact_errors(rbm(1, 1), GIBBS, LAW),
        "but an object of type RBM was given",
    ),
    "a start by name": (
        lambda: tq.QOperational(GIBBS, 5, start="uniform"),
        r"start is an object such as `Uniform\(\)`.* but 'uniform' was given",
    ),
    "a class for a start": (
        lambda: tq.sampling.QSampled(GIBBS, 5, start=tq.Uniform),
        "start is an object .* but Uniform was given",
    ),
    "a state for a start": (
        lambda: tq.start_chains(jr.key(0), rbm(1, 1), 3, [1, 1]),
        r"start is an object .* but \[1, 1\] was given",
    ),
    "a state for a start, in a table": (
        lambda: tq.sampling.exact_errors(GIBBS, rbm(1, 1), LAW, start=np.ones(2)),
        "start is an object",
    ),
    "a model for a kernel, in a run": (
        lambda: tq.sampling.run(rbm(1, 1), GIBBS, None, 3),
        "but an object of type RBM was given",
    ),
    "spins for chains": (
        lambda: tq.run(GIBBS, rbm(1, 1), jnp.ones((3, 2)), 3),
        r"`start_chains\(.* type ArrayImpl was given.*`ChainState.begin\(x, key\)`",
    ),
    "chains for spins": (
        lambda: GIBBS.step(jr.key(0), rbm(1, 1), STATE),
        "such as the `x` of a `ChainState`, but an object of type ChainState was given",
    ),
    **{
        f"a {what} for a chain, in {fn.__name__}": (
            lambda fn=fn, given=given: fn(given),
            r"chain is .* as `kernel.chain\(model\)` makes it, but an object of type "
            f"{type(given).__name__} was",
        )
        for what, given in {"kernel": GIBBS, "model": rbm(1, 1)}.items()
        for fn in OF_A_CHAIN
    },
    **{
        f"a run for its values, in {fn.__name__}": (
            lambda fn=fn: fn(tq.run(GIBBS, rbm(1, 1), STATE, 8, keep=True)),
            r"as `run\(\.\.\., keep=True\)\.values`, but an object of type Run was",
        )
        for fn in (
            plot.autocorrelation,
            tq.sampling.autocorrelation_time,
            tq.sampling.autocovariance,
            tq.sampling.r_hat,
            tq.sampling.sampled_time,
        )
    },
    "a number for a key": (
        lambda: tq.sampling.start_chains(0, rbm(1, 1), 3),
        r"such as `jax.random.key\(0\)`, but 0 was given",
    ),
    "a number for the key of states": (
        lambda: tq.sampling.ChainState.begin(np.ones((2, 3)), 0),
        r"such as `jax.random.key\(0\)`, but 0 was given",
    ),
    "a run for its moments": (
        lambda: tq.run(
            GIBBS, rbm(1, 1), STATE, 8, moments=tq.run(GIBBS, rbm(1, 1), STATE, 8)
        ),
        "such as the `moments` of an earlier `Run`, but .* of type Run",
    ),
    "many keys for one": (
        lambda: tq.sampling.QSampled(GIBBS, 5)(
            jr.split(jr.key(0)), rbm(1, 1), np.full(2, 0.5)
        ),
        r"is one random key, .* but shape \(2,\) was given",
    ),
}


@pytest.mark.parametrize("case", MISTAKEN)
def test_one_thing_for_another_is_a_type_error(case):
    fn, message = MISTAKEN[case]
    with pytest.raises(TypeError, match=message):
        fn()


BATCHES = {
    "rbm": lambda: eqx.filter_vmap(tq.RBM)(jnp.zeros((3, 2, 2))),
    "machine": lambda: eqx.filter_vmap(
        lambda c: tq.BoltzmannMachine(c, edges=np.array([[0, 1]]))
    )(jnp.zeros((3, 1))),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize(
    "use",
    [
        tq.log_partition,
        tq.mean_observables,
        lambda m: tq.kl_divergence(m, LAW),
        lambda m: tq.QStruct(GIBBS, 10)(m, LAW),
        lambda m: tq.sampling.QSampled(GIBBS, 10)(jr.key(0), m, LAW),
        lambda m: tq.log_partition(m.tempered(0.5)),
    ],
)
def test_a_batch_of_models_is_not_one_model(name, use):
    with pytest.raises(ValueError, match="is a batch of models: map the function over"):
        use(BATCHES[name]())
    assert eqx.filter_vmap(tq.log_partition)(BATCHES[name]()).shape == (3,)


def test_a_sampled_ratio_has_none_for_each_parameter():
    found = tq.QSampled(GIBBS, 3, replicates=8)(jr.key(0), rbm(1, 1), LAW[:2] * 2)
    with pytest.raises(AttributeError, match="A SampledSNR has .* `trainq.QStruct`"):
        print(found.parameter_q)


def test_a_failed_certificate_has_an_error_of_its_own():
    certificate = tq.certify(GIBBS, rbm(2, 2), tolerance=-1.0)
    with pytest.raises(tq.markov.CertificateError, match="FAILED"):
        certificate.require()


def test_a_nearly_reducible_chain_is_solved_or_refused():
    # The gap is 1e-16, as large as rounding errors of an eigenvalue. The value is from
    # ball arithmetic of 1000 bits.
    model = tq.RBM(9.0 * np.ones((2, 2)))
    f = jnp.arange(16.0)
    t_o = tq.markov.resolvent_trace(GIBBS.chain(model), f)
    np.testing.assert_allclose(t_o, 4.85013549050459e17, rtol=1e-10)
    # To conjugate gradients the odd sector is one state and its mirror image.
    solver = tq.ConjugateGradient()
    t_o = tq.markov.resolvent_trace(GIBBS.chain(model), f, solver=solver)
    np.testing.assert_allclose(t_o, 4.85013549050459e17, rtol=1e-7)
    # Even observables do not see the gap between opposite wells.
    snr = tq.QStruct(GIBBS, 100)(model, random_law(2))
    assert jnp.isfinite(snr.log_q)
