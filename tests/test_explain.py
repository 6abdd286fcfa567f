import pytest

from edgekit.checkpoint import open_checkpoint
from edgekit.explain import explain
from edgekit.graph import build_graph
from edgekit.passes import lower
from edgekit.plan import Plan, make_plan
from edgekit.quantize import assign
from edgekit.scheme import parse_recipe
from edgekit.target import load_target
from edgekit.testing import make_checkpoint


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    path = make_checkpoint(tmp_path_factory.mktemp("explain") / "c", layers=3, hidden=64, intermediate=96, vocab=320)
    graph = build_graph(open_checkpoint(path), context=64)
    return make_plan(lower(assign(graph, parse_recipe("q4g32"))), graph.decoder, load_target("rpi5"), context=64)


def test_equal_products_are_told_once_with_their_number(plan: Plan) -> None:
    decoded = [(each.operator, each.n, each.k, each.times) for each in explain(plan) if each.phase == "decode"]
    assert decoded == [
        ("NormLinear", 128, 64, 3),
        ("LinearAdd", 64, 64, 3),
        ("NormGatedLinear", 192, 64, 3),
        ("LinearAdd", 64, 96, 3),
        ("Head", 320, 64, 1),
    ]


def test_every_product_names_its_kernel_and_all_that_lost(plan: Plan) -> None:
    for each in explain(plan):
        told = each.as_json()
        assert told["kernel"] in plan.kernels
        names = [loser["kernel"] for loser in told["losers"]]
        assert told["kernel"] not in names and len(names) == len(set(names)) > 1
        assert all(loser["reason"] for loser in told["losers"])
        assert told["bytes"] == each.n * each.k // 32 * 18  # 16 bytes of codes and a bf16 a group


def test_the_bytes_of_decoding_are_those_of_the_plan(plan: Plan) -> None:
    told = sum(each.choice.cost.moved * each.times for each in explain(plan) if each.phase == "decode")
    row = 64 // 32 * 18
    assert plan.bytes_per_token == told + row
