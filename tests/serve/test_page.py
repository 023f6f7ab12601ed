"""The page in a real browser: what it shows is what `attneck.explain.maps` says, and nothing leaves."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here (apt-get install chromium)")
sync_api = pytest.importorskip("playwright.sync_api")

WIDTH, HEIGHT = 96, 64  # what the models see of it is the middle, 64 x 64


def photo(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    draws = np.random.default_rng(0)
    coarse = Image.fromarray(draws.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BILINEAR)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def networks():
    """The last is BoTNet-50 for images of 224 pixels."""
    from small_page import FACTS, looking_left, random
    from small_run import thin_mask_rcnn

    import attneck
    from attneck.commands.given_model import viewer
    from attneck.serve.network import Network, Viewer

    part = thin_mask_rcnn()
    detector = attneck.create_model(part["name"], num_classes=4, image_size=64, **part["options"]).eval()
    objects = {"classes": ["disc", "square", "star"]}
    return [
        Network(Viewer("left", True, looking_left(), FACTS, False), "left"),
        Network(Viewer("a note", True, random(), FACTS, False), "random"),
        Network(Viewer("detector", True, detector, objects, True), "detector"),
        Network(viewer("botnet50"), "botnet50"),
    ]


def maps_of(network):
    """What `attneck.explain.maps` says of the photo."""
    from attneck.explain import maps

    return maps(network.viewer.network, network.viewer.prepared(photo()))


@pytest.fixture(scope="module")
def server(networks):
    from attneck.serve.gallery import Gallery
    from attneck.serve.server import open_server, serving

    opened = open_server(Gallery(networks), 0)
    with serving(opened):
        yield opened


@pytest.fixture(scope="module")
def browser():
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=camera)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def window(browser, server):
    """Opens a page in a window of its own, and notes its errors and requests."""
    noted = {"errors": [], "requests": []}

    def said(message):
        if "getImageData" not in message.text:  # how these tests read the overlay, said to be slow
            noted["errors"].append(message.text)

    def open_page(url=None, **options):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        page = context.new_page()
        page.set_default_timeout(60_000)  # of a machine under load
        page.on("console", said)
        page.on("pageerror", lambda error: noted["errors"].append(str(error)))
        page.on("request", lambda request: noted["requests"].append(request.url))
        page.goto(url or server.url)
        return page

    open_page.noted = noted
    return open_page


@pytest.fixture
def opened(window, server):
    """At the end of each test there was no error, and no request elsewhere."""
    window.noted["errors"].clear()
    window.noted["requests"].clear()
    yield window
    assert window.noted["errors"] == []
    own = (server.url, "data:", "blob:", "file:")
    assert [url for url in window.noted["requests"] if not url.startswith(own)] == []
    assert window.noted["requests"]


@pytest.fixture(scope="module")
def one_page(window):
    return window()


@pytest.fixture
def page(opened, one_page):
    """The same for all tests, with its sliders in the middle."""
    mix(one_page, 0)
    one_page.mouse.move(0, 0)
    return one_page


def settled(page):
    """Once the page has nothing to wait for."""
    page.wait_for_selector("#doing:empty", state="attached")
    return page


def give(page, data=None, name="photo.png"):
    """Choose a file."""
    data = png(photo()) if data is None else data
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": data})
    return settled(page)


def drop(page, data, name, more=0):
    """Let a file fall on the page, with so many zeros at its end."""
    transfer = page.evaluate_handle(
        """([data, name, more]) => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            transfer.items.add(new File([bytes, new Uint8Array(more)], name));
            return transfer;
        }""",
        [base64.b64encode(data).decode(), name, more],
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})


def alone(page, model):
    """One panel, with this model."""
    page.uncheck("#beside")
    settled(page)
    page.select_option(".model", str(model))
    settled(page)
    first = page.locator(".map input").first
    if first.count():
        first.check(force=True)
    return page


def move(page, y, x, map_size=(8, 8), panel=0):
    """The pointer onto a cell of a map, and wait until the overlay is there."""
    page.locator(".picture").nth(panel).scroll_into_view_if_needed()
    seen = page.locator(".seen").nth(panel).bounding_box()
    high, wide = seen["height"] / map_size[0], seen["width"] / map_size[1]
    page.mouse.move(seen["x"] + (x + 0.5) * wide, seen["y"] + (y + 0.5) * high)
    page.wait_for_timeout(50)
    for _ in range(100):
        mark = page.locator(".mark").nth(panel).bounding_box()
        if abs(mark["x"] - seen["x"] - x * wide) < 1 and abs(mark["y"] - seen["y"] - y * high) < 1:
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"the mark did not come to {y, x}: {mark}, {seen}")


def overlay(page, panel=0):
    """The overlay's pixels [H, W, 4]."""
    width, height, pixels = (
        page.locator(".overlay")
        .nth(panel)
        .evaluate(
            """(canvas) => {
                const { width, height } = canvas;
                const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
                const text = Array.from(data, (value) => String.fromCharCode(value)).join("");
                return [width, height, btoa(text)];
            }"""
        )
    )
    return np.frombuffer(base64.b64decode(pixels), dtype=np.uint8).reshape(height, width, 4)


def cells(page, panel=0):
    """What the overlay says of each cell of an 8 x 8 map: its place in the colours, from 0 to 1."""
    pixels = overlay(page, panel)
    assert pixels[:, :16, 3].max() == pixels[:, -16:, 3].max() == 0, "outside of what the model sees"
    centre = pixels[:, 16:-16].astype(int)
    blocks = centre.reshape(8, 8, 8, 8, 4).transpose(0, 2, 1, 3, 4)  # [H, W, 8, 8, 4]
    assert (blocks == blocks[:, :, :1, :1]).all(), "a cell has one colour, to its edges"
    colours = np.array(page.evaluate("COLOURS"))
    apart = np.abs(blocks[:, :, 0, 0, None, :3] - colours).sum(-1)  # [8, 8, 256]
    assert apart.min(-1).max() == 0
    return apart.argmin(-1) / 255


def choose(page, value, panel=0):
    page.locator(f'.panel >> nth={panel} >> input[value="{value}"]').check(force=True)


def mix(page, value):
    page.locator("#mix").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", value
    )


def test_an_attention_that_is_known_is_where_it_has_to_be(page):
    """The bright pixels lie to the left of the pointer."""
    drop(page, png(photo()), "dropped.png")
    settled(page)
    alone(page, 0)
    choose(page, "mhsa:0:0")
    for y, x in ((3, 4), (0, 1), (7, 7), (5, 2)):
        move(page, y, x)
        bright = overlay(page)[..., :3].sum(-1)
        rows, columns = np.nonzero(bright == bright.max())
        left, top = 16 + 8 * (x - 1), 8 * y
        assert (columns.min(), columns.max(), rows.min(), rows.max()) == (left, left + 7, top, top + 7)
    mix(page, -100)
    np.testing.assert_allclose(cells(page), 0.5, atol=2.01 / 255)  # everywhere alike: the scale's middle
    assert page.inner_text("#mixed") == "content alone"


def shares(weights):
    """Where on their scale weights [H, W] lie, as the pictures have it."""
    from attneck.explain.scale import ends

    return weights.numpy() / ends("weight", weights.numpy(), places=weights.numel())[1]


def test_the_overlay_is_what_maps_says(page, networks):
    (mhsa,) = maps_of(networks[1]).mhsas
    alone(give(page), 1)
    for y, x in ((2, 5), (7, 0)):
        move(page, y, x)
        for where, part in ((-100, "content"), (0, "both"), (100, "position")):
            mix(page, where)
            wanted = mhsa.row(y, x, part)
            for key, row in (("mean", wanted.mean(0)), ("1", wanted[1])):
                choose(page, f"mhsa:0:{key}")
                np.testing.assert_allclose(cells(page), shares(row), atol=2.01 / 255)
    mix(page, 50)  # content by a half
    content, position = (mhsa.row(y, x, part)[1].log() for part in ("content", "position"))
    halved = (content / 2 + position).flatten().softmax(0).view(8, 8)
    np.testing.assert_allclose(cells(page), shares(halved), atol=2.01 / 255)


def test_bams_stages_step_by_step(page, networks):
    from attneck.explain.scale import span

    bams = maps_of(networks[1]).bams
    alone(give(page), 1)
    for stage in (0, 1, 0):
        page.get_by_role("button", name="Next stage").click()
        wanted = bams[stage].attention.mean(0)
        np.testing.assert_allclose(cells(page), wanted.numpy(), atol=2.01 / 255)
        assert (page.inner_text(".low"), page.inner_text(".high")) == ("0", "1")
        assert page.inner_text(".shown") == f"bams.{stage}, BAM's attention: {span(wanted.numpy())}"
        assert page.is_hidden(".mark")


def test_the_largest_value_of_each_map_is_heard(page, networks):
    """What comes in and what goes out have one scale, and each has a largest value of its own."""
    from attneck.explain.scale import told

    bam = maps_of(networks[1]).bams[0]
    alone(give(page), 1)
    for what in ("before", "after"):
        values = getattr(bam, what)
        y, x = divmod(int(values.argmax()), values.shape[1])
        choose(page, f"bam:0:{what}")
        where = f"most at row {y + 1}, column {x + 1}, {told(0.0, float(values.max()))[1]}."
        page.locator("#heard", has_text=where).wait_for(timeout=5000)


def test_the_colours_are_those_of_the_pictures(page):
    from matplotlib import colormaps

    from attneck.explain.palette import HEAT

    give(page)
    wanted = 255 * colormaps[HEAT](np.arange(256))[:, :3]
    np.testing.assert_allclose(page.evaluate("COLOURS"), wanted, atol=16)


def test_predictions_are_bars(page, networks):
    alone(give(page), 1)
    rows = networks[1].see(photo()).told()["predictions"]
    for row, wanted in zip(page.locator(".predictions li").all(), rows, strict=True):
        assert row.inner_text().split("\n")[0] == wanted["category"]
        track, bar = row.locator(".track").bounding_box(), row.locator(".track > div").bounding_box()
        assert bar["width"] / track["width"] == pytest.approx(wanted["score"], abs=0.02)


def test_two_models_side_by_side_follow_one_pointer(page):
    alone(give(page), 0)
    page.check("#beside")
    settled(page)
    assert page.locator(".panel").count() == 2
    first, second = (page.locator(".picture").nth(number).bounding_box() for number in (0, 1))
    assert first["x"] + first["width"] < second["x"]
    for panel in (0, 1):
        choose(page, "mhsa:0:0", panel)
    move(page, 4, 6)
    for panel in (0, 1):
        seen, mark = (page.locator(name).nth(panel).bounding_box() for name in (".seen", ".mark"))
        assert (mark["x"] - seen["x"]) / seen["width"] == pytest.approx(6 / 8, abs=0.01)
    assert (cells(page, 0) != cells(page, 1)).any()


def test_boxes_and_masks_of_a_detector(page, networks):
    told = networks[2].see(photo()).told()
    alone(give(page), 2)
    assert page.is_visible("#scoring")
    page.locator("#least").evaluate(
        "(slider) => { slider.value = 5; slider.dispatchEvent(new Event('input')); }"
    )
    boxes = page.locator(".objects > div")
    assert boxes.count() == len(told["predictions"]) > 0
    whole = page.locator(".picture").bounding_box()
    for shown, row in zip(boxes.all(), told["predictions"], strict=True):
        box = shown.bounding_box()
        found = [
            (box["x"] - whole["x"]) / whole["width"],
            (box["y"] - whole["y"]) / whole["height"],
            box["width"] / whole["width"],
            box["height"] / whole["height"],
        ]
        assert found == pytest.approx(row["box"], abs=0.02)
    painted = page.locator(".masks").evaluate(
        """(canvas) => canvas.getContext("2d")
            .getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0)"""
    )
    assert painted == any(any(base64.b64decode(row["mask"]["bits"])) for row in told["predictions"])
    page.locator("#least").evaluate(
        "(slider) => { slider.value = 95; slider.dispatchEvent(new Event('input')); }"
    )
    assert boxes.count() == sum(row["score"] >= 0.95 for row in told["predictions"])


def test_a_detector_s_padding_is_no_place_and_its_boxes_are_saved(page, networks):
    told = networks[2].see(photo()).told()
    (_, _, _, high), (H, _) = told["box"], told["mhsas"][0]["map"]
    assert high > 1.2, "the photo is wide, and padded below"
    alone(give(page), 2)
    thumbs = page.locator(".attention .map canvas").evaluate_all(
        """(all) => all.map((one) => [
            ...one.getContext("2d").getImageData(0, 0, one.width, one.height).data])"""
    )
    for pixels in np.array(thumbs, dtype=int).reshape(len(thumbs), H, -1, 4)[..., :3]:
        padded = pixels[int(np.ceil(H / high - 1e-6)) :]
        assert (padded == (0x44, 0x01, 0x54)).all(), "no attention is shown where there is no photo"
        assert (pixels != (0x44, 0x01, 0x54)).any(), "and there is in the photo"
    page.locator(".picture").first.focus()
    for _ in range(H + 1):
        page.keyboard.press("ArrowDown")
    page.wait_for_timeout(300)
    with page.expect_download() as numbers:
        page.get_by_role("button", name="Save the numbers").click()
    (y, _), *_ = [block["cell"] for block in json.loads(numbers.value.path().read_text())["attention"]]
    assert y / H * high < 1 <= (y + 1) / H * high + 1e-6, "the last row of which the photo has a part"
    saved = []
    for least in ("95", "5"):
        page.locator("#least").evaluate(
            f"(slider) => {{ slider.value = {least}; slider.dispatchEvent(new Event('input')); }}"
        )
        with page.expect_download() as picture:
            page.get_by_role("button", name="Save the picture").click()
        saved.append(np.array(Image.open(picture.value.path()).convert("RGB"), dtype=int))
    outlined = (np.abs(saved[0] - saved[1]).sum(2) > 30).any()
    assert outlined == (len(told["predictions"]) > 0)


def test_a_held_place_is_not_taken_by_a_finger(page):
    alone(give(page), 0)
    move(page, 2, 2)
    page.locator(".hold").first.click()
    before = page.locator(".mark").first.bounding_box()
    seen = page.locator(".seen").first.bounding_box()
    page.locator(".picture").first.dispatch_event(
        "pointerdown", {"pointerType": "touch", "clientX": seen["x"] + 5, "clientY": seen["y"] + 5}
    )
    page.wait_for_timeout(200)
    assert page.locator(".mark").first.bounding_box() == before
    page.locator(".hold").first.click()


def test_a_lost_move_is_forgotten_at_the_next(page):
    alone(give(page), 0)
    move(page, 2, 2)
    page.evaluate(
        """() => {
            const own = source.rows;
            source.rows = async () => { source.rows = own; throw new Error("lost"); };
        }"""
    )
    seen = page.locator(".seen").first.bounding_box()
    page.mouse.move(seen["x"] + 0.7 * seen["width"], seen["y"] + 0.7 * seen["height"])
    page.locator("#said", has_text="lost").wait_for()
    page.mouse.move(seen["x"] + 0.3 * seen["width"], seen["y"] + 0.7 * seen["height"])
    page.locator("#said:empty").wait_for(state="attached")


def test_what_is_refused_is_a_sentence_and_the_image_stays(page, window, monkeypatch):
    from attneck.serve import gallery

    give(page)
    before = page.get_attribute(".photo", "src")
    give(page, b"some words", "words.txt")
    assert page.inner_text("#said").startswith("words.txt: Cannot read the file (it is none of JPEG")
    page.evaluate("told.most_bytes = 100")
    give(page, name="large.png")
    assert "at most: choose a smaller one" in page.inner_text("#said")
    page.evaluate("told.most_bytes = 1e9")
    drop(page, b"", "larger.png", more=32_000_001)
    page.locator("#said", has_text="larger.png: The file has 32.0 MB, 32.0 at most").wait_for()
    monkeypatch.setattr(gallery, "MAX_PIXELS", 1000)
    give(page, name="bomb.png")
    assert page.inner_text("#said") == "bomb.png: The image has over 1,000 pixels: choose a smaller one."
    assert page.get_attribute(".photo", "src") == before
    monkeypatch.undo()
    assert give(page).inner_text("#said") == ""
    statuses = [error for error in window.noted["errors"] if "responded with a status of 41" in error]
    assert window.noted["errors"] == statuses, "what the browser says of each refusal"
    window.noted["errors"].clear()


def test_what_was_asked_while_an_answer_was_lost_is_answered(page):
    alone(give(page), 0)
    page.evaluate(
        """() => {
            const own = source.rows;
            source.rows = async () => {
                source.rows = own;
                await new Promise((done) => setTimeout(done, 500));
                throw new Error("lost");
            };
        }"""
    )
    seen = page.locator(".seen").bounding_box()
    page.mouse.move(seen["x"] + 0.3 * seen["width"], seen["y"] + 0.3 * seen["height"])
    page.wait_for_timeout(100)
    move(page, 6, 5)


def test_by_keyboard_alone(opened, tmp_path):
    """From the choice of a file to a head's map, from another place, by position alone."""
    page = opened()
    file = tmp_path / "photo.png"
    file.write_bytes(png(photo()))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    choosers = []
    page.on("filechooser", lambda one: choosers.append(one))
    while not choosers:  # a busy browser may miss a key
        page.keyboard.press("Space")
        page.wait_for_timeout(1000)
    choosers[0].set_files(file)
    page.locator(".map").first.wait_for()
    settled(page)
    order = []
    while "map" not in order:
        assert len(order) < 40, order
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            """() => {
                const here = document.activeElement;
                const seen = here.matches(".map *") ? here.closest("label") : here;
                return [here.id || seen.className, getComputedStyle(seen).outlineStyle];
            }"""
        )
        assert outline != "none", f"nothing shows that {name} has the focus"
        order.append(name)
    assert [name for name in order if name in ("mix", "picture", "map")] == ["mix", "picture", "map"]
    page.keyboard.press("ArrowRight")  # the first head's map
    assert "attention, head 1" in page.inner_text(".shown")
    page.locator(".picture").first.focus()
    page.keyboard.press("Home")
    for key in ("ArrowRight", "ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
    page.locator(
        "#heard", has_text="attention, head 1, from row 4, column 3 of 8 by 8: most at row 4, column 2, "
    ).wait_for()
    page.keyboard.press("Enter")
    assert page.get_attribute(".hold", "aria-pressed") == "true"
    page.locator("#mix").focus()
    page.keyboard.press("End")
    assert page.get_attribute("#mix", "aria-valuetext") == "position alone"


def test_every_control_has_a_name(page):
    """As a screen reader has it."""
    alone(give(page), 1)
    for role in ("button", "slider", "radio", "checkbox", "combobox", "application"):
        controls = page.get_by_role(role).all()
        assert controls, role
        for control in controls:
            assert control.evaluate(
                "(one) => one.ariaLabel ?? one.labels?.[0]?.textContent ?? one.textContent"
            ).strip()
    assert page.locator("h1").count() == 1
    assert page.get_attribute("html", "lang") == "en"


def test_the_place_can_be_held(page):
    alone(give(page), 0)
    move(page, 2, 2)
    page.mouse.down()
    page.mouse.up()
    before = page.locator(".mark").first.bounding_box()
    seen = page.locator(".seen").first.bounding_box()
    page.mouse.move(seen["x"] + seen["width"] - 4, seen["y"] + seen["height"] - 4)
    page.wait_for_timeout(100)
    assert page.locator(".mark").first.bounding_box() == before
    page.get_by_role("button", name="Let the place go").first.click()
    move(page, 6, 6)


def test_it_fits_any_width_in_the_dark_and_in_the_light(opened, tmp_path):
    """And phones: what is drawn lies in tmp_path, to be looked at."""
    page = give(opened())
    paper = set()
    for width, height in ((1280, 900), (390, 844), (320, 568)):
        page.set_viewport_size({"width": width, "height": height})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.screenshot(path=tmp_path / f"{width}-{scheme}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            paper.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(paper) == 2
    page.close()


def test_the_picture_and_the_numbers_can_be_saved(page, networks):
    alone(give(page), 1)
    move(page, 3, 4)
    with page.expect_download() as numbers:
        page.get_by_role("button", name="Save the numbers").click()
    found = json.loads(numbers.value.path().read_text())
    wanted = maps_of(networks[1]).mhsas[0].row(3, 4)
    (block,) = found["attention"]
    assert (block["name"], block["cell"], block["map"]) == ("attention", [3, 4], [8, 8])
    np.testing.assert_allclose(block["rows"], wanted.flatten().numpy(), rtol=5e-3, atol=1e-7)
    assert len(found["bam"]) == 2
    assert numbers.value.suggested_filename == "photo-random-mhsa-0-mean.json"
    page.locator("#strength").evaluate(
        "(slider) => { slider.value = 100; slider.dispatchEvent(new Event('input')); }"
    )
    with page.expect_download() as picture:
        page.get_by_role("button", name="Save the picture").click()
    saved = np.array(Image.open(picture.value.path()).convert("RGB"))
    shown = overlay(page)
    assert saved.shape == (HEIGHT, WIDTH, 3)
    assert (saved[60, 16:40] == shown[60, 16:40, :3]).all()


def test_the_camera(page):
    page.get_by_role("button", name="Use the camera").click()
    page.locator("#video").evaluate(
        "(video) => new Promise((done) => video.videoWidth ? done() : video.onloadeddata = done)"
    )
    page.get_by_role("button", name="Take the picture").click()
    page.locator('.picture[aria-label^="camera.jpg"]').first.wait_for()
    settled(page)
    assert page.evaluate("document.querySelector('#video').srcObject") is None, "the camera is off again"


def test_alone_in_a_file_it_shows_the_same(opened, page, networks, tmp_path, monkeypatch):
    from attneck.serve import alone as standing

    live = alone(give(page), 1)
    file = tmp_path / "look.html"
    file.write_text(standing.alone(photo(), "photo.png", networks[:3]))
    lone = settled(opened(file.as_uri(), offline=True))
    lone.uncheck("#beside")
    lone.select_option(".model", "1")
    for here in (live, lone):
        move(here, 5, 3)
    assert (cells(lone) == cells(live)).all()
    assert lone.is_hidden("#choose")
    monkeypatch.setattr(standing, "MOST_BYTES", 30_000)  # a row is 512 bytes, of the detector's less
    file.write_text(standing.alone(photo(), "photo.png", networks[1:2]))
    lone = settled(opened(file.as_uri(), offline=True))
    assert "one place in 2 × 2" in lone.inner_text(".attention")
    seen = lone.locator(".seen").bounding_box()
    lone.mouse.move(seen["x"] + seen["width"] * 5.5 / 8, seen["y"] + seen["height"] * 3.5 / 8)
    lone.wait_for_timeout(200)
    coarse = cells(lone)
    move(live, 2, 4)
    assert (coarse == cells(live)).all(), "the nearest place that is in the file"


def test_a_move_with_botnet50(page, capsys):
    """Milliseconds from the pointer's move to the overlay, 224 x 224 pixels: in the log."""
    alone(give(page, png(photo(300, 224))), 3)
    taken = page.evaluate(
        """async () => {
            const picture = document.querySelector(".picture"), bounds = picture.getBoundingClientRect();
            const panel = panels[0], taken = [];
            for (let step = 0; step < 20; step++) {
                const began = performance.now();
                const clientX = bounds.left + bounds.width * (0.25 + step / 40);
                const clientY = bounds.top + bounds.height * (0.1 + step / 25);
                picture.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY }));
                while (panel.asking) await new Promise((done) => setTimeout(done, 0));
                taken.push(performance.now() - began);
            }
            return taken;
        }"""
    )
    assert page.locator(".attention fieldset").count() == 3
    with capsys.disabled():
        print(
            f"\nbotnet50, 224 x 224: {np.median(taken):.0f} ms a move, {max(taken):.0f} ms at most ", end=""
        )
