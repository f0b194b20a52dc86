"""An extension for mkdocstrings: the fields of a Linen module are its constructor's arguments."""

import re

import griffe  # pyright: ignore[reportMissingImports]

ATTRIBUTES = re.compile(r"^Attributes:\n(?: .*\n|\n(?= ))*(?: .*)?", re.MULTILINE)
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
REFERENCES = re.compile(r"^References:\n(?: {4}.*\n?)+", re.MULTILINE)
ENTRY = re.compile(r"^ {4}(?=\S)", re.MULTILINE)


class FieldsAreArguments(griffe.Extension):
    """Shows the fields of a Linen module, with their defaults, as its constructor's arguments."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Make an `Example:` a section whose code is shown as code, and `References:` a list."""
        if obj.docstring is not None:
            text = EXAMPLE.sub("Examples:", obj.docstring.value)
            text = REFERENCES.sub(lambda found: ENTRY.sub("    - ", found[0]), text)
            obj.docstring.value = text

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: object) -> None:
        """Give each class with fields a constructor."""
        for module in [pkg, *_modules(pkg)]:
            for cls in module.classes.values():
                if not cls.is_alias and "__init__" not in cls.members:
                    _add_constructor(cls)
                _explain_fields(cls)


def _modules(module: griffe.Module) -> list[griffe.Module]:
    below = [each for each in module.modules.values() if not each.is_alias]
    return [*below, *(other for each in below for other in _modules(each))]


def _add_constructor(cls: griffe.Class) -> None:
    fields: dict[str, griffe.Attribute] = {}
    for base in [*reversed(cls.mro()), cls]:
        for name, member in base.attributes.items():
            is_field = member.annotation is not None and "ClassVar" not in str(member.annotation)
            if is_field:
                member.annotation = _without_bounds(member.annotation)
            if is_field and "property" not in member.labels and not name.startswith("_"):
                fields[name] = member
    if not fields:
        return
    parameters = griffe.Parameters(
        griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword),
        *(
            griffe.Parameter(
                name,
                annotation=field.annotation,
                kind=griffe.ParameterKind.positional_or_keyword,
                default=field.value,
            )
            for name, field in fields.items()
        ),
    )
    cls.set_member("__init__", griffe.Function("__init__", parameters=parameters, parent=cls))


def _without_bounds(annotation: griffe.Expr) -> griffe.Expr:
    """The type inside an `Annotated`, without the conditions that a constructor checks."""
    if isinstance(annotation, griffe.ExprSubscript) and str(annotation.left) == "Annotated":
        inner = annotation.slice
        return inner.elements[0] if isinstance(inner, griffe.ExprTuple) else inner
    return annotation


def _explain_fields(cls: griffe.Class) -> None:
    """A base class's description of the fields, if the class itself has none."""
    for base in cls.mro():
        if cls.docstring is None or base.docstring is None:
            continue
        if said := ATTRIBUTES.search(base.docstring.value):
            if not re.search(r"^(Attributes|Args):", cls.docstring.value, re.M):
                cls.docstring.value += f"\n\n{said[0]}"
            return
