"""YAML as configs hold it: mappings, lists, text, numbers, true, false and null. No more.

Every text ends in values or in one clear line, within seconds: size, depth and the number of values
are bounded, aliases counted as often as they are used. No tag makes an object.
"""

import re
from collections.abc import Callable
from typing import Any, Literal

import yaml

from engine.errors import UserError

MAX_LENGTH = 100_000
"""Characters of a text; PyYAML reads some 100,000 a second."""
MAX_DEPTH = 32
"""Mappings and lists within each other."""
MAX_VALUES = 20_000
"""Values and keys, those that an alias repeats included."""
MAX_DIGITS = 300
"""Characters of a number."""

_TAG = "tag:yaml.org,2002:"
# YAML 1.2's core types. YAML 1.1, PyYAML's own, reads 1e-2 as text, `no` as false, 010 as 8.
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
        """Refuse what is nested too deep before all of it is read."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Fault(f"expected at most {MAX_DEPTH} levels", self.get_mark())
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        """The same for brackets: the scanner takes quadratic time for those, ahead of the nodes."""
        if self.flow_level >= MAX_DEPTH:
            raise _Fault(f"expected at most {MAX_DEPTH} levels", self.get_mark())
        super().fetch_flow_collection_start(token)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  as PyYAML declares it


for _kind in (_Loader, _Dumper):
    for _name, (_pattern, _first) in _SCALARS.items():
        _kind.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"({_pattern})$"), _first)


class _Fault(yaml.MarkedYAMLError):
    """What is wrong, and where."""

    def __init__(self, problem: str, mark: yaml.Mark | None) -> None:
        super().__init__(problem=problem, problem_mark=mark)


def parse_yaml(text: str, *, source: str, scalars: Literal["typed", "text"] = "typed") -> Any:
    """Return the values that a text holds; keys are always text.

    Args:
        text: the YAML.
        source: where it comes from, for messages.
        scalars: "text" gives every plain value as it is written, 1e3 and null too.

    Raises:
        UserError: it is no YAML, too large, or holds what configs do not: tags, complex keys, a key
            twice, aliases of themselves.
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
    except (ValueError, OverflowError) as error:  # of PyYAML's scanner
        problem = "an escape or a version holds a number that is too large"
        raise UserError(f"{source}: not YAML: {problem}") from error


def dump_yaml(values: Any) -> str:
    """Return YAML from which `parse_yaml` reads equal values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Values:
    """Turns PyYAML's nodes into values, and counts them."""

    def __init__(self, scalars: Literal["typed", "text"]) -> None:
        self._scalars = scalars
        self._count = 0

    def of(self, node: yaml.Node, depth: int) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            raise _Fault(f"expected at most {MAX_VALUES:,} values", node.start_mark)
        if depth > MAX_DEPTH:  # an alias of what it lies in
            raise _Fault(f"expected at most {MAX_DEPTH} levels", node.start_mark)
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, depth)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.of(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.ScalarNode) and kind in _READERS:
            return self._scalar(node, kind)
        raise _Fault(f"expected no tag, got {node.tag.replace(_TAG, '!!')}", node.start_mark)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        """Return keys and values; a key that is given twice is refused, none is the last."""
        values: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Fault("expected a plain key, got a list or a mapping", key.start_mark)
            if key.value == "<<" and key.style is None:
                raise _Fault("expected no key <<: nothing is merged; see `base`", key.start_mark)
            if key.value in values:
                raise _Fault(f"key {key.value} is given twice", key.start_mark)
            self._count += 1
            values[key.value] = self.of(value, depth + 1)
        return values

    def _scalar(self, node: yaml.ScalarNode, kind: str) -> Any:
        text = node.value
        if self._scalars == "text":
            return text
        if kind in ("int", "float") and len(text) > MAX_DIGITS:
            problem = f"expected a number of at most {MAX_DIGITS} characters, got {len(text):,}"
            raise _Fault(problem, node.start_mark)
        try:
            return _READERS[kind](text if kind == "str" else text.lower())
        except (KeyError, ValueError) as error:  # of a tag that does not fit: !!int abc
            problem = f"expected what !!{kind} can be, got {text[:60]}"
            raise _Fault(problem, node.start_mark) from error


def _problem(error: yaml.YAMLError) -> str:
    """Return what is wrong, and where, in one line."""
    if isinstance(error, yaml.reader.ReaderError):
        character = error.character if isinstance(error.character, int) else ord(error.character)
        return f"expected text, got the character U+{character:04X} at {error.position:,}"
    mark = getattr(error, "problem_mark", None)
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return f"{getattr(error, 'problem', None) or 'unreadable'}{place}"
