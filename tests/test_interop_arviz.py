"""Series as a `DataTree`, whose diagnostics by ArviZ are compared with ours."""

import arviz_stats
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import IDENTITY, KERNELS, SIGMAS, assert_close, grid, neural, rbm

import trainq as tq
from trainq import sampling
from trainq.interop.arviz import to_datatree


# Its own types say that it exports nothing.
ess, rhat, summary = map(vars(arviz_stats).get, ("ess", "rhat", "summary"))


def run(model, n_steps=2000, n_chains=4, **options):
    state = tq.start_chains(jr.key(0), model, n_chains)
    return tq.run(KERNELS["gibbs"], model, state, n_steps, keep=True, **options).values


RBM, GRID = rbm(3, 2, biased=True), grid()
OF_RBM, OF_GRID = run(RBM, 4000), run(GRID, 500)


def test_values_have_the_places_of_parameters():
    tree = to_datatree(OF_RBM, RBM)["posterior"]
    assert list(tree.data_vars) == ["weights", "visible_bias", "hidden_bias"]
    assert tree["weights"].dims == ("chain", "draw", "visible", "hidden")
    for i in range(3):
        for j in range(2):
            one = tree["weights"].sel(visible=i, hidden=j)
            assert np.array_equal(one, OF_RBM[:, :, 2 * i + j])
            product = tree["visible_bias"].sel(visible=i) * tree["hidden_bias"].sel(
                hidden=j
            )
            assert np.array_equal(one, -product)
    tree = to_datatree(OF_GRID, GRID)["posterior"]
    assert tree["couplings"].dims == ("chain", "draw", "edge")
    for i, j in GRID.edges.tolist():
        spins = tree["bias"].sel(unit=i) * tree["bias"].sel(unit=j)
        assert np.array_equal(tree["couplings"].sel(edge=f"{i}-{j}"), -spins)


def test_arviz_finds_what_we_find():
    tree = to_datatree(OF_RBM, RBM)
    ours = sampling.autocorrelation_time(OF_RBM, windowing="geyer")
    sizes = ess(tree, method="mean").ds
    r_hats = rhat(tree, method="split").ds
    table = summary(tree, kind="stats", round_to="none")
    means = np.asarray(OF_RBM).mean(axis=(0, 1))
    start = 0
    for name, parameter in [
        ("weights", RBM.weights),
        ("visible_bias", RBM.visible_bias),
        ("hidden_bias", RBM.hidden_bias),
    ]:
        part = slice(start, start + parameter.size)
        start += parameter.size
        # It cuts chains in halves, and sums by another one of Geyer's rules.
        size = np.asarray(ours.effective_samples[part])
        assert np.abs(sizes[name].values.reshape(-1) / size - 1).max() < 0.1
        r_hat = sampling.r_hat(OF_RBM)[part]
        assert_close(r_hats[name].values.reshape(-1), r_hat, IDENTITY)
        rows = [row for row in table.index if row.startswith(f"{name}[")]
        assert_close(table.loc[rows, "mean"].to_numpy(float), means[part], IDENTITY)
    # What it makes of the means is what is known exactly.
    exact = tq.mean_observables(RBM)
    error = np.std(OF_RBM, axis=(0, 1)) / np.sqrt(ours.effective_samples)
    assert np.all(np.abs(means - exact) < SIGMAS * error)


def test_functions_have_the_names_that_are_given():
    def functions(x):
        return jnp.stack([x.mean(axis=1), x[:, 0] * x[:, 1]], axis=1)

    values = run(RBM, 50, functions=functions)
    tree = to_datatree(values, ["magnetisation", "pair"], group="series")
    assert np.array_equal(tree["series"]["pair"], values[:, :, 1])
    assert np.array_equal(tree["series"]["magnetisation"], values[:, :, 0])
    assert ess(tree, group="series").data_vars.keys() == {
        "magnetisation",
        "pair",
    }


class Two(tq.AbstractEnergyModel):
    first: tq.RBM
    second: tq.RBM
    scale: jax.Array

    @property
    def n_visible(self):
        return 5

    @property
    def n_hidden(self):
        return 4

    def energy(self, x):
        one = self.first.energy(jnp.concatenate([x[:3], x[5:7]]))
        return one + self.scale * self.second.energy(jnp.concatenate([x[3:5], x[7:]]))


@pytest.mark.slow
def test_any_model_has_names():
    model = Two(RBM, rbm(2, 2), jnp.asarray(0.5))
    values = run(model, 20)
    tree = to_datatree(values, model)["posterior"]
    assert list(tree.data_vars) == [
        *(f"first.{name}" for name in ("weights", "visible_bias", "hidden_bias")),
        "second.weights",
        "scale",
    ]
    one = tree["second.weights"].sel({"second.visible": 1, "second.hidden": 0})
    assert np.array_equal(one, values[:, :, 13])
    assert np.array_equal(tree["scale"], values[:, :, -1])
    model = neural(2, 2)
    names = list(to_datatree(run(model, 20), model)["posterior"].data_vars)
    assert names[0] == "mlp.layers[0].weight" and len(names) == 4


def test_wrapped_models_have_the_names_of_their_own():
    clamped = RBM.clamp([0], [1])
    tree = to_datatree(run(clamped, 20), clamped)["posterior"]
    assert tree["weights"].shape == (4, 20, 3, 2)
    hot = tq.models.Tempered(GRID, 0.5)
    tree = to_datatree(run(hot, 20), hot)["posterior"]
    assert set(np.abs(tree["couplings"].values).ravel()) == {0.5}


def test_mistakes_are_told(as_for_users):
    with pytest.raises(ValueError, match=r"\(chains, steps, n_obs\), as .* but a list"):
        to_datatree([], RBM)
    with pytest.raises(ValueError, match=r"as `run\(..., keep=True\).values`, but \(4"):
        to_datatree(OF_RBM[:, :, 0], RBM)
    with pytest.raises(ValueError, match="values of 11 functions, but 13 parameters"):
        to_datatree(OF_RBM, GRID)
    with pytest.raises(ValueError, match="values of 11 functions, but 2 names"):
        to_datatree(OF_RBM, ["a", "b"])
    for of in ("ab", ["a", "a"]):
        with pytest.raises(ValueError, match="a list of names, each another one, but"):
            to_datatree(OF_RBM[:, :, :2], of)
    with pytest.raises(ValueError, match="a traced values was given"):
        jax.jit(lambda x: to_datatree(x, RBM) and None)(OF_RBM)
    batch = eqx.filter_vmap(RBM.tempered)(jnp.ones(2))
    with pytest.raises(ValueError, match="is a batch of models"):
        to_datatree(OF_RBM, batch)
