"""Ships KaTeX with the site, so that formulas need no network: a hook of MkDocs.

The package comes from npm's registry, once: it is kept in `.cache`. For another version
set both constants; `npm view katex dist.integrity` prints the second.
"""

import base64
import hashlib
import io
import pathlib
import re
import tarfile
import urllib.request

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files


VERSION = "0.19.1"
INTEGRITY = (
    "sha512-"
    "jG8uKntjSEcm2EpQOh0XturpPuuC9r3Sq5HLHdsFdWZT27E672SF19QEi+of0/YeOy15lDgRhKvr5614uRrEfA=="
)
URL = f"https://registry.npmjs.org/katex/-/katex-{VERSION}.tgz"
# What a browser asks for, every one that runs KaTeX reads WOFF2, and the licence.
SHIPPED = re.compile(
    r"package/(?:dist/)?(LICENSE|katex\.min\.(?:css|js)|contrib/auto-render\.min\.js"
    r"|fonts/.*\.woff2)"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    cache = pathlib.Path(config.config_file_path).parent / ".cache"
    with tarfile.open(fileobj=io.BytesIO(package(cache))) as archive:
        for member in archive:
            if match := SHIPPED.fullmatch(member.name):
                content = archive.extractfile(member).read()
                files.append(
                    File.generated(config, f"katex/{match[1]}", content=content)
                )
    return files


def package(cache: pathlib.Path) -> bytes:
    """The package, from `cache` or else from the registry, checked in both cases."""
    kept = cache / f"katex-{VERSION}.tgz"
    if kept.exists() and integrity(kept.read_bytes()) == INTEGRITY:
        return kept.read_bytes()
    try:
        with urllib.request.urlopen(URL, timeout=60) as response:
            content = response.read()
    except OSError as error:
        raise PluginError(
            f"The site ships KaTeX, and {URL} cannot be fetched: {error}. The network "
            f"is needed once; or put the file into {kept} yourself."
        ) from error
    if integrity(content) != INTEGRITY:
        raise PluginError(
            f"{URL} has the integrity {integrity(content)}, and {__file__} asks for "
            f"{INTEGRITY}. If you have raised VERSION, copy INTEGRITY from `npm view "
            f"katex@{VERSION} dist.integrity`; if not, do not use the file."
        )
    cache.mkdir(exist_ok=True)
    kept.write_bytes(content)
    return content


def integrity(content: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
