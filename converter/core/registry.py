"""Finding passes by name: the modules of ``passes`` and the entry points of other distributions.

Nothing is imported to list names; a pass is imported when it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import pkgutil
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from converter.core.contract import Pass
from converter.core.values import nearest
from converter.errors import UnknownPassError

if TYPE_CHECKING:
    from converter.core.declaration import Declaration

logger = logging.getLogger(__name__)
GROUP = "converter.passes"
OWNER = "onnxpress"
_PACKAGE = "passes"


@dataclass(frozen=True)
class Entry:
    """Where a pass comes from.

    Attributes:
        name: Name of the pass.
        owner: Distribution that brings it, e.g. ``onnxpress``.
        target: ``module`` or ``module:Class``.
    """

    name: str
    owner: str
    target: str

    @property
    def module(self) -> str:
        """Name of the module."""
        return self.target.partition(":")[0]


def entries() -> dict[str, Entry]:
    """List all passes by name, sorted, without importing any.

    Raises:
        UnknownPassError: Two owners bring a pass of one name.
    """
    found: dict[str, Entry] = {}
    for entry in (*_own(), *_plugins()):
        other = found.get(entry.name)
        if other is not None and other != entry:
            raise UnknownPassError(
                f"two passes are named {entry.name!r}",
                where=f"{_origin(other)} and {_origin(entry)}",
                allowed="one owner for each name",
                hint="uninstall one of the two distributions",
            )
        found[entry.name] = entry
    return dict(sorted(found.items()))


def _origin(entry: Entry) -> str:
    return f"{entry.target} of distribution {entry.owner}"


def _own() -> list[Entry]:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        return []
    return [
        Entry(module.name, OWNER, f"{_PACKAGE}.{module.name}")
        for module in pkgutil.iter_modules(spec.submodule_search_locations)
        if not module.ispkg and not module.name.startswith("_")
    ]


def _plugins() -> list[Entry]:
    return [
        Entry(point.name, point.dist.name if point.dist else "unknown", point.value)
        for point in metadata.entry_points(group=GROUP)
    ]


def names() -> tuple[str, ...]:
    """Return the names of all passes, sorted, without importing any."""
    return tuple(entries())


def entry(name: str) -> Entry:
    """Return where a pass comes from.

    Raises:
        UnknownPassError: There is no such pass; names the nearest.
    """
    known = entries()
    if name not in known:
        raise UnknownPassError(
            f"no pass is named {name!r}",
            allowed=", ".join(known) or "no pass is installed",
            hint=nearest(name, known),
        )
    return known[name]


def get(name: str) -> type[Pass]:
    """Import and return the class of a pass.

    Raises:
        UnknownPassError: There is no such pass, it cannot be imported, two have the name, or the
            class found has another name.
    """
    found = entry(name)
    try:
        module = importlib.import_module(found.module)
    except ImportError as error:
        raise UnknownPassError(
            f"pass {name!r} cannot be imported: {error}",
            where=_origin(found),
            hint="install what it needs, or uninstall it",
        ) from error
    wanted = found.target.partition(":")[2]
    classes = [getattr(module, wanted, None)] if wanted else _classes(module)
    kinds = [k for k in classes if isinstance(k, type) and issubclass(k, Pass)]
    if len(kinds) != 1 or getattr(kinds[0], "name", None) != name:
        seen = ", ".join(f"{k.__name__} named {getattr(k, 'name', None)!r}" for k in kinds)
        raise UnknownPassError(
            f"{found.target} does not hold exactly one pass named {name!r}",
            where=_origin(found),
            allowed=f"one public class derived from Pass with name = {name!r}",
            hint=f"it holds {seen}" if seen else "it holds no pass",
        )
    return kinds[0]


def describe(name: str) -> Declaration:
    """Describe a pass: summary, parameters, needs.

    Raises:
        UnknownPassError: See :func:`get`.
    """
    return describe_entry(entry(name))


def describe_entry(found: Entry) -> Declaration:
    """Describe a pass of which the owner is known already.

    Passes of this distribution are read from their source and not imported, so that help texts stay
    quick; those of others are imported.

    Raises:
        UnknownPassError: See :func:`get`.
    """
    from converter.core.declaration import NotStaticError, from_class, from_source

    if found.target == f"{_PACKAGE}.{found.name}":
        try:
            return from_source(found)
        except NotStaticError as error:
            logger.debug("%s is imported to be described: %s", found.target, error)
    return from_class(get(found.name), found)


def summary_of(found: Entry) -> str:
    """Return the one line about a pass that lists show.

    Raises:
        UnknownPassError: See :func:`get`.
    """
    from converter.core.declaration import NotStaticError, summary_from_source

    try:
        return summary_from_source(found)
    except NotStaticError:
        return describe_entry(found).summary


def _classes(module: object) -> list[object]:
    return [
        value
        for key, value in vars(module).items()
        if isinstance(value, type)
        and not key.startswith("_")
        and value.__module__ == getattr(module, "__name__", "")
        and issubclass(value, Pass)
    ]
