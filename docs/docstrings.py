"""The project's docstrings as mkdocstrings reads them: examples under a heading, fields in a table of their class.

An example follows the text as `>>>` lines; the Google style wants a heading above it. A field of a dataclass is
explained by the comment at the end of its line; a setting by the text of its `option(...)` or `shared(...)`.
"""

import ast
import io
import re
import tokenize

from griffe import Attribute, Class, Docstring, ExprCall, Extension, Object

from rgb2pc_lib.learning.settings import shared

DEFAULT = {"option": 0, "shared": 1}  # which argument is the setting's default
EXAMPLE = re.compile(r"^>>> ", re.MULTILINE)


class Docstrings(Extension):
    def on_object(self, *, obj: Object, **_) -> None:
        """Called with everything that was found in the library's files, once all of it is known."""
        if isinstance(obj, Class):
            for setting in obj.parameters:  # a signature shows its default, not its help
                if isinstance(setting.default, ExprCall) and str(setting.default.function) in DEFAULT:
                    setting.default = setting.default.arguments[DEFAULT[str(setting.default.function)]]
        if obj.docstring:
            fields = field_lines(obj) if isinstance(obj, Class) else []
            obj.docstring.value = with_sections(obj.docstring.value, fields)
        elif isinstance(obj, Attribute) and obj.parent.is_module and (text := beside(obj)):
            obj.docstring = Docstring(text, parent=obj)


def with_sections(text: str, fields: list[str]) -> str:
    """The text with its fields, and with the heading "Examples:" above the first `>>>` and everything after it."""
    found = EXAMPLE.search(text)
    before, example = (text[: found.start()], text[found.start() :]) if found else (text, "")
    parts = [before.rstrip(), section("Attributes", fields), section("Examples", example.splitlines())]
    return "\n\n".join(part for part in parts if part)


def section(heading: str, lines: list[str]) -> str:
    return "\n".join([f"{heading}:", *(f"    {line}" for line in lines)]) if lines else ""


def field_lines(cls: Class) -> list[str]:
    """One line for each field of a class that the source explains."""
    own = [a for a in cls.attributes.values() if a.annotation is not None and "property" not in a.labels]
    return [f"{a.name}: {text}" for a in own if not a.name.startswith("_") and (text := beside(a))]


def beside(attribute: Attribute) -> str:
    """What the source says of an attribute: the text of a setting, or the comment after it."""
    source = "\n".join(attribute.lines).strip()
    if "= option(" in source:
        return as_code(ast.parse(source).body[0].value.args[1].value)
    if "= shared(" in source:
        return as_code(shared(attribute.name, None).metadata["help"])
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return as_code(" ".join(t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT))


def as_code(comment: str) -> str:
    """Shapes like [B, K] and paths with <names> in a comment, set as code."""
    return re.sub(r"(?<![`\w])(\[[^\]]*\]|[^\s`]*<\w+>[^\s`]*)(?!`)", r"`\1`", comment)
