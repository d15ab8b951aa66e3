r"""Answers read and compared by math-verify; a `Worker` runs this in a process of its own.

Before it reads them, numbers are written in one way: ``12\,345`` as ``12345``, ``−5`` as ``-5``.
Words are compared here as words: to math-verify ``east`` is a product, and equals ``seat``.
"""

import re
from collections.abc import Mapping
from typing import Any

UNREADABLE = "unreadable"
"""The verdict where the right answer itself is no mathematics."""

LARGE = 60
"""Operations in an expression above which it is not simplified."""

_BOX = re.compile(r"\\boxed\{(.*)\}", re.DOTALL)
_GAP = r"(?:\\[,; ]|[~ \u00a0\u2009\u202f])"
# Groups of three, parted alike, in one number: not in "10^3 456", "0.123 456", "1 2 345" or a list.
_GROUPED = re.compile(
    rf"(?<![\w^.])(?<!\d[,~ \u00a0\u2009\u202f])(?<!\d\\[,; ])[1-9]\d{{0,2}}({_GAP})\d{{3}}"
    rf"(?:\1\d{{3}})*(?!{_GAP}?\d)"
)
_DASH = re.compile(r"(?:(?<=[=(\[{,$*])|(?<!\S)(?<!\d\s))–(?=[\w.\\(])")
_END = re.compile(r"(?:\s|~|\\[,;! ]|(?<![\\.])[.,;])+$")
_STYLED = re.compile(
    r"\\(?:text|math)(?:bf|it|rm|sf|sc|tt|normal|up|md)?\s*\{([^{}]*)\}"
    r"|\\(?:mbox|hbox|operatorname\*?|emph)\s*\{([^{}]*)\}"
)
_BLANK = re.compile(r"\\(?:[,;:! ]|q?quad(?![a-zA-Z]))|[~\s]")
_NAMES = (  # letters that are mathematics all the same
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh coth log ln lg exp sqrt abs max "
    "min gcd lcm mod det dim ker lim pi infinity infty inf oo"
).split()


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

    answer = _written(request["answer"])
    given, box = _expressions(answer), _BOX.fullmatch(answer)
    text = box[1] if box else str(given[-1]) if given else ""
    if request["do"] == "read":
        return _readable(_word(text)) or (_plain(given[0]) if given else None)
    gold = _BOX.fullmatch(_written(f"\\boxed{{{request['gold']}}}"))[1]
    right = _word(gold)
    if right and (word := _word(text, letters=True)):
        return right.replace(" ", "") == word.replace(" ", "")
    wanted = _expressions(f"\\boxed{{{gold}}}") or _expressions(gold)
    if not (wanted or right):
        return UNREADABLE
    return bool(given) and bool(verify(wanted, given, timeout_seconds=None))


def _written(text: str) -> str:
    r"""Give a text with its numbers written in one way; in a box, without punctuation at the end.

    >>> _written(r"\boxed{–12\,345.}")
    '\\boxed{-12345}'
    """
    text = _DASH.sub("-", text.replace("−", "-"))
    text = _GROUPED.sub(lambda match: match[0].replace(match[1], ""), text)
    box = _BOX.fullmatch(text)
    return f"\\boxed{{{_END.sub('', box[1])}}}" if box else text


def _word(answer: str, *, letters: bool = False) -> str | None:
    r"""Give an answer of words as they are compared; None for what is mathematics.

    Letters are in lower case where a word is long enough. Single letters and two small ones, but
    not "no", are mathematics unless ``\text{}`` or ``letters`` says otherwise; names always are.

    >>> [_word(answer) for answer in (r"\text{East}", "no  solution", "xy", "x y z", "sin x")]
    ['east', 'no solution', None, None, None]
    """
    text = answer.strip("$ ")
    while (plain := _STYLED.sub(lambda match: match[1] or match[2] or "", text)) != text:
        text, letters = plain, True
    words = _END.sub("", _BLANK.sub(" ", text)).strip("{}$ ").split()
    small = [word.lower() for word in words]
    if not all(map(str.isalpha, words)) or sum(map(len, words)) < 2 or {*small} & {*_NAMES}:
        return None
    pair = len(words) == 1 and len(words[0]) == 2 and words == small != ["no"]
    if not letters and (pair or all(len(word) == 1 for word in words)):
        return None
    return " ".join(b if len(b) > 2 or b == "no" else a for a, b in zip(words, small, strict=True))


def _readable(word: str | None) -> str | None:
    """Give words as an answer that reads as the same words again."""
    return word if not word or _word(word) == word else f"\\text{{{word}}}"


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
