"""Weights in few bits: the rounding is the nearest one, and the bytes are as few as promised."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.quantized.formats import (
    FP4,
    INTEGERS,
    NF4,
    TABLES,
    WeightFormat,
    dequantize,
    encode,
    pack,
    quantize,
    rows_of,
    scale_of,
)

FORMATS = [
    WeightFormat("int8"),
    WeightFormat("int8", 16),
    WeightFormat("int4"),
    WeightFormat("int4", 16),
    WeightFormat("nf4", 16),
    WeightFormat("fp4", 16),
    WeightFormat("nf4", 16, double_quantization=True),
    WeightFormat("int4", 16, double_quantization=True),
    WeightFormat("nf4", 16, double_quantization=True, scales_per_block=32),
]
IDS = [f"{f.name}-{f.group_size}{f'-{f.scales_per_block}' if f.double_quantization else ''}" for f in FORMATS]


def weight(inputs: int = 50, outputs: int = 24) -> paddle.Tensor:
    return paddle.to_tensor(np.random.default_rng(3).normal(0, 0.1, (inputs, outputs)).astype(np.float32))


@pytest.mark.parametrize("how", FORMATS, ids=IDS)
def test_each_number_becomes_the_nearest_value_of_its_group(how: WeightFormat) -> None:
    w = weight()
    stored = quantize(w, how)
    found = dequantize(stored, how, 50).numpy()
    scales = scale_of(stored, how).numpy()
    values = np.arange(-INTEGERS[how.name], INTEGERS[how.name] + 1) if how.name in INTEGERS else TABLES[how.name]
    for i in range(50):
        possible = np.asarray(values, dtype=np.float32)[:, None] * scales[i // how.group_size if how.group_size else 0]
        nearest = np.abs(possible - w.numpy()[i]).min(axis=0)
        np.testing.assert_allclose(np.abs(found[i] - w.numpy()[i]), nearest, atol=1e-7)


@pytest.mark.parametrize("how", FORMATS, ids=IDS)
def test_stored_tensors_have_the_promised_shapes_and_bytes(how: WeightFormat) -> None:
    stored = quantize(weight(), how)
    shapes = how.shapes(50, 24)
    assert {name: (tuple(t.shape), str(t.dtype).split(".")[-1]) for name, t in stored.items()} == shapes
    assert sum(t.numpy().nbytes for t in stored.values()) == how.nbytes(50, 24)


def test_error_falls_with_bits_and_groups() -> None:
    w = weight(512, 64)

    def error(how: WeightFormat) -> float:
        return float((dequantize(quantize(w, how), how, 512) - w).norm() / w.norm())

    int8, int4, grouped, nf4 = (error(WeightFormat(*x)) for x in (("int8",), ("int4",), ("int4", 64), ("nf4", 64)))
    assert int8 < 0.02 < nf4 < grouped < int4 < 0.3


def test_double_quantization_costs_little() -> None:
    w = weight(512, 64)
    plain, double = WeightFormat("nf4", 64), WeightFormat("nf4", 64, True)
    errors = [float((dequantize(quantize(w, how), how, 512) - w).norm() / w.norm()) for how in (plain, double)]
    assert errors[1] < errors[0] * 1.02
    assert double.nbytes(512, 64) < plain.nbytes(512, 64) * 0.93


def test_pairs_stand_in_bytes_with_the_even_row_below() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (7, 5))
    packed = pack(paddle.to_tensor(codes))
    assert packed.shape == [4, 5] and str(packed.dtype).endswith("uint8")
    assert (packed.numpy() == codes[0::2] + 16 * np.vstack([codes[1::2], np.zeros((1, 5), dtype=int)])).all()


def by_hand(stored: dict[str, paddle.Tensor], how: WeightFormat, inputs: int) -> np.ndarray:
    """The weight that stored tensors stand for, in numpy."""
    tensors = {name: tensor.numpy() for name, tensor in stored.items()}
    codes = tensors["quant_weight"]
    if how.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=1).reshape(-1, codes.shape[1])[:inputs]
    values = np.asarray(TABLES[how.name], dtype=np.float32)[codes] if how.name in TABLES else codes.astype(np.float32)
    scales = tensors.get("quant_scale")
    if scales is None:
        flat = tensors["qquant_scale"].astype(np.float32).ravel()
        steps = np.repeat(tensors["double_quant_scale"], how.scales_per_block)[: flat.size]
        scales = (flat * steps + tensors["quant_scale_offset"]).reshape(tensors["qquant_scale"].shape)
    return (values - (8 if how.name == "int4" else 0)) * np.repeat(scales, how.group_size or inputs, axis=0)[:inputs]


@pytest.mark.parametrize("how", FORMATS, ids=IDS)
@pytest.mark.parametrize("size", [(50, 24), (301, 4000)], ids=["one block", "several blocks, odd"])
def test_numbers_are_those_of_numpy_bit_for_bit(how: WeightFormat, size: tuple[int, int]) -> None:
    stored = quantize(weight(*size), how)
    wanted = by_hand(stored, how, size[0])
    assert wanted.dtype == np.float32
    np.testing.assert_array_equal(dequantize(stored, how, size[0]).numpy(), wanted)
    rows = rows_of(stored["quant_weight"], how, 18, 49, size[0], scale_of(stored, how))
    np.testing.assert_array_equal(rows.numpy(), wanted[18:49])


def test_zeros_stay_zeros() -> None:
    for how in FORMATS[:6]:
        assert (dequantize(quantize(paddle.zeros([32, 4]), how), how, 32).numpy() == 0).all()


def test_given_scales_are_used() -> None:
    how = WeightFormat("int4")
    stored = encode(paddle.to_tensor([[0.9], [0.2], [-3.0]]), paddle.to_tensor([[0.25]]), how)
    assert dequantize(stored, how, 3).numpy().tolist() == [[1.0], [0.25], [-2.0]]  # -3 is beyond -8 * 0.25


def test_tables_are_those_of_the_papers() -> None:
    assert len(set(NF4)) == 16 and sorted(NF4) == list(NF4) and (NF4[0], NF4[7], NF4[15]) == (-1.0, 0.0, 1.0)
    assert {abs(v) for v in FP4} == {0.0, 0.0625 / 12, 1 / 6, 0.25, 1 / 3, 0.5, 2 / 3, 1.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int3",), "weight format 'int3' is not one of int8, int4, nf4, fp4."),
        (("int4", -1), "group_size -1 is impossible for int4: allowed is a whole number from 0 up"),
        (("nf4",), "group_size 0 is impossible for nf4: allowed is a whole number from 1 up"),
        (("nf4", 64, True, 0), "0 scales per block are impossible: allowed is a whole number from 1 up."),
    ],
)
def test_impossible_formats_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ModelDirectoryError) as caught:
        WeightFormat(*arguments)
    assert message in str(caught.value)
