"""Tables become series, whatever the order of their rows, and what is wrong with one is named."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="the extra `tables` is not installed")
pd = pytest.importorskip("pandas", reason="the extra `tables` is not installed")

from vrnn_fast.tables.reader import FARTHEST, Columns, TableError, TableReader, in_zone_of  # noqa: E402


def table(rows: int = 12, **columns: Any) -> Any:
    """Two units, each with a row an hour, in no order."""
    chance = np.random.default_rng(0)
    hours = pd.date_range("2026-01-01", periods=rows // 2, freq="h")
    whole = pd.DataFrame(
        {
            "unit": np.repeat(["north", "south"], rows // 2),
            "stamp": np.tile(hours, 2),
            "heat": chance.normal(20, 3, rows),
            "flow": chance.normal(5, 1, rows),
            **columns,
        }
    )
    return whole.sample(frac=1, random_state=1).reset_index(drop=True)


OWN = Columns(id="unit", time="stamp")


def test_rows_are_put_in_order_and_scaled() -> None:
    given = table()
    given.loc[3, "heat"] = np.nan
    reader = TableReader.learn(given, OWN)
    assert reader.features == ("heat", "flow")
    north, south = reader.read(given)
    assert (north.key, south.key) == ("north", "south")
    for series in (north, south):
        own = given.iloc[series.rows]
        assert (own["unit"] == series.key).all()
        assert own["stamp"].is_monotonic_increasing
        np.testing.assert_allclose(reader.unscaled(series.values), own[["heat", "flow"]], rtol=1e-12)
    together = np.concatenate([north.values, south.values])
    np.testing.assert_allclose(np.nanmean(together, 0), 0, atol=1e-12)
    np.testing.assert_allclose(np.nanstd(together, 0), 1, rtol=1e-12)
    assert np.isnan(together).sum() == 1
    assert reader.cond_size == 0


@pytest.mark.filterwarnings("error")
def test_what_is_beyond_all_measure_is_as_far_as_a_model_bears() -> None:
    reader = TableReader.learn(table(load=np.arange(12.0)), Columns(id="unit", time="stamp", covariates=("load",)))
    given = table(load=[1e308] * 12)
    given.loc[[0, 1], "heat"] = [3.4028235e38, -1e308]
    north, south = reader.read(given)
    heat, load = (np.concatenate([getattr(s, name)[:, 0] for s in (north, south)]) for name in ("values", "covariates"))
    assert (heat.min(), heat.max()) == (-FARTHEST, FARTHEST)
    assert (np.abs(heat) == FARTHEST).sum() == 2
    assert (load == FARTHEST).all()
    assert np.isfinite(np.float32(FARTHEST) ** 2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("covariates", [(), ("heat",)])
def test_a_column_whose_variance_overflows_is_named(covariates: tuple[str, ...]) -> None:
    given = table()
    given.loc[4, "heat"] = 1e300
    with pytest.raises(TableError, match="column 'heat' holds numbers so large"):
        TableReader.learn(given, Columns(id="unit", time="stamp", covariates=covariates))


@pytest.mark.parametrize("covariates", [(), ("heat",)])
def test_the_unit_of_a_column_is_no_affair_of_the_model(covariates: tuple[str, ...]) -> None:
    given, own = table(), Columns(id="unit", time="stamp", covariates=covariates)
    usual = TableReader.learn(given, own).read(given)[0]
    for unit in (1e-200, 2.0**-1000, 1e140):
        small = given.assign(heat=given["heat"] * unit)
        reader = TableReader.learn(small, own)
        series = reader.read(small)[0]
        for found, right in ((series.values, usual.values), (series.covariates, usual.covariates)):
            np.testing.assert_allclose(found, right, rtol=1e-9)
        if not covariates:
            np.testing.assert_allclose(
                reader.unscaled(series.values)[:, 0], small["heat"].iloc[series.rows], rtol=1e-12, atol=0
            )


@pytest.mark.parametrize("dtype", ["uint64", "UInt64"])
def test_times_beyond_signed_integers_are_named(dtype: str) -> None:
    given = pd.DataFrame({"at": pd.Series([2**63 - 1, 2**63, 2**63 + 1], dtype=dtype), "a": np.arange(3.0)})
    with pytest.raises(
        TableError, match=rf"column 'at' is {2**63} in row 1, and numbers of time must be below 2\*\*63"
    ):
        TableReader.learn(given, Columns(time="at"))


@pytest.mark.parametrize(
    ("last", "step", "fits", "said"),
    [
        (np.datetime64("2262-01-01", "ns"), np.timedelta64(100, "D").astype("m8[ns]"), 1, "beyond 2262-04-11 23:47"),
        (np.datetime64("2200-01-01", "ns"), np.timedelta64(36500, "D").astype("m8[s]"), 0, "beyond 2262-04-11 23:47"),
        (2**63 - 10, 4, 2, f"beyond {2**63 - 1}, the last that int64 can say"),
    ],
)
def test_a_future_that_no_time_stamp_says_is_refused(last: Any, step: Any, fits: int, said: str) -> None:
    stamps = np.array([last - 2 * step, last - step, last])
    given = pd.DataFrame({"at": stamps, "a": np.arange(3.0)})
    reader = TableReader.learn(given, Columns(time="at"))
    (series,) = reader.read(given)
    if fits:
        assert (reader.future(series, fits, None)[0] > last).all()
    for horizon in (fits + 1, 1000):
        with pytest.raises(TableError, match=f"column 'at' would go on from .* {said}"):
            reader.future(series, horizon, None)


def test_a_word_among_numbers_is_named() -> None:
    given = table()
    heat = given["heat"].astype(object)
    heat.iloc[4] = "n/a?"
    for dtype in (object, "string"):
        with pytest.raises(
            TableError, match=r"column 'heat' is 'n/a\?' in row 4, and x must be numbers: where nothing"
        ):
            TableReader.learn(given.assign(heat=heat.astype(dtype)), OWN)


def test_truth_values_and_objects_that_are_numbers_are_numbers() -> None:
    """As pandas reads those with gaps from a file, and decimals from a data base; and as Arrow has them."""
    whole = table(on=np.tile([True, False, True], 4))
    gap = whole["on"].astype(object).mask(whole.index == 3, None)
    price = pd.Series([Decimal(i) / 4 for i in range(12)], dtype=object).mask(whole.index == 3)
    for column, right in (
        (whole["on"].astype("bool[pyarrow]"), whole["on"]),
        (gap, gap),
        (gap.astype("boolean"), gap),
        (gap.astype("bool[pyarrow]"), gap),
        (price, pd.Series(np.arange(12) / 4).mask(whole.index == 3)),
        (pd.Series([1, 2.5, None] * 4, dtype=object), pd.Series([1, 2.5, np.nan] * 4)),
    ):
        given = whole.assign(on=column)
        reader = TableReader.learn(given, OWN)
        assert reader.features == ("heat", "flow", "on")
        for series in reader.read(given):
            expected = right.iloc[series.rows].to_numpy(dtype=float, na_value=np.nan)
            np.testing.assert_allclose(reader.unscaled(series.values)[:, 2], expected, atol=1e-12)
    for odd in ("no", 2):
        with pytest.raises(TableError, match=r"column 'on' (holds object|is 'no' in row 0), and x must be numbers"):
            TableReader.learn(whole.assign(on=gap.mask(gap.index == 0, odd)), OWN)


def test_a_sensor_that_was_off_is_a_column_without_numbers() -> None:
    reader = TableReader.learn(table(), OWN)
    for nothing in (pd.Series([None] * 12, dtype=object), pd.Series([None] * 12).astype(pd.ArrowDtype(pa.null()))):
        off = table().assign(heat=nothing)
        assert np.isnan(np.concatenate([series.values[:, 0] for series in reader.read(off)])).all()
        with pytest.raises(TableError, match="column 'heat' holds no number"):
            TableReader.learn(off, OWN)


def test_a_covariate_of_decimals_is_one_of_numbers() -> None:
    own = Columns(id="unit", time="stamp", covariates=("load",))
    loads = np.arange(12) / 8
    given = table(load=loads).assign(load=lambda t: t["load"].map(lambda load: Decimal(repr(load))))
    series = TableReader.learn(given, own).read(given)[0]
    np.testing.assert_array_equal(
        series.covariates, TableReader.learn(table(load=loads), own).read(table(load=loads))[0].covariates
    )


def test_words_that_are_no_categories_are_named() -> None:
    own, numbers = Columns(id="unit", time="stamp", covariates=("load",)), pd.Series(np.arange(40) % 7 / 4)
    for words, said in (
        (numbers.astype(object).mask(numbers.index == 5, "n/a?"), r"is 'n/a\?' in row \d+, and a number elsewhere"),
        (numbers.astype("string").mask(numbers.index == 5, "n/a?"), r"is 'n/a\?' in row \d+, and a number elsewhere"),
        (numbers.astype("string"), "holds numbers as words: .* see pandas.to_numeric"),
        (pd.Series([f"note {i}" for i in range(40)]), "holds 40 words of one row each"),
    ):
        with pytest.raises(TableError, match=f"column 'load' {said}"):
            TableReader.learn(table(40, load=words), own)
    floors = pd.Series(["1", "2", "G"] * 13 + ["roof"])
    for words in (floors, numbers.astype("string").astype("category")):  # whoever says so has categories
        assert TableReader.learn(table(40, load=words), own).cond_size == words.nunique()


def test_stamps_are_of_the_kind_that_was_learnt() -> None:
    numbers = table().assign(stamp=table()["stamp"].dt.hour)
    for learnt, given, words in (
        (table(), numbers, "holds numbers, and held times"),
        (numbers, table(), "holds times"),
    ):
        reader = TableReader.learn(learnt, OWN)
        for read in (reader.read, reader.read_future):
            with pytest.raises(TableError, match=f"column 'stamp' {words}"):
                read(given)


def test_what_a_later_table_is_scaled_by_is_what_was_learnt() -> None:
    reader = TableReader.learn(table(), OWN)
    later = table()
    later["heat"] += 30
    np.testing.assert_allclose(
        reader.read(later)[0].values[:, 0] - reader.read(table())[0].values[:, 0], 30 / reader.std[0], rtol=1e-9
    )


def test_what_is_held_back_for_validation_scales_nothing() -> None:
    given = table(rows=40, load=np.tile(np.arange(20.0), 2)).assign(late=lambda t: t["load"].where(t["load"] > 17))
    ends = given["load"] >= 15  # a quarter of each unit's twenty rows
    own = Columns(id="unit", time="stamp", covariates=("load",))
    reader = TableReader.learn(given.assign(heat=given["heat"] + 100 * ends), own, 0.25)
    begins = given[~ends]
    np.testing.assert_allclose(reader.mean, [begins["heat"].mean(), begins["flow"].mean(), 18.5])
    np.testing.assert_allclose(reader.std, [begins["heat"].std(ddof=0), begins["flow"].std(ddof=0), 0.5])
    np.testing.assert_allclose(reader.levels["load"], [7.0, begins["load"].std(ddof=0)])


def test_a_constant_column_stays_finite() -> None:
    for still in (0.1, 1e20, 1e308):
        given = table(rows=480, still=still)
        np.testing.assert_array_equal(TableReader.learn(given, OWN).read(given)[0].values[:, 2], 0.0)
    given = table(rows=480, still=0.1)  # whose standard deviation is rounding, and no zero
    reader = TableReader.learn(given, OWN)
    np.testing.assert_allclose(reader.read(given.assign(still=2.1))[0].values[:, 2], 2.0)
    reader = TableReader.learn(given, Columns(id="unit", time="stamp", covariates=("still",)))
    np.testing.assert_allclose(reader.read(given.assign(still=2.1))[0].covariates[:, 0], 2.0)


def test_covariates_of_numbers_and_words() -> None:
    given = table(day=np.tile(["mon", "sun", "tue"], 4), load=np.arange(12.0), on=np.tile([True, False], 6))
    reader = TableReader.learn(given, Columns(id="unit", time="stamp", covariates=("day", "load", "on")))
    assert reader.features == ("heat", "flow")
    assert reader.cond_size == 3 + 1 + 2
    (north, _) = reader.read(given)
    own = given.iloc[north.rows]
    np.testing.assert_array_equal(north.covariates[:, :3].argmax(1), own["day"].map({"mon": 0, "sun": 1, "tue": 2}))
    np.testing.assert_allclose(north.covariates[:, 3], (own["load"] - 5.5) / np.arange(12).std())
    np.testing.assert_array_equal(north.covariates[:, 5], own["on"])


def test_ids_and_words_of_any_kind() -> None:
    given = table()
    for ids in (
        given["unit"].map({"north": 3, "south": "x"}),
        given["unit"].astype(pd.CategoricalDtype(["none", "north", "south"])),
        given["unit"].astype("string"),
        given["unit"].map({"north": 1, "south": 2}).astype("Int64"),
        given["unit"].map({"north": pd.Timestamp(2026, 1, 1, tz="UTC"), "south": pd.Timestamp(2027, 1, 1, tz="UTC")}),
    ):
        both = given.assign(unit=ids, word=ids.astype(object))
        series = TableReader.learn(both, Columns(id="unit", time="stamp", covariates=("word",))).read(both)
        assert [s.key for s in series] == [ids[given["unit"] == unit].iloc[0] for unit in ("north", "south")]
        for one, unit in zip(series, ("north", "south"), strict=True):
            assert (given["unit"].iloc[one.rows] == unit).all()
            np.testing.assert_array_equal(one.covariates[:, 0], float(unit == "north"))


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_times_with_and_without_a_zone(zone: str | None) -> None:
    given = table()
    given["stamp"] = given["stamp"].dt.tz_localize(zone)
    series = TableReader.learn(given, OWN).read(given)[0]
    assert in_zone_of(given["stamp"], series.times).dt.tz is given["stamp"].dt.tz
    with pytest.raises(TableError, match=r"'stamp' is .* a second time in row"):
        TableReader.learn(pd.concat([given, given.iloc[:1]], ignore_index=True), OWN)


def test_days_of_arrow_are_times() -> None:
    days = pd.Series(pd.date_range("2026-01-30", periods=6))
    given = pd.DataFrame({"day": days.astype(pd.ArrowDtype(pa.date32())), "a": np.arange(6.0)})
    reader = TableReader.learn(given, Columns(time="day"))
    (series,) = reader.read(given)
    assert in_zone_of(given["day"], series.times).tolist() == days.tolist()
    assert reader.future(series, 1, None)[0] == [np.datetime64("2026-02-05")]


@pytest.mark.parametrize("dtype", ["int8", "uint64", "Int16"])
def test_times_of_integers_do_not_overflow(dtype: str) -> None:
    begin = 0 if dtype == "uint64" else -100
    given = pd.DataFrame({"at": pd.Series([0, 1, 2, 200, 201]) + begin, "a": np.arange(5.0)}).astype({"at": dtype})
    (series,) = TableReader.learn(given, Columns(time="at")).read(given)
    np.testing.assert_allclose(series.covariates[:, 0], [0, 0, 0, np.log(198), 0])


def test_uneven_steps_are_told() -> None:
    given = pd.DataFrame({"stamp": [0.0, 1.0, 3.0, 4.0, 5.0], "a": np.arange(5.0)})
    reader = TableReader.learn(given, Columns(time="stamp"))
    assert reader.irregular
    assert reader.cond_size == 1
    (series,) = reader.read(given)
    np.testing.assert_allclose(series.covariates[:, 0], [0, 0, np.log(2), 0, 0])


def test_the_future_goes_on_by_the_median_step() -> None:
    given = table(day=np.tile(["mon", "sun", "tue"], 4))
    reader = TableReader.learn(given, Columns(id="unit", time="stamp", covariates=("day",)))
    ahead = pd.DataFrame({"unit": ["south"] * 2, "stamp": pd.to_datetime(["2026-01-01 06:00", "2026-01-01 07:00"])})
    ahead["day"] = ["sun", "mon"]
    series = reader.read(given)[1]
    times, told = reader.future(series, 2, reader.read_future(ahead))
    assert pd.to_datetime(times).tolist() == ahead["stamp"].tolist()
    np.testing.assert_array_equal(told, [[0, 1, 0], [1, 0, 0]])
    with pytest.raises(TableError, match=r"future must have 2 rows of unit 'north'"):
        reader.future(reader.read(given)[0], 2, reader.read_future(ahead))
    with pytest.raises(TableError, match="future must be given: a table with 'day' of the 2 steps to come"):
        reader.future(series, 2, None)


def test_the_future_begins_after_the_past() -> None:
    """Of a calendar that tells of the past as well."""
    given = pd.DataFrame({"at": [0, 1, 2, 3], "a": np.arange(4.0), "load": np.arange(4.0)})
    reader = TableReader.learn(given, Columns(time="at", covariates=("load",)))
    calendar = pd.DataFrame({"at": np.arange(9), "load": np.arange(9.0)}).sample(frac=1, random_state=2)
    (series,) = reader.read(given)
    times, told = reader.future(series, 3, reader.read_future(calendar))
    assert times.tolist() == [4, 5, 6]
    np.testing.assert_allclose(told[:, 0] * given["load"].std(ddof=0) + 1.5, [4, 5, 6])
    with pytest.raises(TableError, match="future must have 6 rows, one for each step to come"):
        reader.future(series, 6, reader.read_future(calendar))
    with pytest.raises(TableError, match="column 'at' goes from 3 to 5"):
        reader.future(series, 3, reader.read_future(calendar.query("at != 4")))


def test_a_future_of_uneven_steps_is_told_them() -> None:
    given = pd.DataFrame({"at": [0.0, 1.0, 3.0, 4.0, 5.0], "a": np.arange(5.0)})
    reader = TableReader.learn(given, Columns(time="at"))
    (series,) = reader.read(given)
    times, told = reader.future(series, 2, reader.read_future(pd.DataFrame({"at": [9.0, 7.0, 10.0]})))
    np.testing.assert_array_equal(times, [7, 9])
    np.testing.assert_allclose(told[:, 0], np.log([2, 2]))
    times, told = reader.future(series, 2, None)
    np.testing.assert_array_equal(times, [6, 7])
    np.testing.assert_array_equal(told, [[0], [0]])


def test_what_is_wrong_is_named() -> None:
    given = table(word="a", empty=np.nan)
    with pytest.raises(TableError, match="the table has no rows"):
        TableReader.learn(given.iloc[:0], OWN)
    with pytest.raises(TableError, match="the table has no column 'when', only 'unit', 'stamp'"):
        TableReader.learn(given, Columns(time="when"))
    with pytest.raises(TableError, match=r"column 'word' holds .*, and x must be numbers: name it as id, time or"):
        TableReader.learn(given, OWN)
    with pytest.raises(TableError, match="column 'empty' holds no number"):
        TableReader.learn(given.drop(columns="word"), OWN)
    with pytest.raises(TableError, match="a table needs a column that is neither id, time nor covariate"):
        TableReader.learn(given[["unit", "stamp"]], OWN)
    with pytest.raises(TableError, match="column 'stamp' must hold times or numbers"):
        TableReader.learn(given.astype({"stamp": str})[["unit", "stamp", "heat"]], OWN)
    for stamps, way in (
        (given["stamp"].dt.to_period("h"), r"period\[h\]: its .dt.to_timestamp\(\)"),
        (given["stamp"] - given["stamp"].min(), r"timedelta.*: its .dt.total_seconds\(\)"),
    ):
        with pytest.raises(TableError, match=f"column 'stamp' must hold times or numbers, and holds {way}"):
            TableReader.learn(table().assign(stamp=stamps), OWN)
    with pytest.raises(TableError, match=r"'stamp' is the index of the table, and no column: table.reset_index\(\)"):
        TableReader.learn(table().set_index("stamp"), OWN)
    with pytest.raises(TableError, match=r"'stamp' is .* a second time in row"):
        TableReader.learn(pd.concat([table(), table().iloc[:1]], ignore_index=True), OWN)
    for own in (Columns(features=("heat",), covariates=("heat",)), Columns(features=("heat", "heat"))):
        with pytest.raises(TableError, match="column 'heat' is named twice among id, time, covariates and features"):
            TableReader.learn(table(), own)
    with pytest.raises(TableError, match="column 'turn' holds complex128, and x must be numbers"):
        TableReader.learn(table(turn=np.arange(12) * 1j), OWN)
    with pytest.raises(TableError, match="column 'at' is infinite in row 2"):
        TableReader.learn(pd.DataFrame({"at": [0.0, 1.0, np.inf], "a": np.arange(3.0)}), Columns(time="at"))
    with pytest.raises(TableError, match="column 'at' must hold times or numbers, and holds bool"):
        TableReader.learn(pd.DataFrame({"at": [False, True], "a": np.arange(2.0)}), Columns(time="at"))
    with pytest.raises(TableError, match="the table has several columns 'heat': rename all but one"):
        TableReader.learn(pd.concat([table(), table()[["heat"]]], axis=1), OWN)
    with pytest.raises(TableError, match="column 'stamp' holds times, and a covariate must be numbers or words"):
        TableReader.learn(table(), Columns(features=("heat",), covariates=("stamp",)))
    with pytest.raises(TableError, match="column 'heat' is infinite in row 2: NaN says that nothing was observed"):
        TableReader.learn(table().assign(heat=lambda t: t["heat"].mask(t.index == 2, np.inf)), OWN)
    for column in ("unit", "stamp"):
        with pytest.raises(TableError, match=f"column '{column}' is missing in row 4"):
            TableReader.learn(table().assign(**{column: lambda t, c=column: t[c].mask(t.index == 4)}), OWN)
    with pytest.raises(TableError, match="has one row of each id: no step can be learnt"):
        TableReader.learn(table(2), OWN)


def test_a_table_unlike_the_one_that_was_learnt_is_refused() -> None:
    given = table(day=np.tile(["mon", "sun"], 6))
    reader = TableReader.learn(given, Columns(id="unit", time="stamp", covariates=("day",)))
    with pytest.raises(TableError, match="column 'day' is 'fri' in row 5, which was never seen in fit"):
        reader.read(given.assign(day=given["day"].mask(given.index == 5, "fri")))
    with pytest.raises(TableError, match="column 'day' is missing in row 5: covariates never are"):
        reader.read(given.assign(day=given["day"].mask(given.index == 5)))
    late = given[~((given["unit"] == "north") & (given["stamp"] == pd.Timestamp("2026-01-01 02:00")))]
    with pytest.raises(TableError, match="insert the rows in between, with NaN"):
        reader.read(late)
    with pytest.raises(TableError, match="the table has no column 'flow'"):
        reader.read(given.drop(columns="flow"))
