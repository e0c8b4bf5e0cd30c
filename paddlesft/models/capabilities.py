"""What each model family can do here, read off its row of the family table.

``paddlesft models``, the tables of the READMEs and the tests that stand behind each mark all use ``CAPABILITIES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paddlesft.models.families import FAMILIES
from paddlesft.models.family import Family

UNPROVEN = "no test has run it yet"


@dataclass(frozen=True)
class Capability:
    """One thing that a family can do or not.

    Attributes:
        key: its name in JSON and in tests.
        title: its name in tables.
        title_zh: the same in Chinese.
        meaning: what a mark says.
        refusal: tells why a family cannot; empty where it can.
    """

    key: str
    title: str
    title_zh: str
    meaning: str
    refusal: Callable[[Family], str]

    def offered(self, family: Family) -> bool:
        """Whether the family can do it."""
        return not self.refusal(family)


def _proven(family: Family) -> str:
    return "" if family.status == "tested" else UNPROVEN


def _prefix(family: Family) -> str:
    return _proven(family) if family.prefix_tuning else family.prefix_refusal


def _packing(family: Family) -> str:
    return _proven(family) if family.packing else family.packing_refusal


def _tensor_parallel(family: Family) -> str:
    return _proven(family) if family.tensor_parallel else "PaddleNLP cannot split its tensors"


def _pipeline(family: Family) -> str:
    return _proven(family) if family.pipe_class else "PaddleNLP has no class for its stages"


def _hugging_face_in(family: Family) -> str:
    return _proven(family) if family.hf_layout else family.hf_refusal


def _hugging_face_out(family: Family) -> str:
    return _hugging_face_in(family) or family.hugging_face_layout().export_refusal


def _quantization(family: Family) -> str:
    return family.quantization_refusal or _proven(family)


def _graph(family: Family) -> str:
    return _proven(family) if family.step else "its decoding is not written as one step"


def gguf_architectures(family: Family) -> list[str]:
    """Return the values of a GGUF file's ``general.architecture`` that become a model of this family."""
    from paddlesft.models.gguf_architectures import ARCHITECTURES

    return [row.name for row in ARCHITECTURES if row.family_name == family.name]


def _gguf(family: Family) -> str:
    from paddlesft.models.gguf_architectures import ARCHITECTURES

    if gguf_architectures(family):
        return _proven(family)
    return f"files are imported of the architectures {', '.join(row.name for row in ARCHITECTURES)}"


CAPABILITIES = (
    Capability("full", "full", "全参数", "all weights are trained", _proven),
    Capability("lora", "LoRA", "LoRA", "low-rank adapters are trained", _proven),
    Capability("prefix", "prefix", "Prefix", "Prefix-Tuning", _prefix),
    Capability("packing", "packing", "打包", "packed rows train what the same rows train apart", _packing),
    Capability("tensor", "TP", "张量并行", "tensor parallelism: several cards share each layer", _tensor_parallel),
    Capability("pipeline", "PP", "流水线", "pipeline parallelism: several cards share the layers", _pipeline),
    Capability("generate", "generate", "生成", "greedy and drawn replies, in batches as one by one", _proven),
    Capability("merge", "merge", "合并", "LoRA is merged, and the result proved equal to the adapter", _proven),
    Capability("quantize", "quantize", "量化", "A8W8, int8, int4 (by GPTQ too), nf4 and fp4", _quantization),
    Capability("qlora", "QLoRA", "QLoRA", "LoRA over a base in 4 or 8 bits", _quantization),
    Capability("graph", "graph", "静态图", "exported as a static graph of Paddle, quantized too", _graph),
    Capability("onnx", "ONNX", "ONNX", "exported for ONNX Runtime, quantized too", _graph),
    Capability("hf_in", "HF in", "HF 导入", "Hugging Face directories are read", _hugging_face_in),
    Capability("hf_out", "HF out", "HF 导出", "Hugging Face directories are written", _hugging_face_out),
    Capability("gguf", "GGUF in", "GGUF 导入", "GGUF files are imported", _gguf),
)


def short_title(family: Family) -> str:
    """Return the models people know the family by, without what stands in brackets."""
    return family.title.split(" (")[0]


def capability_table() -> list[tuple[Family, dict[str, str]]]:
    """Return every family with, for each capability's key, why it is refused (empty: it is offered)."""
    return [(family, {c.key: c.refusal(family) for c in CAPABILITIES}) for family in FAMILIES]
