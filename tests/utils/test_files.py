"""What is no file to read is refused."""

import os

import pytest

from mmivit.utils.files import RefusedFile, check_regular


def test_only_files_are_read(tmp_path):
    (tmp_path / 'file').touch()
    check_regular(tmp_path / 'file')
    os.mkfifo(tmp_path / 'pipe')
    for path in (tmp_path, tmp_path / 'pipe', '/dev/zero'):
        with pytest.raises(RefusedFile, match='a folder, pipe or device'):
            check_regular(path)
    with pytest.raises(FileNotFoundError):
        check_regular(tmp_path / 'none')
