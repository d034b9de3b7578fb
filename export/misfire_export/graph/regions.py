"""Separates the nodes of a graph that do the task from those that only score it.

Scores are small and delicate (differences of near-equal numbers, squared norms), the task is large and
sturdy: only the task's nodes are made fp16 or int8; the scores read its outputs back in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def task_nodes(graph: onnx.GraphProto, output: str) -> list[onnx.NodeProto]:
    """Returns the nodes that the task's output depends on, in graph order."""
    needed = {output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    return kept[::-1]


def network_nodes(graph: onnx.GraphProto, output: str) -> list[onnx.NodeProto]:
    """Returns the task's heavy nodes and what they depend on: without what only decodes their results."""
    weights, needed = constant_names(graph), set[str]()
    kept = []
    for node in reversed(task_nodes(graph, output)):
        if _has_weights(node, weights) or needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    return kept[::-1]


def score_node_names(graph: onnx.GraphProto, output: str) -> list[str]:
    """Returns the names of all nodes that the task's output does not depend on."""
    task = {node.name for node in task_nodes(graph, output)}
    return [node.name for node in graph.node if node.name not in task]


def last_heavy(graph: onnx.GraphProto, output: str) -> onnx.NodeProto | None:
    """Returns the task's last convolution or matrix product with weights."""
    weights = constant_names(graph)
    heavy = [node for node in task_nodes(graph, output) if _has_weights(node, weights)]
    return heavy[-1] if heavy else None


def _has_weights(node: onnx.NodeProto, constants: set[str]) -> bool:
    # The suppression of a detector's boxes is a matrix product, too, but nothing that was learned.
    learned = node.op_type != "MatMul" or bool(constants.intersection(node.input))
    return node.op_type in HEAVY and learned


def constant_names(graph: onnx.GraphProto) -> set[str]:
    """Returns the names of all tensors that do not depend on an input of the graph."""
    known = {item.name for item in graph.initializer}
    for node in graph.node:
        if all(name in known or not name for name in node.input):
            known.update(node.output)
    return known


def tail_names(graph: onnx.GraphProto, output: str) -> list[str]:
    """Returns the last heavy node and what follows it on the way to the output."""
    last = last_heavy(graph, output)
    if last is None:
        return []
    names = [node.name for node in task_nodes(graph, output)]
    return names[names.index(last.name) :]


def name_nodes(graph: onnx.GraphProto) -> None:
    """Gives every node a name of its own; tools that exclude nodes by name need one."""
    taken: set[str] = set()
    for position, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = _free_name(f"{node.op_type.lower()}_{position}", taken)
        taken.add(node.name)


def _free_name(name: str, taken: Iterable[str]) -> str:
    while name in taken:
        name += "_"
    return name
