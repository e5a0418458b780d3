"""The whole error tree of the project.

    ConverterError
    ├─ UsageError         2   SpecError · UnknownPassError · ParameterError · RecipeError
    ├─ ModelError         3   FormatError · InvalidModelError · UnsupportedOperatorError ·
    │                         LimitExceededError
    ├─ PassError          4   PreconditionError · PostconditionError
    ├─ DataError          5   MissingDataError · BatchError
    ├─ VerificationError  6   carries the verdict
    ├─ SecurityError      7   SignatureError · DecryptionError · PolicyError
    └─ WriteError         8

The number is the exit code of the command line. Every error says what is wrong and, where it is
known, where, what is allowed and what to do; ``str(error)`` is one paragraph made of those parts.
"""

from __future__ import annotations

from typing import ClassVar


class ConverterError(Exception):
    """Base of every error that this project raises on purpose.

    Args:
        what: What is wrong, as a sentence without its full stop.
        where: File, node, tensor, option or field that the error is about.
        allowed: What would have been accepted.
        hint: What the user can do now.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", allowed: str = "", hint: str = "") -> None:
        self.what = what
        self.where = where
        self.allowed = allowed
        self.hint = hint
        super().__init__(what)

    def __str__(self) -> str:
        parts = [self.what.rstrip(".") + "."]
        if self.where:
            parts.append(f"Where: {self.where}.")
        if self.allowed:
            parts.append(f"Allowed: {self.allowed.rstrip('.')}.")
        if self.hint:
            parts.append(f"What to do: {self.hint.rstrip('.')}.")
        return " ".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.__dict__.copy()))


def _rebuild(kind: type[ConverterError], state: dict[str, object]) -> ConverterError:
    error = kind.__new__(kind)
    Exception.__init__(error, state.get("what", ""))
    error.__dict__.update(state)
    return error


class UsageError(ConverterError):
    """The command line or an argument of a public function is wrong."""

    exit_code = 2


class SpecError(UsageError):
    """A pipeline text cannot be read."""


class UnknownPassError(UsageError):
    """No pass has this name, or two have it."""


class ParameterError(UsageError):
    """One or more parameters have a wrong name, type or value; ``what`` lists all of them."""


class RecipeError(UsageError):
    """A recipe file cannot be read or has unknown keys."""


class ModelError(ConverterError):
    """The model file is missing, unreadable, broken, hostile or beyond what is supported."""

    exit_code = 3


class FormatError(ModelError):
    """The bytes are not the format that they claim to be."""


class InvalidModelError(ModelError):
    """The model can be parsed but breaks a rule of the ONNX specification."""


class UnsupportedOperatorError(ModelError):
    """An operator is needed that is not available."""


class LimitExceededError(ModelError):
    """The model is larger, deeper or slower than the limits in force."""


class PassError(ConverterError):
    """A pass failed or broke the model."""

    exit_code = 4

    def __init__(
        self,
        what: str,
        *,
        pass_name: str = "",
        node: str = "",
        where: str = "",
        allowed: str = "",
        hint: str = "",
    ) -> None:
        self.pass_name = pass_name
        self.node = node
        place = ", ".join(
            part
            for part in (pass_name and f"pass {pass_name}", node and f"node {node}", where)
            if part
        )
        super().__init__(what, where=place, allowed=allowed, hint=hint)


class PreconditionError(PassError):
    """The model or the context is not what a pass requires."""


class PostconditionError(PassError):
    """A pass left a model that is broken or, for an exact pass, gives other outputs."""


class DataError(ConverterError):
    """Calibration or verification data is missing, empty or does not fit the model."""

    exit_code = 5


class MissingDataError(DataError):
    """A pass or a budget needs data that was not given."""


class BatchError(DataError):
    """An array has a wrong name, shape, type or value."""


class VerificationError(ConverterError):
    """A budget was missed or the outputs are broken. ``verdict`` holds the measured checks."""

    exit_code = 6

    def __init__(
        self,
        what: str,
        *,
        verdict: object = None,
        where: str = "",
        allowed: str = "",
        hint: str = "",
    ) -> None:
        self.verdict = verdict
        super().__init__(what, where=where, allowed=allowed, hint=hint)


class SecurityError(ConverterError):
    """A file may not be read or written for reasons of security, or a policy forbids the step."""

    exit_code = 7


class SignatureError(SecurityError):
    """A signature is missing or does not match."""


class DecryptionError(SecurityError):
    """A file cannot be decrypted with the given identity."""


class PolicyError(SecurityError):
    """The policy in force forbids the model or the conversion."""


class WriteError(ConverterError):
    """The result could not be written: disk full, I/O error."""

    exit_code = 8
