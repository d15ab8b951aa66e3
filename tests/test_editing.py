"""Edits under way: known inside their model alone, in order, and only as long as they last."""

import pytest
from tiny import tiny_model
from torch import nn

from entropy_probe.editing import edits_of, under_way
from entropy_probe.hooks import edit_residuals, find_blocks
from entropy_probe.models.engine import engine_of


def test_edits_are_known_in_the_order_they_began_and_while_they_last():
    one, two, outside = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.Sequential(one, nn.Sequential(two))
    assert edits_of(model) == []
    with under_way(two, "later block"), under_way(outside, "another model"):
        with under_way(one, "same"), under_way(one, "same"):
            assert edits_of(model) == ["later block", "same", "same"]
            assert edits_of(two) == ["later block"]
        assert edits_of(model) == ["later block"]
    assert edits_of(model) == edits_of(outside) == []
    with pytest.raises(RuntimeError, match="meanwhile"):
        with under_way(one, "cut short"):
            raise RuntimeError("meanwhile")
    assert edits_of(model) == []


def test_an_edit_of_the_stream_makes_itself_known():
    model = tiny_model()
    assert engine_of(model).edits is None
    with (
        edit_residuals(model, -1, lambda stream: None),
        edit_residuals(model, 0, lambda stream: None, about="a push"),
    ):
        last = len(find_blocks(model)) - 1
        assert engine_of(model).edits == f"a function after layer {last}; a push"
        assert engine_of(tiny_model()).edits is None
    assert engine_of(model).edits is None
