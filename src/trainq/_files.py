"""Models, states of chains and results in files that say what they hold.

A file is a zip archive of arrays, which `numpy.load` reads as well, and a header: the
tree that they hang in, with classes, static values, shapes and dtypes. So nothing has
to be known to load it, and nothing can be dropped. No code is stored, and none is run.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import sys
import zipfile
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree

from ._description import (
    HEADER,
    at,
    described,
    parts_of,
    place,
    require_same,
    summary,
)


_FORMAT = 1


def save(path: str | os.PathLike[str], tree: PyTree) -> None:
    """Save a model, the state of chains, a result, or any tree of them.

    The file holds every array in its own precision, and what is needed to build the
    tree anew: classes, sizes and other static values. It is written whole or not at
    all: one that is there already is replaced at the end. `numpy.load` reads its arrays
    by name, such as `"weights"`.

    **Arguments:**

    - `path`: the file, by any name.
    - `tree`: Equinox modules, dataclasses, tuples, lists and dictionaries with strings
        for keys, of arrays, random keys, numbers, strings, `None` and functions. Of a
        function only the name is saved: `load` then needs `like`.

    **Raises:** `TypeError` for anything else in the tree; `ValueError` under `jax.jit`
    and its like; `OSError` if the file cannot be written.
    """
    found = described(tree)
    header = {"format": _FORMAT, "trainq": version("trainq"), "tree": found.node}
    arrays = {HEADER: np.array(json.dumps(header)), **found.arrays}
    path = os.path.realpath(path)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def load(path: str | os.PathLike[str], like: Any = None) -> Any:
    """Load what `trainq.save` has written, to the last bit.

    **Arguments:**

    - `path`: the file.
    - `like`: what is expected, a tree of the same classes, static values, shapes and
        dtypes; its numbers do not matter. Not needed, unless the file holds functions,
        which are taken from here, or classes that are not imported.

    **Returns:** the tree, with JAX and NumPy arrays as they were.

    **Raises:** `FileNotFoundError`; `ValueError`, naming the file, for one that is
    damaged or was not written by `trainq.save`, that holds something else than `like`,
    a class or function that is not known, or numbers of 64 bits while `jax_enable_x64`
    is off.

    !!! example

        ```python
        tq.save("model.npz", model)
        model = tq.load("model.npz")
        ```
    """
    path = os.fspath(path)
    header, arrays = _read(path)
    if header.format != _FORMAT:
        raise ValueError(
            f"{path} was written by trainq {header.version}, in a format that this one "
            "does not read. Use that version, or a newer one."
        )
    known = {}
    if like is not None:
        expected = described(like)
        known = expected.known
        require_same(header.tree, expected.node, "", path)
    return _Builder(path, header.version, arrays, known).build(header.tree, "")


class _Header(NamedTuple):
    """What a file says of itself."""

    format: int
    version: str
    tree: Any


def _read(path: str) -> tuple[_Header, dict[str, np.ndarray]]:
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                arrays = {
                    name.removesuffix(".npy"): np.lib.format.read_array(
                        io.BytesIO(archive.read(name)), allow_pickle=False
                    )
                    for name in archive.namelist()
                }
            if HEADER not in arrays:
                raise ValueError(
                    "it has no header. `numpy.load` reads arrays of other programs."
                )
            header = json.loads(str(arrays.pop(HEADER)))
            return _Header(header["format"], header["trainq"], header["tree"]), arrays
        except Exception as error:  # whatever a damaged archive makes of its reader
            raise _damaged(path, error) from error


def _damaged(path: str, why: Any) -> ValueError:
    return ValueError(f"{path} is damaged, or was not written by `trainq.save`: {why}")


class _Builder(NamedTuple):
    """Makes a tree from its description."""

    path: str
    version: str
    arrays: dict[str, np.ndarray]
    known: dict[str, Any]

    def build(self, node: Any, name: str) -> Any:
        match node:
            case None:
                return None
            case {"value": value} | {"static": value}:
                return value
            case {"bytes": _}:
                return self.array(name).tobytes()
            case {"function": function}:
                if name not in self.known:
                    raise ValueError(
                        f"{self.path} holds the function {function} "
                        f"{at(name)}, of which only the name is saved. Give one that "
                        "has it by `like=`, such as a new model."
                    )
                return self.known[name]
            case {"dtype": _, "shape": _, "in": _}:
                return self.value(node, name)
        children = {
            key: self.build(child, place(name, key))
            for key, child in parts_of(node).items()
        }
        match node:
            case {"dict": _}:
                return children
            case {"list": _}:
                return list(children.values())
            case {"tuple": _}:
                return tuple(children.values())
        return self.instance(node["class"], children, name)

    def array(self, name: str) -> np.ndarray:
        try:
            return self.arrays[name or "value"]
        except KeyError as error:
            raise _damaged(self.path, f"{error} is missing") from None

    def value(self, node: dict[str, Any], name: str) -> Any:
        array = self.array(name)
        if [array.dtype.name, list(array.shape)] != [node["dtype"], node["shape"]]:
            raise _damaged(self.path, f"{summary(node)} is missing {at(name)}")
        if node["in"] != "jax":
            return array if node["in"] == "ndarray" else array[()]
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            raise ValueError(
                f"{self.path} holds {summary(node)} {at(name)}, but "
                "jax_enable_x64 is off, and digits would be lost. Put "
                '`jax.config.update("jax_enable_x64", True)` at the top of the script.'
            )
        value = jnp.asarray(array)
        return jr.wrap_key_data(value, impl=node["key"]) if "key" in node else value

    def instance(self, where: str, children: dict[str, Any], name: str) -> Any:
        """An instance of a class that is there: nothing but trainq's own parts is
        imported, and no constructor runs."""
        cls = self.known.get(name) or _find(where)
        if not isinstance(cls, type):
            raise ValueError(
                f"{self.path} holds an instance of {where} {at(name)}, "
                "which is not imported. Import it first, or give such an instance by "
                "`like=`."
            )
        if issubclass(cls, tuple):
            names = getattr(cls, "_fields", ())
        else:
            names = [f.name for f in dataclasses.fields(cls)]
        if list(names) != list(children):
            raise ValueError(
                f"{self.path} was written by trainq {self.version}, and holds a "
                f"{where} {at(name)} with {', '.join(children)}, which now has "
                f"{', '.join(names)}."
            )
        if issubclass(cls, tuple):
            return tuple.__new__(cls, children.values())
        new = object.__new__(cls)
        for key, child in children.items():
            object.__setattr__(new, key, child)
        return new


def _find(where: str) -> Any:
    """A class of dataclasses or named tuples of trainq, or among those that are
    imported."""
    module, _, qualname = where.partition(":")
    if module.partition(".")[0] == "trainq":  # whose parts are loaded when first used
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    is_record = dataclasses.is_dataclass(found) or hasattr(found, "_fields")
    return found if is_record else None
