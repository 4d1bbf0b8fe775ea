import hashlib
import stat

import pytest

from medseg.io.files import file_sha256, whole_file, write_text


def test_failure_keeps_the_old_file_and_leaves_no_part(tmp_path):
    path = tmp_path / "plan.json"
    write_text(path, "old\n")
    with pytest.raises(RuntimeError, match="disk on fire"), whole_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("disk on fire")
    assert path.read_text() == "old\n"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "plan.json"
    write_text(path, "old")
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent
    assert path.read_text() == "new"


def test_temporary_path_keeps_the_suffixes(tmp_path):
    with whole_file(tmp_path / "scan.nii.gz") as temporary:
        assert temporary.name.endswith("scan.nii.gz")
        assert temporary.name.startswith(".part-")


def test_folders_are_made_and_names_may_hold_spaces_and_unicode(tmp_path):
    path = tmp_path / "Füße und Ärzte" / "日本 scan.txt"
    write_text(path, "ä\nß\n")
    assert path.read_bytes() == "ä\nß\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_sha256_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"medseg" * 1000)
    assert file_sha256(path) == hashlib.sha256(b"medseg" * 1000).hexdigest()
