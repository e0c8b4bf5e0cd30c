"""Keys and values of earlier prompts and replies, for prompts that begin with the same tokens.

A system prompt that many requests share, and the earlier turns of a chat, need not be computed again: what a causal
model computes of a token depends on the tokens before it only. Texts that begin alike share a tree's branch (radix
tree, https://arxiv.org/abs/2312.07104), so that nothing is kept twice; what was not used for longest goes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any


class _Node:
    """Tokens that follow one another, with their keys and values.

    Args:
        tokens: at least one, except in a root.
        content: [2 L, n, len(tokens), d], array or tensor.
        parent: what comes before them; None of a root.
    """

    def __init__(self, tokens: Sequence[int], content: Any, parent: _Node | None) -> None:
        self.tokens, self.content, self.parent = tuple(tokens), content, parent
        self.children: dict[int, _Node] = {}  # by their first token
        self.used = 0


class PrefixCache:
    """Holds keys and values by the tokens they belong to; one thread uses it.

    Args:
        limit: most tokens; 0 keeps none.

    Attributes:
        tokens: that are kept.
    """

    def __init__(self, limit: int) -> None:
        self.tokens = 0
        self._limit = limit
        self._roots: dict[str | None, _Node] = {}
        self._clock = 0

    def clear(self) -> None:
        """Forget everything."""
        self.tokens = 0
        self._roots.clear()

    def find(self, adapter: str | None, tokens: Sequence[int]) -> list[Any]:
        """Return what is known of the beginning of a text.

        Args:
            adapter: that computed it; texts of different adapters have nothing in common.
            tokens: of the text.

        Returns:
            Keys and values of its first tokens, in parts [2 L, n, w, d], one behind the other; perhaps none.
        """
        parts = []
        for node, shared in self._path(adapter, tokens):
            if shared == len(node.tokens):
                parts.append(node.content)
            elif shared:
                parts.append(node.content[:, :, :shared])
        return parts

    def add(self, adapter: str | None, tokens: Sequence[int], read: Callable[[int, int], Any]) -> None:
        """Keep a text.

        Args:
            adapter: that computed it.
            tokens: of the text, all of them computed. A text longer than the limit is cut.
            read: returns a copy of the keys and values of tokens ``first`` to ``end``, [2 L, n, end - first, d].
        """
        tokens = tokens[: self._limit]
        if not tokens:
            return
        node, length = self._roots.setdefault(adapter, _Node((), None, None)), 0
        for found, shared in self._path(adapter, tokens):
            node, length = found, length + shared
            if length < len(tokens) and shared < len(found.tokens):
                self._split(found, shared)
        if length < len(tokens):
            leaf = _Node(tokens[length:], read(length, len(tokens)), node)
            leaf.used = self._clock
            node.children[tokens[length]] = leaf
            self.tokens += len(leaf.tokens)
        while self.tokens > self._limit:
            self._drop_oldest()

    def _path(self, adapter: str | None, tokens: Sequence[int]) -> Iterator[tuple[_Node, int]]:
        """Yield the nodes that a text goes through, and how many of their tokens it has; those are used now."""
        self._clock += 1
        node, position = self._roots.get(adapter), 0
        while node is not None and position < len(tokens):
            node = node.children.get(tokens[position])
            if node is None:
                return
            ahead = tokens[position : position + len(node.tokens)]
            pairs = enumerate(zip(node.tokens, ahead))
            shared = next((index for index, (one, other) in pairs if one != other), len(ahead))
            whole = shared == len(node.tokens)
            yield node, shared
            node.used = self._clock  # of its first part, if it was split meanwhile
            if not whole:
                return
            position += shared

    @staticmethod
    def _split(node: _Node, count: int) -> None:
        """Leave the first ``count`` tokens in a node, and put the others into one behind it."""
        rest = _Node(node.tokens[count:], _copy(node.content[:, :, count:]), node)
        rest.used, rest.children = node.used, node.children
        for child in rest.children.values():
            child.parent = rest
        node.tokens, node.content = node.tokens[:count], _copy(node.content[:, :, :count])
        node.children = {rest.tokens[0]: rest}

    def _drop_oldest(self) -> None:
        leaf = min((node for root in self._roots.values() for node in _leaves(root)), key=lambda node: node.used)
        del leaf.parent.children[leaf.tokens[0]]
        self.tokens -= len(leaf.tokens)


def _leaves(node: _Node) -> Iterator[_Node]:
    pending = list(node.children.values())
    while pending:
        one = pending.pop()
        pending += one.children.values()
        if not one.children:
            yield one


def _copy(part: Any) -> Any:
    """Copy a part of an array or tensor, so that the whole can be freed."""
    return part.copy() if hasattr(part, "copy") else part.clone()
