"""The models that the service answers with: a base, and adapters over it, each by its name."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from paddlesft.data.rendering import Renderer
from paddlesft.inference.loading import Loaded
from paddlesft.serving.errors import ApiError


@dataclass(frozen=True)
class ServedModel:
    """One model by name.

    Attributes:
        name: what requests call it.
        adapter: the engine's name of its adapter; None: the base, or what was loaded with its only adapter.
        renderer: turns conversations into prompts, as its training did.
        tokenizer: of its replies.
        stop_token_ids: ids that end a reply.
        context_length: tokens that a prompt and its reply may have together; None: no limit is known.
        adapter_kind: "lora", "prefix" or None.
        created: when it was loaded, in seconds since 1970.
    """

    name: str
    adapter: str | None
    renderer: Renderer
    tokenizer: Any
    stop_token_ids: list[int]
    context_length: int | None
    adapter_kind: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))


class ServedModels:
    """All models, in the order in which they are listed; the first answers requests that name none.

    Args:
        models: with different names; at least one.
    """

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._by_name = {model.name: model for model in models}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._by_name.values())

    @property
    def names(self) -> list[str]:
        """The names, in order."""
        return list(self._by_name)

    @property
    def default(self) -> ServedModel:
        """The first model."""
        return next(iter(self))

    def find(self, name: str | None) -> ServedModel:
        """Return the model of a name; the default for None.

        Raises:
            ApiError: 404, there is no such model.
        """
        if name is None:
            return self.default
        if name not in self._by_name:
            known = ", ".join(self._by_name)
            raise ApiError(
                404, f"There is no model {name!r} here. Served: {known}.", param="model", code="model_not_found"
            )
        return self._by_name[name]


def served_base(loaded: Loaded, name: str) -> ServedModel:
    """Return what was loaded, as it is, under a name."""
    return ServedModel(
        name, None, loaded.renderer, loaded.tokenizer, loaded.stop_token_ids, loaded.context_length, loaded.adapter_kind
    )
