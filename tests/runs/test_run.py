"""A run is read back by one class: whole, without its data where that is not needed, or refused in a line."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import attneck
from attneck import cli
from attneck.data.readers.decode import decode
from attneck.errors import UserError
from attneck.runs import train as runs
from attneck.runs.run import Run
from attneck.training import environment
from attneck.training.recipe import Recipe

TINY = {
    "model": {"name": "cifar_resnet20_bam", "options": {"depths": [1, 1, 1]}},
    "data": {"name": "shapes", "train_size": 64, "val_size": 20, "image_size": 24},
    "batch": 32,
    "epochs": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    runs.train(Recipe.model_validate(TINY | {"ema": 0.5}), folder)
    return folder


def test_it_is_public(folder):
    assert attneck.Run is Run
    assert str(folder) in repr(attneck.Run(str(folder)))


def test_predictions_are_the_networks_own_probabilities(folder):
    known = Run(folder)
    held_out = known.data("val")
    samples = known.samples(3)
    found = known.predict([sample.image for sample in samples])
    images = torch.stack([held_out[0, index][0] for index in (0, 6, 13)])  # evenly spread over 20
    with torch.inference_mode():
        shares = known.model()(images).softmax(1)
    for rows, share, sample, index in zip(found, shares, samples, (0, 6, 13), strict=True):
        assert len(rows) == 5
        assert [row["score"] for row in rows] == pytest.approx(share.topk(5).values.tolist(), rel=1e-4)
        assert rows[0]["category"] == held_out.classes[int(share.argmax())]
        assert sample.truth == [{"category": held_out.classes[held_out.labels[index]]}]
    assert all(
        row["score"] >= 0.2 for rows in known.predict([samples[0].image], min_score=0.2) for row in rows
    )
    assert known.predict([samples[0].image], min_score=1) == [[]]


def test_weights_and_their_average_are_told_apart(folder):
    """What is scored as "val" and "ema" is by hand the same, on all held-out images."""
    known = Run(folder)
    plain, average = known.weights(average=False), known.weights()
    assert any(not torch.equal(plain[name], average[name]) for name in plain)
    held_out = known.data("val")
    images = torch.stack([held_out[0, index][0] for index in range(20)])
    found = known.evaluate()
    for name, wanted, model in (
        ("val", plain, known.model(average=False)),
        ("ema", average, known.model()),
    ):
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in model.state_dict().items())
        with torch.inference_mode():
            loss = torch.nn.functional.cross_entropy(model(images), torch.tensor(held_out.labels))
        assert found[name].scores["loss"] == pytest.approx(float(loss), rel=1e-4)


def test_an_image_that_was_opened_is_seen_as_its_file(folder, tmp_path):
    known, noise = Run(folder), Image.effect_noise((40, 30), 60)
    turned = Image.Exif()
    turned[0x0112] = 6
    noise.save(tmp_path / "turned.png", exif=turned)
    Image.fromarray(np.asarray(noise).astype(np.uint16) * 200).save(tmp_path / "deep.png")
    for name in ("turned.png", "deep.png"):
        path = tmp_path / name
        assert known.predict([Image.open(path)]) == known.predict([path])
        assert torch.equal(known.prepared(Image.open(path)), known.prepared(path))
        seen = decode(str(path), "here")  # as a data set has it; it is not turned once more
        assert known.predict([seen]) == known.predict([path])
    assert not torch.equal(known.prepared(tmp_path / "turned.png"), known.prepared(noise))
    for given, says in (
        (tmp_path / "deep.png", "wanted several, a list of one say"),
        ([torch.zeros(3, 8, 8)], "wanted an image of Pillow's"),
        ([Image.new("F", (8, 8))], "32 bits a pixel"),
    ):
        with pytest.raises(UserError, match=says):
            known.predict(given)


@pytest.mark.parametrize("min_score", [-0.1, 1.01, 2, "x", True, float("nan")])
def test_the_least_score_is_a_share(folder, min_score):
    with pytest.raises(UserError, match=r"min_score=.*: wanted a number from 0 to 1"):
        Run(folder).predict([Image.new("RGB", (8, 8))], min_score=min_score)


@pytest.mark.parametrize("top_k", [0, -1, 2.5])
def test_how_many_classes_is_a_whole_number(folder, top_k):
    with pytest.raises(UserError, match=r"top_k=.*: wanted a whole number from 1"):
        Run(folder).predict([Image.new("RGB", (8, 8))], top_k=top_k)


def test_more_classes_than_there_are_are_all(folder, tmp_path):
    Image.effect_noise((40, 30), 60).save(tmp_path / "noise.png")
    words = ["predict", str(folder), str(tmp_path / "noise.png"), "--top-k", "200000"]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    heads = (tmp_path / "out/predictions.csv").read_text().splitlines()[0].split(",")
    assert heads.count("score_1") == 1
    assert f"score_{len(Run(folder).facts['classes'])}" == heads[-1]


def test_the_predict_command_takes_classifiers(folder, tmp_path, capsys):
    Image.effect_noise((40, 30), 60).convert("L").save(tmp_path / "noise.png")
    words = ["predict", str(folder), str(tmp_path / "noise.png"), "--held-out", "1"]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{tmp_path / 'noise.png'}  ")
    assert "(it is " in said[1]
    (found,) = json.loads((tmp_path / "out/predictions.json").read_text())["runs"]
    assert [row["image_id"] for row in found["detections"]] == [0] * 5 + [1] * 5
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"predictions.json", "predictions.csv", "contact-sheet.png"}


def test_what_it_looks_at_in_a_photo(folder, tmp_path, capsys):
    """The photo is prepared as held-out images are, whether it comes as a path or as an image."""
    known = Run(folder)
    sample = known.samples(1)[0]
    file = tmp_path / "photo.png"
    sample.image.save(file)
    want = attneck.explain.maps(known.model(), known.data("val")[0, 0][0])
    for image in (str(file), file, sample.image):
        found = attneck.explain.maps(known, image)
        assert [one.name for one in found.bams] == [one.name for one in want.bams]
        torch.testing.assert_close(found.output, want.output, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.bams[0].attention, want.bams[0].attention, rtol=1e-3, atol=1e-4)

    picture = tmp_path / "picture.svg"
    assert cli.main(["look", str(folder), str(file), "--save", str(picture)]) == 0
    label = known.facts["classes"][int(want.output.argmax())]
    share = 100 * float(want.output.softmax(0).max())
    assert f"{share:.1f} %  {label}" in picture.read_text()
    assert "cifar_resnet20_bam, step 2" in picture.read_text()


def test_a_recipe_that_was_changed_after_training_is_refused(folder, tmp_path):
    (tmp_path / "checkpoints").symlink_to(folder / "checkpoints")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["model"]["options"]["depths"] = [2, 2, 2]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match=r"not what step-00000002.pt was trained with \(model.options.depths"):
        Run(tmp_path).model()


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda known: known.recipe, "is no run"),
        (lambda known: known.history, "no metrics.jsonl there"),
        (lambda known: known.summary, "no summary.json there"),
    ],
    ids=["recipe", "history", "summary"],
)
def test_what_is_not_there_is_said_in_a_line(tmp_path, ask, says):
    with pytest.raises(UserError, match=says) as error:
        ask(Run(tmp_path))
    assert "\n" not in str(error.value)


def test_a_resumed_run_keeps_its_library_of_products(tmp_path, monkeypatch):
    """Another library rounds otherwise: the bits would depend on where a run was broken off."""
    from attneck.attention.cpu import choice

    recipe = Recipe.model_validate(TINY)
    monkeypatch.setattr(choice, "_products", "mkl")
    runs.train(recipe, tmp_path)
    file = tmp_path / "environment.json"
    assert json.loads(file.read_text())["float32_products"] == "mkl"
    file.write_text(file.read_text().replace('"mkl"', '"onednn"'))
    runs.train(recipe, tmp_path, resume=True)
    assert choice.float32_products() == "onednn"
    assert json.loads(file.read_text())["float32_products"] == "onednn"
    file.write_text(file.read_text().replace('"onednn"', '"blas"'))
    with pytest.raises(UserError, match="unknown library 'blas'"):
        runs.train(recipe, tmp_path, resume=True)


@pytest.mark.parametrize("name", ["cifar_resnet20_bot", "cifar_resnet20_bam"])
def test_a_resumed_run_keeps_its_compiled_passes(name, tmp_path, monkeypatch):
    from attneck.attention.cpu import passes

    part = {"name": name, "options": {"depths": [1, 1, 1]}}
    recipe = Recipe.model_validate(TINY | {"model": part})
    monkeypatch.setattr(passes, "_passes", "operators")
    monkeypatch.setattr(passes, "trouble", lambda: None)
    runs.train(recipe, tmp_path)
    file = tmp_path / "environment.json"
    assert json.loads(file.read_text())["attention_passes"] == "operators"
    passes.set_passes("fused")
    runs.train(recipe, tmp_path, resume=True)
    assert passes.passes() == "operators"
    file.write_text(
        file.read_text().replace('"attention_passes": "operators"', '"attention_passes": "fused"')
    )
    runs.train(recipe, tmp_path, resume=True)
    assert passes.passes() == "fused"
    recorded = file.read_text()
    file.write_text(recorded.replace('"attention_passes": "fused"', '"attention_passes": null'))
    runs.train(recipe, tmp_path, resume=True)  # of a version that recorded none for BAM, and had none
    assert passes.passes() == "operators"
    file.write_text(recorded)
    monkeypatch.setattr(passes, "trouble", lambda: "there is no C++ compiler")
    with pytest.raises(UserError, match=r"fused passes were asked for, but there is no C\+\+ compiler"):
        runs.train(recipe, tmp_path, resume=True)


def test_a_run_without_attention_builds_nothing_for_it(tmp_path, monkeypatch):
    from attneck.attention.cpu import passes

    monkeypatch.setattr(passes, "_passes", None)
    monkeypatch.setattr(passes, "trouble", lambda: pytest.fail("the compiler was asked"))
    part = {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}}
    runs.train(Recipe.model_validate(TINY | {"model": part}), tmp_path)
    assert json.loads((tmp_path / "environment.json").read_text())["attention_passes"] is None


def test_a_resumed_run_keeps_what_was_asked_of_its_attention(tmp_path, monkeypatch, capfd):
    from attneck.attention import choice

    part = {"name": "cifar_resnet20_bot", "options": {"depths": [1, 1, 1]}}
    recipe = Recipe.model_validate(TINY | {"model": part})
    monkeypatch.setattr(choice, "_asked", None)
    monkeypatch.setenv(choice.VARIABLE, "tiled")
    runs.train(recipe, tmp_path)
    file = tmp_path / "environment.json"
    around = json.loads(file.read_text())
    assert around["attention"] == "tiled"
    side = around["attention_backends"].removesuffix(" tiled")
    assert not choice.same_bits()  # a run alone wants them
    monkeypatch.setattr(choice, "_asked", None)
    monkeypatch.setenv(choice.VARIABLE, "plain")
    runs.train(recipe, tmp_path, resume=True)
    assert choice.attention() == "tiled"
    assert json.loads(file.read_text())["attention"] == "tiled"
    assert "other backends of attention" not in capfd.readouterr().err
    file.write_text(file.read_text().replace(f"{side} tiled", f"{side} sdpa"))
    runs.train(recipe, tmp_path, resume=True)
    assert f"other backends of attention ({side} tiled; before: {side} sdpa)" in capfd.readouterr().err
    file.write_text(file.read_text().replace('"tiled"', '"flash"'))
    with pytest.raises(UserError, match="unknown backend 'flash'"):
        runs.train(recipe, tmp_path, resume=True)
    assert "missing or damaged" not in capfd.readouterr().err
    made = around["attention_passes"]
    file.write_text("{")
    runs.train(recipe, tmp_path, resume=True)
    assert f"{file} is missing or damaged" in capfd.readouterr().err
    assert json.loads(file.read_text())["attention_passes"] == made


@pytest.mark.parametrize(("precision", "slow"), [("bfloat16", True), ("bfloat16", False), ("float32", True)])
def test_rounded_float32_is_said(tmp_path, monkeypatch, capsys, precision, slow):
    monkeypatch.setattr(runs, "emulated", lambda dtype: slow)
    small = {"train_size": 4, "val_size": 4, "image_size": 24}
    data = TINY["data"] | small
    runs.train(Recipe.model_validate(TINY | {"precision": precision, "batch": 4, "data": data}), tmp_path)
    said = "has no products in bfloat16" in capsys.readouterr().err
    assert said == (precision == "bfloat16" and slow)


def test_a_run_without_a_checkpoint_has_no_model(tmp_path):
    (tmp_path / "recipe.yaml").write_text("{}")
    with pytest.raises(UserError, match="no checkpoint there"):
        Run(tmp_path).model()


def test_a_split_is_train_or_val(folder):
    with pytest.raises(UserError, match="split 'test'"):
        Run(folder).data("test")


@pytest.fixture
def photos(tmp_path):
    """A folder of two classes, and a run on it."""
    for split, count in (("train", 8), ("val", 4)):
        for name in ("cat", "dog"):
            (tmp_path / f"photos/{split}/{name}").mkdir(parents=True)
            for number in range(count):
                image = Image.effect_noise((40, 32), 60).convert("RGB")
                image.save(tmp_path / f"photos/{split}/{name}/{number}.png")
    data = {"name": "folder", "root": str(tmp_path / "photos"), "image_size": 32}
    content = TINY | {"data": data, "batch": 8, "checkpoint_steps": 1}
    return tmp_path, content


def test_renamed_classes_are_refused_on_resume_and_in_eval(photos, capsys):
    """Else labels would move without a word."""
    place, content = photos
    recipe = Recipe.model_validate(content)
    runs.train(recipe, place / "run")
    for split in ("train", "val"):
        (place / f"photos/{split}/cat").rename(place / f"photos/{split}/wolf")
    with pytest.raises(
        UserError, match=r"the data as it is now has 'dog' there \(class 'cat' is now 'wolf'\)"
    ):
        runs.train(recipe, place / "run", resume=True)
    assert cli.main(["eval", str(place / "run")]) == 2
    assert (
        "trained on other classes (2 for the data's 2: class 'cat' is now 'wolf')" in capsys.readouterr().err
    )
    assert Run(place / "run").model()(torch.zeros(1, 3, 32, 32)).shape == (1, 2)  # that needs no data


def test_eval_takes_data_that_moved_and_refuses_a_place_without(photos, capsys):
    place, content = photos
    runs.train(Recipe.model_validate(content), place / "run")
    (place / "photos").rename(place / "moved")
    capsys.readouterr()
    assert cli.main(["eval", str(place / "run"), "--data.root", str(place / "moved"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 8
    assert cli.main(["eval", str(place / "run"), "--data.root", str(place / "nowhere")]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err


def test_eval_refuses_a_root_that_would_change_nothing(folder, capsys):
    assert cli.main(["eval", str(folder), "--data.root", "nowhere"]) == 2
    assert "shapes" in capsys.readouterr().err


@pytest.mark.parametrize("surgery", ["none", "insert_bam"])
def test_a_run_of_a_timm_network_loads_and_leaves(photos, surgery, capsys):
    place, content = photos
    model = {"name": "timm/resnet10t", "surgery": surgery}
    runs.train(Recipe.model_validate(content | {"model": model}), place / "run")
    assert Run(place / "run").model()(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    assert cli.main(["export", str(place / "run"), str(place / "net.pt2"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["input"] == [1, 3, 32, 32]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("timm/test_resnet", {"in_chans": 1}, "does not take RGB images of 24×24"),
        ("timm/halonet26t", {}, r"does not take RGB images of 24×24 \(AssertionError\)"),
        ("timm/test_resnet", {"features_only": True}, "gives a list for an image, wanted 10 logits"),
    ],
)
def test_a_timm_network_that_makes_no_logits_of_the_images_is_refused(tmp_path, name, options, says):
    recipe = Recipe.model_validate(TINY | {"model": {"name": name, "options": options}})
    with pytest.raises(UserError, match=says):
        runs.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_image_size_that_the_network_does_not_take_is_refused(photos, capsys):
    place, content = photos
    runs.train(Recipe.model_validate(content | {"model": {"name": "timm/dla46_c"}}), place / "run")
    capsys.readouterr()
    assert cli.main(["eval", str(place / "run"), "--image-size", "40"]) == 2
    assert "this DLA does not take RGB images of 40×40 (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"name": "timm/dla46_c"}}, "does not take RGB images of 40×40"),
        ({"data": {"name": "relations", "image_sizes": [32, 30]}}, "of 30 pixels: wanted a multiple of 4"),
    ],
)
def test_sizes_of_training_that_network_or_images_do_not_take_are_refused(tmp_path, changes, says):
    data = TINY["data"] | {"image_size": 32, "image_sizes": [32, 40]}
    with pytest.raises(UserError, match=says):
        runs.train(Recipe.model_validate(TINY | {"data": data} | changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tag_in_a_model_s_name_is_no_weights(photos):
    place, content = photos
    content = content | {"model": {"name": "timm/resnet10t.c3_in1k"}}
    said = "give model.name timm/resnet10t and model.pretrained resnet10t.c3_in1k"
    with pytest.raises(UserError, match=said):
        runs.train(Recipe.model_validate(content), place / "run")
    assert not (place / "run").exists()


@pytest.mark.parametrize("name", ["timm/resnet10t", "cifar_resnet20"])
def test_weights_that_start_at_random_are_said_of_timm_s(photos, capsys, name):
    place, content = photos
    runs.train(Recipe.model_validate(content | {"model": {"name": name}}), place / "run")
    assert ("its weights start at random" in capsys.readouterr().err) == name.startswith("timm/")


def test_processes_are_not_started_where_another_program_has(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert cli.main(["train", "demo", "--processes", "8"]) == 2
    assert "--processes 8 starts them itself, and WORLD_SIZE 1 says" in capsys.readouterr().err


def test_processes_are_one_or_more(capsys):
    assert cli.main(["train", "demo", "--processes", "0"]) == 2
    assert "--processes=0: wanted a whole number from 1" in capsys.readouterr().err


def test_operators_give_the_same_bits_while_a_run_trains_and_no_longer(tmp_path, monkeypatch):
    def flags():
        ways = torch.backends.cuda
        fused = (ways.flash_sdp_enabled(), ways.mem_efficient_sdp_enabled(), ways.cudnn_sdp_enabled())
        return torch.backends.cudnn.deterministic, *fused, ways.math_sdp_enabled()

    seen = []
    real = runs.loop.train_loop

    def looked(*args, **options):
        seen.append(flags())
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            with environment.operators_in_same_bits():
                seen.append(flags())
        return real(*args, **options)

    monkeypatch.setattr(runs.loop, "train_loop", looked)
    before = flags()
    runs.train(Recipe.model_validate(TINY), tmp_path)
    assert before == (False, True, True, True, True)
    assert seen == [(True, True, True, True, True), (True, False, False, False, True)]
    assert flags() == before


def test_a_recipe_by_its_word(tmp_path, monkeypatch):
    """A name, a file or a run's folder, as `attneck train` takes it; a new folder is called after it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(TINY))
    first, second = runs.train("mine.yaml"), runs.train(tmp_path / "mine.yaml")
    assert (first.folder, second.folder) == (Path("runs/mine"), Path("runs/mine-2"))
    assert first.weights == second.weights
    assert runs.train(first.folder, resume=True).folder == first.folder
    with pytest.raises(UserError, match="runs/mine holds a run already"):
        runs.train(first.folder)
    assert runs.train(first.folder, "other").weights == first.weights
    assert runs.train(first.folder, name="again").folder == Path("runs/again")
    with pytest.raises(UserError, match="no recipe 'dem'; perhaps you meant 'demo'"):
        runs.train("dem")


@pytest.mark.parametrize("name", ["recipe.yaml", "data.json", "environment.json", "report.html", "pictures"])
def test_a_run_writes_over_nothing_of_somebody_else_s(tmp_path, name):
    """Nor after a second try; of a folder with other files, such as a job's log, it takes its own places."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "job.log").write_text("mine")
    (folder / name).write_text("{}")
    recipe = Recipe.model_validate(TINY)
    for _ in range(2):
        with pytest.raises(UserError, match=f"mine/{name} is there, and no run has written it"):
            runs.train(recipe, folder)
    assert (folder / name).read_text() == "{}"
    (folder / name).unlink()
    assert runs.train(recipe, folder).folder == folder


def test_predict_tells_two_runs_of_one_network_apart(tmp_path):
    """By their folders, where the model's name is the same; a dollar begins no formula."""
    folders = [str(tmp_path / f"seed-${seed}") for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        runs.train(Recipe.model_validate(TINY | {"seed": seed, "pictures": False}), folder)
    words = ["predict", folders[0], "--beside", folders[1], "--held-out", "2"]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    rows = (tmp_path / "out/predictions.csv").read_text().splitlines()[1:]
    models = ["seed-$0: cifar_resnet20_bam", "seed-$1: cifar_resnet20_bam"]
    assert [row.split(",")[1] for row in rows] == models * 2


@pytest.mark.parametrize("content", ["[]", "{", ""])
def test_a_damaged_summary_is_a_line(tmp_path, content):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match=r"summary.json is damaged \(.*\): it is written anew") as error:
        _ = Run(tmp_path).summary
    assert "\n" not in str(error.value)


def test_a_fault_of_building_is_not_told_as_a_damaged_checkpoint(folder, monkeypatch):
    """Only facts that are not of the task are: see the forged checkpoints."""

    def build(recipe, facts, image_size=None):
        raise KeyError("our own")

    monkeypatch.setattr(Run(folder)._task, "build", build)
    with pytest.raises(KeyError, match="our own"):
        Run(folder).model()


def test_facts_of_another_task_are_refused(folder, tmp_path):
    shutil.copytree(folder / "checkpoints", tmp_path / "run/checkpoints")
    shutil.copy(folder / "recipe.yaml", tmp_path / "run")
    for file in (tmp_path / "run/checkpoints").glob("*.pt"):
        state = torch.load(file, weights_only=True)
        del state["facts"]["mean"]
        torch.save(state, file)
        Path(f"{file}.sha256").write_text(hashlib.sha256(file.read_bytes()).hexdigest())
    with pytest.raises(UserError, match="its facts are not this task's: mean: Field required"):
        Run(tmp_path / "run").model()
