import pytest

from training.__main__ import family_of
from training.errors import TuningError
from training.hyperparameters import configured
from training.tuning.space import SPACES, Choice, Range, space_of, written

FIELDS = [(model, name) for model, space in SPACES.items() for name in space.fields]


@pytest.mark.parametrize(("model", "name"), FIELDS)
def test_every_searched_value_is_one_that_train_accepts(model: str, name: str) -> None:
    field = SPACES[model].fields[name]
    ends = (field.low, field.high) if isinstance(field, Range) else field.values
    for value in ends:
        config = configured(model, family_of(model, [])[1], [f"{name}={written(field, value)}"])
        assert getattr(config, name) == value


@pytest.mark.parametrize(("model", "name"), FIELDS)
def test_the_default_is_a_point_of_the_space(model: str, name: str) -> None:
    field, default = SPACES[model].fields[name], getattr(family_of(model, [])[1], name)
    inside = field.low <= default <= field.high if isinstance(field, Range) else default in field.values
    assert inside
    assert type(default)(written(field, default)) == default


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("judge", "'judge' is no model with a search space, expected one of cnn, flow, gan, mlp, vae, vit"),
        ("rnn", "'rnn' is no model with a search space, expected one of cnn, flow, gan, mlp, vae, vit"),
    ],
)
def test_a_model_without_a_space_is_named(model: str, message: str) -> None:
    with pytest.raises(TuningError, match=message):
        space_of(model)


def test_a_range_is_written_with_four_digits() -> None:
    assert written(Range(1e-4, 1.0, log=True), 0.00123456) == "0.001235"
    assert written(Choice((64, 128)), 128) == "128"


def test_a_fixed_field_is_not_searched() -> None:
    assert "batch_size" not in SPACES["vae"].without({"batch_size", "epochs"}).fields
    assert "batch_size" in SPACES["vae"].fields
