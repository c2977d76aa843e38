"""A look at a study finds what Optuna finds, and nothing where Optuna has to say what is wrong."""

import optuna
import pytest

from evomerge.commands.glance import glance_at
from evomerge.storage.attributes import write_text
from evomerge.storage.opening import open_storage, release


@pytest.fixture(params=["sqlite", "journal"])
def url(request, tmp_path):
    return f"{request.param}:///{tmp_path}/study of {request.param}"


def create(url, name, **attributes):
    storage = open_storage(url)
    study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
    for key, value in attributes.items():
        study.set_user_attr(key, value)
    trial = study.ask()
    trial.set_user_attr("key", '"op_code":2')
    study.tell(trial, 1.0)
    return storage, study


def test_a_look_finds_the_attributes_of_the_study_and_of_no_other(url):
    for name in ("other", "s", "last"):
        storage, study = create(url, name, key="é", of=name)
        write_text(study, "long", "ü" * 4000)
        study.set_user_attr("key", [1, None])
        release(storage)
    assert glance_at(url, "s").user_attrs == optuna.load_study(study_name="s", storage=storage).user_attrs
    assert glance_at(url, "s").user_attrs["of"] == "s"
    release(storage)


def test_a_study_that_was_deleted_is_not_there_and_one_made_again_is_empty(url):
    storage, _ = create(url, "s", old=1)
    optuna.delete_study(study_name="s", storage=storage)
    assert glance_at(url, "s") is None
    optuna.create_study(study_name="s", storage=storage)
    assert glance_at(url, "s").user_attrs == {}
    release(storage)


def test_what_is_not_there_or_broken_is_left_to_optuna(url, tmp_path):
    assert glance_at(url, "s") is None
    (tmp_path / url.rpartition("/")[2]).write_bytes(b'{"op_code":0,')
    assert glance_at(url, "s") is None
    assert glance_at("redis://localhost:1/0", "s") is None
