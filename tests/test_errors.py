"""Errors cross process borders: every class of the tree survives pickling with its fields and its message."""

import inspect
import pickle

import pytest

from moecap import errors

EXAMPLES: dict[str, tuple[object, ...]] = {
    "ConfigError": ("is bad", "a.b", 3, "write 4"),
    "UnknownDeviceError": ("is unknown", "device", "h1000", "try nvidia-h100-sxm5-80gb"),
    "StudyError": ("s.yaml", (errors.Problem(key="name", value=1, message="bad", remedy="a string"),)),
    "MissingDependencyError": ("vllm", "engine vllm", "pip install moecap[vllm]"),
}
CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.MoECapError)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_error_survives_pickling(cls: type[errors.MoECapError]) -> None:
    error = cls(*EXAMPLES.get(cls.__name__, ("what happened",)))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert (str(copy), copy.args, vars(copy)) == (str(error), error.args, vars(error))


def test_the_tree_at_the_top_of_the_file_is_the_tree() -> None:
    drawn = [
        line.split()[-1] if "──" not in line else line.split("── ")[1].split()[0]
        for line in (errors.__doc__ or "").splitlines()
        if "Error" in line and "raise" not in line
    ]
    assert sorted(drawn) == sorted(c.__name__ for c in CLASSES)


def test_a_config_error_names_key_value_and_remedy() -> None:
    assert str(errors.ConfigError("is bad", "a.b", 3, "write 4")) == "a.b = 3: is bad; write 4"
