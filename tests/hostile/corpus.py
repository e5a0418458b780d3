"""All hostile model cases."""

from __future__ import annotations

from hostile.builders import Case
from hostile.cases_files import bit_flips, containers, externals
from hostile.cases_models import bombs, graphs, headers, tensors, types
from hostile.cases_operators import operators


def all_cases() -> list[Case]:
    """Return the cases of all groups; making one costs nothing until its file is written."""
    groups = (
        containers,
        bit_flips,
        headers,
        tensors,
        externals,
        graphs,
        bombs,
        types,
        operators,
    )
    return [case for group in groups for case in group()]
