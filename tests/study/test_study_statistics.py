"""Statistics of a study come back as they were stored, and name files by digest alone."""

import optuna
import pytest

from evomerge.errors import InvalidInput
from evomerge.jobs import Cost
from evomerge.storage import attributes
from evomerge.storage.attributes import write_text
from evomerge.study.study_statistics import StudyStatistics, read_statistics


def test_statistics_come_back_as_they_were_stored():
    study = optuna.create_study()
    assert read_statistics(study) == StudyStatistics()
    stored = StudyStatistics(files={"grams.reverse": "a" * 64}, cost=Cost())
    write_text(study, attributes.STATISTICS, stored.to_json())
    assert read_statistics(study) == stored


@pytest.mark.parametrize(
    ("files", "says"),
    [({"fishers": "../" * 10 + "tmp/x"}, "is no digest of a file"), ({"../fishers": "a" * 64}, "is no role")],
)
def test_statistics_outside_of_the_folder_of_artifacts_are_refused(files, says):
    study = optuna.create_study()
    write_text(study, attributes.STATISTICS, StudyStatistics(files=files).to_json())
    with pytest.raises(InvalidInput, match=says):
        read_statistics(study)
