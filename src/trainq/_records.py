"""Results as plain dictionaries, with what they were computed from."""

import hashlib
import inspect
import json
import math
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import numpy as np
from jaxtyping import PyTree

from ._checks import require_concrete
from ._description import at, described, parts_of, place
from ._show import AbstractShown
from ._versions import versions


def as_dict(result: PyTree, /, **inputs: PyTree) -> dict[str, Any]:
    """A result as a dictionary of strings, numbers, booleans, lists and dictionaries,
    which `json.dumps` writes, with the versions of what computed it, and with hashes of
    what it was computed from.

    It is for records that other programs read. [`trainq.save`][] writes files that give
    back the result itself.

    **Arguments:**

    - `result`: a result of trainq, or any tree that `trainq.save` takes.
    - `inputs`: what it was computed from, by names of your own, such as the model, the
        kernel and arguments of the call: trees that `trainq.save` takes.

    **Returns:** a dictionary with

    - `"result"`: the name of the class, the fields and the public properties, by name,
        and those of results inside it alike; a property that this one does not have is
        left out. Arrays are nested lists. JSON has no number for NaN and infinities:
        they are the strings `"NaN"`, `"Infinity"` and `"-Infinity"`, which `float` and
        `np.asarray(..., float)` read.
    - `"inputs"`: a hash of each input, in hexadecimal.
    - `"hash"`: one of all of them, with their names; None if none is given. The result
        is in no hash.
    - `"versions"`: what [`trainq.show_versions`][] prints.

    A hash is SHA-256 of the classes, fields, shapes, types and bits of numbers: the
    same in every process. It depends on the precision of arrays, but not on where they
    are. Of a function it has the name and the module, and not the code; of one without
    a name of its own, such as a `lambda`, the bytecode, which another version of Python
    changes.

    **Raises:** `TypeError` for what `trainq.save` does not take, or for an input with a
    function that remembers more than its code: a method of an object, or one with
    defaults or variables of another function; `ValueError` under `jax.jit` and its
    like, or for a result whose properties cannot be had, as those of a batch may be.

    !!! example

        ```python
        import json

        predictor = tq.QStruct(tq.RandomScanGibbs(), window=1000)
        snr = predictor(model, data)
        record = tq.as_dict(
            snr, predictor=predictor, model=model, data=data
        )
        print(record["result"]["q"], record["hash"])
        text = json.dumps(record)
        ```
    """
    require_concrete("A dictionary", result=result)
    require_concrete("A dictionary", **inputs)
    # Of all first: what is no tree is then told with the name of its input.
    whole = _hash(inputs) if inputs else None
    return {
        "result": _plain(result),
        "inputs": {name: _hash(tree) for name, tree in inputs.items()},
        "hash": whole,
        "versions": versions(),
    }


def _hash(tree: Any) -> str:
    found = described(tree)

    def stable(node: Any, name: str) -> Any:
        """The description without what is the same number in another place, and with
        the module of every function."""
        if node is None:
            return None
        if "function" in node:
            return {"function": _address(found.known[name], name)}
        node = {key: value for key, value in node.items() if key != "in"}
        for kind in ("fields", "dict", "tuple", "list"):
            if kind in node:
                children = {k: stable(c, place(name, k)) for k, c in node[kind].items()}
                node[kind] = children
        return node

    digest = hashlib.sha256(json.dumps(stable(found.node, ""), sort_keys=True).encode())
    for name in sorted(found.arrays):
        array = found.arrays[name]
        digest.update(f"\0{name}\0".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _address(function: Callable[..., Any], name: str) -> Any:
    """What another process can know a function by: where it is defined, or its code."""
    plain = inspect.unwrap(function)
    qualname = getattr(plain, "__qualname__", getattr(plain, "__name__", ""))
    owner = getattr(plain, "__self__", None)
    known = qualname and (owner is None or inspect.ismodule(owner))
    if known and "<" not in qualname:
        return [plain.__module__, qualname]
    if known and isinstance(plain, FunctionType):
        state = plain.__closure__, plain.__defaults__, plain.__kwdefaults__
        if not any(state):
            return [plain.__module__, qualname, _code(plain.__code__)]
    raise TypeError(
        "A hash of a function is that of its name, or of its code, but the one "
        f"{at(name)} has a state: {function!r}. Define it by `def` in a module."
    )


def _code(code: CodeType) -> list[Any]:
    constants = list(map(_constant, code.co_consts))
    return [code.co_code.hex(), code.co_names, code.co_varnames, constants]


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, tuple):
        return list(map(_constant, value))
    if isinstance(value, frozenset):  # in another order in every process
        return sorted(map(repr, value))
    return repr(value)


def _plain(value: Any) -> Any:
    """A tree as strings, numbers, lists and dictionaries."""
    found = described(value)
    return _plain_node(found.node, "", value, found.arrays)


def _plain_node(node: Any, name: str, value: Any, arrays: dict[str, np.ndarray]) -> Any:
    match node:
        case None:
            return None
        case {"value": x} | {"static": x}:
            return _number(x)
        case {"function": function}:
            return function
        case {"bytes": _}:
            return value.hex()
        case {"dtype": _}:
            return _nested(arrays[name or "value"])
    is_record = "fields" in node
    children = {
        key: _plain_node(
            child,
            place(name, key),
            getattr(value, key)
            if is_record
            else value[key if "dict" in node else int(key)],
            arrays,
        )
        for key, child in parts_of(node).items()
    }
    if not is_record:
        return children if "dict" in node else list(children.values())
    record = {"class": node["class"].partition(":")[2], **children}
    if isinstance(value, AbstractShown):
        record |= {k: _plain(x) for k, x in _properties(value).items()}
    return record


def _properties(value: AbstractShown) -> dict[str, Any]:
    """The public properties that a result has."""
    found = {}
    for name, _ in inspect.getmembers(type(value), lambda x: isinstance(x, property)):
        if name.startswith("_"):
            continue
        try:
            found[name] = getattr(value, name)
        except AttributeError:  # it says that there is none
            continue
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`{name}` of this {type(value).__name__} cannot be had. Of a batch "
                "take one after the other: `jax.tree.map(lambda x: x[0], results)`."
            ) from error
    return found


def _nested(array: np.ndarray) -> Any:
    if array.dtype.kind == "c":
        return {"real": _nested(np.real(array)), "imag": _nested(np.imag(array))}
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return _each(array.tolist())
    return array.tolist()


def _each(values: Any) -> Any:
    return list(map(_each, values)) if isinstance(values, list) else _number(values)


def _number(x: Any) -> Any:
    if isinstance(x, float) and not math.isfinite(x):
        return "NaN" if math.isnan(x) else "Infinity" if x > 0 else "-Infinity"
    return x
