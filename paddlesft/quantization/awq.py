"""What AWQ searches before a weight is rounded: factors of inputs, and where to clip (arXiv:2306.00978).

Shape legend: i inputs, o outputs, g groups of inputs that share a scale.

Both searches compare outputs: |x W - x' W'|^2, summed over all calibration tokens, is D^T H D for the difference D of
two weights, with H the sum of x x^T. So they see every token, need the memory of H alone, and take the time of one
product [i, i] x [i, o] for each trial. Both try what rounding to the nearest does first: on calibration tokens they
cannot lose, layer by layer.

A whole model can: SmolLM2 with one scale for each output predicts gsm8k worse after AWQ than after rounding to the
nearest, though the mean error of its layers falls. With each token divided by its norm, so that the few with massive
activations (arXiv:2402.17762) do not dominate H, it is less, but still worse; with groups of 128, which AWQ is meant
for, that does harm. So H has every token as it is.

PaddleSlim's ``AWQSearch`` (2.6.0) tries the same factors; it is not used because it needs the tokens themselves and
knows neither nf4 and fp4 nor groups that do not divide the inputs. Its ``AutoClip`` is not used because it computes in
float16, which has no CPU kernels, and rounds with one scale for all groups at once instead of one for each.
"""

from __future__ import annotations

import paddle

from paddlesft.models.quantized.formats import WeightFormat, dequantize, encode, quantize, scales_of

TRIALS = 20
MOST_CLIPPING = 0.5  # the largest number of a group is cut to this share at most


@paddle.no_grad()
def awq_factors(weight: paddle.Tensor, hessian: paddle.Tensor, mean: paddle.Tensor, how: WeightFormat) -> paddle.Tensor:
    """Search the factors that change the layer's output least when its weight is rounded (section 3.2).

    Args:
        weight: [i, o].
        hessian: float32 [i, i], the mean of x x^T.
        mean: float32 [i], the mean of |x|.
        how: the format that the weight will have.

    Returns:
        float32 [i], all positive: x' = x / factors, W' = factors W.
    """
    weight = weight.astype("float32")
    best, least = paddle.ones_like(mean), float("inf")
    for trial in range(TRIALS):
        factors = paddle.clip(mean ** (trial / TRIALS), min=1e-4)
        factors = factors / (factors.max() * factors.min()).sqrt()
        wide = factors.unsqueeze(1)
        difference = weight - dequantize(quantize(weight * wide, how), how, weight.shape[0]) / wide
        error = float((paddle.matmul(hessian, difference) * difference).sum())
        if error < least:
            best, least = factors, error
    return best


@paddle.no_grad()
def clipped_scales(weight: paddle.Tensor, hessian: paddle.Tensor, how: WeightFormat) -> paddle.Tensor:
    """Search how far each group's largest numbers are cut, such that the group's part of the output changes least.

    Args:
        weight: [i, o].
        hessian: float32 [i, i], the mean of x x^T.
        how: the format that the weight will have.

    Returns:
        Scales for ``formats.encode``, float32 [g, o], not larger than those of ``formats.scales_of``.
    """
    weight = weight.astype("float32")
    whole = scales_of(weight, how)
    size = how.group_size or weight.shape[0]
    best, least = whole, paddle.full_like(whole, float("inf"))
    for trial in range(int(MOST_CLIPPING * TRIALS) + 1):
        scales = whole * (1 - trial / TRIALS)
        difference = weight - dequantize(encode(weight, scales, how), how, weight.shape[0])
        errors = []
        for begin in range(0, weight.shape[0], size):
            end = min(begin + size, weight.shape[0])
            lost = difference[begin:end]
            errors.append((paddle.matmul(hessian[begin:end, begin:end], lost) * lost).sum(axis=0))
        error = paddle.stack(errors)
        better = error < least
        best, least = paddle.where(better, scales, best), paddle.where(better, error, least)
    return best
