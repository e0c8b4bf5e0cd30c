import inspect

from paddle.distributed.communication.reduce import ReduceOp, _get_reduce_op
from paddlenlp.peft.lora import lora_quick_layers

from paddlesft.quirks import quick_lora_reduction


def test_upstream_still_hands_over_more_than_is_taken() -> None:
    """When this fails, both fit each other: remove the quirk and its use in tuning/lora.py."""
    assert len(inspect.signature(_get_reduce_op).parameters) == 1
    assert '_get_reduce_op(ReduceOp.SUM, "_c_identity")' in inspect.getsource(lora_quick_layers.ColumnQuickLora)


def test_the_operation_is_found_with_a_name_and_without() -> None:
    quick_lora_reduction.apply()
    once = lora_quick_layers._get_reduce_op
    quick_lora_reduction.apply()
    assert lora_quick_layers._get_reduce_op is once
    assert once(ReduceOp.SUM, "_c_identity") == once(ReduceOp.SUM) == _get_reduce_op(ReduceOp.SUM)
