"""Atomic files, and sealed files that reveal damage."""

from pathlib import Path

import pytest

from unime.storage.atomic_files import atomic_write, intact_files


def test_a_file_is_replaced_only_when_the_new_one_is_complete(tmp_path: Path):
    path = tmp_path / "results.json"
    with atomic_write(path) as part:
        part.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as part:
        part.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_the_error_of_a_failed_write_names_the_file(tmp_path: Path):
    with pytest.raises(OSError) as raised, atomic_write(tmp_path / "absent" / "results.json") as part:
        part.write_text("")
    path = tmp_path / "absent" / "results.json"
    reason = "No such file or directory"
    assert str(raised.value) == f"cannot write {path} ({reason}): free disk space and try again"


def test_a_damaged_sealed_file_is_reported_and_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for name in ("a", "b", "a.b"):
        with atomic_write(tmp_path / f"{name}.npy", sealed=True) as part:
            part.write_text(f"content of {name}")
    (tmp_path / "a.npy").write_text("not sealed")
    files = list(intact_files(tmp_path, "*.*.npy"))
    assert [file.read_text() for file in files] == ["content of a", "content of a.b", "content of b"]
    assert files[2].name == "b.b28009a2e47290880382a24d3bea5c40.npy"
    files[2].write_text("content of c")
    assert list(intact_files(tmp_path, "*.*.npy")) == files[:2] and not files[2].exists()
    assert caplog.messages == [f"{files[2]} is damaged (its checksum does not match): it is removed and made again"]
