"""What trainq does not need by itself: told where it is missing, and installed by an
extra of its name."""

import pathlib
import pkgutil
import re
import subprocess
import sys
import tomllib

import trainq.interop


ROOT = pathlib.Path(__file__).parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
# The package of each extra, and what is imported of it.
PACKAGES = {
    "plot": ("matplotlib", "matplotlib"),
    "thrml": ("thrml", "thrml"),
    "dimod": ("dimod", "dimod"),
    "networkx": ("networkx", "networkx"),
    "sklearn": ("scikit-learn", "sklearn"),
    "arviz": ("arviz-base", "arviz_base"),
}
WITHOUT = """
import importlib, sys
for name, hidden in zip(sys.argv[1::2], sys.argv[2::2]):
    sys.modules[hidden] = None
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(error)
"""


def module(extra):
    return "trainq.plot" if extra == "plot" else f"trainq.interop.{extra}"


def test_a_missing_package_is_named():
    pairs = [[module(extra), hidden] for extra, (_, hidden) in PACKAGES.items()]
    command = [sys.executable, "-W", "error", "-c", WITHOUT, *sum(pairs, [])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        f"{module(extra)} needs {package}: pip install {package}."
        for extra, (package, _) in PACKAGES.items()
    ], done.stderr


def test_every_module_has_an_extra_and_the_tests_have_all_of_them():
    found = {f.name for f in pkgutil.iter_modules(trainq.interop.__path__)}
    assert {name for name in found if not name.startswith("_")} == {*PACKAGES} - {
        "plot"
    }
    # Extras of `dev`, and those of these.
    tested = set(re.findall(r"\w+", EXTRAS["dev"][0]))
    tested |= {
        w for one in tested & {*EXTRAS} for w in re.findall(r"\w+", EXTRAS[one][0])
    }
    for extra, (package, _) in PACKAGES.items():
        assert any(re.match(rf"{package}\b", one) for one in EXTRAS[extra]), extra
        assert extra in tested
