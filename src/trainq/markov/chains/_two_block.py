"""Kernels that redraw all visible units, or all hidden ones, at once."""

import math
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...solvers._forms import (
    Form,
    Pairing,
    bilinear_form,
    column_size,
    solver_of,
    total,
)
from ...solvers._generators import DenseGenerator, GramGenerator, inverse_root
from ...solvers._polynomials import (
    Contraction,
    Exchange,
    WindowPolynomial,
    polynomial_form,
)
from ...solvers._solvers import AbstractStrategy, SolverStats, worst
from ...solvers._systems import pair
from ._base import (
    AbstractChain,
    EigenProblem,
    Sector,
    check_dense,
    dense_generator,
    fold_bulk,
    fold_sector,
    scale,
    unfold_sector,
)
from ._functions import AbstractFunctions, Table


Scan = Literal["random", "palindromic", "alternating"]
# States up to which all functions fit into a table: 64 MiB for a thousand of them.
_MAX_TABLE = 2**13


class TwoBlockChain(AbstractChain):
    """Redraw the visible units given the hidden ones (`E_V f = E[f | h]`), the hidden
    given the visible (`E_H f = E[f | v]`), in one of three orders:

    - random: `P = ½ (E_V + E_H)`;
    - palindromic, visible–hidden–visible: `P = E_V E_H E_V`;
    - alternating, visible then hidden: `P = E_V E_H`. It leaves `π` invariant but is
        **not** reversible.

    With `B(v, h) = π(v, h) / √(π(v) π(h))`, alternating conditional expectations are
    `BBᵀ` on visible functions and `BᵀB` on hidden ones. Every sum of powers of the
    chain reduces to `(I - BᵀB)⁺` or to `(I - BBᵀ)⁺`: the smaller layer is taken.
    """

    # Solves store a function f of one layer as its half density √π f: the coordinates
    # in which BBᵀ and BᵀB are symmetric, and E[·|h] of visible functions is Bᵀ.

    log_stationary: Float[Array, " states"]
    log_visible: Float[Array, " visible_states"]
    log_hidden: Float[Array, " hidden_states"]
    n_visible: int = eqx.field(static=True)
    scan: Scan = eqx.field(static=True)
    is_symmetric: bool = eqx.field(static=True)
    is_reversible: bool = eqx.field(static=True)

    def __init__(
        self,
        log_stationary: Float[Array, " states"],
        log_visible: Float[Array, " visible_states"],
        log_hidden: Float[Array, " hidden_states"],
        scan: Scan,
        is_symmetric: bool,
    ):
        self.log_stationary = log_stationary
        self.log_visible = log_visible
        self.log_hidden = log_hidden
        self.n_visible = log_visible.shape[0].bit_length() - 1
        self.scan = scan
        self.is_symmetric = is_symmetric
        self.is_reversible = scan != "alternating"

    @property
    def _shape(self) -> tuple[int, int]:
        return 2**self.n_visible, self.n_states >> self.n_visible

    def _log_laws(self) -> tuple[Array, Array, Array]:
        """`log π(v, h)`, `log π(v)` and `log π(h)`."""
        joint = self.log_stationary.reshape(self._shape)
        return joint, self.log_visible, self.log_hidden

    def _conditionals(self) -> tuple[Array, Array]:
        """`p(h | v)` and `p(v | h)`, both of shape `(visible, hidden)`."""
        joint, visible, hidden = self._log_laws()
        return jnp.exp(joint - visible[:, None]), jnp.exp(joint - hidden[None, :])

    def stepper(self) -> Callable[[Array], Array]:
        given_visible, given_hidden = self._conditionals()

        def redraw_visible(f):
            mean = jnp.einsum("vh,vh...->h...", given_hidden, f)
            return jnp.broadcast_to(mean[None], f.shape)

        def redraw_hidden(f):
            mean = jnp.einsum("vh,vh...->v...", given_visible, f)
            return jnp.broadcast_to(mean[:, None], f.shape)

        def step(f):
            table = f.reshape(*self._shape, *f.shape[1:])
            match self.scan:
                case "random":
                    out = (redraw_visible(table) + redraw_hidden(table)) / 2
                case "palindromic":
                    out = redraw_visible(redraw_hidden(redraw_visible(table)))
                case "alternating":
                    out = redraw_visible(redraw_hidden(table))
            return out.reshape(f.shape)

        return step

    def _on_hidden(self, larger: bool = False) -> bool:
        n_visible, n_hidden = self._shape
        return (n_hidden <= n_visible) != larger

    def _layer(self, sector: Sector | None, on_hidden: bool) -> GramGenerator:
        """One symmetry sector of the chain, seen from the layer that it reduces to. Its
        `overlap` is `B` or `Bᵀ`: it maps functions of this layer to the other."""
        joint, visible, hidden = self._log_laws()
        whole = jnp.exp(joint - (visible[:, None] + hidden[None, :]) / 2)
        own, other = (hidden, visible) if on_hidden else (visible, hidden)
        whole = whole if on_hidden else whole.T
        folded = fold_sector(fold_sector(whole, sector).T, sector).T
        if sector is not None:
            # A class {x, -x} has the law of both its members.
            own, other = (x[: x.size // 2] + math.log(2) for x in (own, other))
        return GramGenerator(
            overlap=folded,
            log_law=own,
            log_other=other,
            whole=whole if sector == "odd" else None,
            is_odd=sector == "odd",
        )

    def layer_means(self, f: Float[Array, "states n_obs"]) -> tuple[Array, Array]:
        """`E[f | v]` and `E[f | h]`."""
        given_visible, given_hidden = self._conditionals()
        table = f.reshape(*self._shape, -1)
        return (
            jnp.einsum("vh,vha->va", given_visible, table),
            jnp.einsum("vh,vha->ha", given_hidden, table),
        )

    def variance(self, f: AbstractFunctions) -> Float[Array, " n_obs"]:
        return self._moments(f, "diagonal")[2]

    def _moments(
        self, f: AbstractFunctions, pairing: Pairing
    ) -> tuple[Array, Array, Array, Array]:
        """`√π(v) E[f̃ | v]`, `√π(h) E[f̃ | h]`; the covariance of `f`, that of its means
        given `v` and the mean of that given `v`; and what was taken off the means."""
        if self.n_states <= _MAX_TABLE:
            # Closed forms know the means up to `ε`, and in the cold all that matters
            # may be smaller: a sum over the states that differ from the most frequent
            # one knows every digit of it.
            table = f.table()
            f = Table(table - table[jnp.argmax(self.log_stationary)][None])
        on_visible, on_hidden = f.layer_means(self)
        within = f.covariance_given_visible(self, on_visible, pairing)
        mean = (jnp.exp(self.log_visible) @ on_visible)[None]
        on_visible = scale(jnp.exp(self.log_visible / 2), on_visible - mean)
        on_hidden = scale(jnp.exp(self.log_hidden / 2), on_hidden - mean)
        covariance = within + pair(on_visible, on_visible, pairing)
        return on_visible, on_hidden, covariance, jnp.abs(mean[0])

    def sectors(self, sector: Sector | None = None) -> tuple[Sector | None, ...]:
        checked = super().sectors(sector)
        # An empty layer has one state, which the global flip does not pair with
        # another.
        return (None,) if 1 in self._shape else checked

    # Sums over time. With f_v = E[f|v], f_h = E[f|h] for f of mean zero, K_vh = E[·|v]
    # of hidden functions and K_hv = E[·|h] of visible ones, M_h = K_hv K_vh and
    # M_v = K_vh K_hv, the powers of each chain give, with s on either layer,
    #
    #   random       x = f + s + f_o + K s,  s = (I - M)⁻¹ (f_own + K* f_other)
    #   palindromic  x = f + K_hv K_vh s,    s = (I - M_h)⁻¹ f_h
    #                  = f + K_hv s,         s = (I - M_v)⁻¹ K_vh f_h
    #   alternating  x = f + s,              s = (I - M_h)⁻¹ K_hv f_v
    #                  = f + K_hv s,         s = (I - M_v)⁻¹ f_v
    #
    # because M_h K_hv = K_hv M_v. Pairing with f gives the forms below.

    def resolvent_form(
        self,
        f: AbstractFunctions,
        *,
        pairing: Pairing,
        solver: AbstractStrategy,
        sector: Sector | None,
        guess: Any = None,
    ) -> Form:
        on_visible, on_hidden, outer, offset = self._moments(f, pairing)
        size = jnp.maximum(column_size(on_visible), column_size(on_hidden))
        sectors, reduced_on_hidden = self.sectors(sector), self._on_hidden()
        forms = []
        for s, start in zip(sectors, guess or [None] * len(sectors), strict=True):
            layer = self._layer(s, reduced_on_hidden)
            f_v, f_h = fold_sector(on_visible, s), fold_sector(on_hidden, s)
            own, other = (f_h, f_v) if reduced_on_hidden else (f_v, f_h)
            pulled = layer.overlap.T @ other
            # What the rounding errors in `own` and in `pulled` are proportional to.
            bulk_v, bulk_h = (
                fold_bulk(jnp.abs(f) + jnp.outer(jnp.exp(log_law / 2), offset), s)
                for f, log_law in (
                    (on_visible, self.log_visible),
                    (on_hidden, self.log_hidden),
                )
            )
            bulk, other_bulk = (
                (bulk_h, bulk_v) if reduced_on_hidden else (bulk_v, bulk_h)
            )
            bulk = bulk + jnp.abs(layer.overlap).T @ other_bulk
            match self.scan:
                case "random":
                    outer = outer + pair(other, other, pairing)
                    sides = (own + pulled, None)
                case "palindromic" if reduced_on_hidden:
                    outer = outer - pair(own, own, pairing)
                    sides = (own, None)
                case "palindromic":
                    sides = (pulled, None)
                case "alternating":
                    sides = (own, pulled) if reduced_on_hidden else (pulled, own)
            forms.append(
                bilinear_form(
                    layer,
                    *sides,
                    pairing=pairing,
                    solver=solver,
                    size=size,
                    bulk=bulk,
                    guess=start,
                )
            )
        form = total(forms)
        return Form(outer + form.value, form.stats, form.guess)

    # Powers of the chain, for sums over a finite time. For t ≥ 1, on f of mean zero,
    #
    #   random       ⟨f, P^t f⟩ = ½ ⟨r, S^(t-1) r⟩,  r = (f_v, f_h),
    #                S = ½ [[I, B], [Bᵀ, I]]
    #   palindromic  ⟨f, P^t f⟩ = ⟨f_h, M_h^t f_h⟩
    #   alternating  ⟨f, P^t f⟩ = ⟨f_h, M_h^(t-1) Bᵀ f_v⟩,
    #
    # because one step maps f to a sum of functions of one layer each, and S is what the
    # random chain does to the two parts of such a sum.

    def window_variance(
        self, f: AbstractFunctions, window: int, sector: Sector | None = None
    ) -> Float[Array, " n_obs"]:
        on_visible, on_hidden, variance, _ = self._moments(f, "diagonal")
        polynomial = WindowPolynomial(window, divided=True)
        out = variance / window
        for s in self.sectors(sector):
            layer = self._layer(s, on_hidden=True)
            contraction = Contraction(generator=layer, lowest=0)
            f_v, f_h = fold_sector(on_visible, s), fold_sector(on_hidden, s)
            pulled = layer.overlap.T @ f_v
            match self.scan:
                case "random":
                    both = jnp.concatenate([f_v, f_h]) / math.sqrt(2)
                    exchange = Exchange(overlap=layer.overlap)
                    form = polynomial_form(exchange, polynomial, both)
                case "palindromic":
                    whole = WindowPolynomial(window)
                    out = out - jnp.sum(f_h**2, axis=0) / window
                    form = polynomial_form(contraction, whole, f_h)
                case "alternating":
                    form = polynomial_form(contraction, polynomial, f_h, pulled)
            out = out + form
        return out

    def resolvent(
        self, f: Float[Array, "states n_obs"], *, solver: AbstractStrategy
    ) -> tuple[Float[Array, "states n_obs"], SolverStats]:
        given_visible, given_hidden = self._conditionals()
        f_v, f_h = self.layer_means(f)
        k_vh, k_hv = given_visible, given_hidden.T
        on_hidden = self._on_hidden()
        stats = []

        def geometric(r):
            """`(I - M)⁻¹ r` on the smaller layer."""
            own = self.log_hidden if on_hidden else self.log_visible
            u, whole = scale(jnp.exp(own / 2), r), jnp.zeros_like(r)
            offset = jnp.abs(f[jnp.argmax(self.log_stationary)])
            bulk = scale(jnp.exp(own / 2), jnp.abs(r) + offset[None])
            for s in self.sectors():
                layer = self._layer(s, on_hidden)
                solve = solver_of(layer, solver, r.shape[1], column_size(u))
                y, found, _ = solve(fold_sector(u, s), bulk=fold_bulk(bulk, s))
                whole = whole + unfold_sector(y, s)
                stats.append(found)
            x = scale(inverse_root(own), whole)
            # Once more through the layers, as in `relax`: rare states take their values
            # from others.
            return r + (k_hv @ (k_vh @ x) if on_hidden else k_vh @ (k_hv @ x))

        on_v, on_h = jnp.zeros_like(f_v), jnp.zeros_like(f_h)
        match self.scan:
            case "random" if on_hidden:
                on_h = geometric(f_h + k_hv @ f_v)
                on_v = f_v + k_vh @ on_h
            case "random":
                on_v = geometric(f_v + k_vh @ f_h)
                on_h = f_h + k_hv @ on_v
            case "palindromic" if on_hidden:
                on_h = k_hv @ (k_vh @ geometric(f_h))
            case "palindromic":
                on_h = k_hv @ geometric(k_vh @ f_h)
            case "alternating" if on_hidden:
                on_h = geometric(k_hv @ f_v)
            case "alternating":
                on_h = k_hv @ geometric(f_v)
        layers = (on_v[:, None] + on_h[None, :]).reshape(f.shape)
        return self.centre(f + layers), worst(stats)

    def killed_generator(self, target: Bool[Array, " states"]) -> DenseGenerator:
        return dense_generator(
            self.matrix(), self.log_stationary, self.is_reversible, target
        )

    def eigen_problem(self, sector: Sector | None) -> EigenProblem:
        # The modes are those of the layer: with BᵀB y = σ² y the palindromic chain has
        # eigenvalue σ², on functions of h; the random one has (1 + σ)/2, on the sum of
        # y and of its image By/σ on the other layer.
        on_hidden = self._on_hidden(larger=1 in self._shape)
        check_dense(self._shape[on_hidden])
        layer = self._layer(sector, on_hidden)

        def image_of(y):
            image = layer.overlap @ y
            squared = image @ image
            # Where the layers are independent σ = 0, and rounding is all there is.
            correlated = squared > (16 * jnp.finfo(image.dtype).eps) ** 2
            sigma = jnp.where(
                correlated, jnp.sqrt(jnp.where(correlated, squared, 1)), 0
            )
            return sigma, jnp.where(
                correlated, image / jnp.where(correlated, sigma, 1), 0
            )

        def gap(value, y):
            value = jnp.minimum(value, 1)  # 1 - σ²
            return (
                value
                if self.scan == "palindromic"
                else value / (2 + 2 * image_of(y)[0])
            )

        def lift(y):
            # √π(v, h) y(h) / √π(h) = √p(v | h) y(h), and the same for v.
            given_visible, given_hidden = self._conditionals()
            image = image_of(y)[1]
            v, h = (image, y) if on_hidden else (y, image)
            h = jnp.sqrt(given_hidden) * unfold_sector(h, sector)[None, :]
            v = jnp.sqrt(given_visible) * unfold_sector(v, sector)[:, None]
            # A function of v that has no image is annihilated by E_V.
            palindromic = jnp.where(jnp.any(h != 0), h, v)
            mode = h + v if self.scan == "random" else palindromic
            return mode.reshape(-1)

        return EigenProblem(layer, gap, lift)
