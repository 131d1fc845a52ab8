"""What the two errors say, and how a name that was mistyped is met."""

import pickle

import pytest

from results.errors import RunFailed, UserError, did_you_mean


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("no such file",), "no such file"),
        (("no such file", "runs/"), "no such file\n  looked in: runs/"),
        (("no such file", "", "make records"), "no such file\n  try: make records"),
        (
            ("no such file", "runs/", "make records"),
            "no such file\n  looked in: runs/\n  try: make records",
        ),
    ],
)
def test_a_user_error_leaves_out_what_is_absent(parts, text):
    assert str(UserError(*parts)) == text


def test_a_user_error_survives_pickling():
    error = pickle.loads(pickle.dumps(UserError("broken image", "folder", "remove it")))
    assert (error.happened, error.looked, error.fix) == ("broken image", "folder", "remove it")


def test_exit_codes():
    assert (UserError("x").exit_code, RunFailed("x").exit_code) == (2, 1)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("alexnet23", " (did you mean 'alexnet32'?)"),
        ("conv33", " (did you mean 'conv3'?)"),
        ("zzzz", ""),
        ("", ""),
    ],
)
def test_did_you_mean(name, hint):
    assert did_you_mean(name, iter(["alexnet", "alexnet32", "conv3", "conv5"])) == hint
