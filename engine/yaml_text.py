"""Safe YAML parser for configs: mappings, lists, text, numbers, true, false and null only.

Any text gives values or a one-line error within seconds: size, depth and the number of values are
limited, and an alias counts each time it is used. Tags never create Python objects.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal

import yaml

from engine.errors import UserError
from engine.text import printable

MAX_LENGTH = 100_000
"""Characters of a text; PyYAML reads about 100,000 per second."""
MAX_DEPTH = 32
"""Nesting depth of mappings and lists."""
MAX_VALUES = 20_000
"""Values and keys, including those repeated by aliases."""
MAX_DIGITS = 300
"""Characters of a number."""

_TAG = "tag:yaml.org,2002:"
# Core types of YAML 1.2: pattern, and possible first characters. PyYAML implements YAML 1.1, which
# reads 1e-2 as text, `no` as false and 010 as 8.
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    "float": (
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


def _number(kind: type[int] | type[float]) -> Callable[[str], int | float]:
    def read(text: str) -> int | float:
        return kind(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))

    return read


_READERS: dict[str, Callable[[str], Any]] = {
    "null": {"": None, "~": None, "null": None}.__getitem__,
    "bool": {"true": True, "false": False}.__getitem__,
    "int": _number(int),
    "float": _number(float),
    "str": str,
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  as PyYAML declares it
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Reject nesting that is too deep before the rest is read."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _YamlProblem(f"expected at most {MAX_DEPTH} levels", self.get_mark())
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        """Reject too many open brackets: the scanner reads ahead of the nodes in quadratic time."""
        if self.flow_level >= MAX_DEPTH:
            raise _YamlProblem(f"expected at most {MAX_DEPTH} levels", self.get_mark())
        super().fetch_flow_collection_start(token)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  as PyYAML declares it


for _kind in (_Loader, _Dumper):
    for _name, (_pattern, _first) in _SCALARS.items():
        _kind.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"({_pattern})$"), _first)


class _YamlProblem(yaml.MarkedYAMLError):
    """A YAML error: the problem and its position."""

    def __init__(self, problem: str, mark: yaml.Mark | None) -> None:
        super().__init__(problem=problem, problem_mark=mark)


def parse_yaml(text: str, *, source: str, scalars: Literal["typed", "text"] = "typed") -> Any:
    """Return the values in a YAML text; None if it is empty. Keys are always text.

    Args:
        text: the YAML.
        source: where it comes from, for messages.
        scalars: "typed" converts numbers, true, false and null; "text" keeps all scalars as text.

    Raises:
        UserError: the text is not YAML, too large, or has features that configs do not use: tags,
            complex keys, duplicate keys, merge keys, recursive aliases.
    """
    if len(text) > MAX_LENGTH:
        raise UserError(
            f"{source}: expected YAML of at most {MAX_LENGTH:,} characters, got {len(text):,}"
        )
    try:
        node = yaml.compose(text, _Loader)
        return None if node is None else _Values(scalars).of(node, 0)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not YAML: {_problem(error)}") from error
    except (ValueError, OverflowError) as error:  # raised by PyYAML's scanner
        problem = "the number in an escape or in a version is too large"
        raise UserError(f"{source}: not YAML: {problem}") from error


def dump_yaml(values: Any, comments: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return YAML text that `parse_yaml` reads back to equal values.

    Args:
        values: mappings, lists and scalars.
        comments: for dotted keys of mappings, a line of text that is written behind the value.
    """
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    if not comments:
        return text
    pieces, start = [], 0
    for key, index in _comment_places(yaml.compose(text, _Loader), ""):
        if key in comments:
            end = text.index("\n", index)
            pieces += [text[start:end], f"  # {printable(comments[key])}"]
            start = end
    return "".join([*pieces, text[start:]])


def _comment_places(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    """Yield each dotted key and a position in the line that may end in a comment.

    It is the last line of a scalar, which may have several, and the key's line of a list.
    """
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        is_scalar = isinstance(value, yaml.ScalarNode)
        yield prefix + key.value, (value.end_mark if is_scalar else key.start_mark).index
        yield from _comment_places(value, f"{prefix}{key.value}.")


class _Values:
    """Converts PyYAML's nodes to values, and counts them."""

    def __init__(self, scalars: Literal["typed", "text"]) -> None:
        self._scalars = scalars
        self._count = 0

    def of(self, node: yaml.Node, depth: int) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            raise _YamlProblem(f"expected at most {MAX_VALUES:,} values", node.start_mark)
        if depth > MAX_DEPTH:  # an alias of a parent: endless recursion
            raise _YamlProblem(f"expected at most {MAX_DEPTH} levels", node.start_mark)
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, depth)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.of(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.ScalarNode) and kind in _READERS:
            return self._scalar(node, kind)
        raise _YamlProblem(f"expected no tag, got {node.tag.replace(_TAG, '!!')}", node.start_mark)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        """Return keys and values; a duplicate key is an error, it does not override."""
        values: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _YamlProblem("expected a plain key, got a list or a mapping", key.start_mark)
            if key.value == "<<" and key.style is None:
                raise _YamlProblem("expected no merge key <<; use `base` instead", key.start_mark)
            if key.value in values:
                raise _YamlProblem(f"key {key.value} is given twice", key.start_mark)
            self._count += 1
            values[key.value] = self.of(value, depth + 1)
        return values

    def _scalar(self, node: yaml.ScalarNode, kind: str) -> Any:
        text = node.value
        if self._scalars == "text":
            return text
        if kind in ("int", "float") and len(text) > MAX_DIGITS:
            problem = f"expected a number of at most {MAX_DIGITS} characters, got {len(text):,}"
            raise _YamlProblem(problem, node.start_mark)
        try:
            return _READERS[kind](text if kind == "str" else text.lower())
        except (
            KeyError,
            ValueError,
        ) as error:  # an explicit tag that does not fit, such as !!int abc
            problem = f"expected a value of type !!{kind}, got {text[:60]}"
            raise _YamlProblem(problem, node.start_mark) from error


def _problem(error: yaml.YAMLError) -> str:
    """Return the problem and its position in one line."""
    if isinstance(error, yaml.reader.ReaderError):
        character = error.character if isinstance(error.character, int) else ord(error.character)
        return f"expected text, got the character U+{character:04X} at {error.position:,}"
    mark = getattr(error, "problem_mark", None)
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return f"{getattr(error, 'problem', None) or 'unreadable'}{place}"
