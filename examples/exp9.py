"""exp9: does adding log Q to the loss steer a model towards trainability?

An energy-based model that is trained from samples stalls once its gradient drowns in
sampling noise. The signal-to-noise ratio Q of that gradient is differentiable, so why
not train for it? This experiment minimises

    L = L_KL + λ (−log Q_pool)

for four small problems and three values of λ, and compares Q *at equal progress in
KL*: at the first steps at which L_KL has fallen to one half (c50) and to one quarter
(c25) of its initial value. Four gates, P1 to P4, turn twelve runs into one outcome.

    python examples/exp9.py                     # the protocol: 12 runs of 2000 steps
    python examples/exp9.py --steps 120         # a quick look, labelled as such
    python examples/exp9.py --teachers hidden   # the other reading of the teachers
    python examples/exp9.py --seeds 5           # how much of the verdict is luck?
    python examples/exp9.py --resume            # after Ctrl-C: keep the finished runs

Read it from top to bottom: constants, task, losses, training, the NumPy oracle, one
run, gates, files, report, figures, command line. The training loop uses public pieces
only, so it is one to copy.
"""

import argparse
import json
import math
import os
import platform
import shlex
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from threadpoolctl import threadpool_limits

import trainq as tq


jax.config.update("jax_enable_x64", True)

Cell = tuple[int, int]
Array = jax.Array
Network = tq.CouplingNetwork
Fields = dict[str, Any]


# ---------------------------------------------------------------------------- constants


@dataclass(frozen=True)
class Constants:
    """Everything that is fixed before a run. Its hash goes into all output.

    "protocol" marks what the published protocol prescribes; "ours" marks what it leaves
    open and we had to choose.
    """

    # The problems: cells (m, s), and the teachers of each. "hidden ∈ {2, 3}" is read as
    # s patterns in both layers of m units, or as s hidden units: see `make_teacher`.
    cells: tuple[Cell, ...] = ((4, 2), (4, 3), (5, 2), (5, 3))  # protocol
    teachers: int = 4  # protocol
    teacher_family: str = "two-layer"  # ours; the other reading is "hidden"
    teacher_beta: float = 3.0  # protocol

    # The student: one network from a teacher's one-hot code to the weights of an RBM
    # with m visible and m hidden units and no biases (protocol).
    network_width: int = 16  # ours
    network_depth: int = 1  # ours
    weight_scale: float = 0.1  # ours

    # The loss: baseline first, then the verdict arm, then any further arms.
    lambdas: tuple[float, ...] = (0.0, 0.1, 0.01)  # protocol
    window_sweeps: int = 250  # ours; Q is proportional to it, so ratios do not depend

    # Training.
    steps: int = 2000  # protocol: the cap
    learning_rate: float = 1e-3  # ours; optimiser Adam is protocol
    crossings: tuple[float, ...] = (0.50, 0.25)  # protocol: checkpoints c50, c25

    # Gates.
    steering_bar: float = 1.5  # protocol
    pairs_above_one: int = 6  # protocol, of 8
    value_tolerance: float = 1e-10  # protocol
    difference_tolerance: float = 1e-4  # protocol
    directions: int = 5  # protocol
    difference_steps: tuple[float, ...] = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)  # ours
    difference_checkpoint: str = "c50"  # ours: where the verdict arm is differenced

    # The seed table: the protocol runs the first; `--seeds n` the first n. Every key is
    # fold_in(fold_in(fold_in(key(seed), m), s), stream).
    seeds: tuple[int, ...] = tuple(range(20))  # ours
    stream_teachers: int = 0  # ours
    stream_network: int = 1  # ours
    stream_directions: int = 2  # ours

    @property
    def matched(self) -> tuple[str, ...]:
        """c50 and c25, the checkpoints at equal progress in KL."""
        return tuple(f"c{100 * level:.0f}" for level in self.crossings)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        return ("init", *self.matched, "final")

    @property
    def primary(self) -> float:
        """λ of the arm that the verdict is about."""
        return self.lambdas[1]

    @property
    def arms(self) -> list[tuple[Cell, float]]:
        """Every run of one seed."""
        return list(product(self.cells, self.lambdas))

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON form."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return sha256(text.encode()).hexdigest()


# Options of the command line replace `steps`, `lambdas` and `teacher_family` alone.
PROTOCOL = Constants()
KERNEL = tq.RandomScanGibbs()
OPTIMISER = optax.adam(PROTOCOL.learning_rate)
CHUNK = 20  # steps per compiled call: how often bars move and the baseline's Q is drawn

# Outcomes 2 and 3 are the protocol's; 1 and 4 are ours, for what is left.
OUTCOMES = {
    1: "not feasible, or not verified",
    2: "feasible, steers",
    3: "feasible, does not steer",
    4: "feasible, but KL progress is lost",
}
DEFINITIONS = {
    "Outcome 1": "P1 fails, or a certificate of P4 does.",
    "Outcome 2": "All four gates pass.",
    "Outcome 3": "P1, P3 and P4 pass, and P2 does not.",
    "Outcome 4": "P1 passes, no certificate fails, and P3 fails: an arm never "
    "crosses c25, so that its pair and its certificates there are missing.",
    "D11.i": "Decomposition: each ratio of Q is a ratio of signals over one of noises.",
    "D11.iv": "Dose response: the ratios of Q against λ.",
}

# The published run, to print beside ours: only these numbers are known of it. Those of
# "arm" are of the verdict arm λ = 0.1, those of "all" of the twelve runs.
PUBLISHED: dict[str, tuple[Any, str]] = {
    "outcome": (3, "arm"),
    "P1 Q against NumPy, worst": (2.26e-14, "all"),
    "P1 autodiff, worst at (4,2)": (2.51e-9, "arm"),
    "P1 autodiff, worst at (4,3)": (2.53e-9, "arm"),
    "P1 autodiff, worst at (5,2)": (1.07e-9, "arm"),
    "P1 autodiff, worst at (5,3)": (1.96e-9, "arm"),
    "P3 verdict arms crossing c25": ("4 of 4", "arm"),
    "P4 worst detailed-balance residual": (4.16e-17, "all"),
    "P4 smallest Cheeger margin": (3.68e-3, "all"),
    "P4 symmetry failures": ("0 of 192", "all"),
    "D11.i signal ratios": ((0.96, 2.05), "arm"),
    "D11.i noise ratios": ((0.87, 1.04), "arm"),
    "D11.i largest pair": ("(5,2) c25", "arm"),
    "   = signal × 1/noise ratio": ("2.37 = 2.05 × 1.15", "arm"),
    "final Q, verdict arm": ("10 to 10²", "arm"),
    "final Q, baseline": ("1e-8 to 1e-5", "baseline"),
    "in-loop evaluations": (16_000, "all"),
    "wall time, s": (1913, "all"),
}
PUBLISHED_DOSES = {0.1: (1.125, "7 of 8"), 0.01: (1.0002, "4 of 8")}  # median, above 1


# --------------------------------------------------------------------------------- task


class Task(eqx.Module):
    """Four teachers, each a one-hot code and a visible law, and how Q is computed."""

    codes: Array
    laws: Array
    predictor: tq.QStruct


def seed_key(seed: int, cell: Cell, stream: int) -> Array:
    """The key of one purpose in one cell."""
    key = jax.random.key(seed)
    for index in (*cell, stream):
        key = jax.random.fold_in(key, index)
    return key


def make_teacher(key: Array, cell: Cell, family: str) -> tq.RBM:
    """One teacher with s planted patterns, in either reading of the protocol.

    "two-layer": m hidden units and patterns in both layers, `W = (β/m) Σ_μ ξ_μ η_μᵀ`.
    "hidden": one hidden unit for each pattern, `W = β ξ / √m`.
    """
    m, s = cell
    if family == "hidden":
        return tq.planted_rbm(key, m, s, PROTOCOL.teacher_beta)
    xi_key, eta_key = jax.random.split(key)
    xi = jax.random.rademacher(xi_key, (m, s), float)
    eta = jax.random.rademacher(eta_key, (m, s), float)
    return tq.RBM(PROTOCOL.teacher_beta / m * xi @ eta.T)


def make_task(seed: int, cell: Cell, family: str) -> tuple[Task, Network]:
    """The teachers of one cell and the untrained network, shared by all its arms."""
    keys = seed_key(seed, cell, PROTOCOL.stream_teachers)
    keys = jax.random.split(keys, PROTOCOL.teachers)
    teachers = [make_teacher(key, cell, family) for key in keys]
    codes = jnp.eye(PROTOCOL.teachers)
    network = Network(
        code_size=PROTOCOL.teachers,
        n_visible=cell[0],
        n_hidden=cell[0],
        width=PROTOCOL.network_width,
        depth=PROTOCOL.network_depth,
        weight_scale=PROTOCOL.weight_scale,
        key=seed_key(seed, cell, PROTOCOL.stream_network),
    )
    window = KERNEL.steps(network(codes[0]), sweeps=PROTOCOL.window_sweeps)
    laws = jnp.stack([tq.visible_distribution(teacher) for teacher in teachers])
    return Task(codes, laws, tq.QStruct(KERNEL, window)), network


# ------------------------------------------------------------------------------- losses

Record = dict[str, Array]
Objective = Callable[[Network, Task, Array], tuple[Array, Record]]


def mean_kl(network: Network, task: Task) -> Array:
    """L_KL: the mean over teachers of KL(teacher ‖ student)."""
    kl = eqx.filter_vmap(lambda code, law: tq.kl_divergence(network(code), law))
    return jnp.mean(kl(task.codes, task.laws))


def pooled_snr(network: Network, task: Task) -> tq.GradientSNR:
    """Q over all teachers at once: sum of signals over sum of noises."""
    snr = eqx.filter_vmap(lambda code, law: task.predictor(network(code), law))
    return tq.pool(snr(task.codes, task.laws))


def plain_loss(network: Network, task: Task, weight: Array) -> tuple[Array, Record]:
    """The baseline: L_KL alone. Q is not even computed."""
    del weight
    kl = mean_kl(network, task)
    return kl, {"kl": kl}


def augmented_loss(network: Network, task: Task, weight: Array) -> tuple[Array, Record]:
    """L_KL − λ log Q_pool. λ is a traced scalar: one compilation serves every arm."""
    kl, snr = mean_kl(network, task), pooled_snr(network, task)
    record = {"kl": kl, "q": snr.q, "signal": snr.signal, "noise": snr.mse}
    return kl - weight * snr.log_q, record


# ----------------------------------------------------------------------------- training


def flat(network: Network) -> Array:
    """All parameters of a network, or of its gradient, as one vector."""
    return ravel_pytree(eqx.filter(network, eqx.is_inexact_array))[0]


def unflat(vector: Array, like: Network) -> Network:
    """The network again."""
    arrays, static = eqx.partition(like, eqx.is_inexact_array)
    return eqx.combine(ravel_pytree(arrays)[1](vector), static)


@eqx.filter_jit
def advance(
    network: Network,
    optimiser: optax.OptState,
    task: Task,
    weight: Array,
    objective: Objective,
    length: Array,
) -> tuple[Network, optax.OptState, Record]:
    """`length` steps of Adam, at most CHUNK, and what was recorded at each of them.

    All that is recorded at step t, its parameters too, is from before its update.
    `length` is traced, so that one program serves every chunk and `measure` below.
    """
    arrays, static = eqx.partition((network, optimiser), eqx.is_array)

    def step(arrays: Any) -> tuple[Any, Record]:
        network, optimiser = eqx.combine(arrays, static)
        (loss, record), gradient = eqx.filter_value_and_grad(objective, has_aux=True)(
            network, task, weight
        )
        record |= {"loss": loss, "grad_norm": jnp.linalg.norm(flat(gradient))}
        record |= {"parameters": flat(network), "gradient": flat(gradient)}
        updates, optimiser = OPTIMISER.update(gradient, optimiser)
        after = eqx.apply_updates(network, updates), optimiser
        return eqx.filter(after, eqx.is_array), record

    def write(i: Array, carry: Any) -> Any:
        arrays, rows = carry
        arrays, record = step(arrays)
        return arrays, jax.tree.map(lambda row, x: row.at[i].set(x), rows, record)

    _, record = jax.eval_shape(step, arrays)
    rows = jax.tree.map(lambda x: jnp.zeros((CHUNK, *x.shape), x.dtype), record)
    arrays, rows = jax.lax.fori_loop(0, length, write, (arrays, rows))
    network, optimiser = eqx.combine(arrays, static)
    return network, optimiser, rows


def start(network: Network) -> optax.OptState:
    return OPTIMISER.init(eqx.filter(network, eqx.is_inexact_array))


def measure(network: Network, task: Task, weight: float) -> Fields:
    """Loss, KL, Q and gradient: the record of one training step that is thrown away.

    So nothing is compiled that was not compiled for training.
    """
    scalar, once = jnp.asarray(weight), jnp.asarray(1)
    *_, rows = advance(network, start(network), task, scalar, augmented_loss, once)
    return {name: np.asarray(row[0]) for name, row in rows.items()}


class Clock:
    """Seconds by activity.

    The first call of a program for arrays of a new size compiles it, which takes nearly
    all of that call: this is an activity of its own.
    """

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.reused = 0.0  # seconds that runs from disk took when they were made
        self.compiled: set[Any] = set()

    @contextmanager
    def __call__(self, activity: str, *program: Any) -> Iterator[None]:
        if program and program not in self.compiled:
            self.compiled.add(program)
            activity = "compile"
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] += time.perf_counter() - start


def reason(error: eqx.EquinoxRuntimeError) -> str:
    """What the library refused: Equinox puts its message last, after the stack."""
    return str(error).rpartition("EquinoxRuntimeError: ")[2].splitlines()[0]


def train(
    clock: Clock,
    task: Task,
    network: Network,
    weight: float,
    steps: int,
    on_step: Callable[[int], None],
) -> tuple[Network, dict[str, np.ndarray], str | None]:
    """Trains until the cap.

    Returns the last network, the curves, and why it stopped early, if it did.

    The augmented arms read Q off their own loss at every step. The baseline never
    evaluates it in its loop, so its curve is sampled between chunks.
    """
    m, scalar = network(task.codes[0]).n_visible, jnp.asarray(weight)
    objective = augmented_loss if weight > 0 else plain_loss
    optimiser = start(network)
    chunks: list[dict[str, np.ndarray]] = []
    probes: list[Fields] = []
    done, stopped = 0, None
    while done < steps and stopped is None:
        length = min(CHUNK, steps - done)
        try:
            if weight == 0:
                with clock("baseline Q", augmented_loss, m):
                    probes.append({"q_step": done, **measure(network, task, weight)})
            with clock("train", objective, m):
                network, optimiser, rows = advance(
                    network, optimiser, task, scalar, objective, jnp.asarray(length)
                )
        except eqx.EquinoxRuntimeError as error:
            stopped = f"step {done} to {done + length}: {reason(error)}"
            break
        chunks.append({name: np.asarray(row[:length]) for name, row in rows.items()})
        done += length
        on_step(done)
        if not all(np.isfinite(x).all() for x in chunks[-1].values()):
            stopped = f"a recorded quantity is not finite before step {done}"

    names = chunks[0] if chunks else ()
    curves = {name: np.concatenate([one[name] for one in chunks]) for name in names}
    curves["q_step"] = np.arange(done)
    for name in ("q_step", "q", "signal", "noise") if weight == 0 else ():
        curves[name] = np.asarray([probe[name] for probe in probes])
    return network, curves, stopped


def first_below(kl: np.ndarray, level: float) -> int | None:
    """The first step at which L_KL is at most a fraction of its initial value."""
    below = np.flatnonzero(kl <= level * kl[:1])
    return int(below[0]) if below.size else None


# ---------------------------------------------------------------- the NumPy oracle (P1)


def structural_q(
    weights: np.ndarray, visible_law: np.ndarray, window: float
) -> tuple[float, float]:
    """Signal ‖g‖² and noise 2 T_O / window of one student, the slow and obvious way.

    Plain NumPy in float64, on purpose without JAX, without trainq and without any of
    the shortcuts that make trainq fast: no spin-flip symmetry, no elimination, no
    closed form for the data phase. All `2**N` states are listed, the transition matrix
    is filled in flip by flip, and one dense solve gives the resolvent.
    """
    m, n = weights.shape
    n_units, n_states = m + n, 2 ** (m + n)
    states = np.array(list(product((-1.0, 1.0), repeat=n_units)))
    visible, hidden = states[:, :m], states[:, m:]

    # Boltzmann law of the energy E = −vᵀWh, and the observables f_ij = −v_i h_j.
    energy = -np.sum((visible @ weights) * hidden, axis=1)
    law = np.exp(-(energy - energy.min()))
    law /= law.sum()
    observables = -(visible[:, :, None] * hidden[:, None, :]).reshape(n_states, m * n)

    # g = E_data[f] − E_π[f]; the data phase weighs p(h | v) by the data's law of v.
    conditional = law.reshape(2**m, 2**n)
    conditional = conditional / conditional.sum(axis=1, keepdims=True)
    data_law = (visible_law[:, None] * conditional).reshape(n_states)
    gradient = data_law @ observables - law @ observables

    # One step picks a unit uniformly and draws it from its conditional.
    transition = np.zeros((n_states, n_states))
    start = np.arange(n_states)
    for unit in range(n_units):
        flipped = start ^ (1 << (n_units - 1 - unit))
        rise = energy[flipped] - energy[start]
        transition[start, flipped] = np.exp(-np.logaddexp(0.0, rise)) / n_units
    transition[start, start] = 1.0 - transition.sum(axis=1)

    # (I − P) x = f − π(f) with π(x) = 0: adding 1πᵀ makes the system regular.
    centred = observables - law @ observables
    system = np.eye(n_states) - transition + law[None, :]
    solution = np.linalg.solve(system, centred)
    t_o = float(np.sum(law[:, None] * centred * solution))
    return float(gradient @ gradient), 2.0 * t_o / window


def pooled_structural_q(weights: np.ndarray, laws: np.ndarray, window: float) -> float:
    """Q pooled over a stack of models: the sum of signals over the sum of noises."""
    stack = zip(weights, laws, strict=True)
    signal, noise = np.sum([structural_q(w, law, window) for w, law in stack], axis=0)
    return float(signal / noise)


# ------------------------------------------------------------- one run, its checkpoints


class Halt(RuntimeError):
    """A student failed its certificate: nothing after this can be trusted."""

    def __init__(self, where: str, found: tq.markov.Certificate) -> None:
        self.failed = found.failed
        words = [f"{k} (residual {found.checks[k].residual:.3g})" for k in self.failed]
        super().__init__(f"{where}: failed {', '.join(words)}")


@dataclass
class Certified:
    """What one student's certificate measured; None where a check did not apply."""

    detailed_balance: float | None
    symmetry: float | None
    gap: float | None
    cheeger_lower: float | None
    cheeger_upper: float | None


@dataclass
class Checkpoint:
    """One network on the way, pooled over its teachers; one certificate per teacher."""

    step: int
    kl: float
    q: float
    signal: float
    noise: float
    q_numpy: float | None
    certificates: list[Certified]


@dataclass
class Run:
    """One arm of one cell. A checkpoint that was not reached is None."""

    seed: int
    cell: Cell
    weight: float
    stopped: str | None
    seconds: float
    checkpoints: dict[str, Checkpoint | None]
    differences: list[float] | None
    curves: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return run_name(self.seed, self.cell, self.weight)

    @property
    def evaluations(self) -> int:
        """How often Q and its gradient were computed in the loop."""
        return len(self.curves.get("kl", ())) if self.weight > 0 else 0

    @property
    def finite(self) -> bool:
        """Whether training reached its end and every recorded number is finite."""
        points = [p for p in self.checkpoints.values() if p is not None]
        numbers = [x for p in points for x in (p.kl, p.q, p.signal, p.noise)]
        curves = all(np.isfinite(curve).all() for curve in self.curves.values())
        return self.stopped is None and curves and bool(np.isfinite(numbers).all())


def run_name(seed: int, cell: Cell, weight: float) -> str:
    return f"seed{seed}_m{cell[0]}_s{cell[1]}_lambda{weight:g}"


def certify(weights: np.ndarray, where: str) -> Certified:
    """The certificate of one student, or a halt."""
    found = tq.certify(KERNEL, tq.RBM(jnp.asarray(weights)))
    if not found.ok:
        raise Halt(where, found)

    def number(x: Any) -> float | None:
        return None if x is None else float(x)

    return Certified(
        detailed_balance=number(found.checks["detailed_balance"].residual),
        symmetry=number(found.checks["symmetry"].residual),
        gap=number(found.cheeger and found.cheeger.gap),
        cheeger_lower=number(found.cheeger and found.cheeger.lower),
        cheeger_upper=number(found.cheeger and found.cheeger.upper),
    )


def difference_errors(
    network: Network, task: Task, weight: float, key: Array
) -> np.ndarray:
    """Relative error of autodiff against central differences: (step sizes, directions).

    The directions are unit vectors in the space of all network parameters.
    """

    def loss(vector: Array) -> float:
        return float(measure(unflat(vector, network), task, weight)["loss"])

    centre = flat(network)
    directions = jax.random.normal(key, (PROTOCOL.directions, centre.size))
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    slopes = np.asarray(directions @ measure(network, task, weight)["gradient"])
    differences = [
        [(loss(centre + h * u) - loss(centre - h * u)) / (2 * h) for u in directions]
        for h in PROTOCOL.difference_steps
    ]
    return np.abs(np.array(differences) - slopes) / np.abs(slopes)


def run_arm(
    clock: Clock,
    constants: Constants,
    seed: int,
    cell: Cell,
    weight: float,
    on_step: Callable[[int], None] = lambda done: None,
) -> Run:
    """One run: train one arm of one cell, then measure and certify its checkpoints."""
    begin, m = time.perf_counter(), cell[0]
    task, network = make_task(seed, cell, constants.teacher_family)
    last, curves, stopped = train(
        clock, task, network, weight, constants.steps, on_step
    )

    # The networks at the checkpoints, each with its step. Of the parameters at every
    # step only these are kept.
    found = {"init": (0, network)}
    kl, parameters = curves.get("kl", np.empty(0)), curves.pop("parameters", None)
    curves.pop("gradient", None)
    for name, level in zip(constants.matched, constants.crossings, strict=True):
        step = first_below(kl, level)
        if step is not None and parameters is not None:
            found[name] = step, unflat(jnp.asarray(parameters[step]), network)
    if stopped is None:
        found["final"] = len(kl), last

    checkpoints: dict[str, Checkpoint | None] = dict.fromkeys(constants.checkpoints)
    differences = None
    for name, (step, student) in found.items():
        try:
            with clock("evaluate", augmented_loss, m):
                values = measure(student, task, weight)
        except eqx.EquinoxRuntimeError as error:
            stopped = f"{name}, at step {step}: {reason(error)}"
            continue
        weights = np.stack([student(code).weights for code in task.codes])
        curves[f"weights_{name}"] = weights
        q_numpy = None
        if name in constants.matched:
            with clock("NumPy oracle"):
                laws, window = np.asarray(task.laws), task.predictor.window
                q_numpy = pooled_structural_q(weights, laws, window)
        with clock("certify", tq.certify, m):
            where = f"{run_name(seed, cell, weight)} at {name}, teacher"
            certificates = [certify(w, f"{where} {i}") for i, w in enumerate(weights)]
        numbers = {key: float(values[key]) for key in ("kl", "q", "signal", "noise")}
        checkpoints[name] = Checkpoint(
            step, **numbers, q_numpy=q_numpy, certificates=certificates
        )
        # Once per cell, on the verdict arm.
        if name == PROTOCOL.difference_checkpoint and weight == constants.primary:
            with clock("differences"):
                key = seed_key(seed, cell, PROTOCOL.stream_directions)
                errors = difference_errors(student, task, weight, key)
            differences = errors.min(axis=0).tolist()

    seconds = time.perf_counter() - begin
    return Run(seed, cell, weight, stopped, seconds, checkpoints, differences, curves)


# -------------------------------------------------------------------------------- gates
#
# Plain functions of what was recorded. A run that is missing (after a halt) and a
# checkpoint that was never reached are carried along as missing and counted as such:
# they are never replaced by anything, and never quietly dropped. What the report prints
# of a gate stands in its "found".


@dataclass(frozen=True)
class Pair:
    """An augmented arm and its baseline at one checkpoint; None was never reached."""

    cell: Cell
    checkpoint: str
    weight: float
    arm: Checkpoint | None
    baseline: Checkpoint | None

    @property
    def name(self) -> str:
        return f"({self.cell[0]},{self.cell[1]}) {self.checkpoint}"

    @property
    def missing(self) -> str | None:
        """Who never got there."""
        sides = {"arm": self.arm, "baseline": self.baseline}
        return " and ".join(w for w, point in sides.items() if point is None) or None

    def over(self, number: Callable[[Checkpoint], float]) -> float | None:
        """A number of the arm over that of the baseline, if both are there."""
        if self.arm is None or self.baseline is None:
            return None
        return number(self.arm) / number(self.baseline)

    @property
    def ratio(self) -> float | None:
        return self.over(lambda point: point.q)

    def summary(self) -> Fields:
        arm, baseline = self.arm, self.baseline
        return {
            "cell": self.cell,
            "checkpoint": self.checkpoint,
            "weight": self.weight,
            "missing": self.missing,
            "ratio": self.ratio,
            "signal_ratio": self.over(lambda point: point.signal),
            "noise_ratio": self.over(lambda point: point.noise),
            "q": arm and arm.q,
            "q_baseline": baseline and baseline.q,
            "kl": arm and arm.kl,
            "kl_baseline": baseline and baseline.kl,
        }


def find(runs: list[Run], cell: Cell, weight: float) -> Run | None:
    return next((r for r in runs if r.cell == cell and r.weight == weight), None)


def reached(runs: list[Run], cell: Cell, weight: float, name: str) -> Checkpoint | None:
    run = find(runs, cell, weight)
    return None if run is None else run.checkpoints[name]


def make_pairs(runs: list[Run], constants: Constants, *names: str) -> list[Pair]:
    """Every augmented arm beside its baseline: at the crossings, unless told others."""
    base, *weights = constants.lambdas
    return [
        Pair(cell, at, w, reached(runs, cell, w, at), reached(runs, cell, base, at))
        for w, cell, at in product(weights, constants.cells, names or constants.matched)
    ]


def known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def worst(errors: list[float]) -> float:
    """The largest error; NaN if there is none, or if one is NaN, unlike `max`."""
    return float(np.max(errors)) if errors else math.nan


def ends(values: Iterable[float | None]) -> tuple[float, float] | None:
    """The smallest and the largest."""
    found = known(values)
    return (min(found), max(found)) if found else None


def summarise(pairs: list[Pair], weight: float) -> Fields:
    """The ratios of one arm."""
    ours = [pair for pair in pairs if pair.weight == weight]
    ratios = known(pair.ratio for pair in ours)
    return {
        "weight": weight,
        "median": float(np.median(ratios)) if ratios else None,
        "smallest": min(ratios, default=None),
        "largest": max(ratios, default=None),
        "above_one": sum(ratio > 1 for ratio in ratios),
        "present": len(ratios),
        "expected": len(ours),
    }


def feasibility(runs: list[Run], constants: Constants) -> Fields:
    """P1: finite throughout, Q as in NumPy, autodiff as in central differences.

    What is missing cannot fail; but with nothing left to compare, nothing is shown, and
    P1 fails: if no verdict arm reaches c50, for one.
    """
    finite = len(runs) == len(constants.arms) and all(run.finite for run in runs)
    stopped = {run.name: run.stopped for run in runs if run.stopped}
    points = [run.checkpoints[name] for run in runs for name in constants.matched]
    values = [abs(p.q - p.q_numpy) / abs(p.q_numpy) for p in points if p and p.q_numpy]
    differences: dict[str, float | None] = {}
    for m, s in constants.cells:
        run = find(runs, (m, s), constants.primary)
        errors = run.differences if run else None
        differences[f"({m},{s})"] = None if errors is None else worst(errors)
    slopes = known(differences.values())
    value, slope = worst(values), worst(slopes)
    value_bar, slope_bar = constants.value_tolerance, constants.difference_tolerance
    expected = len(constants.arms) * len(constants.matched)
    return {
        "pass": finite and value <= value_bar and slope <= slope_bar,
        "finite": finite,
        "stopped": stopped,
        "values": {"worst": value, "compared": len(values), "expected": expected},
        "differences": {"worst": slope, "worst_per_cell": differences},
        "found": f"every quantity finite: {'yes' if finite else 'no'}\n"
        + "".join(f"{name} stopped, {why}\n" for name, why in stopped.items())
        + f"Q against NumPy: worst {text(value)} of {len(values)} (of {expected}) "
        f"comparisons, bar {value_bar:g}\n"
        f"autodiff against differences: worst {text(slope)} in {len(slopes)} of "
        f"{len(differences)} cells, bar {slope_bar:g}",
    }


def steering(pairs: list[Pair], constants: Constants) -> Fields:
    """P2: does the verdict arm have a better Q than the baseline at equal KL?"""
    found = summarise(pairs, constants.primary)
    median, above, expected = found["median"], found["above_one"], found["expected"]
    bar, needed = constants.steering_bar, constants.pairs_above_one
    return {
        "pass": median is not None and median >= bar and above >= needed,
        **found,
        "found": f"median ratio {text(median)}, bar {bar:g}; above 1: {above} of "
        f"{expected}, {needed} needed; missing: {expected - found['present']}",
    }


def compatibility(runs: list[Run], constants: Constants) -> Fields:
    """P3: every arm reaches the last crossing within the cap.

    It asks no more, so an arm that crosses and then loses what it has learnt passes.
    Such a relapse, to above that crossing at the last step, stands beside the verdict.
    """
    steps: dict[str, dict[str, int | None]] = {}
    notes, relapsed, last = [], [], constants.matched[-1]
    for cell, weight in constants.arms:
        arm = f"({cell[0]},{cell[1]}) λ = {weight:g}"
        points = {at: reached(runs, cell, weight, at) for at in constants.checkpoints}
        crossings = {at: points[at] for at in constants.matched}
        steps[arm] = {at: point and point.step for at, point in crossings.items()}
        first, end = points["init"], points["final"]
        if points[last] is None:
            notes.append(f"\nnever: {arm}")
        elif first and end and end.kl > constants.crossings[-1] * first.kl:
            relapsed.append(arm)
            where = f"KL {text(end.kl)} and Q {text(end.q)}"
            notes.append(f"\n{arm} crosses, and is above it again at the end: {where}")
    crossed = {arm for arm, at in steps.items() if at[last] is not None}
    primary = [reached(runs, cell, constants.primary, last) for cell in constants.cells]
    return {
        "pass": len(crossed) == len(steps),
        "crossed": len(crossed),
        "expected": len(steps),
        "primary_crossed": sum(point is not None for point in primary),
        "missing": [arm for arm in steps if arm not in crossed],
        "relapsed": relapsed,
        "steps": steps,
        "found": f"{len(crossed)} of {len(steps)} arms reach {last} within "
        f"{constants.steps} steps{''.join(notes)}",
    }


def diagnostics(runs: list[Run], constants: Constants, halt: Halt | None) -> Fields:
    """P4: detailed balance, Cheeger margin and symmetry of every student.

    A certificate that fails halts the experiment, so every one that is here has passed.
    "verified" wants all of them, with all three checks; "incomplete" is without those
    of a checkpoint that was never reached.
    """
    points = [p for run in runs for p in run.checkpoints.values() if p is not None]
    found = [one for point in points for one in point.certificates]
    expected = len(constants.arms) * len(constants.checkpoints) * constants.teachers
    missing, failed = expected - len(found), int(halt is not None)
    applied = all(None not in vars(one).values() for one in found)
    word = "incomplete" if missing else "verified"
    word = word if found and applied and not failed else "not verified"
    lower = min(known(one.cheeger_lower for one in found), default=math.nan)
    upper = min(known(one.cheeger_upper for one in found), default=math.nan)
    return {
        "pass": word == "verified",
        "verdict": word,
        "halted": str(halt) if halt else None,
        "certified": len(found),
        "expected": expected,
        "missing": missing,
        "failed": failed,
        "worst_detailed_balance": worst(known(one.detailed_balance for one in found)),
        "worst_symmetry": worst(known(one.symmetry for one in found)),
        "symmetry_failures": int(halt is not None and "symmetry" in halt.failed),
        "smallest_cheeger_lower": lower,
        "smallest_cheeger_upper": upper,
        "smallest_gap": min(known(one.gap for one in found), default=math.nan),
        "found": f"{len(found)} of {expected} certificates, {failed} failed, "
        f"{missing} missing",
    }


def decomposition(pairs: list[Pair], constants: Constants) -> Fields:
    """D11.i: does a ratio come from the signal or from the noise?"""
    rows = [pair.summary() for pair in pairs]
    ours = [row for row in rows if row["weight"] == constants.primary]
    ours = [row for row in ours if row["missing"] is None]
    return {
        "signal_ratios": ends(row["signal_ratio"] for row in ours),
        "noise_ratios": ends(row["noise_ratio"] for row in ours),
        "largest": max(ours, key=lambda row: row["ratio"], default=None),
        "pairs": rows,
    }


def dose_response(pairs: list[Pair], constants: Constants) -> list[Fields]:
    """D11.iv: the ratios as a function of λ."""
    return [summarise(pairs, weight) for weight in sorted(constants.lambdas[1:])]


def finals(runs: list[Run], constants: Constants) -> Fields:
    """The trap: what one would read off the last step. Never part of the verdict."""
    pairs = make_pairs(runs, constants, "final")
    rows = [pair.summary() for pair in pairs if pair.weight == constants.primary]
    return {
        "in_verdict": False,
        "q_primary": ends(row["q"] for row in rows),
        "q_baseline": ends(row["q_baseline"] for row in rows),
        "pairs": rows,
    }


def judge(runs: list[Run], constants: Constants, halt: Halt | None) -> Fields:
    """All gates and the outcome, for the runs of one seed."""
    pairs = make_pairs(runs, constants)
    p1 = feasibility(runs, constants)
    p2 = steering(pairs, constants)
    p3 = compatibility(runs, constants)
    p4 = diagnostics(runs, constants, halt)
    # A certificate is "incomplete" only where a run stopped, for P1, or P3 fails.
    if not p1["pass"] or p4["verdict"] == "not verified":
        outcome = 1
    elif not p3["pass"]:
        outcome = 4
    else:
        outcome = 2 if p2["pass"] else 3
    return {
        "outcome": outcome,
        "verdict": f"Outcome {outcome}: {OUTCOMES[outcome]}",
        "p1": p1,
        "p2": p2,
        "p3": p3,
        "p4": p4,
        "decomposition": decomposition(pairs, constants),
        "dose_response": dose_response(pairs, constants),
        "finals": finals(runs, constants),
        "evaluations": sum(run.evaluations for run in runs),
    }


# -------------------------------------------------------------------------------- files


def versions() -> dict[str, str]:
    """The software and the machine that produced a result."""
    packages = ("trainq", "jax", "jaxlib", "equinox", "optax", "numpy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": jax.devices()[0].device_kind,
        **{name: version(name) for name in packages},
    }


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Either the whole file is there under its name, or nothing is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def strict(value: Any) -> Any:
    """The same value for strict JSON: what is not finite becomes None."""
    if isinstance(value, dict):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_fields(run: Run) -> Fields:
    """Everything but the curves."""
    return {k: v for k, v in asdict(replace(run, curves={})).items() if k != "curves"}


def save_run(path: Path, run: Run, constants: Constants) -> None:
    stamp = {"constants": constants.sha256, **versions()}
    meta = json.dumps({"stamp": stamp, "run": run_fields(run)})
    columns: Fields = {"meta": meta, **run.curves}
    write_atomically(path, lambda p: np.savez(p, **columns))


def load_run(path: Path, constants: Constants) -> Run | None:
    """A finished run; None, with a warning, if the file is not what its name says."""
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            meta = json.loads(str(file["meta"]))
            curves = {name: file[name] for name in file.files if name != "meta"}
        run = Run(**meta["run"], curves=curves)
        run.cell = (run.cell[0], run.cell[1])  # JSON made a list of it
        for name, fields in meta["run"]["checkpoints"].items():
            if fields is not None:
                point = run.checkpoints[name] = Checkpoint(**fields)
                point.certificates = [Certified(**x) for x in fields["certificates"]]
        if run.name != path.stem:
            raise ValueError(f"it holds the run {run.name}")
        if meta["stamp"] != {"constants": constants.sha256, **versions()}:
            raise ValueError("it was made with other constants or other software")
        return run
    except (BadZipFile, OSError, EOFError, KeyError, TypeError, ValueError) as error:
        warnings.warn(
            f"{path} is not used, its run is made anew: {error!r}", stacklevel=2
        )
        return None


def runs_folder(out: Path, constants: Constants) -> Path:
    """Where finished runs lie: one folder for every set of constants."""
    return out / "runs" / constants.sha256[:12]


def check_resume(out: Path, constants: Constants) -> None:
    """Refuses to resume a folder whose runs were all made with other constants."""
    others = list(out.glob("runs/*/constants.json"))
    if not others or runs_folder(out, constants).exists():
        return
    newest = max(others, key=lambda path: path.stat().st_mtime)
    then, now = json.loads(newest.read_text()), strict(asdict(constants))
    changed = [
        f"{name}: {then.get(name)} there, {now.get(name)} here"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
    raise ValueError(
        f"cannot resume in {out}: its runs were made with other constants "
        f"({'; '.join(changed)}). Give the options they were made with, choose another "
        "--out, or leave out --resume to start afresh."
    )


def label(constants: Constants) -> str:
    """What kind of run this was, in the words that stand next to its verdict."""
    kind = "changed constants, not the protocol"
    if replace(constants, teacher_family=PROTOCOL.teacher_family) == PROTOCOL:
        kind = "the protocol"
    elif constants.steps < PROTOCOL.steps:
        kind = "short run, not the protocol"
    return f"{kind}; {constants.teacher_family} teachers"


def conclude(
    out: Path, constants: Constants, runs: list[Run], clock: Clock, halt: Halt | None
) -> Fields:
    """Judges the runs there are; writes `summary.json` and `trajectories.npz`.

    The top level of the summary is the verdict of the first seed.
    """
    seeds = dict.fromkeys(run.seed for run in runs)
    of_seed = {seed: [run for run in runs if run.seed == seed] for seed in seeds}
    judged = [judge(one, constants, halt) for one in of_seed.values()]
    every = [
        {"seed": seed, "outcome": one["outcome"], "p3": one["p3"]["pass"]}
        | {key: one["p2"][key] for key in ("median", "above_one", "present", "largest")}
        | {"medians": {dose["weight"]: dose["median"] for dose in one["dose_response"]}}
        for seed, one in zip(seeds, judged, strict=True)
    ]
    summary = {
        **(judged[0] if judged else judge([], constants, halt)),
        "label": label(constants),
        "definitions": DEFINITIONS,
        "constants": {**asdict(constants), "sha256": constants.sha256},
        "versions": versions(),
        "wall_seconds": time.perf_counter() - clock.start,
        "reused_seconds": clock.reused,
        "timing": dict(clock.seconds),
        "seeds": every if len(every) > 1 else None,
        "runs": [run_fields(run) for run in runs],
    }
    text = json.dumps(strict(summary), indent=2, allow_nan=False) + "\n"
    curves: Fields = {"constants": json.dumps(summary["constants"])}
    for run in runs:
        curves |= {f"{run.name}/{k}": curve for k, curve in run.curves.items()}
    write_atomically(out / "summary.json", lambda path: path.write_text(text))
    write_atomically(out / "trajectories.npz", lambda path: np.savez(path, **curves))
    return summary


# ------------------------------------------------------------------------------- report

console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)


def text(value: Any, digits: int = 3) -> str:
    """A value for a table; a dash for a number that is missing."""
    if isinstance(value, str | int):
        return f"{value}"
    if isinstance(value, list | tuple):
        return " to ".join(text(x, 2) for x in value)
    if value is None or not math.isfinite(value):
        return "–"
    if value != 0 and not 1e-2 <= abs(value) < 1e4:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{digits}f}"


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = ""
) -> Table:
    """A table within 80 characters: words to the left, numbers to the right."""
    made = Table(title=title, title_justify="left", title_style="bold")
    made.box, made.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
    made.caption, made.caption_justify = caption and caption + "\n", "left"
    for index, column in enumerate(columns):
        left = index == 0 or column in ("verdict", "what was found")
        made.add_column(column, justify="left" if left else "right")
    for row in rows:
        made.add_row(*map(text, row))
    return made


def pair_name(row: Fields) -> str:
    m, s = row["cell"]
    return f"({m},{s}) {row['checkpoint']}"


def gate_table(summary: Fields) -> Table:
    titles = ("P1 fidelity", "P2 steering", "P3 KL progress", "P4 diagnostics")
    rows = []
    for title, gate in zip(
        titles, (summary[f"p{i}"] for i in (1, 2, 3, 4)), strict=True
    ):
        word = gate.get("verdict", "pass" if gate["pass"] else "fail")
        style = "green" if gate["pass"] else "bold red"
        rows.append((title, f"[{style}]{word}[/]", escape(gate["found"])))
    return table("Gates", ("gate", "verdict", "what was found"), rows)


def published_table(summary: Fields, constants: Constants) -> Table:
    """The published numbers, each only beside what it is of, and ours."""
    p1, p3, p4 = summary["p1"], summary["p3"], summary["p4"]
    d11, last = summary["decomposition"], summary["finals"]
    sides = p4["smallest_cheeger_lower"], p4["smallest_cheeger_upper"]
    best, parts = d11["largest"], None
    if best is not None:
        factors = best["ratio"], best["signal_ratio"], 1 / best["noise_ratio"]
        parts = "{:.2f} = {:.2f} × {:.2f}".format(*factors)
    cells = p1["differences"]["worst_per_cell"].items()
    ours = {
        "outcome": summary["outcome"],
        "P1 Q against NumPy, worst": p1["values"]["worst"],
        **{f"P1 autodiff, worst at {cell}": error for cell, error in cells},
        "P3 verdict arms crossing c25": f"{p3['primary_crossed']} of {len(cells)}",
        "P4 worst detailed-balance residual": p4["worst_detailed_balance"],
        "P4 smallest Cheeger margin": min(sides),
        "   its lower side, Φ − γ/2": sides[0],
        "   its upper side, √(2γ) − Φ": sides[1],
        "P4 symmetry failures": f"{p4['symmetry_failures']} of {p4['certified']}",
        "D11.i signal ratios": d11["signal_ratios"],
        "D11.i noise ratios": d11["noise_ratios"],
        "D11.i largest pair": best and pair_name(best),
        "   = signal × 1/noise ratio": parts,
        "final Q, verdict arm": last["q_primary"],
        "final Q, baseline": last["q_baseline"],
        "in-loop evaluations": summary["evaluations"],
        "wall time, s": round(summary["wall_seconds"] + summary["reused_seconds"]),
    }
    same_arm = constants.primary == PROTOCOL.primary
    same = {"arm": same_arm, "baseline": True}
    same["all"] = constants.lambdas == PROTOCOL.lambdas
    rows = []
    for what, value in ours.items():
        theirs, of = PUBLISHED.get(what, (None, "all"))
        rows.append((what, theirs if same[of] else None, value))
    title = (
        f"Published numbers beside ours; the verdict arm is λ = {constants.primary:g}"
    )
    return table(title, ("", "published", "here"), rows)


def pair_table(summary: Fields, constants: Constants) -> Table:
    rows = []
    for row in (*summary["decomposition"]["pairs"], *summary["finals"]["pairs"]):
        ratios = [row[key] for key in ("ratio", "signal_ratio", "noise_ratio")]
        if row["missing"]:
            ratios = ["missing", "", ""]
        numbers = [row[key] for key in ("q", "q_baseline", "kl", "kl_baseline")]
        rows.append((pair_name(row), f"{row['weight']:g}", *ratios, *numbers))
    columns = "pair,λ,Q ratio,= signals,/ noises,Q,base's,KL,base's".split(",")
    title = "D11.i: arm over baseline, at equal progress in KL and at the end"
    bar = f"The bar for the median is {constants.steering_bar:g}. A noise ratio below 1"
    caption = f"""{bar} is a gain.
The last step is a trap, and never part of the verdict: an arm that has learnt
less holds a larger gradient, hence a larger Q."""
    return table(title, columns, rows, caption)


def dose_table(summary: Fields) -> Table:
    rows = []
    for dose in summary["dose_response"]:
        median, above = PUBLISHED_DOSES.get(dose["weight"], (None, None))
        ours = f"{dose['above_one']} of {dose['expected']}"
        numbers = (text(dose["median"], 4), text(median, 4), ours, above)
        weight = f"{dose['weight']:g}"
        rows.append((weight, *numbers, dose["smallest"], dose["largest"]))
    columns = "λ,median,published,above 1,published,smallest,largest".split(",")
    return table("D11.iv: dose response, the Q ratios against λ", columns, rows)


def seed_table(summary: Fields) -> Table:
    rows, medians = [], known(row["median"] for row in summary["seeds"])
    for row in summary["seeds"]:
        p3 = "pass" if row["p3"] else "fail"
        above = f"{row['above_one']} of {row['present']}"
        rows.append((*(row[k] for k in ("seed", "outcome", "median")), above, p3))
    middle = float(np.median(medians)) if medians else None
    caption = (
        f"Median of medians {text(middle)}, from {text(ends(medians))}. The verdict "
    )
    caption += "is that of the first seed."
    columns = ("seed", "outcome", "median", "above 1", "P3")
    return table("Over seed tables", columns, rows, caption)


def show(summary: Fields, constants: Constants, files: list[Path]) -> None:
    """The whole report; after a halt, why there is none."""
    if halted := summary["p4"]["halted"]:
        console.print(
            "\n[bold red]HALT.[/] A student failed its certificate, and nothing"
        )
        console.print(f"after it can be trusted:\n  {escape(halted)}")
    else:
        console.print()
        console.print(gate_table(summary))
        console.print(published_table(summary, constants))
        console.print(pair_table(summary, constants))
        console.print(dose_table(summary))
        if summary["seeds"]:
            console.print(seed_table(summary))
        parts = sorted(summary["timing"].items(), key=lambda part: -part[1])
        parts.append(("rest", summary["wall_seconds"] - sum(x for _, x in parts)))
        split = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts)
        console.print(f"Wall time {summary['wall_seconds']:.1f} s: {split}")
    for name, words in DEFINITIONS.items():
        console.print(f"{name}: {words}", style="dim")
    colour = "green" if summary["label"].startswith("the protocol") else "yellow"
    console.print(f"[bold]{summary['verdict']}[/]\n[{colour}]({summary['label']})[/]")
    count = f"{summary['evaluations']:,} in-loop evaluations of Q with its gradient"
    console.print(f"constants {constants.sha256[:12]}, {count}")
    for file in files:
        console.print(f"  {file}", style="dim", markup=False, soft_wrap=True)


# ------------------------------------------------------------------------------ figures
#
# Colours are from Okabe and Ito, told apart by readers with any colour vision; arms
# also differ in their dashes or markers. Titles ask what a figure answers. What is
# missing is not drawn.

# The baseline, then the other arms; more than six of them share.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", ":", "-.", "--", ":", "-.")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "savefig.dpi": 160,
}


def arm_style(constants: Constants, weight: float) -> Fields:
    """Label, colour and dashes of an arm."""
    index = constants.lambdas.index(weight)
    place = index and 1 + (index - 1) % (len(COLOURS) - 1)
    name = f"λ = {weight:g}" if weight else "baseline, λ = 0"
    return {"label": name, "color": COLOURS[place], "ls": DASHES[place]}


def legend(figure: Figure) -> None:
    """Every label of the figure once, below the axes."""
    lines = [line for axis in figure.axes for line in axis.get_lines()]
    named = {line.get_label(): line for line in reversed(lines)}
    named = {
        str(k): v for k, v in reversed(named.items()) if not str(k).startswith("_")
    }
    place, columns = "outside lower center", min(len(named), 5)
    figure.legend([*named.values()], [*named], loc=place, ncols=columns)


def ratio_axis(axis: Any, constants: Constants) -> None:
    """A log axis of ratios, with the bar and plain ticks."""
    bar = constants.steering_bar
    axis.axhline(1, color="black", lw=1, zorder=1)
    axis.axhline(
        bar, color="grey", ls="--", zorder=1, label=f"bar for the median, {bar:g}"
    )
    axis.set(yscale="log", ylabel="Q ratio, arm over baseline")
    low, high = axis.get_ylim()
    low, high = min(low, 0.75), max(high, 2.2)
    ticks = (0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50)
    ticks = [tick for tick in ticks if low <= tick <= high]
    axis.set_ylim(low, high)
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(axis="x", visible=False)


def figure_trajectories(runs: list[Run], constants: Constants) -> Figure:
    n_cells = len(constants.cells)
    figure = Figure(figsize=(3.1 * n_cells + 0.6, 6.2), layout="constrained")
    axes = figure.subplots(2, n_cells, sharex=True, sharey="row", squeeze=False)
    for run in runs:
        top, bottom = axes[:, constants.cells.index(run.cell)]
        style = arm_style(constants, run.weight)
        kl = run.curves.get("kl", np.empty(0))
        top.plot(1 + np.arange(len(kl)), kl, **style)
        if "q" in run.curves:
            bottom.plot(1 + run.curves["q_step"], run.curves["q"], **style)
        for name, marker in zip(constants.matched, MARKERS[::2], strict=False):
            if point := run.checkpoints[name]:
                dot = {"color": style["color"], "marker": marker, "mfc": "white"}
                dot |= {"ls": "", "label": f"at {name}", "zorder": 5}
                top.plot(1 + point.step, point.kl, **dot)
                bottom.plot(1 + point.step, point.q, **dot)
    for (m, s), (top, bottom) in zip(constants.cells, axes.T, strict=True):
        top.set(title=f"m = {m}, s = {s}", xscale="log", yscale="log")
        bottom.set(xlabel="step + 1", xscale="log", yscale="log")
    if constants.steps > 100:  # before step 10 nothing has moved yet
        axes[0, 0].set_xlim(10, 1.15 * constants.steps)
    axes[0, 0].set_ylabel("KL to the teachers, L_KL")
    axes[1, 0].set_ylabel("signal-to-noise of the gradient, Q")
    figure.suptitle("What does λ change while the model learns?")
    return figure


def figure_ratios(pairs: list[Pair], constants: Constants) -> Figure:
    figure = Figure(figsize=(8.2, 4.4), layout="constrained")
    axis = figure.subplots()
    names = list(dict.fromkeys(pair.name for pair in pairs))
    n_arms = len(constants.lambdas) - 1
    for pair in pairs:
        index = constants.lambdas.index(pair.weight)
        x = names.index(pair.name) + (index - (n_arms + 1) / 2) * 0.5 / n_arms
        style = arm_style(constants, pair.weight)
        if pair.ratio is None:
            where = {"rotation": 90, "ha": "center", "color": style["color"]}
            axis.text(x, 1.02, "missing", size=8, **where)
        else:
            marker = MARKERS[index % len(MARKERS)]
            axis.plot([x, x], [1, pair.ratio], **style, marker=marker, markevery=[1])
    median = summarise(pairs, constants.primary)["median"]
    if median is not None:
        style = arm_style(constants, constants.primary)
        style |= {"label": f"median of {style['label']}", "ls": ":", "lw": 1}
        axis.axhline(median, **style)
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.set_xticks(range(len(names)), names)
    ratio_axis(axis, constants)
    figure.suptitle("At equal progress in KL, does log Q in the loss buy a better Q?")
    return figure


def figure_doses(pairs: list[Pair], constants: Constants) -> Figure:
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    weights = sorted(constants.lambdas)

    def line(ratios: dict[float, float | None], **style: Any) -> None:
        points = [(weights.index(w), r) for w, r in ratios.items() if r is not None]
        axis.plot(*zip((0, 1.0), *sorted(points), strict=True), **style)

    thin: Fields = {"lw": 1, "ms": 4, "alpha": 0.8}
    for cell, at in product(constants.cells, constants.matched):
        ours = [pair for pair in pairs if (pair.cell, pair.checkpoint) == (cell, at)]
        place = 6 if at == constants.matched[0] else 2
        style = {
            "color": COLOURS[place],
            "marker": MARKERS[place],
            "label": f"cells, {at}",
        }
        line({pair.weight: pair.ratio for pair in ours}, **style, **thin)
    doses = {dose["weight"]: dose["median"] for dose in dose_response(pairs, constants)}
    line(doses, label="median", color=COLOURS[1], lw=3, marker="s", ms=8)
    axis.set_xlabel("weight λ of −log Q in the loss")
    axis.set_xticks(range(len(weights)), [f"{weight:g}" for weight in weights])
    ratio_axis(axis, constants)
    figure.suptitle("Does a larger dose steer further?")
    return figure


def figure_finals(runs: list[Run], constants: Constants) -> Figure:
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = constants.checkpoints[1:]
    for index, (m, s) in enumerate(constants.cells):
        marker, qs = MARKERS[index % len(MARKERS)], {}
        for weight in constants.lambdas[:2]:
            points = [reached(runs, (m, s), weight, name) for name in names]
            qs[weight] = np.array([p.q if p else math.nan for p in points])
            style = arm_style(constants, weight)
            left.plot(range(len(names)), qs[weight], **style, marker=marker, lw=1.2)
        baseline, arm = qs.values()
        x = np.arange(len(names)) + 0.12 * (index - (len(constants.cells) - 1) / 2)
        dots = {"color": "#0072B2", "ls": "", "marker": marker}
        right.plot(x, arm / baseline, **dots, label=f"m = {m}, s = {s}")
    for axis in (left, right):
        axis.set_yscale("log")
        ticks = [*names[:-1], "last step\n(unequal KL)"]
        axis.set_xticks(range(len(names)), ticks)
        axis.axvspan(len(names) - 1.4, len(names) - 0.6, color="#f3e9d9", zorder=0)
        axis.grid(axis="x", visible=False)
    right.axhline(1, color="black", lw=1, zorder=1)
    left.set(ylabel="pooled Q")
    right.set(ylabel="Q ratio, arm over baseline")
    figure.suptitle("Would the last step have told the same story?")
    return figure


def figure_seeds(rows: list[Fields], constants: Constants) -> Figure:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    for row, weight in product(rows, constants.lambdas[1:]):
        if row["medians"][weight] is not None:
            style: Fields = arm_style(constants, weight) | {"ls": ""}
            marker = MARKERS[constants.lambdas.index(weight) % len(MARKERS)]
            axis.plot(row["seed"], row["medians"][weight], **style, marker=marker)
    axis.set_xlabel("seed")
    axis.set_xticks([row["seed"] for row in rows])
    ratio_axis(axis, constants)
    axis.set_ylabel("median Q ratio, arm over baseline")
    figure.suptitle("How much of the verdict is luck?")
    return figure


def draw(
    out: Path, summary: Fields, runs: list[Run], constants: Constants
) -> list[Path]:
    """All figures, for the first seed; one more if there are several seeds."""
    first = [run for run in runs if run.seed == runs[0].seed]
    pairs = make_pairs(first, constants)
    paths = []
    with matplotlib.rc_context(STYLE):
        figures = {
            "trajectories": figure_trajectories(first, constants),
            "ratios": figure_ratios(pairs, constants),
            "dose_response": figure_doses(pairs, constants),
            "finals": figure_finals(first, constants),
        }
        if summary["seeds"]:
            figures["seeds"] = figure_seeds(summary["seeds"], constants)
        for name, figure in figures.items():
            legend(figure)
            figure.suptitle(f"{figure.get_suptitle()}\n({summary['label']})")
            paths.append(out / f"{name}.png")
            figure.savefig(paths[-1], metadata={"Constants": constants.sha256})
    return paths


# ----------------------------------------------------- the whole protocol, its options


def run_protocol(
    constants: Constants, n_seeds: int, out: Path, resume: bool
) -> tuple[Fields, list[Run]]:
    """All runs, in order; each is on disk as soon as it is finished.

    A failed certificate ends them, and what there is up to then is judged.
    """
    clock, folder = Clock(), runs_folder(out, constants)
    note = json.dumps(asdict(constants), indent=2) + "\n"
    write_atomically(folder / "constants.json", lambda path: path.write_text(note))
    plan = list(product(constants.seeds[:n_seeds], constants.arms))
    runs: list[Run] = []
    halt = None
    columns = "{task.description:24}", BarColumn(24), MofNCompleteColumn()
    bars = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
    every, this = bars.add_task("runs", total=len(plan)), bars.add_task("")
    with bars:
        for seed, (cell, weight) in plan:
            name = run_name(seed, cell, weight)
            path = folder / f"{name}.npz"
            run = load_run(path, constants) if resume and path.exists() else None
            source = "from disk"
            if run is not None:
                clock.reused += run.seconds
            else:
                bars.reset(this, description=name, total=constants.steps)

                def on_step(done: int) -> None:
                    bars.update(this, completed=done)

                try:
                    run = run_arm(clock, constants, seed, cell, weight, on_step)
                except Halt as failure:
                    halt = failure
                    break
                save_run(path, run, constants)
                source = f"{run.seconds:.1f} s"
            runs.append(run)
            bars.advance(every)
            *crossings, (_, last) = list(run.checkpoints.items())[1:]
            steps = [f"{at} {p.step if p else 'never':>5}" for at, p in crossings]
            final_q = text(last and last.q)
            line = f"{name:24} {'  '.join(steps)}  final Q {final_q:>8}  {source}"
            bars.console.print(line)
            if run.stopped:
                bars.console.print(f"  stopped early, {run.stopped}", markup=False)
    return conclude(out, constants, runs, clock, halt), runs


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Constants]:
    """The options, and the protocol's constants with the options applied."""
    about, kind = (__doc__ or "").split("\n")[0], argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser("exp9.py", description=about, formatter_class=kind)
    add, n_seeds = parser.add_argument, len(PROTOCOL.seeds)
    add("--out", type=Path, default=Path("results/exp9"), help="where results go")
    add("--steps", type=int, default=PROTOCOL.steps, help="cap on training steps")
    add("--seeds", type=int, default=1, help="repeat it all over so many seed tables")
    words = "weights of −log Q in the loss: the verdict arm first; λ = 0 always runs"
    add("--lambdas", type=float, nargs="+", default=PROTOCOL.lambdas[1:], help=words)
    words = "planted patterns in both layers, or one hidden unit for each"
    families, default = ("two-layer", "hidden"), PROTOCOL.teacher_family
    add("--teachers", choices=families, default=default, help=words)
    add("--resume", action="store_true", help="keep the finished runs of OUT")
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")
    if not 1 <= args.seeds <= n_seeds:
        parser.error(f"--seeds must lie between 1 and {n_seeds}, got {args.seeds}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in args.lambdas):
        parser.error(f"--lambdas must be finite and not negative, got {args.lambdas}")
    arms = tuple(weight for weight in args.lambdas if weight > 0)
    # As text, because runs and their files are named by it.
    if not arms or len({f"{weight:g}" for weight in arms}) < len(arms):
        parser.error(f"--lambdas must be positive and distinct, got {args.lambdas}")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out must be a folder, and {args.out} is a file")
    options = {"steps": args.steps, "teacher_family": args.teachers}
    constants = replace(PROTOCOL, lambdas=(0.0, *arms), **options)
    if args.resume:
        try:
            check_resume(args.out, constants)
        except ValueError as error:
            parser.error(str(error))
    return args, constants


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment, writes its files, prints its report."""
    args, constants = parse(argv)
    # LAPACK with one thread: more of them would spin against those of XLA. JAX takes
    # LAPACK from SciPy, and loads it late: only what is there can be limited.
    import_module("scipy.linalg")
    try:
        with threadpool_limits(1, user_api="blas"):
            summary, runs = run_protocol(constants, args.seeds, args.out, args.resume)
        files = [args.out / "summary.json", args.out / "trajectories.npz"]
        halted = summary["p4"]["halted"] is not None
        if not halted:
            files += draw(args.out, summary, runs, constants)
        show(summary, constants, files)
        return int(halted)
    except KeyboardInterrupt:
        words = sys.orig_argv if argv is None else ["python", "examples/exp9.py", *argv]
        again = shlex.join([*words, *([] if args.resume else ["--resume"])])
        console.print(
            "\n[bold]Interrupted.[/] Finished runs are on disk; only the run in"
        )
        console.print("flight is lost. To pick up from there:")
        console.print(f"  {again}", soft_wrap=True, markup=False)
        return 130


if __name__ == "__main__":
    sys.exit(main())
