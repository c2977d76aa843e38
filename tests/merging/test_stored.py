"""The method `stored`: weights from a file, bit for bit."""

import pytest
import torch

from evomerge.errors import InvalidInput
from evomerge.merging import merge_state_dicts
from evomerge.report.inventory import describe_methods

SOURCE = {"w": torch.zeros(2, 3), "norm": torch.ones(3)}
STORED = {"w": torch.arange(6.0).reshape(2, 3) / 7, "norm": torch.tensor([0.1, 0.2, 0.3])}


def test_the_weights_are_those_that_were_stored_and_share_no_memory_with_them():
    merged = merge_state_dicts("stored", [SOURCE], parameters={"weights": [STORED]})
    assert all(torch.equal(merged[name], tensor) for name, tensor in STORED.items())
    merged["w"].zero_()
    assert STORED["w"].sum() > 0


@pytest.mark.parametrize(
    ("sources", "stored", "message"),
    [
        ([SOURCE], {"w": STORED["w"]}, "no tensor 'norm'"),
        ([SOURCE], {**STORED, "w": torch.zeros(3)}, r"shape \[3\]; give a floating-point tensor of shape \[2, 3\]"),
        ([SOURCE], {**STORED, "w": torch.zeros(2, 3, dtype=torch.long)}, "int64"),
        ([SOURCE, SOURCE], STORED, "merges exactly 1 sources"),
    ],
)
def test_stored_weights_that_do_not_fit_are_refused(sources, stored, message):
    with pytest.raises(InvalidInput, match=message):
        merge_state_dicts("stored", sources, parameters={"weights": [stored] * len(sources)})


def test_the_command_line_describes_it():
    (entry,) = describe_methods("stored")["methods"]
    assert entry["needs"] == []
