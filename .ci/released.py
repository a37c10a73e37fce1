"""Prints what CHANGELOG.md says of a tag, having checked that the tag is a release:
that of the version in pyproject.toml, with a date."""

import pathlib
import re
import sys
import tomllib


ROOT = pathlib.Path(__file__).parent.parent
tag = sys.argv[1]
version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
if tag != f"v{version}":
    sys.exit(f"The tag is {tag}, but pyproject.toml says {version}: tag v{version}.")
changes = (ROOT / "CHANGELOG.md").read_text()
section = re.search(
    rf"^## \[{re.escape(version)}\] - (\S+)\n(.*?)(?=^## |\Z)", changes, re.M | re.S
)
if section is None or not re.fullmatch(r"\d{4}-\d\d-\d\d", section[1]):
    sys.exit(f"CHANGELOG.md needs a section ## [{version}] - YYYY-MM-DD.")
print(section[2].strip())
