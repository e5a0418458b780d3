"""Operators that take one number of a whole axis."""

from __future__ import annotations

from converter.ops.axes.align import axes_of, normal, rows
from converter.ops.axes.site import Labels, Rule, SinkKind, Site

_DOCUMENTED: dict[SinkKind | None, str] = {
    "sum": "What is removed adds nothing to the sum; other axes pass.",
    "mean": "The mean is taken over what is left; other axes pass.",
    "greatest": "The greatest of what is left is taken; other axes pass.",
    "least": "The least of what is left is taken; other axes pass.",
    None: "The axes that it is taken over stay, the others pass.",
}


def _reduction(kind: SinkKind | None) -> Rule:
    """Sum up, average or compare; ``kind`` None: it cannot be taken over fewer indices."""

    def rule(site: Site) -> None:
        x = site.labels(0)
        axes = axes_of(site, 1, len(x))
        if not axes:
            through = site.node.attributes.get_int("noop_with_empty_axes", 0)
            axes = [] if through else list(range(len(x)))
        keep = site.node.attributes.get_int("keepdims", 1)
        result: list[Labels] = []
        for axis, labels in enumerate(x):
            if axis not in axes:
                result.append(labels)
                continue
            if labels is not None and kind is not None:
                site.sink(0, axis, kind)
            elif labels is not None:
                site.freeze(labels, f"{site.node.op_type} is taken over the axis")
            if keep:
                result.append(None)
        site.put(tuple(result))

    rule.__doc__ = _DOCUMENTED[kind]
    return rule


def _selection(default: int) -> Rule:
    """Freeze an axis on which positions count."""

    def rule(site: Site) -> None:
        """The axis whose order counts stays, the others pass."""
        x = site.labels(0)
        axis = normal(site.node.attributes.get_int("axis", default), len(x))
        site.freeze(x[axis], f"{site.node.op_type} looks at the order along the axis")
        keep = len(site.output_shape()) == len(x)
        result = (*x[:axis], *((None,) if keep else ()), *x[axis + 1 :])
        for index in range(len(site.node.outputs)):
            site.put(result, index)

    return rule


def cumulative(site: Site) -> None:
    """The axis whose order counts stays, the others pass."""
    x = site.labels(0)
    for axis in axes_of(site, 1, len(x)) or ():
        site.freeze(x[axis], "CumSum looks at the order along the axis")
    site.put(x)


ENTRIES = [
    *rows(_reduction("sum"), "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"),
    *rows(_reduction("sum"), "ReduceLogSum"),
    *rows(_reduction("mean"), "ReduceMean"),
    *rows(_reduction("greatest"), "ReduceMax"),
    *rows(_reduction("least"), "ReduceMin"),
    *rows(_reduction(None), "ReduceProd", "ReduceLogSumExp"),
    *rows(_selection(0), "ArgMax", "ArgMin"),
    *rows(_selection(-1), "TopK"),
    *rows(cumulative, "CumSum", "CumProd"),
]
