"""Arguments: one schema for form, REST and run.json; errors are sentences."""

from __future__ import annotations

import json
from typing import Any

import pytest

from training.engine.arguments import (
    METHODS,
    ArgumentError,
    argument_schema,
    check_arguments,
)


@pytest.mark.parametrize("method", METHODS)
def test_every_argument_is_explained(method: str) -> None:
    schema = argument_schema(method)
    json.dumps(schema)
    assert all(item["meaning"] for item in schema)
    assert check_arguments(method, {}) == {item["name"]: item["default"] for item in schema}
    first = [item["basic"] for item in schema]
    assert first == sorted(first, reverse=True)


def test_engine_methods_and_argument_methods_are_the_same() -> None:
    from training.engine import methods

    assert set(METHODS) == set(methods.METHODS)


def test_it_fills_in_the_defaults() -> None:
    found = check_arguments("dpo", {"beta": 1, "epochs": 2.0, "target_modules": "q_proj"})
    assert found["beta"] == 1.0
    assert isinstance(found["beta"], float)
    assert found["epochs"] == 2
    assert found["target_modules"] == ["q_proj"]
    assert check_arguments("dpo", found) == found


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"epochs": 1.5}, "epochs must be a whole number; got 1.5"),
        ({"epochs": 0}, "epochs must be between 1 and 1,000; got 0"),
        ({"batch_size": "4"}, "batch_size must be a number"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number"),
        ({"learning_rate": True}, "learning_rate must be a number"),
        ({"loss": "kl"}, "loss must be one of sigmoid, ipo, hinge, robust"),
        ({"loss": ["ipo"]}, "loss must be one of"),
        ({"gradient_checkpointing": 1}, "must be true or false"),
        ({"target_modules": [1]}, "must be a list of names"),
        ({"target_modules": []}, "target_modules is empty"),
        ({"max_length": 100, "max_prompt_length": 100}, "leaves no room"),
        ({"loss": "robust"}, "needs label_smoothing above 0"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "takes no label_smoothing"),
        ({"ties": "rao-kupper", "loss": "hinge"}, "sigmoid loss"),
        ({"lora_rank": 8}, "has no argument 'lora_rank'"),
        ([], "must be an object"),
    ],
)
def test_it_says_what_is_wrong(given: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=r".") as error:
        check_arguments("dpo", given)
    assert words in str(error.value)
