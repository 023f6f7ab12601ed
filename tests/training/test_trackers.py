"""Trackers are told every record once, by calls that theirs are like; and a table of the records."""

import csv
import io
import json
import sys
import types
from contextlib import suppress

import pytest
from small_run import ALONE, Doing, Task, recipe, run

from attneck import cli
from attneck.errors import UserError
from attneck.training import trackers
from attneck.training.recipe import Recipe
from attneck.training.records import write_records

NAMES = ["wandb", "mlflow", "trackio"]


class Service:
    """What all three keep: runs by their id, their records, parameters and ends; may lose its network.

    The functions have parameters of the real ones' names, those that a training program may need.
    """

    def __init__(self):
        self.runs, self.began, self.lost = {}, [], False
        self.active = None

    def _joined(self, id_, **what):
        if self.lost == "from the start":
            raise ConnectionError("no network")
        self.began.append((id_, what))
        self.active = self.runs.setdefault(id_, {"records": {}, "ends": []})
        return self.active

    def record(self, kept, values, step):
        if self.lost:
            raise ConnectionError("no\nnetwork")
        assert step not in kept["records"], "told twice"
        assert all(type(value) in (int, float) for value in values.values())
        kept["records"][step] = values

    def wandb(self):
        service = self

        class Run:
            def __init__(self, kept):
                self.kept = kept

            def log(self, data, step=None, commit=None):
                service.record(self.kept, data, step)

            def finish(self, exit_code=None, quiet=None):
                self.kept["ends"].append("FINISHED" if exit_code == 0 else "FAILED")

        def init(
            entity=None,
            project=None,
            dir=None,
            id=None,
            name=None,
            config=None,
            allow_val_change=None,
            resume=None,
            mode=None,
        ):
            assert resume == "allow"
            assert allow_val_change
            assert not set("/\\#?%:") & set(id)
            return Run(service._joined(id, project=project, name=name, config=config))

        return types.SimpleNamespace(init=init)

    def mlflow(self):
        def set_experiment(experiment_name=None, experiment_id=None):
            self.project = experiment_name

        def start_run(run_id=None, experiment_id=None, run_name=None, nested=False):
            assert run_id is None or run_id in self.runs, "no such run"
            known = run_id or f"made-by-the-server-{len(self.runs)}"
            self._joined(known, project=self.project, name=run_name)
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=known))

        def log_params(params, synchronous=None):
            assert len(params) <= 100
            assert all(len(str(value)) <= 500 for value in params.values())
            self.active.setdefault("config", {}).update(params)

        def log_metrics(metrics, step=None, synchronous=None):
            self.record(self.active, metrics, step)

        def end_run(status="FINISHED"):
            self.active["ends"].append(status)

        return types.SimpleNamespace(
            set_experiment=set_experiment,
            start_run=start_run,
            log_params=log_params,
            log_metrics=log_metrics,
            end_run=end_run,
        )

    def trackio(self):
        service = self

        class Run:
            def __init__(self, kept):
                self.kept = kept

            def log(self, metrics, step=None):
                service.record(self.kept, metrics, step)

            def finish(self):
                self.kept["ends"].append("FINISHED")

        def init(project, name=None, group=None, space_id=None, config=None, resume="never"):
            assert resume == "allow"
            return Run(service._joined(name, project=project, name=name, config=config))

        return types.SimpleNamespace(init=init)


@pytest.fixture
def services(monkeypatch):
    found = {name: Service() for name in NAMES}
    for name, service in found.items():
        monkeypatch.setitem(sys.modules, name, getattr(service, name)())
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    return found


def stop():
    raise KeyboardInterrupt


@pytest.mark.parametrize(("step", "evaluating"), [(2, False), (3, True), (4, False), (6, True)])
def test_a_run_that_was_stopped_tells_each_record_once_to_one_run(tmp_path, services, step, evaluating):
    """Stopped in the first epoch, in its evaluation, in the second epoch, and in the last evaluation."""
    wanted = recipe(log={"trackers": NAMES})
    folder = tmp_path / "cats"
    with suppress(KeyboardInterrupt):
        run(folder, wanted, Doing(step - 1, stop, evaluating=evaluating))
    run(folder, wanted, Task(ALONE), resume=True)
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for name, service in services.items():
        assert len(service.began) == 2, name
        ((known, kept),) = service.runs.items()
        assert [id_ for id_, _ in service.began] == [known, known]
        assert service.began[0][1]["project"] == "attneck"
        assert "cats" in service.began[0][1]["name"]
        config = kept.get("config") or service.began[0][1]["config"]
        assert config["batch"] in (8, "8")
        assert list(kept["records"]) == [3, 6]
        for record in history:
            assert kept["records"][record["step"]]["val/mean"] == record["val_mean"]
            assert {"epoch", "step"}.isdisjoint(kept["records"][record["step"]])
        assert kept["ends"][-1] == "FINISHED"
        assert name == "trackio" or kept["ends"] == ["FAILED", "FINISHED"]


def test_one_that_loses_its_network_is_left_alone_with_a_line(tmp_path, services, capsys):
    services["wandb"].lost = services["mlflow"].lost = True
    wanted = recipe(log={"trackers": NAMES, "project": "pets"}, epochs=3)
    run(tmp_path, wanted, Task(ALONE))
    said = [line for line in capsys.readouterr().err.splitlines() if "takes no more" in line]
    assert [line.split()[1] for line in said] == ["wandb", "mlflow"]
    assert "(ConnectionError: no network); the run goes on without it" in said[0]
    (kept,) = services["trackio"].runs.values()
    assert list(kept["records"]) == [3, 6, 9]
    assert services["trackio"].began[0][1]["project"] == "pets"
    # A resume sends what is missing, though there is nothing more to train.
    services["wandb"].lost = services["mlflow"].lost = False
    run(tmp_path, wanted, Task(ALONE), resume=True)
    for name in NAMES:
        (kept,) = services[name].runs.values()
        assert list(kept["records"]) == [3, 6, 9], name


def test_one_that_cannot_start_ends_a_new_run_and_not_a_resumed_one(tmp_path, services, capsys):
    wanted = recipe(log={"trackers": ["trackio", "wandb"]})
    services["wandb"].lost = "from the start"
    with pytest.raises(
        UserError, match=r"wandb could not be started \(ConnectionError: no network\)"
    ) as error:
        run(tmp_path, wanted, Task(ALONE))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "checkpoints").exists()
    assert next(iter(services["trackio"].runs.values()))["ends"] == ["FINISHED"]
    run(tmp_path, recipe(), Task(ALONE))
    run(tmp_path, wanted, Task(ALONE), resume=True)
    assert capsys.readouterr().err.count("wandb takes no more") == 1


def test_a_new_run_in_an_old_folder_joins_nothing(tmp_path, services):
    (tmp_path / trackers.FILE).write_text(json.dumps({"wandb": {"id": "old", "sent": 99}}))
    run(tmp_path, recipe(log={"trackers": ["wandb"]}), Task(ALONE))
    ((known, kept),) = services["wandb"].runs.items()
    assert known != "old"
    assert list(kept["records"]) == [3, 6]


def test_the_variables_of_a_tracker_name_its_project(tmp_path, services, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    services["mlflow"].project = "as the variable says"
    run(tmp_path, recipe(log={"trackers": ["wandb", "mlflow"]}), Task(ALONE))
    assert services["wandb"].began[0][1]["project"] == "mine"
    assert services["mlflow"].began[0][1]["project"] == "as the variable says"


def test_one_that_is_not_installed_is_refused_before_anything(tmp_path, monkeypatch, capsys):
    """A folder of its name is no package."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "trackio").mkdir()
    monkeypatch.setattr(
        trackers, "find_spec", lambda name: None if name == "wandb" else types.SimpleNamespace(origin=None)
    )
    for name in ("wandb", "trackio"):
        with pytest.raises(UserError, match=f"^log.trackers: {name} is not installed: pip install {name}"):
            trackers.require(Recipe(log={"trackers": [name]}))
    assert cli.main(["train", "demo", "--log.trackers", "wandb", "--out", "run"]) == 2
    assert "pip install wandb" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert "wandb" not in sys.modules


def test_the_table_has_the_records_as_they_are(tmp_path):
    run(tmp_path, recipe(ema=0.5), Doing(4, lambda: None))
    history = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    raw = (tmp_path / "metrics.csv").read_bytes()
    assert raw.count(b"\n") == 3
    assert b"\r" not in raw
    rows = list(csv.DictReader(io.StringIO(raw.decode(), newline="")))
    assert list(rows[0]) == list(history[0])
    assert [{name: float(value) for name, value in row.items()} for row in rows] == history
    write_records(tmp_path, [{"step": 1, 'a "b", c': 2.5}, {"step": 2, "more": 1}])
    assert (tmp_path / "metrics.csv").read_bytes() == b'step,"a ""b"", c",more\n1,2.5,\n2,,1\n'
