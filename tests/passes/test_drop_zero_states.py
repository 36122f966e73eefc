"""drop-zero-states: initial states that are zero whatever the input go."""

from __future__ import annotations

import pytest

from tests.passes.cases import Case, check

HEAD = "(float[5,N,4] x) => (float[5,1,N,3] y) <float[1,G,4] W, float[1,G,3] R"
LSTM = HEAD.replace("G", "12")
GRU = HEAD.replace("G", "9")
ZEROS = """s = Shape(x) n = Slice(s, one, two) t = Concat <axis = 0> (one, n, three) z = ConstantOfShape(t)"""
SIZES = "int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}"
KEPT = ["const one: int64[1]", "const two: int64[1]", "const three: int64[1]"]
MAKES = ["s = Shape(x)", "n = Slice(s, one, two)", "t = Concat(one, n, three) {axis = 0}"]


def text(*rows: list[str] | str) -> str:
    return "\n".join(line for row in rows for line in ([row] if isinstance(row, str) else row))


CASES = [
    Case(
        "zeros of the size of the batch",
        f"{GRU}, {SIZES}> {{ {ZEROS} y = GRU <hidden_size = 3> (x, W, R, , , z) }}",
        text(KEPT, "const W: float[1, 9, 4]", "const R: float[1, 9, 3]", MAKES, "z = ConstantOfShape(t)",
             "y = GRU(x, W, R) {hidden_size = 3}"),
    ),
    Case(
        "the two states of an LSTM, one behind an Identity",
        f"{LSTM}, {SIZES}> {{ {ZEROS} c = Identity(z) y = LSTM <hidden_size = 3> (x, W, R, , , z, c) }}",
        text(KEPT, "const W: float[1, 12, 4]", "const R: float[1, 12, 3]", MAKES, "z = ConstantOfShape(t)",
             "c = Identity(z)", "y = LSTM(x, W, R) {hidden_size = 3}"),
    ),
    Case(
        "ones stay",
        f"{GRU}, {SIZES}> {{ {ZEROS.replace('Shape(t)', 'Shape <value = float[1] {1}> (t)')} "
        "y = GRU <hidden_size = 3> (x, W, R, , , z) }",
    ),
    Case(
        "a state that is an input stays",
        f"{GRU.replace(') =>', ', float[1,N,3] h) =>')}> {{ y = GRU <hidden_size = 3> (x, W, R, , , h) }}",
    ),
    Case("no states", f"{GRU}> {{ y = GRU <hidden_size = 3> (x, W, R) }}"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    check(case, "drop-zero-states")
