"""exp9: does adding log Q to the loss steer a model towards trainability?

An energy-based model that is trained from samples stalls once its gradient drowns in
sampling noise. The signal-to-noise ratio Q of that gradient is differentiable, so why
not train for it? This experiment minimises

    L = L_KL + λ (−log Q_pool)

for four small problems and three values of λ, and compares Q *at equal progress in
KL*: at the first steps at which L_KL has fallen to one half and to one quarter of its
initial value. The gates P1 to P4 (`exp9_verdict.py`) turn twelve runs into one verdict.

    python examples/exp9.py                   # the protocol: 12 runs of 2000 steps
    python examples/exp9.py --steps 120       # a quick look, labelled as such
    python examples/exp9.py --seeds 5         # how much does the verdict owe to luck?
    python examples/exp9.py --resume          # after Ctrl-C: keep the finished runs

Read it from top to bottom: constants, losses, the training loop, one run, the command
line. The loop uses public pieces only, so it is one to copy.
"""

import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import equinox as eqx
import exp9_figures as figures
import exp9_report as report
import exp9_support as support
import exp9_verdict as verdict
import jax
import jax.numpy as jnp
import numpy as np
import optax
from exp9_oracle import pooled_structural_q
from exp9_verdict import Checkpoint, Run
from jax.flatten_util import ravel_pytree

import trainq as tq


jax.config.update("jax_enable_x64", True)


# ------------------------------------------------------------------ constants and seeds


@dataclass(frozen=True)
class Constants:
    """Everything that is fixed before a run. Its hash goes into all output.

    "protocol" marks what the published protocol prescribes; "ours" marks what it leaves
    open and we had to choose.
    """

    # The problems.
    cells: tuple[tuple[int, int], ...] = ((4, 2), (4, 3), (5, 2), (5, 3))  # protocol
    teachers: int = 4  # protocol
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
    def checkpoints(self) -> tuple[str, ...]:
        """init, c50, c25, final."""
        return ("init", *(f"c{100 * level:.0f}" for level in self.crossings), "final")

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON form."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return sha256(text.encode()).hexdigest()


# Options of the command line replace `steps` and `lambdas`, and nothing else.
PROTOCOL = Constants()
KERNEL = tq.RandomScanGibbs()
OPTIMISER = optax.adam(PROTOCOL.learning_rate)
CHUNK = 20  # steps per compiled call: how often bars move and the baseline's Q is drawn


# ------------------------------------------------------------------- problem and losses


class Task(eqx.Module):
    """Four teachers: a one-hot code and a visible law for each, and how Q is computed.

    The predictor counts its window in kernel steps. A step of single-site Gibbs updates
    one unit, so a sweep over N units is N steps.
    """

    codes: jax.Array
    laws: jax.Array
    predictor: tq.QStruct


def seed_key(seed: int, m: int, s: int, stream: int) -> jax.Array:
    """The key of one purpose in one cell."""
    key = jax.random.key(seed)
    for index in (m, s, stream):
        key = jax.random.fold_in(key, index)
    return key


def make_task(seed: int, m: int, s: int) -> tuple[Task, tq.CouplingNetwork]:
    """The teachers of one cell and the untrained network, shared by all its arms."""
    key = seed_key(seed, m, s, PROTOCOL.stream_teachers)
    teachers = [
        tq.planted_rbm(one, n_visible=m, n_patterns=s, beta=PROTOCOL.teacher_beta)
        for one in jax.random.split(key, PROTOCOL.teachers)
    ]
    task = Task(
        codes=jnp.eye(PROTOCOL.teachers),
        laws=jnp.stack([tq.visible_distribution(teacher) for teacher in teachers]),
        predictor=tq.QStruct(KERNEL, window=PROTOCOL.window_sweeps * 2 * m),
    )
    network = tq.CouplingNetwork(
        code_size=PROTOCOL.teachers,
        n_visible=m,
        n_hidden=m,
        width=PROTOCOL.network_width,
        depth=PROTOCOL.network_depth,
        weight_scale=PROTOCOL.weight_scale,
        key=seed_key(seed, m, s, PROTOCOL.stream_network),
    )
    return task, network


def mean_kl(network: tq.CouplingNetwork, task: Task) -> jax.Array:
    """L_KL: the mean over teachers of KL(teacher ‖ student)."""
    kl = eqx.filter_vmap(lambda code, law: tq.kl_divergence(network(code), law))
    return jnp.mean(kl(task.codes, task.laws))


def pooled_snr(network: tq.CouplingNetwork, task: Task) -> tq.GradientSNR:
    """Q over all teachers at once: sum of signals over sum of noises."""
    snr = eqx.filter_vmap(lambda code, law: task.predictor(network(code), law))
    return tq.pool(snr(task.codes, task.laws))


Record = dict[str, jax.Array]
Objective = Callable[[tq.CouplingNetwork, Task, jax.Array], tuple[jax.Array, Record]]


def plain_loss(
    network: tq.CouplingNetwork, task: Task, weight: jax.Array
) -> tuple[jax.Array, Record]:
    """The baseline: L_KL alone. Q is not even computed."""
    del weight
    kl = mean_kl(network, task)
    return kl, {"kl": kl}


def augmented_loss(
    network: tq.CouplingNetwork, task: Task, weight: jax.Array
) -> tuple[jax.Array, Record]:
    """L_KL − λ log Q_pool. λ is a traced scalar: one compilation serves every arm."""
    kl, snr = mean_kl(network, task), pooled_snr(network, task)
    record = {"kl": kl, "q": snr.q, "signal": snr.signal, "noise": snr.mse}
    return kl - weight * snr.log_q, record


# -------------------------------------------------------------------- the training loop


class State(eqx.Module):
    """What training carries from step to step.

    `snapshots` holds the parameters at the first crossing of each level, with the level
    as leading axis, and `crossed` the steps at which that happened (−1: not yet).
    """

    network: tq.CouplingNetwork
    optimiser: optax.OptState
    step: jax.Array
    initial_kl: jax.Array
    crossed: jax.Array
    snapshots: Any

    @classmethod
    def start(cls, network: tq.CouplingNetwork, n_levels: int) -> "State":
        parameters = eqx.filter(network, eqx.is_inexact_array)
        return cls(
            network=network,
            optimiser=OPTIMISER.init(parameters),
            step=jnp.asarray(0),
            initial_kl=jnp.asarray(jnp.inf),
            crossed=jnp.full(n_levels, -1),
            snapshots=jax.tree.map(lambda x: jnp.stack([x] * n_levels), parameters),
        )


def advance(
    state: State, task: Task, weight: jax.Array, objective: Objective, length: int
) -> tuple[State, Record]:
    """`length` steps of Adam, and what was recorded at each of them.

    The loss at step t belongs to the parameters before the update of step t, and so do
    the snapshots.
    """
    levels = jnp.asarray(PROTOCOL.crossings)
    arrays, static = eqx.partition(state, eqx.is_array)

    def body(arrays: State, _: None) -> tuple[State, Record]:
        state = eqx.combine(arrays, static)
        parameters = eqx.filter(state.network, eqx.is_inexact_array)
        (loss, record), grads = eqx.filter_value_and_grad(objective, has_aux=True)(
            state.network, task, weight
        )
        record |= {"loss": loss, "grad_norm": jnp.linalg.norm(ravel_pytree(grads)[0])}

        initial_kl = jnp.where(state.step == 0, record["kl"], state.initial_kl)
        first = (record["kl"] <= levels * initial_kl) & (state.crossed < 0)

        def keep(snapshot: jax.Array, new: jax.Array) -> jax.Array:
            mask = first.reshape(-1, *(1,) * new.ndim)
            return jnp.where(mask, new[None], snapshot)

        updates, optimiser = OPTIMISER.update(grads, state.optimiser)
        state = State(
            network=eqx.apply_updates(state.network, updates),
            optimiser=optimiser,
            step=state.step + 1,
            initial_kl=initial_kl,
            crossed=jnp.where(first, state.step, state.crossed),
            snapshots=jax.tree.map(keep, state.snapshots, parameters),
        )
        return eqx.filter(state, eqx.is_array), record

    arrays, records = jax.lax.scan(body, arrays, length=length)
    return eqx.combine(arrays, static), records


# ------------------------------------------------------------- measured at a checkpoint


def evaluate(
    network: tq.CouplingNetwork, task: Task, weight: jax.Array
) -> tuple[Record, tq.CouplingNetwork]:
    """KL, pooled Q, the loss and the students' weights; and the gradient of the loss.

    One program serves all that is asked of a network outside of its training loop.
    """
    (loss, record), gradient = eqx.filter_value_and_grad(augmented_loss, has_aux=True)(
        network, task, weight
    )
    weights = eqx.filter_vmap(lambda code: network(code).weights)(task.codes)
    return record | {"loss": loss, "weights": weights}, gradient


def certify(network: tq.CouplingNetwork, code: jax.Array) -> tq.markov.Certificate:
    """The certificate of the student of one teacher."""
    return tq.certify(KERNEL, network(code))


def difference_errors(
    evaluated: Callable[[tq.CouplingNetwork], tuple[Record, tq.CouplingNetwork]],
    network: tq.CouplingNetwork,
    key: jax.Array,
) -> np.ndarray:
    """Relative error of autodiff against central differences: (step sizes, directions).

    The directions are unit vectors in the space of all network parameters.
    """
    arrays, static = eqx.partition(network, eqx.is_inexact_array)
    centre, unravel = ravel_pytree(arrays)
    directions = jax.random.normal(key, (PROTOCOL.directions, centre.size))
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    slopes = np.asarray(directions @ ravel_pytree(evaluated(network)[1])[0])

    def loss(point: jax.Array) -> float:
        record, _ = evaluated(eqx.combine(unravel(point), static))
        return float(record["loss"])

    differences = [
        [(loss(centre + h * u) - loss(centre - h * u)) / (2 * h) for u in directions]
        for h in PROTOCOL.difference_steps
    ]
    return np.abs(np.array(differences) - slopes) / np.abs(slopes)


# ------------------------------------------------------------------------------ one run


class Halt(RuntimeError):
    """A student failed its certificate: nothing after this can be trusted."""


def train(
    lab: support.Lab,
    task: Task,
    network: tq.CouplingNetwork,
    weight: float,
    steps: int,
    on_step: Callable[[int], None],
) -> tuple[State, dict[str, np.ndarray], str | None]:
    """Trains until the cap.

    Returns the last state, the curves, and why it stopped early, if it did.

    The augmented arms read Q off their own loss at every step. The baseline never
    evaluates it in its loop, so its curve is sampled between chunks.
    """
    objective = augmented_loss if weight > 0 else plain_loss
    scalar = jnp.asarray(weight)
    state, done, stopped = State.start(network, len(PROTOCOL.crossings)), 0, None
    chunks: list[dict[str, np.ndarray]] = []
    probes: list[dict[str, Any]] = []
    while done < steps and stopped is None:
        length = min(CHUNK, steps - done)
        try:
            if weight == 0:
                probe, _ = lab("baseline Q", evaluate, state.network, task, scalar)
                probes.append({"q_step": done, **probe})
            state, records = lab(
                "train", advance, state, task, scalar, objective, length
            )
        except RuntimeError as error:  # the library refuses non-finite parameters
            reason = str(error).rpartition("EquinoxRuntimeError: ")[2].splitlines()[0]
            stopped = f"step {done} to {done + length}: {reason}"
            break
        chunks.append({name: np.asarray(x) for name, x in records.items()})
        done += length
        on_step(done)
        if not all(np.isfinite(x).all() for x in chunks[-1].values()):
            stopped = f"a recorded quantity is not finite before step {done}"

    curves = {
        name: np.concatenate([chunk[name] for chunk in chunks])
        for name in (chunks[0] if chunks else ())
    }
    curves["q_step"] = np.arange(done)
    for name in ("q_step", "q", "signal", "noise") if weight == 0 else ():
        curves[name] = np.asarray([probe[name] for probe in probes])
    return state, curves, stopped


def certificates(
    lab: support.Lab, network: tq.CouplingNetwork, task: Task, where: str
) -> list[dict[str, Any]]:
    """Certifies the student of every teacher, and halts at the first that fails."""
    rows = []
    for teacher, code in enumerate(task.codes):
        one = lab("certify", certify, network, code)
        try:
            one.require()
        except tq.markov.CertificateError as error:
            failed = ", ".join(verdict.failed_checks(one))
            raise Halt(f"{where}, teacher {teacher}: failed {failed}") from error
        rows.append(verdict.certificate_row(one))
    return rows


def run_arm(
    lab: support.Lab,
    constants: Constants,
    seed: int,
    cell: tuple[int, int],
    weight: float,
    on_step: Callable[[int], None],
) -> Run:
    """One run: train one arm of one cell, then measure and certify its checkpoints."""
    start = time.perf_counter()
    m, s = cell
    task, network = make_task(seed, m, s)
    scalar = jnp.asarray(weight)
    state, curves, stopped = train(lab, task, network, weight, constants.steps, on_step)
    done = len(curves.get("kl", ()))

    # The networks at the checkpoints; a checkpoint never reached is None.
    crossed = [int(step) for step in state.crossed]
    found = {"init": (0, network), "final": (done, None if stopped else state.network)}
    for index, name in enumerate(constants.checkpoints[1:-1]):
        arrays = jax.tree.map(lambda x, i=index: x[i], state.snapshots)
        snapshot = eqx.combine(arrays, network)
        found[name] = (crossed[index], snapshot if crossed[index] >= 0 else None)

    name = verdict.run_name(seed, cell, weight)
    checkpoints: dict[str, Checkpoint | None] = {}
    for label in constants.checkpoints:
        step, student = found[label]
        if student is None:
            checkpoints[label] = None
            continue
        values, _ = lab("evaluate", evaluate, student, task, scalar)
        weights = curves[f"weights_{label}"] = np.asarray(values["weights"])
        q_numpy = None
        if label not in ("init", "final"):
            with lab.clock("NumPy oracle"):
                laws = np.asarray(task.laws)
                q_numpy = pooled_structural_q(weights, laws, task.predictor.window)
        checkpoints[label] = Checkpoint(
            step=step,
            **{key: float(values[key]) for key in ("kl", "q", "signal", "noise")},
            q_numpy=q_numpy,
            certificates=certificates(lab, student, task, f"{name} at {label}"),
        )

    # Autodiff against central differences, once per cell, on the verdict arm.
    differences = None
    student = found[PROTOCOL.difference_checkpoint][1]
    if weight == constants.lambdas[1] and student is not None:
        errors = difference_errors(
            lambda network: lab("differences", evaluate, network, task, scalar),
            student,
            seed_key(seed, m, s, PROTOCOL.stream_directions),
        )
        differences = errors.min(axis=0).tolist()

    return Run(
        seed=seed,
        cell=cell,
        weight=weight,
        evaluations=done if weight > 0 else 0,
        stopped=stopped,
        seconds=time.perf_counter() - start,
        checkpoints=checkpoints,
        differences=differences,
        curves=curves,
    )


# -------------------------------------------------------------- the protocol, and files


def run_protocol(
    constants: Constants, n_seeds: int, out: Path, resume: bool
) -> tuple[dict[str, Any], list[Run]]:
    """All runs, in order; each is on disk as soon as it is finished.

    A failed certificate ends them, and what there is up to then is judged.
    """
    lab, folder = support.Lab(), support.note_constants(out, constants)
    stamp = {"constants": constants.sha256, **support.versions()}
    plan = [
        (seed, cell, weight)
        for seed in constants.seeds[:n_seeds]
        for cell in constants.cells
        for weight in constants.lambdas
    ]
    runs: list[Run] = []
    halt = None
    with report.progress(len(plan), constants.steps) as bar:
        for seed, cell, weight in plan:
            name = verdict.run_name(seed, cell, weight)
            path = folder / f"{name}.npz"
            run = Run.load(path, stamp) if resume and path.exists() else None
            if reused := run is not None:
                lab.clock.reused += run.seconds
            else:
                bar.begin(name)
                try:
                    run = run_arm(lab, constants, seed, cell, weight, bar.step)
                except Halt as failure:
                    halt = str(failure)
                    break
                support.write_atomically(path, lambda path, r=run: r.save(path, stamp))
            runs.append(run)
            bar.finish(run, reused)
    return support.conclude(out, PROTOCOL, constants, runs, lab.clock, halt), runs


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment, writes its files, prints its report."""
    args, constants = support.parse(argv, (__doc__ or "").split("\n")[0], PROTOCOL)
    try:
        with support.one_blas_thread():
            summary, runs = run_protocol(constants, args.seeds, args.out, args.resume)
        files = [args.out / "summary.json", args.out / "trajectories.npz"]
        if summary["halt"]:
            report.halted(summary, files)
            return 1
        files += figures.draw(args.out, summary, runs, constants)
        report.show(summary, constants, files)
        return 0
    except KeyboardInterrupt:
        words = sys.orig_argv if argv is None else ["python", "examples/exp9.py", *argv]
        report.interrupted(shlex.join([*words, *([] if args.resume else ["--resume"])]))
        return 130


if __name__ == "__main__":
    sys.exit(main())
