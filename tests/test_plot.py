"""Figures: what they draw is what the library says, on the axes that they are given."""

import dataclasses
import pathlib
import re
import subprocess
import sys
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers import (
    DIRECT,
    IDENTITY,
    KERNELS,
    assert_close,
    grid,
    neural,
    random_law,
    rbm,
)
from matplotlib.figure import Figure
from test_compilation import Counted, programs

import trainq as tq
from trainq import markov, plot, sampling
from trainq.models import Tempered
from trainq.plot._style import short


matplotlib.use("Agg")
ROOT = pathlib.Path(__file__).parent.parent
KERNEL, MODEL, DATA = tq.RandomScanGibbs(), rbm(3, 2), random_law(3)
SNR = tq.QStruct(KERNEL, 50)(MODEL, DATA)
VALUES = np.asarray(
    sampling.run(
        KERNEL, MODEL, sampling.start_chains(jr.key(0), MODEL, 8), 400, keep=True
    ).values
)
SAMPLED = [tq.QSampled(KERNEL, k)(jr.key(k), MODEL, DATA) for k in (40, 10)]
EXACT = [tq.QOperational(KERNEL, k)(MODEL, DATA) for k in (40, 10)]
STEPS = np.arange(100)
KL = {"slow": np.exp(-STEPS / 50), "fast": np.exp(-STEPS / 20)}
Q = {name: 1 + curve for name, curve in KL.items()}

DRAWN = {
    "couplings": lambda ax: plot.couplings(MODEL, SNR, ax=ax),
    "kernels": lambda ax: plot.kernels({"one": KERNEL}, MODEL, DATA, ax=ax),
    "windows": lambda ax: plot.windows(KERNEL, MODEL, DATA, [1, 5], ax=ax),
    "sampled": lambda ax: plot.sampled(SAMPLED, EXACT, ax=ax),
    "spectrum": lambda ax: plot.spectrum(
        markov.modes(KERNEL.chain(MODEL), tq.observables(MODEL)), ax=ax
    ),
    "basins": lambda ax: plot.basins(markov.basins(KERNEL.chain(MODEL)), ax=ax),
    "ladder": lambda ax: plot.ladder(np.array([1, 0.5]), {"one": 0.3}, ax=ax),
    "autocorrelation": lambda ax: plot.autocorrelation(VALUES[..., 0], ax=ax),
    "trajectories": lambda ax: plot.trajectories(KL, Q, ax=ax),
}


@pytest.fixture
def ax():
    return Figure().subplots()


def curve(ax, name):
    """The points of the line with this label, or one that starts like it."""
    lines = {str(line.get_label()): line for line in ax.get_lines()}
    (line,) = (
        [lines[name]]
        if name in lines
        else [line for label, line in lines.items() if label.startswith(name)]
    )
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


# On the axes, and nowhere else.


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_drawn_on_the_axes_given_and_leaves_no_trace(name, ax):
    before = dict(matplotlib.rcParams), plt.get_fignums()
    assert DRAWN[name](ax) is ax
    ax.figure.savefig("/dev/null", format="svg")  # it can be drawn
    assert (dict(matplotlib.rcParams), plt.get_fignums()) == before
    assert ax.get_xlabel()


@pytest.mark.parametrize("name", DRAWN)
def test_without_axes_there_is_one_new_figure(name):
    before = dict(matplotlib.rcParams), plt.get_fignums()
    drawn = DRAWN[name](None)
    (number,) = set(plt.get_fignums()) - set(before[1])
    assert plt.figure(number) is drawn.figure
    plt.close(number)
    assert (dict(matplotlib.rcParams), plt.get_fignums()) == before


def test_every_function_is_tested_here_and_is_on_the_page():
    functions = {
        name for name in vars(plot) if callable(getattr(plot, name)) and name[0] != "_"
    }
    assert functions == {*DRAWN, "style"}


def test_a_map_of_couplings_has_the_shape_of_its_matrix():
    for shape in (5, 2), (2, 7):
        model = tq.RBM(jnp.linspace(-1, 1, 10 if shape[0] == 5 else 14).reshape(shape))
        data = tq.visible_distribution(model.tempered(2))
        ax = plot.couplings(model, tq.QStruct(tq.RandomScanGibbs(), 100)(model, data))
        ax.figure.canvas.draw()
        height, width = ax.bbox.height, ax.bbox.width
        assert abs(height / width * shape[1] / shape[0] - 1) < 1e-6
        assert abs(ax.child_axes[0].bbox.height / height - 1) < 1e-6
        whole = ax.figure.bbox
        assert width > 0.6 * whole.width or height > 0.7 * whole.height
    plt.close("all")


@pytest.mark.parametrize("name", [*DRAWN, "style"])
def test_the_example_of_a_docstring_runs(name):
    (block,) = re.findall(
        r"^ +```python\n(.*?)^ +```", getattr(plot, name).__doc__, re.M | re.S
    )
    # Python 3.13 takes the indentation off.
    code = textwrap.dedent(block).replace("ax.figure.savefig", "str")  # no files
    assert max(map(len, code.splitlines())) <= 72
    exec(code, {})
    plt.close("all")


# Without Matplotlib.


def python(code):
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True)


def test_trainq_does_not_import_matplotlib():
    code = "import sys; from trainq import *; assert 'matplotlib' not in sys.modules"
    done = python(code)
    assert done.returncode == 0, done.stderr


# Couplings.


@pytest.mark.parametrize("biased", [False, True])
def test_couplings_of_an_rbm(biased, ax):
    model = rbm(3, 2, biased=biased)
    snr = tq.QStruct(KERNEL, 50)(model, DATA)
    plot.couplings(model, snr, ax=ax)
    _, mesh = ax.collections
    assert_close(mesh.get_array(), snr.parameter_q[:6].reshape(3, 2), IDENTITY)
    numbers = [text.get_text() for text in ax.texts]
    assert numbers == [f"{q:.2g}" for q in snr.parameter_q[:6]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("hidden unit", "visible unit")
    assert ax.get_ylim() == (3, 0)  # the first row is on top


def test_couplings_of_a_machine_are_symmetric_and_only_on_its_edges(ax):
    model = grid()
    snr = tq.QStruct(KERNEL, 50)(model, random_law(4))
    plot.couplings(model, snr, ax=ax)
    drawn = np.ma.filled(ax.collections[1].get_array(), 0)
    expected = np.zeros((6, 6))
    for (i, j), q in zip(model.edges, snr.parameter_q, strict=False):
        expected[i, j] = expected[j, i] = q
    assert_close(drawn, expected, IDENTITY)


def test_couplings_at_a_temperature_are_in_the_same_places(ax):
    machine = grid()
    model = Tempered(machine, 0.5)
    snr = tq.QStruct(KERNEL, 50)(model, random_law(4))
    plot.couplings(model, snr, ax=ax)
    drawn = np.ma.filled(ax.collections[1].get_array(), 0)
    i, j = machine.edges.T
    assert_close(drawn[i, j], snr.parameter_q[: len(i)], IDENTITY)
    assert ax.get_xlabel() == "unit"


def test_a_coupling_without_a_signal_is_grey_and_says_zero(ax):
    silent = eqx.tree_at(
        lambda s: s.parameter_signal, SNR, SNR.parameter_signal.at[3].set(0)
    )
    plot.couplings(MODEL, silent, ax=ax)
    grey, mesh = (np.ma.getmaskarray(c.get_array()) for c in ax.collections)
    assert mesh.ravel().tolist() == [i == 3 for i in range(6)]
    assert (~grey).ravel().tolist() == [i == 3 for i in range(6)]
    assert ax.texts[3].get_text() == "0"


def test_a_single_coupling_has_a_range_of_colours(ax):
    model = rbm(1, 1)
    plot.couplings(model, tq.QStruct(KERNEL, 5)(model, random_law(1)), ax=ax)
    low, high = ax.collections[1].get_clim()
    assert 0 <= low < high


def test_couplings_of_what_has_no_matrix_of_them(as_for_users):
    model = neural(3, 2)
    with pytest.raises(TypeError, match="but a NeuralEnergy was given"):
        plot.couplings(model, tq.QStruct(KERNEL, 5)(model, DATA))


def test_a_batch_of_results_is_refused_and_one_of_them_is_drawn(ax):
    data = jnp.stack([DATA, random_law(3, 1)])
    batch = eqx.filter_vmap(tq.QStruct(KERNEL, 50), in_axes=(None, 0))(MODEL, data)
    with pytest.raises(ValueError, match=r"has shape \(2, 6\). Of a batch take one"):
        plot.couplings(MODEL, batch)
    plot.couplings(MODEL, jax.tree.map(lambda x: x[0], batch), ax=ax)
    assert_close(ax.collections[1].get_array().ravel(), SNR.parameter_q, DIRECT)


@pytest.mark.parametrize(
    "part, value, found",
    [("parameter_variance", 0, "inf"), ("parameter_signal", np.nan, "nan")],
)
def test_a_q_that_is_not_finite(part, value, found):
    numbers = getattr(SNR, part).at[0].set(value)
    snr = eqx.tree_at(lambda snr: getattr(snr, part), SNR, numbers)
    with pytest.raises(ValueError, match=f"parameter_q has finite values, but {found}"):
        plot.couplings(MODEL, snr)


def test_numbers_that_are_traced():
    def draw(snr):
        plot.couplings(MODEL, snr)

    with pytest.raises(ValueError, match="A figure is made of numbers"):
        eqx.filter_jit(draw)(SNR)


# Kernels.


@pytest.mark.parametrize("quantity", ["q", "noise"])
def test_kernels_at_equal_cost(quantity, ax):
    plot.kernels(KERNELS, MODEL, DATA, quantity=quantity, ax=ax)
    for bar, kernel in zip(ax.patches, KERNELS.values(), strict=True):
        # Of 2000 updates: a window of that many over the cost of a step.
        window = 2000 / kernel.site_updates(MODEL)
        snr = tq.QStruct(kernel, window, "sokal")(MODEL, DATA)
        expected = snr.q / 2000 if quantity == "q" else snr.mse * 2000
        assert_close(bar.get_width(), expected, IDENTITY)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(KERNELS)
    written = [float(text.get_text()) for text in ax.texts]
    widths = [bar.get_width() for bar in ax.patches]
    assert written == pytest.approx(widths, rel=0.06)  # in two digits


def test_kernels_that_cannot_be_drawn(as_for_users):
    with pytest.raises(ValueError, match="kernels has a kernel for each name, but it"):
        plot.kernels({}, MODEL, DATA)
    with pytest.raises(ValueError, match='quantity is "q" or "noise", but \'x\' was'):
        plot.kernels({"one": KERNEL}, MODEL, DATA, quantity="x")
    flat = tq.RBM(jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match="and is positive, but 0 was given. Q is zero"):
        plot.kernels({"one": KERNEL}, flat, jnp.full(4, 0.25))


# Windows.

WINDOWS = [1, 4, 30]


def test_windows_draw_both_conventions_and_exact_curves(ax):
    starts = {"stationary": tq.Stationary(), "uniform": tq.Uniform()}
    plot.windows(KERNEL, MODEL, DATA, WINDOWS, start=starts, burn_in=2, ax=ax)
    for convention in ("resolvent", "sokal"):
        x, y = curve(ax, f"structural, {convention}")
        expected = [tq.QStruct(KERNEL, k, convention)(MODEL, DATA).q for k in WINDOWS]
        assert x.tolist() == WINDOWS
        assert_close(y, jnp.stack(expected), IDENTITY)
    for name, start in starts.items():
        _, y = curve(ax, f"exact, start: {name}")
        exact = [tq.QOperational(KERNEL, k, 2, start) for k in WINDOWS]
        expected = [predictor(MODEL, DATA).q for predictor in exact]
        assert_close(y, jnp.stack(expected), IDENTITY)
    looks = {(x.get_color(), x.get_linestyle()) for x in ax.get_lines()[:4]}
    assert len(looks) == 4


def test_any_number_of_windows_is_one_program_for_each_curve(ax):
    def draw(steps):
        return lambda: plot.windows(Counted(), MODEL, DATA, steps, ax=ax)

    few, many = programs(draw([1, 2]), draw(range(3, 20)))
    assert few > 0 and many == 0


def test_windows_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="windows has one length at least"):
        plot.windows(KERNEL, MODEL, DATA, [])
    with pytest.raises(ValueError, match="windows is a whole number of kernel steps"):
        plot.windows(KERNEL, MODEL, DATA, [0])
    with pytest.raises(ValueError, match="start has a start for each name, but it is"):
        plot.windows(KERNEL, MODEL, DATA, [1], start={})


# Sampled Q.


def test_sampled_q_has_its_interval_and_the_exact_one_beside_it(ax):
    plot.sampled(SAMPLED, EXACT, confidence=0.9, ax=ax)
    (bars,) = ax.containers
    points, _, (stems,) = bars.lines
    assert points.get_xdata().tolist() == [40, 10]
    assert_close(points.get_ydata(), jnp.stack([s.q for s in SAMPLED]), IDENTITY)
    drawn = [stem[:, 1] for stem in stems.get_segments()]
    assert_close(drawn, jnp.stack([s.interval(0.9) for s in SAMPLED]), IDENTITY)
    x, y = curve(ax, "exact")
    assert x.tolist() == [10, 40]  # a line goes from left to right
    assert_close(y, jnp.stack([EXACT[1].q, EXACT[0].q]), IDENTITY)
    assert bars.get_label() == "sampled, 90 % interval"


def test_one_sampled_q_alone(ax):
    plot.sampled(SAMPLED[0], ax=ax)
    assert len(ax.containers) == 1
    assert "exact" not in [line.get_label() for line in ax.get_lines()]


def test_sampled_q_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="sampled has one result at least"):
        plot.sampled([])
    data = jnp.stack([DATA, random_law(3, 1)])
    batch = eqx.filter_vmap(tq.QOperational(KERNEL, 5), in_axes=(None, 0))(MODEL, data)
    with pytest.raises(ValueError, match=r"one of a batch of shape \(2,\) was given"):
        plot.sampled(SAMPLED, batch)
    unknown = eqx.tree_at(lambda s: s.signal_error, SAMPLED[0], jnp.array(jnp.inf))
    with pytest.raises(ValueError, match="interval of Q has finite values, but inf"):
        plot.sampled(unknown)


# Spectra.


def rates_and_weights(chain, f):
    """Rates and weights from a plain eigenproblem, which knows no parity."""
    root = np.sqrt(np.asarray(chain.stationary))
    matrix = root[:, None] * np.asarray(chain.matrix()) / root[None]
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    f = np.asarray(f - (chain.stationary @ f)[None])
    return 1 - values[:-1], np.sum((vectors.T @ (root[:, None] * f))[:-1] ** 2, axis=1)


@pytest.mark.quick(1)
@pytest.mark.parametrize("kernel", ["gibbs", "metropolis", "random", "palindromic"])
def test_a_spectrum_has_the_rates_and_the_weights_of_the_gradient(kernel, ax):
    model = rbm(2, 3, biased=True)
    chain, f = KERNELS[kernel].chain(model), tq.observables(model)
    found = markov.modes(chain, f)
    plot.spectrum(found, ax=ax)
    rates, weights = rates_and_weights(chain, f)
    x, y = curve(ax, "modes")
    # Every mode that is drawn is one, with all of the weight at its rate.
    for rate, share in zip(x, y, strict=True):
        here = weights[np.abs(rates - rate) < 1e-9].sum() / weights.sum()
        assert share == pytest.approx(here, rel=1e-8)
    # But for those below 1e-6, and what a step forgets.
    assert sum(y) + float(found.rest_share) == pytest.approx(1, abs=1e-4)
    some = [str(line.get_label()) for line in ax.get_lines()]
    told = any("% in none of these modes" in label for label in some)
    assert told == (found.rest_share > 1e-6)
    least = markov.spectral_gap(chain)
    drawn = np.concatenate([line.get_xdata() for line in ax.get_lines()])
    assert min(drawn) == pytest.approx(float(least), rel=1e-8)


@pytest.mark.slow
def test_odd_modes_have_no_weight_in_the_gradient_of_a_symmetric_model(ax):
    model = rbm(3, 3)
    chain, f = KERNEL.chain(model), tq.observables(model)
    plot.spectrum(markov.modes(chain, f), ax=ax)
    gaps = markov.parity_gaps(chain)
    x, y = curve(ax, "even modes")
    assert min(x) == pytest.approx(float(gaps.even), rel=1e-8)
    ticks, _ = curve(ax, "odd modes, share below")
    assert min(ticks) == pytest.approx(float(gaps.odd), rel=1e-8)
    # The time of the gradient is the sum of weights over rates.
    t_o = jnp.sum(markov.variance(chain, markov.EnergyGradients(model))) * sum(y / x)
    expected = float(tq.QStruct(KERNEL, 1)(model, random_law(3)).t_o)
    assert t_o == pytest.approx(expected, rel=1e-4)


def test_a_single_odd_function_is_felt_by_odd_modes_alone(ax):
    model = rbm(2, 2)
    first = jnp.repeat(jnp.array([-1.0, 1.0]), 8)  # the first unit
    plot.spectrum(markov.modes(KERNEL.chain(model), first), ax=ax)
    assert sum(curve(ax, "odd modes")[1]) == pytest.approx(1, abs=1e-4)


def test_spectra_that_cannot_be_drawn(as_for_users):
    chain = KERNEL.chain(MODEL)
    with pytest.raises(
        TypeError, match=r"what `trainq.markov.modes\(chain, f\)` found"
    ):
        plot.spectrum(chain)
    with pytest.raises(ValueError, match="The observables feel none of these modes"):
        plot.spectrum(markov.modes(chain, jnp.ones(32)))
    found = markov.modes(chain, tq.observables(MODEL))
    with pytest.raises(ValueError, match=r"a batch of shape \(1,\) was given"):
        plot.spectrum(jax.tree.map(lambda x: x[None], found))


def test_a_tree_of_basins_has_its_bottoms_and_its_passes(ax):
    model = tq.hopfield(tq.random_patterns(jr.key(3), 2, 6), 3.0)
    found = markov.basins(KERNEL.chain(model))
    plot.basins(found, ax=ax)
    (points,) = ax.collections
    x, y = np.asarray(points.get_offsets()).T
    assert sorted(x.tolist()) == list(range(len(found.minima)))
    assert y == pytest.approx(found.energy)
    # Each has its number in the table below it.
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert [names[int(place)] for place in x] == [str(k) for k in range(len(x))]
    tops = [max(line.get_ydata()) for line in ax.get_lines()]
    assert tops == pytest.approx(found.height.tolist())
    # No branch crosses another: one bottom under each end, or a pass that is lower.
    for line in ax.get_lines():
        left, *_, right = line.get_xdata()
        assert left != right
        assert line.get_ydata()[1] >= max(line.get_ydata()[0], line.get_ydata()[-1])


def test_a_rung_is_a_step_of_a_ladder(ax):
    betas = np.array([1.0, 0.6, 0.3, 0.1])
    plot.ladder(betas, {"exact": [0.2, 0.3, 0.5], "predicted": 0.25}, ax=ax)
    x, y = curve(ax, "exact")
    assert x == pytest.approx([0.8, 0.45, 0.2]) and y == pytest.approx([0.2, 0.3, 0.5])
    assert curve(ax, "predicted")[1] == pytest.approx([0.25] * 3)
    with pytest.raises(ValueError, match="each of the 3 pairs of .* but 2 were given"):
        plot.ladder(betas, {"exact": [0.2, 0.3]}, ax=ax)
    with pytest.raises(ValueError, match="has finite values, but nan was given"):
        plot.ladder(betas, {"counted": [0.2, np.nan, 0.3]}, ax=ax)


def test_too_many_basins_are_refused(as_for_users):
    found = markov.basins(KERNEL.chain(tq.curie_weiss(3, 1.0)))
    many = dataclasses.replace(found, minima=np.zeros(41, int))
    with pytest.raises(ValueError, match="at most 40 basins can be read, .* are 41"):
        plot.basins(many)


# Autocorrelation.


def test_autocorrelation_has_its_window_and_its_status(ax):
    plot.autocorrelation(VALUES[..., :2], names=["a", "b"], ax=ax)
    time = sampling.autocorrelation_time(jnp.asarray(VALUES[..., :2]))
    covariance = sampling.autocovariance(VALUES[..., :2]).mean(axis=0)
    assert len(time.status) == 2
    for place, name in enumerate("ab"):
        lags, rho = curve(ax, f"{name}: τ = {time.value[place]:.3g} ±")
        expected = covariance[: len(lags), place] / covariance[0, place]
        assert_close(rho, expected, IDENTITY)
        status = sampling.STATUS[int(time.status[place])].partition(":")[0]
        labels = [str(line.get_label()) for line in ax.get_lines()]
        assert any(x.startswith(f"{name}: ") and x.endswith(status) for x in labels)
    upright = [
        line.get_xdata() for line in ax.get_lines() if len(line.get_xdata()) == 2
    ]
    assert [x[0] for x in upright[1:]] == time.lags.tolist()


def test_the_window_of_a_single_observable_is_shaded(ax):
    plot.autocorrelation(VALUES[..., 0], windowing="geyer", ax=ax)
    time = sampling.autocorrelation_time(jnp.asarray(VALUES[..., 0]), windowing="geyer")
    (shade,) = ax.patches
    assert shade.get_width() == int(time.lags)


@pytest.mark.slow
def test_autocorrelation_that_cannot_be_drawn():
    with pytest.raises(ValueError, match=r"values has shape \(chains, steps\) or"):
        plot.autocorrelation(VALUES[..., None])
    with pytest.raises(ValueError, match="At most 7 observables are told apart, but 8"):
        plot.autocorrelation(np.repeat(VALUES[..., :1], 8, axis=2))
    with pytest.raises(ValueError, match="for each of the 6 observables, but 1 were"):
        plot.autocorrelation(VALUES, names=["a"])
    with pytest.raises(ValueError, match="Observable 1 never changes"):
        plot.autocorrelation(VALUES[..., :2] * np.array([1, 0]))
    with pytest.raises(ValueError, match="values has finite values, but nan was given"):
        plot.autocorrelation(np.where(VALUES > 0, np.nan, VALUES))


# Trajectories.


def marks(ax):
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in ax.get_lines()
        if len(line.get_xdata()) == 1
    ]


@pytest.mark.parametrize("of", [None, Q])
def test_marks_are_at_equal_progress(of, ax):
    plot.trajectories(KL, of, ax=ax)
    expected = []
    for name, kl in KL.items():
        drawn = kl if of is None else of[name]
        x, y = curve(ax, name)
        assert x.tolist() == (1 + STEPS).tolist() and y.tolist() == drawn.tolist()
        for fraction in (0.5, 0.25):
            at = np.flatnonzero(kl <= fraction * kl[0])[0]
            expected.append((at + 1, drawn[at]))
    assert marks(ax) == expected


def test_what_was_not_reached_or_not_recorded_has_no_mark(ax):
    some = np.where(STEPS % 10 == 0, Q["slow"], np.nan)
    plot.trajectories({"slow": KL["slow"]}, {"slow": some}, ax=ax)
    x, _ = curve(ax, "slow")
    assert x.tolist() == list(range(1, 101, 10))
    # It halves at step 35, and a quarter, at step 70, is recorded.
    assert marks(ax) == [(71, Q["slow"][70])]
    ax.clear()
    plot.trajectories({"slow": KL["slow"]}, crossings=[0.01], ax=ax)
    assert marks(ax) == []


def test_trajectories_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="kl has a curve of shape"):
        plot.trajectories({})
    with pytest.raises(ValueError, match="q has the runs and the steps of kl"):
        plot.trajectories(KL, {"slow": Q["slow"]})
    with pytest.raises(ValueError, match="q has the runs and the steps of kl"):
        plot.trajectories(KL, {name: q[:5] for name, q in Q.items()})
    with pytest.raises(ValueError, match="fractions between 0 and 1, but"):
        plot.trajectories(KL, crossings=[50.0])
    with pytest.raises(ValueError, match="kl of slow has finite values, but nan"):
        plot.trajectories({"slow": KL["slow"] * np.nan})
    with pytest.raises(ValueError, match="q of slow has finite values, but inf"):
        plot.trajectories(KL, Q | {"slow": Q["slow"] * np.inf})
    with pytest.raises(ValueError, match="kl of slow is drawn on a logarithmic axis"):
        plot.trajectories({"slow": KL["slow"] * 0})


# The gallery.


def test_the_gallery_has_a_small_figure_of_every_function():
    page = (ROOT / "docs/gallery.md").read_text()
    script = (ROOT / "examples/gallery.py").read_text()
    files = {path.stem: path for path in (ROOT / "docs/gallery").iterdir()}
    assert set(files) == set(DRAWN)
    for name, path in files.items():
        assert f'--8<-- "examples/gallery.py:{name}"' in page
        assert f"](gallery/{path.name})" in page and f'save("{name}")' in script
        assert path.stat().st_size < 100_000
        assert "<dc:date>" not in path.read_text()
    imports = re.findall(r"^(?:from|import) .*", page, re.M)
    assert imports and all(line in script.splitlines() for line in imports)
    parts = re.findall(r"\[start:\w+\]\n(.*?)# --8<--", script, re.S)
    assert all(len(line) <= 72 for part in parts for line in part.splitlines())


@pytest.mark.slow  # it samples, and trains two models
def test_the_script_of_the_gallery_makes_its_files(tmp_path):
    command = [sys.executable, "-W", "error", ROOT / "examples/gallery.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {path.name for path in (ROOT / "docs/gallery").iterdir()}


def test_numbers_of_three_digits_are_written_out():
    numbers = [0.0123, 9.96, 99.4, 99.6, 480.4, 999.0, 1234.0]
    written = ["0.012", "10", "99", "99.6", "480", "999", "1.2e+03"]
    assert [short(x) for x in numbers] == written


def test_styles_are_told_apart_in_print_and_come_again():
    looks = [plot.style(i) for i in range(13)]
    for key in ("c", "ls", "marker"):
        assert len({str(look[key]) for look in looks[:7]}) == 7
    assert looks[7:] == looks[1:7]
    assert plot.style(1, marker="") == looks[1] | {"marker": ""}
