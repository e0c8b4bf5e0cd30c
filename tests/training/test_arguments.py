import dataclasses

import pytest
from paddlenlp.trainer import TrainingArguments

from paddlesft.errors import ConfigError
from paddlesft.parallel import gloo
from paddlesft.training.arguments import is_divided, training_arguments
from tests.training.small_runs import small_config


def test_every_value_reaches_the_trainer() -> None:
    config = small_config(
        "learning_rate=1.5e-4", "warmup_ratio=0.1", "weight_decay=0.02", "adam_beta2=0.95", "max_grad_norm=0.3",
        "lr_scheduler_type=cosine", "num_train_epochs=2.5", "per_device_train_batch_size=3", "seed=11",
        "gradient_accumulation_steps=4", "save_steps=7", "save_total_limit=2", "logging_steps=3", "recompute=true",
    )  # fmt: skip
    arguments = training_arguments(config)
    assert isinstance(arguments, TrainingArguments)
    told = {name: value for name, value in config.training.paddlenlp_arguments().items() if value is not None}
    plain = {name: getattr(getattr(arguments, name), "value", getattr(arguments, name)) for name in told
             if hasattr(arguments, name)}  # fmt: skip
    changed = {name for name, value in told.items() if name in plain and plain[name] != value}
    assert changed <= {"disable_tqdm", "sharding", "local_rank", "unified_checkpoint_config", "tensor_parallel_config",
                       "pipeline_parallel_config", "sharding_parallel_config", "hybrid_parallel_topo_order",
                       "sequence_parallel_config", "data_parallel_config", "refined_recompute", "device"}  # fmt: skip
    assert arguments.num_train_epochs == 2.5 and arguments.warmup_ratio == 0.1


def test_nothing_is_reported_unless_asked() -> None:
    assert training_arguments(small_config()).report_to == []
    assert training_arguments(small_config("report_to=[visualdl]")).report_to == ["visualdl"]


def test_half_precision_is_off_on_a_cpu_and_said() -> None:
    config = small_config("bf16=true")
    assert training_arguments(config).bf16 is False
    assert config.training.bf16 is False and "half precision has no kernels on a CPU" in str(config.origins["bf16"])


def test_a_gpu_that_is_not_there_is_not_replaced_in_silence() -> None:
    with pytest.raises(ConfigError, match="device: found 'gpu', but paddle sees no GPU here; allowed"):
        training_arguments(small_config("device=gpu"))


def test_a_missing_output_dir_is_said() -> None:
    config = small_config()
    config.training.output_dir = None
    with pytest.raises(ConfigError, match="output_dir is not set"):
        training_arguments(config)


def test_what_paddlenlp_refuses_becomes_a_config_error() -> None:
    config = small_config("evaluation_strategy=steps", "eval_steps=4", "eval_dataset_path=x")
    config.training = dataclasses.replace(config.training, load_best_model_at_end=True, save_steps=6)
    with pytest.raises(ConfigError, match=r"PaddleNLP's trainer refuses these settings: .*round multiple"):
        training_arguments(config)


@pytest.mark.parametrize(
    ("keys", "divided"),
    [
        ({}, False),
        ({"tensor_parallel_degree": -1, "pipeline_parallel_degree": 1, "sharding": ""}, False),
        ({"tensor_parallel_degree": 2}, True),
        ({"pipeline_parallel_degree": 2}, True),
        ({"sharding": "stage1"}, True),
    ],
)
def test_data_parallelism_alone_divides_nothing(keys: dict[str, object], divided: bool) -> None:
    assert is_divided(keys) is divided


def test_plain_data_parallelism_waits_in_our_groups_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paddle's own give up after 30 s, in which one rank may be saving while the others wait."""
    asked: list[bool] = []
    monkeypatch.setattr(gloo, "install", lambda rows_only: asked.append(rows_only))
    training_arguments(small_config())
    assert asked == [True]


def test_offload_is_left_out_on_a_cpu_and_said(caplog: pytest.LogCaptureFixture) -> None:
    config = small_config("sharding=stage3 offload")
    with caplog.at_level("WARNING", logger="paddlesft"):
        training_arguments(config)
    assert caplog.messages == [
        "sharding: offload keeps state in the host's memory, where everything is on a CPU; left out"
    ]
