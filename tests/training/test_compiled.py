"""compile: the whole network compiled, in training and in scoring, and nothing else of a run is otherwise."""

import pytest
import torch
from small_run import (
    ALONE,
    At,
    BrokenOffError,
    Doing,
    Net,
    Task,
    broken_off_after,
    digest,
    history,
    recipe,
    run,
    thin_mask_rcnn,
)

from attneck.errors import RunFailed, UserError
from attneck.runs import train as runs
from attneck.tasks.detection import Detection
from attneck.training import checkpoint, compiled
from attneck.training.recipe import Recipe

WANTED = recipe(compile=True, ema=0.5, accumulate=2, checkpoint_steps=1)


@pytest.fixture
def traced(monkeypatch):
    """Graphs are taken and run as they are, which needs no compiler; how many there are."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(compiled, "BACKEND", backend)
    torch._dynamo.reset()
    return graphs


def broken():
    raise BrokenOffError


def test_a_compiled_run_goes_on_with_the_same_bits(tmp_path, traced):
    """From an evaluation, which comes before training then; the checkpoints have the plain names."""
    run(tmp_path / "straight", WANTED, Task(ALONE))
    assert traced, "nothing was compiled"
    with pytest.raises(BrokenOffError):
        run(tmp_path / "broken", WANTED, Doing(2, broken, evaluating=True))
    run(tmp_path / "broken", WANTED, Task(ALONE), resume=True)
    one, two = (checkpoint.load_latest(tmp_path / name / "checkpoints")[0] for name in ("straight", "broken"))
    assert (digest(one), history(one)) == (digest(two), history(two))
    assert one["model"].keys() == Net().state_dict().keys()
    assert one["average"].keys() == {"n_averaged", *(f"module.{name}" for name in one["model"])}


def test_sizes_of_evaluation_share_a_form_and_training_has_its_own(traced):
    """Whatever came first: the number of images is fixed in training and open without a gradient."""
    torch.manual_seed(0)
    net = Net()
    both = compiled.Compiled(net)
    with compiled.compiling(WANTED):
        both.eval()
        with torch.inference_mode():
            for images in (8, 5, 3):
                x = torch.randn(images, 3, 6, 6)
                torch.testing.assert_close(both(x), net(x))
        assert len(traced) == 1
        both.train()
        both(torch.randn(4, 3, 6, 6)).sum().backward()
        assert len(traced) == 2
        (images,) = (node.meta["example_value"] for node in traced[1].graph.nodes if node.name == "l_x_")
        assert list(images.shape) == [4, 3, 6, 6]
        assert all(isinstance(side, int) for side in images.shape)
    assert net.conv.weight.grad is not None
    assert [name.removeprefix("network.") for name in both.state_dict()] == [*net.state_dict()]


def test_a_gradient_that_is_not_finite_is_explained_layer_by_layer(tmp_path, traced):
    with pytest.raises(RunFailed, match="first the output of breaking is not finite"):
        run(tmp_path, WANTED, Task(ALONE, "output", At(3)))


def test_without_a_compiler_it_is_refused_in_a_line(tmp_path, monkeypatch):
    wanted = Recipe.model_validate(TINY)
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(UserError, match="there is no C\\+\\+ compiler: install"),
    ):
        runs.train(wanted, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(compiled.sysconfig, "get_path", lambda name: str(tmp_path))
        with pytest.raises(UserError, match=r"Python's own headers are missing \(Python.h\): install"):
            runs.train(wanted, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("torch.utils._triton.has_triton", lambda: True)
        patch.setattr(compiled.shutil, "which", lambda name: None)
        patch.delenv("CC", raising=False)
        with pytest.raises(UserError, match="triton finds no C compiler: install gcc"):
            compiled.check_compiler(wanted, torch.device("cuda"))
    monkeypatch.setattr(torch._dynamo, "is_dynamo_supported", lambda: False)
    with pytest.raises(UserError, match="cannot compile under this Python"):
        runs.train(wanted, tmp_path / "run")
    assert not (tmp_path / "run").exists()


DETECTOR = {
    "model": thin_mask_rcnn(proposals=20),
    "data": {"name": "shapes", "image_size": 96, "augment": "scale_jitter", "train_size": 6, "val_size": 3},
    "optimizer": {"lr": 0.01, "nesterov": False},
    "batch": 2,
    "steps": 3,
    "checkpoint_steps": 1,
    "compile": True,
}


def test_a_detector_has_one_form_in_training_whatever_its_images_sizes(traced):
    """With the losses and gradients of the plain one; larger images than the form has are refused."""
    wanted = Recipe.model_validate(DETECTOR)
    network = Detection.build(wanted, {"classes": ["a"], "image_size": 128})
    both = compiled.to_call(network, wanted)
    own, names = network.backbone, [*network.state_dict()]
    box = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.ones(1, dtype=torch.int64)}
    for sides in ((90, 70), (128, 40)):
        images = [torch.rand(3, *sides), torch.rand(3, 64, 64)]
        targets = [box | {"masks": torch.ones(1, *image.shape[1:], dtype=torch.uint8)} for image in images]
        found = []
        for one in (network, both):
            torch.manual_seed(0)
            for parameter in network.parameters():
                parameter.grad = None
            losses = one(images, targets)
            torch.stack([*losses.values()]).sum().backward()
            found.append((losses, network.backbone.body.model.conv1.weight.grad))
        torch.testing.assert_close(*found)
        assert network.backbone is own
    assert len(traced) == 1
    assert [name.removeprefix("network.") for name in both.state_dict()] == names
    with pytest.raises(
        ValueError, match="an image of 129×64 does not fit into the batch's 128×128: scale it"
    ):
        both([torch.rand(3, 129, 30), torch.rand(3, 64, 64)], targets)
    assert network.backbone is own


def test_a_detector_with_frozen_norms_runs_compiled(traced):
    """Its statistics are looked at in the first step, and what nothing was loaded into is refused."""
    model = {
        "name": "fasterrcnn_resnet26_thin",
        "options": {"depths": [1] * 4, "channels": 16, "freeze_norms": True},
    }
    wanted = Recipe.model_validate(DETECTOR | {"model": model | {"weights": "a"}})
    network = Detection.build(wanted, {"classes": ["a"], "image_size": 64})
    both = compiled.to_call(network, wanted).train()
    box = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.ones(1, dtype=torch.int64)}
    with pytest.raises(ValueError, match="has no statistics yet"):
        both([torch.rand(3, 64, 64)], [box])
    for module in network.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
    losses = both([torch.rand(3, 64, 64)], [box])
    assert all(loss.isfinite() for loss in losses.values())
    assert traced


def test_a_detector_s_compiled_run_goes_on_with_the_same_bits(tmp_path, traced):
    wanted = Recipe.model_validate(DETECTOR)
    straight = runs.train(wanted, tmp_path / "straight")
    assert 1 < len(traced) <= 3  # training's, and evaluation's of several images and of one
    with broken_off_after(2):
        runs.train(wanted, tmp_path / "broken")
    resumed = runs.train(wanted, tmp_path / "broken", resume=True)
    assert resumed.weights == straight.weights


TINY = {
    "model": {"name": "cifar_resnet20_bot_bam", "options": {"depths": [1, 1, 1]}},
    "data": {"name": "shapes", "augment": "crop_flip", "train_size": 96, "val_size": 30, "image_size": 24},
    "optimizer": {"lr": 0.05},
    "epochs": 2,
    "batch": 32,
    "ema": 0.5,
    "compile": True,
}


def test_with_the_compiler_itself(tmp_path):
    """Dropout's draws too are the compiler's own; what goes on is compiled anew, as in another process."""
    run(tmp_path / "straight", WANTED, Task(ALONE))
    with pytest.raises(BrokenOffError):
        run(tmp_path / "broken", WANTED, Doing(2, broken, evaluating=True))
    torch._dynamo.reset()
    run(tmp_path / "broken", WANTED, Task(ALONE), resume=True)
    one, two = (checkpoint.load_latest(tmp_path / name / "checkpoints")[0] for name in ("straight", "broken"))
    assert (digest(one), history(one)) == (digest(two), history(two))
