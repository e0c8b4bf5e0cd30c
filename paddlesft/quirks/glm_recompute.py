"""PaddleNLP's GLM, ChatGLM and ChatGLM2 fail in backward when layers are recomputed in the re-entrant form.

Upstream symbol: ``recompute`` as called in ``paddlenlp.transformers.{glm,chatglm,chatglm_v2}.modeling`` (seen in
paddlenlp 3.0.0b4 with paddlepaddle 3.3.1). That form runs a backward pass for each layer, through nothing but the
tensors among the layer's arguments and results; ChatGLM's layers return a None beside theirs, and a tuned prefix, whose
keys and values all come from one table, loses its graph to the first of these passes (or the process ends with a
segmentation fault). GLM, and ChatGLM2 with ``recompute_granularity: full_attn``, know no other form.
"""

from __future__ import annotations

import sys
from typing import Any


def recompute_in_one_pass(model: Any) -> None:
    """Let models of a family recompute within one backward pass, whatever ``recompute_use_reentrant`` says.

    Args:
        model: a model of the family; the function that its module calls is replaced.
    """
    from paddle.distributed.fleet.utils import recompute

    def in_one_pass(function: Any, *inputs: Any, use_reentrant: bool = False, **named_inputs: Any) -> Any:
        return recompute(function, *inputs, use_reentrant=False, **named_inputs)

    package = type(model).__module__.rpartition(".")[0]
    for module in {type(layer).__module__ for layer in model.sublayers(include_self=True)}:  # layers of a stage too
        if module.startswith(package) and hasattr(sys.modules[module], "recompute"):
            sys.modules[module].recompute = in_one_pass
