"""Why `Q` is low, in plain words: the rules are in the docstring of `diagnose`."""

from collections.abc import Sequence

from .._show import count, percent
from ..markov import Modes, NoiseBySet
from ._snr import GradientSNR


# The bars, all of them ours.
_LOW = 1.0  # from here on a single estimate points the right way
_NEARLY = 2.0  # sweeps that an independent sample takes, at most
_MOST = 0.5  # of the noise
_NO_REMEDY = 1e9  # steps that are more than anybody runs
# What it means that an assumption fails.
_FOLLOWS = {
    "reversible": "Not to be reversible is no fault of a kernel: there are no real "
    "modes to show.",
    "window is long": "With so short a window the Q above can be far from that of this "
    "window, which QOperational has exactly.",
}


def why(
    snr: GradientSNR,
    modes: Modes | None,
    variance: float,
    sweep: int,
    failed: Sequence[str],
    by_basin: NoiseBySet | None = None,
) -> str:
    """What makes most of the noise, whether barriers do, whether the signal is small,
    and what fails: a line each.

    **Arguments:**

    - `snr`: the structural prediction, in the resolvent convention.
    - `modes`: those of the chain, or None if it has no real ones.
    - `variance`: `V = Σ_a Var f_a`, the error of one independent sample.
    - `sweep`: the kernel steps in a sweep.
    - `failed`: the assumptions that fail.
    - `by_basin`: what each basin of the energy adds to the noise, if that is known.
    """
    lines = ["Nothing makes noise: under the law no observable varies."]
    if variance > 0:
        apart = (2 * float(snr.t_o) / variance - 1) / sweep
        independent = float(snr.window) / sweep * float(snr.signal) / variance
        lines = [_noise(modes, apart, _window(snr)), _signal(float(snr.q), independent)]
        if by_basin is not None and apart > _NEARLY:
            lines.insert(1, _wells(by_basin))
    fails = f"What fails: {', '.join(failed)}." if failed else "No assumption fails."
    follows = [_FOLLOWS[name] for name in failed if name in _FOLLOWS]
    return "\n".join([*lines, " ".join([fails, *follows])])


def _window(snr: GradientSNR) -> str:
    """What a longer window would do, if anything."""
    signal, bias2 = float(snr.signal), float(snr.device_bias2)
    if float(snr.q) >= _LOW:
        return ", or a longer window"
    if signal <= _LOW * bias2:  # as without a signal: no window is long enough
        return ""
    enough = float(snr.window) * float(snr.variance) / (signal / _LOW - bias2)
    if enough > _NO_REMEDY:
        return f". A longer window is no remedy: Q = 1 takes {enough:.3g} steps"
    return f", or a longer window: Q = 1 takes {enough:.3g} steps"


def _noise(modes: Modes | None, apart: float, window: str) -> str:
    takes = f"an independent sample takes {apart:.3g} sweeps"
    if apart <= _NEARLY:
        return (
            f"The samples are nearly independent: {takes}. More of them help, and a "
            "faster kernel hardly."
        )
    if modes is None:
        return (
            f"The samples are far from independent: {takes}. The chain is not "
            f"reversible, and has no modes that say why. A faster kernel helps{window}."
        )
    # Single modes of a level depend on the choice of functions, its sums do not.
    noise = modes.over_level(modes.noise_share)
    top = int(noise.argmax())
    if noise[top] >= _MOST:
        size = int((modes.level == modes.level[top]).sum())
        parity = {1: "even ", -1: "odd ", 0: ""}[int(modes.parity[top])]
        one = f"One {parity}mode makes"
        who = one if size == 1 else f"{count(size, parity + 'mode')} of one gap make"
        share, gap = noise[top], modes.gap[top]
    elif (cluster := modes.cluster()).noise_share >= _MOST:
        who = f"The {count(int(cluster.size), 'slow mode')} of the cluster make"
        share, gap = cluster.noise_share, cluster.gamma_eff
    else:
        return (
            f"Neither one gap nor the slow cluster makes half of the noise: {takes}. "
            f"A kernel that is faster as a whole helps{window}."
        )
    return (
        f"{who} {percent(share)} of the noise, with a relaxation time of "
        f"{1 / float(gap):.4g} steps. A kernel that is faster there helps{window}."
    )


def _wells(by_basin: NoiseBySet) -> str:
    n, share = by_basin.mass.size, percent(by_basin.noise_share)
    if n == 1:
        return "All states are one basin of the energy: no barrier makes the noise."
    if by_basin.noise_share < _MOST:
        return (
            f"The noise is made within {n} basins of the energy: {share} is between "
            "them."
        )
    return (
        f"The noise is made by jumps between {n} basins of the energy: {share} is "
        "between them. A kernel that crosses from one to another helps, as tempering "
        "may."
    )


def _signal(q: float, independent: float) -> str:
    would = f"Independent samples, one a sweep, would have Q = {independent:.3g}"
    if q >= _LOW:
        return f"{would}, and Q is not low as it is."
    size = "small" if independent < _LOW else "not small"
    return f"{would}: the signal is {size} for this window."
