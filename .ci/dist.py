"""Builds the sdist and the wheel into dist/, and tries the wheel as a user has it:
outside of the checkout, in an environment of its own."""

import filecmp
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile


ROOT = pathlib.Path(__file__).parent.parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
# What the repository holds for its own sake.
NOT_SHIPPED = re.compile(r"\.github/|\.gitignore$|\.pre-commit-config\.yaml$")

TRY = """
import importlib.metadata, importlib.resources, importlib.util, sys
import trainq as tq

for name in tq.__all__:  # without any extra
    getattr(tq, name)
files = importlib.metadata.files("trainq")
assert tq.__version__ == sys.argv[1], tq.__version__
assert sys.prefix in tq.__file__, tq.__file__
assert importlib.resources.files("trainq").joinpath("py.typed").is_file()
assert importlib.util.find_spec("pytest") is None  # nothing but what it needs
"""


def run(*command: object, cwd: pathlib.Path = ROOT) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


def tracked() -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return {name for name in listed.stdout.splitlines() if not NOT_SHIPPED.match(name)}


def check_contents(sdist: pathlib.Path, wheel: pathlib.Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    source = tracked()
    # Hatchling writes the first, and always adds the second.
    assert names - {"PKG-INFO", ".gitignore"} == source, names ^ source
    package = {name.removeprefix("src/") for name in source if name.startswith("src/")}
    about = f"trainq-{VERSION}.dist-info/"
    inside = {name for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in inside if not name.startswith(about)} == package
    assert f"{about}licenses/LICENSE" in inside and "trainq/py.typed" in inside


def try_wheel(wheel: pathlib.Path, scratch: pathlib.Path) -> None:
    venv.create(scratch / "venv", with_pip=True)
    python = scratch / "venv/bin/python"
    run(python, "-m", "pip", "install", "--quiet", wheel, cwd=scratch)
    run(python, "-I", "-W", "error", "-c", TRY, VERSION, cwd=scratch)
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert example is not None
    run(python, "-I", "-W", "error", "-c", example[1], cwd=scratch)


dist = ROOT / "dist"
shutil.rmtree(dist, ignore_errors=True)
run(sys.executable, "-m", "build")  # the sdist, and from it the wheel
sdist, wheel = (
    dist / f"trainq-{VERSION}.tar.gz",
    dist / f"trainq-{VERSION}-py3-none-any.whl",
)
run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
with tempfile.TemporaryDirectory() as folder:
    scratch = pathlib.Path(folder)
    # The wheel of a checkout is that of its sdist.
    run(sys.executable, "-m", "build", "--wheel", "--outdir", scratch)
    assert filecmp.cmp(wheel, scratch / wheel.name, shallow=False)
    check_contents(sdist, wheel)
    try_wheel(wheel, scratch)
print(f"{sdist.name} and {wheel.name} are in {dist}, and work")
