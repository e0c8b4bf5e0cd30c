import paddle
import pytest

from paddlesft.models.fast import accelerate
from paddlesft.training.loss import supervised_loss
from paddlesft.training.model_switches import set_model_switches
from paddlesft.tuning.prepare import prepare_for_tuning
from tests.training.small_runs import batch_of, small_config, small_dataset, small_model


def layer_calls(*keys: str, fast: bool) -> tuple[int, float]:
    """How often the second decoder layer's MLP computes in one step, and the gradients' size."""
    model = small_model()
    config = small_config(*keys)
    set_model_switches(model, config)
    if fast:
        accelerate(model)
    model = prepare_for_tuning(model, config)
    if config.training.recompute:  # as PaddleNLP's trainer does
        model.apply(
            lambda layer: setattr(layer, "enable_recompute", True) if hasattr(layer, "enable_recompute") else None
        )
    model.train()
    calls = []
    layers = (model.model if config.model.lora else model).llama.layers
    layers[1].mlp.register_forward_post_hook(lambda layer, inputs, output: calls.append(1) and None)
    supervised_loss(model, batch_of(small_dataset(3))).loss_sum.backward()
    total = sum(float((p.grad**2).sum()) for p in model.parameters() if p.grad is not None)
    return len(calls), total


@pytest.mark.parametrize("fast", [False, True], ids=["upstream's layers", "fast layers"])
@pytest.mark.parametrize("method", ["lora=true", "lora=false"])
def test_recompute_computes_layers_again(method: str, fast: bool) -> None:
    once, gradients = layer_calls(method, fast=fast)
    twice, same = layer_calls(method, "recompute=true", fast=fast)
    assert (once, twice) == (1, 2) and same == pytest.approx(gradients, rel=1e-5)
    attention_only, same = layer_calls(method, "recompute=true", "recompute_granularity=full_attn", fast=fast)
    assert attention_only == 1 and same == pytest.approx(gradients, rel=1e-5)
    kept, _ = layer_calls(method, "recompute=true", "no_recompute_layers=[1]", fast=fast)
    assert kept == 1


def test_switches_reach_the_config_and_the_layers() -> None:
    model = small_model()
    set_model_switches(model, small_config("recompute=true", "recompute_granularity=core_attn"))
    assert model.config.recompute is True and model.config.recompute_granularity == "core_attn"
    assert model.llama.recompute_granularity == model.llama.layers[0].self_attn.recompute_granularity == "core_attn"
    assert isinstance(model.llama.layers[0].self_attn.q_proj.weight, paddle.Tensor)


def test_kernels_that_only_gpus_have_are_left_out_on_a_cpu_and_said(caplog: pytest.LogCaptureFixture) -> None:
    model = small_model()
    with caplog.at_level("WARNING", logger="paddlesft"):
        set_model_switches(model, small_config("use_fused_rms_norm=true", "use_fused_rope=true"))
    assert "use_fused_rms_norm, use_fused_rope: these kernels exist on GPUs only" in caplog.text
    model.train()
    assert float(supervised_loss(model, batch_of(small_dataset(2))).loss_sum) > 0
