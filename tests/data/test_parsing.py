import json
import resource
import time

import pytest

from gmvq.data.parsing import LARGEST_JSON, MOST_VALUES, DamagedFileError, parse_json, read_json


@pytest.mark.parametrize("value", ['{"a": [1, 2.5, "é", null, true], "b": {"a": -1e-9}}', "3", "[]", '"\\ud800"'])
def test_json_is_parsed(value):
    assert parse_json(value.encode()) == json.loads(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "'a' occurs twice"),
        ('[{"a": NaN}]', "NaN"),
        ("-Infinity", "Infinity"),
        ("[1e999]", "1e999"),
        ("1" * 41, "too large"),
        ("1" * 5000, "too large"),
        ("[" * 200_000, "nested"),
        ('{"a":' * 50_000, "nested"),
        ("[" + "{}," * MOST_VALUES + "{}]", "values"),
        (" " * (LARGEST_JSON + 1), "larger"),
        ("{", "Expecting"),
        ("", "Expecting"),
        ("\ufeff{}", "BOM"),
    ],
)
def test_what_is_no_json_of_ours_is_refused(tmp_path, text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(text.encode())
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DamagedFileError, match=rf"x\.json is not JSON \(.*{reason}"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("text", [b"\xff", b"\x00[\x00]"])
def test_other_encodings_are_refused(text):
    with pytest.raises(ValueError, match=r"decode|Expecting"):
        parse_json(text)


@pytest.mark.parametrize("part", ["{}", "[]", "0", '"a"', '{"":0}'])
def test_the_largest_json_takes_little_memory_and_time(part):
    count = MOST_VALUES // (1 + part.count("{") + part.count("[")) - 2
    text = "[" + ",".join([part] * count) + "]"
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert len(parse_json(text.encode())) == count
    assert time.process_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 250_000
