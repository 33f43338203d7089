"""The passes that put a Triton program's operations in order, each on a few operations that show what it is for."""

from __future__ import annotations

from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.cell.stages import Dense
from vrnn_fast.executors.triton import emit, order
from vrnn_fast.executors.triton.operations import (
    Access,
    Operation,
    Spread,
    TileProduct,
    Weight,
    add,
    compute,
    forth,
    load,
    store,
    variable,
)
from vrnn_fast.executors.triton.plan import BESIDE, LEAST, plan, rows_plan

ACCESS = Access("b_h", 0, 5, 16, 5)
BIAS = Spread(makes=("h",), reads=("bias",))
PRODUCT = forth("h", "w", "x")
WRITTEN = store("h", ACCESS)


def weight(name: str, *, resident: bool) -> Weight:
    return Weight(makes=(name,), line=f"{name} = 0", resident=resident)


def test_a_sum_waits_until_somebody_needs_it() -> None:
    other, user = compute("y", variable("x")), compute("u", variable("h"))
    assert order.late([BIAS, PRODUCT, other, user]) == [other, BIAS, PRODUCT, user]


def test_a_store_waits_with_what_it_stores() -> None:
    other, user = compute("y", variable("x")), compute("u", variable("h"))
    assert order.late([BIAS, PRODUCT, WRITTEN, other, user]) == [other, BIAS, PRODUCT, WRITTEN, user]


def test_what_is_stored_is_not_left_out() -> None:
    assert order.late([BIAS, PRODUCT, WRITTEN]) == [BIAS, PRODUCT, WRITTEN]
    assert order.late([BIAS, PRODUCT]) == []
    assert order.late([load("x", ACCESS)]) == []


def test_a_store_of_what_nobody_waits_for_stays_where_it_is() -> None:
    made, other = compute("h", variable("x")), compute("h", variable("y"))
    assert order.late([made, WRITTEN, other]) == [made, WRITTEN, other]


def test_streamed_weights_are_read_anew_and_resident_ones_once() -> None:
    memory = {"w": weight("w", resident=False), "v": weight("v", resident=True), "x": load("x", ACCESS)}
    user: Operation = compute("u", variable("w") + variable("v") + variable("x"))
    assert list(order.found([user, user], memory)) == [*memory.values(), user, memory["w"], user]


def test_what_was_made_is_not_read() -> None:
    memory = {"x": load("x", ACCESS)}
    made, user = compute("x", variable("y")), compute("u", variable("x"))
    assert list(order.found([made, user], memory)) == [made, user]
    assert list(order.found([user], memory, made=("x",))) == [user]


def test_the_first_term_begins_a_sum() -> None:
    terms = [add("d", variable("a")), add("d", variable("b"))]
    first, second = order.begun(terms, ())
    assert (first.reads, second.reads) == (("a",), ("b", "d"))
    (given,) = order.begun(terms[:1], ("d",))
    assert given.reads == ("a", "d")


def test_what_is_read_and_written_goes_both_ways() -> None:
    read, written = load("h", ACCESS), store("x", Access("b_x", 0, 5, 16, 5))
    assert order.both_ways([read, written]) == frozenset()
    assert order.both_ways([read, written, WRITTEN]) == {"b_h"}


def test_a_gradient_goes_through_all_products_of_its_tile_before_the_next_ones() -> None:
    """Of a decoder, which reads h and z: else all its tiles would be held until the second product."""
    program = plan(CellSpec(200, 17, 3), 64).program
    stages = tuple(stage for stage in program.after if isinstance(stage, Dense) and stage.target.buffer == "decoder")
    cut = rows_plan(program, stages, 64, 0, reverse=True)
    lowered = [operation for stage in reversed(stages) for operation in emit.backward(cut, stage)]
    products = [each.source for each in order.at_once(lowered, cut) if isinstance(each, TileProduct)]
    assert len(stages) == 2
    assert len(set(products)) == 4
    assert products == [name for name in dict.fromkeys(products) for _ in stages]


def test_a_tile_over_rows_or_beside_wider_ones_is_wider_than_high_for_tensor_cores() -> None:
    spec = CellSpec(3, 66, 3)
    for least in (LEAST, BESIDE):
        scan = plan(spec, 64, beside=least)
        assert [tile.padded for tile in scan.tiles["h.0"]] == [64, least]
        assert {tile.padded for tile in scan.tiles["z"]} == {LEAST}
        tiles = rows_plan(scan.program, scan.program.after, 64, 0, reverse=False, least=least).tiles.values()
        assert min(tile.padded for of in tiles for tile in of) == least
