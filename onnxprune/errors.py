"""Every error that onnxprune raises on purpose. One base class, so that a caller needs one `except`.

`InputError` is the user's to mend (exit code 2), `GateError` says that the result is not good enough to keep (exit code
1); anything else that escapes is a bug of ours (exit code 3).
"""


class OnnxPruneError(Exception):
    """Base of all errors raised by onnxprune."""


class InputError(OnnxPruneError, ValueError):
    """A file, an option or data that cannot be used. The message says what, where and what to do."""


class GateError(OnnxPruneError):
    """A check or a gate failed: the result must not be used. `report` holds what was measured, when there is one."""

    def __init__(self, message: str, report: object | None = None) -> None:
        super().__init__(message)
        self.report = report


class SlowerError(GateError):
    """The result takes longer than what it was made of."""


class Barrier(OnnxPruneError):
    """Raised by a rule that cannot type its node; inference then freezes what the node touches. Never leaves the
    package.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(detail or code)
        self.code, self.detail = code, detail


class Silent(OnnxPruneError):
    """Raised by a criterion that has nothing to say about a dim, which then stays whole; the message is the reason.
    Never leaves the package.
    """
