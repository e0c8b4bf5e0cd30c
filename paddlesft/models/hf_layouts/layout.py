"""What is known of a family's Hugging Face directories: the entries of their config and the names of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.hf_layouts.config_entries import Entry, to_hugging_face, to_paddle
from paddlesft.models.hf_layouts.rope import rope_to_hugging_face, rope_to_paddle
from paddlesft.models.hf_layouts.tensor_pairs import TensorPair, upstream_pairs

HEAD = "lm_head.weight"
# Buffers that old checkpoints store although they follow from the config.
IGNORED_ENDINGS = (".rotary_emb.inv_freq", ".attn.bias", ".masked_bias")


def no_further_checks(config: Mapping[str, Any], where: str) -> None:
    """Accept every config."""


@dataclass(frozen=True)
class Layout:
    """The Hugging Face directories of one family.

    Attributes:
        family: the family's name in messages.
        architecture: value of ``architectures`` in config.json.
        model_type: value of ``model_type`` in config.json.
        causal_lm: the class in ``paddlenlp.transformers``.
        paddle_model_type: value of ``model_type`` in Paddle's config.json.
        entries: the entries of config.json.
        embedding: Hugging Face's name of the token embedding.
        head: Paddle's name of an output head of its own; None: the head is always the embedding.
        head_transposed: Paddle keeps that head as [hidden, vocabulary].
        tied_head: Paddle's name of the head where PaddleNLP never ties it: the files of a tied model hold the embedding
            a second time.
        rope_kinds: the kinds of position scaling that the Paddle model follows; empty: no rotary positions.
        optional_prefix: what old checkpoints leave out in front of every name.
        upstream: paddlenlp's mapping of tensor names is used.
        more_pairs: tensors that it does not know, by the PaddleNLP config.
        left_out: Paddle's names in paddlenlp's mapping that a model of this config does not have.
        check: refuses what depends on several entries, from a config under PaddleNLP's names.
        export_refusal: why models cannot be written in Hugging Face's layout; empty: they can.
    """

    family: str
    architecture: str
    model_type: str
    causal_lm: str
    paddle_model_type: str
    entries: tuple[Entry, ...]
    embedding: str = "model.embed_tokens.weight"
    head: str | None = HEAD
    head_transposed: bool = True
    tied_head: Callable[[Mapping[str, Any]], str | None] = field(default=lambda config: None)
    rope_kinds: tuple[str, ...] = ()
    optional_prefix: str = ""
    upstream: bool = True
    more_pairs: Callable[[Mapping[str, Any]], list[TensorPair]] = field(default=lambda config: [])
    left_out: Callable[[Mapping[str, Any]], tuple[str, ...]] = field(default=lambda config: ())
    check: Callable[[Mapping[str, Any], str], None] = no_further_checks
    export_refusal: str = ""

    def paddle_config(self, config: Mapping[str, Any], where: Path | str) -> dict[str, Any]:
        """Translate the content of a Hugging Face config.json, without the dtype.

        Raises:
            ModelDirectoryError: the model needs what PaddleNLP's model does not do.
        """
        out = to_paddle(self.entries, config, str(where))
        if self.rope_kinds:
            rope_to_paddle(out, self.rope_kinds, str(where))
        self.check(out, str(where))
        if "max_position_embeddings" in out:
            out.setdefault("seq_length", out["max_position_embeddings"])
        return {"architectures": [self.causal_lm], "model_type": self.paddle_model_type} | out

    def hugging_face_config(self, config: Any) -> dict[str, Any]:
        """Make the content of a Hugging Face config.json from a PaddleNLP config.

        Raises:
            ModelDirectoryError: transformers' model does not do what this one does.
        """
        if self.export_refusal:
            raise ModelDirectoryError(
                f"Models of the family {self.family} cannot be written in Hugging Face's layout: {self.export_refusal}"
            )
        out = {"architectures": [self.architecture], "model_type": self.model_type}
        out |= to_hugging_face(self.entries, config)
        if self.rope_kinds:
            out |= rope_to_hugging_face(config, self.rope_kinds)
        out["torch_dtype"] = str(config.dtype or "float32")
        return out

    def tied(self, config: Mapping[str, Any]) -> bool:
        """Whether the output head is the token embedding."""
        return self.head is None or bool(config.get("tie_word_embeddings"))

    def tensor_pairs(self, config: Mapping[str, Any]) -> list[TensorPair]:
        """List the tensors of a model in both layouts; a tied head is not among them.

        Args:
            config: content of a PaddleNLP config.json.
        """
        left_out = self.left_out(config)
        mapped = upstream_pairs(self.causal_lm, self.architecture, config) if self.upstream else []
        pairs = [
            pair
            for pair in [*mapped, *self.more_pairs(config)]
            if pair.hf != HEAD and not pair.hf.endswith(IGNORED_ENDINGS) and pair.paddle not in left_out
        ]
        if not self.tied(config):
            pairs.append(TensorPair(HEAD, self.head, self.head_transposed))
        return pairs

    def paddle_embedding(self, config: Mapping[str, Any]) -> str:
        """Return Paddle's name of the token embedding."""
        return next(pair.paddle for pair in self.tensor_pairs(config) if pair.hf == self.embedding)
