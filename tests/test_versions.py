"""What a report of a bug is asked to have."""

from importlib import metadata

import jax

import trainq as tq
from trainq import _versions


def test_versions_are_printed(capsys):
    assert tq.show_versions() is None
    out = capsys.readouterr().out
    shown = dict(line.split(maxsplit=1) for line in out.splitlines())
    for name in ("trainq", "jax", "jaxlib", "equinox", "numpy", "scipy"):
        assert shown[name] == metadata.version(name)
    assert set(shown) > {"Python", "platform", "devices"} and shown["x64"] == "on"
    with jax.enable_x64(False):
        tq.show_versions()
    assert "x64       off" in capsys.readouterr().out


def test_what_is_not_installed_is_no_error():
    assert _versions._version("no-such-package") == "not installed"
