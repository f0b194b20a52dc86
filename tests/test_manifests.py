"""Manifests of folders: what is in them, damage, and one reader that hashes."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vae_jax import storage


@pytest.fixture
def described(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A folder of two files, and its manifest."""
    (tmp_path / "made" / "sub").mkdir(parents=True)
    (tmp_path / "made" / "a").write_text("aaa")
    (tmp_path / "made" / "sub" / "b").write_text("bbb")
    return tmp_path / "made", storage.manifest_of(tmp_path / "made")


def test_a_manifest_has_names_sizes_and_sums(described: tuple[Path, dict[str, Any]]) -> None:
    folder, manifest = described
    assert manifest == {
        "a": {
            "bytes": 3,
            "sha256": "9834876dcfb05cb167a5c24953eba58c4ac89b1adf57f28f2f9d09af107ee8f0",
        },
        "sub/b": {
            "bytes": 3,
            "sha256": "3e744b9dc39389baf0c5a0660589b8402f3dbb49b89b3e75f2c9355852a3c677",
        },
    }
    assert storage.damage(folder, manifest) is None


def test_what_others_put_beside_is_neither_damage_nor_ours(
    described: tuple[Path, dict[str, Any]],
) -> None:
    folder, manifest = described
    for name in (".DS_Store", "sub/Thumbs.db", "desktop.ini", "sub/._b", storage.MANIFEST):
        (folder / name).touch()
    assert storage.manifest_of(folder) == manifest
    assert storage.strangers(folder, manifest) == set()
    (folder / "sub" / "notes.txt").touch()
    (folder / "link").symlink_to("nowhere")
    assert storage.damage(folder, manifest) is None
    assert storage.strangers(folder, manifest) == {"sub/notes.txt", "link"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "sub/b is missing"),
        ("bb", "sub/b is not the file that was written"),
        ("bbc", "sub/b is not the file that was written"),
    ],
)
def test_damage_is_found(
    content: str | None, said: str, described: tuple[Path, dict[str, Any]]
) -> None:
    folder, manifest = described
    (folder / "sub" / "b").unlink()
    if content is not None:
        (folder / "sub" / "b").write_text(content)
    assert storage.damage(folder, manifest) == said


@pytest.mark.parametrize("entry", [None, 3, "text", [], {}, {"bytes": "3"}, {"bytes": 3}])
def test_a_manifest_of_other_types_is_damage(
    entry: Any, described: tuple[Path, dict[str, Any]]
) -> None:
    folder, manifest = described
    assert storage.damage(folder, manifest | {"a": entry}) is not None


def test_of_readers_that_come_at_once_one_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each opens the lock by itself, as processes do; a damaged file has no stamp."""
    (tmp_path / "x.npy").write_bytes(b"x" * 1000)
    manifest, hashed, entry = storage.manifest_of(tmp_path), [], storage._entry

    def slowly(path: Path) -> Any:
        hashed.append(path.name)
        time.sleep(0.2)
        return entry(path)

    def read(_: int) -> str | None:
        return storage.damage_since(tmp_path, manifest)

    monkeypatch.setattr(storage, "_entry", slowly)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(8))) == [None] * 8
    assert hashed == ["x.npy"]
    assert storage.manifest_of(tmp_path) == manifest  # notes are not among the files
    (tmp_path / "x.npy").write_bytes(b"y" * 1000)
    for _ in range(2):
        assert read(0) == "x.npy is not the file that was written"
    (tmp_path / "x.npy").unlink()
    assert read(0) == "x.npy is missing"
