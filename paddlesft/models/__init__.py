"""Models as directories: names -> local directories, GGUF and Hugging Face in, loading, the family table, provenance.

The names below are imported when they are first asked for, so that ``from paddlesft.models import resolve_model`` does
not load paddle.
"""

import importlib

EXPORTS = {
    "Family": "families",
    "convert_hugging_face": "hugging_face",
    "base_facts": "provenance",
    "embedded_gguf": "embedded",
    "family_of": "families",
    "fingerprint": "provenance",
    "import_gguf": "gguf",
    "load_config": "load",
    "load_model": "load",
    "load_tokenizer": "tokenizers",
    "read_provenance": "provenance",
    "resolve_model": "resolve",
    "save_model_directory": "load",
    "write_hugging_face": "hf_export",
    "write_provenance": "provenance",
}
__all__ = sorted(EXPORTS)


def __getattr__(name: str) -> object:
    if name in EXPORTS:
        return getattr(importlib.import_module(f"paddlesft.models.{EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
