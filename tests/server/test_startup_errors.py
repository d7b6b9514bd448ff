"""A replica's error reaches the process that deploys it as the object that was raised."""

import pytest

from minigpt4_serve.errors import WeightsError
from minigpt4_serve.server.ray import startup_errors
from minigpt4_serve.server.ray.startup_errors import clear_startup_error, read_startup_error, report_startup_error


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, bytes]:
    """In place of the cluster's key-value store."""
    values: dict[bytes, bytes] = {}
    monkeypatch.setattr(startup_errors, "_internal_kv_get", lambda key, namespace: values.get(key))
    monkeypatch.setattr(startup_errors, "_internal_kv_put", lambda key, value, namespace: values.update({key: value}))
    monkeypatch.setattr(startup_errors, "_internal_kv_del", lambda key, namespace: values.pop(key, None))
    return values


def test_the_error_keeps_its_type_and_attributes() -> None:
    with pytest.raises(WeightsError), report_startup_error():
        raise WeightsError("It doesn't fit.", missing=["a"], unexpected=["b"])
    error = read_startup_error()
    assert isinstance(error, WeightsError)
    assert (error.message, error.missing, error.unexpected) == ("It doesn't fit.", ["a"], ["b"])
    clear_startup_error()
    assert read_startup_error() is None


def test_other_errors_are_not_reported() -> None:
    with pytest.raises(ZeroDivisionError), report_startup_error():
        raise ZeroDivisionError
    assert read_startup_error() is None


def test_a_store_that_fails_hides_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(startup_errors, "_internal_kv_put", fails)
    with pytest.raises(WeightsError), report_startup_error():
        raise WeightsError("It doesn't fit.")
