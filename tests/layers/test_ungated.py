"""BAM's branches without the gate: what they say is BAM's, and is added."""

import pytest
import torch
from torch import nn

from attneck.layers import BAM
from attneck.layers.ungated import UngatedBAM


@pytest.mark.parametrize("branches", ["both", "channel", "spatial"])
@pytest.mark.parametrize("training", [True, False])
def test_it_adds_what_bam_s_branches_say(branches: str, training: bool) -> None:
    torch.manual_seed(0)
    gated = BAM(8, reduction=2, dilation=2, branches=branches).double().train(training)
    ungated = UngatedBAM(8, reduction=2, dilation=2, branches=branches).double().train(training)
    ungated.branches.load_state_dict(gated.state_dict())  # the same parameters
    assert len(ungated.state_dict()) == len(gated.state_dict())
    x = torch.randn(3, 8, 5, 6, dtype=torch.float64)
    want = x.clone()
    if branches != "spatial":
        want += gated.channel_attention(x)[:, :, None, None]
    if branches != "channel":
        want += gated.spatial_attention(x)
    torch.testing.assert_close(ungated(x), want)
    assert not torch.allclose(want, gated(x))
    traced = torch.fx.symbolic_trace(nn.Sequential(ungated))
    torch.testing.assert_close(traced(x), want)
