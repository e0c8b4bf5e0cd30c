"""The tokenizer of a model directory, ready for rendering, batching and decoding, whatever kind it is.

PaddleNLP chooses a tokenizer's class by tokenizer_config.json and looks for the one file name that this class was
written with. Directories of published models name other classes and carry the files under other names, so the choice is
made here, by the files first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.directory import TOKENIZER_FILES, read_object
from paddlesft.quirks import (
    chatglm2_special_tokens,
    chatglm_image_tokens,
    glm_special_tokens,
    ids_without_text,
    qwen_special_tokens,
)

# files that only one kind of tokenizer has
CLASS_OF_FILE = {
    "qwen.tiktoken": "QWenTokenizer",
    "ice_text.model": "ChatGLMTokenizer",
    "cog-pretrain.model": "GLMChineseTokenizer",
}
# names that classes of PaddleNLP have in directories made for transformers
CLASS_ALIASES = {"GPT2Tokenizer": "GPTTokenizer", "ChatGLMTokenizer": "ChatGLMv2Tokenizer"}
SENTENCEPIECE_FILES = ("tokenizer.model", "sentencepiece.bpe.model", "spiece.model")
# what single classes need before they are right; each is called with the tokenizer
FIXES = (
    qwen_special_tokens.fix, chatglm2_special_tokens.fix, glm_special_tokens.fix, chatglm_image_tokens.fix,
    ids_without_text.fix,
)  # fmt: skip


def load_tokenizer(directory: str | Path) -> Any:
    """Load the tokenizer of a model directory; nothing is asked from the network.

    Returns:
        A PaddleNLP tokenizer; it pads on the left, has a pad token, and returns input_ids and attention_mask.

    Raises:
        ModelDirectoryError: there are no tokenizer files, or they cannot be read.
    """
    from paddlesft.models.load import quiet_paddlenlp

    directory = Path(directory)
    if not directory.is_dir():
        raise ModelDirectoryError(f"{directory} is not a directory. Give the path of a model directory.")
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise ModelDirectoryError(
            f"{directory} holds no tokenizer (tokenizer.json, tokenizer.model, qwen.tiktoken, ...). "
            "Copy the tokenizer files of the base model into it, or name them with tokenizer_name_or_path."
        )
    try:
        # paddlenlp logs an error for each special token that a class does without
        with quiet_paddlenlp(level=100):
            chosen = _tokenizer_class(directory)
            tokenizer = chosen.from_pretrained(str(directory), **_vocabulary_file(chosen, directory))
    except Exception as error:  # paddlenlp raises anything from KeyError to OSError here
        reason = str(error)
        if "bool object" in reason:  # paddlenlp goes on with False where SentencePiece has refused the file
            reason = "SentencePiece cannot read its model file, which is damaged or a git-lfs pointer: get it again"
        raise ModelDirectoryError(f"The tokenizer in {directory} cannot be loaded: {reason}.") from error
    tokenizer.padding_side = "left"
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    for fix in FIXES:
        fix(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token if tokenizer.eos_token_id is not None else tokenizer.unk_token
    template = directory / "chat_template.jinja"
    if template.is_file() and tokenizer.chat_template is None:
        tokenizer.init_chat_template(template.read_text(encoding="utf-8"))  # where newer transformers keep it
    return tokenizer


def _tokenizer_class(directory: Path) -> Any:
    """Choose the class: tokenizer.json is exact as it is, where the slow classes differ on special tokens and code."""
    import paddlenlp.transformers as zoo

    path = directory / "tokenizer_config.json"
    name = read_object(path).get("tokenizer_class") or "" if path.is_file() else ""
    if (directory / "tokenizer.json").is_file():
        # Hugging Face's class names (GPT2Tokenizer, PreTrainedTokenizerFast) are unknown to paddlenlp
        known = name.endswith("Fast") and hasattr(zoo, name)
        return getattr(zoo, name) if known else zoo.PretrainedTokenizerFast
    by_file = (kind for file, kind in CLASS_OF_FILE.items() if (directory / file).is_file())
    name = next(by_file, CLASS_ALIASES.get(name, name))
    if not name:
        return zoo.AutoTokenizer  # asks config.json
    if not hasattr(zoo, name):
        raise ValueError(
            f"paddlenlp has no tokenizer class {name!r}, which tokenizer_config.json names. A tokenizer.json beside it "
            "is enough; tokenizer.save_pretrained(DIR) of transformers writes one where it can"
        )
    return getattr(zoo, name)


def _vocabulary_file(chosen: Any, directory: Path) -> dict[str, str]:
    """Name the SentencePiece model when the directory has it under another name than the class looks for."""
    wanted = getattr(chosen, "resource_files_names", {}).get("vocab_file", "")
    if not wanted.endswith(".model") or (directory / wanted).is_file():
        return {}
    return next(({"vocab_file": str(directory / n)} for n in SENTENCEPIECE_FILES if (directory / n).is_file()), {})
