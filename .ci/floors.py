"""Prints the lowest versions that pyproject.toml allows, as pip constraints."""

import pathlib
import tomllib


pyproject = pathlib.Path(__file__).parent.parent / "pyproject.toml"
for dependency in tomllib.loads(pyproject.read_text())["project"]["dependencies"]:
    name, floor = dependency.split(">=")
    print(f"{name}=={floor}")
