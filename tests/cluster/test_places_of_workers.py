"""Workers and what there is for them: on which node one has room, what share of a GPU it gets, what it is told."""

import pytest

from evomerge.cluster import choice, gpus_of_each, workers_share
from evomerge.cluster.ray_executor.connection import ClusterNodes
from evomerge.spec import WorkersSpec

NODES = ClusterNodes({"a": {"CPU": 8.0, "GPU": 1.0, "node:a": 1.0}, "b": {"CPU": 2.0, "GPU": 1.0}, "c": {"CPU": 4.0}})


@pytest.mark.parametrize(
    ("wanted", "rooms"),
    [
        ({"CPU": 1, "GPU": 0.0}, [8, 2, 4]),
        ({"CPU": 3, "GPU": 0.5}, [2, 0, 0]),
        ({"CPU": 1, "GPU": 0.1}, [8, 2, 0]),
        ({"CPU": 1, "GPU": 2}, [0, 0, 0]),
        ({"CPU": 1, "GPU": 0, "licence": 1}, [0, 0, 0]),
    ],
)
def test_a_node_has_room_for_as_many_workers_as_every_resource_allows(wanted, rooms):
    assert [NODES.room(node, wanted) for node in ("a", "b", "c")] == rooms


def test_a_worker_whose_gpus_are_on_several_nodes_is_told_from_one_that_the_cluster_has_too_few_for():
    divided = NODES.compared({"CPU": 1, "GPU": 2})
    assert divided == "each worker wants 1 CPU, 2 GPU, the cluster has 14 CPU, 2 GPU, but no node has so much alone"
    assert NODES.compared({"CPU": 1, "GPU": 3}) == "each worker wants 1 CPU, 3 GPU, the cluster has 14 CPU, 2 GPU"
    assert NODES.compared({"CPU": 1, "GPU": 1}) == "each worker wants 1 CPU, 1 GPU, the cluster has 14 CPU, 2 GPU"


def test_workers_of_this_machine_share_its_gpus_unless_the_spec_says_otherwise(monkeypatch):
    monkeypatch.setattr(choice, "_gpus", lambda: 2)
    assert [gpus_of_each(WorkersSpec(), count, None) for count in (1, 2, 8)] == [1.0, 1.0, 0.25]
    assert gpus_of_each(WorkersSpec(gpus=0.0), 8, None) == 0.0
    assert gpus_of_each(WorkersSpec(gpus=0.0), 1, "none") == 1.0  # the setting is ignored there


def test_a_worker_that_is_alone_shares_nothing():
    assert workers_share(2, None)
    assert not workers_share(1, None)
    assert not workers_share(2, "none")
