"""Walk autograd's graph between an output and the leaf it was computed from."""

from __future__ import annotations

from typing import Any

from torch import Tensor

Node = Any
"""A node of autograd's graph: the step back of an operator."""


def nodes_between(output: Tensor, leaf: Tensor) -> dict[Node, list[Node]]:
    """Find the nodes from which the leaf can be reached, each with its next nodes towards the leaf.

    Args:
        output: a computed tensor; parameters may make it require a gradient without any path to the leaf.
        leaf: the tensor it may have been computed from.

    Returns:
        By node, the nodes after it on paths to the leaf, once each, starting at the output's own node; empty if there
        is no path.
    """
    ahead: dict[Node, list[Node]] = {}
    reaching: set[Node] = set()
    waiting: list[Node] = [output.grad_fn]
    while waiting:
        node = waiting[-1]
        if node not in ahead:
            # An operator without a backward formula has a node, but no gradient.
            blocked = node is None or "NotImplemented" in node.name()
            ahead[node] = [] if blocked else list(dict.fromkeys(before for before, _ in node.next_functions))
            waiting += [before for before in ahead[node] if before not in ahead]
            continue
        waiting.pop()
        if getattr(node, "variable", None) is leaf or any(before in reaching for before in ahead[node]):
            reaching.add(node)
    return {node: [before for before in ahead[node] if before in reaching] for node in ahead if node in reaching}


def cut_nodes(output: Tensor, leaf: Tensor) -> list[Node]:
    """List the nodes that every path from the output to the leaf passes, in order from the output."""
    ahead = nodes_between(output, leaf)
    arrivals = dict.fromkeys(ahead, 0)
    for befores in ahead.values():
        for node in befores:
            arrivals[node] += 1
    ready = [output.grad_fn] if ahead else []
    # Nodes reached but not yet followed: if there is only one, every path leads through it.
    open_nodes = set(ready)
    cut = []
    while ready:
        node = ready.pop()
        if open_nodes == {node}:
            cut.append(node)
        open_nodes.remove(node)
        for before in ahead[node]:
            open_nodes.add(before)
            arrivals[before] -= 1
            if not arrivals[before]:
                ready.append(before)
    return cut
