"""Mutants of a module: its syntax tree with one small change each."""

import ast
import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

_SWAPS: dict[type[ast.AST], tuple[type[Any], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}


@dataclass(frozen=True)
class Mutant:
    """A changed module. line: of the change. told: the changed expression before and after."""

    line: int
    told: str
    tree: ast.Module


def all_mutants(source: str) -> list[Mutant]:
    """Return every mutant of a module, in the order of its lines."""
    tree = ast.parse(source)
    found = []
    for number, node in enumerate(_nodes(tree)):
        for choice in range(len(list(_changed(node)))):
            whole = copy.deepcopy(tree)
            target = list(_nodes(whole))[number]
            before, (new, told) = ast.unparse(target), list(_changed(target))[choice]
            _put(target, new)
            ast.fix_missing_locations(whole)
            line = getattr(node, "lineno", 0)
            text = f"{told}: {before[:70]} -> {ast.unparse(target)[:70]}"
            found.append(Mutant(line, text, whole))
    return sorted(found, key=lambda mutant: mutant.line)


def sample(source: str, *, count: int, seed: int) -> list[Mutant]:
    """Return `count` mutants drawn at random, in the order of their lines."""
    mutants = all_mutants(source)
    drawn = random.Random(seed).sample(range(len(mutants)), min(count, len(mutants)))
    return [mutants[number] for number in sorted(drawn)]


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield what can be changed: no annotations, decorators, docstrings or error messages."""
    for name, field in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list") or isinstance(tree, ast.Raise):
            continue
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.expr):
                yield child
            if isinstance(child, ast.AST):
                yield from _nodes(child)


def _changed(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Yield each node that may stand in this one's place, and the kind of change."""
    if isinstance(node, ast.Compare):
        for swap in _SWAPS[type(node.ops[0])]:
            yield ast.Compare(node.left, [swap(), *node.ops[1:]], node.comparators), "comparison"
    elif isinstance(node, ast.BinOp) and type(node.op) in _SWAPS:
        for swap in _SWAPS[type(node.op)]:
            yield ast.BinOp(node.left, swap(), node.right), "arithmetic"
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(_SWAPS[type(node.op)][0](), node.values), "boolean"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert | ast.USub):
        yield node.operand, "negation"
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body), "negation"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        value = node.value
        other = not value if isinstance(value, bool) else value + 1
        yield ast.Constant(other), "constant"
    elif isinstance(node, ast.Call):
        yield from _changed_calls(node)


def _changed_calls(node: ast.Call) -> Iterator[tuple[ast.AST, str]]:
    named = [number for number, each in enumerate(node.keywords) if each.arg is not None]
    for number in named:
        rest = node.keywords[:number] + node.keywords[number + 1 :]
        yield ast.Call(node.func, node.args, rest), f"without {node.keywords[number].arg}"
    for one, other in pairwise(named):
        swapped = copy.deepcopy(node.keywords)
        swapped[one].value, swapped[other].value = swapped[other].value, swapped[one].value
        names = f"{node.keywords[one].arg} and {node.keywords[other].arg}"
        yield ast.Call(node.func, node.args, swapped), f"swapped {names}"


def _put(target: ast.AST, new: ast.AST) -> None:
    """Turn `target` into `new` where it stands."""
    target.__class__ = new.__class__
    place = {key: getattr(target, key) for key in ("lineno", "col_offset") if hasattr(target, key)}
    target.__dict__.clear()
    target.__dict__.update(new.__dict__ | place)
