from __future__ import annotations

from pathlib import Path

import pytest

from pneumoscope.data.index import index, require_both_classes
from support.bad_data import BAD_DATA, BadData


@pytest.mark.parametrize("case", BAD_DATA, ids=lambda case: case.name)
def test_bad_data_is_rejected_with_the_place_and_the_way_out(case: BadData, tmp_path: Path) -> None:
    data = case.build(tmp_path)
    with pytest.raises(case.error) as caught:
        require_both_classes(index(data).records, str(data))
    assert type(caught.value) is case.error
    assert str(data) in str(caught.value)
    for words in case.words:
        assert words in str(caught.value)


def test_the_table_has_unique_names() -> None:
    assert len({case.name for case in BAD_DATA}) == len(BAD_DATA)
