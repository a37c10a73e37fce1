"""The models that all benchmarks share, and log Q of them written by hand."""

import jax
import jax.numpy as jnp
import numpy as np

import trainq as tq


def model(m: int, n: int | None = None, scale: float = 0.5) -> tq.RBM:
    """Normal weights, with a standard deviation of `scale` at m = 5 and of less for
    larger layers, so that fields stay of one size."""
    n = m if n is None else n
    size = scale * np.sqrt(5 / max(m, n, 5))
    return tq.RBM(size * jax.random.normal(jax.random.key(0), (m, n)))


def data(m: int) -> jax.Array:
    teacher = tq.planted_rbm(jax.random.key(1), m, 2, 3.0)
    return tq.visible_distribution(teacher)


WINDOW = 2500


def states(m: int) -> np.ndarray:
    index = np.arange(4**m)
    return ((index[:, None] >> np.arange(2 * m - 1, -1, -1)) & 1) * 2.0 - 1


def transition(log_law, m: int):
    """The dense matrix of single-site Gibbs sampling."""
    size, n_units = 4**m, 2 * m
    index = np.arange(size)
    flipped = np.stack([index ^ (1 << (n_units - 1 - i)) for i in range(n_units)])
    moves = jax.nn.sigmoid(log_law[flipped] - log_law[None]) / n_units
    rows = np.broadcast_to(index, flipped.shape)
    matrix = jnp.zeros((size, size)).at[rows, flipped].add(moves)
    return matrix + jnp.diag(1 - moves.sum(0))


def naive_log_q(m: int, method: str = "solve"):
    """log Q as one writes it: a dense matrix, a dense solve or eigh, and autodiff."""
    x = states(m)
    v, h = jnp.asarray(x[:, :m]), jnp.asarray(x[:, m:])
    f = -(v[:, :, None] * h[:, None, :]).reshape(4**m, m * m)
    law_of_data = data(m)

    def log_q(weights):
        log_law = jax.nn.log_softmax(jnp.sum((v @ weights) * h, axis=1))
        law, matrix = jnp.exp(log_law), transition(log_law, m)
        centred = f - law @ f
        if method == "solve":
            system = jnp.eye(4**m) - matrix + law[None, :]
            solution = jnp.linalg.solve(system, centred)
            noise = jnp.sum(law[:, None] * centred * solution)
        else:
            root = jnp.sqrt(law)
            values, modes = jnp.linalg.eigh(root[:, None] * matrix / root[None, :])
            overlap = modes[:, :-1].T @ (root[:, None] * centred)
            noise = jnp.sum(overlap**2 / (1 - values[:-1])[:, None])
        joint = law.reshape(2**m, -1)
        joint = law_of_data[:, None] * joint / joint.sum(1, keepdims=True)
        gradient = joint.reshape(-1) @ f - law @ f
        return jnp.log(WINDOW / 2 * gradient @ gradient / noise)

    return log_q


def our_log_q(m: int, kernel=None, solver=None):
    predictor = tq.QStruct(kernel or tq.RandomScanGibbs(), WINDOW, solver=solver)
    law_of_data = data(m)
    return lambda weights: predictor(tq.RBM(weights), law_of_data).log_q
