"""Answers read and compared by math-verify; a `Worker` runs this in a process of its own."""

from collections.abc import Mapping
from typing import Any

UNREADABLE = "unreadable"
"""The verdict where the right answer itself is no mathematics."""

LARGE = 60
"""Operations in an expression above which it is not simplified."""


def read(request: Mapping[str, str]) -> bool | str | None:
    """Answer a request of the task of mathematics.

    Args:
        request: ``do`` is "verify" (is ``answer``, a completion, equal to ``gold``?) or "read"
            (which answer does ``answer`` give?).

    Returns:
        For "verify" whether they are equal, or `UNREADABLE` if that cannot be read; for "read" the
        answer as LaTeX, None where there is none.
    """
    from math_verify import verify

    given = _expressions(request["answer"])
    if request["do"] == "read":
        return _plain(given[0]) if given else None
    gold = _expressions(f"\\boxed{{{request['gold']}}}") or _expressions(request["gold"])
    if not gold:
        return UNREADABLE
    return bool(given) and bool(verify(gold, given, timeout_seconds=None))


def _expressions(text: str) -> list[Any]:
    """Read a text's final answer: an expression, and the text it was read from."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    # Lone surrogates and the like: what cannot be encoded is no mathematics.
    text = text.encode("utf-8", "replace").decode()
    kinds = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    return parse(text, kinds, parsing_timeout=None)


def _plain(expression: Any) -> str | None:
    """Give an expression as LaTeX, so that equal ones mostly read the same.

    ``x = 3`` becomes 3, a decimal number the fraction it is; what is not too large is simplified.
    """
    import sympy

    if isinstance(expression, str):
        return expression
    if isinstance(expression, sympy.Eq) and expression.lhs.is_Symbol:
        expression = expression.rhs
    if not isinstance(expression, sympy.Expr):
        return sympy.latex(expression)
    expression = expression.xreplace(
        {number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)}
    )
    if sympy.count_ops(expression) <= LARGE:
        expression = sympy.simplify(expression)
    return sympy.latex(expression)
