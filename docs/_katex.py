"""Ships KaTeX with the site, so that formulas need no network: a hook of MkDocs.

npm fetches the package once: it is kept in `.cache`. For another version
set both constants; `npm view katex dist.integrity` prints the second.
"""

import base64
import hashlib
import io
import pathlib
import re
import subprocess
import tarfile

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files


VERSION = "0.19.1"
INTEGRITY = (
    "sha512-"
    "jG8uKntjSEcm2EpQOh0XturpPuuC9r3Sq5HLHdsFdWZT27E672SF19QEi+of0/YeOy15lDgRhKvr5614uRrEfA=="
)
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
    """The package, from `cache`, where npm puts it the first time."""
    kept = cache / f"katex-{VERSION}.tgz"
    if not kept.exists():
        cache.mkdir(exist_ok=True)
        command = ["npm", "pack", f"katex@{VERSION}", "--pack-destination", str(cache)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        except (OSError, subprocess.SubprocessError) as error:
            raise PluginError(
                f"The site ships KaTeX, and `{' '.join(command)}` failed: {error}. It "
                f"needs npm, and the network once; or put {kept.name} into {cache} "
                "yourself."
            ) from error
    content = kept.read_bytes()
    if integrity(content) != INTEGRITY:
        raise PluginError(
            f"{kept} has the integrity {integrity(content)}, and {__file__} asks for "
            f"{INTEGRITY}. If you have raised VERSION, copy INTEGRITY from `npm view "
            f"katex@{VERSION} dist.integrity`; if not, delete the file."
        )
    return content


def integrity(content: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
