"""reshape-views: a Gather of all entries in their order is a Reshape."""

from __future__ import annotations

import pytest

from tests.passes.cases import Case, check

HEAD = "(float[N,6] x) => (float[N,6,1] y) <int64 zero = {0}, int64 one = {1}, int64 six = {6}, int64[1] all = {-1}"
PLACES = ", int64[1,6,1] inner = {0, 1, 2, 3, 4, 5}, int64[2] after = {1, 2}>"
CONSTANTS = ["const zero: int64[]", "const one: int64[]", "const six: int64[]", "const all: int64[1]"]
COUNT = "s = Shape(x) n = Gather(s, zero) r = Range(zero, n, one) m = Mul(r, six) o = Unsqueeze(m, after)"
COUNTED = [
    "s = Shape(x)",
    "n = Gather(s, zero)",
    "r = Range(zero, n, one)",
    "m = Mul(r, six)",
    "o = Unsqueeze(m, after)",
]
VIEW = f"{HEAD}{PLACES} {{ f = Reshape(x, all) {COUNT} i = Add(o, inner) y = Gather(f, i) }}"
CASES = [
    Case(
        "a view of a flattened tensor",
        VIEW,
        "\n".join(
            [*CONSTANTS, "const inner: int64[1, 6, 1]", "const after: int64[2]", "const y.shape: int64[3]",
             "f = Reshape(x, all)", *COUNTED, "i = Add(o, inner)", "y = Reshape(f, y.shape)"]
        ),
    ),
    Case("another order stays", VIEW.replace("{0, 1, 2, 3,", "{1, 0, 2, 3,")),
    Case("a part stays", VIEW.replace("Mul(r, six)", "Mul(r, one)")),
    Case("indices that are the same in every run stay", "(float[N,6] x) => (float[N,6] y) <int64 zero = {0},"
         " int64 one = {1}> { s = Shape(x) n = Gather(s, one) i = Range(zero, n, one) y = Gather <axis = 1> (x, i) }"),
    Case(
        "an axis before it",
        "(float[4,N] x) => (float[4,N] y) <int64 zero = {0}, int64 one = {1}>"
        " { s = Shape(x) n = Gather(s, one) i = Range(zero, n, one) y = Gather <axis = 1> (x, i) }",
        "const zero: int64[]\nconst one: int64[]\nconst y.shape: int64[2]\ns = Shape(x)\nn = Gather(s, one)\n"
        "i = Range(zero, n, one)\ny = Reshape(x, y.shape)",
    ),
    Case(
        "two axes that vary stay",
        "(float[L,N] x) => (float[L,N] y) <int64 zero = {0}, int64 one = {1}>"
        " { s = Shape(x) n = Gather(s, one) i = Range(zero, n, one) y = Gather <axis = 1> (x, i) }",
    ),
    Case(
        "indices that come of a division stay",
        "(float[N,6] x) => (float[N,6] y) <int64 zero = {0}, int64 one = {1}>"
        " { s = Shape(x) n = Gather(s, zero) r = Range(zero, n, one) i = Div(r, one) y = Gather(x, i) }",
    ),
    Case(
        "indices that are given stay",
        "(float[N] x, int64[N] i) => (float[N] y) { y = Gather(x, i) }",
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    check(case, "reshape-views")
