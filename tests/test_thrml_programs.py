"""Programs of thrml that hold the parameters of their model, and programs that do
not."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import excess, grid
from thrml import Block
from thrml.block_sampling import sample_blocks
from thrml.conditional_samplers import BernoulliConditional
from thrml.models import IsingEBM, IsingSamplingProgram
from thrml.models.discrete_ebm import SpinEBMFactor

import trainq as tq
from trainq._spins import state_index
from trainq.interop import _thrml_programs
from trainq.interop.thrml import certify_program, program_step, to_thrml


MODEL = grid()
KERNEL = tq.AlternatingBlockGibbs(MODEL.colouring())
EBM, BLOCKS = to_thrml(MODEL.tempered(1.0), KERNEL)
PROGRAM = IsingSamplingProgram(EBM, BLOCKS, [])


def changed(**values):
    """Another model on the same nodes."""
    fields = {"biases": EBM.biases, "weights": EBM.weights, "beta": EBM.beta} | values
    return IsingEBM(EBM.nodes, EBM.edges, **fields)


def split(program, at):
    """A program with one array changed."""
    return eqx.tree_at(at, program, replace_fn=lambda x: x + 0.01)


def test_a_program_of_its_model_passes_and_holds_its_numbers():
    found = certify_program(PROGRAM, EBM).require()
    assert found.ok and found.failed == ()
    matrix, bias = np.asarray(MODEL.coupling_matrix), np.asarray(MODEL.bias)
    np.testing.assert_array_equal(found.held, np.column_stack([matrix, bias]))
    # Also with a temperature, superblocks, and in float32.
    warm = changed(beta=jnp.array(0.7))
    parts = [(Block([node]), Block(list(b)[1:])) for b in BLOCKS for node in [b[0]]]
    assert certify_program(IsingSamplingProgram(warm, parts, []), warm).ok
    single = changed(
        biases=EBM.biases.astype(jnp.float32),
        weights=EBM.weights.astype(jnp.float32),
        beta=jnp.array(0.7, jnp.float32),
    )
    assert certify_program(IsingSamplingProgram(single, BLOCKS, []), single).ok


def test_a_clamped_program_is_compared_on_its_free_units():
    program = IsingSamplingProgram(EBM, BLOCKS[:1], BLOCKS[1:])
    assert certify_program(program, EBM).ok
    stale = certify_program(program, changed(weights=EBM.weights + 0.01))
    assert stale.failed == ("couplings",)
    assert not np.any(stale.held[list(KERNEL.blocks[1])])


FAULTS = {
    "stale weights": (
        lambda: (PROGRAM, changed(weights=EBM.weights.at[2].add(1e-9))),
        ("couplings",),
    ),
    "stale biases": (
        lambda: (PROGRAM, changed(biases=EBM.biases.at[3].add(0.1))),
        ("fields",),
    ),
    "another temperature": (
        lambda: (PROGRAM, changed(beta=jnp.array(1.05))),
        ("couplings", "fields"),
    ),
    "a wrong sign": (lambda: (PROGRAM, changed(weights=-EBM.weights)), ("couplings",)),
    "one end of an edge": (
        lambda: (
            split(PROGRAM, lambda p: p.per_block_interactions[1][1].weights),
            EBM,
        ),
        ("couplings",),
    ),
    "an edge that is switched off": (
        lambda: (
            eqx.tree_at(
                lambda p: p.per_block_interaction_active[0][1],
                PROGRAM,
                replace_fn=jnp.zeros_like,
            ),
            EBM,
        ),
        ("couplings",),
    ),
    "neighbours of others": (
        lambda: (
            eqx.tree_at(
                lambda p: p.per_block_interaction_global_slices[0][1][0],
                PROGRAM,
                replace_fn=lambda x: jnp.roll(x, 1, axis=0),
            ),
            EBM,
        ),
        ("couplings",),
    ),
    "an edge missing": (
        lambda: (
            IsingSamplingProgram(
                IsingEBM(
                    EBM.nodes, EBM.edges[1:], EBM.biases, EBM.weights[1:], EBM.beta
                ),
                BLOCKS,
                [],
            ),
            EBM,
        ),
        ("couplings",),
    ),
    "units that interact at once": (
        lambda: (IsingSamplingProgram(EBM, [tuple(BLOCKS)], []), EBM),
        ("blocks",),
    ),
    "three spins": (lambda: (three_spins(), EBM), ("interactions",)),
    "a sampler of another kind": (
        lambda: (
            eqx.tree_at(lambda p: p.samplers[0], PROGRAM, Cold()),
            EBM,
        ),
        ("samplers",),
    ),
}


class Cold(BernoulliConditional):
    """Some other conditional of spins."""

    def compute_parameters(
        self, key, interactions, active_flags, states, sampler_state, output_sd
    ):
        return jnp.zeros(output_sd.shape), sampler_state


def three_spins():
    """With an interaction of three spins besides."""

    class More(IsingEBM):
        @property
        def factors(self):
            three = [Block([EBM.nodes[i]]) for i in (0, 2, 4)]
            return [*super().factors, SpinEBMFactor(three, jnp.ones(1))]

    more = More(EBM.nodes, EBM.edges, EBM.biases, EBM.weights, EBM.beta)
    return IsingSamplingProgram(more, BLOCKS, [])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_program_of_another_model_is_told(fault):
    make, failed = FAULTS[fault]
    found = certify_program(*make())
    assert found.failed == failed and not found.ok
    with pytest.raises(tq.markov.CertificateError, match="A program does not run its"):
        found.require()


def test_a_strange_node_is_told():
    other, blocks = to_thrml(MODEL, KERNEL)
    found = certify_program(IsingSamplingProgram(other, blocks, []), EBM)
    assert "units" in found.failed and "interactions" in found.failed


def test_the_worst_is_named_with_both_numbers():
    other = changed(weights=EBM.weights.at[2].add(0.5))
    found = certify_program(PROGRAM, other)
    i, j = MODEL.edges[2]
    assert set(found.worst) == {i, j}
    assert f"{float(EBM.weights[2]):.4g} in the program and" in str(found)
    biased = certify_program(PROGRAM, changed(biases=EBM.biases.at[3].add(1.0)))
    assert biased.worst == (3, 6) and "by its bias" in str(biased)


def test_a_step_of_a_program_is_one_iteration():
    step = program_step(PROGRAM, EBM)
    start = jnp.array([1.0, -1, 1, 1, -1, -1])
    x = step(jr.key(0), jnp.broadcast_to(start, (20_000, 6)))
    counts = np.bincount(np.asarray(state_index(x)), minlength=64)
    row = KERNEL.chain(MODEL).matrix()[int(state_index(start))]
    assert excess(counts, np.asarray(row)) < 5
    wrong = KERNEL.chain(MODEL.tempered(0.8)).matrix()[int(state_index(start))]
    assert excess(counts, np.asarray(wrong)) > 5


def test_a_program_with_other_numbers_compiles_nothing_anew(monkeypatch):
    traces = []

    def counted(*args):
        traces.append(0)
        return sample_blocks(*args)

    monkeypatch.setattr(_thrml_programs, "sample_blocks", counted)
    x = jnp.ones((11, 6))  # as many chains as no other test has
    other = changed(weights=2 * EBM.weights)
    for program, ebm in (
        (PROGRAM, EBM),
        (IsingSamplingProgram(other, BLOCKS, []), other),
    ):
        program_step(program, ebm)(jr.key(0), x)
        assert len(traces) == 1
    once = IsingSamplingProgram(EBM, [tuple(BLOCKS)], [])
    program_step(once, EBM)(jr.key(0), x)
    assert len(traces) == 2


def test_stale_weights_are_caught_by_what_they_sample():
    trained = MODEL.tempered(1.3)
    step = program_step(PROGRAM, EBM)
    key = jr.key(1)
    sound = tq.certify_sampler(key, step, MODEL, kernel=KERNEL, estimates=False)
    stale = tq.certify_sampler(key, step, trained, kernel=KERNEL)
    assert sound.ok and {"temperature", "fields"} <= set(stale.failed)
    assert stale.beta_error is not None and stale.beta_error < 0.02
    assert abs(stale.beta - 1 / 1.3) < 5 * stale.beta_error


@pytest.mark.usefixtures("as_for_users")
def test_mistakes_raise():
    with pytest.raises(ValueError, match="in this order, but a IsingEBM and a Ising"):
        certify_program(EBM, PROGRAM)
    with pytest.raises(ValueError, match="a traced ebm was given"):
        jax.jit(lambda w: certify_program(PROGRAM, changed(weights=w)).ok)(EBM.weights)
    clamped = IsingSamplingProgram(EBM, BLOCKS[:1], BLOCKS[1:])
    with pytest.raises(ValueError, match="has 3 free ones and 1 clamped blocks"):
        program_step(clamped, EBM)
