"""Exclusion lists: round trip, one line for what is none, and what they leave out and shift."""

import pytest

from rgb2pc_lib.data.files.exclusions import NOTHING, Exclusions
from rgb2pc_lib.errors import InputError

WHOLE = Exclusions({"push/ep_3": "moved # twice", 'a "b"/ç\\d': "", "push/ep 4/step.07": "\x7fblurred 😀"}, {"p/e": -2})


def test_a_list_survives_file_and_run(tmp_path):
    (tmp_path / "bad.toml").write_text(WHOLE.toml(), encoding="utf-8")
    assert Exclusions.read(tmp_path / "bad.toml") == WHOLE == Exclusions.of(WHOLE.lines)
    assert WHOLE.lines[0] == "push/ep_3 # moved # twice" and WHOLE.lines[-1] == "p/e shift -2"
    (tmp_path / "none.toml").write_text(NOTHING.toml())
    assert Exclusions.read(tmp_path / "none.toml") == NOTHING == Exclusions.of([])


def test_names_and_lists_add_up_on_a_command_line(tmp_path):
    (tmp_path / "bad.toml").write_text('[exclude]\n"push/ep_3" = "moved"\n[shift]\n"push/ep_5" = 2\n')
    found = Exclusions.of([str(tmp_path / "bad.toml"), "push/ep_4"])
    assert found == Exclusions({"push/ep_3": "moved", "push/ep_4": ""}, {"push/ep_5": 2})
    assert found.effect == Exclusions({"push/ep_4": "why", "push/ep_3": ""}, {"push/ep_5": 2}).effect != WHOLE.effect


@pytest.mark.parametrize(
    "text, message",
    [
        ("exclude = 1", "exclude: expected a table, found 1"),
        ("[exclude]\nx = ''", "'x': is no episode or step; write \"task/episode\""),
        ("[exclude]\n'a/b/c/d' = ''", "'a/b/c/d': is no episode or step"),
        ("[exclude]\n'a/b' = 1", "exclude: a/b: expected text, found 1; write the reason in quotes"),
        ("[shift]\n'a/b' = 0.5", "shift: a/b: expected a whole number, found 0.5"),
        ("[shift]\n'a/b/c' = 1", "is no episode or step"),
        ("[excluded]\n'a/b' = ''", r"unknown key\(s\) excluded; expected the tables"),
        ("[exclude", "expected an exclusion list"),
        ("\x80", "expected an exclusion list"),
    ],
)
def test_what_is_no_list_is_said_in_one_line(tmp_path, text, message):
    (tmp_path / "bad.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message) as e:
        Exclusions.read(tmp_path / "bad.toml")
    assert "bad.toml" in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(InputError, match="nowhere.toml: expected an exclusion list"):
        Exclusions.of([str(tmp_path / "nowhere.toml")])


def test_a_shift_takes_what_stands_so_many_steps_later():
    key, steps, found = ("p", "e"), list("abcd"), dict(zip("abcd", range(4), strict=True))
    for by, expected in [(0, found), (2, {"a": 2, "b": 3}), (-1, {"b": 0, "c": 1, "d": 2}), (9, {})]:
        assert Exclusions({}, {"p/e": by}).shifted(key, steps, found) == expected
    assert Exclusions({}, {"p/e": 1}).shifted(key, steps, {"a": 0, "c": 2}) == {"b": 2}  # b and d are not there
