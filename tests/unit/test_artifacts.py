"""All or nothing on disk, and no trust in bytes."""

import os

import pytest

from pruneflow.artifacts import (
    read_json,
    repair,
    staged_directory,
    staged_file,
    verify_manifest,
    write_json,
    write_manifest,
)
from pruneflow.errors import DamagedArtifactError, InputError


def test_a_failure_leaves_the_earlier_file_and_nothing_else(tmp_path):
    out = tmp_path / "out.json"
    write_json(out, {"a": 1})
    with pytest.raises(RuntimeError), staged_file(out) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(out) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_a_failure_leaves_the_earlier_directory_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    with staged_directory(out) as directory:
        (directory / "a").write_text("first")
    with pytest.raises(RuntimeError), staged_directory(out) as directory:
        (directory / "a").write_text("half")
        raise RuntimeError
    assert (out / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_new_directory_replaces_the_old_one_whole(tmp_path):
    out = tmp_path / "out"
    for name in ("a", "b"):
        with staged_directory(out) as directory:
            (directory / name).write_text(name)
    assert [path.name for path in out.iterdir()] == ["b"]


def test_a_kill_between_the_two_renames_is_repaired(tmp_path):
    out = tmp_path / "out"
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old/a").write_text("first")
    (tmp_path / ".out.new").mkdir()
    repair(out)
    assert (out / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_kill_after_the_swap_leaves_the_new_one(tmp_path):
    out = tmp_path / "out"
    for name in ("out", ".out.old"):
        (tmp_path / name).mkdir()
    (out / "a").write_text("second")
    repair(out)
    assert (out / "a").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_found_and_the_file_named(tmp_path, damage):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"0123456789")
    write_manifest(tmp_path, seed=3)
    assert verify_manifest(tmp_path)["seed"] == 3
    if damage == "flip":
        path.write_bytes(b"0123456780")
    elif damage == "cut":
        path.write_bytes(b"01234")
    else:
        path.unlink()
    with pytest.raises(DamagedArtifactError, match=r"weights\.bin"):
        verify_manifest(tmp_path)


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(InputError, match="cannot be written"),
        staged_directory(tmp_path / "file/out"),
    ):
        pass
    with pytest.raises(InputError, match="cannot be written"):
        write_json(tmp_path / "file/out.json", {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_one_clear_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        write_json(tmp_path / "out.json", {})


def test_json_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(DamagedArtifactError, match="is missing"):
        read_json(path)
    path.write_text("{")
    with pytest.raises(DamagedArtifactError, match="not valid JSON"):
        read_json(path)
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
