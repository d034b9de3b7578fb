"""Frees misfire's public names in a foreign graph: its own `logits` becomes `model/logits`.

image, phi, embedding, score.*, answer.*, misfire/* and the output of every task belong to the bundle. A
tensor of such a name, anywhere in the graph or in a subgraph, is renamed before anything is appended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx

from misfire_train.tasks import known_tasks

MOVED = "model/"
"""Prefix of a tensor that had a public name."""
PUBLIC = frozenset({"image", "phi", "embedding", *(task.output_name for task in known_tasks())})
_RESERVED = ("score.", "answer.", "misfire/")


def make_room(model: onnx.ModelProto, *, names: frozenset[str] = PUBLIC) -> None:
    """Renames every tensor that has a public name, in place, wherever it is read; misfire's nodes too."""
    taken = set(_names(model.graph))
    new: dict[str, str] = {}
    # Sorted, so that the same file gives the same names.
    for name in sorted(taken):
        if name in names or name.startswith(_RESERVED):
            free = MOVED + name
            while free in taken:
                free = MOVED + free
            taken.add(free)
            new[name] = free
    if new:
        rename(model.graph, new)
    for node in model.graph.node:
        # Tools for lower precision exclude nodes by name, so names must not clash.
        if node.name.startswith(_RESERVED):
            node.name = MOVED + node.name


def own_name(name: str) -> str:
    """Returns the name that the file itself gives a tensor.

    >>> own_name("model/logits"), own_name("z")
    ('logits', 'z')
    """
    return name.removeprefix(MOVED)


def rename(graph: onnx.GraphProto, new: Mapping[str, str]) -> None:
    """Renames tensors in a graph and its subgraphs, in place."""
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
        for inner in subgraphs(node):
            rename(inner, new)
    for item in [*graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        item.name = new.get(item.name, item.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = new.get(sparse.values.name, sparse.values.name)
    for note in graph.quantization_annotation:
        note.tensor_name = new.get(note.tensor_name, note.tensor_name)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yields the bodies of an If, Loop or Scan; none for any other node."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    for item in [*graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        yield item.name
    for sparse in graph.sparse_initializer:
        yield sparse.values.name
    for node in graph.node:
        yield from (name for name in [*node.input, *node.output] if name)
        for inner in subgraphs(node):
            yield from _names(inner)
