"""A hook of MkDocs: notebooks are pages, with the outputs that are stored in them.

They become Markdown, so that their links are checked, their code is highlighted and
their formulas are set as on every other page, and nothing is fetched from elsewhere.
"""

import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from textwrap import fill
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of each notebook, and its figures. The notebook itself stays, to be
    downloaded."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            for uri, content in _page(file.src_uri, json.loads(file.content_string)):
                files.append(File.generated(config, uri, content=content))
    return files


def _page(uri: str, notebook: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Files of the site by their paths: the figures, and then the page."""
    path = PurePosixPath(uri)
    lines: list[str] = []
    heading, n_figures = "", 0
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"^#+ (.*)", source, re.M) or [heading])[-1]
            lines += [re.sub(r"\.ipynb\b", ".md", source), ""]
            if len(lines) == 2:
                lines += [f"[Download this page as a notebook]({path.name})", ""]
            continue
        lines += ["```python", source, "```", ""]
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/svg+xml" in data:
                n_figures += 1
                figure = f"{path.stem}/figure_{n_figures}.svg"
                yield str(path.parent / figure), "".join(data["image/svg+xml"])
                lines += [f"![{heading}]({figure})", ""]
            elif "<table>" in "".join(data.get("text/html", "")):
                lines += ["<div>", *_lines(data["text/html"]), "</div>", ""]
            else:
                text = [fill(line, 72) for line in _lines(data["text/plain"])]
                lines += ["``` { .text .no-copy }", *text, "```", ""]
    yield str(path.with_suffix(".md")), "\n".join(lines)


def _lines(text: list[str]) -> list[str]:
    return "".join(text).rstrip().splitlines()
