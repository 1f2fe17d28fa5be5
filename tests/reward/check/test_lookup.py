import pytest

from grape_rl.reward.check.lookup import filled, lookup_value, lookups

ROW = {"answer": 72, "unit": "kg", "meta": {"scale": {"low": 1}}, "sly": "${row.answer}", "none": None}


def test_a_whole_look_up_keeps_the_type_and_a_part_becomes_text():
    assert filled("${row.answer}", ROW) == 72
    assert filled("${row.meta.scale}", ROW) == {"low": 1}
    assert filled("${row.none}", ROW) is None
    assert filled("${row.answer} ${row.unit} from ${row.meta.scale.low}", ROW) == "72 kg from 1"
    assert filled("no look-up: $5 {row.answer}", ROW) == "no look-up: $5 {row.answer}"


def test_what_is_filled_in_is_not_looked_at_again():
    assert filled("is ${row.sly}", ROW) == "is ${row.answer}"
    assert filled("${row.sly}", ROW) == "${row.answer}"


def test_quoted_values_go_in_as_text_even_when_they_are_the_whole():
    assert filled("${row.answer}", ROW, quoted=lambda text: f"<{text}>") == "<72>"


@pytest.mark.parametrize(
    "text", ["${answer}", "${row}", "${row.}", "${row.a..b}", "a ${rows.x} b", "${row.x", "${row.a} ${}"]
)
def test_a_look_up_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="is not a lookup: write"):
        lookups(text)


@pytest.mark.parametrize(
    "text", ["${row.color}", "${row.meta.size}", "${row.answer.real}", "${row.unit.k}", "${row.meta.scale.low.x}"]
)
def test_what_the_row_lacks_is_an_error_that_names_its_columns(text):
    with pytest.raises(ValueError, match="in the row, which has answer, unit, meta, sly, none"):
        lookup_value(text, ROW)


def test_no_attribute_is_ever_read():
    with pytest.raises(ValueError, match="no '__class__'"):
        filled("${row.__class__}", ROW)


def test_an_empty_value_inside_a_text_is_an_error():
    with pytest.raises(ValueError, match="is empty in this row"):
        filled("is ${row.none}", ROW)
