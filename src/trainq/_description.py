"""What is in a tree, in words that a file can hold."""

import dataclasses
import hashlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ._checks import require_concrete


HEADER = "header"


class Described(NamedTuple):
    """What is in a tree: its description as JSON, its arrays, and its classes and
    functions, by their places."""

    node: Any
    arrays: dict[str, np.ndarray]
    known: dict[str, Any]


def described(tree: Any) -> Described:
    found = Described(None, {}, {})
    return found._replace(node=_describe(tree, "", False, found))


def _describe(value: Any, name: str, static: bool, found: Described) -> Any:
    """A tree as JSON. Arrays are put aside, with their places for names."""

    def inside(children: dict[str, Any], fixed: tuple[str, ...] = ()) -> dict[str, Any]:
        return {
            key: _describe(child, place(name, key), static or key in fixed, found)
            for key, child in children.items()
        }

    if value is None:
        return None
    if type(value) in (bool, int, float, str):
        return {"static" if static else "value": value}
    if isinstance(value, bytes):
        _put(found, name, np.frombuffer(value, np.uint8))
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _describe_array(value, name, found)
    if type(value) is dict:
        for key in value:
            if not isinstance(key, str):
                raise TypeError(
                    "In a file the keys of a dictionary are strings, but in the one "
                    f"{at(name)} there is {key!r}. Use `str(key)`."
                )
        return {"dict": inside(value)}
    if type(value) in (tuple, list):
        items = inside({str(i): item for i, item in enumerate(value)})
        return {type(value).__name__: items}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        fixed = tuple(f.name for f in fields if f.metadata.get("static", False))
        children = {f.name: getattr(value, f.name) for f in fields}
    elif isinstance(value, tuple) and (names := getattr(value, "_fields", ())):
        children, fixed = dict(zip(names, value, strict=True)), ()
    elif callable(value) and not any(map(_is_array, jax.tree.leaves(value))):
        found.known[name] = value
        return {"function": getattr(value, "__name__", type(value).__name__)}
    else:
        raise TypeError(
            f"An object of type {type(value).__name__} cannot be saved, and there is "
            f"one {at(name)}. Save arrays, numbers, strings, and modules of them."
        )
    found.known[name] = type(value)
    return {"class": _public_name(type(value)), "fields": inside(children, fixed)}


def _describe_array(value: Any, name: str, found: Described) -> dict[str, Any]:
    require_concrete("A file", **{f"array {at(name)}": value})
    node = {"in": "jax" if isinstance(value, jax.Array) else type(value).__name__}
    if isinstance(value, jax.Array):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            node["key"] = str(jr.key_impl(value))
            value = jr.key_data(value)
        if not value.is_fully_addressable:
            raise ValueError(
                f"The array {at(name)} is spread over several processes. Gather it "
                "by `jax.experimental.multihost_utils.process_allgather`."
            )
    array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        raise TypeError(
            f"The array {at(name)} has the dtype {array.dtype}, which cannot be saved."
        )
    _put(found, name, array)
    return {"dtype": array.dtype.name, "shape": list(array.shape), **node}


def _put(found: Described, name: str, array: np.ndarray) -> None:
    name = name or "value"
    if name in (HEADER, *found.arrays):
        raise TypeError(f"There are two things by the name `{name}`: rename a key.")
    found.arrays[name] = array


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def place(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def at(name: str) -> str:
    return f"at `{name}`" if name else "at the top"


def _public_name(cls: type) -> str:
    """Where to find a class: not in a private module, which may be another one in the
    next version, if a public one above has it."""
    module = cls.__module__
    public, _, private = module.partition("._")
    home = sys.modules.get(public)
    if private and getattr(home, cls.__qualname__, None) is cls:
        module = public
    return f"{module}:{cls.__qualname__}"


def require_same(stored: Any, expected: Any, name: str, path: str) -> None:
    """Raise a `ValueError` at the first place where two descriptions differ."""
    if summary(stored) != summary(expected):
        raise ValueError(
            f"{path} holds {summary(stored)} {at(name)}, but `like` has "
            f"{summary(expected)}. Leave out `like` to load what there is."
        )
    for key, child in parts_of(stored).items():
        require_same(child, parts_of(expected)[key], place(name, key), path)


def parts_of(node: Any) -> dict[str, Any]:
    if node is None:
        return {}
    return next((node[k] for k in ("fields", "dict", "tuple", "list") if k in node), {})


def summary(node: Any) -> str:
    """A part of a tree in words, but for what hangs below it: equal for two that can
    stand for each other."""
    match node:
        case None:
            return "None"
        case {"dtype": dtype, "shape": shape, "key": impl}:
            return f"random keys of {impl}, as {dtype} of shape {tuple(shape)}"
        case {"dtype": dtype, "shape": shape}:
            return f"an array of {dtype} and shape {tuple(shape)}"
        case {"class": name, "fields": fields}:
            return f"the class {name.partition(':')[2]} with {', '.join(fields)}"
        case {"static": value}:
            return repr(value)
        case {"value": value}:
            return f"a number or word of type {type(value).__name__}"
        case {"bytes": digest}:
            return f"structure with the digest {digest[:8]}"
        case {"function": name}:
            return f"the function {name}"
    kind, children = next(iter(node.items()))
    return f"a {kind} of {', '.join(children) or 'nothing'}"
