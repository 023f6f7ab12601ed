"""Whoever trains attention on a map of next to no positions is told so, and on a larger one is not."""

import pytest

from attneck.runs import train as runs
from attneck.training.recipe import Recipe


@pytest.mark.parametrize(("side", "few"), [(24, "on 3×3"), (32, None)])
def test_attention_on_few_positions_is_said(side, few, tmp_path, monkeypatch, capsys):
    options = {"depths": [1] * 4, "mids": [16] * 4, "outs": [16] * 4, "attend": True}
    content = {
        "model": {"name": "cifar_resnet20", "options": options},
        "data": {"name": "shapes", "image_size": side, "train_size": 8, "val_size": 4},
        "batch": 8,
        "epochs": 1,
    }

    def stop(*words, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("attneck.training.loop.train_loop", stop)
    with pytest.raises(KeyboardInterrupt):
        runs.train(Recipe.model_validate(content), tmp_path / "run")
    said = capsys.readouterr().err
    assert ("few positions" in said) == (few is not None)
    if few is not None:
        assert f"on images of {side} pixels attention has few positions to choose from (layer4.0." in said
        assert f"{few}): give larger images, such as --data.image-size 224" in said
