"""Keys under which loading leaves what the IR has no place for, and writing finds it again.

They live in the ``meta`` stores, never in ``metadata_props``: nothing of this reaches a file. What
belongs to the document lies on the main graph, because ``ir.Model.clone`` copies the graph's store
but not the model's own.
"""

from __future__ import annotations

from converter.core.graph import META_PREFIX

PATH = META_PREFIX + "path"
"""On the model: absolute path of the file that it was loaded from; clones do not have it."""

CONTENT = META_PREFIX + "content"
"""On a model from a compressed file: bytes of what was in it; clones do not have it."""

NOTES = META_PREFIX + "notes"
"""On the model: sentences about what loading had to change, for the report."""

DATA_FILES = META_PREFIX + "data_files"
"""On the main graph: absolute paths of the external data files of the source."""

FIELDS = META_PREFIX + "fields"
"""On the main graph (for the document) or a node: serialized fields kept as they were."""

INPUT_ORDER = META_PREFIX + "input_order"
"""On the main graph below IR version 4: names of its inputs, initializers among them."""

LISTS_ALL = META_PREFIX + "lists_all"
"""On the main graph below IR version 4: the document listed all of its initializers as inputs."""

BARE_IMPORT = META_PREFIX + "bare_import"
"""On the graph of a model or function: its import of the default domain leaves the name out."""

GRAPH_FIELDS = META_PREFIX + "graph_fields"
"""On a graph: serialized fields of a newer format, kept as they were."""

VALUE_INFO = META_PREFIX + "value_info"
"""On a graph: serialized type declarations of names that the graph does not define."""

ANNOTATIONS = META_PREFIX + "annotations"
"""On a graph: serialized quantization annotations of names that the graph does not define."""

LISTED = META_PREFIX + "listed"
"""On a value: it was declared in ``value_info`` too; the serialized declaration if it differs."""

TYPE = META_PREFIX + "type"
"""On a value: serialized type that the IR has no class for (maps, opaque types)."""

ATTRIBUTE_TYPE = META_PREFIX + "attribute_type:"
"""On a node, followed by the attribute's name: the same for an attribute that holds a type."""

EXAMPLE = META_PREFIX + "example"
"""On a model that was exported from PyTorch: inputs it was exported with and what PyTorch gave."""
