"""The public API: each name is typed, documented, on an API page, and shown at work."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest
from test_docs import BLOCKS

import trainq


ROOT = pathlib.Path(__file__).parent.parent
PAGES = {
    page.stem: page.read_text() for page in sorted((ROOT / "docs/api").glob("*.md"))
}
# On this page is what the packages share with each other. It needs types and a
# docstring, and no more.
SHARED = "internals"

# Users read these, and do not make them: their fields are told in place of arguments.
MADE_BY_TRAINQ = {
    *("AnnealedPartition", "AnnealedLikelihood", "ExactLaw"),
    *("GradientSNR", "RandomisedSNR", "SampledSNR", "SampledTime", "GradientEstimate"),
    *("Budget", "Comparison", "ErrorTable", "TableJackknife"),
    *("AutocorrelationTime", "ChainState", "Moments", "Run"),
    *("Autocovariances", "Until"),
    *("Ladder", "SwapStatistics", "ReplicaChain"),
    *("SamplerCertificate", "ProgramCertificate", "EffectiveBeta"),
    *("Certificate", "Check", "CheegerMargins", "ParityGaps", "SlowestMode"),
    *("Absorption", "Basins", "NoiseBySet", "Cut", "PassageTimes"),
    *("ResolventSolution", "WindowMoments", "SolverStats"),
    *("Modes", "Cluster", "Sensitivity", "LogQChannels"),
    *("Diagnosis", "Assumption"),
    "Clamped",
    *("SingleFlipChain", "TwoLayerChain", "ScanChain"),
    *("Layers", "EnergyLayers", "Colours"),
}
# What examples of other names print.
WITHOUT_EXAMPLE = {"trainq.Budget", "trainq.GradientSNR"}


def modules() -> Iterator[Any]:
    """What users import from: trainq, its packages, and the modules of `interop`, which
    has no names of its own."""
    yield trainq
    for found in pkgutil.iter_modules(trainq.__path__, "trainq."):
        if not found.name.startswith("trainq._"):
            module = importlib.import_module(found.name)
            yield from [module] if exported(module) else inner(module)


def inner(package: Any) -> Iterator[Any]:
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if not found.name.startswith(f"{package.__name__}._"):
            yield pytest.importorskip(found.name)


def exported(module: Any) -> list[str]:
    """The names that a module re-exports as `X as X`, or defines."""
    names = []
    path = pathlib.Path(module.__file__)
    stub = path.with_suffix(".pyi")
    path = stub if stub.exists() else path
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            names += [alias.name for alias in node.names if alias.name == alias.asname]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
    return [
        name
        for name in names
        if not (name.startswith("_") or inspect.ismodule(getattr(module, name)))
    ]


# By the shortest path of each, which comes first.
PUBLIC: dict[str, Any] = {}
for _module in modules():
    for _name in exported(_module):
        _found = getattr(_module, _name)
        if all(_found is not other for other in PUBLIC.values()):
            PUBLIC[f"{_module.__name__}.{_name}"] = _found


def on_page(page: str) -> Iterator[tuple[str, list[str]]]:
    """The path of each object that a page shows, and the members shown of it."""
    for path, options in re.findall(r"::: (\S+)(.*?)(?=:::|\Z)", PAGES[page], re.S):
        members = re.search(r"members:(.*?)(?:\n\s*\n|\Z)", options, re.S)
        yield path, re.findall(r"\w+", members[1]) if members else []


def shown(*pages: str) -> dict[str, list[str]]:
    """All objects of some pages, by their shortest paths, with their members."""
    return {
        next((p for p, found in PUBLIC.items() if found is _at(path)), path): members
        for page in pages
        for path, members in on_page(page)
    }


def _at(path: str) -> Any:
    return pkgutil.resolve_name(path)


LISTED = shown(*PAGES)
ON_PROMISED_PAGES = shown(*(page for page in PAGES if page != SHARED))


def is_callable(found: Any) -> bool:
    """Whether this is a function or a class, and no type alias or constant."""
    return inspect.isclass(found) or inspect.isroutine(inspect.unwrap(found))


def definitions(cls: type, name: str) -> list[Any]:
    """The functions behind a member, in the order of the bases that define it."""
    found = [vars(base)[name] for base in cls.__mro__[:-1] if name in vars(base)]
    plain = [getattr(f, "fget", None) or getattr(f, "__func__", f) for f in found]
    return [f for f in plain if callable(f)]


def described(functions: list[Any]) -> str:
    return next((inspect.getdoc(f) for f in functions if f.__doc__), None) or ""


def members(cls: type) -> Iterator[str]:
    """The public functions and properties that a class itself defines."""
    for name in vars(cls):
        if not name.startswith("_") or name in ("__init__", "__call__"):
            if definitions(cls, name) and not inspect.isclass(vars(cls)[name]):
                yield name


def annotations(function: Callable[..., Any], bound: bool) -> dict[str, Any]:
    """Of each argument and of what is returned; `inspect.Parameter.empty` for none."""
    signature = inspect.signature(function)
    arguments = list(signature.parameters.values())[bound:]
    found = {argument.name: argument.annotation for argument in arguments}
    if function.__name__ != "__init__":
        found["return"] = signature.return_annotation
    return found


# Every function of an API page, the classes' own, by path: with the functions that it
# overrides, and whether its first argument is bound.
PROMISED: dict[str, tuple[list[Any], bool]] = {}
for _path, _shown in ON_PROMISED_PAGES.items():
    _found = _at(_path)
    if not inspect.isclass(_found):
        if is_callable(_found):
            PROMISED[_path] = ([_found], False)
        continue
    for _name in _shown:
        _all = definitions(_found, _name)
        _static = isinstance(inspect.getattr_static(_found, _name, 0), staticmethod)
        if _all:
            PROMISED[f"{_path}.{_name}"] = (_all, not _static)


def test_there_are_packages_names_and_pages():
    names = {path.split(".")[1] for path in PUBLIC}
    assert {"RBM", "models", "markov", "solvers", "sampling", "interop"} <= names
    assert len(PUBLIC) > 150 and len(PROMISED) > 100 and len(DOCSTRINGS) > 10


def test_packages_are_loaded_where_they_are_first_used():
    # And not before: `import trainq` takes no time.
    code = """if True:
        import sys, trainq
        assert "jax" not in sys.modules
        assert {*dir(trainq)} - {*trainq.__all__} == {"plot"}
        trainq.RBM
        assert "trainq.models" in sys.modules and "trainq.sampling" not in sys.modules
        from trainq import *
        assert QStruct is trainq.predictors.QStruct
        assert "matplotlib" not in sys.modules and trainq.plot.windows
        assert trainq.interop.networkx.to_networkx
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_on_an_api_page():
    assert PUBLIC.keys() == LISTED.keys()


@pytest.mark.parametrize("path", [p for p, f in PUBLIC.items() if is_callable(f)])
def test_every_public_name_has_a_docstring_and_types(path):
    found = PUBLIC[path]
    assert inspect.unwrap(found).__doc__
    if not inspect.isclass(found):
        assert (
            inspect.Parameter.empty
            not in annotations(inspect.unwrap(found), False).values()
        )
        return
    # A dataclass without a docstring is given its signature as one.
    assert not found.__doc__.startswith(f"{found.__name__}(")
    for name in members(found):
        functions = definitions(found, name)
        own, *others = functions
        declared = any(
            name in b.__dict__.get("__annotations__", ()) for b in found.__mro__
        )
        if (others or declared) and name != "__init__":
            continue  # described, and typed, where it is first named
        bound = not isinstance(vars(found)[name], staticmethod)
        assert inspect.Parameter.empty not in annotations(own, bound).values(), name
        assert described(functions) or name == "__init__", name


@pytest.mark.parametrize("path", [p for p, f in PUBLIC.items() if not is_callable(f)])
def test_every_type_and_constant_has_a_docstring(path):
    name = path.rpartition(".")[2]
    sources = (file.read_text() for file in (ROOT / "src").rglob("*.py"))
    assigned = rf'^{name} = ([^\n]+|[({{]\n.*?^[)}}])\n"""'
    assert any(re.search(assigned, source, re.M | re.S) for source in sources)


@pytest.mark.parametrize("path", PROMISED)
def test_arrays_have_shapes(path):
    (own, *_), bound = PROMISED[path]
    assert jax.Array not in annotations(own, bound).values()


@pytest.mark.parametrize("path", PROMISED)
def test_arguments_results_and_errors_are_described(path):
    functions, bound = PROMISED[path]
    text, own = described(functions), functions[0]
    arguments = annotations(own, bound)
    result = arguments.pop("return", None)
    if len(arguments) > 1:  # a function of a model alone is told by its first line
        assert [a for a in arguments if f"`{a}`" not in text] == []
        assert result is None or "**Returns:**" in text
    if raises(own):
        assert "**Raises:**" in text


def raises(function: Callable[..., Any]) -> bool:
    """Whether it raises in its own body, or lets one of the checks do so."""
    function = inspect.unwrap(function)
    if not pathlib.Path(function.__code__.co_filename).exists():
        return False  # the `__init__` that a dataclass makes
    checks = r"error_if|_?check(ed)?(_\w+)?|require_\w+|whole_number|positive_number"
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if re.fullmatch(checks, called):
                return True
        elif isinstance(node, ast.Raise):
            return True
    return False


def test_what_raises_is_found():
    assert raises(_at("trainq.run")) and raises(_at("trainq.models.check_start"))
    assert not raises(_at("trainq.entropy"))


@pytest.mark.parametrize("path", [p for p, f in PUBLIC.items() if inspect.isclass(f)])
def test_arguments_of_a_class_are_on_its_page(path):
    cls = PUBLIC[path]
    needs_arguments = len(inspect.signature(cls.__init__).parameters) > 1
    made_by_users = not (
        path not in ON_PROMISED_PAGES
        or cls.__name__ in MADE_BY_TRAINQ
        or cls.__name__.startswith("Abstract")
        or issubclass(cls, Exception)
    )
    text = cls.__doc__ or ""
    fields = getattr(cls, "_fields", ())  # of a tuple
    if made_by_users and fields:
        assert all(f"- `{field}`: " in text for field in fields)
    elif made_by_users and needs_arguments:
        assert "__init__" in ON_PROMISED_PAGES[path]
        assert "**Arguments:**" in (cls.__init__.__doc__ or "")


# Examples of docstrings take this for granted.
PRELUDE, _ = BLOCKS["docs/api/models.md 1"]
DOCSTRINGS = {
    f"{file.stem} {number}": textwrap.dedent(block)
    for file in sorted((ROOT / "src").rglob("*.py"))
    for number, block in enumerate(
        re.findall(r"^ *```python\n(.*?)^ *```", file.read_text(), re.M | re.S), 1
    )
}


@pytest.mark.parametrize("name", DOCSTRINGS)
def test_examples_of_docstrings_run(name, tmp_path, monkeypatch, as_for_users):
    monkeypatch.chdir(tmp_path)
    assert max(map(len, DOCSTRINGS[name].splitlines())) <= 72
    exec(compile(PRELUDE + DOCSTRINGS[name], name, "exec"), {"__name__": "example"})


@pytest.mark.parametrize("path", [p for p in PUBLIC if p.count(".") == 1])
def test_every_name_of_the_first_rank_has_an_example(path):
    _, name = path.split(".")
    programs = [program for program, _ in BLOCKS.values()]
    code = "\n".join([*programs, *DOCSTRINGS.values()])
    used = re.search(rf"\btq\.{name}\b", code)
    assert bool(used) is (path not in WITHOUT_EXAMPLE)
