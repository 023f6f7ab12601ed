"""A run read back: its recipe, records and scores, its model and its data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from functools import cached_property, partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attneck.checks import whole
from attneck.errors import UserError, brief, one_line, say, user_mistakes
from attneck.training.recipe import TIMM, Model, Recipe
from attneck.training.recipe_file import RECIPE, is_run, load_recipe, parse_recipe
from attneck.training.records import RECORDS, Record, read_records

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from attneck.tasks.task import Evaluation, Found, Samples, Task
    from attneck.training.distributed import World
    from attneck.training.report import Watch

NAMES = {"val": "weights", "ema": "their average"}
"""What the scores of a run's weights, and of their moving average, are called."""


class Run:
    """What `attneck train` left in a folder. Nothing is read before it is asked for.

    Args:
        folder: where it lies.
        checkpoint: the one that `step`, `weights`, `model` and what uses them are of: the newest, or the best
            by the recipe's `metric`.

    Attributes:
        folder: where it lies.

    Raises, from every member that finds it so:
        UserError: no run there, none of its checkpoints is whole, no best one is kept, or data that is not
            there.
    """

    def __init__(self, folder: str | Path, checkpoint: Literal["newest", "best"] = "newest") -> None:
        if checkpoint not in ("newest", "best"):
            raise UserError(f"checkpoint {checkpoint!r}: a run has its 'newest' and its 'best'")
        self.checkpoint = checkpoint
        if not str(folder):  # Path("") is the current folder
            raise UserError("'' is no run: give the folder of one (attneck train says where it is)")
        self.folder = Path(folder)
        self._told: list[list[str]] = []  # what has changed in the data, each once

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @cached_property
    def recipe(self) -> Recipe:
        """What it was made from."""
        if not is_run(self.folder):
            raise UserError(
                f"{self.folder} is no run: there is no {RECIPE} in it (attneck train says where a run is)"
            )
        return load_recipe(str(self.folder))

    @property
    def history(self) -> list[Record]:
        """Its records so far, one for each time that the held-out images were scored."""
        if records := read_records(self.folder):
            return records
        raise UserError(f"{self.folder}: no {RECORDS} there; the run has not come so far")

    @property
    def summary(self) -> dict[str, Any]:
        """How it ended: its steps, the last record, and the digest of its weights."""
        file = self.folder / "summary.json"
        try:
            found = json.loads(file.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{self.folder}: no {file.name} there; the run has not come so far") from None
        except ValueError as error:
            found = one_line(error, 80)
        if not isinstance(found, dict):
            raise UserError(f"{file} is damaged ({found}): it is written anew when the run goes on")
        return found

    @property
    def finds_objects(self) -> bool:
        """Whether its model predicts objects with boxes, rather than the class of an image."""
        return self._task.finds_objects

    @property
    def step(self) -> int:
        """The optimiser step of its checkpoint."""
        return int(self._state["step"])

    @property
    def facts(self) -> dict[str, Any]:
        """What the model knows of its data: `classes`, and more, see `attneck.tasks.task.Task.describe`."""
        found: dict[str, Any] = self._state["facts"]
        return found

    def weights(self, *, average: bool = True) -> dict[str, Tensor]:
        """The state dict of its checkpoint: the moving average of the weights, where it keeps one."""
        state = self._state
        if not (average and state["average"]):
            found: dict[str, Tensor] = state["model"]
            return found
        prefix = "module."
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in state["average"].items()
            if name.startswith(prefix)
        }

    def model(
        self,
        image_size: int | tuple[int, int] | None = None,
        *,
        average: bool = True,
        part: Model | None = None,
    ) -> nn.Module:
        """The model with `weights`, in evaluation mode on the CPU; the data is not needed.

        Args:
            image_size: as `create_model` has it, if another than the run's.
            average: take the moving average of the weights, where the run keeps one.
            part: in place of the recipe's `model`: the same network with other options that leave its weights
                what they are, such as `resample`.
        """
        recipe = self.recipe if part is None else self.recipe.model_copy(update={"model": part})
        with user_mistakes():
            model = self._task.build(recipe, self.facts, image_size)
        try:
            model.load_state_dict(self.weights(average=average))
        except RuntimeError as error:
            if part is not None:
                raise UserError(
                    f"{self.folder}: its weights do not fit {part.name} with these options "
                    f"({one_line(error, 200)}): choose such as leave the weights' shapes"
                ) from error
            if image_size is None:
                raise
            raise UserError(  # a network of timm's, such as a vision transformer
                f"{self.folder}: its weights have shapes that are for images of {self.facts['image_size']} "
                f"pixels alone, and not of {image_size}: leave image_size out"
            ) from error
        if image_size is not None and recipe.model.name.startswith(TIMM):  # which may have a size of its own
            from attneck.layers.meta import check_logits

            with user_mistakes():
                check_logits(model, image_size, len(self.facts["classes"]))
        return model.eval()

    def data(self, split: str = "val", *, root: str | None = None, val_share: float | None = None) -> Any:
        """A data set of its recipe: "train", with its augmentation, or "val", the held-out images.

        Args:
            root: where the data lies now, if elsewhere than the recipe says.
            val_share: as `evaluate` has it.
        """
        if split not in ("train", "val"):
            raise UserError(f"split {split!r}: a run has 'train' and 'val', its held-out images")
        task = self._open(root, val_share=val_share)
        with user_mistakes():
            return task.training if split == "train" else task.held_out

    def samples(self, count: int, *, root: str | None = None) -> Samples:
        """So many held-out images, evenly spread, with what is in them; each is read when it is taken."""
        task = self._open(root)
        with user_mistakes():
            return task.samples(count)

    def evaluate(
        self,
        *,
        root: str | None = None,
        val_share: float | None = None,
        image_size: int | None = None,
        part: Model | None = None,
        recalibrate: int | None = None,
        watch: Watch | None = None,
    ) -> dict[str, Evaluation]:
        """What the held-out images say of its weights, "val", and of their moving average, "ema", if any.

        Under torchrun the processes share the images. On the CPU this process then keeps freed memory.

        Args:
            root: where the data lies now, if elsewhere than the recipe says.
            val_share: the share of `root`'s class folders that is scored, in place of the recipe's; 1 is all.
            image_size: the side of the held-out images in pixels, if another than the run's.
            part: as `model` has it.
            recalibrate: score it as `recalibrated` by so many training images of that size, at least 2.
            watch: is given the DataLoader, and gives its batches on: to show how far it is.
        """
        from attneck.training.allocator import keep_memory
        from attneck.training.distributed import world
        from attneck.training.report import unseen
        from attneck.training.scoring import scored

        with world() as everyone, self._enough_memory(image_size):
            keep_memory(everyone.device.type)
            task = self._open(root, everyone, image_size, val_share)
            networks = {"val": self.model(image_size, average=False, part=part)}
            if self._state["average"]:
                networks["ema"] = self.model(image_size, part=part)
            report = partial(task.report, watch=watch or unseen)
            found = {}
            for name, network in networks.items():
                placed = self._placed(network, everyone)
                if recalibrate is not None:
                    self._recalibrate(placed, task, recalibrate, everyone)
                found[name] = scored(report, placed, self.recipe, everyone.device)
            return found

    def recalibrated(
        self,
        network: nn.Module,
        images: int = 2000,
        *,
        root: str | None = None,
        val_share: float | None = None,
        image_size: int | None = None,
    ) -> nn.Module:
        """`network`, of `model`, with statistics of BatchNorm taken anew, in place; on the CPU.

        They are those of so many of the run's training images, evenly spread and seen as held-out images are:
        see `attneck.layers.recalibrate`. For images of another size than it was trained on.

        Args:
            root: where the data lies now, if elsewhere than the recipe says; of other data the training part.
            val_share: as `evaluate` has it.
            image_size: the side of these images in pixels, if another than the run's.
        """
        import torch

        from attneck.training.distributed import World

        alone = World(0, 1, torch.device("cpu"))
        with self._enough_memory(image_size):
            task = self._open(root, alone, image_size, val_share)
            self._recalibrate(network, task, images, alone)
        return network

    def _recalibrate(self, network: nn.Module, task: Task, images: int, everyone: World) -> None:
        from attneck.layers import recalibrate
        from attneck.training.scoring import scored

        with user_mistakes():
            batches = task.calibration(whole("recalibrate", images, least=2, most=1 << 31))
            scored(partial(recalibrate, batches=batches), network, self.recipe, everyone.device)

    def tables(self, evaluations: dict[str, Evaluation]) -> str:
        """What `evaluate` found, to be read: of a detector the papers' tables."""
        return self._task.tables({NAMES[name]: one for name, one in evaluations.items()})

    def prepared(self, image: Image.Image | str | Path) -> Tensor:
        """An image as `model` takes it, as held-out images are prepared: [3, H, W], without the batch.

        Args:
            image: of any size, or the path of one. It is read as a file's is: upright as its EXIF says, 16
                bits of grey brought to 8.
        """
        return self._task.prepared(self._decoded(image), self.facts)

    def predict(
        self, images: Iterable[Image.Image | str | Path], *, min_score: float = 0.0, top_k: int | None = None
    ) -> list[Found]:
        """What its model finds in each image, best first: classes, or objects with their boxes and masks.

        On CUDA where there is one. A row has `category` and `score`; an object also `bbox` (x, y, width,
        height in the image's pixels) and, where the model makes masks, `segmentation` (COCO's run lengths).

        Args:
            images: of any size, or paths, as `prepared` takes them. Boxes are in the upright image.
            min_score: what is less sure is left out, 0 to 1.
            top_k: of a classifier, so many classes at most; 5 where None.
        """
        return list(self.predict_each(images, min_score=min_score, top_k=top_k))

    def predict_each(
        self, images: Iterable[Image.Image | str | Path], *, min_score: float = 0.0, top_k: int | None = None
    ) -> Iterator[Found]:
        """As `predict`, one image after the other: none is taken before the one before was asked for."""
        from attneck.training.distributed import world
        from attneck.training.scoring import scored

        if isinstance(images, str | Path) or not hasattr(images, "__iter__"):
            raise UserError(f"images={brief(images)}: wanted several, a list of one say")
        options: dict[str, Any] = {"min_score": min_score}
        if top_k is not None:
            if self.finds_objects:
                raise UserError(f"{self.folder} finds objects: top_k is of classifiers, leave it out")
            with user_mistakes():
                options["top_k"] = whole("top_k", top_k, most=1 << 62)
        if isinstance(min_score, bool) or not isinstance(min_score, Real) or not 0 <= min_score <= 1:
            raise UserError(f"min_score={brief(min_score)}: wanted a number from 0 to 1")
        with world() as everyone, self._enough_memory():
            model = self._placed(self.model(), everyone)
            for image in images:
                seen = self._decoded(image)
                find = partial(self._task.predict, image=seen, facts=self.facts, **options)
                yield scored(find, model, self.recipe, everyone.device)

    def _decoded(self, image: Image.Image | str | Path) -> Image.Image:
        """An image that was opened, or is at a path, as a data set's files are read."""
        from PIL import Image

        from attneck.data.readers.decode import as_decoded, decode

        with user_mistakes():
            if isinstance(image, str | Path):
                return decode(str(image), str(self.folder))
            if not isinstance(image, Image.Image):
                raise ValueError(f"image={brief(image)}: wanted an image of Pillow's, or the path of one")
            return as_decoded(image)

    @cached_property
    def _state(self) -> dict[str, Any]:
        """The newest whole checkpoint, or the best by its records, of the recipe that is in the folder."""
        from pydantic import ValidationError

        from attneck.training import checkpoint
        from attneck.training.best import best_of, key_of
        from attneck.training.recipe_file import differences
        from attneck.training.state import check_fits

        def fits(state: dict[str, Any]) -> None:
            recipe = parse_recipe(state["recipe"], "its recipe")
            try:
                self._task.described.model_validate(state["facts"])
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"]))
                raise ValueError(f"its facts are not this task's: {field}: {first['msg']}") from error
            check_fits(state, self._task.build(recipe, state["facts"]), recipe)

        state, path, passed = checkpoint.load_latest(self.folder / "checkpoints", fits)
        for said in passed:
            say(f"{said}; taking step {state['step']}", once=True)
        if self.checkpoint == "best":
            with user_mistakes():
                found = best_of(state["history"], key_of(self.recipe, self._task.metrics(self.recipe)))
            if found is None:
                raise UserError(
                    f"{self.folder} has no best checkpoint, its held-out images were not scored yet or have "
                    "nothing to find: take the newest (--checkpoint newest)"
                )
            if found.step != state["step"]:
                state, path = checkpoint.load_best(self.folder / "checkpoints", found.step, fits)
        if changed := differences(parse_recipe(state["recipe"], str(path)), self.recipe):
            raise UserError(
                f"{self.folder / RECIPE} is not what {path.name} was trained with "
                f"({'; '.join(changed)}): take the change back"
            )
        return state

    @property
    def _task(self) -> type[Task]:
        from attneck.tasks import task_of

        with user_mistakes():
            return task_of(self.recipe)

    def _open(
        self,
        root: str | None = None,
        everyone: World | None = None,
        image_size: int | None = None,
        val_share: float | None = None,
    ) -> Task:
        """The task with its data, whose classes must be those that the model was trained for."""
        import torch

        from attneck.data.readers.tree import has_halves
        from attneck.tasks import open_task
        from attneck.training.distributed import World

        recipe = self.recipe
        given = {"root": root, "image_size": image_size, "val_share": val_share}
        if changed := {name: value for name, value in given.items() if value is not None}:
            content = recipe.model_dump(mode="json")
            content["data"] |= changed
            if val_share is None and root is not None and has_halves(root, recipe.data.name):
                content["data"]["val_share"] = None  # the recipe's is of folders that nobody has split
            recipe = parse_recipe(content, str(self.folder))
        among = everyone or World(0, 1, torch.device("cpu"))
        with user_mistakes():
            if root is not None and recipe.data.val_size is not None and not self._moved(recipe, among):
                whole_data = recipe.data.model_copy(update={"val_size": None})
                recipe = recipe.model_copy(update={"data": whole_data})
            task = open_task(recipe, among)
        self._compare(task, among, resized=image_size not in (None, self.facts["image_size"]))
        return task

    def _moved(self, recipe: Recipe, everyone: World) -> bool:
        """Whether `recipe` opens the run's own held-out images: of those its `val_size` chose some.

        Of other data all are scored.
        """
        from attneck.tasks import open_task

        try:
            rows = open_task(recipe, everyone).held_out.fingerprint()
        except ValueError:  # fewer than val_size, for one: whatever else it is comes again
            return False
        return bool(rows == self.facts.get("data", {}).get("held-out", rows))

    def _compare(self, task: Task, everyone: World, resized: bool) -> None:
        """Refuses other classes, classes that have each other's images, and other images on other machines.

        Says what else has changed.
        """
        from attneck.data.fingerprint import changes, relabelled, shortened
        from attneck.data.table import SETS
        from attneck.runs.copies import check_copies

        part = "held-out"
        with user_mistakes():
            # A drawn image of another size is another image, as was asked for.
            rows = {} if resized and SETS[self.recipe.data.name].drawn else task.held_out.fingerprint()
        wanted, classes = self.facts["classes"], list(task.held_out.classes)
        check_copies(everyone, classes, lambda: {part: rows})
        words = changes(self.facts, {"classes": classes, "data": {part: rows}})
        if classes != wanted:
            raise UserError(
                f"{self.folder} was trained on other classes ({len(wanted)} for the data's {len(classes)}: "
                f"{shortened(words)}): give the data that it was trained on"
            )
        before = self.facts.get("data", {}).get(part, {})
        if moved := relabelled(before, rows):
            raise UserError(
                f"{self.folder}: classes have changed places ({shortened(moved)}), their scores would be "
                "wrong: give the data that it was trained on"
            )
        if words and words not in self._told:
            say(f"{self.folder}: the data has changed: {shortened(words)}", once=True)
            self._told.append(words)

    def _placed(self, model: nn.Module, everyone: World) -> nn.Module:
        """On this process's device, in the memory format that it was trained in."""
        import torch

        model.to(everyone.device)
        return model.to(memory_format=torch.channels_last) if self.recipe.channels_last else model

    def _enough_memory(self, image_size: int | None = None) -> AbstractContextManager[None]:
        """Where it isn't so, that ends in a line."""
        from attneck.training.memory import memory_errors

        doing = f"{self.folder}, images of {image_size or self.facts.get('image_size')} pixels"
        return memory_errors(lambda: doing, "free some, or take a machine with more")
