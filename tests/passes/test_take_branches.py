"""take-branches: an If whose condition is the same in every run becomes the branch that it takes."""

from __future__ import annotations

import pytest

from tests.passes.cases import Case, check

X = "(float[N,4] x) => (float[N,4] y)"
THEN = "then_branch = t () => (float[N,4] p) { p = Relu(x) }"
BRANCHES = f"<{THEN}, else_branch = e () => (float[N,4] q) {{ q = Tanh(x) }}>"
CASES = [
    Case(
        "true",
        f"{X} <bool c = {{1}}> {{ y = If (c) {BRANCHES} }}",
        """const c: bool[]
        p = Relu(x)
        If.1.then_branch.result0 = Identity(p)
        y = Identity(If.1.then_branch.result0)""",
    ),
    Case(
        "false",
        f"{X} <bool c = {{0}}> {{ y = If (c) {BRANCHES} }}",
        """const c: bool[]
        q = Tanh(x)
        If.1.else_branch.result0 = Identity(q)
        y = Identity(If.1.else_branch.result0)""",
    ),
    Case("known only at run time", f"{X.replace(') =>', ', bool c) =>', 1)} {{ y = If (c) {BRANCHES} }}"),
    Case(
        "a rank asked for behind another one",
        "(float[2,4] x) => (float[2,4] y) <bool c = {1}, int64[1] two = {2}, int64[1] zero = {0}> {"
        " r = If (c) <then_branch = t () => (float[2,4] p) { p = Relu(x) },"
        " else_branch = e () => (float[1,2,4] q) { q = Unsqueeze(x, zero) }>"
        " s = Shape(r) n = Shape(s) d = Equal(n, two) f = Squeeze(d)"
        " y = If (f) <then_branch = v () => (float[2,4] k) { k = Tanh(r) },"
        " else_branch = w () => (float[2,4] m) { m = Neg(r) }> }",
        """const c: bool[]
        const two: int64[1]
        const zero: int64[1]
        p = Relu(x)
        If.1.then_branch.result0 = Identity(p)
        r = Identity(If.1.then_branch.result0)
        s = Shape(r)
        n = Shape(s)
        d = Equal(n, two)
        f = Squeeze(d)
        k = Tanh(r)
        If.2.then_branch.result0 = Identity(k)
        y = Identity(If.2.then_branch.result0)""",
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    check(case, "take-branches")
