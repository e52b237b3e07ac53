"""Every pruner of the registry, against the contract of the family."""

import json

import pytest

from settle.base.errors import UsageError
from settle.shrink.pruners import Pruner
from tests.shrink.pruners.subjects import assert_ordinary, code, trained_subject, windows

PRUNERS = Pruner.parts()
SHRINKING = [name for name, pruner in PRUNERS.items() if pruner.shrinks]


@pytest.mark.parametrize("name", PRUNERS)
def test_a_smaller_ordinary_model(name, tmp_path) -> None:
    subject = trained_subject()
    before = {key: tensor.clone() for key, tensor in subject.weights.items()}
    pruned = Pruner.make(name, {}).prune(subject, windows(subject, 3), [code()[:600]])
    assert pruned.subject.num_parameters < subject.num_parameters
    assert pruned.report["pruner"] == name and json.loads(json.dumps(pruned.report))
    assert all(tensor.equal(subject.weights[key]) for key, tensor in before.items())
    assert_ordinary(pruned.subject, tmp_path)


@pytest.mark.parametrize("name", SHRINKING)
def test_it_reaches_the_shape_that_it_names(name) -> None:
    subject, pruner = trained_subject(), PRUNERS[name]
    field = pruner.shrinks[0]
    wanted = getattr(subject.part, field) // 2
    made = pruner.to_shape(subject, {field: wanted}).model_copy(update={"step": True})
    chosen, seen = made.affordable(subject, windows(subject, 3))
    assert getattr(chosen.prune(subject, seen, []).subject.part, field) == wanted


def test_every_field_has_one_pruner_and_every_order_one_place() -> None:
    fields = [field for pruner in PRUNERS.values() for field in pruner.shrinks]
    orders = [PRUNERS[name].order for name in SHRINKING]
    assert len(set(fields)) == len(fields) and len(set(orders)) == len(orders)


@pytest.mark.parametrize("name", PRUNERS)
def test_settings_are_described_and_unknown_ones_refused(name) -> None:
    assert PRUNERS[name].__doc__ and all(field.description for field in PRUNERS[name].model_fields.values())
    with pytest.raises(ValueError, match="nonsense"):
        Pruner.make(name, {"nonsense": 1})


def test_a_pruner_that_is_unknown() -> None:
    with pytest.raises(UsageError, match="did you mean 'depth'"):
        Pruner.make("dept", {})
