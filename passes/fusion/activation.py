"""Activations that exporters write as arithmetic."""

from __future__ import annotations

from passes.rewriting.substitute import Found, New, Substitution

_ERF = "Erf(Div(x, 1.4142135623730951) | Mul(x, 0.7071067811865476))"


def _gelu(found: Found) -> New:
    return New("Gelu", (found["x"],))


GELU = Substitution(
    name="gelus_fused",
    patterns=(
        f"Mul(Mul(x, Add({_ERF}, 1.0)), 0.5)",
        f"Mul(Mul(x, 0.5), Add({_ERF}, 1.0))",
        f"Mul(x, Mul(Add({_ERF}, 1.0), 0.5))",
    ),
    rewrite=_gelu,
    since=20,
    tolerance="float rounding of one operator: relative 1e-6 for float32",
)

RULES = (GELU.rule(),)
