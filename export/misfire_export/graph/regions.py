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


def score_node_names(graph: onnx.GraphProto, output: str) -> list[str]:
    """Returns the names of all nodes that the task's output does not depend on."""
    task = {node.name for node in task_nodes(graph, output)}
    return [node.name for node in graph.node if node.name not in task]


def last_heavy(graph: onnx.GraphProto, output: str) -> onnx.NodeProto | None:
    """Returns the task's last convolution or matrix product."""
    heavy = [node for node in task_nodes(graph, output) if node.op_type in HEAVY]
    return heavy[-1] if heavy else None


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
