"""The page as one file: the numbers in it are those of `attneck.explain.maps`; `attneck look --html`."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from small_page import FACTS, random

from attneck import cli
from attneck.errors import NotFinite
from attneck.explain import maps
from attneck.layers import BAM
from attneck.serve import alone as standing
from attneck.serve.network import Network, Viewer
from attneck.serve.page import STEPS_A_NAT


@pytest.fixture(scope="module")
def photo():
    draws = np.random.default_rng(0)
    return Image.fromarray(draws.integers(0, 256, (64, 96, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def network():
    return Network(Viewer("a </script> note", True, random(), FACTS, False), "random")


def told(html):
    """What its program is told."""
    return json.loads(re.search(r'<script type="application/json" id="told">(.*?)</script>', html)[1])


@pytest.mark.parametrize("step", [1, 3])
def test_the_rows_of_every_place_are_in_it(photo, network, step, monkeypatch):
    row = 2 * 2 * 2 * 64  # bytes: two terms, two heads
    monkeypatch.setattr(standing, "MOST_BYTES", row * (64 if step == 1 else 15))
    found = told(standing.alone(photo, "photo.png", [network]))
    (block,) = found["looks"][0]["mhsas"]
    places = range(0, 8, step)
    assert block["step"] == step
    steps = np.frombuffer(base64.b64decode(block["rows"]), dtype="<u2")
    rows = np.exp(-steps.reshape(len(places), len(places), 2, 2, 8, 8).astype(float) / STEPS_A_NAT)
    (mhsa,) = maps(network.viewer.network, network.viewer.prepared(photo)).mhsas
    for i, y in enumerate(places):
        for j, x in enumerate(places):
            for part, name in enumerate(("content", "position")):
                np.testing.assert_allclose(rows[i, j, part], mhsa.row(y, x, name), rtol=1e-3, atol=1e-30)
    # The model's own weights are the two terms' product, made to sum to one.
    both = rows.prod(2)
    both /= both.sum((-1, -2), keepdims=True)
    np.testing.assert_allclose(both[1, 1], mhsa.row(step, step), rtol=4e-3, atol=1e-30)


def test_what_is_seen_lies_where_the_cut_is(photo, network):
    assert network.see(photo).told()["box"] == pytest.approx([16 / 96, 0, 64 / 96, 1])


def test_a_large_photo_is_made_smaller_in_it(network):
    image = told(standing.alone(Image.new("RGB", (4096, 1024)), "wide.png", [network]))["image"]
    assert (image["width"], image["height"]) == (2048, 512)


def test_weights_that_are_no_numbers_make_no_page(photo):
    model = random()
    with torch.no_grad():
        model.stem.weight.fill_(float("nan"))
    broken = Network(Viewer("broken", True, model, FACTS, False), "broken")
    with pytest.raises(NotFinite, match="logits that are not finite: its weights are broken"):
        standing.alone(photo, "photo.png", [broken])


def test_a_network_without_attention_has_predictions(photo):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 8), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    plain = Network(Viewer("plain", False, model, FACTS, False), "plain")
    said = plain.see(photo).told()
    assert (said["mhsas"], said["bams"], said["notes"], len(said["predictions"])) == ([], [], [], 3)
    assert said["box"] == pytest.approx([16 / 96, 0, 64 / 96, 1]), "it sees the middle alone, too"
    assert plain.told()["note"] == "untrained: its weights are random"


def test_a_layer_without_a_map_is_said_with_the_reason(photo):
    model = random()
    model.unused = BAM(16)
    said = Network(Viewer("more", True, model, FACTS, False), "more").see(photo).told()
    assert said["notes"] == ["'unused' did not run"]


def test_look_writes_it(photo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photo.save("photo.png")
    assert cli.main(["look", "cifar_resnet20_bam", "photo.png", "--html", "page.html"]) == 0
    assert capsys.readouterr().out.startswith("wrote page.html, 0.")
    assert {path.name for path in tmp_path.iterdir()} == {"photo.png", "page.html"}
    html = (tmp_path / "page.html").read_text()
    found = told(html)
    assert found["image"]["name"] == "photo.png"
    assert found["models"] == [{"name": "cifar_resnet20_bam", "note": "untrained: its weights are random"}]
    assert len(found["looks"][0]["bams"]) > 0
    assert "default-src 'none'" in html
    assert "connect-src" not in html


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--html", "page.png"], "--html page.png: wanted a file that ends in .html"),
        (["--html", "nowhere/page.html"], "there is no folder"),
        (
            ["--html", "page.html", "--at", "3,4"],
            "--layers, --tables, --cam and --dark are of the picture",
        ),
    ],
)
def test_what_does_not_fit_is_a_line(words, says, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photo.save("photo.png")
    assert cli.main(["look", "cifar_resnet20_bam", "photo.png", *words]) == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]
