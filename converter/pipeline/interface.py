"""The signature of a model: what its callers rely on and passes keep unless they say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Port:
    """One input or output.

    Attributes:
        name: Its public name.
        kind: Element or container type as text.
        dims: Dimension sizes and names as text; None when the rank is not declared.
        overridable: An input that has a default value (an initializer of the same name).
    """

    name: str
    kind: str
    dims: tuple[str, ...] | None
    overridable: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.form}"

    @property
    def form(self) -> str:
        """What it is, without its name."""
        dims = "?" if self.dims is None else "x".join(self.dims)
        return f"{self.kind}[{dims}]" + (" = default" if self.overridable else "")


@dataclass(frozen=True)
class Interface:
    """Inputs, outputs and versions of a model."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    opsets: tuple[tuple[str, int], ...]
    ir_version: int


def interface_of(model: ir.Model) -> Interface:
    """Read the signature of a model."""
    graph = model.graph
    return Interface(
        inputs=tuple(_port(v, overridable=v.name in graph.initializers) for v in graph.inputs),
        outputs=tuple(_port(v) for v in graph.outputs),
        opsets=tuple(sorted(model.opset_imports.items())),
        ir_version=model.ir_version,
    )


def _port(value: ir.Value, *, overridable: bool = False) -> Port:
    dims = None if value.shape is None else tuple(_dim(d) for d in value.shape)
    return Port(value.name or "", str(value.type), dims, overridable)


def _dim(dim: int | ir.SymbolicDim) -> str:
    return str(dim) if isinstance(dim, int) else (dim.value or "?")


def port_changes(before: Interface, after: Interface) -> tuple[str, ...]:
    """Describe every difference of inputs and outputs, one phrase each."""
    found: list[str] = []
    for kind, old, new in (
        ("input", before.inputs, after.inputs),
        ("output", before.outputs, after.outputs),
    ):
        if old == new:
            continue
        olds, news = {p.name: p for p in old}, {p.name: p for p in new}
        found += [f"{kind} {p} removed" for p in old if p.name not in news]
        found += [f"{kind} {p} added" for p in new if p.name not in olds]
        found += [
            f"{kind} {olds[name]} became {news[name].form}"
            for name in olds
            if name in news and olds[name] != news[name]
        ]
        if {p.name for p in old} == {p.name for p in new} and not found:
            found.append(f"{kind}s reordered or repeated")
    return tuple(found)


def version_changes(before: Interface, after: Interface) -> tuple[str, ...]:
    """Describe every difference of operator-set and IR versions.

    An operator set that is new for a domain the model did not use is a change too: older runtimes
    may lack it.
    """
    found: list[str] = []
    olds, news = dict(before.opsets), dict(after.opsets)
    for domain in sorted(olds.keys() | news.keys()):
        if olds.get(domain) != news.get(domain):
            name = domain or "ai.onnx"
            found.append(
                f"opset {name} {olds.get(domain, 'none')} became {news.get(domain, 'none')}"
            )
    if before.ir_version != after.ir_version:
        found.append(f"IR version {before.ir_version} became {after.ir_version}")
    return tuple(found)
