"""The oracle itself, against loops over single numbers and against PyTorch's own operations."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from attneck.attention import reference


def test_relative_attention_is_the_formula_of_figure_4_number_by_number() -> None:
    torch.manual_seed(0)
    H, W, d = 2, 3, 2
    q, k, v = torch.randn(3, 1, 1, H * W, d, dtype=torch.float64).unbind()
    rel_h, rel_w = torch.randn(2 * H - 1, d).double(), torch.randn(2 * W - 1, d).double()
    places = list(itertools.product(range(H), range(W)))
    want = torch.zeros(H * W, d, dtype=torch.float64)
    for n, (y, x) in enumerate(places):
        logits = []
        for m, (key_y, key_x) in enumerate(places):
            r = [float(rel_h[key_y - y + H - 1, i] + rel_w[key_x - x + W - 1, i]) for i in range(d)]
            logits.append(sum(float(q[0, 0, n, i]) * (float(k[0, 0, m, i]) + r[i]) for i in range(d)))
        total = sum(math.exp(logit) for logit in logits)
        for m, logit in enumerate(logits):
            want[n] += math.exp(logit) / total * v[0, 0, m]
    got = reference.relative_attention_2d(q, k, v, rel_h, rel_w, (H, W))
    torch.testing.assert_close(got[0, 0], want, rtol=1e-12, atol=1e-12)


def test_pooling_leaves_out_what_is_outside_the_map() -> None:
    tokens = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).view(1, 1, 6, 1)  # rows 1 2 3 and 4 5 6
    assert reference.average_pool_2x2(tokens, (2, 3)).flatten().tolist() == [3.0, 4.5]
    assert reference.average_pool_2x2(tokens, (3, 2)).flatten().tolist() == [2.5, 5.5]


@pytest.mark.parametrize("dilation", [1, 4])
def test_convolutions_are_pytorch_s(dilation: int) -> None:
    torch.manual_seed(0)
    x, bias = torch.randn(2, 3, 6, 5, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    want = F.conv2d(x, weight, bias, padding=dilation, dilation=dilation)
    torch.testing.assert_close(reference.convolution_3x3(x, weight, bias, dilation), want)
    centre = weight[:, :, 1:2, 1:2]
    torch.testing.assert_close(reference.convolution_1x1(x, centre, bias), F.conv2d(x, centre, bias))


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4, 5)])
def test_batch_norm_is_pytorch_s_in_training_and_in_evaluation(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    gamma, beta, mean = torch.randn(3, 3, dtype=torch.float64).unbind()
    var = torch.rand(3, dtype=torch.float64)
    want = F.batch_norm(x, None, None, gamma, beta, training=True)
    torch.testing.assert_close(reference.batch_norm(x, gamma, beta), want)
    want = F.batch_norm(x, mean, var, gamma, beta, training=False)
    torch.testing.assert_close(reference.batch_norm(x, gamma, beta, mean, var), want)
