"""A run's records are lines of strict JSON, whatever was scored."""

import json
import math

import pytest

from attneck.training.records import read_records, write_records


def test_a_score_that_is_no_number_is_null_and_read_back_as_nan(tmp_path):
    write_records(tmp_path, [{"step": 3, "epoch": 1, "val_loss": math.inf}])
    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)  # of NaN and Infinity
    (record,) = read_records(tmp_path)
    assert (record["step"], record["epoch"]) == (3, 1)
    assert math.isnan(record["val_loss"])
