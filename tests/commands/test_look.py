"""attneck look and attneck draw: files, refusals, and what is said."""

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import attneck
from attneck import cli
from attneck.commands import look

NET = "cifar_resnet20_bot_bam"


@pytest.fixture(autouse=True)
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the current folder."""
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((80, 60), 60).convert("RGB").save("photo.png")
    return tmp_path / "photo.png"


def said(capsys: Any, *words: str) -> tuple[int, str]:
    code = cli.main([*words])
    out, err = capsys.readouterr()
    return code, (out if code == 0 else err).strip()


def test_look_writes_a_picture_beside_nothing_of_yours(photo: Path, capsys: Any) -> None:
    before = photo.read_bytes()
    assert said(capsys, "look", NET, "photo.png") == (0, "wrote photo-look.png")
    assert said(capsys, "look", NET, "photo.png", "--dark") == (0, "wrote photo-look-2.png")
    light, dark = (
        Image.open(name).convert("L").getpixel((2, 2)) for name in ("photo-look.png", "photo-look-2.png")
    )
    assert light > 240
    assert dark < 40
    os.link(photo, "other.png")
    os.symlink(photo, "third.png")
    for name in ("photo.png", "other.png", "third.png", "../" + photo.parent.name + "/photo.png"):
        code, line = said(capsys, "look", NET, "photo.png", "--save", name)
        assert code == 2
        assert line.endswith("is the photo itself: give another name")
    assert photo.read_bytes() == before


def test_an_svg_names_every_module_and_place(capsys: Any) -> None:
    words = ("--at", "40,30", "20,10", "--tables", "--beside", "cifar_resnet20_bam", "--save", "p.svg")
    assert said(capsys, "look", NET, "photo.png", *words) == (0, "wrote p.svg")
    text = Path("p.svg").read_text()
    for word in (
        "layer3.0.conv2",
        "layer1.",
        "place 1, x 40, y 30",
        "place 2, x 20, y 10",
        "head 4",
        "32 × 32",
    ):
        assert word in text.replace("\u00a0", " "), word
    assert "untrained" in text
    assert "Learned positions" in text


def test_some_layers_alone(capsys: Any) -> None:
    words = ("--layers", "layer1.*", "layer3.2.conv2", "--save", "p.svg")
    assert said(capsys, "look", NET, "photo.png", *words) == (0, "wrote p.svg")
    text = Path("p.svg").read_text()
    assert "layer1." in text
    assert "layer3.2.conv2" in text
    assert "layer2." not in text
    assert "layer3.0.conv2" not in text
    code, line = said(capsys, "look", NET, "photo.png", "--layers", "layer3.2.conv2", "conv2")
    assert code == 2
    assert line.startswith("attneck: --layers 'conv2': no attention of")
    assert "it has layer1.3, layer2.3, layer3.0.conv2, layer3.1.conv2" in line


@pytest.mark.parametrize("size", [(160, 1), (1, 160)])
def test_of_a_photo_a_pixel_wide_the_middle_is_seen(size: tuple[int, int], capsys: Any) -> None:
    Image.new("RGB", size).save("strip.png")
    code, told = said(capsys, "look", "cifar_resnet20_bot", "strip.png", "--save", "out.png")
    assert code == 0, told


def test_a_photo_that_is_turned_is_seen_upright(capsys: Any) -> None:
    image = Image.new("RGB", (80, 60))
    exif = image.getexif()
    exif[274] = 6  # a quarter turn: 60 wide and 80 high
    image.save("turned.jpg", exif=exif)
    assert said(capsys, "look", NET, "turned.jpg", "--at", "30,60")[0] == 0
    code, line = said(capsys, "look", NET, "turned.jpg", "--at", "60,30")
    assert code == 2
    assert "the photo is 60 × 80 pixels" in line


def test_the_places_it_names_are_the_photo_s(photo, capsys, monkeypatch) -> None:
    """Of a photo that is made smaller as it is read: both ends that the line names are seen, and no more."""
    monkeypatch.setattr("attneck.commands.look.MOST_PIXELS", 80 * 60 // 8)
    code, line = said(capsys, "look", NET, "photo.png", "--at", "1,30")
    assert code == 2
    first, last = re.findall(r"(\d+),\d+ to (\d+),", line)[0]
    for x, seen in ((first, 0), (int(first) - 1, 2), (last, 0), (int(last) + 1, 2)):
        assert said(capsys, "look", NET, "photo.png", "--at", f"{x},30")[0] == seen, x


REFUSED: dict[str, tuple[list[str], str]] = {
    "no layer": (["cifar_resnet20", "photo.png"], "which attneck.surgery puts in: --cam shows"),
    "no model": (["botnte50", "photo.png"], "perhaps you meant 'botnet50'"),
    "no photo": ([NET, "nowhere.png"], "nowhere.png"),
    "no image": ([NET, "words.txt"], "words.txt"),
    "a place": ([NET, "photo.png", "--at", "4"], "wanted x,y in the photo's pixels"),
    "off the photo": ([NET, "photo.png", "--at", "80,0"], "the photo is 80 × 60 pixels"),
    "not seen": (
        [NET, "photo.png", "--at", "1,30"],
        f"lies outside what {NET} sees of the photo, from 10,0 to 69,59",
    ),
    "no attention": (["cifar_resnet20_bam", "photo.png", "--at", "40,30"], "--at is of self-attention"),
    "no tables": (["cifar_resnet20_bam", "photo.png", "--tables"], "has no position tables"),
    "an ending": ([NET, "photo.png", "--save", "p.gif"], "ends in .png, .svg or .pdf"),
    "a folder": ([NET, "photo.png", "--save", "there/p.png"], "there is no folder"),
    "a size": ([NET, "photo.png", "--image-size", "0"], "--image-size=0: wanted a whole number from 1"),
    "a bomb": ([NET, "photo.png", "--max-pixels", "100"], "over 100 pixels"),
    "no run": ([NET, "photo.png", "--checkpoint", "best"], "--checkpoint is about runs"),
}


@pytest.mark.parametrize(("words", "says"), REFUSED.values(), ids=REFUSED)
def test_look_refuses(words: list[str], says: str, capsys: Any) -> None:
    Path("words.txt").write_text("no image")
    code, line = said(capsys, "look", *words)
    assert code == 2
    assert says in line
    assert len(line.splitlines()) == 1
    assert not [*Path().glob("*-look*")]


def test_grad_cam_in_a_picture(capsys: Any) -> None:
    assert said(capsys, "look", NET, "photo.png", "--cam", "--save", "cam.svg")[0] == 0
    assert "Grad-CAM: class " in Path("cam.svg").read_text()


def test_grad_cam_alone_of_a_network_without_attention(capsys: Any) -> None:
    words = ["look", "cifar_resnet20", "photo.png", "--cam"]
    assert said(capsys, *words, "--beside", NET, "--save", "cam.svg")[0] == 0
    assert Path("cam.svg").read_text().count("Grad-CAM: class ") == 2
    code, line = said(capsys, *words, "--layers", "layer1")
    assert (code, line) == (2, "attneck: --layers is of attention, and cifar_resnet20 has none: leave it out")


def test_draw_before_and_after(capsys: Any) -> None:
    words = ("draw", "timm/resnet18", "--surgery", "attend", "--save", "neck.svg")
    assert said(capsys, *words) == (0, "wrote neck.svg")
    text = Path("neck.svg").read_text()
    assert "timm/resnet18 after attend" in text
    assert re.search(r"11\.7 M parameters, 1\.81 G multiply-adds", text)
    assert re.search(r"8\.55 M parameters, 1\.67 G multiply-adds", text)
    assert "MHSA × 2" in text
    words = (
        "draw",
        "timm/resnet18",
        "--surgery",
        "attend+insert_bam",
        "--surgery-options",
        "attend.heads",
        "2",
    )
    assert said(capsys, *words, "--save", "both.svg") == (0, "wrote both.svg")
    text = Path("both.svg").read_text()
    assert "timm/resnet18 after attend+insert_bam" in text
    assert "MHSA × 2" in text
    assert "BAM" in text


def test_draw_inside_before_and_after(capsys: Any) -> None:
    words = ("draw", "timm/resnet18", "--surgery", "attend", "--inside", "layer4.1")
    assert said(capsys, *words) == (0, "wrote resnet18-layer4.1.png")
    assert said(capsys, *words, "--save", "inside.svg") == (0, "wrote inside.svg")
    text = Path("inside.svg").read_text()
    assert "layer4.1 of timm/resnet18<" in text
    assert "layer4.1 of timm/resnet18 after attend" in text
    assert text.count("conv2: 3 × 3, 512 → 512") == 1
    assert text.count("conv2: MHSA, 4 heads") == 1


def test_draw_inside_passes_over_what_is_one_operation(capsys: Any) -> None:
    """layer3.0.conv2 is a convolution in the first, and attention in the second."""
    words = ("draw", "cifar_resnet20", "cifar_resnet20_bot", "--inside", "layer3.0.conv2", "--save", "i.svg")
    assert cli.main([*words]) == 0
    assert "cifar_resnet20 is left out: 'layer3.0.conv2' is one operation" in capsys.readouterr().err
    assert Path("i.svg").read_text().count("layer3.0.conv2 of ") == 1


def test_networks_are_drawn_beside_each_other(capsys: Any) -> None:
    words = ("draw", "timm/resnet18", NET, "--save", "both.svg")
    assert said(capsys, *words) == (0, "wrote both.svg")
    text = Path("both.svg").read_text()
    assert "224 × 224" in text
    assert "32 × 32" in text
    assert text.index(">timm/resnet18<") < text.index(f">{NET}<")
    code, line = said(capsys, *words, "--inside", "layer1.0")
    assert (code, line) == (0, "wrote both.svg")
    assert Path("both.svg").read_text().count("layer1.0 of ") == 2


DRAWN_REFUSED: dict[str, tuple[list[str], str]] = {
    "none": ([], "attneck draw wants a model"),
    "no model": (["botnte50"], "perhaps you meant 'botnet50'"),
    "none of timm's": (["timm/resnet19"], "timm has no model 'resnet19'"),
    "options": ([NET, "--options", "bma", "stages"], "has no option 'bma'"),
    "no surgery": ([NET, "--surgery-options", "stage", "3"], "without --surgery"),
    "no such surgery": (
        [NET, "--surgery", "attend+transplant"],
        "there is no 'transplant' in attneck.surgery",
    ),
    "its options": (
        [NET, "--surgery", "attend", "--surgery-options", "stge", "3"],
        "perhaps you meant 'stage'",
    ),
    "surgery fails": (["cifar_densenet100", "--surgery", "attend"], "residual"),
    "an ending": ([NET, "--save", "p.jpg"], "ends in .png, .svg or .pdf"),
    "no module": ([NET, "--inside", "layer9"], "no module is called 'layer9'"),
    "one operation": ([NET, "--inside", "conv1"], "is one operation"),
    "too small": (["resnet50_bam", "--image-size", "0"], "--image-size"),
}


@pytest.mark.parametrize(("words", "says"), DRAWN_REFUSED.values(), ids=DRAWN_REFUSED)
def test_draw_refuses(words: list[str], says: str, capsys: Any) -> None:
    code, line = said(capsys, "draw", *words)
    assert code == 2
    assert says in line
    assert len(line.splitlines()) == 1


def test_a_saved_model_s_photo_is_resized_as_it_was_trained(tmp_path: Path, capsys: Any) -> None:
    from attneck import hub
    from attneck.commands.given_model import viewer

    model = attneck.create_model("cifar_resnet20_bam", num_classes=5)
    noise = Image.effect_noise((200, 160), 90).convert("RGB")
    for way in ("nearest", "bicubic", "bilinear"):
        seer = viewer(str(hub.save(model, tmp_path / way, interpolation=way, mean=(0, 0, 0), std=(1, 1, 1))))
        resized = noise.resize((40, 32), Image.Resampling[way.upper()]).crop((4, 0, 36, 32))
        wanted = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
        torch.testing.assert_close(seer.prepared(noise), wanted, rtol=0, atol=1e-6)
    hub.save(model, tmp_path / "random", interpolation="random")
    code, line = said(capsys, "look", "random", "photo.png")
    assert code == 2
    assert re.fullmatch(
        r"attneck: random: interpolation='random': wanted one of nearest, .*bicubic.*; "
        "save it with the one that it was trained by",
        line,
    )


def test_a_detector_is_given_a_photo_whose_masks_fit_into_memory() -> None:
    """A mask of the photo's size is made for each object; the proportions stay."""
    photo = Image.new("RGB", (4000, 3000))
    transform = SimpleNamespace(min_size=(800,))
    detector: Any = SimpleNamespace(detects=True, network=SimpleNamespace(transform=transform))
    classifier: Any = SimpleNamespace(detects=False)
    bounded = look._bounded(photo, [classifier, detector])
    assert 0.99 * 4 * 800**2 < bounded.width * bounded.height <= 4 * 800**2
    assert bounded.width / bounded.height == pytest.approx(4 / 3, rel=1e-3)
    assert look._bounded(photo, [classifier]) is photo
