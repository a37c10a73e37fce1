"""What the API pages need to know about Equinox code: a griffe extension."""

import ast

import griffe


class EquinoxModules(griffe.Extension):
    """Shows shapes as written, the generated `__init__` of a module, and its fields."""

    def on_module_instance(self, *, mod: griffe.Module, **kwargs) -> None:
        # griffe reads strings in annotations as code, and would print the shape
        # "states *obs" as a product. It leaves them alone in modules that import this:
        mod.set_member(
            "annotations", griffe.Alias("annotations", "__future__.annotations")
        )

    def on_module_members(
        self, *, node: ast.AST | griffe.ObjectNode, mod: griffe.Module, **kwargs
    ) -> None:
        # `Class.__init__.__doc__ = """..."""` documents a generated `__init__`.
        for statement in getattr(node, "body", []):
            match statement:
                case ast.Assign(
                    targets=[
                        ast.Attribute(
                            ast.Attribute(ast.Name(name), "__init__"), "__doc__"
                        )
                    ],
                    value=ast.Constant(str(text)),
                ):
                    init = generated_init(mod.classes[name])
                    init.docstring = griffe.Docstring(text, parent=init)
                    mod.classes[name].set_member("__init__", init)
        # A field is shown with its default, and not with how it is declared.
        for cls in mod.classes.values():
            if not cls.is_alias:
                for field in cls.attributes.values():
                    if isinstance(field.value, griffe.ExprCall):
                        field.value = options_of(field.value).get("default")


def generated_init(cls: griffe.Class) -> griffe.Function:
    """The `__init__` that Equinox makes from the fields of a class."""
    kind = griffe.ParameterKind.positional_or_keyword
    parameters = [griffe.Parameter("self", kind=kind)]
    for name, field in cls.attributes.items():
        if field.annotation is None or "ClassVar" in str(field.annotation):
            continue
        default = field.value
        if isinstance(default, griffe.ExprCall):  # eqx.field(...)
            options = options_of(default)
            if str(options.get("init")) == "False":
                continue
            default = options.get("default")
        parameters.append(
            griffe.Parameter(
                name, annotation=field.annotation, kind=kind, default=default
            )
        )
    return griffe.Function("__init__", parameters=griffe.Parameters(*parameters))


def options_of(field: griffe.ExprCall) -> dict:
    """The keyword arguments of `eqx.field(...)`."""
    return {
        argument.name: argument.value
        for argument in field.arguments
        if isinstance(argument, griffe.ExprKeyword)
    }
